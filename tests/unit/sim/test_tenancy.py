"""Tenants on one GPU: memory that runs out, faults that end them, clocks that slow them down."""

from __future__ import annotations

from random import Random

import pytest
import simpy

from sim.gpu.profiles import MIB
from sim.gpu.scheduler import NS_PER_MS, to_ns
from sim.gpu.schedulers import Mps
from sim.gpu.tenancy import Memory, Tenancy, Tenant, TenantSpec
from sim.gpu.timeslicing import TimeSlicing
from sim.gpu.workloads import ClosedLoop, MemoryUse

GIB = 1024**3
BUSY = ClosedLoop(busy_ms=10)


class Gpu:
    """A GPU with 10 GiB and a log."""

    def __init__(self, *, mps: bool = False, share: float = 1.0) -> None:
        self.env = simpy.Environment()
        self.facts: list[tuple[str, dict[str, object]]] = []
        self.tenancy = Tenancy(
            self.env,
            Mps() if mps else TimeSlicing(),
            Memory(10 * GIB),
            "GPU-a",
            compute_share=share,
            shares_faults=mps,
            log=lambda kind, facts: self.facts.append((kind, facts)),
        )

    def start(
        self,
        name: str,
        memory: MemoryUse | None = None,
        workload: ClosedLoop = BUSY,
        occupancy: float = 1.0,
        mps_share: float | None = None,
    ) -> Tenant:
        pid = 100 + len(self.facts) * 100 + len(self.tenancy.tenants)
        spec = TenantSpec(name, workload, memory or MemoryUse(context_mib=0), occupancy, mps_share)
        return self.tenancy.start(pid, spec, Random(1))

    def until(self, seconds: float) -> None:
        self.env.run(until=to_ns(seconds))

    @property
    def names(self) -> list[str]:
        return [tenant.spec.name for tenant in self.tenancy.tenants.values()]


def test_a_tenant_that_does_not_fit_fails_and_the_log_names_who_holds_what() -> None:
    gpu = Gpu()
    gpu.start("first", MemoryUse(start_gib=6, context_mib=512))
    gpu.start("second", MemoryUse(start_gib=2, context_mib=512))
    late = gpu.start("late", MemoryUse(start_gib=2, context_mib=0))
    assert (late.record.ended, late.record.ooms) == ("oom", 1)
    ((kind, facts), _ended) = gpu.facts
    assert kind == "oom"
    assert facts["tenant"] == "late"
    assert facts["asked_bytes"] == 2 * GIB
    assert facts["free_bytes"] == 1 * GIB
    assert facts["holders"] == {
        "first": 6 * GIB + 512 * MIB, "second": 2 * GIB + 512 * MIB, "late": 0
    }  # fmt: skip
    assert gpu.names == ["first", "second"], "those who were there are not touched"


def test_what_tenants_of_one_name_hold_adds_up() -> None:
    gpu = Gpu()
    for _ in range(2):
        gpu.start("twin", MemoryUse(start_gib=4, context_mib=0))
    gpu.start("late", MemoryUse(start_gib=4, context_mib=0))
    assert gpu.facts[0][1]["holders"] == {"twin": 8 * GIB, "late": 0}


def test_one_who_grows_takes_what_the_next_one_needs() -> None:
    gpu = Gpu()
    bomb = gpu.start(
        "bomb",
        MemoryUse(
            start_gib=1, grow_gib=1, every_s=1, most_gib=100, context_mib=0, on_oom="survive"
        ),
    )
    victim = gpu.start(
        "victim", MemoryUse(start_gib=1, grow_gib=1, every_s=6.5, most_gib=4, context_mib=0)
    )
    gpu.until(20)
    assert victim.record.ended == "oom"
    assert bomb.record.ended == ""
    assert bomb.record.ooms > 0, "the one who asks next fails, and this one does not mind"
    assert gpu.names == ["bomb"]


def test_what_a_tenant_held_is_free_when_it_is_gone() -> None:
    gpu = Gpu()
    tenant = gpu.start("one", MemoryUse(start_gib=9, grow_gib=0.1, every_s=1, most_gib=9.5))
    gpu.until(3)
    gpu.tenancy.kill(tenant.pid, "xid 31")
    gpu.tenancy.kill(tenant.pid, "again")
    assert gpu.tenancy.memory.free_bytes == 10 * GIB
    assert tenant.record.ended == "xid 31"
    gpu.until(10)
    assert tenant.gone.processed


def test_a_fault_of_an_application_ends_the_one_that_runs() -> None:
    gpu = Gpu()
    tenants = [gpu.start(f"t{number}") for number in range(3)]
    gpu.until(0.0052)  # the third turn: 2.048 ms for each, with switches between them
    assert gpu.tenancy.kill_running("xid 31") == "t2"
    gpu.until(1)
    assert gpu.names == ["t0", "t1"]
    served = [len(tenant.record.latency_ns) for tenant in tenants]
    assert served[0] == pytest.approx(1000 / 2 / 11.1, abs=2), "the others have the GPU to halves"
    assert served[2] == 0


def test_under_mps_everybody_is_on_the_gpu() -> None:
    gpu = Gpu(mps=True)
    tenants = [gpu.start(f"t{number}", mps_share=0.0) for number in range(4)]
    gpu.until(1.0001)
    assert [len(tenant.record.latency_ns) for tenant in tenants] == [100] * 4
    gpu.tenancy.kill_all("xid 31")
    assert gpu.names == []


def test_slow_clocks_make_everybody_slow() -> None:
    gpu = Gpu()
    tenant = gpu.start("one")
    gpu.until(1)
    at_full = len(tenant.record.latency_ns)
    gpu.tenancy.set_clock(500_000)
    gpu.until(2)
    assert len(tenant.record.latency_ns) - at_full == pytest.approx(at_full / 2, abs=1)


def test_a_slice_of_the_gpu_is_slower_only_for_work_that_fills_more() -> None:
    small, large = Gpu(share=0.25), Gpu(share=0.25)
    fits = small.start("fits", occupancy=0.2)
    fills = large.start("fills", occupancy=1.0)
    small.until(1)
    large.until(1)
    assert len(fits.record.latency_ns) == pytest.approx(100, abs=1)
    assert len(fills.record.latency_ns) == pytest.approx(25, abs=1)
    assert set(fills.record.work_ns) == {10 * NS_PER_MS}, "alone means alone on the whole GPU"


def test_samples_tell_how_busy_it_was() -> None:
    gpu = Gpu()
    gpu.start("half", workload=ClosedLoop(busy_ms=10, idle_ms=10))
    gpu.until(1)
    gpu.tenancy.sample()
    assert gpu.tenancy.utilization == pytest.approx(0.5, abs=0.02)
    (pid,) = gpu.tenancy.tenants
    assert gpu.tenancy.sm_share(pid) == gpu.tenancy.utilization
    gpu.tenancy.kill_all("test")
    gpu.until(1.05)
    gpu.tenancy.sample()
    assert gpu.tenancy.utilization > 0, "a sample is 100 ms at least"
    gpu.until(2)
    gpu.tenancy.sample()
    assert gpu.tenancy.utilization == pytest.approx(0, abs=0.02)
