"""Two runs side by side: what is worse, and what is noise or another machine."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.show import as_comparison, compare_runs
from tests.unit.benchmarks.runs import a_figure, a_run, with_ratio


def test_a_median_that_is_worse_and_whose_intervals_are_apart_is_worse() -> None:
    (change,) = compare_runs(a_run(a_figure(10, 9, 11)), a_run(a_figure(15, 14, 16)))
    assert (change.factor, change.significant) == (1.5, True)
    assert change.worse_than(1.1)
    assert not change.worse_than(1.6)
    assert "WORSE" in as_comparison([change], 1.1)[1]


def test_intervals_that_overlap_are_noise() -> None:
    (change,) = compare_runs(a_run(a_figure(10, 9, 16)), a_run(a_figure(15, 14, 19)))
    assert not change.worse_than(1.1)
    assert "intervals overlap" in as_comparison([change], 1.1)[1]


def test_better_is_not_worse() -> None:
    (change,) = compare_runs(a_run(a_figure(15, 14, 16)), a_run(a_figure(10, 9, 11)))
    assert not change.worse_than(1.1)
    assert "better" in as_comparison([change], 1.1)[1]


def test_of_a_throughput_less_is_worse() -> None:
    before = replace(a_figure(900, 880, 920), unit="calls/s")
    after = replace(a_figure(600, 590, 610), unit="calls/s")
    (change,) = compare_runs(a_run(before), a_run(after))
    assert change.factor == 1.5
    assert change.worse_than(1.1)
    (back,) = compare_runs(a_run(after), a_run(before))
    assert not back.worse_than(1.1)


def test_with_a_floor_its_ratio_counts_and_not_the_machine() -> None:
    before = with_ratio(a_figure(10, 9, 11), 1.05, 1.03, 1.07)
    slow_machine = with_ratio(a_figure(40, 39, 41), 1.05, 1.02, 1.08)
    (change,) = compare_runs(a_run(before), a_run(slow_machine))
    assert not change.worse_than(1.1)
    assert "ratio to empty handler" in as_comparison([change], 1.1)[1]
    slow_code = with_ratio(a_figure(10, 9, 11), 1.5, 1.4, 1.6)
    (change,) = compare_runs(a_run(before), a_run(slow_code))
    assert change.worse_than(1.1)


def test_a_floor_is_not_compared() -> None:
    figure = with_ratio(a_figure(10, 9, 11), 1.05, 1.03, 1.07)
    floors = [
        replace(a_figure(value, value, value), case=case)
        for value, case in ((10, "empty handler, 4 x 1"), (99, "empty handler, 4 x 1"))
    ]
    (change,) = compare_runs(a_run(figure, floors[0]), a_run(figure, floors[1]))
    assert change.figure == figure


def test_what_only_one_run_has_is_left_out() -> None:
    other = replace(a_figure(1), case="8 x 1000")
    assert compare_runs(a_run(other), a_run(a_figure(1))) == []
    assert compare_runs(a_run(replace(a_figure(1), unit="ms")), a_run(a_figure(1))) == []
