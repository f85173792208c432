"""The numbers of the page, as tables that become cards where the screen is narrow."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from sim.gpu.partition import GIB
from sim.study.report.words import duration, number, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.study.html.figure import Colours
    from sim.study.report import Report
    from sim.study.report.schema import KindReport, Spread

ROWS_SHOWN = 40
NOTHING = "-"


def tables(report: Report, colours: Colours) -> list[str]:
    """Tenants by kind, GPUs, and the rest."""
    return [
        *([_kinds(report, colours)] if report.kinds else []),
        _gpus(report),
        _rest(report),
    ]


def _kinds(report: Report, colours: Colours) -> str:
    header = (
        "tenants",
        "how many",
        "requests",
        "requests per second, each",
        "slowdown",
        "waited at most: half · 95 % · 99 %",
        "took at most: half · 95 % · 99 %",
        "GPU time, each",
        "out of memory",
        "restarts",
    )
    rows = [(_named(kind, colours), *_cells(kind)) for kind in report.kinds]
    return _table("Tenants in numbers", header, rows, "kinds of tenants")


def _named(kind: KindReport, colours: Colours) -> str:
    return f'<i style="background:{colours.of(kind.kind)}"></i>{escape(kind.kind)}'


def _cells(kind: KindReport) -> tuple[str, ...]:
    return (
        str(kind.tenants),
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


def _gpus(report: Report) -> str:
    header = (
        "GPU",
        "model",
        "tenants",
        "busy",
        "lost to switching",
        "fairness",
        "most memory in use",
        "warmest",
        "slowest clock",
        "out of memory",
        "faults",
        "not usable",
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


def _rest(report: Report) -> str:
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
