"""The report of a run as text: sentences, a table of tenants, a table of GPUs."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from gpuplugin.cli.text import gib, table
from sim.study.sentences import as_sentences, duration, number, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sim.study.runreport import GpuReport, KindReport, RunReport, Spread, TenantReport

FEW = 12
"""So many tenants are shown one by one; more of them by kind."""

MOST_ROWS = 32
NOTHING = "-"
_WIDTH = 100

_TENANT_COLUMNS = (
    *("SERVED", "PER S", "SLOWDOWN", "WAIT P50", "P95", "P99 MS"),
    *("LATENCY P50", "P95", "P99 MS", "GPU TIME", "OOMS", "RESTARTS"),
)
_GPU_COLUMNS = (
    *("UTILISATION", "SWITCHING", "FAIRNESS", "MEMORY"),
    *("MAX TEMP", "MIN CLOCK", "OOMS", "FAULTS", "UNHEALTHY"),
)


def as_text(report: RunReport) -> list[str]:
    """Lines for a terminal, about 130 columns wide."""
    lines = [line for text in as_sentences(report) for line in textwrap.wrap(text, _WIDTH)]
    if report.tenants:
        lines += ["", *_tenants(report)]
    lines += ["", *_gpus(report), "", *_totals(report), *report.slices_from]
    return lines


def _tenants(report: RunReport) -> list[str]:
    if len(report.tenants) <= FEW:
        index = {gpu.uuid: gpu.label for gpu in report.gpus}
        header = ("TENANT", "GPU", *_TENANT_COLUMNS)
        rows = [
            (one.name, index.get(one.gpu, "MIG") if one.gpu else NOTHING, *_cells(one))
            for one in report.tenants
        ]
    else:
        header = ("TENANTS", "COUNT", *_TENANT_COLUMNS)
        rows = [(one.kind, str(one.tenants), *_cells(one)) for one in report.kinds]
    return _limited(header, rows, "kinds")


def _cells(service: KindReport | TenantReport) -> tuple[str, ...]:
    return (
        str(service.served),
        _or_nothing(service.throughput_per_s, number),
        _or_nothing(service.slowdown, number),
        *_spread(service.wait_ms),
        *_spread(service.latency_ms),
        _or_nothing(service.gpu_share, percent),
        str(service.ooms),
        str(service.restarts),
    )


def _spread(spread: Spread | None) -> tuple[str, str, str]:
    if spread is None:
        return (NOTHING,) * 3
    return number(spread.p50), number(spread.p95), number(spread.p99)


def _gpus(report: RunReport) -> list[str]:
    header = ("GPU", "TENANTS", *_GPU_COLUMNS)
    rows = [(gpu.label, str(gpu.tenants), *_gpu_cells(gpu)) for gpu in report.gpus]
    return _limited(header, rows, "GPUs")


def _gpu_cells(gpu: GpuReport) -> tuple[str, ...]:
    return (
        _or_nothing(gpu.utilization, percent),
        _or_nothing(gpu.switching_share, percent),
        _or_nothing(gpu.fairness, lambda value: f"{value:.2f}"),
        _or_nothing(gpu.memory_peak_bytes, lambda value: gib(int(value))),
        _or_nothing(gpu.temperature_max_c, lambda value: f"{value:.0f} °C"),
        _or_nothing(gpu.clock_min_share, percent),
        str(gpu.ooms),
        str(gpu.faults),
        duration(gpu.unhealthy_s),
    )


def _totals(report: RunReport) -> list[str]:
    pods = report.pods
    xids = ", ".join(f"{code}: {count}" for code, count in report.xids.items()) or "none"
    hours = number(report.unavailable_replica_hours)
    lines = [f"Tenants that got nothing: {len(report.deprived)}"] if report.deprived else []
    lines += [f"Xids: {xids}   restarts: {report.restarts}   unavailable: {hours} replica-hours"]
    if pods.created:
        lines.append(
            f"Pods: {pods.created}   waited: {pods.waited}   without devices at the end: "
            f"{pods.never_started}   refused: {pods.refused}"
        )
    return lines


def _limited(header: Sequence[str], rows: Sequence[Sequence[str]], what: str) -> list[str]:
    """A table, numbers to the right, and how many rows it leaves out."""
    shown = rows[:MOST_ROWS]
    widths = [max(len(row[column]) for row in (header, *shown)) for column in range(len(header))]
    aligned = [
        [row[0], *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in (header, *shown)
    ]
    lines = table(aligned[0], aligned[1:])
    if len(rows) > MOST_ROWS:
        lines.append(f"... and {len(rows) - MOST_ROWS} more {what} (all are in --report)")
    return lines


def _or_nothing(value: float | None, text: Callable[[float], str]) -> str:
    return NOTHING if value is None else text(value)
