"""Handles: what NVML's opaque pointers stand for. The same for every process, for ever."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from sim.nvml.codes import Code, NvmlFailure

if TYPE_CHECKING:
    from hal import MigDevice
    from sim.gpu.gpu import SimulatedGpu
    from sim.node.node import SimulatedNode

    Key: TypeAlias = tuple[Literal["gpu", "mig"], str] | tuple[Literal["gi", "ci"], str, int]
    """A GPU or MIG device by UUID; instances by their GPU's UUID and their GPU instance id.

    There is one compute instance in each GPU instance.
    """

_FIRST = 0x5347_0000_0000
_STEP = 0x40


@dataclass(frozen=True, slots=True)
class Place:
    """What a call is about: a GPU, or a MIG device of it."""

    gpu: SimulatedGpu
    mig: MigDevice | None = None


class Handles:
    """Gives handles and finds what they stand for; not for several threads at once."""

    def __init__(self) -> None:
        self._numbers: dict[Key, int] = {}
        self._keys: dict[int, Key] = {}

    def of(self, key: Key) -> int:
        """The handle of something, made if it is the first time."""
        if key not in self._numbers:
            number = _FIRST + _STEP * len(self._numbers)
            self._numbers[key] = number
            self._keys[number] = key
        return self._numbers[key]

    def place(self, node: SimulatedNode, handle: int) -> Place:
        """What a handle of any kind is about.

        Raises:
            NvmlFailure: nothing (any more).
        """
        key = self._keys.get(handle)
        if key is None:
            raise NvmlFailure(Code.INVALID_ARGUMENT)
        if key[0] == "mig":
            return _mig_place(node, key[1])
        gpu = node.gpus.get(key[1])
        if gpu is None:
            raise NvmlFailure(Code.INVALID_ARGUMENT)
        if key[0] == "gpu":
            return Place(gpu)
        for device in gpu.identity.mig_devices:
            if device.gpu_instance == key[2]:
                return Place(gpu, device)
        raise NvmlFailure(Code.INVALID_ARGUMENT)


def _mig_place(node: SimulatedNode, uuid: str) -> Place:
    for gpu in node.gpus.values():
        for device in gpu.identity.mig_devices:
            if device.uuid == uuid:
                return Place(gpu, device)
    raise NvmlFailure(Code.INVALID_ARGUMENT)
