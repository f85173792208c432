"""The status page: what it says, and that nothing from outside is taken for HTML."""

from __future__ import annotations

import re
import socket
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from gpuplugin.config.load import load_settings
from gpuplugin.core.healthboard import HealthChange
from gpuplugin.core.node import NodeModel
from gpuplugin.core.usage import PodName, Reading, Seen, TenantUse, usage_of
from gpuplugin.daemon.http.page import page_html
from gpuplugin.daemon.http.pageview import (
    HISTORY_S,
    CallView,
    PageView,
    SpanView,
    UnitView,
    XidView,
    page_view,
    spans,
)
from gpuplugin.daemon.status import Component, StatusReport
from hal import GpuState, XidError
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
    action="",
    usable=True,
    gone=False,
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


@pytest.mark.parametrize(
    ("ready", "usable", "summary", "tone"),
    [
        (True, [True, True], "Ready", "good"),
        (True, [True, False], "Ready, 1 of 2 usable", "warn"),
        (True, [False, False], "Ready, none is usable", "bad"),
        (True, [], "Ready, no GPU", "bad"),
        (False, [True], "Not ready", "bad"),
    ],
)
def test_the_badge_says_whether_pods_can_have_gpus(
    ready: bool, usable: list[bool], summary: str, tone: str
) -> None:
    units = [replace(UNIT, index=str(index), usable=one) for index, one in enumerate(usable)]
    view = replace(VIEW, ready=ready, units=units)
    assert (view.summary, view.tone) == (summary, tone)
    assert summary in words(view)


def test_gpus_and_replicas_are_counted_apart() -> None:
    units = [replace(UNIT, allocated=3), replace(UNIT, replicas=4, allocated=None)]
    assert "2 GPUs · 14 replicas, 3 held" in words(replace(VIEW, units=units))
    assert "1 GPU · 10 replicas, 1 held" in words(VIEW)
    mig = [replace(UNIT, index=f"0:{number}", replicas=1) for number in range(3)]
    assert "1 GPU, 3 MIG devices · 13 replicas" in words(replace(VIEW, units=[UNIT, *mig]))


def test_what_to_do_about_a_sick_gpu_and_which_replicas_nobody_gets() -> None:
    sick = replace(
        UNIT, state="Unhealthy", reason="GPU lost", action="Reboot the node", usable=False
    )
    html = page_html(replace(VIEW, units=[sick]))
    assert "What to do: Reboot the node" in words(replace(VIEW, units=[sick]))
    assert "1 of 10 replicas are held, the others are not given out" in words(
        replace(VIEW, units=[sick])
    )
    assert html.count('<i class="unusable"') == 9
    assert html.count('<i class="free"') == 0


def test_harmless_xids_and_throttling_are_shown() -> None:
    unit = replace(UNIT, throttled="thermal", xids=[XidView(31, "MMU fault", 4, 130.0)])
    text = words(replace(VIEW, units=[unit]))
    assert "Xid 31 MMU fault: 4 times, last 2 min ago" in text
    assert "throttled: thermal" in text


def test_every_state_has_a_shape_of_its_own() -> None:
    marks = {
        words(replace(VIEW, units=[replace(UNIT, state=state)])).partition(f" {state}")[0][-1]
        for state in ("Healthy", "Recovering", "Unhealthy")
    }
    assert marks == {"✓", "▲", "✗"}


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it, of `#rgb` or `#rrggbb`."""
    digits = colour.removeprefix("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = (int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4))
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(
    ("text", "back"),
    [
        *(("ink", tone) for tone in ("good", "warn", "bad")),
        *((tone, back) for tone in ("good", "warn", "bad") for back in ("card", "back")),
        *((text, back) for text in ("text", "soft") for back in ("card", "back")),
    ],
)
def test_texts_stand_out_from_their_background(theme: str, text: str, back: str) -> None:
    """At least 4.5 to 1, the AA level of WCAG 2 for text."""
    style = re.search(r"<style>(.*?)</style>", page_html(VIEW), re.DOTALL)
    assert style
    light, dark = re.findall(r":root \{([^}]*)\}", style[1])
    colours = dict(re.findall(r"--(\w+): (#\w+)", light))
    if theme == "dark":
        colours |= dict(re.findall(r"--(\w+): (#\w+)", dark))
    one, other = sorted((luminance(colours[text]), luminance(colours[back])))
    assert (other + 0.05) / (one + 0.05) >= 4.5


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


def test_a_gpu_that_is_newer_than_the_reading_is_shown_without_its_use() -> None:
    """It was an error 500 until the next reading."""
    model = NodeModel(PLAIN)
    model.updated(gpus(1), {}, 1.0)
    usage = usage_of(Seen(gpus(1), model.view.inventory, None, {}, {}))
    model.used(Reading(at_s=1.0, gpus=gpus(1), usage=usage))
    model.updated(gpus(2), {}, 2.0)
    view = page_view("1", StatusReport(True, {}, 2.0), model.view, [], load_settings({}, {}, None))
    assert [(unit.index, unit.allocated) for unit in view.units] == [("0", None), ("1", None)]
    assert "GPU 1" in words(view)


def test_sick_gpus_come_first_and_replaced_ones_last() -> None:
    """A GPU that another one replaced has its index; both are listed until it is forgotten."""
    model = NodeModel(PLAIN)
    old = gpus(3)
    model.updated(old, {}, 1.0)
    new = replace(old[2], uuid="GPU-new")
    model.updated((*old[:2], new, replace(old[2], state=GpuState.LOST)), {}, 2.0)
    events = [XidError(old[1].uuid, 79), XidError(old[0].uuid, 13), XidError(old[0].uuid, 13)]
    model.events_received(events, 3.0)
    settings = load_settings({}, {}, None)
    view = page_view("1", StatusReport(True, {}, 63.0), model.view, [], settings)
    assert [(one.uuid, one.state, one.usable, one.gone) for one in view.units] == [
        (old[1].uuid, "Unhealthy", False, False),
        (old[0].uuid, "Healthy", True, False),
        ("GPU-new", "Healthy", True, False),
        (old[2].uuid, "Unhealthy", False, True),
    ]
    assert view.summary == "Ready, 2 of 3 usable"
    assert "3 GPUs, 1 not healthy, 1 replaced" in words(view)
    assert view.units[0].action == "Reboot the node"
    assert "Xid 13 Graphics Engine Exception: 2 times, last 60 s ago" in words(view)
    assert "GPU 2, replaced by another one" in words(view)


def test_without_a_configured_name_the_node_has_that_of_its_host() -> None:
    model = NodeModel(PLAIN)
    view = page_view("1", StatusReport(True, {}, 1.0), model.view, [], load_settings({}, {}, None))
    assert view.node == socket.gethostname()
