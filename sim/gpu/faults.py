"""Faults: their kinds, as a scenario spells them, at a time or by rate.

A kind is declared here, as a model in `GpuFault` or `NodeFault`; the type checker then names every
`match` that has to handle it (`sim.gpu.gpu`, `sim.node.injection`, `sim.cli.inject`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from hal import ComputeMode, FabricState
from hal.nvml.api import Code
from sim.gpu.returns import Answer, checked_call, checked_code, checked_value, value_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from random import Random


DEFAULT_LOST_AFTER_S = 2.0
"""Assumed: how long an overheated GPU still answers before it shuts itself down."""


class ScenarioModel(BaseModel):
    """A part of a scenario: immutable; an unknown key is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Seconds = Annotated[float, Field(gt=0)]


class XidFault(ScenarioModel):
    """The driver reports an Xid, with the effects that the catalogue names.

    `mig` is the index of a MIG device of that GPU: the report names its instances. Such an Xid
    leaves the GPU as a whole alone, whatever its code: no counter moves, nothing is to be reset. A
    process dies if its scope is one. `recover` reports to clients that the fault is over.
    """

    kind: Literal["xid"] = "xid"
    xid: Annotated[int, Field(ge=1, le=999)]
    mig: Annotated[int, Field(ge=0)] | None = None


class EccFault(ScenarioModel):
    """`count` ECC errors that were found together: one event without an Xid."""

    kind: Literal["ecc"] = "ecc"
    uncorrectable: bool = False
    count: Annotated[int, Field(ge=1)] = 1


class RowRemap(ScenarioModel):
    """A row of memory is to be remapped, or that failed; no event reports it."""

    kind: Literal["row-remap"] = "row-remap"
    failed: bool = False


class LostFault(ScenarioModel):
    """The GPU stops answering, without an Xid."""

    kind: Literal["lost"] = "lost"


class Hang(ScenarioModel):
    """Calls about the GPU do not return for `for_s` seconds (None: until it recovers)."""

    kind: Literal["hang"] = "hang"
    for_s: Seconds | None = None


class ThermalShutdown(ScenarioModel):
    """Cooling failed: the GPU is at its shutdown temperature, and is lost `lost_after_s` later.

    It comes by itself, too, where load and a bad airflow (`cooling`) make a GPU that hot.
    """

    kind: Literal["thermal-shutdown"] = "thermal-shutdown"
    lost_after_s: Annotated[float, Field(ge=0)] = DEFAULT_LOST_AFTER_S


class Unplug(ScenarioModel):
    """The GPU is removed from the bus, without an Xid. Only `plug` or `replace` ends it."""

    kind: Literal["unplug"] = "unplug"


class Plug(ScenarioModel):
    """The GPU that was removed is back, after a power cycle. A failed row remap stays."""

    kind: Literal["plug"] = "plug"


class Replacement(ScenarioModel):
    """Another GPU of the same model sits in its place, with another UUID and as many partitions.

    The one that was there stays in the list as lost.
    """

    kind: Literal["replace"] = "replace"


class Repartition(ScenarioModel):
    """MIG mode with devices of these profiles (None: MIG off). The GPU's processes end."""

    kind: Literal["repartition"] = "repartition"
    mig: list[str] | None


class _Returned(ScenarioModel):
    """What `returns` and `driver-returns` have in common."""

    calls: Annotated[tuple[Annotated[str, AfterValidator(checked_call)], ...], Field(min_length=1)]
    code: Annotated[int | str, AfterValidator(checked_code)] | None = None
    value: Annotated[int | dict[str, int] | str, AfterValidator(checked_value)] | None = None
    every: Annotated[int, Field(ge=1)] = 1
    for_s: Seconds | None = None

    @model_validator(mode="after")
    def _code_or_value(self) -> Self:
        if (self.code is None) == (self.value is None):
            raise ValueError("give either a code or a value")
        return self

    @property
    def answer(self) -> Answer:
        if self.value is not None:
            return Answer(Code.SUCCESS, value_of(self.value))
        return Answer(Code[str(self.code)])


class Returns(_Returned):
    """Calls of NVML about the GPU return a code, or a value that is not the true one.

    `calls` are [groups](nvml.md#returns) of functions, functions (of all versions, where none is
    given), or `field:N` for one of the field values. `code` is a return code by name or number;
    `SUCCESS` ends the fault for these calls. `value` is a number, the members of a structure
    (`{used: 5}`), or the bytes of a text (`hex:f8 8a 41`). `mig` is the index of a MIG device:
    calls about that one. `every`: only every so many calls. It lasts for `for_s` seconds (None:
    until it recovers).
    """

    kind: Literal["returns"] = "returns"
    mig: Annotated[int, Field(ge=0)] | None = None


class ComputeModeChange(ScenarioModel):
    """The compute mode is set, as by `nvidia-smi --compute-mode`."""

    kind: Literal["compute-mode"] = "compute-mode"
    mode: ComputeMode


class Fabric(ScenarioModel):
    """The state of the GPU's registration with the NVLink fabric, and the fabric's return code.

    Until it is completed, CUDA fails on the GPU with error 802, while NVML answers. Only GPUs with
    NVSwitches, from Hopper on, have it.
    """

    kind: Literal["fabric"] = "fabric"
    state: FabricState
    code: Annotated[int | str, AfterValidator(checked_code)] = "SUCCESS"


class Recovery(ScenarioModel):
    """The GPU was reset, or the node rebooted: it responds again, without errors.

    A failed row remap and a thermal shutdown are over as well: a person has seen to them. The
    airflow of its group (`cooling`) stays as it is. Calls return the truth again, and the fabric is
    completed.
    """

    kind: Literal["recover"] = "recover"


class DriverDown(ScenarioModel):
    """The driver is unloaded: every call fails, and processes on GPUs end."""

    kind: Literal["driver-down"] = "driver-down"


class DriverUp(ScenarioModel):
    """The driver was reloaded: calls work, and no GPU waits for a reset any more."""

    kind: Literal["driver-up"] = "driver-up"


class DriverHang(ScenarioModel):
    """No call returns for `for_s` seconds (None: until `driver-up`)."""

    kind: Literal["driver-hang"] = "driver-hang"
    for_s: Seconds | None = None


class WatchBroken(ScenarioModel):
    """Waiting for events fails for `for_s` seconds (None: until `watch-mended`); the rest works."""

    kind: Literal["watch-broken"] = "watch-broken"
    for_s: Seconds | None = None


class WatchMended(ScenarioModel):
    """Events can be waited for again."""

    kind: Literal["watch-mended"] = "watch-mended"


class DriverReturns(_Returned):
    """As `returns`, for calls that are about no GPU (groups `events` and `system`).

    It lasts for `for_s` seconds (None: until `driver-up`).
    """

    kind: Literal["driver-returns"] = "driver-returns"


class ConfidentialReady(ScenarioModel):
    """Whether the node's GPUs accept work in confidential computing (`confidential_compute`)."""

    kind: Literal["confidential-ready"] = "confidential-ready"
    ready: bool


ConditionFault: TypeAlias = (
    XidFault
    | EccFault
    | RowRemap
    | LostFault
    | Hang
    | ThermalShutdown
    | Unplug
    | Plug
    | Returns
    | ComputeModeChange
    | Fabric
    | Recovery
)
"""Faults that change the condition of a GPU, and what ends them."""

GpuFault: TypeAlias = ConditionFault | Replacement | Repartition
"""Everything that can be injected into a GPU."""

NodeFault: TypeAlias = (
    DriverDown
    | DriverUp
    | DriverHang
    | DriverReturns
    | WatchBroken
    | WatchMended
    | ConfidentialReady
)
"""Everything that can be injected into the node as a whole."""

Fault: TypeAlias = GpuFault | NodeFault

FAULT: TypeAdapter[Fault] = TypeAdapter(Annotated[Fault, Field(discriminator="kind")])


def _gpu_choice(value: object) -> object:
    """One plain error where pydantic would list what is wrong with each of the alternatives."""
    indices = value if isinstance(value, list | tuple) else [value]
    sound = all(type(one) is int and one >= 0 for one in indices)
    if value is None or value == "all" or (indices and sound and len(set(indices)) == len(indices)):
        return value
    raise ValueError("an index, a list of different indices, or 'all'")


GpuChoice = Annotated[int | tuple[int, ...] | Literal["all"] | None, BeforeValidator(_gpu_choice)]


class Repeat(ScenarioModel):
    """Again every `every_s` seconds, `times` times in all."""

    every_s: Seconds
    times: Annotated[int, Field(ge=1)]


class TimedFault(ScenarioModel):
    """`what` is injected `at_s` seconds after the start, and again as `repeat` says.

    `gpu` is an index, a list of them, or "all"; a fault of the node as a whole has none. A fault
    that does not apply at its time (to a GPU that is unplugged already) is left out.
    """

    at_s: Annotated[float, Field(ge=0)]
    what: Annotated[Fault, Field(discriminator="kind")]
    # Behind `what`, so that its validator knows whether there has to be one.
    gpu: Annotated[GpuChoice, Field(validate_default=True)] = None
    repeat: Repeat | None = None

    def indices(self, gpu_count: int) -> Sequence[int]:
        """The GPUs that it applies to, of `gpu_count`; none for the node."""
        if self.gpu is None:
            return ()
        if self.gpu == "all":
            return range(gpu_count)
        return (self.gpu,) if isinstance(self.gpu, int) else self.gpu

    @field_validator("gpu")
    @classmethod
    def _gpu_as_kind_needs(cls, gpu: GpuChoice, info: ValidationInfo) -> GpuChoice:
        what = info.data.get("what")
        if what is None:
            return gpu  # its own error says enough
        if isinstance(what, NodeFault) and gpu is not None:
            raise ValueError(f"{what.kind} applies to the whole node: leave this key out")
        if isinstance(what, GpuFault) and gpu is None:
            raise ValueError(f"{what.kind} applies to a GPU: an index, a list of them, or 'all'")
        return gpu


def problems(error: ValidationError) -> str:
    """Every wrong key with what is wrong about it, on one line."""
    return "; ".join(
        f"{'.'.join(map(str, details['loc']))}: {details['msg'].removeprefix('Value error, ')}"
        for details in error.errors()
    )


HOUR_S = 3600.0


class Lemons(ScenarioModel):
    """A few GPUs fail far more often: a `share` of them, `factor` times as often."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    factor: Annotated[float, Field(ge=1)] = 30.0


class Repair(ScenarioModel):
    """After a time (log-normal around `median_s` with `sigma`) `what` is injected into that GPU."""

    median_s: Annotated[float, Field(gt=0)]
    sigma: Annotated[float, Field(ge=0, le=3)] = 0.5
    what: GpuFault = Field(default_factory=Recovery, discriminator="kind")


class Failures(ScenarioModel):
    """`what` is injected into each GPU of the node, once in `mtbf_h` GPU-hours on average.

    `distribution` of the times between: `exponential`, or `weibull` with `shape` (below 1: early
    failures). `scope`: `gpu` hits GPUs one by one; `host` all GPUs of the node together (then
    `mtbf_h` counts hours of the node); `switch` those of one NUMA node together.
    """

    what: GpuFault = Field(discriminator="kind")
    mtbf_h: Annotated[float, Field(gt=0)]
    distribution: Literal["exponential", "weibull"] = "exponential"
    shape: Annotated[float, Field(gt=0, le=10)] = 0.7
    scope: Literal["gpu", "host", "switch"] = "gpu"
    lemons: Lemons | None = None
    repair: Repair | None = None


@dataclass(frozen=True, slots=True)
class Victims:
    """GPUs (by index) that are hit together, `factor` times as often as others."""

    indices: tuple[int, ...]
    factor: float


def victims_of(failures: Failures, numa_nodes: list[int | None], random: Random) -> list[Victims]:
    """Who is hit together; `numa_nodes` are those of the GPUs, by index."""
    indices = range(len(numa_nodes))
    if failures.scope == "host":
        return [Victims(tuple(indices), 1.0)]
    if failures.scope == "switch":
        groups = dict.fromkeys(numa_nodes)
        return [
            Victims(tuple(index for index in indices if numa_nodes[index] == group), 1.0)
            for group in groups
        ]
    lemons = failures.lemons
    return [
        Victims((index,), lemons.factor if lemons and random.random() < lemons.share else 1.0)
        for index in indices
    ]


def gaps_s(failures: Failures, factor: float, random: Random) -> Iterator[float]:
    """Seconds between failures, without end; their mean is `mtbf_h` divided by `factor`."""
    mean_s = failures.mtbf_h * HOUR_S / factor
    scale_s = mean_s / math.gamma(1 + 1 / failures.shape)
    while True:
        if failures.distribution == "exponential":
            yield random.expovariate(1 / mean_s)
        else:
            yield random.weibullvariate(scale_s, failures.shape)


def repair_time_s(repair: Repair, random: Random) -> float:
    return random.lognormvariate(math.log(repair.median_s), repair.sigma)
