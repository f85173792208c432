"""The status page: what it says, and that nothing from outside is taken for HTML."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from gpuplugin.config.load import load_settings
from gpuplugin.core.health import HealthState
from gpuplugin.core.healthboard import HealthChange, HealthHistory, Transition
from gpuplugin.core.node import NodeModel
from gpuplugin.core.usage import PodName, Reading, Seen, TenantUse, usage_of
from gpuplugin.daemon.http.page import page_html
from gpuplugin.daemon.http.pageview import (
    HISTORY_S,
    CallView,
    PageView,
    SpanView,
    UnitView,
    page_view,
    spans,
)
from gpuplugin.daemon.status import Component, StatusReport
from tests.unit.builders import PLAIN, gpus

GIB = 1024**3
EVIL = "<script>alert('x')</script>&\"'"


def tenant(
    namespace: str, pod: str, container: str, used_bytes: int, fair_bytes: int, share: float
) -> TenantUse:
    return TenantUse(
        uuid="GPU-0",
        index="0",
        pod=PodName(namespace, pod),
        container=container,
        replicas=1,
        processes=1,
        memory_bytes=used_bytes,
        sm_share=share,
        fair_memory_bytes=fair_bytes,
    )


UNIT = UnitView(
    index="0",
    uuid="GPU-0",
    product="NVIDIA X",
    state="Healthy",
    reason="",
    replicas=10,
    holders={3: "ml/trainer"},
    allocated=1,
    tenants=[tenant("ml", "trainer", "main", 40 * GIB, 8 * GIB, 0.5)],
    history_s=600.0,
    history=[SpanView(0.0, 0.5, "Unhealthy", "Xid 79"), SpanView(0.5, 1.0, "Healthy", "")],
    utilization=0.93,
    memory_used_bytes=45 * GIB,
    memory_total_bytes=80 * GIB,
    temperature_c=41.0,
    power_w=650.0,
    clock_mhz=1980,
)
VIEW = PageView(
    version="1.2.3",
    node="node-1",
    backend="sim",
    ready=True,
    components={"monitor": Component(True, "watching 1 GPUs", 0.0)},
    now_s=7300.0,
    units=[UNIT],
    calls=[CallView(3.0, "nvidia.com/gpu", ["GPU-0::3"], "")],
    unseen={},
    configuration="version: v1",
    source="/config/config.yaml",
)


class Words(HTMLParser):
    """Checks that elements are closed, and keeps the text that people see."""

    VOID = frozenset({"meta", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += data


def words(view: PageView) -> str:
    parser = Words()
    parser.feed(page_html(view))
    assert parser.open == []
    return re.sub(r"\s+", " ", parser.text)


def test_it_says_how_the_node_is_doing() -> None:
    text = words(VIEW)
    for part in (
        "gpuplugin on node-1", "Ready", "GPU 0", "Healthy", "93%", "45.0 of 80.0 GiB", "41 °C",
        "650 W", "1980 MHz", "1 of 10 replicas are held", "ml/trainer", "40.0 GiB, over", "50%",
        "GPU-0::3", "10 min ago", "watching 1 GPUs 2 h", "version: v1", "/config/config.yaml",
    ):  # fmt: skip
        assert part in text, part


def test_it_says_what_is_wrong() -> None:
    sick = replace(UNIT, state="Unhealthy", reason="Xid 79: GPU has fallen off the bus")
    call = CallView(200.0, "nvidia.com/gpu", ["a", "b"], "no device b")
    view = replace(
        VIEW, ready=False, units=[sick], calls=[call], unseen={"pods": "run with hostPID"}
    )
    text = words(view)
    for part in ("Not ready", "1 not healthy", "Xid 79", "no device b", "3 min", "hostPID"):
        assert part in text, part


def test_what_is_not_known_is_not_made_up() -> None:
    unit = replace(
        UNIT, utilization=None, memory_used_bytes=None, temperature_c=None, power_w=None,
        clock_mhz=None, allocated=None, tenants=[], history=[],
    )  # fmt: skip
    text = words(replace(VIEW, units=[unit], node=""))
    assert "? of 10 replicas" in text
    for part in ("busy", "GiB", "°C", "None"):
        assert part not in text, part
    assert "No GPU is advertised" in words(replace(VIEW, units=[]))


def test_a_thousand_replicas_are_not_drawn_one_by_one() -> None:
    many = page_html(replace(VIEW, units=[replace(UNIT, replicas=1000)]))
    assert many.count("<i ") < 20


@pytest.mark.parametrize("where", ["unit", "tenant", "call", "part", "rest"])
def test_nothing_from_outside_becomes_html(where: str) -> None:
    unit = replace(
        UNIT, index=EVIL, uuid=EVIL, product=EVIL, state=EVIL, reason=EVIL, throttled=EVIL,
        holders={1: EVIL}, history=[SpanView(0, 1, EVIL, EVIL)],
    )  # fmt: skip
    views = {
        "unit": replace(VIEW, units=[unit]),
        "tenant": replace(
            VIEW, units=[replace(UNIT, tenants=[tenant(EVIL, EVIL, EVIL, 1, 2, 0.1)])]
        ),
        "call": replace(VIEW, calls=[CallView(1, EVIL, [EVIL], EVIL)]),
        "part": replace(VIEW, components={EVIL: Component(False, EVIL, 0)}, unseen={EVIL: EVIL}),
        "rest": replace(
            VIEW, version=EVIL, node=EVIL, backend=EVIL, configuration=EVIL, source=EVIL
        ),
    }
    parser = Words()
    parser.feed(page_html(views[where]))
    assert "script" not in parser.seen


def test_history_goes_back_an_hour_or_to_the_first_state() -> None:
    young = [
        HealthChange(90.0, "u", "0", "Healthy", ""),
        HealthChange(95.0, "u", "0", "Unhealthy", "x"),
    ]
    length_s, states = spans(young, 100.0)
    assert length_s == 10.0
    assert [(one.begin, one.end, one.state) for one in states] == [
        (0.0, 0.5, "Healthy"),
        (0.5, 1.0, "Unhealthy"),
    ]
    length_s, states = spans(young, 90.0 + 2 * HISTORY_S)
    assert length_s == HISTORY_S
    assert [(one.begin, one.end, one.state) for one in states] == [(0.0, 1.0, "Unhealthy")]
    assert spans([], 100.0) == (0.0, [])


def test_time_out_of_use_adds_up() -> None:
    states = [HealthState.HEALTHY, HealthState.UNHEALTHY, HealthState.RECOVERING]
    history, before = HealthHistory(), None
    totals_s = []
    for at_s, state in zip((100.0, 110.0, 113.0, 115.0), [*states, states[0]], strict=True):
        history = history.after(Transition("u", "u", before, state, None), "0", at_s)
        before = state
        totals_s.append(history.unhealthy_s(at_s)["u", "0"])
    assert totals_s == [0.0, 0.0, 3.0, 5.0]
    assert history.unhealthy_s(200.0) == {("u", "0"): 5.0}
    assert [one.state for one in history.changes] == [
        "Healthy", "Unhealthy", "Recovering", "Healthy",
    ]  # fmt: skip


def test_a_gpu_that_is_newer_than_the_reading_is_shown_without_its_use() -> None:
    """It was an error 500 until the next reading."""
    model = NodeModel(PLAIN)
    model.updated(gpus(1), {}, 1.0)
    usage = usage_of(Seen(gpus(1), model.view.inventory, None, {}, {}))
    model.used(Reading(at_s=1.0, gpus=gpus(1), usage=usage))
    model.updated(gpus(2), {}, 2.0)
    view = page_view("1", StatusReport(True, {}, 2.0), model.view, {}, load_settings({}, {}, None))
    assert [(unit.index, unit.allocated) for unit in view.units] == [("0", None), ("1", None)]
    assert "GPU 1" in words(view)
