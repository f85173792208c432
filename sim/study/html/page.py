"""The page: head, figures, tables, and Plotly itself, in one text of HTML."""

from __future__ import annotations

import json
from html import escape
from importlib import resources
from itertools import groupby
from typing import TYPE_CHECKING

from plotly.offline import get_plotlyjs

from sim.study.html.curves import Curves
from sim.study.html.figure import Colours, Figure
from sim.study.html.sharing import latency, slices
from sim.study.html.tables import tables
from sim.study.report import in_words
from sim.study.report.build import labels
from sim.study.report.words import UNDISTURBED, number, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.study.report import Report
    from sim.virtual.run import Outcome

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
"""A browser that follows it fetches nothing, whatever the scripts try."""


def page_of(outcome: Outcome, report: Report, description: str = "") -> str:
    """The page of a run; `description` is the scenario's own, plain text."""
    colours = Colours(report)
    gpu_labels = labels(outcome.gpus)
    figures = [
        *filter(None, [latency(report, colours)]),
        *slices(outcome, gpu_labels, colours),
        *Curves(outcome, report, gpu_labels, colours).figures(),
    ]
    plots = {
        figure.name: json.loads(figure.plot.to_json())
        for figure in figures
        if figure.plot is not None
    }
    title = f"{escape(report.scenario)}: how the GPUs were shared"
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>",
            f"<style>{_file('page.css')}</style></head><body><main>",
            _head(report, description),
            *_sections(figures),
            *tables(report, colours),
            "</main>",
            f"<script>{get_plotlyjs()}</script>",
            f'<script type="application/json" id="plots">{_embedded(plots)}</script>',
            f"<script>{_file('page.js')}</script>",
            "</body></html>\n",
        ]
    )


def _head(report: Report, description: str) -> str:
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in in_words(report))
    about = f'<p class="about">{escape(description)}</p>' if description else ""
    tiles = "".join(
        f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>"
        for what, value in _key_figures(report)
    )
    return (
        f"<header><h1>{escape(report.scenario)}</h1>{about}</header>"
        f'<section class="head"><h2>What came out</h2><ul>{sentences}</ul>'
        f'<div class="tiles">{tiles}</div></section>'
    )


def _key_figures(report: Report) -> list[tuple[str, str]]:
    # Where no kind suffered, one of its tenants may have.
    slowest = max((kind.slowdown for kind in report.kinds if kind.slowdown), default=None)
    if slowest is not None and slowest < UNDISTURBED:
        slowest = max(one.slowdown for one in report.tenants if one.slowdown)
    figures = [
        ("times as long as alone, for who suffered most", slowest, number),
        ("of the time a GPU was busy, on average", report.utilization, percent),
        ("of the busy time lost to switching", report.switching_share, _short_percent),
        ("fairness (1: all slowed down alike)", report.fairness, lambda value: f"{value:.2f}"),
        ("times memory ran out", float(report.ooms), number),
        ("replica-hours not usable", report.unavailable_replica_hours, number),
    ]
    return [(what, show(value)) for what, value, show in figures if value is not None]


def _short_percent(share: float) -> str:
    return percent(share).replace("less than", "<")


def _sections(figures: Sequence[Figure]) -> list[str]:
    """Figures one below the other; halves that follow each other side by side, if there is room."""
    blocks = []
    for half, group in groupby(figures, key=lambda figure: figure.half):
        sections = "\n".join(_section(figure) for figure in group)
        blocks.append(f'<div class="halves">{sections}</div>' if half else sections)
    return blocks


def _section(figure: Figure) -> str:
    chips = "".join(
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>'
        for colour, name in figure.legend
    )
    legend = f'<div class="legend">{chips}</div>' if chips else ""
    plot = f'<div class="plot" id="plot-{figure.name}"></div>' if figure.plot is not None else ""
    note = f'<p class="note">{escape(figure.note)}</p>' if figure.note else ""
    # Of the readings all are this project's own texts; one of them has markup.
    return (
        f"<section><h2>{escape(figure.title)}</h2><p>{figure.reading}</p>"
        f"{legend}{plot}{note}</section>"
    )


def _embedded(plots: object) -> str:
    """JSON inside a script element, which ends at the first `</` whatever is around it."""
    return json.dumps(plots, separators=(",", ":")).replace("</", "<\\/")


def _file(name: str) -> str:
    return resources.files("sim.study.html").joinpath(name).read_text("utf-8")
