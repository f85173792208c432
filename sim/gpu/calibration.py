"""A calibration: how one GPU shares its time, as `gpuplugin calibrate` measured it, in a file.

It takes the place of what a model's profile says, for the GPUs of that model.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from gpuplugin.config.document import parse_document
from gpuplugin.config.loaded import ConfigError
from gpuplugin.config.problems import checked
from sim.gpu.faults import ScenarioModel
from sim.gpu.profiles import TimeSlice, UnknownModel, load_profile

if TYPE_CHECKING:
    from sim.gpu.profiles import Profile

FORMAT = 1


class CannotUse(Exception):
    """The calibration cannot be used; the text names the file, and what is wrong."""


class Spread(ScenarioModel):
    """A figure: the median of `count` samples, and their quartiles."""

    median: Annotated[float, Field(ge=0)]
    low: Annotated[float, Field(ge=0)]
    high: Annotated[float, Field(ge=0)]
    count: Annotated[int, Field(ge=1)]


class MeasuredSlices(ScenarioModel):
    """Slice lengths in microseconds, by level; a level that was not measured is left out."""

    default: Spread
    short: Spread | None = None
    medium: Spread | None = None
    long: Spread | None = None


class MeasuredSwitches(ScenarioModel):
    """Switch costs in microseconds: with one warp on the GPU, and with the GPU full."""

    low: Spread
    full: Spread


class MeasuredMps(ScenarioModel):
    """The MPS share of a command: how much longer two take side by side than one, less 1."""

    share: Annotated[float, Field(ge=0, le=1)]
    command: str
    alone_s: Annotated[float, Field(gt=0)]
    beside_s: Annotated[float, Field(gt=0)]


class Calibration(ScenarioModel):
    """What was measured on one GPU.

    `model` is the shipped model that is closest to it. `other_work` is the share of the time that a
    third process took meanwhile. `lost_stamps` were not kept; what they would have bounded is left
    out of the figures.
    """

    format: Literal[1]
    measured_on: date
    model: str
    product: str
    driver_version: str
    slice_us: MeasuredSlices
    switch_us: MeasuredSwitches
    context_mib: Annotated[float, Field(ge=0)]
    mps: MeasuredMps | None = None
    other_work: Annotated[float, Field(ge=0, le=1)] = 0.0
    lost_stamps: Annotated[int, Field(ge=0)] = 0
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _model_is_known(self) -> Calibration:
        try:
            load_profile(self.model)
        except UnknownModel as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def time_slice(self) -> TimeSlice:
        slices, switches = self.slice_us, self.switch_us
        return TimeSlice(
            slice_us=slices.default.median,
            switch_base_us=switches.low.median,
            switch_occupancy_us=max(0.0, switches.full.median - switches.low.median),
            short_us=None if slices.short is None else slices.short.median,
            medium_us=None if slices.medium is None else slices.medium.median,
            long_us=None if slices.long is None else slices.long.median,
        )


def calibrated(profile: Profile, calibration: Calibration | None) -> Profile:
    """The profile of a model with what was measured in place of what is shipped; None: as it is."""
    if calibration is None:
        return profile
    source = (
        f"measured on this GPU on {calibration.measured_on}, "
        f"with driver {calibration.driver_version or 'unknown'}"
    )
    changes: dict[str, object] = {
        "time_slice": calibration.time_slice,
        "context_mib": calibration.context_mib,
        "sources": {**profile.sources, "time_slice": source},
        "calibrated": True,
    }
    return profile.model_copy(update=changes)


def load_calibration(path: str, model: str | None = None) -> Calibration:
    """Read a file that `gpuplugin calibrate` wrote.

    Raises:
        CannotUse: with each key that is wrong; or it is of another model than `model`.
    """
    try:
        text = Path(path).read_text("utf-8")
        found = checked(parse_document(text, path), Calibration)
    except (OSError, UnicodeDecodeError) as error:
        raise CannotUse(f"calibration {path} cannot be read: {error}") from error
    except ConfigError as error:
        raise CannotUse(f"calibration {path} cannot be used:\n{error}") from None
    if model is not None and found.model != model:
        raise CannotUse(
            f"calibration {path} is of a {found.model}, not of a {model}: measure that one with "
            f"'gpuplugin calibrate', or leave the calibration out"
        )
    return found
