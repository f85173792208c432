"""The page of a run: head, charts, tables."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from hal import GIB
from sim.study.html.charts import Colours, latency, slices
from sim.study.html.curves import Curves
from sim.study.html.frame import NOTHING, document, head_of, sections, table_of
from sim.study.report import labels
from sim.study.sentences import UNDISTURBED, as_sentences, duration, number, percent

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim.study.runreport import KindReport, RunReport, Spread
    from sim.virtual.run import Outcome


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
    return table_of("Tenants in numbers", header, rows, "kinds of tenants")


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
    return table_of("GPUs in numbers", header, rows, "GPUs")


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
    sources = "".join(f'<p class="note">{escape(text)}</p>' for text in report.slices_from)
    return f"<section><h2>The rest</h2><dl>{items}</dl>{sources}</section>"


def page_of(outcome: Outcome, report: RunReport, description: str = "") -> str:
    """The page of a run; `description` is the scenario's own, plain text."""
    colours = Colours(report)
    gpu_labels = labels(outcome.gpus)
    charts = [
        *filter(None, [latency(report, colours)]),
        *slices(outcome, gpu_labels, colours),
        *Curves(outcome, report, gpu_labels, colours).charts(),
    ]
    return document(
        f"{report.scenario}: how the GPUs were shared",
        [_head(report, description), *sections(charts), *tables(report, colours)],
        charts,
    )


def _head(report: RunReport, description: str) -> str:
    return head_of(report.scenario, description, as_sentences(report), _key_figures(report))


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
