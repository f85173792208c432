"""Runs and figures for the tests of what is made of them."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.results import SCHEMA, Estimate, Interval, Machine, Measurement, Ratio, Run, Verdict

MACHINE = Machine("A fast one", 2, "6.1", "3.11.2", {"grpcio": "1.85.1"})


def a_figure(value: float, low: float | None = None, high: float | None = None) -> Measurement:
    """A figure in microseconds without a floor."""
    return Measurement(
        "allocate", "8 x 10", "engine grpcio", "us", 100, Estimate(value, Interval(low, high))
    )


def with_ratio(figure: Measurement, value: float, low: float, high: float) -> Measurement:
    """The figure held against the empty handler."""
    ratio = Ratio("empty handler", "p50", value, Interval(low, high))
    return replace(figure, ratios=(ratio,))


def with_verdict(figure: Measurement, *, met: bool) -> Measurement:
    """The figure with one target."""
    return replace(figure, verdicts=(Verdict("p50 <= 15 us", met),))


def a_run(*figures: Measurement, notes: tuple[str, ...] = ()) -> Run:
    """A run of these figures."""
    return Run(SCHEMA, "2026-01-02T03:04:05+00:00", 1, ("allocate",), MACHINE, notes, figures)
