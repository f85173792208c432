"""The page of a sweep: figures by setting, with their intervals, and all of them in a table."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from sim.study.html.charts import KIND_COLOURS, NEUTRAL, Chart, legend_of, plot
from sim.study.html.frame import document, head_of, sections, table_of
from sim.study.sentences import counted, duration, number, percent
from sim.study.sweep import told

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sim.study.sweep import Combination, Estimate, SweepReport

MOST_COLOURS = 6
"""With more lines only the best and the worst have a colour."""

_NAMED = 4
_MORE_IS_BETTER = frozenset({"utilization", "fairness"})

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
        shown = sorted(left_out, key=lambda one: -(_mean(one, "deprived") or 0))[:_NAMED]
        named = "; ".join(
            f"{number(_mean(one, 'deprived') or 0)} with {_told(one)}" for one in shown
        )
        more = f"; and in {len(left_out) - len(shown)} more" if len(shown) < len(left_out) else ""
        lines.append(
            f"In {len(left_out)} of {counted(len(report.combinations), 'combination')} tenants got "
            f"nothing, on average over the seeds: {named}{more}."
        )
    else:
        lines.append("No tenant got nothing.")
    fewest = min(_mean(one, "deprived") or 0.0 for one in report.combinations)
    served = [one for one in report.combinations if (_mean(one, "deprived") or 0.0) <= fewest]
    rated = [(value, one) for one in served if (value := _mean(one, "slowdown_p95")) is not None]
    if rated:
        best, worst = min(rated, key=_first), max(rated, key=_first)
        where = (
            f"Where fewest got nothing ({number(fewest)})" if fewest else "Where all got something"
        )
        lines.append(
            f"{where}, who suffered most was slowed down least with {_told(best[1])} "
            f"({number(best[0])} times as long as alone at p95) and most with {_told(worst[1])} "
            f"({number(worst[0])} times)."
        )
    return lines


def _first(pair: tuple[float, Combination]) -> float:
    return pair[0]


def _chart(
    report: SweepReport, name: str, title: str, reading: str, unit: str, factor: float
) -> Chart | None:
    """A figure over the values of one setting, a line for each combination of the others."""
    there = [one for one in report.combinations if one.figures[name] is not None]
    if not there:
        return None
    values = {round(_mean(one, name) or 0.0, 9) for one in there}
    if values == {0.0}:
        return Chart(name, title, f"{reading} Zero with every combination.", None, half=True)
    axis, series = _series(report, name)
    lines = _few(series) if len(series) <= MOST_COLOURS else _many(series, name)
    order = list(dict.fromkeys(str(one.settings[axis]) for one in report.combinations))
    return Chart(
        name,
        title,
        reading,
        plot(
            [
                _trace(series[one.label], axis, name, factor, one)
                for one in lines
                if series[one.label]
            ],
            280,
            {
                "title": {"text": axis},
                "type": "category",
                "categoryorder": "array",
                "categoryarray": order,
            },
            {"title": {"text": unit}},
        ),
        "",
        legend_of((one.colour, one.told) for one in lines if one.told),
        half=True,
    )


@dataclass(frozen=True, slots=True)
class _Line:
    """How a series is drawn; `told` is its name in the legend, empty where it has none."""

    label: str
    told: str
    colour: str
    width: float


def _series(report: SweepReport, name: str) -> tuple[str, dict[str, list[Combination]]]:
    """The setting of the axis, and combinations that have the figure, by the other settings.

    The axis is the numeric setting with most values: so there are as few lines as can be. Every
    chart has the same series, in the same order.
    """
    settings = report.combinations[0].settings
    values = {key: {one.settings[key] for one in report.combinations} for key in settings}
    axis = max(
        settings,
        key=lambda key: (
            all(isinstance(value, int | float) for value in values[key]),
            len(values[key]),
        ),
    )
    series: dict[str, list[Combination]] = {}
    for one in report.combinations:
        label = " ".join(f"{key}={one.settings[key]}" for key in settings if key != axis)
        points = series.setdefault(label, [])
        if one.figures[name] is not None:
            points.append(one)
    return axis, series


def _few(series: Mapping[str, Sequence[Combination]]) -> list[_Line]:
    """Each with a colour; the first is the widest, so that none hides another one."""
    return [
        _Line(label, label, colour, 2 + 1.5 * (len(series) - 1 - number))
        for number, (label, colour) in enumerate(zip(series, KIND_COLOURS, strict=False))
    ]


def _many(series: Mapping[str, Sequence[Combination]], name: str) -> list[_Line]:
    """The best and the worst on average, above all others in grey."""

    def mean(label: str) -> float:
        return statistics.fmean(_mean(one, name) or 0.0 for one in series[label])

    ranked = sorted((label for label in series if series[label]), key=mean)
    best, worst = (ranked[-1], ranked[0]) if name in _MORE_IS_BETTER else (ranked[0], ranked[-1])
    if mean(best) == mean(worst):
        return [_Line(label, f"{len(ranked)}, all alike", NEUTRAL, 2) for label in ranked]
    others = [label for label in ranked if label not in (best, worst)]

    def told(what: str, label: str) -> str:
        alike = sum(mean(other) == mean(label) for other in others)
        return f"{what} on average: {label}{f' and {alike} alike' if alike else ''}"

    return [
        *(_Line(label, f"{len(others)} others", NEUTRAL, 1) for label in others),
        _Line(worst, told("worst", worst), KIND_COLOURS[1], 3),
        _Line(best, told("best", best), KIND_COLOURS[2], 3),
    ]


def _trace(
    points: Sequence[Combination], axis: str, name: str, factor: float, style: _Line
) -> go.Scatter:
    estimates = [one.figures[name] for one in points]
    means = [factor * (one.mean if one else 0.0) for one in estimates]
    above = [factor * (_high(one) - one.mean) if one else 0.0 for one in estimates]
    colour, width = style.colour, style.width
    return go.Scatter(
        x=[str(one.settings[axis]) for one in points],
        y=[round(mean, 6) for mean in means],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": above,
            # Of none of the figures there is less than nothing.
            "arrayminus": [min(mean, half) for mean, half in zip(means, above, strict=True)],
            "color": colour,
            "thickness": 1.5,
        },
        mode="lines+markers",
        line={"color": colour, "width": width},
        marker={"size": 5 + width, "color": colour},
        hovertemplate=f"{axis} %{{x}} {style.label}: %{{y:.4g}}<extra></extra>",
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
