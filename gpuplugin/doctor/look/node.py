"""Gathers all facts of a node."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gpuplugin.doctor.facts import ConfigFacts, Facts
from gpuplugin.doctor.look.driver import look_at_driver
from gpuplugin.doctor.look.kubelet import look_at_kubelet
from gpuplugin.doctor.look.plugin import look_at_plugin
from gpuplugin.doctor.look.runtime import look_at_runtime

if TYPE_CHECKING:
    from gpuplugin.doctor.facts import HardwareFacts
    from gpuplugin.doctor.look.hostroot import HostRoot

CONFIG_PLACES = (
    "/etc/gpuplugin/config.yaml",
    "/config/config.yaml",
    "/etc/nvidia-device-plugin/config.yaml",
)
"""Where manifests mount a configuration."""


def gather(
    host: HostRoot, config: ConfigFacts, hardware: HardwareFacts, plugin_uid: int | None
) -> Facts:
    """Everything that the checks ask for.

    `plugin_uid` is the user that the plugin is to run as; None takes that of the running one, or
    else this process' own.
    """
    settings = config.settings
    kubelet_root = str(settings.daemon.kubelet_dir)
    plugin = look_at_plugin(host, kubelet_root, settings.daemon.listen_address)
    uid = plugin_uid if plugin_uid is not None else plugin.uid
    return Facts(
        config=config,
        hardware=hardware,
        driver=look_at_driver(host, settings.flags.nvidia_driver_root),
        kubelet=look_at_kubelet(host, kubelet_root, settings.daemon.kubelet_socket),
        plugin=plugin,
        runtime=look_at_runtime(host, str(settings.daemon.cdi_root)),
        plugin_uid=os.geteuid() if uid is None else uid,
    )


def unread_configurations(host: HostRoot, named: str | None) -> tuple[str, ...]:
    """Configurations at the usual places, if none was named."""
    return () if named else tuple(host.existing(CONFIG_PLACES))
