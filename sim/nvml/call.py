"""One NVML call: its return code, the handles it names, what was passed, what it may read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from hal.nvml.api import Code
from sim.gpu.instances import device_of

if TYPE_CHECKING:
    import ctypes

    from hal import MigDevice
    from sim.gpu.gpu import SimulatedGpu
    from sim.gpu.instances import GpuInstance
    from sim.gpu.profiles import Profile
    from sim.node.node import SimulatedNode
    from sim.nvml.functions.events import EventSets
    from sim.nvml.functions.gpm import GpmSamples
    from sim.nvml.server import ProcessIds

    Key: TypeAlias = tuple[Literal["gpu", "mig"], str] | tuple[Literal["gi", "ci"], str, int]
    """A GPU or MIG device by UUID; instances by their GPU's UUID and their GPU instance id.

    There is at most one compute instance in each GPU instance.
    """


TEXTS = {
    Code.SUCCESS: "Success",
    Code.UNINITIALIZED: "NVML is not initialized",
    Code.INVALID_ARGUMENT: "Invalid argument",
    Code.NOT_SUPPORTED: "Not supported",
    Code.NO_PERMISSION: "No permission",
    Code.NOT_FOUND: "Not found",
    Code.INSUFFICIENT_SIZE: "The buffer is too small",
    Code.DRIVER_NOT_LOADED: "The driver is not loaded (no simulated node answers)",
    Code.TIMEOUT: "Timeout",
    Code.FUNCTION_NOT_FOUND: "Function not found",
    Code.GPU_IS_LOST: "The GPU is lost",
    Code.RESET_REQUIRED: "The GPU needs a reset",
    Code.LIB_RM_VERSION_MISMATCH: "Library and node are of different versions",
    Code.INSUFFICIENT_RESOURCES: "Not enough resources",
    Code.IN_USE: "In use",
    Code.ARGUMENT_VERSION_MISMATCH: "The version of a structure is not known",
}
"""What `nvmlErrorString` says; the names of the other codes say enough."""


def text_of(code: Code) -> str:
    return TEXTS.get(code) or code.name.replace("_", " ").capitalize()


class NvmlFailure(Exception):
    """A call fails: `code` is what it returns."""

    def __init__(self, code: Code) -> None:
        super().__init__(text_of(code))
        self.code = code


class InsufficientSize(NvmlFailure):
    """An array of the caller is too small; `needed` elements would do."""

    def __init__(self, needed: int) -> None:
        super().__init__(Code.INSUFFICIENT_SIZE)
        self.needed = needed


_FIRST = 0x5347_0000_0000
_STEP = 0x40


@dataclass(frozen=True, slots=True)
class Place:
    """What a call is about: a GPU, or a GPU instance of it, which may be a MIG device."""

    gpu: SimulatedGpu
    mig: MigDevice | None = None
    instance: GpuInstance | None = None


class Handles:
    """Gives handles and finds what they stand for; not for several threads at once."""

    def __init__(self) -> None:
        self._numbers: dict[Key, int] = {}
        self._keys: dict[int, Key] = {}

    def of(self, key: Key) -> int:
        if key not in self._numbers:
            number = _FIRST + _STEP * len(self._numbers)
            self._numbers[key] = number
            self._keys[number] = key
        return self._numbers[key]

    def place(self, node: SimulatedNode, handle: int) -> Place:
        """The GPU or MIG device of a handle of any kind; raises `NvmlFailure` without one."""
        key = self._keys.get(handle)
        if key is None:
            raise NvmlFailure(Code.INVALID_ARGUMENT)
        place = _place(node, key)
        if place is None:
            raise NvmlFailure(Code.INVALID_ARGUMENT)
        return place


def _place(node: SimulatedNode, key: Key) -> Place | None:
    if key[0] == "gpu":
        gpu = node.gpus.get(key[1])
        return None if gpu is None else Place(gpu)
    if key[0] == "mig":
        for gpu in node.gpus.values():
            for device in gpu.identity.mig_devices:
                if device.uuid == key[1]:
                    return Place(gpu, device, gpu.instances[device.gpu_instance])
        return None
    gpu = node.gpus.get(key[1])
    instance = None if gpu is None else gpu.instances.get(key[2])
    if gpu is None or instance is None:
        return None
    mig = device_of(gpu, instance)
    return None if mig is None and key[0] == "ci" else Place(gpu, mig, instance)


@dataclass(frozen=True, slots=True)
class NvmlCall:
    """A call to a node that is held still.

    `numbers` are the arguments by value that are no device, in order; `texts` and `structures` are
    what the caller's pointers lead to, in order.
    """

    node: SimulatedNode
    handles: Handles
    event_sets: EventSets
    samples: GpmSamples
    pids: ProcessIds
    session: int
    place: Place | None = None
    other: Place | None = None
    """A second device."""
    numbers: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    structures: tuple[ctypes.Structure, ...] = ()

    @property
    def gpu(self) -> SimulatedGpu:
        return self._place.gpu

    @property
    def profile(self) -> Profile:
        return self._place.gpu.profile

    @property
    def mig(self) -> MigDevice | None:
        return self._place.mig

    @property
    def mig_device(self) -> MigDevice:
        """The MIG device of the call; raises `NvmlFailure` for a whole GPU."""
        if self._place.mig is None:
            raise NvmlFailure(Code.INVALID_ARGUMENT)
        return self._place.mig

    @property
    def instance(self) -> GpuInstance:
        """The GPU instance of the call; raises `NvmlFailure` for a whole GPU."""
        if self._place.instance is None:
            raise NvmlFailure(Code.INVALID_ARGUMENT)
        return self._place.instance

    def structure(self, kind: type[ctypes.Structure]) -> ctypes.Structure:
        found = self.structures[0]
        if not isinstance(found, kind):
            raise NvmlFailure(Code.ARGUMENT_VERSION_MISMATCH)
        return found

    def handle_of_gpu(self, gpu: SimulatedGpu) -> int:
        return self.handles.of(("gpu", gpu.identity.uuid))

    @property
    def _place(self) -> Place:
        if self.place is None:
            raise NvmlFailure(Code.INVALID_ARGUMENT)
        return self.place


def known(value: int | None) -> int:
    """The value of a profile; raises `NvmlFailure` (not supported) without one."""
    if value is None:
        raise NvmlFailure(Code.NOT_SUPPORTED)
    return value


def choice(value: int, *allowed: int) -> int:
    """The value; raises `NvmlFailure` (an invalid argument) if it is not allowed."""
    if value not in allowed:
        raise NvmlFailure(Code.INVALID_ARGUMENT)
    return value
