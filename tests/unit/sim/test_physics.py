"""Load makes power, power makes heat, heat slows the clocks down, slow clocks take less power."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal import ThrottleReason
from sim.gpu.physics import FULL_LOAD_TEMPERATURE_C, IDLE_TEMPERATURE_C, LOWEST_PPM, Physics
from sim.gpu.profiles import load_profile

A100 = load_profile("a100-sxm4-80gb")
H100 = load_profile("h100-sxm5-80gb")


def test_a_gpu_warms_up_to_its_load_and_cools_down() -> None:
    physics = Physics(A100)
    physics.settle(0.0, 1000)
    assert physics.temperature_c == IDLE_TEMPERATURE_C
    physics.settle(1.0, 1030)
    one_time_constant = physics.temperature_c
    share = (one_time_constant - IDLE_TEMPERATURE_C) / (
        FULL_LOAD_TEMPERATURE_C - IDLE_TEMPERATURE_C
    )
    assert share == pytest.approx(1 - 1 / 2.71828, abs=0.01)
    physics.settle(1.0, 3000)
    assert physics.temperature_c == FULL_LOAD_TEMPERATURE_C
    physics.settle(0.0, 6000)
    assert physics.temperature_c == IDLE_TEMPERATURE_C


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 500)), max_size=30))
def test_in_a_good_airflow_it_never_throttles(loads: list[tuple[float, float]]) -> None:
    physics, now_s = Physics(A100), 0.0
    assert not physics.can_overheat
    for load, span_s in loads:
        now_s += span_s
        physics.settle(load, now_s)
        physics.govern()
        assert IDLE_TEMPERATURE_C <= physics.temperature_c <= FULL_LOAD_TEMPERATURE_C
        assert not physics.throttled


def governed(cooling: float, minutes: int) -> Physics:
    """A GPU under full load in a poor airflow."""
    physics = Physics(A100, cooling)
    for step in range(1, minutes * 12 + 1):
        physics.settle(1.0, step * 5.0)
        physics.govern()
    return physics


def test_a_blocked_airflow_slows_the_clocks_until_the_heat_is_bearable() -> None:
    physics = governed(0.6, 30)
    assert physics.can_overheat
    assert physics.throttled
    assert LOWEST_PPM < physics.clock_ppm < 1_000_000
    assert physics.temperature_c < physics.slowdown_c + 3
    assert physics.throttle_reasons(busy=True) is ThrottleReason.THERMAL_SOFTWARE
    full = Physics(A100).power_w(1.0)
    power = physics.power_w(1.0)
    assert full is not None
    assert power is not None
    assert power < full, "slow clocks take less power"


def test_clocks_come_back_when_it_is_cool_again() -> None:
    physics = governed(0.6, 30)
    for step in range(1, 200):
        physics.settle(0.0, physics.at_s + 5)
        physics.govern()
        assert step < 199 or not physics.throttled
    assert physics.clock_ppm == 1_000_000
    assert physics.throttle_reasons(busy=False) is ThrottleReason.IDLE


@pytest.mark.parametrize(
    ("profile", "slowdown_c", "shutdown_c"),
    [(A100, 89, 92), (H100, 89, 95), (load_profile("h100-pcie"), 87, 95)],
)
def test_thresholds_are_those_of_the_profile(
    profile: object, slowdown_c: float, shutdown_c: float
) -> None:
    physics = Physics(profile)  # type: ignore[arg-type]
    assert (physics.slowdown_c, physics.shutdown_c) == (slowdown_c, shutdown_c)


def test_power_goes_from_idle_to_the_limit() -> None:
    physics = Physics(A100)
    assert (physics.power_w(0.0), physics.power_w(1.0)) == (50.0, 500.0)
