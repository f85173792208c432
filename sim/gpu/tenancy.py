"""Tenants of a GPU or MIG device: their memory, their lives, and what becomes of them.

No isolation of memory: what one tenant holds, the next one cannot have. Allocations stay where they
are while other contexts run; nothing is swapped out.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import simpy

from hal import GIB
from sim.gpu.profiles import MIB, USUAL_CONTEXT_MIB
from sim.gpu.scheduler import ContextGone, ContextId, GpuCompute, to_ns
from sim.gpu.timeslicing import Slicing
from sim.gpu.workloads import drive

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from random import Random

    from sim.gpu.scheduler import Scheduler, SliceParameters
    from sim.gpu.workloads import MemoryUse, Workload


DEFAULT_CONTEXT_BYTES = round(USUAL_CONTEXT_MIB * MIB)

UVM_SLOWDOWN_AT_TWICE = 12.0
"""Slowdown of two tenants that oversubscribe memory through UVM: 12 to 22 were measured."""


class OutOfMemory(Exception):
    """An allocation does not fit; `holders` says who holds how many bytes."""

    def __init__(self, asked_bytes: int, free_bytes: int, holders: Mapping[ContextId, int]) -> None:
        super().__init__(f"{asked_bytes} bytes were asked for, {free_bytes} are free")
        self.asked_bytes = asked_bytes
        self.free_bytes = free_bytes
        self.holders = dict(holders)


@dataclass(slots=True)
class Memory:
    """The memory of a GPU or MIG device.

    `reserved_bytes` is what the driver keeps. With `oversubscribe` (managed memory) nothing fails:
    pages move, and all tenants slow down.
    """

    total_bytes: int
    reserved_bytes: int = 0
    oversubscribe: bool = False
    held_bytes: dict[ContextId, int] = field(default_factory=dict)
    """What each context holds, its own overhead included."""

    @property
    def used_bytes(self) -> int:
        """All that is not free; with oversubscription it may pass the total."""
        return self.reserved_bytes + sum(self.held_bytes.values())

    @property
    def free_bytes(self) -> int:
        return max(0, self.total_bytes - self.used_bytes)

    def allocate(self, context: ContextId, size_bytes: int) -> None:
        """Give a context memory; nothing changes where it raises `OutOfMemory`."""
        if size_bytes > self.free_bytes and not self.oversubscribe:
            raise OutOfMemory(size_bytes, self.free_bytes, self.held_bytes)
        self.held_bytes[context] = self.held_bytes.get(context, 0) + size_bytes

    def release(self, context: ContextId) -> None:
        self.held_bytes.pop(context, None)

    @property
    def speed(self) -> float:
        """Share of full speed that is left by moving pages: 1 while everything fits.

        Falls to 1/12 where twice the memory is in use, in proportion to what does not fit.
        """
        over = self.used_bytes / self.total_bytes - 1
        return 1.0 if over <= 0 else 1 / (1 + (UVM_SLOWDOWN_AT_TWICE - 1) * over)


FULL_SPEED_PPM = 1_000_000
SAMPLE_NS = 100_000_000
"""Drivers measure utilisation over 1/6 s to 1 s; nothing shorter means much."""


@dataclass(slots=True)
class TenantRecord:
    """What came of a tenant.

    For every request that was served, in order: `latency_ns` from its coming to its end, and
    `work_ns`, what it takes alone. `asked` is how often it had work for the GPU. `ended` is why it
    ended, empty while it runs.
    """

    name: str
    gpu: str
    started_ns: int
    ended_ns: int | None = None
    ended: str = ""
    asked: int = 0
    latency_ns: array[int] = field(default_factory=lambda: array("q"))
    work_ns: array[int] = field(default_factory=lambda: array("q"))
    ooms: int = 0
    busy_ns: int = 0
    """Time on the GPU; known when it has ended."""

    def forget_requests(self) -> None:
        """Forget what came of each request, by which a record grows."""
        del self.latency_ns[:], self.work_ns[:]


@dataclass(frozen=True, slots=True)
class TenantSpec:
    """A tenant as it is started; `occupancy` (0 to 1) is how much of the GPU its kernels fill.

    `mps_share` is by how much they slow each other tenant down under MPS; None: the usual one.
    """

    name: str
    workload: Workload
    memory: MemoryUse
    occupancy: float
    mps_share: float | None = None


@dataclass(slots=True)
class Tenant:
    """A tenant: its process id, context, spec and record; `gone` succeeds when it has ended."""

    pid: int
    context: ContextId
    spec: TenantSpec
    record: TenantRecord
    gone: simpy.Event
    process: simpy.Process | None = None
    growth: simpy.Process | None = None


@dataclass(frozen=True, slots=True)
class _Sample:
    at_ns: int
    active_ns: int
    busy_ns: dict[ContextId, int]


@dataclass(slots=True)
class _Bench:
    """What a driver works on: see `sim.gpu.workloads.Bench`."""

    env: simpy.Environment
    random: Random
    tenancy: Tenancy
    tenant: Tenant

    def work(self, work_ns: int) -> simpy.Event:
        spec, share = self.tenant.spec, self.tenancy.compute_share
        here_ns = round(work_ns * max(1.0, spec.occupancy / share))
        occupancy = min(1.0, spec.occupancy / share)
        self.tenant.record.asked += 1
        return self.tenancy.compute.run(self.tenant.context, here_ns, occupancy, spec.mps_share)

    def served(self, since_ns: int, work_ns: int) -> None:
        record = self.tenant.record
        record.latency_ns.append(int(self.env.now) - since_ns)
        record.work_ns.append(work_ns)


class Tenancy:
    """The tenants of one GPU or MIG device, which `gpu` names.

    `compute_share` is the share of the whole GPU's SMs that there are; work that fills more of them
    takes longer in proportion. With `shares_faults` (MPS) the fault of one ends all of them. A
    context takes `context_bytes` unless the tenant says otherwise. `log` is called with facts as
    (kind, keys and values).
    """

    def __init__(
        self,
        env: simpy.Environment,
        scheduler: Scheduler,
        memory: Memory,
        gpu: str,
        *,
        compute_share: float = 1.0,
        shares_faults: bool = False,
        context_bytes: int = DEFAULT_CONTEXT_BYTES,
        log: Callable[[str, dict[str, object]], None] = lambda _kind, _facts: None,
    ) -> None:
        self.env = env
        self.compute = GpuCompute(env, scheduler)
        self.memory = memory
        self.gpu = gpu
        self.compute_share = compute_share
        self.shares_faults = shares_faults
        self._context_bytes = context_bytes
        self.tenants: dict[int, Tenant] = {}
        """Those that run, by process id, in the order in which they came."""
        self._log = log
        self._clock_ppm = FULL_SPEED_PPM
        self._sample = _Sample(int(env.now), 0, {})
        self._shares: dict[ContextId, float] = {}
        self.utilization = 0.0
        """Share of the time before the last sample in which a kernel ran, 0 to 1."""

    def start(self, pid: int, spec: TenantSpec, random: Random) -> Tenant:
        """Start a tenant now; one whose memory does not fit ends at once."""
        record = TenantRecord(spec.name, self.gpu, int(self.env.now))
        tenant = Tenant(pid, ContextId(pid), spec, record, self.env.event())
        self.tenants[pid] = tenant
        own_mib = spec.memory.context_mib
        context_bytes = self._context_bytes if own_mib is None else round(own_mib * MIB)
        if not self._allocate(tenant, context_bytes, "context"):
            self._end(tenant, "oom")
            return tenant
        fits = self._allocate(tenant, round(spec.memory.start_gib * GIB), "start")
        if not fits and spec.memory.on_oom == "die":
            self._end(tenant, "oom")
            return tenant
        bench = _Bench(self.env, random, self, tenant)
        tenant.process = self.env.process(self._run(tenant, bench))
        if spec.memory.grow_gib:
            tenant.growth = self.env.process(self._grow(tenant))
        return tenant

    def kill(self, pid: int, why: str) -> None:
        """End a tenant now, as a fault or a user does; does nothing for a tenant that has ended."""
        tenant = self.tenants.get(pid)
        if tenant is not None:
            self._end(tenant, why)

    def kill_all(self, why: str) -> None:
        for pid in list(self.tenants):
            self.kill(pid, why)

    def set_clock(self, ppm: int) -> None:
        if ppm != self._clock_ppm:
            self._clock_ppm = ppm
            self._set_speed()

    def set_slices(self, parameters: SliceParameters) -> None:
        """Other slices and switches from now on, where the compute is sliced at all."""
        self.compute.catch_up()
        scheduler = self.compute.scheduler
        if isinstance(scheduler, Slicing):
            scheduler.parameters = parameters
            self.compute.changed()

    def kill_running(self, why: str) -> str | None:
        """End the tenant whose kernel is on the GPU, or the first that there is; its name."""
        self.compute.catch_up()
        pid = next(
            (pid for pid in self.tenants if self.compute.scheduler.on_gpu(ContextId(pid))), None
        )
        pid = next(iter(self.tenants), None) if pid is None else pid
        if pid is None:
            return None
        name = self.tenants[pid].spec.name
        self.kill(pid, why)
        return name

    def sample(self) -> None:
        """Measure `utilization` and `sm_share` again, if the last sample is 100 ms old."""
        self.compute.catch_up()
        usage, last, now_ns = self.compute.scheduler.usage, self._sample, int(self.env.now)
        elapsed_ns = now_ns - last.at_ns
        if elapsed_ns < SAMPLE_NS:
            return
        self.utilization = min(1.0, (usage.active_ns - last.active_ns) / elapsed_ns)
        self._shares = {
            context: min(1.0, (busy_ns - last.busy_ns.get(context, 0)) / elapsed_ns)
            for context, busy_ns in usage.busy_ns.items()
        }
        self._sample = _Sample(now_ns, usage.active_ns, dict(usage.busy_ns))

    def sm_share(self, pid: int) -> float:
        return self._shares.get(ContextId(pid), 0.0)

    def _run(self, tenant: Tenant, bench: _Bench) -> Generator[simpy.Event, object, None]:
        try:
            yield from drive(tenant.spec.workload, bench)
        except (simpy.Interrupt, ContextGone):
            return
        self._end(tenant, "done")

    def _grow(self, tenant: Tenant) -> Generator[simpy.Event, object, None]:
        use = tenant.spec.memory
        held_gib, most_gib = use.start_gib, use.most_gib or 0.0
        while held_gib < most_gib:
            try:
                yield self.env.timeout(to_ns(use.every_s))
            except simpy.Interrupt:
                return
            step_gib = min(use.grow_gib, most_gib - held_gib)
            if self._allocate(tenant, round(step_gib * GIB), "growth"):
                held_gib += step_gib
            elif use.on_oom == "die":
                tenant.growth = None
                self._end(tenant, "oom")
                return

    def _allocate(self, tenant: Tenant, size_bytes: int, what: str) -> bool:
        try:
            self.memory.allocate(tenant.context, size_bytes)
        except OutOfMemory as error:
            tenant.record.ooms += 1
            holders: Counter[str] = Counter()  # two tenants may have one name
            for pid, held in error.holders.items():
                holders[self.tenants[pid].spec.name] += held
            self._log(
                "oom",
                {
                    "gpu": self.gpu,
                    "tenant": tenant.spec.name,
                    "what": what,
                    "asked_bytes": error.asked_bytes,
                    "free_bytes": error.free_bytes,
                    "holders": dict(holders),
                },
            )
            return False
        self._set_speed()
        return True

    def _end(self, tenant: Tenant, why: str) -> None:
        del self.tenants[tenant.pid]
        tenant.record.ended, tenant.record.ended_ns = why, int(self.env.now)
        self.memory.release(tenant.context)
        self.compute.cancel(tenant.context)
        tenant.record.busy_ns = self.compute.scheduler.usage.busy_ns.pop(tenant.context, 0)
        for process in (tenant.process, tenant.growth):
            if process is not None and process.is_alive and process is not self.env.active_process:
                process.interrupt(why)
        self._set_speed()
        tenant.gone.succeed(why)
        self._log("tenant-ended", {"gpu": self.gpu, "tenant": tenant.spec.name, "why": why})

    def _set_speed(self) -> None:
        """Clocks, and pages that move: together they determine the speed of all tenants."""
        self.compute.set_speed(max(1, round(self._clock_ppm * self.memory.speed)))
