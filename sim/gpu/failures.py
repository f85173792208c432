"""Failures by rate: how often GPUs break, drawn from distributions, and how they are mended.

Published rates are in docs/simulation.md; a scenario says which it means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sim.gpu.faults import GpuHappening, Part, Recovery

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

HOUR_S = 3600.0


class Lemons(Part):
    """A few GPUs fail far more often: a `share` of them, `factor` times as often."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    factor: Annotated[float, Field(ge=1)] = 30.0


class Repair(Part):
    """After a time (log-normal around `median_s` with `sigma`) `what` befalls the same GPU."""

    median_s: Annotated[float, Field(gt=0)]
    sigma: Annotated[float, Field(ge=0, le=3)] = 0.5
    what: GpuHappening = Field(default_factory=Recovery, discriminator="kind")


class Failures(Part):
    """`what` befalls each GPU of the node, once in `mtbf_h` GPU-hours on average.

    `distribution` of the times between: `exponential`, or `weibull` with `shape` (below 1: early
    failures). `scope`: `gpu` hits GPUs one by one; `host` all GPUs of the node together (then
    `mtbf_h` counts hours of the node); `switch` those of one NUMA node together.
    """

    what: GpuHappening = Field(discriminator="kind")
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
    """How long this repair takes."""
    return random.lognormvariate(math.log(repair.median_s), repair.sigma)
