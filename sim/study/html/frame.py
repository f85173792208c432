"""What pages have in common: one HTML file with styles, charts, tables and Plotly itself."""

from __future__ import annotations

import json
from html import escape
from importlib import resources
from itertools import groupby
from typing import TYPE_CHECKING

from plotly.offline import get_plotlyjs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sim.study.html.charts import Chart

ROWS_SHOWN = 40
NOTHING = "-"
ANSWER = ' class="answer"'

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
"""A browser that follows it fetches nothing, whatever the scripts try."""


def document(title: str, parts: Iterable[str], charts: Iterable[Chart]) -> str:
    """A whole page: `parts` are HTML, among them the sections of `charts`; `title` is plain."""
    plots = {
        chart.name: json.loads(chart.plot.to_json()) for chart in charts if chart.plot is not None
    }
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{_file('page.css')}</style></head><body><main>",
            *parts,
            "</main>",
            f"<script>{get_plotlyjs()}</script>",
            f'<script type="application/json" id="plots">{_embedded(plots)}</script>',
            f"<script>{_file('page.js')}</script>",
            "</body></html>\n",
        ]
    )


def head_of(
    title: str,
    about: str,
    sentences: Iterable[str],
    tiles: Iterable[tuple[str, str]],
    *,
    answer: int = 1,
) -> str:
    """The head of a page, from plain text; a tile is what it is about, and its figure.

    The sentence with the number `answer` is what people came for.
    """
    told = "".join(
        f"<li{ANSWER if number == answer else ''}>{escape(sentence)}</li>"
        for number, sentence in enumerate(sentences)
    )
    paragraph = f'<p class="about">{escape(about)}</p>' if about else ""
    figures = "".join(
        f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for what, value in tiles
    )
    return (
        f"<header><h1>{escape(title)}</h1>{paragraph}</header>"
        f'<section class="head"><h2>What came out</h2><ul>{told}</ul>'
        f'<div class="tiles">{figures}</div></section>'
    )


def sections(charts: Sequence[Chart]) -> list[str]:
    """Figures one below the other; halves that follow each other side by side, if there is room."""
    blocks = []
    for half, group in groupby(charts, key=lambda chart: chart.half):
        sections = "\n".join(_section(chart) for chart in group)
        blocks.append(f'<div class="halves">{sections}</div>' if half else sections)
    return blocks


def _section(chart: Chart) -> str:
    chips = "".join(
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>'
        for colour, name in chart.legend
    )
    legend = f'<div class="legend">{chips}</div>' if chips else ""
    plot = f'<div class="plot" id="plot-{chart.name}"></div>' if chart.plot is not None else ""
    note = f'<p class="note">{escape(chart.note)}</p>' if chart.note else ""
    # Of the readings all are this project's own texts; one of them has markup.
    return (
        f"<section><h2>{escape(chart.title)}</h2><p>{chart.reading}</p>"
        f"{legend}{plot}{note}</section>"
    )


def table_of(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], what: str) -> str:
    """Cells are HTML already."""
    shown = rows[:ROWS_SHOWN]
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td data-what="{escape(name)}">{cell}</td>'
            for name, cell in zip(header, row, strict=True)
        )
        + "</tr>"
        for row in shown
    )
    left_out = len(rows) - len(shown)
    note = f'<p class="note">{left_out} more {what} are in the JSON report.</p>' if left_out else ""
    return (
        f"<section><h2>{escape(title)}</h2><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>{note}</section>"
    )


def _embedded(plots: object) -> str:
    """JSON inside a script element, in which `</` and `<!--` have a meaning of their own."""
    return json.dumps(plots, separators=(",", ":")).replace("<", "\\u003c")


def _file(name: str) -> str:
    return resources.files("sim.study.html").joinpath(name).read_text("utf-8")
