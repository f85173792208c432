"""A scenario from beginning to end in virtual time, and everything that was noted on the way."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from gpuplugin.core.dra.slices import Pool
from sim.apiserver.store import NODES, Key, Store
from sim.gpu.faults import ThermalShutdown
from sim.gpu.profiles import slices_from
from sim.gpu.scheduler import NS_PER_S, to_ns
from sim.gpu.timeslicing import Segment, Slicing
from sim.node.node import SimulatedNode
from sim.scheduler.claims import ClaimScheduler, create_class
from sim.virtual.doors import ClaimDoor, PluginDoor
from sim.virtual.kubelet import PodNotes, VirtualKubelet, VirtualPods
from sim.virtual.plugin import VirtualPlugin

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    import simpy

    from gpuplugin.config.settings import Settings
    from gpuplugin.kubelet.deviceplugin import DevicePlugin
    from sim.gpu.profiles import Profile
    from sim.gpu.tenancy import TenantRecord
    from sim.node.scenario import Scenario

_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
"""The date of the API server when a run begins."""
SAMPLES = 400
"""Readings of each GPU over the whole run, for curves."""

_THERMAL_SHUTDOWN = ThermalShutdown().kind

WINDOW_S = 0.1
"""How long every slice of each GPU is noted, from `window_at_s` on."""


def _sliced(scenario: Scenario) -> dict[str, Profile]:
    """The models whose compute is shared by time slices."""
    return {
        group.model: scenario.profile_of(group)
        for group in scenario.gpus
        if group.mechanism == "time-slicing"
    }


def _turns(slices: Sequence[tuple[str, Segment]]) -> int:
    """How many tenants took turns: ran on either side of a switch."""
    if not any(segment.switching for _, segment in slices):
        return 0
    return len({name for name, segment in slices if not segment.switching})


@dataclass(frozen=True, slots=True)
class Sample:
    at_s: float
    utilization: float
    memory_used_bytes: int
    temperature_c: float
    power_w: float | None
    clock_ppm: int
    tenants: int
    memory_by_tenant: dict[str, int]


@dataclass(frozen=True, slots=True)
class HealthChange:
    at_s: float
    uuid: str
    state: str
    reason: str


@dataclass(slots=True)
class GpuNotes:
    """What was noted of one GPU; `active_ns` and `switching_ns` are of its scheduler."""

    uuid: str
    index: int
    product: str
    memory_bytes: int
    active_ns: int = 0
    switching_ns: int = 0
    unhealthy_ns: int = 0
    places: set[str] = field(default_factory=set)
    """UUIDs on which its tenants ran: its own, and those of its MIG devices."""
    samples: list[Sample] = field(default_factory=list)
    slices: list[tuple[str, Segment]] = field(default_factory=list)
    """Slices of the window, with the tenant's name."""


@dataclass(slots=True)
class Outcome:
    """Everything that a run showed; `digest` of its log is the same for the same seed."""

    scenario: str
    seed: int
    until_s: float
    window_at_s: float
    slices_from: list[str] = field(default_factory=list)
    """Where the slices and switches of each model come from."""
    gpus: list[GpuNotes] = field(default_factory=list)
    tenants: list[TenantRecord] = field(default_factory=list)
    changes: list[HealthChange] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    """Facts of the log by kind."""
    xids: dict[int, int] = field(default_factory=dict)
    thermal_shutdowns: Counter[str] = field(default_factory=Counter)
    """How often each GPU, by UUID, was at its shutdown temperature."""
    pods: list[PodNotes] = field(default_factory=list)
    """Pods in the order in which they came."""
    list_updates: int = 0
    """Lists that the kubelet got, or writes of ResourceSlices with DRA."""
    unavailable_replica_ns: int = 0
    """Devices that were listed and not healthy, added up over time."""
    capacity: int = 0
    steps: int = 0
    """Events of the simulation."""


class VirtualRun:
    """One run; `write` gets each line of the event log, in order, as JSON.

    `windows_at_s` are moments, ascending and `WINDOW_S` apart at least: the slices that follow one
    of them are kept, of that at which most tenants took turns.
    """

    def __init__(
        self,
        scenario: Scenario,
        settings: Settings,
        until_s: float,
        write: Callable[[str], object] = lambda _line: None,
        windows_at_s: Sequence[float] = (),
    ) -> None:
        self._write = write
        self._windows_at_s = windows_at_s or (min(until_s / 2, 10.0),)
        self.outcome = Outcome(scenario.name, scenario.seed, until_s, self._windows_at_s[0])
        self.outcome.slices_from = [
            slices_from(model, profile) for model, profile in _sliced(scenario).items()
        ]
        self.node = SimulatedNode(scenario, self._log)
        self._door: PluginDoor | ClaimDoor
        if scenario.allocation == "dra":
            store = self._cluster(scenario, settings.daemon.dra_driver_name)
            scheduler = ClaimScheduler(store, scenario.name)
            self._kubelet = VirtualKubelet(scenario.seed, scheduler, self._wake_kubelet)
            pool = Pool(settings.daemon.dra_driver_name, scenario.name)
            version = scenario.driver_version
            self._door = ClaimDoor(self.node, store, pool, version, self._published)
            self._kubelet.register(pool.driver, self._door.plugin, 0.0)
        else:
            self._kubelet = VirtualKubelet(scenario.seed)
            self._door = PluginDoor(self._listed)
        self._accounted_ns = 0
        self._unhealthy: set[str] = set()
        """GPUs that were not healthy when it was accounted for last."""
        self._notes: dict[str, GpuNotes] = {}
        self._pods = VirtualPods(self.node, self._kubelet, self._log)
        self._plugin = VirtualPlugin(self.node, settings, self._door, self._log)
        self.node.env.process(self._take_samples())
        self.node.env.process(self._note_slices())

    def run(self, progress: Callable[[float], None] = lambda _share: None) -> Outcome:
        """Run to the end; `progress` is called with the share that is done."""
        env, outcome = self.node.env, self.outcome
        end_ns = to_ns(outcome.until_s)
        told_ns, every_ns = 0, max(1, end_ns // 200)
        while env.peek() <= end_ns:
            env.step()
            outcome.steps += 1
            if env.now - told_ns >= every_ns:
                told_ns = int(env.now)
                progress(told_ns / end_ns)
        self.node.advance(outcome.until_s)
        self._account()
        self._sample()
        self._finish()
        progress(1.0)
        return outcome

    def _log(self, kind: str, facts: dict[str, object]) -> None:
        outcome = self.outcome
        outcome.counts[kind] = outcome.counts.get(kind, 0) + 1
        now_ns = int(self.node.env.now) if hasattr(self, "node") else 0
        if kind == "gpu-health":
            self._account()
            change = HealthChange(
                now_ns / NS_PER_S, str(facts["uuid"]), str(facts["state"]), str(facts["reason"])
            )
            outcome.changes.append(change)
        if kind == "happening" and isinstance(code := facts.get("xid"), int):
            outcome.xids[code] = outcome.xids.get(code, 0) + 1
        if kind == "happening" and facts["kind"] == _THERMAL_SHUTDOWN:
            outcome.thermal_shutdowns[str(facts["uuid"])] += 1
        # A happening has a kind of its own, which must not stand in for that of the fact.
        named = {"what" if key == "kind" else key: value for key, value in facts.items()}
        line = json.dumps({"t_ns": now_ns, "kind": kind, **named}, separators=(",", ":"))
        self._write(line)

    def _listed(self, resource: str, plugin: DevicePlugin) -> None:
        self._account()
        self._kubelet.listed(resource, plugin)
        amount = self._kubelet.amounts(self.node.now_s).get(resource)
        if amount is not None:
            self._log("list", {"resource": resource, **asdict(amount)})
        self._pods.something_is_free()

    def _cluster(self, scenario: Scenario, driver: str) -> Store:
        """An API server's objects, with a class for each resource that pods ask for."""
        store = Store(now=self._date, seed=scenario.seed)
        store.create(Key(NODES, scenario.name), {})
        for number, resource in enumerate(sorted({one.resource for one in scenario.pods})):
            create_class(store, driver, resource, f"class-{number}")
        return store

    def _date(self) -> datetime:
        return _EPOCH + timedelta(seconds=int(self.node.now_s))

    def _published(self) -> None:
        if isinstance(self._door, ClaimDoor):
            self._account()
            driver = self._door.pool.driver
            self._kubelet.health_received(driver, self._door.health, self.node.now_s)
            amount = self._kubelet.amounts(self.node.now_s)[driver]
            self._log("slices", {"driver": driver, **asdict(amount)})
            self._pods.something_is_free()

    def _wake_kubelet(self, at_s: float) -> None:
        self.node.env.process(self._work_at(at_s))

    def _work_at(self, at_s: float) -> Generator[simpy.Event, object, None]:
        env = self.node.env
        yield env.timeout(max(1, to_ns(at_s) - int(env.now)))
        self._kubelet.work(self.node.now_s)
        self._pods.something_is_free()

    def _account(self) -> None:
        """Add up what was unavailable since the last time, and look at what is from now on.

        To be called at each change: the plugin's health is then the new one, while the kubelet has
        the list from before.
        """
        now_ns = int(self.node.env.now)
        span_ns = now_ns - self._accounted_ns
        self._accounted_ns = now_ns
        for amount in self._kubelet.amounts(self.node.now_s).values():
            missing = amount.capacity - amount.allocatable
            self.outcome.unavailable_replica_ns += missing * span_ns
            self.outcome.capacity = max(self.outcome.capacity, amount.capacity)
        for uuid in self._unhealthy:
            self._notes_of(uuid).unhealthy_ns += span_ns
        board = self._plugin.board.gpus if hasattr(self, "_plugin") else {}
        self._unhealthy = {uuid for uuid, health in board.items() if not health.healthy}

    def _take_samples(self) -> Generator[simpy.Event, object, None]:
        every_ns = max(to_ns(self.outcome.until_s) // SAMPLES, to_ns(0.1))
        while True:
            yield self.node.env.timeout(every_ns)
            self._account()
            self._sample()

    def _sample(self) -> None:
        now_s = self.node.now_s
        for gpu in self.node.present:
            notes = self._notes_of(gpu.identity.uuid)
            if gpu.lost:
                continue
            reading = gpu.telemetry(now_s)
            processes = gpu.processes()
            memory: Counter[str] = Counter()  # two processes may have one name
            for process in processes:
                memory[process.name] += process.memory_bytes or 0
            notes.samples.append(
                Sample(
                    at_s=now_s,
                    utilization=reading.utilization or 0.0,
                    memory_used_bytes=gpu.memory_used_bytes,
                    temperature_c=reading.temperature_c or 0.0,
                    power_w=reading.power_w,
                    clock_ppm=gpu.physics.clock_ppm,
                    tenants=len(processes),
                    memory_by_tenant=dict(memory),
                )
            )

    def _notes_of(self, uuid: str) -> GpuNotes:
        if uuid not in self._notes:
            gpu = self.node.gpus[uuid]
            self._notes[uuid] = GpuNotes(
                uuid, gpu.identity.index, gpu.identity.product, gpu.profile.memory_bytes
            )
        return self._notes[uuid]

    def _note_slices(self) -> Generator[simpy.Event, object, None]:
        """Note every slice of short windows; whole rounds are not skipped meanwhile."""
        env, best = self.node.env, -1
        for at_s in self._windows_at_s:
            yield env.timeout(max(0, to_ns(at_s) - int(env.now)))
            noted = yield from self._window()
            turns = max(map(_turns, noted.values()), default=0)
            if turns > best:
                best, self.outcome.window_at_s = turns, at_s
                for notes in self._notes.values():
                    notes.slices = []
                for uuid, slices in noted.items():
                    self._notes_of(uuid).slices = slices

    def _window(
        self,
    ) -> Generator[simpy.Event, object, dict[str, list[tuple[str, Segment]]]]:
        """The slices of each GPU from now on, with the tenants' names."""
        env = self.node.env
        tenancies = [
            (gpu.identity.uuid, tenancy)
            for gpu in self.node.present
            for tenancy in gpu.tenancies.values()
        ]
        for _, tenancy in tenancies:
            if isinstance(tenancy.compute.scheduler, Slicing):
                tenancy.compute.catch_up()
                tenancy.compute.scheduler.trace = []
        names = {
            tenant.context: tenant.spec.name
            for _, tenancy in tenancies
            for tenant in tenancy.tenants.values()
        }
        yield env.timeout(to_ns(WINDOW_S))
        noted: dict[str, list[tuple[str, Segment]]] = {}
        for uuid, tenancy in tenancies:
            tenancy.compute.catch_up()
            scheduler = tenancy.compute.scheduler
            if isinstance(scheduler, Slicing) and scheduler.trace is not None:
                names |= {one.context: one.spec.name for one in tenancy.tenants.values()}
                noted.setdefault(uuid, []).extend(
                    (names.get(segment.context, "?"), segment) for segment in scheduler.trace
                )
                scheduler.trace = None
        return noted

    def _finish(self) -> None:
        outcome = self.outcome
        for uuid, gpu in self.node.gpus.items():
            notes = self._notes_of(uuid)
            use = gpu.use()
            notes.active_ns, notes.switching_ns = use.active_ns, use.switching_ns
            notes.places |= use.places
            for tenancy in gpu.tenancies.values():
                busy_ns = tenancy.compute.scheduler.usage.busy_ns
                for tenant in tenancy.tenants.values():
                    tenant.record.busy_ns = busy_ns.get(tenant.context, 0)
        outcome.gpus = sorted(self._notes.values(), key=lambda notes: (notes.index, notes.uuid))
        outcome.tenants = self.node.records
        outcome.pods = self._pods.notes
        outcome.list_updates = self._kubelet.list_updates
        if isinstance(self._door, ClaimDoor):
            outcome.list_updates += self._door.writes_total
