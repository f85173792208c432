"""The numbers of time slicing: slice lengths and the cost of a switch, with their sources."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from hal import TimeSliceLevel

if TYPE_CHECKING:
    from collections.abc import Mapping

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

DEFAULT_SLICE_NS = 2_048_000
"""Two units of 1.024 ms, for CUDA contexts from Ampere to Blackwell: kernel timings on RTX 3090,
RTX 4090, RTX 5090 and A100 agree with it within 5 %."""

TEGRA_SLICE_NS = 1_024_000
"""Default of Tegra's scheduler, and what NVIDIA's open driver sets for a new channel group."""

SWITCH_BASE_NS = 70_000
SWITCH_OCCUPANCY_NS = 150_000
"""A switch takes 70 us and 150 us times the occupancy: 74 us were measured with small kernels,
217 to 220 us with kernels that fill the GPU (RTX 5090, A100)."""

LEVEL_SLICES_NS: Mapping[TimeSliceLevel, int] = MappingProxyType(
    {
        TimeSliceLevel.DEFAULT: DEFAULT_SLICE_NS,
        TimeSliceLevel.SHORT: 1_000_000,
        TimeSliceLevel.MEDIUM: 4_000_000,
        TimeSliceLevel.LONG: 30_000_000,
    }
)
"""Slices of the levels that `nvidia-smi compute-policy --set-timeslice` knows. NVIDIA publishes no
durations: all but the default are assumed."""


def to_ns(seconds: float) -> int:
    """Nanoseconds, rounded."""
    return round(seconds * NS_PER_S)


@dataclass(frozen=True, slots=True)
class SliceParameters:
    """Slice length, and cost of a switch between contexts of given occupancies, in nanoseconds."""

    slice_ns: int = DEFAULT_SLICE_NS
    switch_base_ns: int = SWITCH_BASE_NS
    switch_occupancy_ns: int = SWITCH_OCCUPANCY_NS

    def switch_ns(self, outgoing: float, incoming: float) -> int:
        """The cost of a switch: half of what depends on occupancy is saving, half restoring."""
        mean = (outgoing + incoming) / 2
        return self.switch_base_ns + round(self.switch_occupancy_ns * mean)
