"""The demo on a terminal: the node, its GPUs and replicas, pods, and the kubelet's last calls."""

from __future__ import annotations

import re
from io import StringIO
from typing import TYPE_CHECKING, NamedTuple, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gpuplugin.cli.text import output_file
from gpuplugin.core.sharing import replica_id, replica_of, uuid_of
from sim.cli.demo.stage import RESOURCE, Stage
from sim.cli.demo.story import View
from sim.kubelet import Phase

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from sim.cli.demo.stage import Facts, Share
    from sim.kubelet import NodeView

FREE, TAKEN, UNHEALTHY = "·", "■", "x"
_PHASE_STYLES = {Phase.RUNNING: "green", Phase.FAILED: "red", Phase.PENDING: "yellow"}
_POD_STYLES = ("cyan", "magenta", "green", "yellow", "blue")
_PICTURE = (120, 32)
"""Columns and rows."""
_WIDE = 100
"""Columns from which on there is room for UUIDs, and blanks between replicas."""
_MOST_PODS, _MOST_CHECKS = 12, 9
_BORDERS = 2


class LiveView(View):
    """Redraws itself eight times a second from the facts and the kubelet."""

    def __init__(self, facts: Facts, stage: Stage, picture: str | None = None) -> None:
        self._picture = picture
        self._facts = facts
        self._stage = stage
        self._title = "gpuplugin"
        self._text = ""
        self._console = Console(highlight=False)
        self._live = Live(
            console=self._console,
            get_renderable=self._on_screen,
            refresh_per_second=8,
            vertical_overflow="crop",
        )

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *_error: object) -> None:
        self._live.__exit__(None, None, None)

    def chapter(self, title: str, text: str) -> None:
        self._title, self._text = title, text

    def height(self) -> None:
        if self._picture:
            columns, rows = _PICTURE
            paper = Console(record=True, width=columns, file=StringIO(), highlight=False)
            paper.print(self._render(columns, rows))
            # Without rich's web fonts: the picture must not fetch anything when it is looked at.
            svg = re.sub(
                r"@font-face \{.*?\}", "", paper.export_svg(title="gpuplugin demo"), flags=re.DOTALL
            )
            with output_file(self._picture) as stream:
                stream.write(svg)

    def _on_screen(self) -> RenderableType:
        return self._render(self._console.width, self._console.height - 1)

    def _render(self, columns: int, rows: int) -> RenderableType:
        """The whole screen; lists that do not fit show their last lines."""
        node = self._stage.kubelet.view()
        heading = self._heading(node, columns)
        left = rows - heading.height - 1  # the legend
        gpus = len(self._stage.gpu_indices) + 1 + _BORDERS
        pods = min(_MOST_PODS, (left - 2 * _BORDERS) * 3 // 5)
        checks = min(_MOST_CHECKS, left - 2 * _BORDERS - pods)
        calls = self._facts.recent[-max(1, left - gpus - _BORDERS) :]
        recent = Text("\n".join(calls), no_wrap=True, overflow="ellipsis")
        body = Table.grid(expand=True, padding=(0, 1))
        body.add_column(ratio=3 if columns >= _WIDE else 1)
        body.add_column(ratio=2 if columns >= _WIDE else 1)
        body.add_row(
            Group(self._gpus(node, wide=columns >= _WIDE), Panel(recent, title="kubelet's calls")),
            Group(_pods(node, pods), self._checks(checks)),
        )
        return Group(heading.panel, body, _LEGEND)

    def _heading(self, node: NodeView, columns: int) -> _Heading:
        allocatable, capacity = self._stage.available(node)
        amount = Text.assemble(
            f"{RESOURCE}  allocatable ",
            (str(allocatable), "bold green" if allocatable == capacity else "bold red"),
            f" of {capacity}   ",
            (f"{self._facts.elapsed_s:4.0f} s", "dim"),
        )
        text = Text(self._text)
        height = max(1, len(text.wrap(self._console, columns - 4))) + _BORDERS
        panel = Panel(text, title=Text(self._title, "bold"), subtitle=amount, padding=(0, 1))
        return _Heading(panel, height)

    def _gpus(self, node: NodeView, *, wide: bool) -> Panel:
        shares = self._stage.shares(node)
        table = Table(box=None, padding=(0, 1), header_style="dim")
        for column in ("GPU", *(["UUID"] if wide else ()), "REPLICAS", "HEALTH"):
            table.add_column(column, no_wrap=True)
        for uuid, index in self._stage.gpu_indices.items():
            mine = shares.get(uuid, [])
            cells = Text(" " if wide else "").join(map(_cell, mine))
            health = _health(one.healthy for one in mine)
            table.add_row(str(index), *([uuid[:12]] if wide else ()), cells, health)
        return Panel(table, title="GPUs and their replicas")

    def _checks(self, most: int) -> Panel:
        lines = Text(no_wrap=True, overflow="ellipsis")
        for check in self._facts.checks[-most:]:
            lines.append("✓ " if check.passed else "✗ ", "green" if check.passed else "bold red")
            lines.append(f"{check.text}\n")
        lines.rstrip()
        return Panel(lines, title="checked")


class _Heading(NamedTuple):
    panel: Panel
    height: int


_LEGEND = Text.assemble(
    *(" ", FREE, " free   ", (TAKEN, "cyan"), " held, in the colour of its pod   "),
    *((TAKEN, "bold red"), " held, Unhealthy   ", (UNHEALTHY, "red"), " Unhealthy"),
)


def _pods(node: NodeView, most: int) -> Panel:
    table = Table(box=None, padding=(0, 1), show_header=False)
    table.add_column(no_wrap=True, min_width=9)
    table.add_column(no_wrap=True, min_width=7)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for position, view in list(enumerate(node.pods.values()))[-most:]:
        status = view.status
        ids = [one for grant in status.grants for one in grant.device_ids]
        held = ", ".join(
            (
                *(replica_id(uuid_of(one)[:12], replica_of(one)) for one in ids),
                *(one.uuid[:12] for one in status.devices),
            )
        )
        phase = Text(status.phase.value, _PHASE_STYLES[status.phase])
        name = Text(view.pod.name, _POD_STYLES[position % len(_POD_STYLES)] if held else "")
        table.add_row(name, phase, Text(held or status.reason))
    return Panel(table, title="pods")


def _health(replicas: Iterable[bool]) -> Text:
    states = set(replicas)
    if not states:
        return Text("not listed", "dim")
    return Text("Healthy", "green") if states == {True} else Text("Unhealthy", "bold red")


def _cell(share: Share) -> Text:
    if share.holder is not None:
        style = _POD_STYLES[share.holder % len(_POD_STYLES)] if share.healthy else "bold red"
        return Text(TAKEN, style)
    return Text(FREE, "dim") if share.healthy else Text(UNHEALTHY, "red")
