"""One call as its answer is made: what it is about, what was passed, and what it may look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.nvml.codes import Code, NvmlFailure

if TYPE_CHECKING:
    import ctypes

    from hal import MigDevice
    from sim.gpu.gpu import SimulatedGpu
    from sim.gpu.profiles import Profile
    from sim.node.node import SimulatedNode
    from sim.nvml.eventsets import EventSets
    from sim.nvml.handles import Handles, Place
    from sim.nvml.standins import ProcessIds


@dataclass(frozen=True, slots=True)
class Call:
    """A call to a node that is held still.

    `numbers` are the arguments by value that are no device, in order; `texts` and `structures` are
    what the caller's pointers lead to, in order.
    """

    node: SimulatedNode
    handles: Handles
    event_sets: EventSets
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
        """The GPU that it is about."""
        return self._place.gpu

    @property
    def profile(self) -> Profile:
        """The model of that GPU."""
        return self._place.gpu.profile

    @property
    def mig(self) -> MigDevice | None:
        """The MIG device that it is about, if it is about one."""
        return self._place.mig

    @property
    def mig_device(self) -> MigDevice:
        """The MIG device that it is about.

        Raises:
            NvmlFailure: it is about a whole GPU.
        """
        if self._place.mig is None:
            raise NvmlFailure(Code.INVALID_ARGUMENT)
        return self._place.mig

    def structure(self, kind: type[ctypes.Structure]) -> ctypes.Structure:
        """The first structure that the caller filled."""
        found = self.structures[0]
        if not isinstance(found, kind):
            raise NvmlFailure(Code.ARGUMENT_VERSION_MISMATCH)
        return found

    def handle_of_gpu(self, gpu: SimulatedGpu) -> int:
        """The handle of a GPU."""
        return self.handles.of(("gpu", gpu.identity.uuid))

    @property
    def _place(self) -> Place:
        if self.place is None:
            raise NvmlFailure(Code.INVALID_ARGUMENT)
        return self.place


def known(value: int | None) -> int:
    """The value, if the profile has it.

    Raises:
        NvmlFailure: not supported.
    """
    if value is None:
        raise NvmlFailure(Code.NOT_SUPPORTED)
    return value


def choice(value: int, *allowed: int) -> int:
    """The value, if it is one of those that NVML knows.

    Raises:
        NvmlFailure: an invalid argument.
    """
    if value not in allowed:
        raise NvmlFailure(Code.INVALID_ARGUMENT)
    return value
