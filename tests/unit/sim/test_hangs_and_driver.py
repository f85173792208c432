"""Calls that do not return, a driver that is not there, and events that cannot be waited for."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal import (
    DriverUnavailable,
    EccError,
    GpuAppeared,
    GpuDisappeared,
    GpuState,
    RecoveryAction,
    TimeSliceLevel,
    XidError,
)
from sim.gpu.scheduler import until_s
from sim.node.node import SimulatedNode
from sim.node.realtime import RealTimeNode, SimBackend
from sim.node.scenario import parse_scenario
from tests.component.waiting import eventually
from tests.unit.sim.nodes import Story

if TYPE_CHECKING:
    from collections.abc import Callable

    from hal import Backend

DEADLINE_S = 20.0
T = TypeVar("T")

both_ways = pytest.mark.parametrize("by_hand", [False, True], ids=["timed", "by hand"])

ABOUT_A_GPU: dict[str, Callable[[Backend, str], object]] = {
    "probe": lambda hal, uuid: hal.probe(uuid),
    "telemetry": lambda hal, uuid: hal.telemetry(uuid),
    "processes": lambda hal, uuid: hal.processes(uuid),
    "set_time_slice": lambda hal, uuid: hal.set_time_slice(uuid, TimeSliceLevel.SHORT),
}
EVERY_CALL: dict[str, Callable[[Backend, str], object]] = {
    **ABOUT_A_GPU,
    "open": lambda hal, _: hal.open(),
    "gpus": lambda hal, _: hal.gpus(),
    "links": lambda hal, _: hal.links(),
    "wait_events": lambda hal, _: hal.wait_events(0),
}


class Call(Generic[T]):
    """A call in a thread of its own that is on its way when this is made."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._returned: list[T] = []
        self._error: Exception | None = None
        entered = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(entered,), daemon=True)
        self._thread.start()
        assert entered.wait(DEADLINE_S)

    def _run(self, entered: threading.Event) -> None:
        entered.set()
        try:
            self._returned.append(self._function())
        except Exception as error:  # noqa: BLE001 - kept for whoever asks
            self._error = error

    @property
    def hangs(self) -> bool:
        return self._thread.is_alive()

    def result(self) -> T:
        self._thread.join(DEADLINE_S)
        assert not self.hangs, "it still hangs"
        if self._error is not None:
            raise self._error
        return self._returned[0]


def count_errors(story: Story) -> Call[int | None]:
    """A call about GPU 0 whose answer tells of an ECC error that came before it returned."""
    return Call(lambda: story.hal.telemetry(story.uuids[0]).corrected_ecc)


# A GPU that hangs


@both_ways
@pytest.mark.parametrize("name", ABOUT_A_GPU)
def test_calls_about_a_gpu_that_hangs_return_when_it_recovers(name: str, by_hand: bool) -> None:
    story = Story("{kind: hang}", "{kind: recover}", by_hand=by_hand)
    uuid = story.uuids[0]
    story.next()
    epochs: list[str] = []

    def ask() -> None:
        ABOUT_A_GPU[name](story.hal, uuid)
        epochs.append(story.hal.probe(uuid).epoch)

    call = Call(ask)
    for other in story.uuids[1:]:
        ABOUT_A_GPU[name](story.hal, other)
    for question in ("gpus", "links", "wait_events"):
        EVERY_CALL[question](story.hal, uuid)
    assert story.hal.gpus()[0].state is GpuState.OK
    assert call.hangs
    story.next()

    call.result()
    assert epochs == [story.hal.probe(uuid).epoch], "it returned before the recovery"


@both_ways
def test_a_hang_ends_at_its_time(by_hand: bool) -> None:
    story = Story("{kind: hang, for_s: 5}", by_hand=by_hand)
    story.next()
    call = count_errors(story)
    story.at(14.9)
    story.let("{kind: ecc}")
    assert call.hangs
    story.at(15)

    assert call.result() == 1
    assert count_errors(story).result() == 1


@given(st.integers(0, 10**15), st.integers(1, 10**9))
def test_what_lasts_for_a_time_is_over_at_the_nanosecond_when_the_clock_looks_again(
    now_ns: int, for_ms: int
) -> None:
    looks_again_ns = now_ns + for_ms * 1_000_000
    assert until_s(now_ns / 1e9, for_ms / 1000) == looks_again_ns / 1e9


def test_a_later_hang_counts() -> None:
    story = Story("{kind: hang, for_s: 5}")
    story.next()
    story.at(12)
    story.let("{kind: hang, for_s: 10}")
    call = count_errors(story)
    story.at(16)
    story.let("{kind: ecc}")
    story.at(22)

    assert call.result() == 1


@pytest.mark.parametrize("what", ["{kind: lost}", "{kind: unplug}", "{kind: replace}"])
def test_a_hang_ends_with_the_gpu(what: str) -> None:
    story = Story("{kind: hang}", what)
    story.next()
    call = Call(lambda: story.hal.probe(story.uuids[0]))
    story.next()

    assert not call.result().reachable


def test_stopping_the_node_ends_hanging_calls() -> None:
    story = Story("{kind: hang}")
    story.next()
    calls = [Call(lambda: story.hal.probe(story.uuids[0])) for _ in range(3)]
    story.node.stop()

    for call in calls:
        with pytest.raises(DriverUnavailable, match="stopped while a call to its driver hung"):
            call.result()


def test_closing_the_backend_ends_no_hanging_call() -> None:
    story = Story("{kind: driver-hang}")
    story.next()
    call = Call(lambda: story.hal.wait_events(0))
    story.hal.close()
    story.let("{kind: ecc}")
    assert call.hangs
    story.let("{kind: driver-up}")

    assert call.result() == (EccError(story.uuids[0], uncorrectable=False),)


@pytest.mark.parametrize(
    "hang", ["gpu: 0, what: {kind: hang, for_s: 1000}", "what: {kind: driver-hang, for_s: 1000}"]
)
def test_a_timed_hang_ends_in_real_time_without_anybody_asking(hang: str) -> None:
    text = f"gpus: [{{model: t4}}]\nfaults: [{{at_s: 50, {hang}}}]"
    node = RealTimeNode(SimulatedNode(parse_scenario(text, "x")), speed=10_000)
    backend = SimBackend(node)
    (uuid,) = (gpu.uuid for gpu in backend.gpus())
    backend.open()
    try:

        def hung_until_s() -> float | None:
            with node.read() as model:
                called_s = model.now_s
            Call(lambda: backend.probe(uuid)).result()
            with node.read() as model:
                return model.now_s if called_s >= 50 else None

        assert eventually(hung_until_s) >= 1050
    finally:
        node.stop()


# The driver


@both_ways
@pytest.mark.parametrize("name", EVERY_CALL)
def test_no_call_works_without_the_driver(name: str, by_hand: bool) -> None:
    story = Story("{kind: driver-down}", "{kind: driver-up}", by_hand=by_hand)
    EVERY_CALL[name](story.hal, story.uuids[0])
    story.next()
    with pytest.raises(DriverUnavailable) as error:
        EVERY_CALL[name](story.hal, story.uuids[0])
    story.next()
    EVERY_CALL[name](story.hal, story.uuids[0])

    assert error.value.cause == "the simulated driver is not loaded"
    assert "sim inject --driver up" in error.value.remedy
    story.node.stop()


@both_ways
@pytest.mark.parametrize("name", EVERY_CALL)
def test_no_call_returns_while_the_driver_hangs(name: str, by_hand: bool) -> None:
    story = Story("{kind: driver-hang, for_s: 4}", by_hand=by_hand)
    story.next()
    returned_at_s: list[float] = []

    def ask() -> None:
        EVERY_CALL[name](story.hal, story.uuids[0])
        returned_at_s.append(story.model.now_s)

    call = Call(ask)
    story.at(13.9)
    assert call.hangs
    story.at(14)

    call.result()
    assert returned_at_s[0] >= 14
    story.node.stop()


@pytest.mark.parametrize("hang", ["hang", "driver-hang"])
def test_a_driver_that_goes_ends_calls_that_hang_or_wait_with_its_error(hang: str) -> None:
    story = Story(f"{{kind: {hang}}}", "{kind: driver-down}")
    story.next()
    calls: list[Call[object]] = [
        Call(lambda: story.hal.probe(story.uuids[0])),
        Call(lambda: story.hal.wait_events(DEADLINE_S * 10)),
    ]
    story.next()

    for call in calls:
        with pytest.raises(DriverUnavailable, match="not loaded"):
            call.result()


@both_ways
def test_a_driver_that_was_loaded_anew_has_reset_what_answers(by_hand: bool) -> None:
    whats = ("{kind: driver-down}", "{kind: driver-up}")
    story = Story(*whats, by_hand=by_hand)
    hung, lost, needs_reboot = story.uuids
    story.let("{kind: xid, xid: 95}", hung)
    story.let("{kind: row-remap}", hung)
    story.let("{kind: row-remap, failed: true}", hung)
    story.let("{kind: lost}", lost)
    story.let("{kind: xid, xid: 79}", needs_reboot)
    before = [story.hal.probe(uuid) for uuid in story.uuids]
    story.next()
    story.next()
    after = [story.hal.probe(uuid) for uuid in story.uuids]

    assert all(one.epoch != other.epoch for one, other in zip(before, after, strict=True))
    assert after[0].recovery_action is RecoveryAction.NONE
    assert (after[0].uncorrectable_ecc, after[0].row_remap_pending) == (0, False)
    assert after[0].row_remap_failed
    assert [probe.reachable for probe in after] == [True, False, False]
    assert after[2].recovery_action is RecoveryAction.REBOOT


def test_processes_end_with_the_driver() -> None:
    story = Story("{kind: driver-down}", "{kind: driver-up}")
    story.next()
    story.next()

    assert [story.hal.processes(uuid) for uuid in story.uuids] == [(), (), ()]


# Watching


@both_ways
def test_a_broken_watch_is_all_that_is_broken_until_its_time(by_hand: bool) -> None:
    story = Story("{kind: watch-broken, for_s: 4}", by_hand=by_hand)
    story.next()
    for name, ask in EVERY_CALL.items():
        if name != "wait_events":
            ask(story.hal, story.uuids[0])
    story.node.stop()
    for _ in range(2):
        with pytest.raises(DriverUnavailable, match="wait for events") as error:
            story.hal.wait_events(DEADLINE_S * 10)
        assert "sim inject --watch mended" in error.value.remedy
    story.at(14)

    assert story.hal.wait_events(0) == ()


def test_a_watch_that_breaks_ends_the_wait_and_is_mended() -> None:
    story = Story("{kind: watch-broken}", "{kind: watch-mended}")
    call = Call(lambda: story.hal.wait_events(DEADLINE_S * 10))
    story.next()
    with pytest.raises(DriverUnavailable, match="wait for events"):
        call.result()
    story.next()

    assert story.hal.wait_events(0) == ()


@pytest.mark.parametrize(
    ("end", "start"),
    [("driver-down", "driver-up"), ("watch-broken", "watch-mended")],
)
def test_nobody_hears_of_errors_that_came_while_nobody_could(end: str, start: str) -> None:
    story = Story()
    here, gone, back = story.uuids
    story.let("{kind: lost}", back)
    story.let("{kind: xid, xid: 13}", here)
    story.let(f"{{kind: {end}}}")
    for what, uuid in (
        ("{kind: xid, xid: 31}", here),
        ("{kind: ecc}", here),
        ("{kind: xid, xid: 79}", gone),
        ("{kind: recover}", back),
    ):
        story.let(what, uuid)
    story.let(f"{{kind: {start}}}")
    story.let("{kind: ecc}", here)

    assert story.hal.wait_events(0) == (
        GpuDisappeared(back),
        XidError(here, 13),
        GpuDisappeared(gone),
        GpuAppeared(back),
        EccError(here, uncorrectable=False),
    )
