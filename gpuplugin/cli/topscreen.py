"""What `gpuplugin top` draws: a page of the daemon as tables for a terminal of some size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hal.types import GIB

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType

    from gpuplugin.cli.top import Call, Page, Tenant, Unit

_T = TypeVar("_T")

_WIDE = 100
"""Columns from which there is room for the product."""
_MOST_CALLS = 5
_COLOURS = {"good": "green", "warn": "yellow", "bad": "red"}
_STATES = {"Healthy": ("✓", "green"), "Recovering": ("▲", "yellow")}
_UNHEALTHY = ("✗", "red")
_UNKNOWN = "-"
_BAR = 8
_EIGHTHS = " ▏▎▍▌▋▊▉"
"""Parts of a character's width, by eighths."""


def screen(page: Page, width: int, height: int | None) -> RenderableType:
    """Tables that fit in `width` columns and `height` lines (None: as many as it takes).

    GPUs come first, then pods, then calls; what does not fit is counted.
    """
    heading = Text.assemble(
        (f"gpuplugin on {page.node}", "bold"),
        "  ",
        (page.summary, f"bold {_COLOURS.get(page.tone, 'red')}"),
        f"  {page.counts}",
        no_wrap=True,
        overflow="ellipsis",
    )
    room = _Room(math.inf if height is None else height - 1)
    problems = room.first([_problem(*one) for one in page.problems.items()], 0, lambda _one: 1)
    units = room.first(page.units, 1, lambda unit: 2 if unit.reason else 1)
    parts: list[RenderableType] = [heading, *problems]
    parts += [_units(units, width), *_reasons(units)] if units else []
    if len(units) < len(page.units):
        parts.append(Text(f"and {len(page.units) - len(units)} more", "dim"))
    pods = [tenant for unit in page.units for tenant in unit.tenants]
    pods.sort(key=lambda one: (-(one.sm_share or 0.0), -(one.memory_bytes or 0)))
    if shown := room.first(pods, 2, lambda _pod: 1):
        parts += [Text(), _pods(shown, len(pods) - len(shown), width)]
    elif page.unseen and not pods:
        unseen = [f"{what}: {why}" for what, why in page.unseen.items()]
        fitting = room.first(unseen, 0, lambda text: math.ceil(len(text) / width))
        parts += [Text(text, "dim") for text in fitting]
    if calls := room.first(page.calls[:_MOST_CALLS], 2, lambda _call: 1):
        parts += [Text(), _calls(calls)]
    return Group(*parts)


def _problem(name: str, text: str) -> Text:
    return Text(f"✗ {name}: {text}", "red", no_wrap=True, overflow="ellipsis")


class _Room:
    """The lines that are left of a screen."""

    def __init__(self, lines: float) -> None:
        self._lines = lines

    def first(self, items: Sequence[_T], head: int, lines_of: Callable[[_T], int]) -> Sequence[_T]:
        """As many items as fit below `head` lines, with a line that counts those that do not."""
        needed = [lines_of(item) for item in items]
        left = self._lines - head
        if sum(needed) > left:
            left -= 1
        count = 0
        while count < len(items) and needed[count] <= left:
            left -= needed[count]
            count += 1
        if count:
            self._lines = left
        return items[:count]


def _units(units: Sequence[Unit], width: int) -> Table:
    wide = width >= _WIDE
    table = _table("GPU", *(("PRODUCT",) if wide else ()), "HEALTH", "BUSY", "MEMORY", "HELD")
    for column in ("°C", "W"):
        table.add_column(column, justify="right")
    for unit in units:
        mark, colour = _STATES.get(unit.state, _UNHEALTHY)
        used, total = unit.memory_used_bytes, unit.memory_total_bytes
        memory = None if used is None or not total else used / total
        size = "" if used is None or not total else f" {used / GIB:.0f}/{total / GIB:.0f} GiB"
        held = "?" if unit.allocated is None else str(unit.allocated)
        table.add_row(
            Text(f"{unit.index} gone" if unit.gone else unit.index),
            *((Text(unit.product),) if wide else ()),
            Text(f"{mark} {unit.state}", colour),
            _bar(unit.utilization).append(_percent(unit.utilization)),
            _bar(memory).append(size),
            Text(f"{held}/{unit.replicas}", "" if unit.usable else "red"),
            Text(_number(unit.temperature_c)),
            Text(_number(unit.power_w) + (" ▲" if unit.throttled else "")),
        )
    return table


def _reasons(units: Sequence[Unit]) -> list[RenderableType]:
    """What is wrong with GPUs, and what to do, a line for each."""
    return [
        Text(
            f"GPU {unit.index}: {unit.reason}{f'. {unit.action}' if unit.action else ''}",
            _STATES.get(unit.state, _UNHEALTHY)[1],
            no_wrap=True,
            overflow="ellipsis",
        )
        for unit in units
        if unit.reason
    ]


def _pods(pods: Sequence[Tenant], left_out: int, width: int) -> Table:
    table = _table("POD", "CONTAINER", "GPU")
    for column in ("REPLICAS", "MEMORY", "SM"):
        table.add_column(column, justify="right")
    table.columns[0].max_width = max(20, width - 50)
    for tenant in pods:
        pod = tenant.pod
        memory = _UNKNOWN if tenant.memory_bytes is None else f"{tenant.memory_bytes / GIB:.1f} GiB"
        table.add_row(
            Text(f"{pod.namespace}/{pod.name}" if pod else "processes of no known pod"),
            Text(tenant.container),
            Text(tenant.index),
            Text(str(tenant.replicas)),
            Text(f"▲ {memory}", "yellow") if tenant.over_fair_share else Text(memory),
            Text(_UNKNOWN if tenant.sm_share is None else f"{tenant.sm_share:.0%}"),
        )
    if left_out:
        table.add_row(Text(f"and {left_out} more", "dim"))
    return table


def _calls(calls: Sequence[Call]) -> Table:
    table = _table("CALL", "RESPONSE", "RESOURCE OR CLAIM", "DEVICES")
    for call in calls:
        table.add_row(
            Text(f"{call.age_s:.0f} s ago"),
            Text(call.error or "ok", "red" if call.error else "green"),
            Text(call.resource),
            Text(", ".join(call.devices)),
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True, overflow="ellipsis")
    return table


def _bar(share: float | None) -> Text:
    """A bar of `_BAR` columns; empty where the share is not known."""
    if share is None:
        return Text(_UNKNOWN.ljust(_BAR))
    eighths = round(8 * _BAR * min(1.0, max(0.0, share)))
    filled = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
    return Text(filled.ljust(_BAR), "yellow" if share > 0.95 else "blue")


def _percent(share: float | None) -> str:
    return "" if share is None else f" {share:4.0%}"


def _number(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.0f}"
