"""The configuration: one model for each section, and the one place that declares a key.

A field has its type, default and meaning, and the flags and variables that set it: parsers, errors,
documents and schemas are made from that. Everything but `daemon` can stand in the file; `daemon`
comes from flags and variables only. Commands import this module, the daemon does not: it has the
same attributes as plain data (`loaded.Record`). What settings mean for devices is in `plans`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias, TypeVar, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    computed_field,
    field_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_settings import BaseSettings, SettingsConfigDict

from gpuplugin.config.forms import (
    Address,
    Channels,
    Count,
    Devices,
    DeviceTerms,
    Folder,
    OneOrMore,
    Period,
    PeriodOrNever,
    ResourceName,
    Seconds,
    SecondsOrInfinite,
    Xids,
)
from gpuplugin.config.values import (
    DEFAULT_CDI_ROOT,
    DEFAULT_DRIVER_NAME,
    driver_name,
    node_name,
)
from gpuplugin.core.injection import DeviceIdStrategy, DeviceListStrategy
from gpuplugin.core.inventory import MigStrategy
from gpuplugin.core.preference import PolicyName
from gpuplugin.core.sharing import Selection

if TYPE_CHECKING:
    from pydantic.config import JsonDict

T = TypeVar("T")
S = TypeVar("S", bound="Section")

SET_BY = "setBy"
"""Where a key's schema has the names of its flags and variables."""


def option(default: T, names: str, meaning: str, *, alias: str | None = None) -> T:
    """A key that flags (`--x`) and variables (`X`) set, too: `names` has the main ones first.

    Without a variable among them it is the main flag's: `X` in NVIDIA's sections, `GPUPLUGIN_X` in
    the others.
    The key's name in the file is the attribute's in camelCase if `alias` does not say otherwise.
    """
    names_too: JsonDict = {SET_BY: names}
    field: T = Field(default, alias=alias, description=meaning, json_schema_extra=names_too)
    return field


def key(default: T, meaning: str, *, alias: str | None = None) -> T:
    """A key that stands in the file alone."""
    field: T = Field(default, alias=alias, description=meaning)
    return field


def section(model: type[S]) -> S:
    """A key that holds a section, whose own defaults apply where it is absent."""
    return cast("S", Field(default_factory=model.model_construct))


def _no_tegra(value: object) -> object:
    if value == "tegra":
        raise ValueError("Tegra is not supported; use 'auto' or 'nvml'")
    return value


def _no_version(value: object) -> object:
    return "v1" if value == "" else value


def _chosen(value: object) -> object:
    """A strategy that is named is one that is chosen, whatever it holds."""
    return {} if value is None else value


def _no_mps(value: object) -> None:
    if value is not None:
        raise ValueError("sharing by MPS is not supported yet; use sharing.timeSlicing")


_Discovery: TypeAlias = Annotated[Literal["auto", "nvml"], BeforeValidator(_no_tegra)]
_Registration: TypeAlias = Literal["watcher", "classic", "none"]
_Allocation: TypeAlias = Literal["device-plugin", "dra"]
_Version: TypeAlias = Annotated[Literal["v1"], BeforeValidator(_no_version)]
_NodeLabels: TypeAlias = Literal["off", "file", "node", "node-feature"]
_NO_EFFECT = "read, and of no effect here"


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, alias_generator=to_camel, defer_build=True)


# fmt: off
# A table: two or three lines for each key.


class PluginFlags(Section):
    pass_device_specs: bool = option(False, "--pass-device-specs",
        "pass device nodes to the container, as the CPU manager needs it")
    device_list_strategy: OneOrMore[DeviceListStrategy] = option(["envvar"],
        "--device-list-strategy",
        "how devices reach the container: envvar, volume-mounts, cdi-annotations, cdi-cri")
    device_id_strategy: DeviceIdStrategy = option("uuid", "--device-id-strategy",
        "how devices are named to the runtime", alias="deviceIDStrategy")
    cdi_annotation_prefix: str = option("cdi.k8s.io/", "--cdi-annotation-prefix",
        "prefix of CDI annotations")
    nvidia_ctk_path: str = option("/usr/bin/nvidia-ctk",
        "--nvidia-cdi-hook-path --nvidia-ctk-path NVIDIA_CDI_HOOK_PATH NVIDIA_CTK_PATH",
        "the CDI hook program on the host", alias="nvidiaCTKPath")
    container_driver_root: str = option("/driver-root",
        "--driver-root-ctr-path --container-driver-root DRIVER_ROOT_CTR_PATH CONTAINER_DRIVER_ROOT",
        "where the driver's root is mounted in the plugin's container")
    shared_devices_allocation_policy: PolicyName = option("distributed",
        "--shared-devices-allocation-policy",
        "which replicas to prefer")


class GfdFlags(Section):
    """flags.gfd: options of GPU feature discovery, for --node-labels."""

    oneshot: bool = key(False, _NO_EFFECT)
    no_timestamp: bool = key(False, "leave out the label nvidia.com/gfd.timestamp")
    sleep_interval: SecondsOrInfinite = key(60.0, f"{_NO_EFFECT}: changes are followed")
    output_file: str = key("/etc/kubernetes/node-feature-discovery/features.d/gfd",
        "the file of --node-labels file; a change needs a restart")
    machine_type_file: str = key("/sys/class/dmi/id/product_name",
        "what the label nvidia.com/gpu.machine is read from; empty: it is unknown")
    use_node_feature_api: bool = key(True, f"{_NO_EFFECT}: --node-labels decides",
        alias="useNodeFeatureAPI")


class Flags(Section):
    mig_strategy: MigStrategy = option("none", "--mig-strategy",
        "MIG devices: none (GPUs only), single (as nvidia.com/gpu) or mixed (by profile)")
    fail_on_init_error: bool = option(False, "--fail-on-init-error",
        "exit if the driver cannot be opened at start, instead of retrying")
    nvidia_driver_root: str = option("/", "--driver-root --nvidia-driver-root NVIDIA_DRIVER_ROOT",
        "where the driver is installed on the host")
    nvidia_dev_root: str = option("", "--dev-root --nvidia-dev-root NVIDIA_DEV_ROOT",
        "where /dev is on the host; empty for the driver root")
    gdrcopy_enabled: bool = option(False, "--gdrcopy-enabled",
        "give containers the GDRCopy device")
    gds_enabled: bool = option(False, "--gds-enabled",
        "give containers GPUDirect Storage devices")
    mofed_enabled: bool = option(False, "--mofed-enabled", "give containers InfiniBand devices")
    mps_root: str = option("", "--mps-root", "read, and of no effect: MPS is not supported yet")
    device_discovery_strategy: _Discovery = option("auto", "--device-discovery-strategy",
        "auto or nvml; Tegra is not supported")
    plugin: PluginFlags = section(PluginFlags)
    gfd: GfdFlags = section(GfdFlags)


class Imex(Section):
    channel_ids: Channels = option([], "--imex-channel-ids",
        "IMEX channels for every container: none or 0", alias="channelIDs")
    required: bool = option(False, "--imex-required",
        "serve nothing if an IMEX channel has no device node")


class SharedEntry(Section):
    name: ResourceName = Field(
        description="the resource to share; `nvidia.com/` is added where it is missing")
    rename: ResourceName | None = key(None, "advertise what is shared under this name")
    devices: Devices = key(Selection(),
        "`all`, the first N, or a list of GPU index, MIG index `i:j`, and UUIDs of either")
    replicas: Count = Field(description="replicas per device; 1 is not shared")


class TimeSlicingSettings(Section):
    rename_by_default: bool = key(False, "advertise what is shared as `<name>.shared`")
    fail_requests_greater_than_one: bool = key(False,
        "refuse a container that asks for more than one replica")
    interval: Literal["Default", "Short", "Medium", "Long"] | None = key(None,
        "the length of time slices on GPUs that are shared; without it nothing is set")
    resources: Annotated[list[SharedEntry], Field(min_length=1)]


class Sharing(Section):
    time_slicing: Annotated[TimeSlicingSettings | None, BeforeValidator(_chosen)] = None
    mps: Annotated[None, BeforeValidator(_no_mps)] = key(None, "not supported yet: an error")


class NamedPattern(Section):
    pattern: Annotated[str, Field(min_length=1)] = Field(
        description="a product or MIG profile; `*` stands for any text")
    name: ResourceName = Field(description="the resource for what matches")


class Resources(Section):
    """resources: names for products and MIG profiles; the first pattern that matches counts.

    Without one that does they are `nvidia.com/gpu` and (strategy mixed) `nvidia.com/mig-<profile>`.
    """

    gpus: list[NamedPattern] = []
    mig: list[NamedPattern] = []


class Health(Section):
    """health: what makes a GPU Unhealthy, how soon it is used again, how often it is probed.

    Times are in seconds.
    """

    quiet_period: Period = option(30.0, "--health-quiet-period",
        "how long a GPU must stay without a fault before it is used again, for example 30s")
    quiet_period_cap: Seconds = key(1800.0,
        "the longest that relapses make of the quiet period, each of which doubles it")
    flap_memory: Seconds = key(3600.0,
        "healthy for this long, a GPU's earlier faults no longer lengthen its quiet period")
    probe_interval: PeriodOrNever = option(5.0, "--health-probe-interval",
        "how often GPUs are listed and probed, for example 5s; 0: only while one is not Healthy")
    blind_after: Period = option(10.0, "--health-blind-after",
        "GPUs that cannot be watched for this long count as Unhealthy, for example 10s")
    evict_lost: bool = option(False, "--health-evict-lost",
        "with --allocation dra, delete pods that use a GPU which is lost: taint effect NoExecute")
    fabric_check: bool = option(True, "--health-fabric-check",
        "a GPU whose NVLink fabric is not completed is Unhealthy; false in shared NVSwitch mode")
    confidential_check: bool = option(True, "--health-confidential-check",
        "with confidential computing, GPUs that accept no work yet are Unhealthy")
    ignore_xids: Xids = option([], "--health-ignore-xids DP_DISABLE_HEALTHCHECKS",
        "Xids that leave a GPU healthy; xids: all of them; all: no health check but an answer")
    fatal_xids: Xids = option([], "--health-fatal-xids DP_ENABLE_HEALTHCHECKS",
        "Xids that make a GPU Unhealthy, whatever else is ignored; all: every Xid")


class Gpus(Section):
    """gpus: which GPUs take part, by index, UUID, PCI bus id or product pattern."""

    include: DeviceTerms = option([], "--include-gpus",
        "only these GPUs: index, UUID, PCI bus id or product pattern")
    exclude: DeviceTerms = option([], "--exclude-gpus",
        "all but these GPUs: index, UUID, PCI bus id or product pattern")


class DaemonSettings(Section):
    """How the daemon runs; not part of the file. `metrics_interval` is in seconds."""

    backend: Literal["nvml", "sim"] = option("nvml", "--backend",
        "nvml for real GPUs, sim for a simulated node")
    scenario: str = option("default", "--scenario",
        "of the simulated node: a file, a shipped one's name, or a folder for nodes' labels")
    pod_files: str = option("", "--pod-files",
        "folder of the host that a simulated node fills for its pods with library, nvidia-smi and "
        "sockets; without it they get a variable and nothing else")
    sysfs_root: Folder = option(Path("/sys"), "--sysfs-root",
        "where sysfs is, for what NVML does not report")
    procfs_root: Folder = option(Path("/proc"), "--procfs-root",
        "where procfs is, for what NVML does not report")
    kubelet_dir: Folder = option(Path("/var/lib/kubelet"), "--kubelet-dir",
        "folder that holds device-plugins/, plugins_registry/ and pod-resources/")
    kubelet_socket: str | None = option(None, "--kubelet-socket KUBELET_SOCKET",
        "socket for classic registration; empty: serve and never register")
    registration: _Registration | None = option(None, "--registration",
        "watcher: the kubelet finds the plugin's socket; classic: Register on kubelet.sock")
    listen_address: Address = option("0.0.0.0:2112", "--listen-address",
        "HOST:PORT of /metrics, /health and /ready; port 0 takes a free one")
    log_level: Literal["debug", "info", "warning", "error"] = option("info", "--log-level",
        "how much to log")
    log_format: Literal["text", "json"] = option("text", "--log-format",
        "text for people, json for machines")
    strict_config: bool = option(False, "--strict-config",
        "an unknown key in the file is an error")
    cdi_root: Folder = option(Path(DEFAULT_CDI_ROOT), "--cdi-root", "folder for CDI specs")
    cdi_feature_flags: OneOrMore[str] = option([], "--cdi-feature-flags CDI_FEATURE_FLAGS",
        "read, and of no effect: flags of NVIDIA's own CDI generator")
    cdi_disable_hooks: OneOrMore[str] = option([], "--cdi-disable-hooks CDI_DISABLE_HOOKS",
        "CDI hooks to leave out of specs, or all")
    allocation: _Allocation = option("device-plugin", "--allocation",
        "how GPUs are given to pods: by the device-plugin API, or by Dynamic Resource Allocation")
    dra_driver_name: Annotated[str, AfterValidator(driver_name)] = option(DEFAULT_DRIVER_NAME,
        "--dra-driver-name",
        "with --allocation dra, the driver's name in ResourceSlices, DeviceClasses and claims")
    kubernetes_reports: bool = option(False, "--kubernetes-reports",
        "report GPUs' health to the API server: Events and the node condition GPUHealthy")
    node_labels: _NodeLabels = option("off", "--node-labels",
        "write the labels of NVIDIA's GPU feature discovery: into a file for NFD, on the node "
        "itself, or into a NodeFeature for NFD")
    node_name: Annotated[str, Field(validate_default=True)] = option("", "--node-name NODE_NAME",
        "this node's name in Kubernetes; needed for --kubernetes-reports, --allocation dra and "
        "--node-labels node or node-feature, and that of a simulated node, which decides who its "
        "GPUs are")
    config_map_dir: str = option("", "--config-map-dir",
        "folder of configurations; the node's label nvidia.com/device-plugin.config chooses")
    default_config: str = option("", "--default-config DEFAULT_CONFIG",
        "the configuration in --config-map-dir for nodes without that label")
    rpc_engine: Literal["fast", "grpcio"] = option("fast", "--rpc-engine",
        "what carries the kubelet's calls: this project's own engine, or the grpcio library")
    metrics_interval: PeriodOrNever = option(15.0, "--metrics-interval",
        "how old what /metrics shows of GPUs and their users may be, for example 5s; 0: nothing")
    pod_metrics: bool = option(True, "--pod-metrics",
        "read from the kubelet which pod holds which replica, and find the pods of processes")
    dcgm_metrics: bool = option(False, "--dcgm-metrics",
        "show what GPUs and pods use under the names of dcgm-exporter, too")
    host_proc: Folder = option(Path("/proc"), "--host-proc",
        "where the host's /proc is, for the pods of processes")
    pod_logs: Folder = option(Path("/var/log/pods"), "--pod-logs",
        "where the host's /var/log/pods is, for the names of pods")

    # fmt: on

    @computed_field  # type: ignore[prop-decorator]  # mypy knows no decorated property
    @property
    def way_of_registration(self) -> _Registration:
        """--registration; without it, a path as --kubelet-socket is classic, an empty one none."""
        if self.registration is not None:
            return self.registration
        if self.kubelet_socket is None:
            return "watcher"
        return "classic" if self.kubelet_socket else "none"

    @field_validator("node_name")
    @classmethod
    def _needed_for_the_api(cls, value: str, info: ValidationInfo) -> str:
        """Nothing else asks the API server, so a wrong one does no harm without these."""
        wanted_by = [
            option
            for option, wanted in (
                ("--kubernetes-reports", info.data.get("kubernetes_reports")),
                ("--allocation dra", info.data.get("allocation") == "dra"),
                *(
                    (f"--node-labels {way}", info.data.get("node_labels") == way)
                    for way in ("node", "node-feature")
                ),
            )
            if wanted
        ]
        if not wanted_by:
            return value
        if not value:
            raise ValueError(
                f"is required by {wanted_by[0]}: set NODE_NAME in the container's env with "
                "valueFrom: {fieldRef: {fieldPath: spec.nodeName}}, or give --node-name"
            )
        return node_name(value)

    @field_validator("config_map_dir")
    @classmethod
    def _needs_the_node(cls, value: str, info: ValidationInfo) -> str:
        if value and info.data.get("node_name") == "":
            raise ValueError(
                "--config-map-dir needs the node's name: set NODE_NAME (fieldRef: {fieldPath: "
                "spec.nodeName}) or --node-name"
            )
        return value


class Settings(BaseSettings):
    """The whole configuration, after all layers."""

    model_config = SettingsConfigDict(
        frozen=True, strict=True, alias_generator=to_camel, defer_build=True, extra="ignore"
    )

    version: _Version = key("v1", "the version of the file's format")
    flags: Flags = section(Flags)
    resources: Resources = section(Resources)
    sharing: Sharing = section(Sharing)
    imex: Imex = section(Imex)
    health: Health = section(Health)
    gpus: Gpus = section(Gpus)
    daemon: DaemonSettings = section(DaemonSettings)
