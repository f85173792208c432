"""The configuration in force: its sections, and what each key of them may hold.

This is what all that runs uses, and the one place that declares a key: an attribute has its form,
its default as the file would write it, and its meaning. Everything but `daemon` can stand in the
file; `daemon` comes from flags and variables only. What settings mean for devices is in `plans`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from gpuplugin.config.forms import (
    address,
    boolean,
    checked,
    device_terms,
    folder,
    integer,
    listed,
    never,
    not_empty,
    one_of,
    period,
    positive,
    resource_name,
    seconds,
    seconds_or_infinite,
    selection,
    text,
    xids,
)
from gpuplugin.config.shape import Section, key, list_of, optional, section
from gpuplugin.config.values import node_name
from gpuplugin.core.injection import DeviceIdStrategy, DeviceListStrategy
from gpuplugin.core.inventory import MigStrategy
from gpuplugin.core.preference import PolicyName
from gpuplugin.core.sharing import NamePattern, SharedResource, TimeSlicing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from gpuplugin.config.shape import Fault
    from gpuplugin.core.sharing import Selection

_Discovery: TypeAlias = Literal["auto", "nvml", "tegra"]
_Backend: TypeAlias = Literal["nvml", "sim"]
_Registration: TypeAlias = Literal["watcher", "classic", "none"]
_LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
_LogFormat: TypeAlias = Literal["text", "json"]
_RpcEngine: TypeAlias = Literal["fast", "grpcio"]
_Version: TypeAlias = Literal["v1"]

_NO_EFFECT = "read, and of no effect here"


def _no_tegra(value: _Discovery) -> _Discovery:
    if value == "tegra":
        raise ValueError("Tegra is not supported; use 'auto' or 'nvml'")
    return value


def _channels(value: list[int]) -> list[int]:
    if value not in ([], [0]):
        raise ValueError(f"must be [] or [0], found {value!r}")
    return value


class PluginFlags(Section):
    """flags.plugin."""

    pass_device_specs: bool = key(boolean, False)
    device_list_strategy: list[DeviceListStrategy] = key(
        listed(list_of(one_of(get_args(DeviceListStrategy)))), ["envvar"]
    )
    device_id_strategy: DeviceIdStrategy = key(
        one_of(get_args(DeviceIdStrategy)), "uuid", name="deviceIDStrategy"
    )
    cdi_annotation_prefix: str = key(text, "cdi.k8s.io/")
    nvidia_ctk_path: str = key(text, "/usr/bin/nvidia-ctk", name="nvidiaCTKPath")
    container_driver_root: str = key(text, "/driver-root")
    shared_devices_allocation_policy: PolicyName = key(one_of(get_args(PolicyName)), "distributed")


class GfdFlags(Section):
    """flags.gfd: options of GPU feature discovery, which is not part of this plugin."""

    oneshot: bool = key(boolean, False, _NO_EFFECT)
    no_timestamp: bool = key(boolean, False, _NO_EFFECT)
    sleep_interval: float = key(seconds_or_infinite, "60s", _NO_EFFECT)
    output_file: str = key(
        text, "/etc/kubernetes/node-feature-discovery/features.d/gfd", _NO_EFFECT
    )
    machine_type_file: str = key(text, "/sys/class/dmi/id/product_name", _NO_EFFECT)
    use_node_feature_api: bool = key(boolean, True, _NO_EFFECT, name="useNodeFeatureAPI")


class Flags(Section):
    """flags."""

    mig_strategy: MigStrategy = key(one_of(get_args(MigStrategy)), "none")
    fail_on_init_error: bool = key(boolean, False)
    nvidia_driver_root: str = key(text, "/")
    nvidia_dev_root: str = key(text, "")
    gdrcopy_enabled: bool = key(boolean, False)
    gds_enabled: bool = key(boolean, False)
    mofed_enabled: bool = key(boolean, False)
    mps_root: str = key(text, "")
    device_discovery_strategy: _Discovery = key(
        checked(one_of(get_args(_Discovery)), _no_tegra), "auto"
    )
    plugin: PluginFlags = key(section(PluginFlags), {})
    gfd: GfdFlags = key(section(GfdFlags), {})


class Imex(Section):
    """imex."""

    channel_ids: list[int] = key(checked(list_of(integer), _channels), [], name="channelIDs")
    required: bool = key(boolean, False)


class SharedEntry(Section):
    """One entry of sharing.timeSlicing.resources."""

    name: str = key(
        resource_name,
        meaning="the resource to share; `nvidia.com/` is added where it is missing",
    )
    rename: str | None = key(
        optional(resource_name), None, "advertise what is shared under this name"
    )
    devices: Selection = key(
        selection,
        "all",
        "`all`, the first N, or a list of GPU index, MIG index `i:j`, and UUIDs of either",
    )
    replicas: int = key(positive, meaning="replicas per device; 1 is not shared")


class TimeSlicingSettings(Section):
    """sharing.timeSlicing."""

    rename_by_default: bool = key(boolean, False, "advertise what is shared as `<name>.shared`")
    fail_requests_greater_than_one: bool = key(
        boolean, False, "refuse a container that asks for more than one replica"
    )
    resources: list[SharedEntry] = key(not_empty(list_of(section(SharedEntry))))


class Sharing(Section):
    """sharing."""

    time_slicing: TimeSlicingSettings | None = key(optional(section(TimeSlicingSettings)), None)
    mps: None = key(
        never("sharing by MPS is not supported yet; use sharing.timeSlicing"),
        None,
        "not supported yet: an error",
    )

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


class NamedPattern(Section):
    """One entry of resources.gpus or resources.mig."""

    pattern: str = key(not_empty(text), meaning="a product or MIG profile; `*` stands for any text")
    name: str = key(resource_name, meaning="the resource for what matches")


class Resources(Section):
    """resources: names for products and MIG profiles; the first pattern that matches counts.

    Without one that does they are `nvidia.com/gpu` and (strategy mixed) `nvidia.com/mig-<profile>`.
    """

    gpus: list[NamedPattern] = key(list_of(section(NamedPattern)), [])
    mig: list[NamedPattern] = key(list_of(section(NamedPattern)), [])

    def gpu_names(self) -> tuple[NamePattern, ...]:
        """Patterns of products."""
        return tuple(NamePattern(one.pattern, one.name) for one in self.gpus)

    def mig_names(self) -> tuple[NamePattern, ...]:
        """Patterns of MIG profiles."""
        return tuple(NamePattern(one.pattern, one.name) for one in self.mig)


class Health(Section):
    """health: what makes a GPU Unhealthy, how soon it is used again, how often it is looked at.

    Times are in seconds.
    """

    quiet_period: float = key(period, "30s")
    quiet_period_cap: float = key(
        seconds,
        "1800s",
        "the longest that relapses make of the quiet period, each of which doubles it",
    )
    flap_memory: float = key(
        seconds,
        "3600s",
        "healthy for this long, a GPU's earlier faults no longer lengthen its quiet period",
    )
    probe_interval: float = key(period, "5s")
    blind_after: float = key(
        period, "10s", "GPUs that cannot be watched for this long count as Unhealthy"
    )
    ignore_xids: list[int | str] = key(
        xids,
        [],
        "Xids that leave a GPU healthy; `xids`: all of them; `all`: no health check but an answer",
    )
    fatal_xids: list[int | str] = key(
        xids, [], "Xids that make a GPU Unhealthy, whatever ignoreXids says; `all`: every Xid"
    )


class Gpus(Section):
    """gpus: which GPUs take part, by index, UUID, PCI bus id or product pattern."""

    include: list[str] = key(device_terms, [])
    exclude: list[str] = key(device_terms, [])


class DaemonSettings(Section):
    """How the daemon runs; not part of the file. `metrics_interval` is in seconds."""

    backend: _Backend = key(one_of(get_args(_Backend)), "nvml")
    scenario: str = key(text, "default")
    sysfs_root: Path = key(folder, "/sys")
    procfs_root: Path = key(folder, "/proc")
    kubelet_dir: Path = key(folder)
    kubelet_socket: str | None = key(optional(text), None)
    registration: _Registration | None = key(optional(one_of(get_args(_Registration))), None)
    listen_address: str = key(address, "0.0.0.0:2112")
    log_level: _LogLevel = key(one_of(get_args(_LogLevel)), "info")
    log_format: _LogFormat = key(one_of(get_args(_LogFormat)), "text")
    strict_config: bool = key(boolean, False)
    cdi_root: Path = key(folder)
    cdi_feature_flags: list[str] = key(listed(list_of(text)), [])
    cdi_disable_hooks: list[str] = key(listed(list_of(text)), [])
    kubernetes_reports: bool = key(boolean, False)
    node_name: str = key(text, "")
    rpc_engine: _RpcEngine = key(one_of(get_args(_RpcEngine)), "fast")
    metrics_interval: float = key(period, 15.0)
    pod_metrics: bool = key(boolean, True)
    config_map_dir: str = key(text, "")
    default_config: str = key(text, "")
    host_proc: Path = key(folder)
    pod_logs: Path = key(folder)

    @property
    def way_of_registration(self) -> _Registration:
        """As asked for; else what --kubelet-socket says: a path is classic, empty is none."""
        if self.registration is not None:
            return self.registration
        if self.kubelet_socket is None:
            return "watcher"
        return "classic" if self.kubelet_socket else "none"

    @classmethod
    def faults_together(cls, values: Mapping[str, object]) -> Iterator[Fault]:
        """What needs the node's name; nobody else asks for it, so a wrong one does no harm."""
        name = values.get("node_name")
        if not isinstance(name, str):
            return
        if values.get("kubernetes_reports"):
            try:
                node_name(name)
            except ValueError as error:
                yield ("nodeName",), str(error)
        elif values.get("config_map_dir") and not name:
            text = (
                "--config-map-dir needs the node's name: set NODE_NAME (fieldRef: {fieldPath: "
                "spec.nodeName}) or --node-name"
            )
            yield (), text


class Settings(Section):
    """The whole configuration, after all layers."""

    version: _Version = key(one_of(get_args(_Version)), "v1", "the version of the file's format")
    flags: Flags = key(section(Flags), {})
    resources: Resources = key(section(Resources), {})
    sharing: Sharing = key(section(Sharing), {})
    imex: Imex = key(section(Imex), {})
    health: Health = key(section(Health), {})
    gpus: Gpus = key(section(Gpus), {})
    daemon: DaemonSettings = key(section(DaemonSettings), {})


SETTINGS = section(Settings)
"""The form of the whole configuration."""
