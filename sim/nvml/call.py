"""One NVML call: its return code, the handles it names, what was passed, what it may read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from hal.nvml.api import Code
from sim.gpu.instances import device_of

if TYPE_CHECKING:
    import ctypes

    from hal import ComputeProcess, MigDevice
    from sim.gpu.gpu import SimulatedGpu
    from sim.gpu.instances import GpuInstance
    from sim.gpu.profiles import Profile
    from sim.gpu.returns import Answer
    from sim.node.node import SimulatedNode
    from sim.nvml.functions.events import EventSets
    from sim.nvml.functions.gpm import GpmSamples
    from sim.nvml.pids import ProcessIds
    from sim.nvml.visible import Visible

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


class Enumerations:
    """The GPUs of each session, in the order of their indices, which a session does not change.

    A GPU that has left the bus has no index in a session that begins then: those behind it have
    other indices. One that comes back during a session is its last.
    """

    def __init__(self) -> None:
        self._positions: dict[int, list[int]] = {}

    def of(self, session: int, node: SimulatedNode) -> list[SimulatedGpu]:
        present = node.present
        positions = self._positions.setdefault(session, [])
        positions += [
            position
            for position, gpu in enumerate(present)
            if gpu.plugged and position not in positions
        ]
        return [present[position] for position in positions]

    def end(self, session: int) -> None:
        self._positions.pop(session, None)


@dataclass(frozen=True, slots=True)
class NvmlCall:
    """A call of `function` to a node that is held still.

    `numbers` are the arguments by value that are no device, in order; `texts` and `structures` are
    what the caller's pointers lead to, in order.
    """

    function: str
    node: SimulatedNode
    handles: Handles
    enumerations: Enumerations
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
    visible: Visible | None = None
    """What a container sees; None: everything."""

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
    def gpus(self) -> list[SimulatedGpu]:
        """The GPUs by their indices in this session."""
        listed = self.enumerations.of(self.session, self.node)
        return [gpu for gpu in listed if self.sees(gpu)]

    @property
    def mig_devices(self) -> dict[int, MigDevice]:
        """The MIG devices of the GPU by their indices in this session."""
        return self.migs_of(self.gpu)

    def migs_of(self, gpu: SimulatedGpu) -> dict[int, MigDevice]:
        """The MIG devices of a GPU by index; a container counts those that it sees."""
        devices = gpu.identity.mig_devices
        visible = self.visible
        if visible is None:
            return {device.index: device for device in devices}
        return dict(enumerate(device for device in devices if visible.mig(gpu, device)))

    def sees(self, gpu: SimulatedGpu) -> bool:
        return self.visible is None or self.visible.gpu(gpu)

    def processes(self) -> tuple[ComputeProcess, ...]:
        """Those of the GPU; in a container there are none, since all are in other pods' or hosts'
        namespaces."""
        return tuple(self.gpu.processes()) if self.visible is None else ()

    @property
    def answer(self) -> Answer | None:
        """What it returns in place of the truth, if anything. Asking counts as a call."""
        now_s = self.node.now_s
        if self.place is None:
            return self.node.driver.returned.to(self.function, now_s)
        mig = None if self.place.mig is None else self.place.mig.index
        return self.place.gpu.returned.to(self.function, now_s, mig)

    def found(self, gpu: SimulatedGpu, mig: MigDevice | None = None) -> int:
        """The handle of a device that this call looks for; raises `NvmlFailure` in its place."""
        if gpu.lost:
            raise NvmlFailure(Code.GPU_IS_LOST)
        answer = replace(self, place=Place(gpu, mig)).answer
        if answer is not None and answer.code is not Code.SUCCESS:
            raise NvmlFailure(answer.code)
        return self.handle_of_gpu(gpu) if mig is None else self.handles.of(("mig", mig.uuid))

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
