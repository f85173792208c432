"""What `gpuplugin top` draws: it fits the terminal, and says what matters first."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from gpuplugin.cli.top import Call, Page, PodName, Tenant, Unit
from gpuplugin.cli.topscreen import screen

GIB = 1024**3


def unit(index: int, *, sick: bool = False, pods: int = 0) -> Unit:
    tenants = [
        Tenant(
            index=str(index),
            pod=PodName(namespace="default", name=f"pod-{index}-{number}"),
            container="main",
            replicas=1,
            memory_bytes=number * GIB,
            sm_share=number / 100,
            fair_memory_bytes=8 * GIB,
        )
        for number in range(pods)
    ]
    return Unit(
        index=str(index),
        product="NVIDIA H100 80GB HBM3",
        state="Unhealthy" if sick else "Healthy",
        reason="Xid 79: GPU has fallen off the bus" if sick else "",
        action="Reboot the node" if sick else "",
        usable=not sick,
        gone=False,
        replicas=10,
        allocated=pods,
        tenants=tenants,
        utilization=None if sick else 0.5,
        memory_used_bytes=None if sick else 40 * GIB,
        memory_total_bytes=80 * GIB,
        temperature_c=None if sick else 61.0,
        power_w=None if sick else 512.0,
        throttled="",
    )


def page(units: list[Unit], calls: int = 3, **rest: object) -> Page:
    call = Call(age_s=3, resource="nvidia.com/gpu", devices=["GPU-0::1"], error="")
    facts = {
        "node": "node-1", "summary": "Ready", "tone": "good", "counts": "8 GPUs", "problems": {},
        "units": units, "calls": [call] * calls, "unseen": {},
    }  # fmt: skip
    return Page.model_validate(facts | rest)


def drawn(shown: Page, width: int, height: int | None) -> list[str]:
    paper = io.StringIO()
    console = Console(file=paper, width=width, height=height, highlight=False, color_system=None)
    console.print(screen(shown, width, height))
    return paper.getvalue().removesuffix("\n").split("\n")


@given(
    sick=st.lists(st.booleans(), max_size=16),
    pods=st.integers(0, 12),
    calls=st.integers(0, 8),
    problems=st.integers(0, 3),
    size=st.tuples(st.integers(80, 160), st.integers(10, 60)),
)
def test_it_fits_every_terminal(
    sick: list[bool], pods: int, calls: int, problems: int, size: tuple[int, int]
) -> None:
    units = [unit(index, sick=one, pods=pods) for index, one in enumerate(sick)]
    bad = {f"part-{number}": "a reason " * 30 for number in range(problems)}
    lines = drawn(page(units, calls, problems=bad), *size)
    assert len(lines) <= size[1]
    assert max(map(len, lines)) <= size[0]


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
def test_what_does_not_fit_is_counted_and_gpus_come_first(size: tuple[int, int]) -> None:
    lines = drawn(page([unit(index, pods=9) for index in range(8)]), *size)
    text = "\n".join(lines)
    assert lines[0].startswith("gpuplugin on node-1  Ready  8 GPUs")
    assert all(any(line.startswith(f"{index}  ") for line in lines) for index in range(8))
    shown = sum("default/pod-" in line for line in lines)
    assert 0 < shown < 72
    assert f"and {72 - shown} more" in text
    assert "pod-0-8" in text, "those that use most come first"
    assert len(lines) == size[1], "the room is used"


def test_reasons_actions_and_problems_are_told() -> None:
    text = "\n".join(drawn(page([unit(0, sick=True)], problems={"cdi": "no space"}), 80, 24))
    assert "GPU 0: Xid 79: GPU has fallen off the bus. Reboot the node" in text
    assert "✗ cdi: no space" in text
    assert "✗ Unhealthy" in text


def test_a_pod_over_its_fair_share_has_a_mark() -> None:
    lines = drawn(page([unit(0, pods=10)]), 100, None)
    (over,) = [line for line in lines if "pod-0-9 " in line]
    (fair,) = [line for line in lines if "pod-0-8 " in line]
    assert "▲ 9.0 GiB" in over
    assert "▲" not in fair


def test_what_is_not_known_is_not_made_up() -> None:
    text = "\n".join(drawn(page([unit(0)], 0, unseen={"pods": "run with hostPID: true"}), 80, 24))
    assert "pods: run with hostPID: true" in text
    (line,) = [line for line in drawn(page([unit(0, sick=True)]), 80, 24) if line.startswith("0 ")]
    assert "GiB" not in line
    assert "%" not in line
