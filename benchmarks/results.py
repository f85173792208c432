"""What a run found: samples to estimates with intervals, measurements, ratios to floors, and JSON.

Pure but for reading a file: no clock, no hidden chance. Judging is done in `targets`, showing in
`show` and `plot`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from random import Random
from typing import TYPE_CHECKING, Literal, TypeAlias

from pydantic import ConfigDict, TypeAdapter, ValidationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

CONFIDENCE = 0.95
RESAMPLES = 1000
FEWEST_ROUNDS = 6
"""The extremes of five samples hold their median in 94 % of all cases: five are too few."""

Rounds: TypeAlias = "Sequence[Sequence[float]]"
"""Samples by round; what was measured beside each other has the same round."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval; None is an end that so few samples cannot give."""

    low: float | None
    high: float | None

    def overlaps(self, other: Interval) -> bool:
        """True unless one lies wholly above the other; an open end reaches everywhere."""
        return not (_below(self.high, other.low) or _below(other.high, self.low))


@dataclass(frozen=True, slots=True)
class Estimate:
    value: float
    interval: Interval


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the ordered samples lie, interpolated.

    Raises:
        ValueError: no samples.
    """
    if not ordered:
        raise ValueError("no samples, no quantile")
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def estimate(samples: Iterable[float], share: float, confidence: float = CONFIDENCE) -> Estimate:
    """A quantile and an interval that needs no idea of the distribution.

    The interval lies between two of the samples: how many of `n` are below the true quantile is
    binomial (n, share), so the samples whose ranks hold the middle `confidence` of it hold the
    quantile (David and Nagaraja, Order Statistics, 3rd ed., section 7.1). Samples are taken for
    independent.

    Raises:
        ValueError: no samples.
    """
    ordered = sorted(samples)
    low, high = interval_ranks(len(ordered), share, confidence)
    interval = Interval(
        ordered[low] if low is not None else None, ordered[high] if high is not None else None
    )
    value = quantile(ordered, share)
    if interval.low is not None:
        # Between the last two of a few samples: the interval knows better.
        value = max(value, interval.low)
    return Estimate(value, interval)


def interval_ranks(
    count: int, share: float, confidence: float = CONFIDENCE
) -> tuple[int | None, int | None]:
    """Ranks, from 0, of the ordered samples that bound a quantile; None where there is none.

    At most half of what `confidence` leaves is lost on each side.
    """
    tail = (1 - confidence) / 2
    spread = math.sqrt(count * share * (1 - share))
    first = max(0, math.floor(count * share - 12 * spread) - 1)
    last = min(count, math.ceil(count * share + 12 * spread) + 1)
    low: int | None = None
    high: int | None = None
    below = 0.0
    for successes in range(first, last + 1):
        # `below` is P(fewer than `successes` samples are under the quantile).
        if below <= tail and successes > 0:
            low = successes - 1
        below += _binomial(count, share, successes)
        if high is None and 1 - below <= tail + 1e-12 and successes < count:
            high = successes
    return low, high


def ratio(
    samples: Rounds, floor: Rounds, share: float, seed: int, confidence: float = CONFIDENCE
) -> Estimate:
    """A quantile of `samples` over that of `floor`, with an interval by bootstrap over rounds.

    Rounds are resampled in pairs, because a disturbance affects both halves of a round.
    From fewer rounds than `FEWEST_ROUNDS` no interval is made.
    For a median the estimate is the median of the rounds' own ratios of medians; for any other
    share the samples of all rounds are put together first, because a round has too few of them.

    Raises:
        ValueError: no rounds, or not as many of one as of the other.
    """
    if not samples or len(samples) != len(floor):
        raise ValueError(f"{len(samples)} rounds and {len(floor)} of the floor: they go in pairs")
    chance = Random(seed)
    resamples = RESAMPLES if len(samples) >= FEWEST_ROUNDS else 0
    if share == 0.5:
        ratios = [_ratio(one, other, share) for one, other in zip(samples, floor, strict=True)]
        drawn = [_median(chance.choices(ratios, k=len(ratios))) for _ in range(resamples)]
        return Estimate(_median(ratios), _middle(drawn, confidence))
    pairs = list(zip(samples, floor, strict=True))
    drawn = [_pooled(chance.choices(pairs, k=len(pairs)), share) for _ in range(resamples // 4)]
    return Estimate(_pooled(pairs, share), _middle(drawn, confidence))


def _pooled(pairs: Sequence[tuple[Sequence[float], Sequence[float]]], share: float) -> float:
    return _ratio(
        [value for one, _ in pairs for value in one],
        [value for _, other in pairs for value in other],
        share,
    )


def _ratio(samples: Sequence[float], floor: Sequence[float], share: float) -> float:
    return quantile(sorted(samples), share) / quantile(sorted(floor), share)


def _median(values: Iterable[float]) -> float:
    return quantile(sorted(values), 0.5)


def _middle(drawn: Iterable[float], confidence: float) -> Interval:
    ordered = sorted(drawn)
    if not ordered:
        return Interval(None, None)
    tail = (1 - confidence) / 2
    return Interval(quantile(ordered, tail), quantile(ordered, 1 - tail))


def _binomial(count: int, share: float, successes: int) -> float:
    """P(exactly so many of `count`), by logarithms: the factors alone would overflow."""
    if share in (0.0, 1.0):
        return float(successes == count * share)
    return math.exp(
        math.lgamma(count + 1)
        - math.lgamma(successes + 1)
        - math.lgamma(count - successes + 1)
        + successes * math.log(share)
        + (count - successes) * math.log1p(-share)
    )


def _below(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and one < other


SCHEMA = 2
"""Version of the JSON: another one cannot be read."""

Statistic: TypeAlias = Literal["p50", "p99", "rate"]


class CannotRead(Exception):
    """A file that holds no run; the text says what is wrong where."""


@dataclass(frozen=True, slots=True)
class Ratio:
    floor: str
    of: Statistic
    value: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class Verdict:
    target: str
    met: bool


@dataclass(frozen=True, slots=True)
class Measurement:
    """One thing that was measured `n` times.

    `subject` is whose it is: an engine, a plugin, a floor. Figures with one `family` are one thing
    in several sizes, of which a table shows the worst. A unit that ends in `/s` is better when
    larger, any other when smaller. `p99` is None where there is only one number.
    """

    suite: str
    case: str
    subject: str
    unit: str
    n: int
    p50: Estimate
    p99: Estimate | None = None
    ratios: tuple[Ratio, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    family: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """Identifies it across runs."""
        return self.suite, self.case, self.subject

    @property
    def larger_is_better(self) -> bool:
        return self.unit.endswith("/s")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured: figures of different machines are not to be compared."""

    cpu: str
    cores: int
    kernel: str
    python: str
    libraries: dict[str, str]
    load: tuple[float, float] = (0.0, 0.0)
    """Processes that ran or wanted to, in the minute before the run and in its last one."""


@dataclass(frozen=True, slots=True)
class Run:
    """A whole run; `date` is in UTC (ISO 8601), `notes` is what a reader has to know."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    schema: int
    date: str
    seed: int
    options: tuple[str, ...]
    machine: Machine
    notes: tuple[str, ...]
    figures: tuple[Measurement, ...]


_RUN = TypeAdapter(Run)


def as_json(run: Run) -> str:
    return _RUN.dump_json(run, indent=1).decode()


def read_run(path: Path) -> Run:
    """The run in a file.

    Raises:
        CannotRead: no such file, or not a run of this version.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CannotRead(f"{path} cannot be read: {error}") from error
    try:
        run = _RUN.validate_json(text)
    except ValidationError as error:
        raise CannotRead(f"{path} is not a run of the benchmarks: {_problems(error)}") from error
    if run.schema != SCHEMA:
        raise CannotRead(f"{path} has schema {run.schema}, this program reads {SCHEMA}")
    return run


def _problems(error: ValidationError) -> str:
    shown = [
        f"{'.'.join(map(str, details['loc'])) or 'the file'}: {details['msg']}"
        for details in error.errors()[:3]
    ]
    more = error.error_count() - len(shown)
    return "; ".join([*shown, *([f"and {more} more"] if more else [])])


_FEWEST_FOR_P99 = 100


def measurement(
    suite: str,
    case: str,
    subject: str,
    unit: str,
    rounds: Rounds,
    seed: int,
    floors: Mapping[str, Rounds] | None = None,
    *,
    p99_floors: Collection[str] = (),
    of: Statistic = "p50",
    family: str = "",
) -> Measurement:
    """A figure of samples by round, with the ratio of its median (`of`) to those of floors.

    For floors in `p99_floors` the 99th percentiles are compared, too.
    """
    samples = list(chain.from_iterable(rounds))
    ratios = []
    for name, floor in (floors or {}).items():
        found = ratio(rounds, floor, 0.5, seed)
        ratios.append(Ratio(name, of, found.value, found.interval))
        if name in p99_floors:
            found = ratio(rounds, floor, 0.99, seed)
            ratios.append(Ratio(name, "p99", found.value, found.interval))
    p50 = estimate(samples, 0.5)
    p99 = estimate(samples, 0.99) if len(samples) >= _FEWEST_FOR_P99 else None
    return Measurement(
        suite, case, subject, unit, len(samples), p50, p99, tuple(ratios), family=family
    )
