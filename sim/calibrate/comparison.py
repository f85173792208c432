"""How far what is shipped for a model is off, by what was measured on a GPU of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from hal import TimeSliceLevel
from sim.gpu.profiles import USUAL_CONTEXT_MIB, load_profile, slice_parameters
from sim.gpu.scheduler import NS_PER_US
from sim.gpu.schedulers import MPS_SHARE_AT_FULL_OCCUPANCY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sim.gpu.calibration import Calibration, Spread


@dataclass(frozen=True, slots=True)
class Compared:
    """One number, measured and shipped; `low` and `high` are quartiles of what was measured.

    `off` is shipped over measured, less 1; None where nothing was measured but 0. `assumed` says
    that no source is behind the shipped one.
    """

    what: str
    measured: float
    low: float | None
    high: float | None
    shipped: float
    assumed: bool

    @property
    def off(self) -> float | None:
        return self.shipped / self.measured - 1 if self.measured else None

    def as_data(self) -> dict[str, object]:
        return {**asdict(self), "off": self.off}


def compared(calibration: Calibration) -> list[Compared]:
    """All that was measured, in the units that the text names."""
    return list(_compared(calibration))


def _compared(calibration: Calibration) -> Iterator[Compared]:
    profile = load_profile(calibration.model)
    slices = calibration.slice_us
    spreads = (slices.default, slices.short, slices.medium, slices.long)
    for level, spread in zip(TimeSliceLevel, spreads, strict=True):
        if spread is not None:
            shipped_us = slice_parameters(profile, level).slice_ns / NS_PER_US
            usual = level is TimeSliceLevel.DEFAULT
            assumed = not (usual and profile.slices_measured)
            yield _row(f"slice, level {level.name.lower()}, us", spread, shipped_us, assumed)
    parameters, switches = slice_parameters(profile), calibration.switch_us
    for what, spread, occupancy in (
        ("switch, one warp, us", switches.low, 0.0),
        ("switch, GPU full, us", switches.full, 1.0),
    ):
        shipped_us = parameters.switch_ns(occupancy, occupancy) / NS_PER_US
        yield _row(what, spread, shipped_us, not profile.slices_measured)
    shipped_mib = USUAL_CONTEXT_MIB if profile.context_mib is None else profile.context_mib
    yield Compared(
        "bare context, MiB", calibration.context_mib, None, None, shipped_mib, assumed=True
    )
    if calibration.mps is not None:
        yield Compared(
            "MPS share",
            calibration.mps.share,
            None,
            None,
            MPS_SHARE_AT_FULL_OCCUPANCY,
            assumed=True,
        )


def _row(what: str, spread: Spread, shipped: float, assumed: bool) -> Compared:
    return Compared(what, spread.median, spread.low, spread.high, shipped, assumed)
