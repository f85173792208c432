"""Memory of a GPU under sharing: who holds what, and what happens when it does not fit.

Nothing isolates tenants from each other: what one holds, the next one cannot have. Allocations stay
where they are while other contexts run; nothing is swapped out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sim.gpu.compute.engine import ContextId

MIB = 1024**2

DEFAULT_CONTEXT_BYTES = 300 * MIB
"""What a context takes before its first allocation: 100 MiB for bare CUDA on a T4, 250 to 500 MiB
on larger GPUs; about 300 MiB is what most reports name."""

UVM_SLOWDOWN_AT_TWICE = 12.0
"""Slowdown of two tenants that oversubscribe memory through UVM: 12 to 22 were measured."""


class OutOfMemory(Exception):
    """An allocation does not fit; `holders` says who holds how many bytes."""

    def __init__(self, asked_bytes: int, free_bytes: int, holders: Mapping[ContextId, int]) -> None:
        super().__init__(f"{asked_bytes} bytes were asked for, {free_bytes} are free")
        self.asked_bytes = asked_bytes
        self.free_bytes = free_bytes
        self.holders = dict(holders)


@dataclass(slots=True)
class Memory:
    """The memory of a GPU or MIG device.

    `reserved_bytes` is what the driver keeps. With `oversubscribe` (managed memory) nothing fails:
    pages move, and everybody slows down.
    """

    total_bytes: int
    reserved_bytes: int = 0
    oversubscribe: bool = False
    held_bytes: dict[ContextId, int] = field(default_factory=dict)
    """What each context holds, its own overhead included."""
    peak_bytes: int = 0

    @property
    def used_bytes(self) -> int:
        """All that is not free; with oversubscription it may pass the total."""
        return self.reserved_bytes + sum(self.held_bytes.values())

    @property
    def free_bytes(self) -> int:
        """What the next one who asks can have."""
        return max(0, self.total_bytes - self.used_bytes)

    def allocate(self, context: ContextId, size_bytes: int) -> None:
        """Give a context memory.

        Raises:
            OutOfMemory: it does not fit; nothing has changed.
        """
        if size_bytes > self.free_bytes and not self.oversubscribe:
            raise OutOfMemory(size_bytes, self.free_bytes, self.held_bytes)
        self.held_bytes[context] = self.held_bytes.get(context, 0) + size_bytes
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)

    def free(self, context: ContextId, size_bytes: int) -> None:
        """Take back part of what a context holds; never more than that."""
        self.held_bytes[context] = max(0, self.held_bytes.get(context, 0) - size_bytes)

    def release(self, context: ContextId) -> None:
        """The context ended: all that it held is free."""
        self.held_bytes.pop(context, None)

    @property
    def speed(self) -> float:
        """Share of full speed that is left by moving pages: 1 while everything fits.

        Falls to 1/12 where twice the memory is in use, in proportion to what does not fit.
        """
        over = self.used_bytes / self.total_bytes - 1
        return 1.0 if over <= 0 else 1 / (1 + (UVM_SLOWDOWN_AT_TWICE - 1) * over)
