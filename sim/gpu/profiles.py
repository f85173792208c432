"""GPU profiles: what a GPU of a model looks like. The data is in `sim/profiles/*.yaml`."""

from __future__ import annotations

from importlib import resources
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

from hal import TimeSliceLevel
from sim.gpu.compute.parameters import (
    LEVEL_SLICES_NS,
    NS_PER_US,
    TEGRA_SLICE_NS,
    SliceParameters,
)

_FIRST_WITH_LEVELS = (7, 5)
"""Turing: the driver knows time-slice levels from it on."""


class _Facts(BaseModel):
    """Immutable facts; an unknown key in a file is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Power(_Facts):
    """Power in watts; `idle` was measured without load."""

    idle: float | None
    default_limit: float | None
    min_limit: float | None
    max_limit: float | None


class Clocks(_Facts):
    """Clocks in MHz."""

    sm_max: int | None
    sm_idle: int | None
    memory: int | None


class Thermal(_Facts):
    """Temperatures in degrees Celsius.

    A `margin` board reports distances to `max_operating` (T.Limit): its `slowdown` and `shutdown`
    are such distances. An `absolute` board reports temperatures.
    """

    style: Literal["absolute", "margin"]
    max_operating: int | None
    slowdown: int | None
    shutdown: int | None

    @property
    def shutdown_c(self) -> float | None:
        """The temperature at which the GPU shuts itself down; None where no source says."""
        if self.shutdown is None or self.style == "absolute":
            return self.shutdown
        return None if self.max_operating is None else self.max_operating - self.shutdown

    @property
    def slowdown_c(self) -> float | None:
        """The temperature at which the clocks go down; None where no source says."""
        if self.slowdown is None or self.style == "absolute":
            return self.slowdown
        return None if self.max_operating is None else self.max_operating - self.slowdown


class NvLink(_Facts):
    """NVLink of one GPU; `mb_s_per_link` is per direction."""

    version: int | None
    links: int
    mb_s_per_link: int | None
    switches: int | None


class MigProfile(_Facts):
    """One MIG profile: how many instances fit, and what each has."""

    profile: str
    instances: int
    sm: int | None
    memory_mib: int | None
    gi_profile_id: int | None


class TimeSlice(_Facts):
    """What time slicing takes on this model, in microseconds, where it was measured on it.

    None is the value of other models: see `sim.gpu.compute.parameters`.
    """

    slice_us: float | None = None
    switch_base_us: float | None = None
    switch_occupancy_us: float | None = None


class Profile(_Facts):
    """A GPU model; with `tegra` the GPU of a system on a chip, which has a scheduler of its own."""

    product: str
    architecture: str
    compute_capability: tuple[int, int]
    pci_device_id: int | None
    memory_bytes: int
    memory_reserved_bytes: int | None
    memory_bandwidth_gb_s: int | None
    sm_count: int | None
    ecc: bool | None
    power_w: Power
    clocks_mhz: Clocks
    thermal_c: Thermal | None
    nvlink: NvLink | None
    mig: tuple[MigProfile, ...]
    tegra: bool = False
    time_slice: TimeSlice = TimeSlice()
    bus_ids: tuple[str, ...]
    sources: dict[str, str]

    @property
    def has_levels(self) -> bool:
        """True if the driver has time-slice levels: not before Turing, and not on Tegra."""
        return self.compute_capability >= _FIRST_WITH_LEVELS and not self.tegra


class UnknownModel(Exception):
    """There is no profile of this name."""

    def __init__(self, model: str) -> None:
        super().__init__(f"no GPU model is called {model!r}; known: {', '.join(model_names())}")


def model_names() -> tuple[str, ...]:
    """All models, by name."""
    files = (entry.name for entry in _folder().iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml")))


def load_profile(model: str) -> Profile:
    """The profile of a model.

    Raises:
        UnknownModel: with the names that there are.
    """
    if model not in model_names():
        raise UnknownModel(model)
    text = _folder().joinpath(f"{model}.yaml").read_text("utf-8")
    return Profile.model_validate(yaml.safe_load(text))


def slice_parameters(
    profile: Profile, level: TimeSliceLevel = TimeSliceLevel.DEFAULT
) -> SliceParameters:
    """How a GPU of this model slices time at a level; only the default level was ever measured."""
    usual, own = SliceParameters(), profile.time_slice
    slice_ns = LEVEL_SLICES_NS[level]
    if level is TimeSliceLevel.DEFAULT:
        slice_ns = _ns(own.slice_us, TEGRA_SLICE_NS if profile.tegra else slice_ns)
    return SliceParameters(
        slice_ns=slice_ns,
        switch_base_ns=_ns(own.switch_base_us, usual.switch_base_ns),
        switch_occupancy_ns=_ns(own.switch_occupancy_us, usual.switch_occupancy_ns),
    )


def _ns(value_us: float | None, usual_ns: int) -> int:
    return usual_ns if value_us is None else round(value_us * NS_PER_US)


def _folder() -> resources.abc.Traversable:
    return resources.files("sim").joinpath("profiles")
