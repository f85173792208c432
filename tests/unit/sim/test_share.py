"""What sharing costs: laws that hold whatever the clients do, and plans that are refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal import GIB, TimeSliceLevel
from sim.gpu.profiles import MIB, UnknownModel, load_profile, slice_parameters
from sim.gpu.scheduler import DEFAULT_SLICE_NS, LEVEL_SLICES_NS, NS_PER_MS, SliceParameters
from sim.gpu.tenancy import DEFAULT_CONTEXT_BYTES
from sim.study.share import Mechanism, SharePlan, ShareResult, WrongPlan, divide, share

A100 = "a100-sxm4-80gb"
T_MS = DEFAULT_SLICE_NS / NS_PER_MS

BUSY_MS = st.floats(0.05, 300)
OCCUPANCY = st.floats(0, 1)
UNDIVIDED = st.sampled_from([Mechanism.TIME_SLICING, Mechanism.MPS, Mechanism.EXCLUSIVE])


def mean(result: ShareResult) -> float:
    assert result.slowdown_mean is not None
    return result.slowdown_mean


# Laws


@settings(max_examples=15, deadline=None)
@given(UNDIVIDED, BUSY_MS, st.floats(0, 100), OCCUPANCY)
def test_one_client_alone_pays_nothing(
    mechanism: Mechanism, busy_ms: float, idle_ms: float, occupancy: float
) -> None:
    result = share(SharePlan(A100, 1, busy_ms, idle_ms, occupancy, mechanism=mechanism))
    assert mean(result) == pytest.approx(1, abs=1e-5)
    assert result.switch_loss == 0


@settings(max_examples=8, deadline=None)
@given(st.integers(2, 12), BUSY_MS, OCCUPANCY)
def test_saturating_clients_take_n_times_as_long_and_a_switch_for_each_slice(
    clients: int, busy_ms: float, occupancy: float
) -> None:
    """N(1 + c/T): the factor does not grow with N."""
    plan = SharePlan(A100, clients, busy_ms, occupancy=occupancy)
    result = share(plan)
    switch_ms = plan.slice_parameters.switch_ns(occupancy, occupancy) / NS_PER_MS
    expected = clients * (1 + switch_ms / T_MS)
    assert mean(result) == pytest.approx(expected, rel=0.03)
    assert result.switch_loss == pytest.approx(switch_ms / (T_MS + switch_ms), rel=0.02)
    assert result.gpu_utilization + result.switch_loss == pytest.approx(1, abs=1e-6)
    throughput = result.throughput_per_client_per_s
    assert throughput == pytest.approx(1000 / busy_ms / expected, rel=0.03)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 8), st.floats(0.5, 50), st.floats(10, 200), st.integers(0, 99))
def test_below_saturation_throughput_is_not_lost(
    clients: int, busy_ms: float, ratio: float, seed: int
) -> None:
    """Each gets a work done per latency and idle time, and a latency is no longer than waiting for
    everybody once; of the GPU's time nothing is lost but switches."""
    idle_ms = ratio * clients * busy_ms
    plan = SharePlan(A100, clients, busy_ms, idle_ms, seed=seed)
    result = share(plan)
    alone_per_s = 1000 / (busy_ms + idle_ms)
    assert result.throughput_per_client_per_s >= alone_per_s * (1 - 1 / ratio - 0.03)
    busy_share = clients * result.throughput_per_client_per_s * busy_ms / 1000
    assert result.gpu_utilization == pytest.approx(busy_share, rel=0.05)


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 6), st.floats(20, 100), st.integers(0, 99))
def test_clients_that_are_idle_cost_nothing(clients: int, busy_ms: float, seed: int) -> None:
    """The mean slowdown is one plus what meets by chance: no slices are kept for idle clients."""
    idle_ms = 1000 * busy_ms
    result = share(SharePlan(A100, clients, busy_ms, idle_ms, seed=seed))
    assert result.latency_ms.p50 is not None
    assert result.latency_ms.p50 <= busy_ms + 0.220 + 1e-6, "at most the switch to it"
    assert result.switch_loss < 0.001


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 20), BUSY_MS, st.floats(0, 50), st.floats(0, 1))
def test_mps_costs_less_the_more_the_clients_rest(
    clients: int, busy_ms: float, idle_ms: float, mps_share: float
) -> None:
    plan = SharePlan(A100, clients, busy_ms, idle_ms, mechanism=Mechanism.MPS, mps_share=mps_share)
    result = share(plan)
    # Ends are rounded up to whole nanoseconds.
    assert 1 - 1e-3 <= mean(result) <= (1 + mps_share * (clients - 1)) * (1 + 1e-3)
    assert result.switch_loss == 0


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 20), BUSY_MS, st.floats(0, 1))
def test_with_mps_each_busy_client_adds_its_share_to_the_time_of_the_others(
    clients: int, busy_ms: float, mps_share: float
) -> None:
    plan = SharePlan(A100, clients, busy_ms, mechanism=Mechanism.MPS, mps_share=mps_share)
    assert mean(share(plan)) == pytest.approx(1 + mps_share * (clients - 1), rel=0.001)


def test_an_mps_share_that_was_not_measured_goes_by_the_occupancy() -> None:
    plan = SharePlan(A100, 3, 10, occupancy=0.5, mechanism=Mechanism.MPS)
    assert mean(share(plan)) == pytest.approx(1 + 2 * 0.59 * 0.5, rel=0.001)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 20), BUSY_MS)
def test_exclusive_use_takes_everybody_in_turn(clients: int, busy_ms: float) -> None:
    result = share(SharePlan(A100, clients, busy_ms, mechanism=Mechanism.EXCLUSIVE))
    for latency_ms in (result.latencies_ms[0], result.latencies_ms[-1]):
        assert latency_ms == pytest.approx(clients * round(busy_ms, 6), rel=1e-6)
    assert result.gpu_utilization == pytest.approx(1)
    assert result.switch_loss == 0


@settings(max_examples=6, deadline=None)
@given(st.sampled_from(Mechanism), st.integers(1, 6), st.floats(1, 30), st.integers(0, 9))
def test_a_seed_repeats_a_run(
    mechanism: Mechanism, clients: int, busy_ms: float, seed: int
) -> None:
    plan = SharePlan(A100, clients, busy_ms, 2 * busy_ms, mechanism=mechanism, seed=seed)
    assert share(plan) == share(plan)


def test_another_seed_is_another_run() -> None:
    runs = [share(SharePlan(A100, 3, 10, 20, seed=seed)) for seed in range(3)]
    assert len({run.latencies_ms for run in runs}) == 3


def test_the_seed_does_not_decide_whether_clients_meet() -> None:
    """With a fixed idle time they would meet always or never."""
    slowdowns = [mean(share(SharePlan(A100, 2, 10, 90, seed=seed))) for seed in range(6)]
    assert max(slowdowns) - min(slowdowns) < 0.05
    assert min(slowdowns) > 1.05


@pytest.mark.parametrize(
    ("clients", "busy_ms"), [(1, 0.01), (80, 0.01), (256, 1), (80, 10), (3, 3_600_000)]
)
def test_each_client_is_measured_some_dozen_times_and_the_run_is_bounded(
    clients: int, busy_ms: float
) -> None:
    result = share(SharePlan(A100, clients, busy_ms))
    assert 50 * clients <= len(result.latencies_ms) <= 60_000


def test_percentiles_are_in_order_and_of_works_that_happened() -> None:
    result = share(SharePlan(A100, 4, 10, 10))
    latency = result.latency_ms
    figures = [latency.p50, latency.p95, latency.p99]
    assert figures == sorted(figures, key=lambda value: value or 0)
    assert set(figures) <= set(result.latencies_ms)
    below = sum(value <= (latency.p95 or 0) for value in result.latencies_ms)
    assert below / len(result.latencies_ms) == pytest.approx(0.95, abs=0.01)


# Memory


def test_clients_that_do_not_fit_do_not_run_and_it_is_said_who_holds_what() -> None:
    result = share(SharePlan(A100, 3, 10, memory_gib=30))
    (refused,) = result.refused
    held = 30 * GIB + DEFAULT_CONTEXT_BYTES
    profile = load_profile(A100)
    assert refused.asked_bytes == held
    assert refused.holders == dict.fromkeys({0, 1, 2} - {refused.client}, held)
    reserved = profile.memory_reserved_bytes or 0
    assert refused.free_bytes == profile.memory_bytes - reserved - 2 * held
    assert mean(result) == pytest.approx(2 * (1 + 0.220 / T_MS), rel=0.03)
    assert result.oom == 1


def test_where_nobody_fits_there_are_no_figures() -> None:
    result = share(SharePlan("t4", 2, 10, memory_gib=16))
    assert result.oom == 2
    assert result.slowdown_mean is result.latency_ms.p50 is None
    assert result.throughput_per_client_per_s == result.gpu_utilization == 0


def test_a_context_takes_memory_of_its_own() -> None:
    assert share(SharePlan("t4", 52, 10)).oom == 52 - (15360 - 448) // 300


def test_who_has_the_gpu_in_turn_has_all_of_its_memory() -> None:
    plan = SharePlan(A100, 3, 10, memory_gib=60, mechanism=Mechanism.EXCLUSIVE)
    assert share(plan).oom == 0


def test_a_mig_device_has_memory_of_its_own() -> None:
    plan = SharePlan(A100, 7, 10, memory_gib=9.5, mechanism=Mechanism.MIG)
    assert share(plan).oom == 7, "9.5 GiB and a context do not fit into 9856 MiB"
    assert divide(plan).parts[0].memory_bytes == 9856 * MIB
    assert share(replace(plan, memory_gib=9.3)).oom == 0, "nothing of it is reserved"


# MIG


@pytest.mark.parametrize(
    ("clients", "name", "devices"),
    [
        (1, "7g.80gb", 1),
        (2, "3g.40gb", 2),
        (3, "2g.20gb", 3),
        (4, "1g.20gb", 4),
        (5, "1g.10gb", 5),
        (7, "1g.10gb", 7),
        (9, "1g.10gb", 7),
    ],
)
def test_clients_get_the_largest_mig_devices_of_which_there_are_enough(
    clients: int, name: str, devices: int
) -> None:
    division = divide(SharePlan(A100, clients, 10, mechanism=Mechanism.MIG))
    assert division.mig == name
    assert len(division.parts) == devices
    assert sorted(client for part in division.parts for client in part.clients) == list(
        range(clients)
    )
    sizes = [len(part.clients) for part in division.parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("occupancy", "slowdown"), [(0.1, 1.0), (28 / 108, 1.0), (1.0, 108 / 28)])
def test_work_that_a_mig_device_does_not_hold_takes_longer(
    occupancy: float, slowdown: float
) -> None:
    plan = SharePlan(A100, 3, 10, occupancy=occupancy, mechanism=Mechanism.MIG)
    result = share(plan)
    assert mean(result) == pytest.approx(slowdown, rel=1e-6)
    assert result.switch_loss == 0


def test_more_clients_than_mig_devices_share_them_by_time_slicing() -> None:
    result = share(SharePlan(A100, 14, 10, occupancy=0.1, mechanism=Mechanism.MIG))
    switch_ms = 0.070 + 0.150 * 0.1 / (14 / 108)
    assert mean(result) == pytest.approx(2 * (1 + switch_ms / T_MS), rel=0.03)


# Levels and parameters


@pytest.mark.parametrize("level", list(TimeSliceLevel))
def test_longer_slices_lose_less_to_switches(level: TimeSliceLevel) -> None:
    result = share(SharePlan(A100, 2, 500, level=level))
    slice_ms = LEVEL_SLICES_NS[level] / NS_PER_MS
    assert result.switch_loss == pytest.approx(0.220 / (slice_ms + 0.220), rel=0.02)


def test_a_profile_may_have_slice_parameters_of_its_own() -> None:
    assert slice_parameters(load_profile(A100)) == SliceParameters()
    gb10 = load_profile("gb10")
    assert slice_parameters(gb10) == SliceParameters(DEFAULT_SLICE_NS, 70_000, 106_000)
    slower = gb10.time_slice.model_copy(update={"slice_us": 1024.0})
    tegra = gb10.model_copy(update={"time_slice": slower})
    assert slice_parameters(tegra).slice_ns == 1_024_000
    assert slice_parameters(tegra, TimeSliceLevel.LONG).slice_ns == 30_000_000


def test_a_jetson_has_shorter_slices_and_dearer_switches() -> None:
    result = share(SharePlan("jetson-orin-nano-8gb", 3, 50))
    assert mean(result) == pytest.approx(3 * (1 + 0.220 / 1.024), rel=0.01)


# Refused plans


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"clients": 0}, "--clients is 0: give a number from 1 to 256"),
        ({"clients": 257}, "--clients is 257"),
        ({"busy_ms": 0.0}, "--busy-ms is 0"),
        ({"busy_ms": math.nan}, "--busy-ms is nan"),
        ({"busy_ms": math.inf}, "--busy-ms is inf"),
        ({"idle_ms": -1.0}, "--idle-ms is -1"),
        ({"occupancy": 1.1}, "--occupancy is 1.1: give a number from 0 to 1"),
        ({"memory_gib": -1.0}, "--memory-gib is -1"),
        ({"mechanism": Mechanism.MPS, "level": TimeSliceLevel.SHORT}, "leave --level out"),
        ({"mechanism": Mechanism.MIG, "level": TimeSliceLevel.DEFAULT}, "with mig"),
        (
            {"model": "jetson-orin-nano-8gb", "level": TimeSliceLevel.SHORT},
            "has no time-slice levels",
        ),
        ({"model": "t4", "mechanism": Mechanism.MIG}, "t4 has no MIG; take one of: a100-sxm4-40gb"),
    ],
)
def test_a_wrong_plan_is_refused_with_what_to_do(values: dict[str, object], text: str) -> None:
    plain: dict[str, object] = {"model": A100, "clients": 2, "busy_ms": 10.0}
    with pytest.raises(WrongPlan, match=text):
        SharePlan(**{**plain, **values})  # type: ignore[arg-type]


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(UnknownModel, match="rtx5090"):
        SharePlan("rtx6090", 2, 10)
