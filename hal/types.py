"""The values that cross the hardware layer: frozen, with their units in their names."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, Flag, IntEnum, auto
from typing import TypeAlias

GIB = 1024**3
PCI_VGA, PCI_3D = 0x030000, 0x030200
"""Classes of GPUs with and without a display, from the PCI Code and ID Assignment."""


@dataclass(frozen=True, slots=True)
class CallFailure:
    """A call to the driver gave no value: which, its return code, and the driver's words.

    `code` is 0 where the call succeeded with a value that cannot be. `remedy` says what to do in a
    sentence, `action` in a word.
    """

    call: str
    code: int
    text: str
    remedy: str = ""
    action: str = ""

    def __str__(self) -> str:
        return (
            f"{self.call}: {self.text} ({self.code})" if self.code else f"{self.call} {self.text}"
        )


class GpuState(Enum):
    """Whether a GPU responds."""

    OK = "ok"
    LOST = "lost"
    """It does not, or its identity cannot be read."""


class ComputeMode(Enum):
    """Which processes may make a context on a GPU (`nvidia-smi --compute-mode`)."""

    DEFAULT = "default"
    EXCLUSIVE_PROCESS = "exclusive-process"
    """One process at a time: a second one is refused, so such a GPU cannot be shared."""
    PROHIBITED = "prohibited"


class FabricState(Enum):
    """How far a GPU is with its registration at the NVLink fabric of its NVSwitches."""

    NOT_STARTED = "not-started"
    IN_PROGRESS = "in-progress"
    COMPLETED = "completed"


class RecoveryAction(Enum):
    """What the driver requires before the GPU can be used (NVML recovery action)."""

    NONE = "none"
    RESET = "reset"
    REBOOT = "reboot"
    DRAIN_P2P = "drain-p2p"
    DRAIN_AND_RESET = "drain-and-reset"
    OTHER = "other"
    """Something that this version has no name for: the GPU cannot be used."""
    UNKNOWN = "unknown"
    """The driver is too old to report it."""


class TimeSliceLevel(IntEnum):
    """Levels of `nvidia-smi compute-policy --set-timeslice`; NVIDIA publishes no durations."""

    DEFAULT = 0
    SHORT = 1
    MEDIUM = 2
    LONG = 3


class ThrottleReason(Flag):
    """Why the clocks are below the requested ones."""

    NONE = 0
    IDLE = auto()
    POWER_CAP = auto()
    THERMAL_SOFTWARE = auto()
    THERMAL_HARDWARE = auto()
    POWER_BRAKE = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class MigAttributes:
    """How much of its GPU a MIG device has; the memory is in MiB, engines are those it may use."""

    gpu_slices: int
    compute_slices: int
    memory_mib: int
    multiprocessors: int = 0
    copy_engines: int = 0
    decoders: int = 0
    encoders: int = 0
    jpeg_engines: int = 0
    ofa_engines: int = 0


@dataclass(frozen=True, slots=True)
class MigDevice:
    """A MIG device of a GPU, the `index`-th one there.

    `profile` is NVIDIA's spelling, for example `1g.10gb`. `device_nodes` are the nodes that a
    process needs for it: the GPU's own and those of its instances under /dev/nvidia-caps.
    """

    uuid: str
    index: int
    gpu_instance: int
    compute_instance: int
    profile: str
    memory_bytes: int
    device_nodes: tuple[str, ...] = ()
    attributes: MigAttributes | None = None
    """None where the driver does not report them."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One physical GPU as last seen. A lost GPU keeps its last known identity.

    `pci_bus_id` is in NVML's form `00000000:07:00.0`; `minor` is the N of `/dev/nvidiaN`;
    `numa_node` is None where the platform names none. Everything but UUID and index may be unknown:
    `product` and `pci_bus_id` are empty then. `unknown` are the calls behind that which failed for
    another reason than that this GPU or driver does not have them; `failure` is why a GPU that is
    lost cannot be read.
    """

    uuid: str
    index: int
    minor: int | None
    pci_bus_id: str
    numa_node: int | None
    product: str
    memory_bytes: int | None
    compute_capability: tuple[int, int] | None
    state: GpuState = GpuState.OK
    mig_enabled: bool = False
    mig_devices: tuple[MigDevice, ...] = ()
    mig_capable: bool = False
    """Whether it can be put into MIG mode."""
    pci_class: int | None = None
    """The class of the PCI device: `PCI_VGA`, `PCI_3D`; None where the kernel shows none."""
    compute_mode: ComputeMode | None = None
    """None where the driver does not report it."""
    unknown: tuple[CallFailure, ...] = field(default=(), compare=False)
    failure: CallFailure | None = field(default=None, compare=False)

    @property
    def device_nodes(self) -> tuple[str, ...]:
        """The device nodes of the GPU; none where the minor number is not known."""
        return () if self.minor is None else (f"/dev/nvidia{self.minor}",)


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether a GPU can be used now, read from the hardware.

    `epoch` is opaque text that changes when the GPU was reset or the driver or node restarted:
    two equal epochs mean that neither was the case in between.
    """

    reachable: bool
    recovery_action: RecoveryAction
    row_remap_pending: bool
    row_remap_failed: bool
    uncorrectable_ecc: int | None
    """Errors since the driver was loaded or the GPU was reset; None where it cannot be read."""
    epoch: str
    thermal_shutdown: bool = False
    """At or above the temperature at which the GPU shuts itself down; hot alone is not it."""
    failure: CallFailure | None = None
    """Why it is not reachable, if a call says so."""
    unknown: tuple[CallFailure, ...] = ()
    """Calls that gave no value; what they read does not count as a fault."""
    fabric: FabricState | None = None
    """None for a GPU without one, or where it is unknown."""
    fabric_failure: CallFailure | None = None
    """Why a fabric that counts as completed cannot be used."""
    confidential_ready: bool | None = None
    """Whether it accepts work in confidential computing; None outside of it, or if unknown."""

    @classmethod
    def unreachable(
        cls,
        epoch: str,
        recovery_action: RecoveryAction = RecoveryAction.UNKNOWN,
        failure: CallFailure | None = None,
    ) -> Probe:
        """The probe of a GPU that does not respond: nothing is known but the last epoch."""
        return cls(
            reachable=False,
            recovery_action=recovery_action,
            row_remap_pending=False,
            row_remap_failed=False,
            uncorrectable_ecc=None,
            epoch=epoch,
            failure=failure,
        )

    @property
    def in_fabric(self) -> bool:
        """False while CUDA waits for the NVLink fabric (error 802)."""
        completed = self.fabric in (None, FabricState.COMPLETED)
        return completed and self.fabric_failure is None

    @property
    def clean(self) -> bool:
        """True if nothing that the hardware reports forbids to use the GPU.

        The fabric and confidential computing are no matter of the hardware.
        """
        return (
            self.reachable
            and not self.row_remap_failed
            and not self.thermal_shutdown
            and self.recovery_action in (RecoveryAction.NONE, RecoveryAction.UNKNOWN)
        )


@dataclass(frozen=True, slots=True)
class Telemetry:
    """A reading of one GPU; None where a value is unknown.

    Used memory includes what the driver keeps; the free one is what programs can allocate.
    """

    utilization: float | None
    """Share of the last sample period in which a kernel ran, 0 to 1."""
    memory_used_bytes: int | None
    memory_free_bytes: int | None
    memory_total_bytes: int | None
    temperature_c: float | None
    power_w: float | None
    power_limit_w: float | None
    energy_j: float | None
    """What the board drew since the driver was loaded or the GPU was reset."""
    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    throttle_reasons: ThrottleReason
    corrected_ecc: int | None
    uncorrectable_ecc: int | None
    unknown: tuple[CallFailure, ...] = ()


@dataclass(frozen=True, slots=True)
class ComputeProcess:
    """A process with a context on a GPU; `sm_share` (0 to 1) is None where it is not sampled.

    `graphics` is true for one that has a context for graphics alone.
    """

    pid: int
    name: str
    memory_bytes: int | None
    sm_share: float | None
    mig_uuid: str | None = None
    graphics: bool = False


class LinkKind(Enum):
    """How two GPUs reach each other, by the PCIe path, from far to near."""

    CROSS_CPU = "cross-cpu"
    SAME_CPU = "same-cpu"
    HOST_BRIDGE = "host-bridge"
    MULTI_SWITCH = "multi-switch"
    SINGLE_SWITCH = "single-switch"
    SAME_BOARD = "same-board"


@dataclass(frozen=True, slots=True)
class Link:
    """The connection of two GPUs: the PCIe path, and the number of direct NVLinks (0 to 18)."""

    kind: LinkKind
    nvlinks: int = 0


@dataclass(frozen=True, slots=True)
class XidError:
    """The driver reported an Xid.

    `uuid` is None where the driver did not name the GPU. For MIG, `gpu_instance` and
    `compute_instance` name the instance; None means the whole GPU.
    """

    uuid: str | None
    xid: int
    gpu_instance: int | None = None
    compute_instance: int | None = None


@dataclass(frozen=True, slots=True)
class EccError:
    """An ECC event: `uncorrectable` for a double-bit error, else a corrected single-bit one."""

    uuid: str | None
    uncorrectable: bool


@dataclass(frozen=True, slots=True)
class GpuDisappeared:
    """The GPU stopped responding or was removed; `failure` is the call that says so, if any."""

    uuid: str
    failure: CallFailure | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class GpuAppeared:
    """A GPU that was not there before, or was lost, responds now."""

    uuid: str


Event: TypeAlias = XidError | EccError | GpuDisappeared | GpuAppeared
