"""The demo's screen: it fits a terminal of 80 by 24, and explains its signs."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from sim.cli.demo.live import LiveView
from sim.cli.demo.stage import RESOURCE, Facts, shares_of_plugins
from sim.kubelet import NodeView, Phase, simple_pod
from sim.kubelet.devices import Amount
from sim.kubelet.pods import Grant, PodStatus, PodView

UUIDS = [f"GPU-{index:08x}-0000-4000-8000-000000000000" for index in range(8)]


def node() -> NodeView:
    """Eight GPUs, of which 3 is lost; eleven pods run, one failed."""
    devices = {f"{uuid}::{n}": uuid != UUIDS[3] for uuid in UUIDS for n in range(10)}
    pods = {}
    for number in range(12):
        pod = simple_pod(f"worker-{number}", {RESOURCE: 1})
        grant = Grant("main", RESOURCE, (f"{UUIDS[number % 8]}::0",))
        status = PodStatus(Phase.RUNNING, grants=(grant,))
        if number == 11:
            status = PodStatus(Phase.FAILED, "UnexpectedAdmissionError", "m" * 100)
        pods[pod.key] = PodView(pod, status)
    return NodeView({RESOURCE: Amount(80, 70)}, {RESOURCE: devices}, pods, {})


@pytest.fixture
def view() -> LiveView:
    stage: Any = SimpleNamespace(
        gpu_indices={uuid: index for index, uuid in enumerate(UUIDS)},
        kubelet=SimpleNamespace(view=node),
        available=lambda node: (node.allocatable(RESOURCE), node.capacity(RESOURCE)),
        shares=shares_of_plugins,
    )
    facts = Facts()
    for number in range(12):
        facts.check(number % 3 > 0, f"number {number}: something that takes a long line to be told")
        facts._recent.append(f"{number:5.1f} s  GetPreferredAllocation   0.20 ms  ok")
    shown = LiveView(facts, stage)
    shown.chapter(
        "5. Xid 79 on GPU 3", "All ten replicas are reported Unhealthy, in one list. " * 2
    )
    return shown


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (100, 30), (120, 40), (200, 60)])
def test_all_of_it_is_on_the_screen(view: LiveView, columns: int, rows: int) -> None:
    paper = StringIO()
    console = Console(width=columns, height=rows, file=paper, highlight=False)
    console.print(view._render(columns, rows - 1))
    lines = paper.getvalue().splitlines()
    assert len(lines) <= rows - 1
    assert max(map(len, lines)) <= columns
    text = "\n".join(lines)
    for part in ("Unhealthy", "worker-10", "UnexpectedAdm", "number 11", "allocatable 70 of 80"):
        assert part in text, part
    assert "  7  " in text, "the last GPU"
    assert "held, in the colour of its pod" in lines[-1]
    assert "· free" in lines[-1]
