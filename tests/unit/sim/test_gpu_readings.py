"""What a simulated GPU reads: load, memory, power and temperature of its tenants."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal import GIB, ThrottleReason
from sim.gpu.faults import (
    DriverDown,
    DriverUp,
    EccFault,
    GpuFault,
    Hang,
    LostFault,
    NodeFault,
    Plug,
    Recovery,
    Replacement,
    RowRemap,
    ThermalShutdown,
    Unplug,
    XidFault,
)
from sim.gpu.profiles import model_names
from sim.gpu.workloads import DutyCycle
from sim.node.injection import CannotInject
from sim.node.node import SimulatedNode
from sim.node.scenario import GpuGroup, Scenario, Tenant
from tests.unit.sim.nodes import a_node

if TYPE_CHECKING:
    from sim.gpu.gpu import SimulatedGpu

WHAT = st.one_of(
    st.sampled_from([31, 43, 46, 48, 63, 64, 79, 94, 95]).map(lambda code: XidFault(xid=code)),
    st.booleans().map(lambda uncorrectable: EccFault(uncorrectable=uncorrectable)),
    st.booleans().map(lambda failed: RowRemap(failed=failed)),
    st.sampled_from([LostFault(), Hang(), ThermalShutdown(), Unplug(), Plug(), Recovery()]),
)


@settings(max_examples=150)
@given(
    st.sampled_from(model_names()),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 300)), max_size=5),
    st.lists(st.tuples(st.floats(0, 100), WHAT), max_size=6),
)
def test_readings_agree_with_each_other_whatever_happened(
    model: str,
    tenants: list[tuple[float, float]],
    happened: list[tuple[float, GpuFault]],
) -> None:
    scenario = Scenario(
        gpus=[GpuGroup(model=model)],
        tenants=[
            Tenant(name=f"t{number}", gpu=0, utilization=utilization, memory_gib=memory_gib)
            for number, (utilization, memory_gib) in enumerate(tenants)
        ],
    )
    node = SimulatedNode(scenario)
    (gpu,) = node.gpus.values()
    for wait_s, what in happened:
        node.advance(node.now_s + wait_s)
        with suppress(CannotInject):
            node.inject(gpu, what)
        check_readings(gpu, node.now_s)
    check_readings(gpu, node.now_s + 10)


def check_readings(gpu: SimulatedGpu, now_s: float) -> None:
    telemetry, processes = gpu.telemetry(now_s), gpu.processes()
    profile = gpu.profile
    shares = sum(process.sm_share or 0 for process in processes)
    assert telemetry.utilization == pytest.approx(shares)
    assert 0 <= shares <= 1 + 1e-9
    memory = sum(process.memory_bytes or 0 for process in processes)
    reserved = profile.memory_reserved_bytes or 0
    if profile.unified_memory:
        assert (telemetry.memory_used_bytes, telemetry.memory_total_bytes) == (None, None)
    else:
        assert telemetry.memory_used_bytes == min(reserved + memory, profile.memory_bytes)
        assert telemetry.memory_total_bytes == profile.memory_bytes
    if telemetry.power_w is not None and telemetry.power_limit_w is not None:
        assert 0 < telemetry.power_w <= telemetry.power_limit_w
    assert telemetry.temperature_c is not None
    assert 20 <= telemetry.temperature_c <= 110
    assert [process.pid for process in processes] == sorted({one.pid for one in processes})
    hot = ThrottleReason.THERMAL_HARDWARE in telemetry.throttle_reasons
    assert (ThrottleReason.IDLE in telemetry.throttle_reasons) == (
        telemetry.utilization == 0 and not hot
    )
    assert gpu.lost or gpu.probe().thermal_shutdown == hot


def test_tenants_of_a_saturated_gpu_share_it_by_demand() -> None:
    _, (a, b, c) = a_node()

    assert [process.sm_share for process in a.processes()] == pytest.approx([0.4, 0.6])
    assert [process.memory_bytes for process in a.processes()] == [3 * GIB, 2 * GIB]
    assert [process.sm_share for process in b.processes()] == pytest.approx([0.25])
    assert a.telemetry(0).utilization == 1
    assert c.telemetry(0).utilization == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0.05, 1), st.booleans()), min_size=1, max_size=4))
def test_shares_of_tenants_that_take_turns_add_up_to_the_utilisation(
    wanted: list[tuple[float, bool]],
) -> None:
    """Constant loads beside workloads, too."""
    scenario = Scenario(
        gpus=[GpuGroup(model="l4")],
        tenants=[
            Tenant(name=f"t{number}", gpu=0, workload=DutyCycle(period_ms=50, share=share))
            if works
            else Tenant(name=f"t{number}", gpu=0, utilization=share)
            for number, (share, works) in enumerate(wanted)
        ],
    )
    node = SimulatedNode(scenario)
    (gpu,) = node.gpus.values()
    node.advance(5)
    utilization = gpu.telemetry(5).utilization
    shares = sum(process.sm_share or 0 for process in gpu.processes())
    assert utilization is not None
    # A switch is no work of anybody, and counts for no one.
    assert shares == pytest.approx(utilization)


def test_pids_differ_over_the_whole_node() -> None:
    _, gpus = a_node()
    pids = [process.pid for gpu in gpus for process in gpu.processes()]

    assert len(set(pids)) == len(pids) == 3


def test_a_busy_gpu_warms_up_and_an_idle_one_cools_down() -> None:
    node, (a, *_) = a_node()
    busy = [a.telemetry(now_s).temperature_c or 0 for now_s in (0, 10, 30, 1000)]
    node.advance(1000)
    node.inject(a, XidFault(xid=46))
    idle = [a.telemetry(now_s).temperature_c or 0 for now_s in (1000, 1010, 1030, 2000)]

    assert all(earlier < later for earlier, later in pairwise(busy))
    assert all(earlier > later for earlier, later in pairwise(idle))
    assert idle[-1] == busy[0]


def test_reading_often_changes_nothing() -> None:
    _, (often, *_) = a_node()
    _, (once, *_) = a_node()
    for second in range(60):
        often.telemetry(float(second))

    assert often.telemetry(60) == once.telemetry(60)


@pytest.mark.parametrize(
    "faults",
    [
        [Recovery()],
        [LostFault(), Recovery()],
        [Unplug(), Plug()],
        [DriverDown(), DriverUp()],
        [Replacement()],
    ],
    ids=["reset", "lost", "unplugged", "driver", "replaced"],
)
def test_energy_counts_from_the_reset_on_whenever_it_was_read_before(
    faults: list[GpuFault | NodeFault],
) -> None:
    node, _ = a_node()
    node.advance(1000)
    for one in faults:
        if isinstance(one, NodeFault):
            node.inject_node(one)
        else:
            node.inject(node.find("0"), one)
        node.advance(node.now_s + 500)
    reset_s = node.now_s - 500
    read = node.find("0").telemetry(node.now_s)
    assert read.energy_j == pytest.approx((read.power_w or 0.0) * (node.now_s - reset_s))


def test_a_gpu_without_ecc_counts_nothing() -> None:
    node = SimulatedNode(Scenario(gpus=[GpuGroup(model="rtx3090")]))
    (gpu,) = node.gpus.values()
    if gpu.profile.ecc:
        pytest.skip("this model has ECC")
    telemetry = gpu.telemetry(0)

    assert (telemetry.corrected_ecc, telemetry.uncorrectable_ecc) == (None, None)
