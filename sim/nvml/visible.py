"""Which devices of the node a container sees: those that it was given, under numbers of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hal import MigDevice
    from sim.gpu.gpu import SimulatedGpu

MOST_BYTES = 8192
"""The longest list of names, as in `library/visible.h`."""
_REPLICA = "::"


@dataclass(frozen=True, slots=True)
class Visible:
    """`names`: UUIDs of GPUs and MIG devices, indices (`0`, MIG `0:1`), or `all`.

    Whoever sees a MIG device sees its GPU, with no other MIG device than those it was given.
    """

    names: frozenset[str]

    @classmethod
    def read(cls, text: str) -> Visible:
        """From NVIDIA_VISIBLE_DEVICES; `void`, `none` and an empty text are nothing."""
        names = (one.strip().partition(_REPLICA)[0] for one in text.split(","))
        return cls(frozenset(name for name in names if name not in ("", "void", "none")))

    def whole(self, gpu: SimulatedGpu) -> bool:
        """Whether the GPU itself was given, with all of its MIG devices."""
        identity = gpu.identity
        return not self.names.isdisjoint(("all", identity.uuid, str(identity.index)))

    def gpu(self, gpu: SimulatedGpu) -> bool:
        return self.whole(gpu) or any(self._named(gpu, mig) for mig in gpu.identity.mig_devices)

    def mig(self, gpu: SimulatedGpu, mig: MigDevice) -> bool:
        return self.whole(gpu) or self._named(gpu, mig)

    def _named(self, gpu: SimulatedGpu, mig: MigDevice) -> bool:
        return not self.names.isdisjoint((mig.uuid, f"{gpu.identity.index}:{mig.index}"))
