"""When the hardware is asked, and for how long that may fail."""

from __future__ import annotations

import math

import pytest

from gpuplugin.core.health import HealthPolicy
from gpuplugin.core.healthboard import HealthBoard
from gpuplugin.core.watch import (
    EVENT_WAIT_S,
    SOON_S,
    STABLE_AFTER_S,
    Watch,
    WatchFailed,
    WatchPlan,
    judge_probes,
)
from hal import DriverUnavailable, GpuAppeared, HalError, HalHung, Probe, UnknownGpu, XidError
from tests.component.fakedriver import made_up_gpu
from tests.unit.builders import a_probe

PLAN = WatchPlan(probe_interval_s=5.0, blind_after_s=10.0)
BOARD = HealthBoard()
ERROR = HalError("the call fails")
RECOVERY_ACTION_CHANGED = 154


def opened(now_s: float = 101.0) -> Watch:
    watch = Watch(PLAN)
    watch.opened(now_s)
    return watch


def test_updates_are_at_whole_periods() -> None:
    watch = opened(101.0)
    assert watch.update_due_s(BOARD) == 105.0
    watch.updated(105.02)
    assert watch.update_due_s(BOARD) == 110.0


def test_an_update_close_before_a_period_puts_off_the_next_one() -> None:
    assert opened(104.99).update_due_s(BOARD) == 104.99 + SOON_S


@pytest.mark.parametrize(
    "event", [GpuAppeared("GPU-1"), XidError("GPU-1", RECOVERY_ACTION_CHANGED)]
)
def test_an_event_that_only_a_probe_explains_brings_the_update_forward(
    event: GpuAppeared | XidError,
) -> None:
    watch = opened()
    watch.events_received([event])
    assert watch.update_due_s(BOARD) == 101.0 + SOON_S
    watch.updated(101.1)
    assert watch.update_due_s(BOARD) == 105.0


def test_one_that_asks_for_an_update_is_enough() -> None:
    watch = opened()
    watch.events_received([XidError("GPU-1", 79), GpuAppeared("GPU-1")])
    watch.events_received([XidError("GPU-1", 79)])
    assert watch.update_due_s(BOARD) == 101.0 + SOON_S


def test_other_events_do_not() -> None:
    watch = opened()
    watch.events_received([XidError("GPU-1", 79)])
    assert watch.update_due_s(BOARD) == 105.0


def test_without_a_probe_interval_only_what_is_not_settled_is_probed() -> None:
    watch = Watch(WatchPlan(probe_interval_s=0.0, blind_after_s=10.0))
    watch.opened(100.0)
    gpu = made_up_gpu(0)
    well = HealthBoard().with_gpus([gpu], 100.0, HealthPolicy())
    assert watch.update_due_s(well) == math.inf
    sick = well.with_event(XidError(gpu.uuid, 79), 101.0, HealthPolicy())
    assert watch.update_due_s(sick) == 105.0
    watch.events_received([GpuAppeared("GPU-1")])
    assert watch.update_due_s(well) == 100.0 + SOON_S
    watch.updated(101.0)
    watch.update_failed(ERROR, 102.0)
    assert watch.update_due_s(well) < 110.0


def test_failed_updates_are_repeated_until_the_node_is_blind() -> None:
    watch = opened(100.0)
    tried_s = [105.0]
    while tried_s[-1] < 109.999:
        watch.update_failed(ERROR, tried_s[-1])
        tried_s.append(watch.update_due_s(BOARD))
    assert tried_s[-1] == pytest.approx(110.0)
    assert 3 <= len(tried_s) < 10
    with pytest.raises(WatchFailed, match=r"probe failed for 10\.0 s: the call fails"):
        watch.update_failed(ERROR, 110.0)
    assert watch.updates.failures == len(tried_s)


def test_success_forgets_failures() -> None:
    watch = opened(100.0)
    watch.update_failed(ERROR, 109.0)
    watch.updated(109.5)
    watch.update_failed(ERROR, 119.0)
    assert watch.updates.failures == 1


def test_failed_waits_for_events_are_repeated_with_back_off() -> None:
    watch = opened(100.0)
    pauses_s = [watch.events_failed(ERROR, 101.0) for _ in range(4)]
    assert pauses_s == pytest.approx([0.1, 0.2, 0.4, 0.8])
    with pytest.raises(WatchFailed):
        watch.events_failed(ERROR, 110.0)


def test_waits_that_were_left_out_count_as_good() -> None:
    watch = opened(100.0)
    watch.events.repeated(163.0, EVENT_WAIT_S)
    assert watch.events_failed(ERROR, 169.0) > 0
    with pytest.raises(WatchFailed, match=r"events failed for 10\.0 s"):
        watch.events_failed(ERROR, 170.0)


def test_updates_that_were_left_out_count_as_good() -> None:
    watch = opened(100.0)
    watch.skip_updates(163.0)
    assert watch.update_due_s(BOARD) == 165.0
    watch.update_failed(ERROR, 172.0)
    assert watch.updates.failures == 1
    watch.skip_updates(191.0)
    watch.updated(191.0)
    watch.update_failed(ERROR, 196.0)
    watch.skip_updates(201.0)
    assert watch.update_due_s(BOARD) == 205.0, "the pause after a failure is over"


@pytest.mark.parametrize(
    ("probe_interval_s", "blind_after_s", "hang_after_s"),
    [(5, 10, 4), (2, 10, 6.4), (5, 30, 20), (60, 10, 4), (0.1, 2, 1.52)],
)
def test_a_hang_is_noticed_within_the_time_that_watching_may_fail(
    probe_interval_s: float, blind_after_s: float, hang_after_s: float
) -> None:
    plan = WatchPlan(probe_interval_s, blind_after_s)
    assert plan.hang_after_s == pytest.approx(hang_after_s)
    if probe_interval_s <= blind_after_s / 2:
        assert probe_interval_s + plan.hang_after_s < blind_after_s


def test_links_are_read_when_other_gpus_are_reached() -> None:
    watch = Watch(PLAN)
    gone = Probe.unreachable("")
    assert watch.links_due({"a": a_probe(), "b": gone})
    assert not watch.links_due({"a": a_probe(), "b": gone})
    assert not watch.links_due({"a": gone, "b": gone})
    assert watch.links_due({"a": a_probe(), "b": a_probe()})


def test_opening_is_repeated_with_back_off() -> None:
    watch = Watch(PLAN)
    assert [watch.open_failed(0.0) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    watch.opened(100.0)
    assert watch.open_failed(200.0) == 201.0


def test_a_driver_that_fails_soon_is_reopened_later_and_later() -> None:
    watch = opened(0.0)
    delays_s = []
    for now_s in (10.0, 20.0, 30.0):
        delays_s.append(watch.closed(now_s) - now_s)
        watch.opened(now_s)
    assert delays_s == [1, 2, 4]
    assert watch.closed(30.0 + STABLE_AFTER_S + 1) == 30.0 + STABLE_AFTER_S + 2


class TestProbes:
    """What probes mean together."""

    def test_one_that_fails_is_one_gpu_that_does_not_answer(self) -> None:
        probes = judge_probes({"a": a_probe(), "b": ERROR}, HealthBoard())
        assert probes.by_uuid == {"a": a_probe(), "b": Probe.unreachable("")}
        assert probes.failures == {"b": ERROR}
        assert probes.by_uuid["b"].uncorrectable_ecc is None

    @pytest.mark.parametrize(
        "results",
        [
            {"a": ERROR},
            {"a": UnknownGpu("a"), "b": ERROR},
            {"a": HalHung("the call hangs"), "b": ERROR},
            {"a": a_probe(), "b": DriverUnavailable("the driver does not answer")},
        ],
    )
    def test_no_gpu_that_can_be_probed_is_a_driver_that_fails(
        self, results: dict[str, Probe | HalError]
    ) -> None:
        with pytest.raises(HalError):
            judge_probes(results, HealthBoard())

    def test_a_gpu_that_hangs_is_that_gpus_fault_even_alone(self) -> None:
        probes = judge_probes({"a": HalHung("the call hangs")}, HealthBoard())
        assert probes.by_uuid == {"a": Probe.unreachable("")}

    def test_an_unknown_gpu_is_left_out(self) -> None:
        probes = judge_probes({"a": a_probe(), "b": UnknownGpu("b")}, HealthBoard())
        assert list(probes.by_uuid) == ["a"]

    def test_a_node_without_gpus(self) -> None:
        assert judge_probes({}, HealthBoard()).by_uuid == {}


def test_failing_waits_are_tried_again_every_five_seconds_at_most() -> None:
    watch = Watch(WatchPlan(probe_interval_s=5.0, blind_after_s=1000.0))
    watch.opened(100.0)
    pauses_s = [watch.events_failed(ERROR, 100.0 + turn) for turn in range(20)]
    assert pauses_s[0] == 0.1
    assert max(pauses_s) == 5.0


def test_what_was_repeated_was_good_at_its_last_turn() -> None:
    watch = opened(100.0)
    watch.events.repeated(117.0, EVENT_WAIT_S)
    with pytest.raises(WatchFailed, match=r"failed for 10\.0 s"):
        watch.events_failed(ERROR, 125.0)


def test_failed_updates_are_tried_again_after_five_seconds_at_most() -> None:
    watch = Watch(WatchPlan(probe_interval_s=60.0, blind_after_s=1000.0))
    watch.opened(0.0)
    now_s, pauses_s = 0.0, []
    for _ in range(6):
        watch.update_failed(ERROR, now_s)
        pauses_s.append(watch._pause_s)
        now_s += watch._pause_s
    assert pauses_s == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
