"""The demo on a terminal: the node, its GPUs and replicas, pods, and the kubelet's last calls."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gpuplugin.core.sharing import replica_id, replica_of, uuid_of
from sim.cli.demo.stage import RESOURCE, Stage
from sim.cli.demo.story import View
from sim.kubelet import Phase

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from sim.cli.demo.stage import Facts
    from sim.kubelet import NodeView

FREE, TAKEN, UNHEALTHY = "·", "■", "x"
_PHASE_STYLES = {Phase.RUNNING: "green", Phase.FAILED: "red", Phase.PENDING: "yellow"}
_POD_STYLES = ("cyan", "magenta", "green", "yellow", "blue")
_PODS_SHOWN = 12
_PICTURE_COLUMNS = 120


class LiveView(View):
    """Redraws itself eight times a second from the facts and the kubelet."""

    def __init__(self, facts: Facts, stage: Stage, picture: str | None = None) -> None:
        self._picture = picture
        self._facts = facts
        self._stage = stage
        self._title = "gpuplugin"
        self._text = ""
        self._live = Live(
            console=Console(highlight=False),
            get_renderable=self._render,
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
            paper = Console(record=True, width=_PICTURE_COLUMNS, file=StringIO(), highlight=False)
            paper.print(self._render())
            # Without rich's web fonts: the picture must not fetch anything when it is looked at.
            svg = re.sub(
                r"@font-face \{.*?\}", "", paper.export_svg(title="gpuplugin demo"), flags=re.DOTALL
            )
            Path(self._picture).write_text(svg)

    def _render(self) -> RenderableType:
        node = self._stage.kubelet.view()
        body = Table.grid(expand=True, padding=(0, 1))
        body.add_column(ratio=3)
        body.add_column(ratio=2)
        recent = Text("\n".join(self._facts.recent), no_wrap=True, overflow="ellipsis")
        calls = Panel(recent, title="what the kubelet sees")
        body.add_row(Group(self._gpus(node), calls), Group(_pods(node), self._checks()))
        return Group(self._heading(node), body)

    def _heading(self, node: NodeView) -> Panel:
        allocatable, capacity = node.allocatable(RESOURCE), node.capacity(RESOURCE)
        amount = Text.assemble(
            f"{RESOURCE}  allocatable ",
            (str(allocatable), "bold green" if allocatable == capacity else "bold red"),
            f" of {capacity}   ",
            (f"{self._facts.elapsed_s:4.0f} s", "dim"),
        )
        return Panel(
            Text(self._text), title=Text(self._title, "bold"), subtitle=amount, padding=(0, 1)
        )

    def _gpus(self, node: NodeView) -> Panel:
        holders = _holders(node)
        devices = node.devices.get(RESOURCE, {})
        table = Table(box=None, padding=(0, 1), header_style="dim")
        for column in ("GPU", "UUID", "REPLICAS", "HEALTH"):
            table.add_column(column)
        for uuid, index in self._stage.gpu_indices.items():
            ids = sorted(one for one in devices if uuid_of(one) == uuid)
            cells = Text(" ").join(_cell(one, devices[one], holders) for one in ids)
            table.add_row(str(index), uuid[:12], cells, _health(devices[one] for one in ids))
        legend = f"{FREE} free  {TAKEN} in use  {UNHEALTHY} unhealthy"
        return Panel(table, title="GPUs x replicas", subtitle=Text(legend, "dim"))

    def _checks(self) -> Panel:
        lines = Text()
        for check in self._facts.checks[-9:]:
            lines.append("✓ " if check.passed else "✗ ", "green" if check.passed else "bold red")
            lines.append(f"{check.text}\n")
        return Panel(lines, title="checked")


def _pods(node: NodeView) -> Panel:
    table = Table(box=None, padding=(0, 1), show_header=False)
    for view in list(node.pods.values())[-_PODS_SHOWN:]:
        status = view.status
        ids = [one for grant in status.grants for one in grant.device_ids]
        held = ", ".join(replica_id(uuid_of(one)[:12], replica_of(one)) for one in ids)
        phase = Text(status.phase.value, _PHASE_STYLES[status.phase])
        table.add_row(Text(view.pod.name), phase, Text(held or status.reason, no_wrap=True))
    return Panel(table, title="pods")


def _holders(node: NodeView) -> dict[str, int]:
    return {
        device_id: position
        for position, view in enumerate(node.pods.values())
        for grant in view.status.grants
        for device_id in grant.device_ids
    }


def _health(replicas: Iterable[bool]) -> Text:
    states = set(replicas)
    if not states:
        return Text("not listed", "dim")
    return Text("Healthy", "green") if states == {True} else Text("Unhealthy", "bold red")


def _cell(device_id: str, healthy: bool, holders: dict[str, int]) -> Text:
    if device_id in holders:
        style = _POD_STYLES[holders[device_id] % len(_POD_STYLES)] if healthy else "bold red"
        return Text(TAKEN, style)
    return Text(FREE, "dim") if healthy else Text(UNHEALTHY, "red")
