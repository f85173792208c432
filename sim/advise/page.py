"""The page of an advice: the trade-off, where it tips over, and what the answer rests on."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from sim.advise.words import confidence, configuration, remarks, sentence
from sim.study.html.charts import KIND_COLOURS, NEUTRAL, Chart, line, plot
from sim.study.html.frame import NOTHING, document, head_of, sections, table_of
from sim.study.sentences import counted, milliseconds, number, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.advise.advice import Advice, Row

_BAD = "#d64545"


def advice_page(advice: Advice, notes: Sequence[str] = ()) -> str:
    """`notes` are about the history that the advice rests on."""
    plan, profile = advice.plan, advice.plan.profile
    charts = [_slowdown(advice), _left_out(advice), _time(advice), _assumptions(advice)]
    title = f"How many replicas of {profile.product}?"
    pods = ", ".join(
        f"{one.count} x {one.name} ({milliseconds(one.busy_ms)} of every "
        f"{milliseconds(one.period_ms)}, "
        f"{number(max(one.memory_gib))} GiB)"
        for one in plan.workloads
    )
    about = f"{pods}, on {counted(plan.gpus, 'GPU')}, by {plan.mechanism.value}."
    return document(
        title,
        [
            head_of(title, about, [sentence(advice), *remarks(advice)], _tiles(advice), answer=0),
            *sections(charts),
            _table(advice),
            _rest(advice, notes),
        ],
        charts,
    )


def _tiles(advice: Advice) -> list[tuple[str, str]]:
    row = advice.row
    tiles = [("replicas of each GPU", str(advice.replicas or "none"))]
    if row is None:
        return tiles
    return [
        *tiles,
        ("times as long as alone at p95, for who suffers most", number(row.p95 or 0.0)),
        ("times a week memory runs out", number(row.ooms_per_week)),
        ("pods without a replica", str(row.left_out)),
        ("of the time a GPU is busy", percent(row.utilization)),
        ("of the time lost to switching", percent(row.switching)),
    ]


_LEFT, _RIGHT = 0.5, 20.5


def _axis() -> dict[str, Any]:
    return {"title": {"text": "replicas of each GPU"}, "dtick": 2, "range": [_LEFT, _RIGHT]}


def _marks(advice: Advice, *, told: bool) -> dict[str, Any]:
    """A line at the number that is recommended, and a shade from where a goal is missed.

    With `told` both are named.
    """
    shapes: list[dict[str, Any]] = []
    texts: list[dict[str, Any]] = []
    missed = next((row for row in advice.rows if not row.keeps), None)
    if missed is not None:
        from_ = (advice.replicas + missed.replicas) / 2 if advice.replicas else _LEFT
        shapes.append(_shape(from_, _RIGHT, fillcolor=_BAD, opacity=0.09, line={"width": 0}))
        text = f"from {missed.replicas} on: {_short(advice, missed)}"
        texts.append(
            {"x": _RIGHT - 0.2, "y": 1, "yanchor": "top", "xanchor": "right", "text": text}
        )
    if advice.replicas:
        at, colour = advice.replicas, KIND_COLOURS[2]
        shapes.append(_shape(at, at, line={"width": 1.5, "color": colour, "dash": "dot"}))
        side = "left" if at <= _RIGHT / 2 else "right"
        text = f"recommended: {at}"
        texts.append({"x": at, "y": 1, "yanchor": "bottom", "xanchor": side, "text": text})
    if not told:
        return {"shapes": shapes}
    common = {"xref": "x", "yref": "paper", "showarrow": False}
    return {
        "shapes": shapes,
        "annotations": [{**common, **text} for text in texts],
        "margin": {"l": 8, "r": 12, "t": 24, "b": 8},
    }


def _shape(from_: float, to: float, **more: object) -> dict[str, Any]:
    kind = "rect" if to > from_ else "line"
    place = {"type": kind, "xref": "x", "yref": "paper", "x0": from_, "x1": to, "y0": 0, "y1": 1}
    return {**place, "layer": "below", **more}


def _short(advice: Advice, row: Row) -> str:
    """Which goal is missed; the sentence at the top says by how much."""
    if row.refused:
        return "memory does not fit"
    if row.ooms_per_week > advice.plan.goals.ooms_per_week:
        return "memory runs out"
    return "too slow" if row.p95 is not None else "nothing is done"


def _slowdown(advice: Advice) -> Chart:
    """The curve of the trade-off, with the goal and the number that is recommended."""
    rows = [row for row in advice.rows if row.p95 is not None]
    x: list[float] = [row.replicas for row in rows]
    most = max([row.p99 or 0.0 for row in rows], default=1.0)
    goal = advice.plan.goals.slowdown_p95
    traces: list[Any] = [
        line(x, [row.p99 for row in rows], "%{y:.2f}", "p99", {"color": NEUTRAL, "dash": "dot"}),
        line(x, [row.p50 for row in rows], "%{y:.2f}", "p50", {"color": NEUTRAL}),
        line(
            x, [row.p95 for row in rows], "%{y:.2f}", "p95", {"color": KIND_COLOURS[0], "width": 3}
        ),
        line([0.5, 20.5], [goal, goal], "%{y:.2f}", "goal", {"color": _BAD, "dash": "dash"}),
    ]
    if advice.row is not None:
        traces.append(
            go.Scatter(
                x=[advice.replicas],
                y=[advice.row.p95],
                mode="markers",
                marker={"size": 15, "color": KIND_COLOURS[2], "symbol": "diamond"},
                hovertemplate=f"recommended: {advice.replicas}, %{{y:.2f}}<extra></extra>",
            )
        )
    return Chart(
        "slowdown",
        "What sharing costs whoever suffers most",
        "A request takes so many times as long as alone. Below the red line the goal for that is "
        "kept. The diamond is the largest number that keeps all goals; in the shade one is missed.",
        plot(
            traces,
            340,
            _axis(),
            {"title": {"text": "times as long as alone"}, "range": [0, max(most, goal) * 1.25]},
            **_marks(advice, told=True),
        ),
        _flat(advice),
        [
            (KIND_COLOURS[0], "95 of 100 requests"),
            (NEUTRAL, "half of them, and 99 of 100 (dotted)"),
            (_BAD, "the goal"),
            (KIND_COLOURS[2], "recommended"),
            (f"{_BAD}33", "a goal is missed"),
        ],
    )


def _flat(advice: Advice) -> str:
    most = max(row.sharing for row in advice.rows)
    if most >= advice.rows[-1].replicas:
        return ""
    return f"From {most} replicas on nothing changes: there are no more pods for a GPU."


def _left_out(advice: Advice) -> Chart:
    rows, x = advice.rows, [float(row.replicas) for row in advice.rows]
    title, reading = "Who gets nothing", "Pods for which there is no replica: they wait."
    if not any(row.left_out for row in rows):
        return Chart(
            "leftout", title, "Every pod has a replica, with every number.", None, half=True
        )
    style = {"color": KIND_COLOURS[1], "width": 2.5}
    traces = [line(x, [row.left_out for row in rows], "%{y}", "pods", style)]
    return Chart(
        "leftout",
        title,
        reading,
        plot(traces, 260, _axis(), {"title": {"text": "pods"}}, **_marks(advice, told=False)),
        legend=[(KIND_COLOURS[1], "pods without a replica"), (KIND_COLOURS[2], "recommended")],
        half=True,
    )


def _time(advice: Advice) -> Chart:
    rows, x = advice.rows, [float(row.replicas) for row in advice.rows]
    traces = [
        line(
            x,
            [round(100 * value, 2) for value in values],
            "%{y:.1f} %",
            name,
            {"color": colour, "width": 2.5},
        )
        for name, colour, values in (
            ("busy", KIND_COLOURS[0], [row.utilization for row in rows]),
            ("switching", _BAD, [row.switching for row in rows]),
        )
    ]
    return Chart(
        "time",
        "What the GPU does with its time",
        "Busy with work, and lost to switching between pods.",
        plot(
            traces,
            260,
            _axis(),
            {"title": {"text": "% of the time"}, "range": [0, 104]},
            **_marks(advice, told=False),
        ),
        legend=[
            (KIND_COLOURS[0], "busy"),
            (_BAD, "switching"),
            (KIND_COLOURS[2], "recommended"),
        ],
        half=True,
    )


def _assumptions(advice: Advice) -> Chart:
    names = [f"{one.what}: {one.otherwise}" for one in advice.assumptions]
    values = [one.replicas for one in advice.assumptions]
    traces: list[Any] = [
        go.Bar(
            orientation="h",
            y=["as assumed", *names],
            x=[advice.replicas, *values],
            marker={
                "color": [
                    KIND_COLOURS[2],
                    *(NEUTRAL if value == advice.replicas else KIND_COLOURS[1] for value in values),
                ]
            },
            text=[str(advice.replicas), *map(str, values)],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x}<extra></extra>",
        )
    ]
    return Chart(
        "assumptions",
        "What the answer depends on",
        "The number that would be recommended if one thing that is not known were otherwise. "
        "Orange: it makes a difference, so measure that first.",
        plot(
            traces,
            90 + 34 * len(names),
            {"title": {"text": "replicas"}, "range": [0, 1.1 * max(advice.replicas, 1, *values)]},
            {"type": "category", "autorange": "reversed", "rangemode": "normal"},
        ),
    )


def _table(advice: Advice) -> str:
    header = (
        *("replicas", "pods on a GPU", "half take", "95 % take", "99 % take"),
        *("out of memory a week", "without a replica", "busy", "switching", "goals"),
    )
    rows = [
        (
            f"{row.replicas}{' (recommended)' if row.replicas == advice.replicas else ''}",
            str(row.sharing),
            *(
                NOTHING if value is None else f"{number(value)} x"
                for value in (row.p50, row.p95, row.p99)
            ),
            f"{percent(row.refused)} do not fit" if row.refused else number(row.ooms_per_week),
            str(row.left_out),
            percent(row.utilization),
            percent(row.switching),
            "kept" if row.keeps else "missed",
        )
        for row in advice.rows
    ]
    return table_of("All numbers", header, rows, "rows")


def _rest(advice: Advice, notes: Sequence[str]) -> str:
    config = configuration(advice)
    applied = f"<h2>The configuration for it</h2><pre>{escape(config)}</pre>" if config else ""
    trust = "".join(f"<li>{escape(text)}</li>" for text in confidence(advice))
    told = "".join(f"<li>{escape(text)}</li>" for text in notes)
    seen = f"<h2>What the history shows</h2><ul>{told}</ul>" if told else ""
    return f"<section>{applied}{seen}<h2>How far to trust it</h2><ul>{trust}</ul></section>"
