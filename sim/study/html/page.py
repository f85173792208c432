"""The page of a run, in one HTML file: head, charts, tables, and Plotly itself."""

from __future__ import annotations

import json
from html import escape
from importlib import resources
from itertools import groupby
from typing import TYPE_CHECKING

from plotly.offline import get_plotlyjs

from hal import GIB
from sim.study.html.charts import Chart, Colours, latency, slices
from sim.study.html.curves import Curves
from sim.study.report import labels
from sim.study.sentences import UNDISTURBED, as_sentences, duration, number, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sim.study.runreport import KindReport, RunReport, Spread
    from sim.virtual.run import Outcome


ROWS_SHOWN = 40
NOTHING = "-"


def tables(report: RunReport, colours: Colours) -> list[str]:
    return [*([_kinds(report, colours)] if report.kinds else []), _gpus(report), _rest(report)]


def _kinds(report: RunReport, colours: Colours) -> str:
    header = (
        *("tenants", "how many", "got nothing", "requests", "requests per second, each"),
        "slowdown",
        *("waited at most: half · 95 % · 99 %", "took at most: half · 95 % · 99 %"),
        *("GPU time, each", "out of memory", "restarts"),
    )
    rows = [
        (f'<i style="background:{colours.of(kind.kind)}"></i>{escape(kind.kind)}', *_cells(kind))
        for kind in report.kinds
    ]
    return _table("Tenants in numbers", header, rows, "kinds of tenants")


def _cells(kind: KindReport) -> tuple[str, ...]:
    return (
        str(kind.tenants),
        str(kind.deprived) if kind.deprived else NOTHING,
        f"{kind.served:,}",
        NOTHING if kind.throughput_per_s is None else number(kind.throughput_per_s),
        NOTHING if kind.slowdown is None else f"{number(kind.slowdown)} x",
        _spread(kind.wait_ms),
        _spread(kind.latency_ms),
        NOTHING if kind.gpu_share is None else percent(kind.gpu_share),
        str(kind.ooms),
        str(kind.restarts),
    )


def _spread(spread: Spread | None) -> str:
    """`4.4 · 14.6 · 22.4 ms`, without a break in it."""
    if spread is None:
        return NOTHING
    seconds = spread.p50 >= 10_000
    values = (spread.p50, spread.p95, spread.p99)
    shown = "\N{NO-BREAK SPACE}· ".join(
        number(value / 1000 if seconds else value) for value in values
    )
    return f"{shown}\N{NO-BREAK SPACE}{'s' if seconds else 'ms'}"


def _gpus(report: RunReport) -> str:
    header = (
        *("GPU", "model", "tenants", "busy", "lost to switching", "fairness"),
        *("most memory in use", "warmest", "slowest clock"),
        *("out of memory", "faults", "not usable"),
    )
    rows = [
        (
            f"GPU {gpu.label}",
            escape(gpu.product),
            str(gpu.tenants),
            NOTHING if gpu.utilization is None else percent(gpu.utilization),
            NOTHING if gpu.switching_share is None else percent(gpu.switching_share),
            NOTHING if gpu.fairness is None else f"{gpu.fairness:.2f}",
            _memory(gpu.memory_peak_bytes, gpu.memory_bytes),
            NOTHING if gpu.temperature_max_c is None else f"{gpu.temperature_max_c:.0f} °C",
            NOTHING if gpu.clock_min_share is None else percent(gpu.clock_min_share),
            str(gpu.ooms),
            str(gpu.faults),
            duration(gpu.unhealthy_s) if gpu.unhealthy_s else NOTHING,
        )
        for gpu in report.gpus
    ]
    return _table("GPUs in numbers", header, rows, "GPUs")


def _memory(peak_bytes: int | None, all_bytes: int) -> str:
    if peak_bytes is None:
        return NOTHING
    return f"{peak_bytes / GIB:.0f} of {all_bytes / GIB:.0f} GiB"


def _rest(report: RunReport) -> str:
    pods = report.pods
    xids = ", ".join(f"{code} ({count} times)" for code, count in report.xids.items())
    facts = [
        ("model time", duration(report.until_s)),
        ("seed", str(report.seed)),
        ("Xids", xids or "none"),
        ("restarts of containers", str(report.restarts)),
        ("pods that came", str(pods.created)),
        ("waited over 1 s for devices", str(pods.waited)),
        ("longest wait", NOTHING if pods.wait_max_s is None else duration(pods.wait_max_s)),
        ("without devices at the end", str(pods.never_started)),
        ("admissions that failed", str(pods.refused)),
    ]
    items = "".join(f"<dt>{escape(what)}</dt><dd>{escape(value)}</dd>" for what, value in facts)
    return f"<section><h2>The rest</h2><dl>{items}</dl></section>"


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], what: str) -> str:
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


_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
"""A browser that follows it fetches nothing, whatever the scripts try."""


def page_of(outcome: Outcome, report: RunReport, description: str = "") -> str:
    """The page of a run; `description` is the scenario's own, plain text."""
    colours = Colours(report)
    gpu_labels = labels(outcome.gpus)
    charts = [
        *filter(None, [latency(report, colours)]),
        *slices(outcome, gpu_labels, colours),
        *Curves(outcome, report, gpu_labels, colours).charts(),
    ]
    plots = {
        chart.name: json.loads(chart.plot.to_json()) for chart in charts if chart.plot is not None
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
            *_sections(charts),
            *tables(report, colours),
            "</main>",
            f"<script>{get_plotlyjs()}</script>",
            f'<script type="application/json" id="plots">{_embedded(plots)}</script>',
            f"<script>{_file('page.js')}</script>",
            "</body></html>\n",
        ]
    )


def _head(report: RunReport, description: str) -> str:
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in as_sentences(report))
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


def _key_figures(report: RunReport) -> list[tuple[str, str]]:
    # Where no kind was slowed down, one of its tenants may be.
    slowest = max((kind.slowdown for kind in report.kinds if kind.slowdown), default=None)
    if slowest is not None and slowest < UNDISTURBED:
        slowest = max(one.slowdown for one in report.tenants if one.slowdown)
    figures = [
        *_deprived(report),
        ("times as long as alone, for the kind slowed down most", slowest, number),
        ("of the time a GPU was busy, on average", report.utilization, percent),
        (
            "of the busy time lost to switching",
            report.switching_share,
            lambda share: percent(share).replace("less than", "<"),
        ),
        (
            "fairness (1: all alike; who got nothing is 0)",
            report.fairness,
            lambda value: f"{value:.2f}",
        ),
        ("times memory ran out", float(report.ooms), number),
        ("replica-hours not usable", report.unavailable_replica_hours, number),
    ]
    return [(what, show(value)) for what, value, show in figures if value is not None]


def _deprived(report: RunReport) -> list[tuple[str, float | None, Callable[[float], str]]]:
    if not report.deprived:
        return []
    many = len({one.name for one in report.tenants})
    nothing = float(len(report.deprived))
    return [("tenants got nothing", nothing, lambda count: f"{count:.0f} of {many}")]


def _sections(charts: Sequence[Chart]) -> list[str]:
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


def _embedded(plots: object) -> str:
    """JSON inside a script element, which ends at the first `</` whatever is around it."""
    return json.dumps(plots, separators=(",", ":")).replace("</", "<\\/")


def _file(name: str) -> str:
    return resources.files("sim.study.html").joinpath(name).read_text("utf-8")
