"""A plugin that follows its file, as one in a cluster follows its ConfigMap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from gpuplugin.config.load import load_settings
from gpuplugin.config.options import OPTIONS
from gpuplugin.daemon.app import Daemon
from gpuplugin.kubelet.proto import deviceplugin_pb2 as dp
from tests.component.running import RESOURCE, PluginProcess
from tests.component.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from gpuplugin.config.loaded import Loaded
    from hal import Backend

BY_FLAG = {flag: option for option in OPTIONS for flag in option.flags}


class Followed(PluginProcess):
    """A plugin that follows its file."""

    def __init__(self, file: Path, flags: Mapping[str, str], backend: Backend) -> None:
        self.file = file
        given = {BY_FLAG[flag]: text for flag, text in flags.items()}

        def load() -> Loaded:
            return load_settings(given, {}, str(file))

        loaded = load()
        super().__init__(loaded.settings, backend)
        self._daemon = Daemon(loaded, load, backend, "test")

    def rewrite(self, text: str) -> None:
        """Change the file and wait until it is in force."""
        before = self.reloads()
        self.swap(text)
        eventually(lambda: self.reloads() > before)

    def spoil(self, text: str | None) -> str:
        """Change the file (None: remove it) and wait until that is refused; returns the words."""
        before = self.metric("gpuplugin_config_reloads_total", result="refused")
        if text is None:
            self.file.unlink()
        else:
            self.swap(text)
        eventually(lambda: self.metric("gpuplugin_config_reloads_total", result="refused") > before)
        assert self.metric("gpuplugin_config_last_reload_successful") == 0
        return self.part("config")

    def reloads(self) -> float:
        """How many changes came into force."""
        return self.metric("gpuplugin_config_reloads_total", result="accepted")

    def part(self, name: str) -> str:
        """The text of a part of /ready."""
        return str(self.get("/ready").parts[name]["text"])

    def updates(self, resource: str = RESOURCE) -> float:
        """Lists of a resource that were published."""
        return self.metric("gpuplugin_list_updates_total", resource=resource)

    def devices(self, resource: str = RESOURCE) -> float:
        """Healthy devices of a resource."""
        return self.metric("gpuplugin_devices", resource=resource, health="Healthy")

    def prefer(self, available: Sequence[str], size: int) -> list[str]:
        """What GetPreferredAllocation answers for one container."""
        request = dp.PreferredAllocationRequest(
            container_requests=[
                dp.ContainerPreferredAllocationRequest(
                    available_deviceIDs=available, allocation_size=size
                )
            ]
        )
        answer = dp.PreferredAllocationResponse.FromString(
            self.call("GetPreferredAllocation", request.SerializeToString())
        )
        (container,) = answer.container_responses
        return list(container.deviceIDs)

    def swap(self, text: str) -> None:
        """Change the file in one step, so that no half of it is ever read."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.file)


class Follow(Protocol):
    """Starts a plugin with a file of this text."""

    def __call__(
        self,
        backend: Backend,
        text: str,
        registration: str = "watcher",
        flags: Mapping[str, str] | None = None,
    ) -> Followed: ...
