"""Numbers, intervals and verdicts as text, alike in tables, comparisons and plots."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.results import Figure, Ratio
    from benchmarks.stats import Estimate, Interval


def number(value: float) -> str:
    """Three digits that count, without an exponent."""
    if value == 0:
        return "0"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}"


def between(interval: Interval) -> str:
    """`12.1-12.9`; a question mark is an end that the samples cannot give, nothing is none."""
    if interval.low is None and interval.high is None:
        return ""
    low = "?" if interval.low is None else number(interval.low)
    high = "?" if interval.high is None else number(interval.high)
    return f"{low}-{high}"


def estimated(one: Estimate | None) -> str:
    """A value with its interval."""
    if one is None:
        return ""
    return f"{number(one.value)} {_bracketed(between(one.interval))}".strip()


def ratio(one: Ratio) -> str:
    """`1.05x empty handler [1.03-1.07]`, with the statistic if it is not the usual one."""
    of = "" if one.of == "p50" else f"{one.of} "
    return f"{of}{one.value:.2f}x {one.floor} {_bracketed(between(one.interval))}".strip()


def verdicts(figure: Figure) -> str:
    """What is promised of the figure and whether it holds."""
    return ", ".join(f"{'pass' if one.met else 'MISS'} {one.target}" for one in figure.verdicts)


def _bracketed(text: str) -> str:
    return f"[{text}]" if text else ""
