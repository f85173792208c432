"""The simulated node in model time."""

from __future__ import annotations

import re
import uuid as uuids
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hal import (
    EccError,
    Event,
    GpuAppeared,
    GpuDisappeared,
    GpuState,
    LinkKind,
    RecoveryAction,
    ThrottleReason,
    UnknownGpu,
    XidError,
)
from sim.faults import EccFault, LostFault, Recovery, TimedHappening, XidFault
from sim.node import SimulatedNode
from sim.partition import GIB
from sim.profiles import load_profile, model_names
from sim.scenario import GpuGroup, Scenario, Tenant, load_scenario, scenario_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim.gpu import SimulatedGpu

TENANTS = [
    Tenant(name="one", gpu=0, utilization=0.6, memory_gib=3),
    Tenant(name="two", gpu=0, utilization=0.9, memory_gib=2),
    Tenant(name="three", gpu=1, utilization=0.25, memory_gib=1),
]


def a_scenario(
    *happenings: TimedHappening, seed: int = 1, model: str = "t4", tenants: bool = True
) -> Scenario:
    return Scenario(
        seed=seed,
        gpus=[GpuGroup(model=model, count=3)],
        tenants=TENANTS if tenants else [],
        happenings=list(happenings),
    )


def a_node(*happenings: TimedHappening) -> tuple[SimulatedNode, list[SimulatedGpu]]:
    node = SimulatedNode(a_scenario(*happenings))
    return node, list(node.gpus.values())


def names(gpu: SimulatedGpu) -> list[str]:
    return [process.name for process in gpu.processes()]


# Identity


def test_the_same_seed_gives_the_same_node_another_seed_another() -> None:
    one, same, other = (SimulatedNode(a_scenario(seed=seed)) for seed in (1, 1, 2))

    assert list(one.gpus) == list(same.gpus)
    assert [gpu.identity for gpu in one.gpus.values()] == [
        gpu.identity for gpu in same.gpus.values()
    ]
    assert not set(one.gpus) & set(other.gpus)


def test_uuids_look_like_nvidias() -> None:
    node = SimulatedNode(Scenario(gpus=[GpuGroup(model="t4", count=64)]))

    assert len(node.gpus) == 64
    for uuid in node.gpus:
        assert re.fullmatch(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", uuid)
        assert uuids.UUID(uuid.removeprefix("GPU-")).version == 4


@pytest.mark.parametrize("model", model_names())
def test_identities_follow_the_profile_and_differ(model: str) -> None:
    node = SimulatedNode(Scenario(gpus=[GpuGroup(model=model, count=40)]))
    identities = [gpu.identity for gpu in node.gpus.values()]
    profile = load_profile(model)

    assert [one.index for one in identities] == list(range(40))
    assert len({one.pci_bus_id for one in identities}) == 40
    for one in identities:
        assert re.fullmatch(r"[0-9A-F]{8}:[0-9A-F]{2}:[0-9A-F]{2}\.0", one.pci_bus_id)
        assert (one.product, one.memory_bytes) == (profile.product, profile.memory_bytes)
        assert one.state is GpuState.OK


def test_groups_of_different_models_have_different_buses() -> None:
    groups = [
        GpuGroup(model=model, count=8) for model in ("h100-sxm5-80gb", "a100-sxm4-80gb", "t4")
    ]
    node = SimulatedNode(Scenario(gpus=groups))

    buses = [gpu.identity.pci_bus_id for gpu in node.gpus.values()]
    assert len(set(buses)) == len(buses) == 24


@pytest.mark.parametrize(
    ("count", "numa_nodes", "expected"),
    [
        (8, None, [0, 0, 0, 0, 1, 1, 1, 1]),
        (1, None, [0]),
        (4, 4, [0, 1, 2, 3]),
        (3, 1, [0, 0, 0]),
    ],
)
def test_gpus_are_spread_evenly_over_numa_nodes(
    count: int, numa_nodes: int | None, expected: list[int]
) -> None:
    node = SimulatedNode(Scenario(gpus=[GpuGroup(model="t4", count=count, numa_nodes=numa_nodes)]))

    assert [gpu.identity.numa_node for gpu in node.gpus.values()] == expected


@pytest.mark.parametrize("model", [name for name in model_names() if load_profile(name).mig])
def test_mig_devices_have_memory_and_together_fit_the_gpu(model: str) -> None:
    for mig in load_profile(model).mig:
        group = GpuGroup(model=model, mig=[mig.profile] * mig.instances)
        (gpu,) = SimulatedNode(Scenario(gpus=[group])).gpus.values()
        sizes = [device.memory_bytes for device in gpu.identity.mig_devices]

        assert len(sizes) == mig.instances
        assert 0 < sum(sizes) <= gpu.identity.memory_bytes


@pytest.mark.parametrize(
    ("model", "mig", "eighths"),
    [("b200", "7g.180gb", 8), ("b200", "1g.45gb", 2), ("h200", "3g.71gb", 4)],
)
def test_mig_memory_that_no_source_gives_is_a_share_of_the_gpu(
    model: str, mig: str, eighths: int
) -> None:
    node = SimulatedNode(Scenario(gpus=[GpuGroup(model=model, mig=[mig])]))
    (gpu,) = (one.identity for one in node.gpus.values())
    (device,) = gpu.mig_devices

    assert device.memory_bytes == gpu.memory_bytes * eighths // 8


def test_captured_buses_come_first() -> None:
    captured = load_profile("h100-sxm5-80gb").bus_ids
    groups = [GpuGroup(model="t4"), GpuGroup(model="h100-sxm5-80gb", count=9)]
    node = SimulatedNode(Scenario(gpus=groups))

    _, *buses, last = (gpu.identity.pci_bus_id for gpu in node.gpus.values())
    assert tuple(buses) == captured
    assert last not in captured


def test_a_gpu_is_found_by_index_and_by_uuid() -> None:
    node, gpus = a_node()

    assert node.find("1") is gpus[1]
    assert node.find(gpus[2].identity.uuid) is gpus[2]
    assert node.gpu(gpus[0].identity.uuid) is gpus[0]
    for unknown in ("3", "-1", "", "GPU-x"):
        with pytest.raises(UnknownGpu):
            node.find(unknown)
        with pytest.raises(UnknownGpu):
            node.gpu(unknown)


def test_links_follow_the_numa_nodes_and_leave_lost_gpus_out() -> None:
    node, (a, b, c) = a_node()
    assert [gpu.identity.numa_node for gpu in (a, b, c)] == [0, 0, 1]
    links = node.links()

    assert len(links) == 6
    assert links[a.identity.uuid, b.identity.uuid].kind is LinkKind.SAME_CPU
    assert links[c.identity.uuid, a.identity.uuid].kind is LinkKind.CROSS_CPU
    node.befall(b, LostFault())
    assert set(node.links()) == {
        (a.identity.uuid, c.identity.uuid),
        (c.identity.uuid, a.identity.uuid),
    }


# Happenings


def test_happenings_come_at_their_model_time() -> None:
    node, (a, b, _) = a_node(
        TimedHappening(at_s=20, gpu=1, what=XidFault(xid=79)),
        TimedHappening(at_s=5, gpu=0, what=EccFault()),
        TimedHappening(at_s=80, gpu=1, what=Recovery()),
    )
    a_uuid, b_uuid = a.identity.uuid, b.identity.uuid

    seen: dict[float, tuple[Event, ...]] = {}
    for until_s in (4.0, 6.0, 19.0, 21.0, 79.0, 81.0):
        node.env.run(until=until_s)
        seen[until_s] = node.take_events()

    assert seen == {
        4: (),
        6: (EccError(a_uuid, uncorrectable=False),),
        19: (),
        21: (XidError(b_uuid, 79), GpuDisappeared(b_uuid)),
        79: (),
        81: (GpuAppeared(b_uuid),),
    }


def test_what_is_due_now_has_happened_when_the_present_is_reached() -> None:
    node, (a, *_) = a_node(TimedHappening(at_s=20, gpu=0, what=LostFault()))

    lost = []
    for now_s in (19.9, 20.0):
        node.advance(now_s)
        lost.append(a.lost)

    assert lost == [False, True]
    assert node.env.now == 20
    assert node.env.peek() == float("inf"), "nothing is left to wait for"


def test_what_is_due_at_the_start_happens_without_time_going_on() -> None:
    node, (a, *_) = a_node(TimedHappening(at_s=0, gpu=0, what=LostFault()))

    node.advance(0.0)

    assert a.lost


def test_time_never_goes_back() -> None:
    node, _ = a_node()
    node.advance(10)
    node.advance(5)

    assert node.env.now == 10


def test_events_are_taken_once() -> None:
    node, (a, *_) = a_node()
    waiting = [node.has_events]
    node.befall(a, XidFault(xid=31))
    waiting.append(node.has_events)
    taken = [node.take_events()]
    waiting.append(node.has_events)
    taken.append(node.take_events())

    assert waiting == [False, True, False]
    assert taken == [(XidError(a.identity.uuid, 31),), ()]


@pytest.mark.parametrize("name", scenario_names())
def test_the_same_scenario_gives_the_same_events(name: str) -> None:
    def history() -> list[tuple[float, tuple[Event, ...]]]:
        node = SimulatedNode(load_scenario(name))
        found = []
        for second in range(1, 200):
            node.advance(float(second))
            found.append((node.env.now, node.take_events()))
        return found

    assert history() == history()


# Faults


def test_xid_79_loses_the_gpu_and_its_tenants() -> None:
    node, (a, *_) = a_node()
    node.befall(a, XidFault(xid=79))
    probe = a.probe()

    assert a.listed().state is GpuState.LOST
    assert a.listed().uuid == a.identity.uuid
    assert not probe.reachable
    assert probe.recovery_action is RecoveryAction.REBOOT
    assert a.processes() == ()


def test_xid_31_kills_one_tenant_and_leaves_the_gpu_clean() -> None:
    node, (a, b, _) = a_node()
    node.befall(a, XidFault(xid=31))

    assert names(a) == ["two"]
    assert names(b) == ["three"]
    assert a.probe().clean
    assert a.listed().state is GpuState.OK


def test_an_application_error_on_an_idle_gpu_is_only_reported() -> None:
    node, (*_, c) = a_node()
    before = c.probe()
    node.befall(c, XidFault(xid=31))

    assert c.probe() == before
    assert node.take_events() == (XidError(c.identity.uuid, 31),)


@pytest.mark.parametrize(
    ("code", "clean", "ecc", "pending", "failed"),
    [
        pytest.param(48, False, 1, False, False, id="48 double-bit error"),
        pytest.param(95, False, 1, False, False, id="95 uncontained"),
        pytest.param(94, True, 0, False, False, id="94 contained"),
        pytest.param(46, False, 0, False, False, id="46 stopped"),
        pytest.param(63, True, 0, True, False, id="63 row remapped"),
        pytest.param(64, False, 0, False, True, id="64 remap failed"),
        pytest.param(43, True, 0, False, False, id="43 ignored"),
    ],
)
def test_a_probe_shows_what_an_xid_left(
    code: int, clean: bool, ecc: int, pending: bool, failed: bool
) -> None:
    node, (a, *_) = a_node()
    node.befall(a, XidFault(xid=code))
    probe = a.probe()

    assert probe.clean == clean
    assert probe.uncorrectable_ecc == ecc
    assert (probe.row_remap_pending, probe.row_remap_failed) == (pending, failed)
    assert clean or a.processes() == (), "a GPU that wants a reset runs nothing"


@pytest.mark.parametrize("uncorrectable", [False, True])
def test_ecc_errors_are_counted_and_reported(uncorrectable: bool) -> None:
    node, (a, *_) = a_node()
    for _ in range(3):
        node.befall(a, EccFault(uncorrectable=uncorrectable))
    telemetry = a.telemetry(0)

    assert (telemetry.corrected_ecc, telemetry.uncorrectable_ecc) == (
        (0, 3) if uncorrectable else (3, 0)
    )
    assert node.take_events() == (EccError(a.identity.uuid, uncorrectable),) * 3


@pytest.mark.parametrize(
    ("what", "event"),
    [
        pytest.param(XidFault(xid=code), lambda uuid, code=code: XidError(uuid, code), id=str(code))
        for code in (46, 48, 63, 64, 79)
    ]
    + [pytest.param(EccFault(uncorrectable=True), lambda uuid: EccError(uuid, True), id="ECC")],
)
@pytest.mark.parametrize("loss", [XidFault(xid=79), LostFault()], ids=str)
def test_only_the_event_happens_to_a_lost_gpu(
    loss: XidFault | LostFault,
    what: XidFault | EccFault,
    event: Callable[[str], Event],
) -> None:
    node, (a, *_) = a_node()
    node.befall(a, loss)
    node.take_events()
    before = a.probe()

    node.befall(a, what)

    assert a.probe() == before
    assert node.take_events() == (event(a.identity.uuid),)


def test_a_gpu_is_lost_once() -> None:
    node, (a, *_) = a_node()
    node.befall(a, LostFault())
    node.befall(a, LostFault())

    assert node.take_events() == (GpuDisappeared(a.identity.uuid),)


FAULTS = [XidFault(xid=79), XidFault(xid=46), XidFault(xid=64), LostFault(), EccFault()]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_recovery_changes_the_epoch_and_leaves_the_gpu_as_new(
    fault: XidFault | LostFault | EccFault,
) -> None:
    node, (a, *_) = a_node()
    fresh = a.probe()
    node.befall(a, fault)
    assert a.probe().epoch == fresh.epoch, "a fault alone is no reset"
    was_lost = a.lost
    node.take_events()

    node.befall(a, Recovery())
    probe = a.probe()

    assert probe.epoch != fresh.epoch
    assert probe.clean
    assert probe.uncorrectable_ecc == 0
    assert a.listed() == a.identity
    assert node.take_events() == ((GpuAppeared(a.identity.uuid),) if was_lost else ())


def test_every_reset_has_an_epoch_of_its_own() -> None:
    node, (a, *_) = a_node()
    epochs = [a.probe().epoch]
    for _ in range(5):
        node.befall(a, Recovery())
        epochs.append(a.probe().epoch)

    assert len(set(epochs)) == 6


# Readings


WHAT = st.one_of(
    st.sampled_from([31, 43, 46, 48, 63, 64, 79, 94, 95]).map(lambda code: XidFault(xid=code)),
    st.booleans().map(lambda uncorrectable: EccFault(uncorrectable=uncorrectable)),
    st.just(LostFault()),
    st.just(Recovery()),
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
    happened: list[tuple[float, XidFault | EccFault | LostFault | Recovery]],
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
        node.advance(node.env.now + wait_s)
        node.befall(gpu, what)
        check_readings(gpu, node.env.now)
    check_readings(gpu, node.env.now + 10)


def check_readings(gpu: SimulatedGpu, now_s: float) -> None:
    telemetry, processes = gpu.telemetry(now_s), gpu.processes()
    profile = gpu.profile
    shares = sum(process.sm_share or 0 for process in processes)
    assert telemetry.utilization == pytest.approx(shares)
    assert 0 <= shares <= 1 + 1e-9
    memory = sum(process.memory_bytes or 0 for process in processes)
    reserved = profile.memory_reserved_bytes or 0
    assert telemetry.memory_used_bytes == min(reserved + memory, telemetry.memory_total_bytes)
    assert telemetry.memory_total_bytes == profile.memory_bytes
    if telemetry.power_w is not None and telemetry.power_limit_w is not None:
        assert 0 < telemetry.power_w <= telemetry.power_limit_w
    assert telemetry.temperature_c is not None
    assert 20 <= telemetry.temperature_c <= 110
    assert [process.pid for process in processes] == sorted({one.pid for one in processes})
    assert (telemetry.throttle_reasons is ThrottleReason.IDLE) == (telemetry.utilization == 0)


def test_tenants_of_a_saturated_gpu_share_it_by_demand() -> None:
    _, (a, b, c) = a_node()

    assert [process.sm_share for process in a.processes()] == pytest.approx([0.4, 0.6])
    assert [process.memory_bytes for process in a.processes()] == [3 * GIB, 2 * GIB]
    assert [process.sm_share for process in b.processes()] == pytest.approx([0.25])
    assert a.telemetry(0).utilization == 1
    assert c.telemetry(0).utilization == 0


def test_pids_differ_over_the_whole_node() -> None:
    _, gpus = a_node()
    pids = [process.pid for gpu in gpus for process in gpu.processes()]

    assert len(set(pids)) == len(pids) == 3


def test_a_busy_gpu_warms_up_and_an_idle_one_cools_down() -> None:
    node, (a, *_) = a_node()
    busy = [a.telemetry(now_s).temperature_c or 0 for now_s in (0, 10, 30, 1000)]
    node.advance(1000)
    node.befall(a, XidFault(xid=46))
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


def test_a_gpu_without_ecc_counts_nothing() -> None:
    node = SimulatedNode(Scenario(gpus=[GpuGroup(model="rtx3090")]))
    (gpu,) = node.gpus.values()
    if gpu.profile.ecc:
        pytest.skip("this model has ECC")
    telemetry = gpu.telemetry(0)

    assert (telemetry.corrected_ecc, telemetry.uncorrectable_ecc) == (None, None)
