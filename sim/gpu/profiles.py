"""GPU models: their profiles (data in `sim/profiles/*.yaml`) and the MIG partitions they allow."""

from __future__ import annotations

import uuid as uuids
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from hal import GIB, MigAttributes, MigDevice, TimeSliceLevel
from sim.gpu.scheduler import LEVEL_SLICES_NS, NS_PER_US, TEGRA_SLICE_NS, SliceParameters

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from hal import Gpu


_FIRST_WITH_LEVELS = (7, 5)
"""Turing: the driver knows time-slice levels from it on."""


_FIRST_WITH_FABRIC = (9, 0)
"""Hopper: NVML reports the state of the fabric from it on."""


class _Facts(BaseModel):
    """Immutable facts; an unknown key in a file is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Board(_Facts):
    """What is printed on the board or stored in it; None where no source says."""

    vbios: str | None = None
    part_number: str | None = None
    gpu_part_number: str | None = None
    pci_subsystem_id: int | None = None
    addressing: Literal["none", "hmm", "ats"] | None = None
    bar1_bytes: int | None = None
    memory_banks: int | None = None
    """Banks of memory whose rows can be remapped."""


class Power(_Facts):
    idle: float | None
    default_limit: float | None
    min_limit: float | None
    max_limit: float | None


class Clocks(_Facts):
    sm_max: int | None
    sm_idle: int | None
    memory: int | None
    video_max: int | None = None
    video_idle: int | None = None


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


class Engines(_Facts):
    """How many engines of each kind a GPU instance has."""

    copy_engines: Annotated[int, Field(alias="copy")]
    decoder: int
    jpeg: int
    ofa: int


class MigProfile(_Facts):
    """One MIG profile: how many instances fit, and what each has."""

    profile: str
    instances: int
    sm: int | None
    memory_mib: int | None
    gi_profile_id: int | None
    engines: Engines | None = None


class TimeSlice(_Facts):
    """Measured costs of time slicing on this model; None: see `sim.gpu.scheduler`.

    Their source is `sources["time_slice"]` of the profile, which is there if anything was measured.
    """

    slice_us: float | None = None
    switch_base_us: float | None = None
    switch_occupancy_us: float | None = None
    short_us: float | None = None
    medium_us: float | None = None
    long_us: float | None = None

    def of_level(self, level: TimeSliceLevel) -> float | None:
        """The measured slice of a level in microseconds; None: nobody measured it."""
        match level:
            case TimeSliceLevel.DEFAULT:
                return self.slice_us
            case TimeSliceLevel.SHORT:
                return self.short_us
            case TimeSliceLevel.MEDIUM:
                return self.medium_us
            case TimeSliceLevel.LONG:
                return self.long_us


class Profile(_Facts):
    """A GPU model; with `tegra` the GPU of a system on a chip, which has a scheduler of its own.

    With `unified_memory` it uses the host's memory, and NVML reports none of it. `context_mib` is
    what a context takes, where that was measured; `calibrated` says that it and `time_slice` were
    measured on the GPU in question (`sim.gpu.calibration`).
    """

    product: str
    architecture: str
    compute_capability: tuple[int, int]
    pci_device_id: int | None
    board: Board = Board()
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
    unified_memory: bool = False
    time_slice: TimeSlice = TimeSlice()
    context_mib: float | None = None
    calibrated: bool = False
    bus_ids: tuple[str, ...]
    sources: dict[str, str]

    @property
    def has_fabric(self) -> bool:
        """True if it registers with an NVLink fabric: with NVLink, from Hopper on."""
        return self.nvlink is not None and self.compute_capability >= _FIRST_WITH_FABRIC

    @property
    def slices_measured(self) -> bool:
        """True if somebody published how this model, or its scheduler, slices time."""
        return "time_slice" in self.sources

    @property
    def context_bytes(self) -> int:
        """What a context takes of the memory before its first allocation."""
        mib = USUAL_CONTEXT_MIB if self.context_mib is None else self.context_mib
        return round(mib * MIB)

    @property
    def has_levels(self) -> bool:
        """True if the driver has time-slice levels: not before Turing, and not on Tegra."""
        return self.compute_capability >= _FIRST_WITH_LEVELS and not self.tegra


USUAL_CONTEXT_MIB = 300.0
"""What a context takes before its first allocation: 100 MiB for bare CUDA on a T4, 250 to 500 MiB
on larger GPUs; about 300 MiB is what most reports name."""


class UnknownModel(Exception):
    def __init__(self, model: str) -> None:
        super().__init__(f"no GPU model is called {model!r}; known: {', '.join(model_names())}")


def model_names() -> tuple[str, ...]:
    files = (entry.name for entry in _folder().iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml")))


@cache
def load_profile(model: str) -> Profile:
    """The profile of a model; raises `UnknownModel` with the names that there are."""
    if model not in model_names():
        raise UnknownModel(model)
    text = _folder().joinpath(f"{model}.yaml").read_text("utf-8")
    return Profile.model_validate(yaml.safe_load(text))


def slice_parameters(
    profile: Profile, level: TimeSliceLevel = TimeSliceLevel.DEFAULT
) -> SliceParameters:
    """How a GPU of this model slices time at a level; no profile has measured levels as shipped."""
    usual, own = SliceParameters(), profile.time_slice
    slice_ns = LEVEL_SLICES_NS[level]
    if level is TimeSliceLevel.DEFAULT and profile.tegra:
        slice_ns = TEGRA_SLICE_NS
    return SliceParameters(
        slice_ns=_ns(own.of_level(level), slice_ns),
        switch_base_ns=_ns(own.switch_base_us, usual.switch_base_ns),
        switch_occupancy_ns=_ns(own.switch_occupancy_us, usual.switch_occupancy_ns),
    )


def slices_from(model: str, profile: Profile) -> str:
    """Where the slices and switches of a model come from."""
    if not profile.slices_measured:
        return (
            f"Slices and switches were never measured on {model}: they are those of an A100 and of "
            "RTX 30 to 50."
        )
    source = profile.sources["time_slice"]
    if profile.calibrated:
        return f"Slices and switches were {source}."
    return f"Slices and switches of {model}: {source}."


def _ns(value_us: float | None, usual_ns: int) -> int:
    return usual_ns if value_us is None else round(value_us * NS_PER_US)


def _folder() -> resources.abc.Traversable:
    return resources.files("sim").joinpath("profiles")


MIB = 1024**2
COMPUTE_SLICES = 7
MEMORY_SLICES = 8
"""Of every GPU that can be partitioned, as NVIDIA's MIG user guide counts them."""


class CannotPartition(Exception):
    """The GPU model does not allow these MIG devices; the text says why."""


def check_partition(model: str, profile: Profile, wanted: Sequence[str]) -> None:
    """Raise `CannotPartition` for unknown MIG profiles, or more slices than a GPU has."""
    known = [one.profile for one in profile.mig]
    for name in wanted:
        if name not in known:
            raise CannotPartition(
                f"{model} has no MIG profile {name!r}; known: {', '.join(known) or 'none'}"
            )
    slices = sum(int(name.partition("g.")[0]) for name in wanted)
    if slices > COMPUTE_SLICES:
        raise CannotPartition(
            f"the MIG profiles of {model} take {slices} slices, a GPU has {COMPUTE_SLICES}"
        )


def partitioned(
    gpu: Gpu, wanted: Sequence[str] | None, profile: Profile, generator: random.Random
) -> Gpu:
    """The GPU with new devices of allowed MIG profiles (`check_partition`); None: MIG off."""
    if wanted is None:
        return replace(gpu, mig_enabled=False, mig_devices=())
    devices = tuple(
        mig_device(gpu, name, (index, index + 1), profile, generator)
        for index, name in enumerate(wanted)
    )
    return replace(gpu, mig_enabled=True, mig_devices=devices)


def mig_device(
    gpu: Gpu, name: str, place: tuple[int, int], profile: Profile, generator: random.Random
) -> MigDevice:
    """A new MIG device of an allowed profile; `place` is its index and its GPU instance."""
    index, instance = place
    mig = next(one for one in profile.mig if one.profile == name)
    memory_bytes = instance_memory_bytes(mig, profile)
    return MigDevice(
        uuid=f"MIG-{uuids.UUID(int=generator.getrandbits(128), version=4)}",
        index=index,
        gpu_instance=instance,
        compute_instance=0,
        profile=name,
        memory_bytes=memory_bytes,
        device_nodes=_device_nodes(gpu.index, instance),
        attributes=_attributes(mig, memory_bytes),
    )


def slices_of(profile: str) -> int:
    """The 3 of `3g.40gb`."""
    return int(profile.partition("g.")[0])


def engines_of(mig: MigProfile) -> Engines:
    """As the profile says; where no source does, a copy engine for each slice and no others."""
    assumed = {"copy": slices_of(mig.profile), "decoder": 0, "jpeg": 0, "ofa": 0}
    return mig.engines or Engines.model_validate(assumed)


def _attributes(mig: MigProfile, memory_bytes: int) -> MigAttributes:
    slices, engines = slices_of(mig.profile), engines_of(mig)
    return MigAttributes(
        gpu_slices=slices,
        compute_slices=slices,
        memory_mib=memory_bytes // MIB,
        multiprocessors=mig.sm or 0,
        copy_engines=engines.copy_engines,
        decoders=engines.decoder,
        jpeg_engines=engines.jpeg,
        ofa_engines=engines.ofa,
    )


def instance_memory_bytes(mig: MigProfile, profile: Profile) -> int:
    """Memory of an instance; where no source gives it, its memory slices' share of the GPU's.

    A GPU has eight memory slices. How many an instance has is derived from the GB in its name.
    """
    if mig.memory_mib is not None:
        return mig.memory_mib * MIB
    named_gib = int(mig.profile.partition(".")[2].partition("gb")[0])
    slices = round(MEMORY_SLICES * named_gib * GIB / profile.memory_bytes)
    return profile.memory_bytes * slices // MEMORY_SLICES


def capability_minor(gpu_index: int, gpu_instance: int) -> int:
    """Of a GPU instance; the next one is that of its compute instance.

    The driver numbers capabilities so: 135 for each GPU, 9 for each GPU instance, from 3 on.
    """
    return 3 + 135 * gpu_index + 9 * gpu_instance


def _device_nodes(gpu_index: int, gpu_instance: int) -> tuple[str, ...]:
    access = capability_minor(gpu_index, gpu_instance)
    return (
        f"/dev/nvidia{gpu_index}",
        f"/dev/nvidia-caps/nvidia-cap{access}",
        f"/dev/nvidia-caps/nvidia-cap{access + 1}",
    )
