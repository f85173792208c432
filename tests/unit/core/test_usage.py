"""Who uses which share: replicas, pods and processes put together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.core.inventory import GPU_RESOURCE, Plan, build_inventory
from gpuplugin.core.sharing import SharedResource, TimeSlicing
from gpuplugin.core.usage import (
    Holding,
    PodName,
    Reading,
    Seen,
    TenantUse,
    UnitUse,
    Usage,
    Work,
    jain,
    usage_of,
)
from hal import ComputeProcess, Gpu, MigDevice, Telemetry, ThrottleReason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GIB = 1024**3
API, TRAINER = PodName("shop", "api"), PodName("ml", "trainer")


def a_gpu(index: int = 0, mig: tuple[MigDevice, ...] = ()) -> Gpu:
    return Gpu(
        uuid=f"GPU-{index}",
        index=index,
        minor=index,
        pci_bus_id=f"00000000:{index:02x}:00.0",
        numa_node=None,
        product="NVIDIA X",
        memory_bytes=80 * GIB,
        compute_capability=(9, 0),
        mig_enabled=bool(mig),
        mig_devices=mig,
    )


def reading(utilization: float | None = 0.9, used_gib: int = 50) -> Telemetry:
    return Telemetry(
        utilization=utilization,
        memory_used_bytes=used_gib * GIB,
        memory_free_bytes=(80 - used_gib) * GIB,
        memory_total_bytes=80 * GIB,
        temperature_c=50.0,
        power_w=300.0,
        power_limit_w=400.0,
        energy_j=1234.5,
        sm_clock_mhz=1000,
        memory_clock_mhz=1000,
        throttle_reasons=ThrottleReason.NONE,
        corrected_ecc=0,
        uncorrectable_ecc=0,
    )


def process(
    pid: int, gib: float | None, share: float | None, mig: str | None = None
) -> ComputeProcess:
    memory = None if gib is None else int(gib * GIB)
    return ComputeProcess(pid, f"p{pid}", memory, share, mig)


def work(pod: PodName | None, *processes: ComputeProcess, gpu: str = "GPU-0") -> list[Work]:
    return [Work(gpu, one, pod) for one in processes]


def held(pod: PodName, *ids: str, container: str = "main") -> Holding:
    return Holding(pod, container, GPU_RESOURCE, ids)


def use(
    holdings: Sequence[Holding] | None = (),
    on_gpu: Mapping[str, Sequence[Work]] | None = None,
    *,
    replicas: int = 10,
    gpus: Sequence[Gpu] = (a_gpu(),),
    telemetry: Mapping[str, Telemetry] | None = None,
    plan: Plan | None = None,
) -> Usage:
    sharing = TimeSlicing((SharedResource(GPU_RESOURCE, replicas),))
    inventory = build_inventory(gpus, plan or Plan(sharing=sharing))
    return usage_of(
        Seen(gpus, inventory, holdings, {"GPU-0": reading()} if telemetry is None else telemetry,
             {"GPU-0": []} if on_gpu is None else on_gpu)
    )  # fmt: skip


def only_unit(usage: Usage) -> UnitUse:
    (unit,) = usage.units
    return unit


def tenant(usage: Usage, pod: PodName | None) -> TenantUse:
    (found,) = [one for one in usage.tenants if one.pod == pod]
    return found


def test_memory_that_is_unknown_makes_no_verdict() -> None:
    """Chips that use the host's memory report none."""
    chip = replace(a_gpu(), memory_bytes=None)
    unknown = replace(
        reading(), memory_used_bytes=None, memory_free_bytes=None, memory_total_bytes=None
    )
    usage = use(
        [held(API, "GPU-0::0")],
        {"GPU-0": work(API, process(1, 40, 0.5))},
        gpus=(chip,),
        telemetry={"GPU-0": unknown},
    )
    one, unit = tenant(usage, API), only_unit(usage)
    assert (one.memory_bytes, one.fair_memory_bytes, one.over_fair_share) == (40 * GIB, None, False)
    assert (unit.memory_bytes, unit.free_bytes) == (None, None)


def test_a_hungry_pod_is_named_with_what_it_has() -> None:
    usage = use(
        [held(API, "GPU-0::0"), held(TRAINER, "GPU-0::7")],
        {
            "GPU-0": work(API, process(1, 6, 0.2))
            + work(TRAINER, process(2, 30, 0.4), process(3, 8, 0.2))
        },
    )
    trainer = tenant(usage, TRAINER)
    assert (trainer.processes, trainer.memory_bytes) == (2, 38 * GIB)
    assert trainer.sm_share == pytest.approx(0.6)
    assert trainer.fair_memory_bytes == 8 * GIB
    assert trainer.over_fair_share
    assert not tenant(usage, API).over_fair_share
    unit = only_unit(usage)
    assert (unit.replicas, unit.allocated, unit.tenants, unit.contending) == (10, 2, 2, 2)
    assert unit.free_bytes == 30 * GIB
    assert unit.efficiency == 0.9
    assert unit.gain == pytest.approx(0.9 / 0.6)
    assert unit.fairness == pytest.approx(0.8**2 / (2 * (0.04 + 0.36)))


def test_more_replicas_are_a_larger_fair_share() -> None:
    usage = use(
        [held(TRAINER, *(f"GPU-0::{n}" for n in range(5)))],
        {"GPU-0": work(TRAINER, process(1, 38, 0.5))},
    )
    assert tenant(usage, TRAINER).fair_memory_bytes == 40 * GIB
    assert not tenant(usage, TRAINER).over_fair_share


def test_who_holds_more_replicas_may_have_more_of_the_gpu() -> None:
    usage = use(
        [held(API, "GPU-0::0"), held(TRAINER, "GPU-0::1", "GPU-0::2", "GPU-0::3")],
        {"GPU-0": work(API, process(1, 6, 0.2)) + work(TRAINER, process(2, 6, 0.6))},
    )
    assert only_unit(usage).fairness == pytest.approx(1.0)


def test_two_containers_of_a_pod_are_one_tenant() -> None:
    usage = use(
        [held(API, "GPU-0::0", container="b"), held(API, "GPU-0::1", container="a")],
        {"GPU-0": work(API, process(1, 1, 0.1))},
    )
    assert (tenant(usage, API).container, tenant(usage, API).replicas) == ("a,b", 2)
    assert {(one.replica, one.container) for one in usage.replicas} == {(0, "b"), (1, "a")}


def test_processes_in_no_pod_are_tenants_of_their_own() -> None:
    usage = use([], {"GPU-0": work(None, process(1, 1, 0.3), process(2, 2, 0.0))})
    assert only_unit(usage).tenants == 2
    stranger = tenant(usage, None)
    assert (stranger.processes, stranger.memory_bytes, stranger.fair_memory_bytes) == (
        2,
        3 * GIB,
        None,
    )


def test_a_pod_that_holds_and_does_nothing_is_no_tenant_of_the_hardware() -> None:
    usage = use([held(API, "GPU-0::0")])
    assert (only_unit(usage).allocated, only_unit(usage).tenants) == (1, 0)
    assert tenant(usage, API).memory_bytes is None


def test_one_who_works_alone_shares_with_nobody() -> None:
    usage = use(
        [held(API, "GPU-0::0"), held(TRAINER, "GPU-0::1")],
        {"GPU-0": work(API, process(1, 6, 0.9)) + work(TRAINER, process(2, 6, 0.0))},
    )
    unit = only_unit(usage)
    assert (unit.tenants, unit.contending) == (2, 1)
    assert unit.fairness is unit.efficiency is unit.gain is None


def test_what_could_not_be_read_is_not_made_up() -> None:
    unit = only_unit(use(None, {}, telemetry={}))
    assert unit.allocated is unit.tenants is unit.contending is unit.free_bytes is None


def test_devices_of_others_are_passed_over() -> None:
    strange = [held(API, "GPU-9::0"), Holding(API, "c", "example.com/nic", ("GPU-0::0",))]
    assert use(strange).replicas == ()


def test_mig_devices_have_tenants_of_their_own() -> None:
    migs = tuple(MigDevice(f"MIG-{n}", n, n + 1, 0, "3g.40gb", 40 * GIB, ()) for n in range(2))
    usage = use(
        [Holding(API, "main", "nvidia.com/gpu", ("MIG-1",))],
        {"GPU-0": work(API, process(1, 10, None, mig="MIG-1"))},
        gpus=[a_gpu(mig=migs)],
        plan=Plan(mig_strategy="single"),
    )
    assert [(unit.uuid, unit.index, unit.tenants) for unit in usage.units] == [
        ("MIG-0", "0:0", 0),
        ("MIG-1", "0:1", 1),
    ]
    assert usage.units[1].free_bytes == 30 * GIB
    assert tenant(usage, API).uuid == "MIG-1"
    assert tenant(usage, API).fair_memory_bytes == 40 * GIB


@given(
    st.lists(st.tuples(st.sampled_from([API, TRAINER, None]), st.floats(0, 10), st.floats(0, 0.2))),
    st.lists(st.sampled_from([API, TRAINER]), max_size=10),
)
def test_nothing_is_lost_and_nothing_is_counted_twice(
    processes: list[tuple[PodName | None, float, float]], holders: list[PodName]
) -> None:
    found = [
        one
        for pid, (pod, gib, share) in enumerate(processes)
        for one in work(pod, process(pid, gib, share))
    ]
    usage = use([held(pod, f"GPU-0::{n}") for n, pod in enumerate(holders)], {"GPU-0": found})
    assert sum(one.processes for one in usage.tenants) == len(found)
    assert sum(one.memory_bytes or 0 for one in usage.tenants) == sum(
        one.process.memory_bytes or 0 for one in found
    )
    assert sum(one.replicas for one in usage.tenants) == len(holders) == len(usage.replicas)
    unit = only_unit(usage)
    assert unit.allocated == len(holders)
    assert (unit.contending or 0) <= (unit.tenants or 0)
    fair = [one.fair_memory_bytes or 0 for one in usage.tenants]
    assert sum(fair) <= 80 * GIB
    if unit.fairness is not None:
        assert 1 / max(1, unit.contending or 1) - 1e-9 <= unit.fairness <= 1 + 1e-9


@pytest.mark.parametrize(
    ("shares", "index"),
    [([1.0], 1.0), ([0.3, 0.3, 0.3], 1.0), ([1.0, 0.0], 0.5), ([0.0, 0.0], 1.0), ([], 1.0)],
)
def test_jains_index(shares: list[float], index: float) -> None:
    assert jain(shares) == pytest.approx(index)


def test_a_reading_is_stale_after_three_periods() -> None:
    reading = Reading(at_s=100.0, period_s=10.0)
    assert not reading.stale(130.0)
    assert reading.stale(130.1)
    assert not Reading().stale(1e9)


def test_just_the_fair_share_is_not_more_than_it() -> None:
    usage = use([held(API, "GPU-0::0")], {"GPU-0": work(API, process(1, 8, 0.2))})
    one = tenant(usage, API)
    assert one.memory_bytes == one.fair_memory_bytes == 8 * GIB
    assert not one.over_fair_share


@pytest.mark.parametrize(
    ("used_gib", "free_gib"),
    [((10, 5), 25), ((30, 20), 0), ((10, None), None)],
    ids=["known", "more than there is", "a process of unknown size"],
)
def test_the_free_memory_of_a_mig_device_is_what_its_processes_leave(
    used_gib: tuple[int | None, int | None], free_gib: int | None
) -> None:
    mig = MigDevice("MIG-0", 0, 1, 0, "3g.40gb", 40 * GIB, ())
    found = [process(pid, gib, None, mig="MIG-0") for pid, gib in enumerate(used_gib)]
    usage = use(
        None,
        {"GPU-0": [*work(API, found[0]), *work(TRAINER, found[1])]},
        gpus=[a_gpu(mig=(mig,))],
        plan=Plan(mig_strategy="single"),
    )
    assert only_unit(usage).free_bytes == (None if free_gib is None else free_gib * GIB)
