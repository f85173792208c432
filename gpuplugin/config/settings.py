"""The configuration in force, as all that runs uses it: plain values, checked elsewhere.

What may be written, and what is wrong with it, is in `schema` and `load`. The names are the same,
and a test holds both together; but these load in a moment, and a process can hand them to another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gpuplugin.core.selection import NamePattern
from gpuplugin.core.sharing import SharedResource, TimeSlicing

if TYPE_CHECKING:
    from pathlib import Path

    from gpuplugin.core.sharing import Selection
    from gpuplugin.core.words import IdStrategy, MigStrategy, PolicyName, Strategy


@dataclass(frozen=True)
class PluginFlags:
    """flags.plugin."""

    pass_device_specs: bool
    device_list_strategy: list[Strategy]
    device_id_strategy: IdStrategy
    cdi_annotation_prefix: str
    nvidia_ctk_path: str
    container_driver_root: str
    shared_devices_allocation_policy: PolicyName


@dataclass(frozen=True)
class GfdFlags:
    """flags.gfd, which is of no effect here."""

    oneshot: bool
    no_timestamp: bool
    sleep_interval: float
    output_file: str
    machine_type_file: str
    use_node_feature_api: bool


@dataclass(frozen=True)
class Flags:
    """flags."""

    mig_strategy: MigStrategy
    fail_on_init_error: bool
    nvidia_driver_root: str
    nvidia_dev_root: str
    gdrcopy_enabled: bool
    gds_enabled: bool
    mofed_enabled: bool
    mps_root: str
    device_discovery_strategy: Literal["auto", "nvml", "tegra"]
    plugin: PluginFlags
    gfd: GfdFlags


@dataclass(frozen=True)
class Imex:
    """imex."""

    channel_ids: list[int]
    required: bool


@dataclass(frozen=True)
class SharedEntry:
    """One entry of sharing.timeSlicing.resources."""

    name: str
    rename: str | None
    devices: Selection
    replicas: int


@dataclass(frozen=True)
class TimeSlicingSettings:
    """sharing.timeSlicing."""

    rename_by_default: bool
    fail_requests_greater_than_one: bool
    resources: list[SharedEntry]


@dataclass(frozen=True)
class Sharing:
    """sharing."""

    time_slicing: TimeSlicingSettings | None

    def plan(self) -> TimeSlicing:
        """The sharing plan, as the inventory needs it."""
        settings = self.time_slicing
        if settings is None:
            return TimeSlicing()
        return TimeSlicing(
            resources=tuple(
                SharedResource(one.name, one.replicas, one.devices, one.rename)
                for one in settings.resources
            ),
            rename_by_default=settings.rename_by_default,
            fail_requests_greater_than_one=settings.fail_requests_greater_than_one,
        )


@dataclass(frozen=True)
class NamedPattern:
    """One entry of resources.gpus or resources.mig."""

    pattern: str
    name: str


@dataclass(frozen=True)
class Resources:
    """resources."""

    gpus: list[NamedPattern]
    mig: list[NamedPattern]

    def gpu_names(self) -> tuple[NamePattern, ...]:
        """Patterns of products."""
        return tuple(NamePattern(one.pattern, one.name) for one in self.gpus)

    def mig_names(self) -> tuple[NamePattern, ...]:
        """Patterns of MIG profiles."""
        return tuple(NamePattern(one.pattern, one.name) for one in self.mig)


@dataclass(frozen=True)
class Health:
    """health; times in seconds."""

    quiet_period: float
    quiet_period_cap: float
    flap_memory: float
    probe_interval: float
    blind_after: float
    ignore_xids: list[int | str]
    fatal_xids: list[int | str]


@dataclass(frozen=True)
class Gpus:
    """gpus."""

    include: list[str]
    exclude: list[str]


@dataclass(frozen=True)
class DaemonSettings:
    """How the daemon runs; not part of the file. `metrics_interval` is in seconds."""

    backend: Literal["nvml", "sim"]
    scenario: str
    sysfs_root: Path
    procfs_root: Path
    kubelet_dir: Path
    kubelet_socket: str | None
    registration: Literal["watcher", "classic", "none"] | None
    listen_address: str
    log_level: Literal["debug", "info", "warning", "error"]
    log_format: Literal["text", "json"]
    strict_config: bool
    cdi_root: Path
    cdi_feature_flags: list[str]
    cdi_disable_hooks: list[str]
    kubernetes_reports: bool
    node_name: str
    rpc_engine: Literal["fast", "grpcio"]
    metrics_interval: float
    pod_metrics: bool
    config_map_dir: str
    default_config: str
    host_proc: Path
    pod_logs: Path

    @property
    def way_of_registration(self) -> Literal["watcher", "classic", "none"]:
        """As asked for; else what --kubelet-socket says: a path is classic, empty is none."""
        if self.registration is not None:
            return self.registration
        if self.kubelet_socket is None:
            return "watcher"
        return "classic" if self.kubelet_socket else "none"


@dataclass(frozen=True)
class Settings:
    """The whole configuration, after all layers."""

    version: Literal["v1"]
    flags: Flags
    resources: Resources
    sharing: Sharing
    imex: Imex
    health: Health
    gpus: Gpus
    daemon: DaemonSettings
