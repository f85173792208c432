"""Collects facts of a node: reads files, connects to sockets, calls the driver. Judges nothing.

What cannot be read becomes a fact, not an error, and no call waits longer than its deadline.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gpuplugin.doctor.collect.cluster import collect_cluster
from gpuplugin.doctor.collect.driver import collect_driver
from gpuplugin.doctor.collect.kubelet import collect_kubelet
from gpuplugin.doctor.collect.runtime import collect_runtime
from gpuplugin.doctor.collect.talos import collect_talos
from gpuplugin.doctor.facts import ConfigFacts, DriverFacts, Facts, RuntimeFacts

if TYPE_CHECKING:
    from gpuplugin.doctor.collect.host import HostRoot
    from gpuplugin.doctor.facts import HardwareFacts, PluginFacts

CONFIG_PLACES = (
    "/etc/gpuplugin/config.yaml",
    "/config/config.yaml",
    "/etc/nvidia-device-plugin/config.yaml",
)
"""Where manifests mount a configuration."""


def collect(
    host: HostRoot,
    config: ConfigFacts,
    hardware: HardwareFacts,
    plugin: PluginFacts,
    plugin_uid: int | None,
) -> Facts:
    """Everything that the checks need. Of the host of a simulated node only its kubelet's folder.

    `plugin_uid` is the user that the plugin runs as; None means the user of the running plugin,
    or that of this process if no plugin runs.
    """
    settings = config.settings
    kubelet_root = str(settings.daemon.kubelet_dir)
    simulated = hardware.backend == "sim"
    uid = plugin_uid if plugin_uid is not None else plugin.uid
    return Facts(
        config=config,
        hardware=hardware,
        driver=DriverFacts()
        if simulated
        else collect_driver(host, settings.flags.nvidia_driver_root),
        kubelet=collect_kubelet(host, kubelet_root, settings.daemon.kubelet_socket),
        plugin=plugin,
        runtime=RuntimeFacts()
        if simulated
        else collect_runtime(host, str(settings.daemon.cdi_root)),
        cluster=collect_cluster(settings.daemon.dra_driver_name, settings.daemon.node_name)
        if settings.daemon.allocation == "dra"
        else None,
        talos=None if simulated else collect_talos(host, settings.flags.plugin.nvidia_ctk_path),
        plugin_uid=os.geteuid() if uid is None else uid,
    )
