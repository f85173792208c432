"""The simulated node: GPUs on one simpy environment, driven by a scenario and one seed.

Model time is the environment's clock, in integer nanoseconds from 0 on, so that it adds up exactly;
scenarios and faults count in seconds. `sim.node.realtime` advances and reads it in real time;
nothing here locks or sleeps.
"""

from __future__ import annotations

import itertools
from collections import deque
from random import Random
from typing import TYPE_CHECKING, assert_never

import simpy

from hal import EccError, GpuAppeared, Link, LinkKind, UnknownGpu, XidError
from sim.gpu.faults import (
    ConfidentialReady,
    DriverDown,
    DriverHang,
    DriverReturns,
    DriverUp,
    GpuFault,
    Hang,
    NodeFault,
    Plug,
    Recovery,
    Repartition,
    Replacement,
    Returns,
    ThermalShutdown,
    WatchBroken,
    WatchMended,
)
from sim.gpu.gpu import SimulatedGpu
from sim.gpu.nvlinks import Switch, link_ends
from sim.gpu.physics import Physics
from sim.gpu.scheduler import NS_PER_S, to_ns
from sim.gpu.tenancy import TenantSpec
from sim.gpu.workloads import MemoryUse
from sim.node.injection import SimulatedDriver, check_applies, start_faults
from sim.node.partitions import Partitions
from sim.node.population import Identities, tenancies_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from hal import Event, Gpu
    from sim.gpu.nvlinks import LinkEnd
    from sim.gpu.profiles import Profile
    from sim.gpu.tenancy import Tenancy, Tenant, TenantRecord
    from sim.node.population import Log
    from sim.node.scenario import Scenario
    from sim.node.scenario import Tenant as TenantOfScenario

FIRST_PID = 4001
MOST_EVENTS = 4096
"""Assumed: how many events are kept until they are read; older ones are dropped."""
GOVERN_S = 1.0
"""How often clocks follow the temperature; assumed. They have to be faster than the heat: between
slowdown and shutdown there are 3 degrees on some models."""


class SimulatedNode:
    """GPUs, tenants and faults; `now_s` is the model time, `env.now` the same in nanoseconds.

    Nodes of one scenario with different names have different GPUs, and fail at different times;
    the same name gives the same node.
    """

    def __init__(
        self, scenario: Scenario, log: Log = lambda _kind, _facts: None, name: str = ""
    ) -> None:
        self.env = simpy.Environment()
        self.log = log
        self.on_change: Callable[[], None] = lambda: None
        """Called after every fault, and when the driver has something to report."""
        self.listeners: list[Callable[[Event], None]] = []
        """Each is called with every event that the driver reports; `take_events` polls."""
        self.scenario = scenario
        self.seed = f"{scenario.seed}/{name}" if name else str(scenario.seed)
        """What all randomness of this node begins with."""
        self.driver = SimulatedDriver()
        self.identities = Identities(scenario, name)
        self.partitions = Partitions(self)
        self._groups = [group for group in scenario.gpus for _ in range(group.count)]
        self._present = [
            self._make_gpu(identity, profile) for identity, profile in self.identities.of_the_node()
        ]
        self.gpus: dict[str, SimulatedGpu] = {gpu.identity.uuid: gpu for gpu in self._present}
        """Every GPU that ever was in the node, by UUID; `present` has those that are."""
        self.nvlinks: tuple[tuple[LinkEnd, ...], ...] = link_ends(
            [gpu.profile for gpu in self._present],
            [gpu.identity.pci_bus_id for gpu in self._present],
            scenario.direct_nvlinks,
        )
        """Where the NVLinks of each place lead, by index and link number."""
        self.nvswitches = frozenset(
            end.bus_id for ends in self.nvlinks for end in ends if isinstance(end, Switch)
        )
        """The bus ids of the switches that they lead to."""
        self._events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._misread = False
        self.records: list[TenantRecord] = []
        """What came of every tenant that was started, in that order."""
        self._pids = itertools.count(FIRST_PID)
        for tenant in scenario.tenants:
            self._add_tenant(tenant)
        if any(gpu.physics.can_overheat for gpu in self._present):
            self.env.process(self._govern())
        start_faults(self)

    def advance(self, now_s: float) -> None:
        """Process all that is due by `now_s`, which becomes the present."""
        now_ns = to_ns(now_s)
        if now_ns > self.env.now:
            self.env.run(until=now_ns)
        # run() leaves its own stop event scheduled for the present; peek() would still show it.
        while self.env.peek() <= self.env.now:
            self.env.step()

    @property
    def now_s(self) -> float:
        return self.env.now / NS_PER_S

    @property
    def next_s(self) -> float:
        return self.env.peek() / NS_PER_S

    @property
    def present(self) -> tuple[SimulatedGpu, ...]:
        """The GPUs by index, without those that were replaced; an unplugged one keeps its index."""
        return tuple(self._present)

    def listed(self) -> tuple[Gpu, ...]:
        order = sorted(
            self.gpus.values(), key=lambda gpu: (gpu.identity.index, gpu.replaced_by is not None)
        )
        return tuple(gpu.listed() for gpu in order)

    def gpu(self, uuid: str) -> SimulatedGpu:
        """The GPU of a UUID; raises `UnknownGpu`."""
        try:
            return self.gpus[uuid]
        except KeyError:
            raise UnknownGpu(uuid) from None

    def find(self, index_or_uuid: str) -> SimulatedGpu:
        """The GPU of a UUID, or of the index that it has now; raises `UnknownGpu`."""
        for gpu in self._present:
            if index_or_uuid == str(gpu.identity.index):
                return gpu
        return self.gpu(index_or_uuid)

    def inject(self, gpu: SimulatedGpu, what: GpuFault) -> None:
        """Inject a fault into a GPU now; nothing changes where it raises `CannotInject`."""
        check_applies(gpu, what)
        now_s = self.now_s
        match what:
            case Replacement():
                self._replace(gpu)
            case Repartition(mig=mig):
                identity = self.identities.partitioned(gpu.identity, mig, gpu.profile)
                gpu.repartition(identity, self.tenancies_of(identity, gpu.profile), now_s)
            case _:
                self._report(gpu.apply(what, now_s))
        if isinstance(what, Recovery | Plug):
            self.partitions.after_reset(gpu)
        self.log("happening", {"uuid": gpu.identity.uuid, **what.model_dump(mode="json")})
        self.on_change()
        self._misread = self._misread or isinstance(what, Returns)
        if isinstance(what, Hang | Returns) and what.for_s is not None:
            self._wake_after(what.for_s)
        if isinstance(what, ThermalShutdown):
            self.env.process(self._elapse_later(gpu, what.lost_after_s))

    def inject_node(self, what: NodeFault) -> None:
        self.driver.apply(what, self.now_s)
        self._misread = self._misread or isinstance(what, DriverReturns)
        self.log("happening", dict(what.model_dump(mode="json")))
        match what:
            case DriverDown():
                for gpu in self._present:
                    gpu.evict(self.now_s)
            case DriverUp():
                for gpu in self.gpus.values():
                    gpu.driver_loaded(self.now_s)
                    self.partitions.after_reset(gpu)
            case DriverHang(for_s=for_s) | DriverReturns(for_s=for_s):
                if for_s is not None:
                    self._wake_after(for_s)
            case WatchBroken() | WatchMended() | ConfidentialReady():
                pass
            case _:
                assert_never(what)
        self.on_change()

    def hangs(self, uuid: str | None = None) -> bool:
        """True while calls do not return: about the GPU of this UUID, or (None) of any kind."""
        if self.driver.hangs(self.now_s):
            return True
        gpu = self.gpus.get(uuid) if uuid is not None else None
        return gpu is not None and self.driver.loaded and gpu.hangs(self.now_s)

    @property
    def misread(self) -> bool:
        """True while calls of NVML return something else than what is the case."""
        if self._misread:
            everything = (self.driver.returned, *(gpu.returned for gpu in self.gpus.values()))
            for returned in everything:
                returned.expire(self.now_s)
            self._misread = any(everything)
        return self._misread

    def take_events(self) -> tuple[Event, ...]:
        taken = tuple(self._events)
        self._events.clear()
        return taken

    @property
    def has_events(self) -> bool:
        return bool(self._events)

    def links(self) -> dict[tuple[str, str], Link]:
        """As recorded, else by NUMA node; behind an NVSwitch there is no direct NVLink."""
        listed = [gpu.identity for gpu in self._present if not gpu.lost]
        return {
            (one.uuid, other.uuid): self._link(one, other)
            for one in listed
            for other in listed
            if one.uuid != other.uuid
        }

    def start_tenant(self, uuid: str, spec: TenantSpec) -> Tenant | None:
        """Start a tenant; None on a GPU that is lost, hot, hangs, or waits for reset or fabric."""
        for gpu in self._present:
            tenancy = gpu.tenancies.get(uuid)
            if tenancy is None or not self._usable(gpu) or self.hangs(gpu.identity.uuid):
                continue
            pid = next(self._pids)
            random = Random(f"{self.seed}/{spec.name}/{pid}")
            tenant = tenancy.start(pid, spec, random)
            self.records.append(tenant.record)
            return tenant
        return None

    def _usable(self, gpu: SimulatedGpu) -> bool:
        probe = gpu.probe()
        accepts = self.driver.confidential_ready or not self.scenario.confidential_compute
        return probe.clean and probe.in_fabric and accepts

    def stop_tenant(self, uuid: str, tenant: Tenant) -> None:
        """End a tenant whose pod was deleted, if it still runs."""
        for gpu in self._present:
            if uuid in gpu.tenancies and not tenant.gone.triggered:
                gpu.tenancies[uuid].kill(tenant.pid, "pod deleted")

    def _link(self, one: Gpu, other: Gpu) -> Link:
        for link in self.scenario.links:
            if set(link.gpus) == {one.index, other.index}:
                return Link(link.path, link.nvlinks)
        same = one.numa_node == other.numa_node
        return Link(LinkKind.SAME_CPU if same else LinkKind.CROSS_CPU)

    def _add_tenant(self, tenant: TenantOfScenario) -> None:
        gpu = self._present[tenant.gpu]
        if tenant.workload is None:
            gpu.tenants.append((next(self._pids), tenant))
            return
        memory = tenant.memory or MemoryUse(start_gib=tenant.memory_gib)
        spec = TenantSpec(tenant.name, tenant.workload, memory, tenant.occupancy, tenant.mps_share)
        self.env.process(self._start_later(tenant, spec))

    def _start_later(
        self, tenant: TenantOfScenario, spec: TenantSpec
    ) -> Generator[simpy.Event, object, None]:
        yield self.env.timeout(to_ns(tenant.start_s))
        identity = self._present[tenant.gpu].identity
        devices = identity.mig_devices
        if tenant.mig is None:
            self.start_tenant(identity.uuid, spec)
        elif tenant.mig < len(devices):
            self.start_tenant(devices[tenant.mig].uuid, spec)

    def _govern(self) -> Generator[simpy.Event, object, None]:
        """Clocks follow the temperature, where it can ever be too hot."""
        while True:
            yield self.env.timeout(to_ns(GOVERN_S))
            for gpu in self.present:
                if gpu.physics.can_overheat:
                    gpu.govern(self.now_s)
                    self._shut_down_if_too_hot(gpu)

    def _shut_down_if_too_hot(self, gpu: SimulatedGpu) -> None:
        """Now, or at the moment before the next check at which it will be too hot."""
        if gpu.lost or gpu.overheated:
            return
        if gpu.physics.too_hot:
            self.inject(gpu, ThermalShutdown())
            return
        in_s = gpu.physics.too_hot_in_s(gpu.load)
        if in_s < GOVERN_S:
            self.env.process(self._check_heat_later(gpu, in_s))

    def _check_heat_later(
        self, gpu: SimulatedGpu, delay_s: float
    ) -> Generator[simpy.Event, object, None]:
        yield self.env.timeout(max(1, to_ns(delay_s)))
        if gpu not in self._present or gpu.lost or gpu.overheated:
            return
        gpu.settle(self.now_s)
        if gpu.physics.too_hot:
            self.inject(gpu, ThermalShutdown())

    def _make_gpu(self, identity: Gpu, profile: Profile) -> SimulatedGpu:
        group = self._groups[identity.index]
        gpu = SimulatedGpu(identity, profile, Physics(profile, group.cooling, at_s=self.now_s))
        gpu.tenancies = self.tenancies_of(identity, profile)
        return gpu

    def tenancies_of(self, identity: Gpu, profile: Profile) -> dict[str, Tenancy]:
        return tenancies_of(self.env, identity, profile, self._groups[identity.index], self.log)

    def _wake_after(self, delay_s: float) -> None:
        """Schedule an event then, so that the real-time clock wakes waiting calls."""
        self.env.timeout(to_ns(delay_s))

    def _elapse_later(
        self, gpu: SimulatedGpu, delay_s: float
    ) -> Generator[simpy.Event, object, None]:
        yield self.env.timeout(to_ns(delay_s))
        self._report(gpu.elapse(self.now_s))

    def _replace(self, old: SimulatedGpu) -> None:
        new = self._make_gpu(self.identities.another(old.identity, old.profile), old.profile)
        uuid = new.identity.uuid
        self._report(old.replace(uuid, self.now_s))
        self._present[old.identity.index] = new
        self.gpus[uuid] = new
        self._report([GpuAppeared(uuid)])

    def _report(self, events: Iterable[Event]) -> None:
        """Xids and ECC events are lost while events cannot be waited for; the others are not."""
        deaf = self.driver.watch_failure(self.now_s) is not None
        for event in events:
            if not (deaf and isinstance(event, XidError | EccError)):
                self._events.append(event)
                for listener in self.listeners:
                    listener(event)
        self.on_change()
