"""The page of a sweep: figures by setting, with their intervals, and all of them in a table."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from sim.study.html.charts import KIND_COLOURS, Chart, plot
from sim.study.html.frame import document, head_of, sections, table_of
from sim.study.sentences import counted, duration, number, percent
from sim.study.sweep import told

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sim.study.sweep import Combination, Estimate, SweepReport

_FIGURES: tuple[tuple[str, str, str, str, float, Callable[[float], str]], ...] = (
    (
        "deprived",
        "Tenants that got nothing",
        "They waited to the end, were refused, or had no request done. Slowdowns do not know them.",
        "tenants",
        1,
        number,
    ),
    (
        "slowdown_p95",
        "How slow it was for who suffered most",
        "95 of 100 requests took no longer, for the kind of tenant for which that is worst.",
        "times as long as alone",
        1,
        number,
    ),
    ("ooms", "How often memory ran out", "Allocations that did not fit.", "times", 1, number),
    (
        "wait_max_s",
        "The longest wait for devices",
        "Of pods that got them in the end.",
        "seconds",
        1,
        duration,
    ),
    (
        "utilization",
        "How busy the GPUs were",
        "Share of the time in which a kernel ran.",
        "% of the time",
        100,
        percent,
    ),
    (
        "switching_share",
        "What went into switching",
        "Share of the time with work.",
        "% of the time",
        100,
        percent,
    ),
    (
        "fairness",
        "How evenly tenants were slowed down",
        "Jain's index: 1 if all alike; who got nothing counts as 0.",
        "index",
        1,
        lambda value: f"{value:.2f}",
    ),
)
"""Key, title, how to read it, unit, factor, and how a value is written."""


def sweep_page(report: SweepReport) -> str:
    charts = [chart for figure in _FIGURES if (chart := _chart(report, *figure[:5])) is not None]
    about = (
        f"{duration(report.until_s)} of model time, {counted(len(report.seeds), 'seed')} for each "
        f"of {counted(len(report.combinations), 'combination')}. A point is the mean over the "
        "seeds, its line the 95 % interval of that mean."
    )
    return document(
        f"{report.scenario}: a sweep",
        [
            head_of(f"{report.scenario}: a sweep", about, _sentences(report), ()),
            *sections(charts),
            _table(report),
        ],
        charts,
    )


def _sentences(report: SweepReport) -> list[str]:
    lines = []
    left_out = [one for one in report.combinations if _mean(one, "deprived")]
    if left_out:
        named = "; ".join(
            f"{_told(one)}: {number(_mean(one, 'deprived') or 0)}" for one in left_out[:6]
        )
        lines.append(f"Tenants got nothing, on average over the seeds, with {named}.")
    else:
        lines.append("No tenant got nothing.")
    served = [one for one in report.combinations if not _mean(one, "deprived")]
    rated = [(value, one) for one in served if (value := _mean(one, "slowdown_p95")) is not None]
    if rated:
        best, worst = min(rated, key=_first), max(rated, key=_first)
        lines.append(
            f"Where all got something, who suffered most was slowed down least with "
            f"{_told(best[1])} ({number(best[0])} times at p95) and most with {_told(worst[1])} "
            f"({number(worst[0])} times)."
        )
    return lines


def _first(pair: tuple[float, Combination]) -> float:
    return pair[0]


def _chart(
    report: SweepReport, name: str, title: str, reading: str, unit: str, factor: float
) -> Chart | None:
    """A figure over the values of the first setting, a line for each combination of the others."""
    there = [one for one in report.combinations if one.figures[name] is not None]
    if not there:
        return None
    values = {round(_mean(one, name) or 0.0, 9) for one in there}
    if values == {0.0}:
        return Chart(name, title, f"{reading} Zero with every combination.", None)
    first, *others = report.combinations[0].settings
    series: dict[tuple[str, ...], list[Combination]] = {}
    for one in there:
        series.setdefault(tuple(str(one.settings[key]) for key in others), []).append(one)
    shown = list(series.items())[: len(KIND_COLOURS)]
    coloured = [(KIND_COLOURS[number], *one) for number, one in enumerate(shown)]
    labels = {
        key: " ".join(f"{name}={value}" for name, value in zip(others, key, strict=True))
        for key in series
    }
    traces = [
        _trace(points, first, name, factor, colour, labels[key]) for colour, key, points in coloured
    ]
    left_out = len(series) - len(shown)
    return Chart(
        name,
        title,
        reading,
        plot(
            traces,
            280,
            {"title": {"text": first}, "type": "category"},
            {"title": {"text": unit}},
        ),
        f"{left_out} more combinations are in the table." if left_out else "",
        [(colour, labels[key] or first) for colour, key, _ in coloured] if others else [],
        half=True,
    )


def _trace(
    points: Sequence[Combination], first: str, name: str, factor: float, colour: str, label: str
) -> go.Scatter:
    estimates = [one.figures[name] for one in points]
    means = [factor * (one.mean if one else 0.0) for one in estimates]
    above = [factor * (_high(one) - one.mean) if one else 0.0 for one in estimates]
    return go.Scatter(
        x=[str(one.settings[first]) for one in points],
        y=[round(mean, 6) for mean in means],
        error_y={"type": "data", "array": above, "color": colour, "thickness": 1.5},
        mode="lines+markers",
        line={"color": colour, "width": 2},
        marker={"size": 8, "color": colour},
        hovertemplate=f"{first} %{{x}} {label}: %{{y:.4g}}<extra></extra>",
    )


def _high(one: Estimate) -> float:
    return one.mean if one.high is None else one.high


def _table(report: SweepReport) -> str:
    keys = list(report.combinations[0].settings)
    header = (*keys, *(title for _, title, *_ in _FIGURES))
    rows = [
        (
            *(escape(str(one.settings[key])) for key in keys),
            *(escape(told(one.figures[name], shown)) for name, *_, shown in _FIGURES),
        )
        for one in report.combinations
    ]
    return table_of("All combinations", header, rows, "combinations")


def _mean(one: Combination, name: str) -> float | None:
    found = one.figures[name]
    return None if found is None else found.mean


def _told(one: Combination) -> str:
    return " ".join(f"{key}={value}" for key, value in one.settings.items())
