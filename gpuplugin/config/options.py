"""Every option that is a flag or an environment variable: one table, for parsers and documents.

Flags and variables of NVIDIA's plugin keep their names; this project's own variables start with
GPUPLUGIN_. `path` is where the value goes in `schema.Settings`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from gpuplugin.config.values import parse_bool

Value: TypeAlias = str | bool | list[str]


class Kind(Enum):
    """How the text of a flag or variable is read."""

    STRING = "string"
    BOOL = "bool"
    LIST = "list"
    DURATION = "duration"


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
            return [item.strip() for item in text.split(",") if item.strip()]
        return text

    def read_variable(self, text: str) -> Value | None:
        """As `read`; a variable that is set but empty is "", false, or (None) as if not set."""
        if text:
            return self.read(text)
        if self.kind is Kind.BOOL:
            return False
        return "" if self.kind is Kind.STRING else None


OPTIONS: tuple[Option, ...] = (
    Option(
        ("--mig-strategy",),
        ("MIG_STRATEGY",),
        ("flags", "migStrategy"),
        Kind.STRING,
        "how MIG devices are advertised; this version knows none",
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
        ("--driver-root-ctr-path", "--container-driver-root"),
        ("DRIVER_ROOT_CTR_PATH", "CONTAINER_DRIVER_ROOT"),
        ("flags", "plugin", "containerDriverRoot"),
        Kind.STRING,
        "where the driver's root is mounted in the plugin's container",
    ),
    Option(
        ("--pass-device-specs",),
        ("PASS_DEVICE_SPECS",),
        ("flags", "plugin", "passDeviceSpecs"),
        Kind.BOOL,
        "pass device nodes to the container; this version cannot",
    ),
    Option(
        ("--device-list-strategy",),
        ("DEVICE_LIST_STRATEGY",),
        ("flags", "plugin", "deviceListStrategy"),
        Kind.LIST,
        "how devices reach the container; this version knows envvar",
    ),
    Option(
        ("--device-id-strategy",),
        ("DEVICE_ID_STRATEGY",),
        ("flags", "plugin", "deviceIDStrategy"),
        Kind.STRING,
        "how devices are named to the runtime; this version knows uuid",
    ),
    Option(
        ("--shared-devices-allocation-policy",),
        ("SHARED_DEVICES_ALLOCATION_POLICY",),
        ("flags", "plugin", "sharedDevicesAllocationPolicy"),
        Kind.STRING,
        "which replicas to prefer; this version knows distributed",
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
        "how often the hardware is looked at, for example 5s",
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
        ("--kubelet-dir",),
        ("GPUPLUGIN_KUBELET_DIR",),
        ("daemon", "kubeletDir"),
        Kind.STRING,
        "folder that holds device-plugins/, plugins_registry/ and pod-resources/",
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
        "debug, info, warning or error",
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
)
"""All options, in the order in which documents list them."""

CONFIG_FILE_FLAG = "--config-file"
CONFIG_FILE_VARIABLE = "CONFIG_FILE"
DEFAULT_KUBELET_DIR = "/var/lib/kubelet"
