"""What `sim share` is asked: equal clients on one GPU, and the parts of it that they share.

How long it then takes is found in `share`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from hal import TimeSliceLevel
from sim.gpu.compute.parameters import NS_PER_MS
from sim.gpu.memory import DEFAULT_CONTEXT_BYTES
from sim.gpu.partition import instance_memory_bytes
from sim.gpu.profiles import Profile, load_profile, model_names, slice_parameters

if TYPE_CHECKING:
    from sim.gpu.compute.parameters import SliceParameters
    from sim.gpu.profiles import MigProfile

MOST_CLIENTS = 256
SHORTEST_BUSY_MS = 0.01
"""A launch alone takes some microseconds; shorter work would simulate launches, not slices."""
LONGEST_MS = 3_600_000.0
GIB = 1024**3
_MIG_SLICES = 7


class WrongPlan(ValueError):
    """Values that make no plan; the text says which, and what to do."""


class Mechanism(StrEnum):
    """How the clients share the GPU."""

    TIME_SLICING = "time-slicing"
    MPS = "mps"
    MIG = "mig"
    EXCLUSIVE = "exclusive"


@dataclass(frozen=True, slots=True)
class SharePlan:
    """`clients` equal closed loops: `busy_ms` of GPU work (alone), then `idle_ms` off the GPU.

    `idle_ms` is a mean: see `share`. `occupancy` (0 to 1) is how much of the GPU the work fills,
    `memory_gib` what each client holds beside its context. `level` None is the default one.

    Raises:
        WrongPlan: values out of range, or a mechanism or level that the model does not have.
        UnknownModel: with the names that there are.
    """

    model: str
    clients: int
    busy_ms: float
    idle_ms: float = 0.0
    occupancy: float = 1.0
    memory_gib: float = 0.0
    mechanism: Mechanism = Mechanism.TIME_SLICING
    level: TimeSliceLevel | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_range("clients", self.clients, 1, MOST_CLIENTS)
        _check_range("busy-ms", self.busy_ms, SHORTEST_BUSY_MS, LONGEST_MS)
        _check_range("idle-ms", self.idle_ms, 0, LONGEST_MS)
        _check_range("occupancy", self.occupancy, 0, 1)
        _check_range("memory-gib", self.memory_gib, 0, 1024)
        profile = self.profile
        if self.mechanism is Mechanism.MIG and not profile.mig:
            models = ", ".join(name for name in model_names() if load_profile(name).mig)
            raise WrongPlan(f"{self.model} has no MIG; take one of: {models}")
        if self.level is None:
            return
        if self.mechanism is not Mechanism.TIME_SLICING:
            raise WrongPlan(
                f"a time-slice level has no meaning with {self.mechanism}: leave --level out, "
                f"or share by {Mechanism.TIME_SLICING}"
            )
        if not profile.has_levels:
            raise WrongPlan(f"{self.model} has no time-slice levels: leave --level out")

    @property
    def profile(self) -> Profile:
        """The GPU model."""
        return load_profile(self.model)

    @property
    def busy_ns(self) -> int:
        """A client's work, alone on the whole GPU."""
        return round(self.busy_ms * NS_PER_MS)

    @property
    def idle_ns(self) -> int:
        """Time off the GPU between two works, on average."""
        return round(self.idle_ms * NS_PER_MS)

    @property
    def client_bytes(self) -> int:
        """Memory that a client takes, its context included."""
        return DEFAULT_CONTEXT_BYTES + round(self.memory_gib * GIB)

    @property
    def slice_parameters(self) -> SliceParameters:
        """How the GPU slices time."""
        return slice_parameters(self.profile, self.level or TimeSliceLevel.DEFAULT)


@dataclass(frozen=True, slots=True)
class Part:
    """A GPU or one of its MIG devices, and what work on it is like.

    `work_ns` and `occupancy` are of a client's work there; `clients` are the numbers of those that
    share the part, from 0.
    """

    memory_bytes: int
    reserved_bytes: int
    work_ns: int
    occupancy: float
    clients: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Division:
    """The parts that clients run on; `mig` is the MIG profile of all of them, if they are MIG's."""

    parts: tuple[Part, ...]
    mig: str | None = None


def divide(plan: SharePlan) -> Division:
    """The whole GPU; with MIG, the largest instances of which there is one for each client.

    With more clients than the smallest instances allow, several share an instance.
    """
    profile = plan.profile
    everybody = tuple(range(plan.clients))
    if plan.mechanism is not Mechanism.MIG:
        reserved = profile.memory_reserved_bytes or 0
        whole = Part(profile.memory_bytes, reserved, plan.busy_ns, plan.occupancy, everybody)
        return Division((whole,))
    mig = _instances_for(plan.clients, profile)
    fraction = _fraction(mig, profile)
    work_ns = max(plan.busy_ns, math.ceil(plan.busy_ns * plan.occupancy / fraction))
    return Division(
        tuple(
            Part(
                memory_bytes=instance_memory_bytes(mig, profile),
                reserved_bytes=0,
                work_ns=work_ns,
                occupancy=min(1.0, plan.occupancy / fraction),
                clients=everybody[instance :: mig.instances],
            )
            for instance in range(min(plan.clients, mig.instances))
        ),
        mig.profile,
    )


def _instances_for(clients: int, profile: Profile) -> MigProfile:
    # Profiles with a suffix have the same SMs and memory, and media engines that no client needs.
    plain = [mig for mig in profile.mig if "+" not in mig.profile]
    enough = [mig for mig in plain if mig.instances >= clients]
    if not enough:
        return max(plain, key=lambda mig: mig.instances)
    return max(
        enough, key=lambda mig: (_fraction(mig, profile), instance_memory_bytes(mig, profile))
    )


def _fraction(mig: MigProfile, profile: Profile) -> float:
    """Share of the GPU's SMs; where no source gives them, of its seven slices."""
    if mig.sm is None or profile.sm_count is None:
        return int(mig.profile.partition("g.")[0]) / _MIG_SLICES
    return mig.sm / profile.sm_count


def _check_range(name: str, value: float, least: float, most: float) -> None:
    # So written, it refuses NaN, too.
    if not least <= value <= most:
        raise WrongPlan(f"--{name} is {value:g}: give a number from {least:g} to {most:g}")
