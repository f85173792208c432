"""What may be configured, with types and defaults. Names in the file are the aliases.

Everything but `daemon` can stand in the file; `daemon` comes from flags and variables only. What
is used once it is checked are the plain values in `settings`; what they mean for devices is in
`plans`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ValidationInfo, field_validator, model_validator

from gpuplugin.config.flags import Flags, ImexSection
from gpuplugin.config.section import (
    DeviceTerms,
    Folder,
    ListenAddress,
    Period,
    Seconds,
    Section,
    Strings,
    XidTerms,
)
from gpuplugin.config.sharing import ResourcesSection, SharingSection
from gpuplugin.config.values import node_name


class HealthSection(Section):
    """health: what makes a GPU Unhealthy, how soon it is used again, how often it is looked at."""

    quiet_period: Period = 30.0
    quiet_period_cap: Seconds = 1800.0
    """the longest that relapses make of the quiet period, each of which doubles it"""
    flap_memory: Seconds = 3600.0
    """healthy for this long, a GPU's earlier faults no longer lengthen its quiet period"""
    probe_interval: Period = 5.0
    blind_after: Period = 10.0
    """GPUs that cannot be watched for this long count as Unhealthy"""
    ignore_xids: XidTerms = []
    """Xids that leave a GPU healthy; `xids`: all of them; `all`: no health check but an answer"""
    fatal_xids: XidTerms = []
    """Xids that make a GPU Unhealthy, whatever ignoreXids says; `all`: every Xid"""


class GpusSection(Section):
    """gpus: which GPUs take part, by index, UUID, PCI bus id or product pattern."""

    include: DeviceTerms = []
    exclude: DeviceTerms = []


class DaemonSection(Section):
    """How the daemon runs; not part of the file."""

    backend: Literal["nvml", "sim"] = "nvml"
    scenario: str = "default"
    sysfs_root: Folder = Path("/sys")
    procfs_root: Folder = Path("/proc")
    kubelet_dir: Folder
    kubelet_socket: str | None = None
    registration: Literal["watcher", "classic", "none"] | None = None
    listen_address: ListenAddress = "0.0.0.0:2112"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    strict_config: bool = False
    cdi_root: Folder
    cdi_feature_flags: Strings = []
    cdi_disable_hooks: Strings = []
    kubernetes_reports: bool = False
    node_name: str = ""
    rpc_engine: Literal["fast", "grpcio"] = "grpcio"
    metrics_interval: Period = 15.0
    pod_metrics: bool = True
    config_map_dir: str = ""
    default_config: str = ""
    host_proc: Folder
    pod_logs: Folder

    @field_validator("node_name")
    @classmethod
    def _named_for_reports(cls, name: str, info: ValidationInfo) -> str:
        """Without reports nobody asks for the name, so nobody is told that it is wrong."""
        return node_name(name) if info.data.get("kubernetes_reports") else name

    @model_validator(mode="after")
    def _named_for_its_label(self) -> DaemonSection:
        if self.config_map_dir and not self.node_name:
            raise ValueError(
                "--config-map-dir needs the node's name: set NODE_NAME (fieldRef: {fieldPath: "
                "spec.nodeName}) or --node-name"
            )
        return self


class Schema(Section):
    """The whole configuration, after all layers."""

    version: Literal["v1"] = "v1"
    """the version of the file's format"""
    flags: Flags = Flags()
    resources: ResourcesSection = ResourcesSection()
    sharing: SharingSection = SharingSection()
    imex: ImexSection = ImexSection()
    health: HealthSection = HealthSection()
    gpus: GpusSection = GpusSection()
    daemon: DaemonSection
