"""Facts of a node, as plain data: `collect` makes them, `checks` judges them.

Paths are those of the host. None means that it could not be read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuplugin.config.settings import Settings
    from hal import CallFailure, Gpu, Probe


@dataclass(frozen=True, slots=True)
class Library:
    """A file named libnvidia-ml.so.1; `problem` is why it is none that could be loaded."""

    path: str
    version: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class PciGpu:
    """A display controller of NVIDIA on the bus; `pci_class` is `0300` or `0302`."""

    address: str
    pci_class: str
    driver: str


@dataclass(frozen=True, slots=True)
class FileFact:
    """A file or folder; `mode` has its permission bits, `device` major and minor of a node."""

    path: str
    uid: int = 0
    gid: int = 0
    mode: int = 0o755
    is_folder: bool = False
    device: tuple[int, int] | None = None

    def permits(self, uid: int, wanted: int) -> bool:
        """Whether the permission bits give the user these rights (4 read, 2 write, 1 enter).

        Groups other than one with the user's own number are not known here.
        """
        if uid == 0:
            return True
        shift = 6 if uid == self.uid else 3 if uid == self.gid else 0
        return (self.mode >> shift) & wanted == wanted


@dataclass(frozen=True, slots=True)
class DriverFacts:
    """The driver's files, modules and device nodes.

    `root` is where the configuration says that the driver is, `libraries` those below it,
    `elsewhere` those at other places where drivers are often put. `modules` are those of interest
    that are loaded. `char_links` is whether /dev/char has links to the nodes.
    """

    root: str = "/"
    libraries: tuple[Library, ...] = ()
    elsewhere: tuple[Library, ...] = ()
    modules: frozenset[str] | None = frozenset()
    module_version: str = ""
    pci: tuple[PciGpu, ...] | None = ()
    nodes: Mapping[str, FileFact] = field(default_factory=lambda: MappingProxyType({}))
    char_links: bool = False
    wsl: bool = False
    mps_processes: tuple[str, ...] = ()


class Failure(Enum):
    """Why the hardware could not be read."""

    NOT_FOUND = "the driver's library was not found"
    UNAVAILABLE = "the driver does not answer"
    HUNG = "a call did not return"
    OTHER = "the driver answered with an error"


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """A GPU as the driver reports it; `problem` is why parts are missing.

    `unknown` are calls for its sensors and processes that gave no value.
    """

    gpu: Gpu
    probe: Probe | None = None
    processes: tuple[str, ...] = ()
    problem: str = ""
    unknown: tuple[CallFailure, ...] = ()


@dataclass(frozen=True, slots=True)
class HardwareFacts:
    backend: str = "nvml"
    driver_version: str = ""
    gpus: tuple[GpuFacts, ...] = ()
    failure: Failure | None = None
    cause: str = ""
    remedy: str = ""


class SocketState(Enum):
    """Whether a process answers at a socket."""

    ANSWERS = "answers"
    SILENT = "takes connections and does not answer"
    REFUSED = "has no listener"
    DENIED = "this user may not connect"
    MISSING = "does not exist"
    NO_SOCKET = "is not a socket"


@dataclass(frozen=True, slots=True)
class SocketFact:
    path: str
    state: SocketState

    @property
    def live(self) -> bool:
        """True if a process listens."""
        return self.state in (SocketState.ANSWERS, SocketState.SILENT)


@dataclass(frozen=True, slots=True)
class KubeletFacts:
    """The kubelet's folder and sockets.

    `elsewhere` are other folders with a kubelet's socket, `configured_root` is --root-dir of a
    running kubelet. `device_plugins` is not below that: the kubelet has it at one place, whatever
    its --root-dir. `registered` counts devices by resource in the kubelet's checkpoint.
    `hidden` means that the folder exists and this user may not read it.
    """

    root: str = "/var/lib/kubelet"
    folder: FileFact | None = None
    device_plugins: FileFact | None = None
    registry: FileFact | None = None
    own_folder: FileFact | None = None
    hidden: bool = False
    socket: SocketFact = SocketFact("", SocketState.MISSING)
    elsewhere: tuple[str, ...] = ()
    configured_root: str = ""
    own_sockets: tuple[SocketFact, ...] = ()
    others: tuple[SocketFact, ...] = ()
    registered: Mapping[str, int] | None = None
    cgroup_driver: str = ""


@dataclass(frozen=True, slots=True)
class PartFact:
    """A component of the running plugin; `ok_ago_s` is None if it never was ok."""

    name: str
    ok: bool
    text: str
    for_s: float
    ok_ago_s: float | None


@dataclass(frozen=True, slots=True)
class UnitFact:
    """A GPU or MIG device as the running plugin sees it."""

    uuid: str
    index: str
    state: str
    reason: str
    action: str
    for_s: float


@dataclass(frozen=True, slots=True)
class PluginFacts:
    """The running plugin, which answered at `source`; if that is empty, `problem` says why.

    `control` is its control socket, if there is one. Over HTTP it is not known which kubelet's
    folder it serves, nor `config` (the whole configuration in force, as a file spells it, `daemon`
    included) and `devices` (by resource: all, and those that are healthy).
    """

    source: str = ""
    problem: str = ""
    control: SocketFact | None = None
    config: dict[str, object] | None = None
    config_source: str = ""
    devices: dict[str, tuple[int, int]] = field(default_factory=dict)
    uid: int | None = None
    parts: tuple[PartFact, ...] = ()
    units: tuple[UnitFact, ...] = ()

    def part(self, name: str) -> PartFact | None:
        return next((part for part in self.parts if part.name == name), None)


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """The configuration of a container runtime, all its files merged.

    `handlers` are program paths by handler name; `cdi` is None where the file leaves it to the
    runtime's version. `version` is that of the file's format, 0 where it has none.
    """

    program: str
    path: str
    handlers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    default_handler: str = ""
    cdi: bool | None = None
    cdi_folders: tuple[str, ...] = ()
    systemd_cgroup: bool | None = None
    version: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ToolkitConfig:
    """What NVIDIA's runtime accepts: the variable of unprivileged containers, and mounts."""

    path: str
    unprivileged_variable: bool = True
    mounts: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True)
class CdiSpec:
    """A CDI spec: its kind and device names, and the device nodes and files that are not there."""

    path: str
    kind: str = ""
    devices: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class RuntimeFacts:
    configs: tuple[RuntimeConfig, ...] = ()
    toolkit: ToolkitConfig | None = None
    cdi_folder: FileFact | None = None
    specs: tuple[CdiSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class TalosFacts:
    """Talos Linux, by the host's files: `version` is as in /etc/os-release (`v1.13.9`).

    `extensions` are the system extensions by name, `hook` is the CDI hook program that the plugin
    uses, empty if there is none. `bpf_jit_harden` is the sysctl, empty where it cannot be read.
    `cache_names_driver` is whether the linker cache of 1.12 and earlier has the driver's libraries.
    """

    version: str
    extensions: frozenset[str] | None = None
    hook: str = ""
    bpf_jit_harden: str = ""
    cache_names_driver: bool | None = None

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version; (0, 0) for a version in another form."""
        match = re.match(r"v?(\d+)\.(\d+)", self.version)
        return (int(match[1]), int(match[2])) if match else (0, 0)


@dataclass(frozen=True, slots=True)
class ClassFact:
    """A DeviceClass; `created` sorts as the times do."""

    name: str
    created: str = ""
    extended_resource: str = ""
    selectors: tuple[str, ...] = ()

    def selects(self, driver: str) -> bool:
        """Whether its selectors name the driver, as far as one can tell without evaluating them."""
        return any(driver in one for one in self.selectors)


@dataclass(frozen=True, slots=True)
class SliceFact:
    """A ResourceSlice as stored; `replicas` are its devices with their shares, 1 without any."""

    name: str
    generation: int
    count: int
    replicas: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    tainted: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What the API server has for DRA on this node; `problem` is why it was not read at all.

    `served` is whether it has resource.k8s.io/v1. `classes` are newest first. What this user may
    not read is None, with the reason in `denied`.
    """

    server: str = ""
    problem: str = ""
    served: bool = True
    kubelet_version: str = ""
    allocatable: Mapping[str, str] | None = None
    classes: tuple[ClassFact, ...] | None = None
    slices: tuple[SliceFact, ...] | None = None
    gates_off: frozenset[str] | None = None
    rights: Mapping[str, bool] | None = None
    denied: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ConfigFacts:
    """The configuration: `settings` are in force, or the defaults where `problems` say why not.

    `unread` are files at places where configurations are mounted, of which none was named.
    """

    source: str
    settings: Settings
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything; `plugin_uid` is the user that the plugin runs as, or would run as.

    `talos` is None on any other system, `cluster` where no API server is asked.
    """

    config: ConfigFacts
    driver: DriverFacts = DriverFacts()
    hardware: HardwareFacts = HardwareFacts()
    kubelet: KubeletFacts = KubeletFacts()
    plugin: PluginFacts = PluginFacts()
    runtime: RuntimeFacts = RuntimeFacts()
    talos: TalosFacts | None = None
    cluster: ClusterFacts | None = None
    plugin_uid: int = 0

    @property
    def settings(self) -> Settings:
        return self.config.settings

    @property
    def dra(self) -> bool:
        """True if GPUs are given out by DRA."""
        return self.settings.daemon.allocation == "dra"

    @property
    def strategies(self) -> frozenset[str]:
        """How devices reach containers: with DRA by CDI, whatever the configuration says."""
        if self.dra:
            return frozenset({"cdi-cri"})
        return frozenset(self.settings.flags.plugin.device_list_strategy)

    @property
    def simulated(self) -> bool:
        """True if the GPUs are simulated: there is no driver to check."""
        return self.hardware.backend == "sim"

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        return tuple(one.gpu for one in self.hardware.gpus)
