"""Quantiles, their confidence intervals, ratios to a floor. Pure: no clock, no hidden chance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CONFIDENCE = 0.95
RESAMPLES = 1000
FEWEST_ROUNDS = 6
"""The extremes of five samples hold their median in 94 % of all cases: five cannot tell enough."""

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
    """A quantile of samples with its interval."""

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

    Rounds are drawn anew in pairs, for what disturbs a machine disturbs both halves of a round.
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
