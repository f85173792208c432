"""Every option that is a flag or an environment variable: one table, for parsers and documents.

Flags and variables of NVIDIA's plugin keep their names; this project's own variables start with
GPUPLUGIN_. `path` is where the value goes in `schema.Settings`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from gpuplugin.config.values import parse_bool, parse_xids

Value: TypeAlias = str | bool | list[str] | list[int] | list[int | str]


class Kind(Enum):
    """How the text of a flag or variable is read."""

    STRING = "string"
    BOOL = "bool"
    LIST = "list"
    DURATION = "duration"
    INTEGERS = "integers"
    XIDS = "xids"


@dataclass(frozen=True, slots=True)
class Option:
    """One option; the first of `flags` and `variables` is the one that documents name."""

    flags: tuple[str, ...]
    variables: tuple[str, ...]
    path: tuple[str, ...]
    kind: Kind
    help: str
    choices: tuple[str, ...] = ()

    def read(self, text: str) -> Value:
        """The value of a flag's or variable's text.

        Raises:
            ValueError: the text is not of the option's kind.
        """
        if self.kind is Kind.BOOL:
            return parse_bool(text)
        if self.kind is Kind.LIST:
            return _items(text)
        if self.kind is Kind.INTEGERS:
            return _integers(text)
        return text

    def read_variable(self, text: str) -> Value | None:
        """As `read`; a variable that is set but empty is "", false, or (None) as if not set.

        Xids that are none are left out, as NVIDIA's plugin does; `malformed` names them.
        """
        if self.kind is Kind.XIDS:
            return parse_xids(text)[0] or None
        if text:
            return self.read(text)
        if self.kind is Kind.BOOL:
            return False
        return "" if self.kind is Kind.STRING else None

    def malformed(self, text: str) -> list[str]:
        """What `read_variable` leaves out of a variable's text."""
        return parse_xids(text)[1] if self.kind is Kind.XIDS else []


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _integers(text: str) -> list[int]:
    items = _items(text)
    if not all(item.isascii() and item.isdecimal() for item in items):
        # IMEX channels are the only numbers, and channel 0 is the only one that is supported.
        raise ValueError(f"must be 0 or empty, found {text!r}")
    return [int(item) for item in items]


OPTIONS: tuple[Option, ...] = (
    Option(
        ("--mig-strategy",),
        ("MIG_STRATEGY",),
        ("flags", "migStrategy"),
        Kind.STRING,
        "MIG devices: none (GPUs only), single (as nvidia.com/gpu) or mixed (by profile)",
        ("none", "single", "mixed"),
    ),
    Option(
        ("--fail-on-init-error",),
        ("FAIL_ON_INIT_ERROR",),
        ("flags", "failOnInitError"),
        Kind.BOOL,
        "exit if the driver cannot be opened at start, instead of retrying",
    ),
    Option(
        ("--driver-root", "--nvidia-driver-root"),
        ("NVIDIA_DRIVER_ROOT",),
        ("flags", "nvidiaDriverRoot"),
        Kind.STRING,
        "where the driver is installed on the host",
    ),
    Option(
        ("--dev-root", "--nvidia-dev-root"),
        ("NVIDIA_DEV_ROOT",),
        ("flags", "nvidiaDevRoot"),
        Kind.STRING,
        "where /dev is on the host; empty for the driver root",
    ),
    Option(
        ("--pass-device-specs",),
        ("PASS_DEVICE_SPECS",),
        ("flags", "plugin", "passDeviceSpecs"),
        Kind.BOOL,
        "pass device nodes to the container, as the CPU manager needs it",
    ),
    Option(
        ("--device-list-strategy",),
        ("DEVICE_LIST_STRATEGY",),
        ("flags", "plugin", "deviceListStrategy"),
        Kind.LIST,
        "how devices reach the container: envvar, volume-mounts, cdi-annotations, cdi-cri",
    ),
    Option(
        ("--device-id-strategy",),
        ("DEVICE_ID_STRATEGY",),
        ("flags", "plugin", "deviceIDStrategy"),
        Kind.STRING,
        "how devices are named to the runtime",
        ("uuid", "index"),
    ),
    Option(
        ("--gdrcopy-enabled",),
        ("GDRCOPY_ENABLED",),
        ("flags", "gdrcopyEnabled"),
        Kind.BOOL,
        "give containers the GDRCopy device",
    ),
    Option(
        ("--gds-enabled",),
        ("GDS_ENABLED",),
        ("flags", "gdsEnabled"),
        Kind.BOOL,
        "give containers GPUDirect Storage devices",
    ),
    Option(
        ("--mofed-enabled",),
        ("MOFED_ENABLED",),
        ("flags", "mofedEnabled"),
        Kind.BOOL,
        "give containers InfiniBand devices",
    ),
    Option(
        ("--cdi-annotation-prefix",),
        ("CDI_ANNOTATION_PREFIX",),
        ("flags", "plugin", "cdiAnnotationPrefix"),
        Kind.STRING,
        "prefix of CDI annotations",
    ),
    Option(
        ("--nvidia-cdi-hook-path", "--nvidia-ctk-path"),
        ("NVIDIA_CDI_HOOK_PATH", "NVIDIA_CTK_PATH"),
        ("flags", "plugin", "nvidiaCTKPath"),
        Kind.STRING,
        "the CDI hook program on the host",
    ),
    Option(
        ("--driver-root-ctr-path", "--container-driver-root"),
        ("DRIVER_ROOT_CTR_PATH", "CONTAINER_DRIVER_ROOT"),
        ("flags", "plugin", "containerDriverRoot"),
        Kind.STRING,
        "where the driver's root is mounted in the plugin's container",
    ),
    Option(
        ("--mps-root",),
        ("MPS_ROOT",),
        ("flags", "mpsRoot"),
        Kind.STRING,
        "read, and of no effect: MPS is not supported yet",
    ),
    Option(
        ("--shared-devices-allocation-policy",),
        ("SHARED_DEVICES_ALLOCATION_POLICY",),
        ("flags", "plugin", "sharedDevicesAllocationPolicy"),
        Kind.STRING,
        "which replicas to prefer",
        ("distributed", "packed", "spread", "spread-strict"),
    ),
    Option(
        ("--device-discovery-strategy",),
        ("DEVICE_DISCOVERY_STRATEGY",),
        ("flags", "deviceDiscoveryStrategy"),
        Kind.STRING,
        "auto or nvml; Tegra is not supported",
        ("auto", "nvml"),
    ),
    Option(
        ("--imex-channel-ids",),
        ("IMEX_CHANNEL_IDS",),
        ("imex", "channelIDs"),
        Kind.INTEGERS,
        "IMEX channels for every container: none or 0",
    ),
    Option(
        ("--imex-required",),
        ("IMEX_REQUIRED",),
        ("imex", "required"),
        Kind.BOOL,
        "serve nothing if an IMEX channel has no device node",
    ),
    Option(
        ("--include-gpus",),
        ("GPUPLUGIN_INCLUDE_GPUS",),
        ("gpus", "include"),
        Kind.LIST,
        "only these GPUs: index, UUID, PCI bus id or product pattern",
    ),
    Option(
        ("--exclude-gpus",),
        ("GPUPLUGIN_EXCLUDE_GPUS",),
        ("gpus", "exclude"),
        Kind.LIST,
        "all but these GPUs: index, UUID, PCI bus id or product pattern",
    ),
    Option(
        ("--health-quiet-period",),
        ("GPUPLUGIN_HEALTH_QUIET_PERIOD",),
        ("health", "quietPeriod"),
        Kind.DURATION,
        "how long a GPU must stay without a fault before it is used again, for example 30s",
    ),
    Option(
        ("--health-probe-interval",),
        ("GPUPLUGIN_HEALTH_PROBE_INTERVAL",),
        ("health", "probeInterval"),
        Kind.DURATION,
        "how often GPUs are listed and probed, for example 5s",
    ),
    Option(
        ("--health-blind-after",),
        ("GPUPLUGIN_HEALTH_BLIND_AFTER",),
        ("health", "blindAfter"),
        Kind.DURATION,
        "GPUs that cannot be watched for this long count as Unhealthy, for example 10s",
    ),
    Option(
        ("--health-ignore-xids",),
        ("DP_DISABLE_HEALTHCHECKS",),
        ("health", "ignoreXids"),
        Kind.XIDS,
        "Xids that leave a GPU healthy; xids: all of them; all: no health check but an answer",
    ),
    Option(
        ("--health-fatal-xids",),
        ("DP_ENABLE_HEALTHCHECKS",),
        ("health", "fatalXids"),
        Kind.XIDS,
        "Xids that make a GPU Unhealthy, whatever else is ignored; all: every Xid",
    ),
    Option(
        ("--backend",),
        ("GPUPLUGIN_BACKEND",),
        ("daemon", "backend"),
        Kind.STRING,
        "nvml for real GPUs, sim for a simulated node",
        ("nvml", "sim"),
    ),
    Option(
        ("--scenario",),
        ("GPUPLUGIN_SCENARIO",),
        ("daemon", "scenario"),
        Kind.STRING,
        "scenario of the simulated node: a file, or the name of a shipped one",
    ),
    Option(
        ("--sysfs-root",),
        ("GPUPLUGIN_SYSFS_ROOT",),
        ("daemon", "sysfsRoot"),
        Kind.STRING,
        "where sysfs is, for what NVML does not tell",
    ),
    Option(
        ("--procfs-root",),
        ("GPUPLUGIN_PROCFS_ROOT",),
        ("daemon", "procfsRoot"),
        Kind.STRING,
        "where procfs is, for what NVML does not tell",
    ),
    Option(
        ("--kubelet-dir",),
        ("GPUPLUGIN_KUBELET_DIR",),
        ("daemon", "kubeletDir"),
        Kind.STRING,
        "folder that holds device-plugins/, plugins_registry/ and pod-resources/",
    ),
    Option(
        ("--kubelet-socket",),
        ("KUBELET_SOCKET",),
        ("daemon", "kubeletSocket"),
        Kind.STRING,
        "socket for classic registration; empty: serve and never register",
    ),
    Option(
        ("--registration",),
        ("GPUPLUGIN_REGISTRATION",),
        ("daemon", "registration"),
        Kind.STRING,
        "watcher: the kubelet finds the plugin's socket; classic: Register on kubelet.sock",
        ("watcher", "classic", "none"),
    ),
    Option(
        ("--listen-address",),
        ("GPUPLUGIN_LISTEN_ADDRESS",),
        ("daemon", "listenAddress"),
        Kind.STRING,
        "HOST:PORT of /metrics, /health and /ready; port 0 takes a free one",
    ),
    Option(
        ("--log-level",),
        ("GPUPLUGIN_LOG_LEVEL",),
        ("daemon", "logLevel"),
        Kind.STRING,
        "how much to log",
        ("debug", "info", "warning", "error"),
    ),
    Option(
        ("--log-format",),
        ("GPUPLUGIN_LOG_FORMAT",),
        ("daemon", "logFormat"),
        Kind.STRING,
        "text for people, json for machines",
        ("text", "json"),
    ),
    Option(
        ("--strict-config",),
        ("GPUPLUGIN_STRICT_CONFIG",),
        ("daemon", "strictConfig"),
        Kind.BOOL,
        "an unknown key in the file is an error",
    ),
    Option(
        ("--cdi-root",),
        ("GPUPLUGIN_CDI_ROOT",),
        ("daemon", "cdiRoot"),
        Kind.STRING,
        "folder for CDI specs",
    ),
    Option(
        ("--cdi-feature-flags",),
        ("CDI_FEATURE_FLAGS",),
        ("daemon", "cdiFeatureFlags"),
        Kind.LIST,
        "read, and of no effect: flags of NVIDIA's own CDI generator",
    ),
    Option(
        ("--cdi-disable-hooks",),
        ("CDI_DISABLE_HOOKS",),
        ("daemon", "cdiDisableHooks"),
        Kind.LIST,
        "CDI hooks to leave out of specs, or all",
    ),
    Option(
        ("--kubernetes-reports",),
        ("GPUPLUGIN_KUBERNETES_REPORTS",),
        ("daemon", "kubernetesReports"),
        Kind.BOOL,
        "tell the API server of GPUs' health: Events and the node condition GPUHealthy",
    ),
    Option(
        ("--node-name",),
        ("NODE_NAME",),
        ("daemon", "nodeName"),
        Kind.STRING,
        "this node's name in Kubernetes; needed for --kubernetes-reports",
    ),
    Option(
        ("--config-map-dir",),
        ("GPUPLUGIN_CONFIG_MAP_DIR",),
        ("daemon", "configMapDir"),
        Kind.STRING,
        "folder of configurations; the node's label nvidia.com/device-plugin.config chooses",
    ),
    Option(
        ("--default-config",),
        ("DEFAULT_CONFIG",),
        ("daemon", "defaultConfig"),
        Kind.STRING,
        "the configuration in --config-map-dir for nodes without that label",
    ),
    Option(
        ("--metrics-interval",),
        ("GPUPLUGIN_METRICS_INTERVAL",),
        ("daemon", "metricsInterval"),
        Kind.DURATION,
        "how often what GPUs do and who uses them is read for /metrics, for example 5s",
    ),
    Option(
        ("--pod-metrics",),
        ("GPUPLUGIN_POD_METRICS",),
        ("daemon", "podMetrics"),
        Kind.BOOL,
        "ask the kubelet which pod holds which replica, and find the pods of processes",
    ),
    Option(
        ("--host-proc",),
        ("GPUPLUGIN_HOST_PROC",),
        ("daemon", "hostProc"),
        Kind.STRING,
        "where the host's /proc is, for the pods of processes",
    ),
    Option(
        ("--pod-logs",),
        ("GPUPLUGIN_POD_LOGS",),
        ("daemon", "podLogs"),
        Kind.STRING,
        "where the host's /var/log/pods is, for the names of pods",
    ),
)
"""All options, in the order in which documents list them."""

CONFIG_FILE_FLAG = "--config-file"
CONFIG_FILE_VARIABLE = "CONFIG_FILE"
DEFAULT_KUBELET_DIR = "/var/lib/kubelet"
DEFAULT_CDI_ROOT = "/var/run/cdi"
DEFAULT_HOST_PROC = "/proc"
DEFAULT_POD_LOGS = "/var/log/pods"
