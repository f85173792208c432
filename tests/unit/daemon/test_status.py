"""Readiness and liveness."""

from __future__ import annotations

import json
import time

import pytest

from gpuplugin.daemon.status import StatusBoard


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
    status = StatusBoard()

    assert not status.readiness().ok
    assert status.liveness().ok


def test_it_is_ready_exactly_while_all_parts_are() -> None:
    status = StatusBoard()
    seen = []
    for name, ok in (("monitor", True), ("server", False), ("server", True), ("monitor", False)):
        status.set(name, "text", ok=ok)
        seen.append(status.readiness().ok)

    assert seen == [True, False, True, False]


def test_a_part_that_is_removed_no_longer_counts() -> None:
    status = StatusBoard()
    status.set("monitor", "fine", ok=True)
    status.set("task:x", "restarting", ok=False)
    status.remove("task:x")
    status.remove("task:never")

    assert status.readiness().ok
    assert set(status.readiness().components) == {"monitor"}


def test_a_broken_part_is_no_reason_to_die_and_is_shown() -> None:
    status = StatusBoard()
    status.set("monitor", "no driver", ok=False)

    report = status.liveness()

    assert report.ok
    assert report.components["monitor"].text == "no driver"
    assert not report.components["monitor"].ok


def test_it_is_dead_when_the_loop_no_longer_turns_though_all_parts_are_well(clock: Clock) -> None:
    status = StatusBoard()
    status.set("monitor", "fine", ok=True)
    alive = []
    for wait_s in (29.9, 0.2, 3600.0):
        clock.now_s += wait_s
        alive.append(status.liveness().ok)
    status.beat()
    alive.append(status.liveness().ok)

    assert alive == [True, False, False, True]
    assert status.readiness().ok


def test_only_news_is_news() -> None:
    status = StatusBoard()

    assert status.set("monitor", "fine", ok=True)
    assert not status.set("monitor", "fine", ok=True)
    assert status.set("monitor", "better", ok=True)
    assert status.set("monitor", "better", ok=False)


def test_the_age_is_that_of_the_state_not_of_the_text(clock: Clock) -> None:
    status = StatusBoard()
    status.set("monitor", "one", ok=True)
    clock.now_s += 5
    status.set("monitor", "two", ok=True)
    same_state = status.readiness().as_json()
    status.set("monitor", "two", ok=False)
    clock.now_s += 2.04
    other_state = status.readiness().as_json()

    monitor = {"ok": True, "text": "two", "for_s": 5, "ok_ago_s": 0}
    assert same_state == {"ok": True, "parts": {"monitor": monitor}}
    assert other_state == {
        "ok": False,
        "parts": {"monitor": {"ok": False, "text": "two", "for_s": 2.0, "ok_ago_s": 2.0}},
    }


def test_a_report_is_a_picture_and_can_be_json() -> None:
    status = StatusBoard()
    status.set("monitor", "fine", ok=True)
    report = status.readiness()
    status.set("monitor", "gone", ok=False)

    assert report.components["monitor"].ok
    assert json.loads(json.dumps(report.as_json()))["ok"] is True
    assert "event-loop" in json.dumps(status.liveness().as_json())


def test_a_part_that_is_not_ok_says_how_long_ago_it_last_was(clock: Clock) -> None:
    status = StatusBoard()
    status.set("kubelet:a", "waiting", ok=False)
    status.set("kubelet:b", "watches", ok=True)
    clock.now_s += 7
    status.set("kubelet:b", "the stream has ended", ok=False)
    clock.now_s += 3
    status.set("kubelet:b", "no kubelet", ok=False)
    status.beat()

    ages = {
        name: part.ok_ago_s(clock.now_s) for name, part in status.readiness().components.items()
    }
    assert ages == {"kubelet:a": None, "kubelet:b": 3.0}


def test_a_dead_task_is_a_reason_to_die() -> None:
    status = StatusBoard()
    status.beat(alive=False)

    assert not status.liveness().ok
