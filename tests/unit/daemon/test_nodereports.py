"""What is sent when: order, pace, retries, latest-wins. No sockets, and the clock is the test's."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from gpuplugin.config.load import load_settings
from gpuplugin.config.options import OPTIONS
from gpuplugin.core.nodecondition import Condition, GpuReport
from gpuplugin.daemon.cluster import nodereports
from gpuplugin.daemon.cluster.eventqueue import CAPACITY, NodeCondition, ReportFailed
from gpuplugin.daemon.cluster.nodereports import (
    BURST,
    EVERY_S,
    HEARTBEAT_S,
    NodeReporter,
    make_reporter,
)
from gpuplugin.daemon.http.metrics import Metrics
from gpuplugin.daemon.tasks import Fatal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gpuplugin.config.settings import Settings
    from gpuplugin.daemon.cluster.eventqueue import NodeEvent

START = datetime(2026, 1, 1, tzinfo=UTC)
GOOD = Condition(True, "AllGPUsHealthy", "all")
BAD = Condition(False, "GPUsNotHealthy", "one")
BLIND = Condition(None, "MonitorBlind", "no driver")
LATER = ReportFailed("500 from the API server", retryable=True)
NEVER = ReportFailed("403 from the API server", retryable=False)


def sick(gpu: int) -> GpuReport:
    return GpuReport(f"GPU-{gpu}", str(gpu), "Unhealthy", "lost", "reset")


def void(_value: object) -> None:
    """Forget a result."""


class FakeApi:
    """Keeps what it is sent; fails as often as `troubles` says."""

    def __init__(self) -> None:
        self.events: list[NodeEvent] = []
        self.conditions: list[NodeCondition] = []
        self.looks = 0
        self.tries: list[str] = []
        self.troubles: list[ReportFailed] = []
        self.event_trouble: ReportFailed | None = None
        self.stored: NodeCondition | None = None
        self.meanwhile: Callable[[], None] = lambda: None

    def post_event(self, event: NodeEvent) -> None:
        self._try("event")
        if self.event_trouble:
            raise self.event_trouble
        self.events.append(event)

    def patch_condition(self, condition: NodeCondition | None) -> NodeCondition | None:
        self._try("condition")
        if condition is None:
            self.looks += 1
        else:
            self.conditions.append(condition)
            self.stored = condition
        return self.stored

    def _try(self, kind: str) -> None:
        self.tries.append(kind)
        self.meanwhile()
        if self.troubles:
            raise self.troubles.pop(0)


class Bench:
    """A reporter with a fake API server and a clock that only `after` moves."""

    def __init__(self) -> None:
        self.api = FakeApi()
        self.metrics = Metrics()
        self.now_s = 7.0
        self.reporter = NodeReporter(
            self.api, "node-1", self.metrics, lambda: self.now_s, lambda: self.now
        )

    @property
    def now(self) -> datetime:
        return START + timedelta(seconds=self.now_s)

    def after(self, seconds: float) -> float | None:
        """What is due `seconds` later; returns how long nothing is due then."""
        self.now_s += seconds
        return asyncio.run(self.reporter.turn())

    def report(self, *gpus: int, condition: Condition = BAD) -> None:
        self.reporter.report([sick(gpu) for gpu in gpus], condition)

    def count(self, kind: str, result: str) -> float:
        return self.metrics.node_reports.labels(kind, result).value


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_nothing_is_sent_before_something_is_reported(bench: Bench) -> None:
    assert bench.after(1e6) is None
    assert bench.api.tries == []


def test_events_and_the_condition_are_sent_once(bench: Bench) -> None:
    bench.report(0, 1)
    assert bench.after(0) == HEARTBEAT_S
    assert bench.after(HEARTBEAT_S - 1) == 1

    assert [one.message for one in bench.api.events] == [sick(n).event_message for n in (0, 1)]
    (condition,) = bench.api.conditions
    assert (condition.status, condition.reason, condition.message) == (
        "False",
        "GPUsNotHealthy",
        "one",
    )
    assert condition.since == condition.seen == START + timedelta(seconds=7)
    assert (bench.count("event", "sent"), bench.count("condition", "sent")) == (2, 1)


def test_the_condition_goes_first(bench: Bench) -> None:
    bench.report(0)
    bench.after(0)

    assert bench.api.tries == ["condition", "condition", "event"]


def test_events_come_in_a_burst_and_then_slowly(bench: Bench) -> None:
    bench.report(*range(BURST + 3))
    assert bench.after(0) == EVERY_S
    assert len(bench.api.events) == BURST
    bench.after(EVERY_S - 0.5)
    assert len(bench.api.events) == BURST
    for more in (1, 2, 3):
        bench.after(EVERY_S)
        assert len(bench.api.events) == BURST + more


def test_the_same_news_is_one_event_with_a_count(bench: Bench) -> None:
    for _ in range(5):
        bench.report(0)
    bench.after(0)
    bench.report(0)
    bench.after(1)

    assert [(one.count, one.known) for one in bench.api.events] == [(5, False), (6, True)]
    assert len({one.name for one in bench.api.events}) == 1


def test_the_last_condition_wins(bench: Bench) -> None:
    for condition in (GOOD, BAD, BLIND):
        bench.report(condition=condition)
    bench.after(0)

    assert [one.status for one in bench.api.conditions] == ["Unknown"]


def test_a_condition_that_changes_while_it_is_sent_is_sent_again(bench: Bench) -> None:
    bench.report(condition=BAD)
    changes = [GOOD]

    def change() -> None:
        if bench.api.looks and changes:
            bench.report(condition=changes.pop())

    bench.api.meanwhile = change
    bench.after(0)

    assert [one.status for one in bench.api.conditions] == ["False", "True"]


def test_a_condition_that_stays_is_a_heartbeat_every_five_minutes(bench: Bench) -> None:
    for _ in range(3):
        bench.report(condition=GOOD)
        bench.after(1)
    assert len(bench.api.conditions) == 1
    bench.after(HEARTBEAT_S)

    first, beat = bench.api.conditions
    assert beat.since == first.since
    assert beat.seen - first.seen == timedelta(seconds=2 + HEARTBEAT_S)


def test_the_transition_time_is_that_of_the_status(bench: Bench) -> None:
    more = Condition(False, BAD.reason, "two")
    for condition, pause_s in ((GOOD, 0), (BAD, 10), (more, 10), (GOOD, 10)):
        bench.now_s += pause_s
        bench.report(condition=condition)
        bench.after(0)

    since_s = [(one.since - START).total_seconds() - 7 for one in bench.api.conditions]
    assert since_s == [0, 10, 10, 30]


def test_the_transition_time_is_when_it_happened_not_when_it_was_sent(bench: Bench) -> None:
    bench.report(condition=GOOD)
    bench.after(0)
    bench.api.troubles = [LATER]
    bench.report(condition=BAD)
    bench.after(0)
    bench.after(1)

    assert bench.api.conditions[-1].since == START + timedelta(seconds=7)
    assert bench.api.conditions[-1].seen == START + timedelta(seconds=8)


def test_other_words_for_an_unsent_status_are_no_transition(bench: Bench) -> None:
    bench.report(condition=BAD)
    bench.now_s += 5
    bench.report(condition=Condition(False, BAD.reason, "two"))
    bench.after(0)

    assert bench.api.conditions[-1].since == START + timedelta(seconds=7)
    assert bench.api.conditions[-1].message == "two"


def test_a_status_that_came_and_went_unsent_is_no_transition(bench: Bench) -> None:
    bench.report(condition=GOOD)
    bench.after(0)
    bench.now_s += 5
    bench.report(condition=BAD)
    bench.report(condition=Condition(True, GOOD.reason, "other"))
    bench.after(0)

    first, last = bench.api.conditions
    assert last.since == first.since


@pytest.mark.parametrize(("condition", "kept"), [(BAD, True), (GOOD, False)])
def test_a_restart_keeps_the_transition_time_of_a_status_that_stayed(
    bench: Bench, condition: Condition, *, kept: bool
) -> None:
    before = START - timedelta(days=1)
    bench.api.stored = NodeCondition("False", "x", "y", before, before)
    bench.report(condition=condition)
    bench.after(0)

    assert bench.api.looks == 1
    assert (bench.api.conditions[0].since == before) is kept


def test_changes_of_the_condition_have_a_pace_too(bench: Bench) -> None:
    for turn in range(101):
        bench.report(condition=(GOOD, BAD)[turn % 2])
        bench.after(0)
    assert len(bench.api.conditions) == BURST
    bench.after(EVERY_S)
    bench.after(EVERY_S)

    assert len(bench.api.conditions) == BURST + 1
    assert bench.api.conditions[-1].status == "True", "the last of them"


def test_failures_are_tried_again_ever_more_slowly(bench: Bench) -> None:
    bench.report(0, condition=GOOD)
    bench.api.event_trouble = LATER
    waits_s = [bench.after(0)]
    for _ in range(8):
        waits_s.append(bench.after(waits_s[-1] or 0))
    assert waits_s[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert bench.count("event", "failed") == 9
    bench.api.event_trouble = None
    bench.after(60)

    assert [one.count for one in bench.api.events] == [1]
    assert bench.count("event", "sent") == 1


def test_success_resets_the_wait(bench: Bench) -> None:
    bench.report(condition=GOOD)
    for _ in range(2):
        bench.api.troubles = [LATER, LATER]
        assert bench.after(0) == 1
        assert bench.after(1) == 2
        assert bench.after(2) == HEARTBEAT_S
        bench.after(HEARTBEAT_S - 1)
        bench.now_s += 1


def test_the_servers_wish_to_wait_is_honoured(bench: Bench) -> None:
    bench.report(condition=GOOD)
    bench.api.troubles = [ReportFailed("429", retryable=True, wait_s=33)]

    assert bench.after(0) == 33


def test_events_that_fail_do_not_hold_up_the_condition(bench: Bench) -> None:
    bench.api.event_trouble = LATER
    bench.report(0, condition=BAD)
    bench.after(0)
    bench.report(condition=GOOD)
    bench.after(0.1)

    assert [one.status for one in bench.api.conditions] == ["False", "True"]


def test_a_refused_event_is_not_tried_again(bench: Bench) -> None:
    bench.api.event_trouble = NEVER
    bench.report(0, condition=GOOD)
    assert bench.after(0) == HEARTBEAT_S

    assert bench.api.tries.count("event") == 1
    assert bench.count("event", "refused") == 1


def test_refused_events_have_a_pace_too(bench: Bench) -> None:
    bench.api.event_trouble = NEVER
    bench.report(*range(BURST + 3), condition=GOOD)
    assert bench.after(0) == EVERY_S

    assert bench.api.tries.count("event") == BURST


def test_a_refused_condition_is_tried_with_the_next_change_or_heartbeat(bench: Bench) -> None:
    bench.api.troubles = [NEVER]
    bench.report(condition=BAD)
    assert bench.after(0) == HEARTBEAT_S
    assert bench.api.conditions == []
    bench.report(condition=GOOD)
    bench.after(1)

    assert [one.status for one in bench.api.conditions] == ["True"]
    bench.api.troubles = [NEVER]
    bench.after(HEARTBEAT_S)
    bench.after(HEARTBEAT_S)
    assert len(bench.api.conditions) == 2


def test_the_oldest_events_give_way_and_are_counted(bench: Bench) -> None:
    bench.api.troubles = [LATER, LATER]
    bench.report(*range(CAPACITY + 7), condition=BAD)
    assert bench.count("event", "dropped") == 7
    bench.after(0)
    bench.after(1)

    assert bench.api.events[0].message == sick(7).event_message
    assert bench.api.conditions[-1].status == "False"


def test_stale_events_are_dropped_and_counted(bench: Bench) -> None:
    bench.api.event_trouble = LATER
    bench.report(0, 1, condition=GOOD)
    bench.after(0)
    bench.after(3601)

    assert bench.count("event", "dropped") == 2


def test_trouble_is_logged_when_it_changes(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    troubles = [LATER, LATER, NEVER, NEVER, None, None, LATER]
    for trouble in troubles:
        bench.api.event_trouble = trouble
        bench.report(len(bench.api.tries), condition=GOOD)
        bench.after(120)

    assert [(one.levelname, one.__dict__["result"]) for one in caplog.records] == [
        ("WARNING", "failed"),
        ("WARNING", "refused"),
        ("INFO", "sent"),
        ("WARNING", "failed"),
    ]
    assert {one.__dict__["event"] for one in caplog.records} == {"node-report"}
    assert "403 from the API server" in caplog.messages[1]


def test_a_hanging_call_is_a_failure_and_holds_up_neither_loop_nor_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodereports, "DEADLINE_S", 0.3)
    release = threading.Event()
    bench.api.meanwhile = lambda: void(release.wait())
    bench.report(0, condition=GOOD)

    assert bench.after(0) == 1
    assert bench.count("condition", "failed") == 1
    assert bench.count("event", "failed") == 1
    assert bench.api.tries == ["condition"], "one call hangs, no other is begun behind it"
    bench.api.meanwhile = lambda: None
    release.set()


def test_the_task_wakes_for_news_and_ends_when_cancelled(bench: Bench) -> None:
    async def main() -> None:
        arrived = asyncio.Event()
        loop = asyncio.get_running_loop()
        bench.api.meanwhile = lambda: void(loop.call_soon_threadsafe(arrived.set))
        task = asyncio.create_task(bench.reporter.run())
        await asyncio.sleep(0)
        for condition in (GOOD, BAD):
            arrived.clear()
            bench.report(condition=condition)
            async with asyncio.timeout(10):
                await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


# Whether there is a reporter at all

_FLAGS = {flag: option for option in OPTIONS for flag in option.flags}


def settings(**flags: str) -> Settings:
    given = {f"--{flag.replace('_', '-')}": text for flag, text in flags.items()}
    return load_settings({_FLAGS[flag]: text for flag, text in given.items()}, {}, None).settings


ON = {"kubernetes_reports": "true", "node_name": "node-1"}


def test_reports_are_off_by_default() -> None:
    assert not settings().daemon.kubernetes_reports
    assert not settings(node_name="node-1").daemon.kubernetes_reports


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gpuplugin.daemon.cluster.kubeapi", raising=False)
    monkeypatch.setitem(sys.modules, "lightkube", None)

    with pytest.raises(Fatal, match=r"pip install 'gpuplugin\[kubernetes\]'"):
        make_reporter(settings(**ON), Metrics())


def test_a_cluster_that_is_not_configured_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))

    with pytest.raises(Fatal, match=r"automountServiceAccountToken.*KUBECONFIG"):
        make_reporter(settings(**ON), Metrics())


def test_the_daemon_does_not_load_the_library_unless_it_is_wanted() -> None:
    code = (
        "import sys, gpuplugin.daemon.app as app, gpuplugin.cli.run; "
        "print([name for name in sys.modules if name.split('.')[0] in ('lightkube', 'httpx2')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"
