"""The model against measurements that others published, with parameters that are not tuned."""

from __future__ import annotations

import pytest

from tools.published import (
    PUBLISHED,
    comparison_table,
    encoders,
    one_thread_slowdown,
    six_processes,
    six_processes_first_share,
    six_processes_peak_ms,
    switch_us,
    two_loops_ms,
    wait_ms,
    yolos_by_mps,
    yolos_slowdown,
)


@pytest.mark.parametrize(("pods", "slowdown"), [(3, 3.33), (5, 5 * 1.109), (7, 7 * 1.110)])
def test_yolos_on_a100_slows_down_as_measured(pods: int, slowdown: float) -> None:
    assert yolos_slowdown(pods) == pytest.approx(slowdown, rel=0.03)


@pytest.mark.parametrize(("second", "peak_ms"), [(False, 82.12), (True, 93.62)])
def test_kernels_of_six_processes_on_rtx5090_have_the_measured_peaks(
    second: bool, peak_ms: float
) -> None:
    assert six_processes_peak_ms(second=second) == pytest.approx(peak_ms, rel=0.02)


def test_the_wall_times_of_six_processes_are_two_peaks_and_nothing_else() -> None:
    peaks = [six_processes_peak_ms(second=second) for second in (False, True)]
    times_ms = six_processes().latencies_ms
    near = sum(any(abs(ms - peak) < 0.02 * peak for peak in peaks) for ms in times_ms)
    assert near >= 0.98 * len(times_ms)


def test_kernels_of_six_processes_split_between_the_peaks_as_measured() -> None:
    assert six_processes_first_share() == pytest.approx(66, abs=5)


def test_six_processes_together_get_the_measured_throughput() -> None:
    assert 6 * six_processes().throughput_per_client_per_s == pytest.approx(69.8, rel=0.03)


@pytest.mark.parametrize(
    ("model", "busy", "measured_ms"), [("rtx5090", 5, 11.40), ("rtx4090", 1, 2.3)]
)
def test_a_short_job_waits_as_measured(model: str, busy: int, measured_ms: float) -> None:
    assert wait_ms(model, busy) == pytest.approx(measured_ms, rel=0.03)


def test_two_busy_loops_take_as_long_as_measured() -> None:
    assert two_loops_ms() == pytest.approx(539.46, rel=0.01)


def test_one_thread_kernels_on_t4_slow_down_as_measured() -> None:
    assert one_thread_slowdown() == pytest.approx(6.11, rel=0.01)


@pytest.mark.parametrize(("clients", "slowdown"), [(2, 2.17), (3, 3.26)])
def test_encoders_on_gb10_slow_down_as_measured(clients: int, slowdown: float) -> None:
    assert encoders(clients) == pytest.approx(slowdown, rel=0.01)


def test_yolos_by_mps_gains_as_measured() -> None:
    assert yolos_by_mps(3) == pytest.approx(1.61, rel=0.01)


def test_where_the_model_is_known_to_be_wrong() -> None:
    """If one of these gets right, the documents must say so."""
    assert switch_us("rtx3090", 1.0) / 145 - 1 == pytest.approx(0.52, abs=0.01)


def test_a_row_that_is_far_off_is_called_wrong() -> None:
    for one in PUBLISHED:
        assert (abs(one.error) > 0.05) is one.remark.startswith("wrong"), one


def test_the_table_has_every_row() -> None:
    assert len(comparison_table().splitlines()) == len(PUBLISHED) + 2
