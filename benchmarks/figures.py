"""From samples by round to figures: what every suite does with what it measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from benchmarks.results import Figure, Ratio
from benchmarks.stats import Estimate, Interval, estimate, ratio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.results import Statistic
    from benchmarks.stats import Rounds

_FEWEST_FOR_P99 = 100


@dataclass(frozen=True, slots=True)
class Named:
    """What a figure is called, and its unit; see `benchmarks.results.Figure`."""

    suite: str
    case: str
    subject: str
    unit: str
    family: str = ""


@dataclass(frozen=True, slots=True)
class Floors:
    """What figures are held against: samples by floor. With `p99` that is compared, too."""

    rounds: Mapping[str, Rounds] = field(default_factory=dict)
    p99: frozenset[str] = frozenset()
    of: Statistic = "p50"


def figure(named: Named, rounds: Rounds, seed: int, floors: Floors | None = None) -> Figure:
    """A figure of samples by round, in the unit of `named`, and its ratios to floors."""
    against = floors or Floors()
    samples = list(chain.from_iterable(rounds))
    ratios = []
    for name, floor in against.rounds.items():
        found = ratio(rounds, floor, 0.5, seed)
        ratios.append(Ratio(name, against.of, found.value, found.interval))
        if name in against.p99:
            found = ratio(rounds, floor, 0.99, seed)
            ratios.append(Ratio(name, "p99", found.value, found.interval))
    return Figure(
        suite=named.suite,
        case=named.case,
        subject=named.subject,
        unit=named.unit,
        n=len(samples),
        p50=estimate(samples, 0.5),
        p99=estimate(samples, 0.99) if len(samples) >= _FEWEST_FOR_P99 else None,
        ratios=tuple(ratios),
        family=named.family,
    )


def single(named: Named, value: float) -> Figure:
    """A figure that is one number, without an interval."""
    return Figure(
        named.suite,
        named.case,
        named.subject,
        named.unit,
        1,
        Estimate(value, Interval(None, None)),
        family=named.family,
    )


def one_round_each(samples: Sequence[float]) -> Rounds:
    """Samples that were taken in turns with those of a floor, one in each round."""
    return [[sample] for sample in samples]
