"""CDI on this machine: specs as files, written atomically, and the device nodes of features."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.config.plans import driver_root
from gpuplugin.core.cdi import CdiHost, cdi_specs, hook_programs, spec_file_name
from gpuplugin.daemon.serving.sockets import identity
from gpuplugin.daemon.wholefiles import write_whole
from hal.driverfiles import DriverFiles, find_driver_files

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuplugin.config.settings import Settings
    from gpuplugin.core.injection import InjectionPlan
    from gpuplugin.core.inventory import Inventory
    from gpuplugin.daemon.serving.sockets import Identity

SPEC_MODE = 0o644
_FEATURE_NODES = {
    "gdrcopy": ("dev/gdrdrv",),
    "gds": ("dev/nvidia-fs*",),
    "mofed": ("dev/infiniband/uverbs*", "dev/infiniband/rdma_cm"),
}

log = logging.getLogger(__name__)


class CdiWriter:
    def __init__(self, folder: Path, host: CdiHost, plan: InjectionPlan) -> None:
        self._folder = folder
        self._host = host
        self._plan = plan
        self._written: tuple[Inventory, Mapping[str, Identity | None]] | None = None

    def specs(self, inventory: Inventory) -> dict[str, dict[str, object]]:
        return cdi_specs(inventory, self._plan, self._host)

    def write(self, inventory: Inventory) -> None:
        """Write the inventory's specs if anything changed since the last call; raises OSError."""
        if self._written == (inventory, self._files()):
            return
        wanted = self.specs(inventory)
        self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        for name, spec in wanted.items():
            if _write_if_changed(self._folder / name, spec):
                log.info("wrote %s", self._folder / name, extra={"event": "cdi-written"})
        remove_specs(self._folder, keep=wanted)
        self._written = (inventory, self._files())

    def _files(self) -> dict[str, Identity | None]:
        """The plugin's files in the folder, with their identities."""
        return {path.name: identity(path) for path in own_specs(self._folder)}


def cdi_writer(settings: Settings, plan: InjectionPlan) -> CdiWriter:
    """A writer for this machine."""
    return CdiWriter(settings.daemon.cdi_root, cdi_host(settings, plan), plan)


def cdi_host(settings: Settings, plan: InjectionPlan) -> CdiHost:
    """What this machine has for specs; a simulated node has no driver files to mount."""
    root = driver_root(settings)
    simulated = settings.daemon.backend == "sim"
    return CdiHost(
        driver_root=settings.flags.nvidia_driver_root,
        driver=DriverFiles() if simulated else find_driver_files(root),
        hook=_hook(settings, root),
        feature_nodes=tuple((one, feature_nodes(root, one)) for one in plan.features),
    )


def _write_if_changed(path: Path, spec: Mapping[str, object]) -> bool:
    text = json.dumps(spec, indent=2) + "\n"
    try:
        if path.read_bytes() == text.encode():
            return False
    except OSError:
        pass  # not there, or not readable: written anew
    write_whole(path, text, SPEC_MODE)
    return True


def _hook(settings: Settings, root: Path) -> str | None:
    """The hook program, if it is on the host and the user wants hooks."""
    if {"all", "update-ldcache"} & set(settings.daemon.cdi_disable_hooks):
        return None
    return next(
        (
            path
            for path in hook_programs(settings.flags.plugin.nvidia_ctk_path)
            if any((base / path.lstrip("/")).is_file() for base in (root, Path("/")))
        ),
        None,
    )


def present_features(settings: Settings) -> frozenset[str]:
    """The features that this machine has device nodes of, switched on or not."""
    root = driver_root(settings)
    return frozenset(feature for feature in _FEATURE_NODES if feature_nodes(root, feature))


def own_specs(folder: Path) -> list[Path]:
    return sorted(folder.glob(spec_file_name("*")))


def remove_specs(folder: Path, keep: Mapping[str, object] | None = None) -> tuple[Path, ...]:
    """Remove this plugin's specs except `keep`; returns them. Raises OSError."""
    stale = [path for path in own_specs(folder) if path.name not in (keep or {})]
    for path in stale:
        path.unlink(missing_ok=True)
    return tuple(stale)


def feature_nodes(root: Path, feature: str) -> tuple[str, ...]:
    """The device nodes of a feature, below the driver's root or else on this machine."""
    bases = (root, Path("/"))
    for base in bases:
        found = [
            f"/{path.relative_to(base)}"
            for pattern in _FEATURE_NODES[feature]
            for path in sorted(base.glob(pattern))
        ]
        if found:
            return tuple(found)
    return ()
