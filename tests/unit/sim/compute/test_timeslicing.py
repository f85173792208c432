"""Time slicing: the skipping implementation against the one that follows every slice, and laws."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sim.gpu.scheduler import ContextId, Ended, SliceParameters
from sim.gpu.timeslicing import StepwiseTimeSlicing, TimeSlicing

T, C = 1000, 70
PARAMETERS = SliceParameters(slice_ns=T, switch_base_ns=C, switch_occupancy_ns=150)
PLAIN = SliceParameters(slice_ns=T, switch_base_ns=C, switch_occupancy_ns=0)
FREE = SliceParameters(slice_ns=T, switch_base_ns=0, switch_occupancy_ns=0)
SOME_FREE = SliceParameters(slice_ns=T, switch_base_ns=0, switch_occupancy_ns=150)
"""Switches between contexts of occupancy 0 cost nothing, others do."""


@dataclass(frozen=True)
class Submit:
    context: int
    work_ns: int
    occupancy: float


@dataclass(frozen=True)
class Cancel:
    context: int


@dataclass(frozen=True)
class Speed:
    ppm: int


@dataclass(frozen=True)
class Wait:
    """Time passes: so long, or until the next work ends (and so much longer)."""

    duration_ns: int
    from_next_end: bool


WORKS = st.one_of(
    st.integers(1, 5 * T), st.integers(1, 200 * T), st.integers(1, 5).map(lambda n: n * T)
)
ACTIONS = st.one_of(
    st.builds(Submit, st.integers(0, 5), WORKS, st.sampled_from([0.0, 0.25, 1.0])),
    st.builds(Wait, st.one_of(st.just(0), WORKS), st.booleans()),
    st.builds(Wait, st.sampled_from([0, 1, T, T + C]), st.booleans()),
    st.builds(Cancel, st.integers(0, 5)),
    st.builds(Speed, st.integers(100_000, 1_000_000)),
)


class Pair:
    """Both implementations, which must agree at every moment."""

    def __init__(self, parameters: SliceParameters) -> None:
        self.fast, self.plain = TimeSlicing(parameters), StepwiseTimeSlicing(parameters)
        self.busy: set[int] = set()
        self.ended: list[Ended] = []

    def do(self, action: Submit | Cancel | Speed | Wait) -> None:
        match action:
            case Submit(context, work_ns, occupancy) if context not in self.busy:
                self.busy.add(context)
                for scheduler in (self.fast, self.plain):
                    scheduler.submit(ContextId(context), work_ns, occupancy)
            case Cancel(context):
                self.busy.discard(context)
                for scheduler in (self.fast, self.plain):
                    scheduler.cancel(ContextId(context))
            case Speed(ppm):
                for scheduler in (self.fast, self.plain):
                    scheduler.set_speed(ppm)
            case Wait(duration_ns, from_next_end):
                next_end_ns = self.fast.next_end_ns()
                start_ns = next_end_ns if from_next_end and next_end_ns else self.fast.now_ns
                self.advance(start_ns + duration_ns)
        self.check()

    def advance(self, to_ns: int) -> None:
        ended = list(self.fast.advance(to_ns))
        assert ended == list(self.plain.advance(to_ns))
        self.busy -= {one.context for one in ended}
        self.ended += ended

    def check(self) -> None:
        assert self.fast.state == self.plain.state
        assert self.fast.usage == self.plain.usage
        assert self.fast.next_end_ns() == self.plain.next_end_ns()
        assert self.fast.runnable == self.plain.runnable == len(self.busy)


@settings(max_examples=600)
@given(
    st.sampled_from([PARAMETERS, PLAIN, FREE, SOME_FREE]),
    st.lists(ACTIONS, min_size=5, max_size=60),
)
@example(
    SliceParameters(T, 0, 0),
    [Submit(2, 1010, 0.0), Submit(1, 1010, 0.0), Wait(2 * T, from_next_end=False)],
)
@example(
    FREE,
    [
        Submit(0, 1, 0.0),
        Submit(2, 1, 0.0),
        Cancel(0),
        Speed(100_000),
        Submit(0, 101, 0.0),
        Submit(1, 101, 0.0),
        Wait(2 * T, from_next_end=True),
    ],
)
def test_skipping_rounds_changes_nothing(
    parameters: SliceParameters, actions: list[Submit | Cancel | Speed | Wait]
) -> None:
    pair = Pair(parameters)
    for action in actions:
        pair.do(action)
    pair.advance(pair.fast.now_ns + 300 * T)
    pair.check()


@settings(max_examples=200)
@given(st.lists(ACTIONS, max_size=30))
def test_no_time_is_made_or_lost(actions: list[Submit | Cancel | Speed | Wait]) -> None:
    """What went by was work, switching or idleness; without a waiting context nothing idles."""
    pair = Pair(PARAMETERS)
    for action in actions:
        pair.do(action)
        usage = pair.fast.usage
        assert usage.active_ns == sum(usage.busy_ns.values())
        assert usage.active_ns + usage.switching_ns <= pair.fast.now_ns


def saturate(scheduler: TimeSlicing, clients: int, work_ns: int, until_ns: int) -> list[list[int]]:
    """Closed-loop clients that submit again at once; when each of their works ended."""
    ends: list[list[int]] = [[] for _ in range(clients)]
    for client in range(clients):
        scheduler.submit(ContextId(client), work_ns, 0.5)
    while (end_ns := scheduler.next_end_ns()) is not None and end_ns <= until_ns:
        for ended in scheduler.advance(end_ns):
            ends[ended.context].append(ended.at_ns)
            scheduler.submit(ended.context, work_ns, 0.5)
    scheduler.advance(until_ns)
    return ends


@settings(max_examples=40)
@given(st.integers(2, 12), st.integers(T // 8, 20 * T))
def test_saturating_clients_get_an_equal_share_and_pay_for_switches(
    clients: int, work_ns: int
) -> None:
    """Each takes N(1 + c/T) times as long as alone: the factor does not grow with N."""
    rounds = 60
    scheduler = TimeSlicing(PLAIN)
    saturate(scheduler, clients, work_ns, rounds * clients * (T + C))
    for client in range(clients):
        done_ns = scheduler.usage.busy_ns[ContextId(client)]
        assert abs(done_ns - rounds * T) <= 2 * T


@given(st.integers(1, 10), st.integers(1, T))
def test_a_short_job_behind_busy_ones_waits_a_slice_and_a_switch_for_each(
    busy: int, work_ns: int
) -> None:
    scheduler = TimeSlicing(PLAIN)
    for context in range(busy):
        scheduler.submit(ContextId(context), 1000 * T, 1.0)
    # It comes at the very moment at which one of them begins its slice.
    moment_ns = busy * (T + C) + C
    scheduler.advance(moment_ns)
    assert busy == 1 or scheduler.state.slice_left_ns == T
    left_ns = scheduler.state.slice_left_ns
    scheduler.submit(ContextId(99), work_ns, 1.0)
    end_ns = scheduler.next_end_ns()
    assert end_ns == moment_ns + left_ns + C + (busy - 1) * (T + C) + work_ns


@given(st.integers(1, 50 * T), st.integers(2, 8))
def test_an_idle_context_costs_nothing(work_ns: int, others: int) -> None:
    alone, crowded = TimeSlicing(PLAIN), TimeSlicing(PLAIN)
    for context in range(1, others):
        crowded.submit(ContextId(context), 1, 0.0)
    start_ns = 10 * T
    for scheduler in (alone, crowded):
        scheduler.submit(ContextId(0), 1, 0.0)
        scheduler.advance(start_ns)
        scheduler.submit(ContextId(0), work_ns, 0.0)
    alone_ns, crowded_ns = alone.next_end_ns(), crowded.next_end_ns()
    assert alone_ns == start_ns + work_ns
    assert crowded_ns in (alone_ns, start_ns + C + work_ns), "at most the switch back to it"


def test_below_saturation_nothing_is_lost_but_time_waited() -> None:
    """Two clients that are busy for a third of the time each get all their work done."""
    scheduler = TimeSlicing(PLAIN)
    done = [0, 0]
    for period in range(100):
        scheduler.advance(period * 3 * T)
        for client in range(2):
            scheduler.submit(ContextId(client), T - C, 1.0)
        while (end_ns := scheduler.next_end_ns()) is not None:
            for ended in scheduler.advance(end_ns):
                done[ended.context] += 1
        assert scheduler.now_ns <= (period + 1) * 3 * T
    assert done == [100, 100]


def test_work_that_follows_at_once_goes_on_in_the_rest_of_the_slice() -> None:
    scheduler = TimeSlicing(PLAIN)
    scheduler.submit(ContextId(0), T // 2, 1.0)
    scheduler.submit(ContextId(1), 10 * T, 1.0)
    (first,) = scheduler.advance(C + T // 2)
    scheduler.submit(ContextId(0), T, 1.0)
    assert scheduler.next_end_ns() == C + T + (C + T) + C + T // 2
    assert first.at_ns == C + T // 2


def test_work_that_follows_later_waits_for_its_turn() -> None:
    scheduler = TimeSlicing(PLAIN)
    scheduler.submit(ContextId(0), T // 2, 1.0)
    scheduler.submit(ContextId(1), 10 * T, 1.0)
    scheduler.advance(C + T // 2 + 1)
    scheduler.submit(ContextId(0), 1, 1.0)
    assert scheduler.next_end_ns() == C + T // 2 + C + T + C + 1


def test_work_that_comes_as_a_round_ends_is_ahead_of_the_context_whose_slice_ends() -> None:
    """It counts as submitted before the turn that is due is decided; free switches hid that."""
    pair = Pair(FREE)
    for context in range(2):
        pair.do(Submit(context, 2 * T, 0.0))
    pair.do(Wait(2 * T, from_next_end=False))
    pair.do(Submit(2, T, 0.0))
    pair.advance(5 * T)
    assert pair.ended == [Ended(ContextId(c), at * T) for c, at in ((0, 3), (2, 4), (1, 5))]


def test_throttled_clocks_make_work_longer() -> None:
    scheduler = TimeSlicing(PLAIN)
    scheduler.submit(ContextId(0), 10 * T, 1.0)
    scheduler.advance(C + 4 * T)
    scheduler.set_speed(500_000)
    assert scheduler.next_end_ns() == C + 4 * T + 12 * T
    scheduler.set_speed(1_000_000)
    assert scheduler.next_end_ns() == C + 10 * T


def test_a_context_that_is_killed_makes_room_at_once() -> None:
    scheduler = TimeSlicing(PLAIN)
    for context in range(3):
        scheduler.submit(ContextId(context), 10 * T, 1.0)
    scheduler.advance(C + T // 2)
    scheduler.cancel(ContextId(0))
    scheduler.cancel(ContextId(2))
    assert scheduler.next_end_ns() == C + T // 2 + C + 10 * T
    assert scheduler.runnable == 1


def test_the_cost_does_not_grow_with_the_slices() -> None:
    """A million slices are skipped in a handful of steps."""
    scheduler = TimeSlicing(PLAIN)
    for context in range(10):
        scheduler.submit(ContextId(context), 10**6 * T + context, 1.0)
    steps = 0
    decide = scheduler._decide

    def counted() -> None:
        nonlocal steps
        steps += 1
        decide()

    scheduler._decide = counted  # type: ignore[method-assign]
    end_ns = scheduler.next_end_ns()
    assert end_ns is not None
    assert len(scheduler.advance(end_ns)) == 1
    assert steps < 100


@pytest.mark.parametrize("work_ns", [0, -1])
def test_work_takes_time(work_ns: int) -> None:
    with pytest.raises(ValueError, match="at least 1 ns"):
        TimeSlicing().submit(ContextId(0), work_ns, 1.0)
