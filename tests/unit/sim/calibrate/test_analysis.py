"""Slices and switches from stamps whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.calibrate.analysis import CannotTell, Sharing, Stamps, analysed
from tests.unit.sim.calibrate.stamped import MS, US, Truth, cut, stamped, without


def found(truth: Truth, seed: int = 1) -> Sharing:
    return analysed(*stamped(truth, seed))


def check(sharing: Sharing, truth: Truth, *, slice_rel: float = 0.01, switch_us: float = 3) -> None:
    assert sharing.slice_us.median == pytest.approx(truth.slice_us, rel=slice_rel)
    assert sharing.switch_us.median == pytest.approx(truth.switch_us, abs=switch_us)
    for spread in (sharing.slice_us, sharing.switch_us):
        assert spread.low <= spread.median <= spread.high


@pytest.mark.parametrize("slice_us", [1000.0, 2048.0, 4096.0, 30_000.0])
@pytest.mark.parametrize("switch_us", [59.0, 74.0, 220.0, 444.0])
def test_what_is_true_is_found(slice_us: float, switch_us: float) -> None:
    truth = Truth(slice_us=slice_us, switch_us=switch_us)
    sharing = found(truth)
    check(sharing, truth)
    assert sharing.other_work == 0
    assert (sharing.torn, sharing.lost) == (0, 0)


@given(
    slice_us=st.floats(900, 8000),
    switch_us=st.floats(60, 400),
    jitter=st.floats(0, 0.05),
    skew_ms=st.floats(0, 200),
    seed=st.integers(0, 1000),
)
def test_whatever_is_true_is_found(
    slice_us: float, switch_us: float, jitter: float, skew_ms: float, seed: int
) -> None:
    truth = Truth(slice_us, switch_us, jitter, skew_ms=skew_ms, span_ms=600)
    check(found(truth, seed), truth, slice_rel=0.02, switch_us=10)


@pytest.mark.parametrize("jitter", [0.0, 0.05, 0.2])
def test_jitter_widens_the_quartiles_and_moves_no_median(jitter: float) -> None:
    truth = Truth(jitter=jitter)
    sharing = found(truth)
    check(sharing, truth, slice_rel=0.03, switch_us=8)
    width = (sharing.switch_us.high - sharing.switch_us.low) / truth.switch_us
    assert width == pytest.approx(1.35 * jitter, abs=0.05)


@pytest.mark.parametrize("tick_ns", [1, 32, 1024])
def test_a_clock_that_counts_in_steps(tick_ns: int) -> None:
    check(found(Truth(tick_ns=tick_ns)), Truth())


def test_a_clock_so_coarse_that_each_step_looks_like_a_gap() -> None:
    first, second = stamped(Truth(tick_ns=32_000))
    sharing = analysed(cut(first, 8192), cut(second, 8192))
    check(sharing, Truth(), slice_rel=0.02, switch_us=32)
    assert sharing.lost > 0


@pytest.mark.parametrize("interrupts", [0.3, 2.0, 5.0])
def test_gaps_that_are_no_preemption_do_not_shorten_slices(interrupts: float) -> None:
    check(found(Truth(interrupts=interrupts)), Truth())


@pytest.mark.parametrize("busy", [0.1, 0.5, 1.0])
def test_a_third_process_is_named_and_its_turns_are_no_switches(busy: float) -> None:
    truth = Truth(others=1, busy=busy)
    sharing = found(truth)
    check(sharing, truth)
    assert sharing.other_work == pytest.approx(busy / (2 + busy), abs=0.05)


def test_two_others_now_and_then() -> None:
    truth = Truth(others=2, busy=0.4)
    sharing = found(truth)
    check(sharing, truth)
    assert sharing.other_work > 0.2


def test_another_process_between_all_turns_cannot_be_told_from_a_switch() -> None:
    """A, other, B, other: no switch from one to the other is seen alone."""
    truth = Truth(others=2)
    first, _ = stamped(truth)
    # In a round of four turns, the third one is as the second with another in between.
    shift_ns = round((truth.slice_us + truth.switch_us) * US)
    second = Stamps(
        begin_ns=first.begin_ns + 2 * shift_ns,
        end_ns=first.end_ns + 2 * shift_ns,
        seen=first.seen,
        gaps=tuple((begin + 2 * shift_ns, end + 2 * shift_ns) for begin, end in first.gaps),
    )
    with pytest.raises(CannotTell, match="another process has the GPU in between"):
        analysed(first, second)


def test_clocks_that_fall_show_in_the_quartiles() -> None:
    sharing = found(Truth(slower=1.6))
    assert sharing.slice_us.median == pytest.approx(2048, rel=0.01)
    assert sharing.switch_us.low == pytest.approx(150, rel=0.05)
    assert sharing.switch_us.high == pytest.approx(240, rel=0.05)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.2])
def test_lost_stamps_leave_contradictions_that_are_left_out(share: float) -> None:
    first, second = stamped(Truth())
    sharing = analysed(without(first, share), without(second, share, seed=2))
    check(sharing, Truth())
    assert sharing.torn > 0


def test_after_the_last_stamp_that_was_kept_nothing_is_concluded() -> None:
    first, second = stamped(Truth())
    sharing = analysed(cut(first, 100), cut(second, 300))
    check(sharing, Truth())
    assert sharing.lost == first.seen - 100 + second.seen - 300
    assert sharing.torn == 0
    assert sharing.slice_us.count == pytest.approx(200, abs=5)


def test_a_clock_that_is_set_back_costs_the_slice_in_which_it_is() -> None:
    first, second = stamped(Truth())
    gaps = list(first.gaps)
    gaps[50] = (gaps[50][1], gaps[50][0])
    check(analysed(first.model_copy(update={"gaps": tuple(gaps)}), second), Truth())


def test_all_at_once() -> None:
    truth = Truth(
        jitter=0.05, others=1, busy=0.3, interrupts=1.0, tick_ns=1024, slower=1.1, skew_ms=60
    )
    first, second = stamped(truth)
    sharing = analysed(cut(without(first, 0.03), 600), without(second, 0.03, seed=2))
    check(sharing, truth, slice_rel=0.02, switch_us=0.1 * truth.switch_us)


def test_processes_side_by_side_share_no_time() -> None:
    whole = Stamps(begin_ns=0, end_ns=1500 * MS, seen=0, gaps=())
    with pytest.raises(CannotTell, match="not shared by time slices"):
        analysed(whole, whole)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ((0, 10 * MS), (20 * MS, 30 * MS), "did not run at the same time"),
        ((0, 3 * MS), (3 * MS + 150 * US, 5 * MS), "only 0 whole slices were seen, 10 are needed"),
    ],
)
def test_what_says_nothing(first: tuple[int, int], second: tuple[int, int], said: str) -> None:
    one, other = (
        Stamps(begin_ns=begin_ns, end_ns=end_ns, seen=0, gaps=())
        for begin_ns, end_ns in (first, second)
    )
    with pytest.raises(CannotTell, match=said):
        analysed(one, other)


def test_a_short_run_is_too_little() -> None:
    with pytest.raises(CannotTell, match="are needed"):
        found(replace(Truth(), span_ms=15))


def test_a_process_without_stamps() -> None:
    nothing = Stamps(begin_ns=5, end_ns=0, seen=0, gaps=())
    with pytest.raises(CannotTell, match="kept no stamps"):
        analysed(nothing, stamped(Truth(span_ms=100))[1])
