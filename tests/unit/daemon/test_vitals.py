"""Readiness and liveness."""

from __future__ import annotations

import json
import time

import pytest

from gpuplugin.daemon.status import Vitals


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def test_without_any_part_it_is_not_ready_but_alive() -> None:
    vitals = Vitals()

    assert not vitals.readiness().ok
    assert vitals.liveness().ok


def test_it_is_ready_exactly_while_all_parts_are() -> None:
    vitals = Vitals()
    seen = []
    for name, ok in (("monitor", True), ("server", False), ("server", True), ("monitor", False)):
        vitals.set(name, "text", ok=ok)
        seen.append(vitals.readiness().ok)

    assert seen == [True, False, True, False]


def test_a_part_that_is_removed_no_longer_counts() -> None:
    vitals = Vitals()
    vitals.set("monitor", "fine", ok=True)
    vitals.set("task:x", "restarting", ok=False)
    vitals.remove("task:x")
    vitals.remove("task:never")

    assert vitals.readiness().ok
    assert set(vitals.readiness().parts) == {"monitor"}


def test_a_broken_part_is_no_reason_to_die_and_is_shown() -> None:
    vitals = Vitals()
    vitals.set("monitor", "no driver", ok=False)

    report = vitals.liveness()

    assert report.ok
    assert report.parts["monitor"].text == "no driver"
    assert not report.parts["monitor"].ok


def test_it_is_dead_when_the_loop_no_longer_turns_though_all_parts_are_well(clock: Clock) -> None:
    vitals = Vitals()
    vitals.set("monitor", "fine", ok=True)
    alive = []
    for wait_s in (29.9, 0.2, 3600.0):
        clock.now_s += wait_s
        alive.append(vitals.liveness().ok)
    vitals.beat()
    alive.append(vitals.liveness().ok)

    assert alive == [True, False, False, True]
    assert vitals.readiness().ok


def test_only_news_is_news() -> None:
    vitals = Vitals()

    assert vitals.set("monitor", "fine", ok=True)
    assert not vitals.set("monitor", "fine", ok=True)
    assert vitals.set("monitor", "better", ok=True)
    assert vitals.set("monitor", "better", ok=False)


def test_the_age_is_that_of_the_state_not_of_the_text(clock: Clock) -> None:
    vitals = Vitals()
    vitals.set("monitor", "one", ok=True)
    clock.now_s += 5
    vitals.set("monitor", "two", ok=True)
    same_state = vitals.readiness().as_json()
    vitals.set("monitor", "two", ok=False)
    clock.now_s += 2.04
    other_state = vitals.readiness().as_json()

    monitor = {"ok": True, "text": "two", "for_s": 5, "ok_ago_s": 0}
    assert same_state == {"ok": True, "parts": {"monitor": monitor}}
    assert other_state == {
        "ok": False,
        "parts": {"monitor": {"ok": False, "text": "two", "for_s": 2.0, "ok_ago_s": 2.0}},
    }


def test_a_report_is_a_picture_and_can_be_json() -> None:
    vitals = Vitals()
    vitals.set("monitor", "fine", ok=True)
    report = vitals.readiness()
    vitals.set("monitor", "gone", ok=False)

    assert report.parts["monitor"].ok
    assert json.loads(json.dumps(report.as_json()))["ok"] is True
    assert "event-loop" in json.dumps(vitals.liveness().as_json())


def test_a_part_that_is_not_ok_says_how_long_ago_it_last_was(clock: Clock) -> None:
    vitals = Vitals()
    vitals.set("kubelet:a", "waiting", ok=False)
    vitals.set("kubelet:b", "watches", ok=True)
    clock.now_s += 7
    vitals.set("kubelet:b", "the stream has ended", ok=False)
    clock.now_s += 3
    vitals.set("kubelet:b", "no kubelet", ok=False)

    ages = {name: part.ok_ago_s(clock.now_s) for name, part in vitals.readiness().parts.items()}
    assert ages == {"kubelet:a": None, "kubelet:b": 3.0}
