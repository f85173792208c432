"""The simulated node in real time, and as a backend."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from hal import (
    Event,
    GpuAppeared,
    GpuDisappeared,
    GpuLost,
    GpuState,
    TimeSliceLevel,
    UnknownGpu,
    XidError,
)
from sim.gpu.faults import LostFault, Recovery, TimedFault, XidFault
from sim.gpu.tenancy import TenantSpec
from sim.gpu.workloads import ClosedLoop, MemoryUse
from sim.node.node import SimulatedNode
from sim.node.realtime import MOST_RECORDS, RealTimeNode, SimBackend
from sim.node.scenario import GpuGroup, Scenario, Tenant, parse_scenario
from tests.component.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DEADLINE_S = 20.0


def a_node(*faults: TimedFault, speed: float = 1.0) -> RealTimeNode:
    scenario = Scenario(
        driver_version="999.1",
        gpus=[GpuGroup(model="t4", count=2)],
        tenants=[Tenant(name="one", gpu=0)],
        faults=list(faults),
    )
    return RealTimeNode(SimulatedNode(scenario), speed)


@pytest.fixture
def node() -> Iterator[RealTimeNode]:
    node = a_node()
    node.start()
    yield node
    node.stop()


class Waiter:
    """Waits for events in a thread of its own."""

    def __init__(self, wait: Callable[[float], Sequence[Event]]) -> None:
        self._wait = wait
        self.events: list[Event] | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.events = list(self._wait(DEADLINE_S * 10))

    def result(self) -> list[Event] | None:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "nothing woke it"
        return self.events


def test_a_waiting_call_is_woken_by_what_befalls_in_another_thread(node: RealTimeNode) -> None:
    waiter = Waiter(node.wait_events)
    with node.update() as model:
        uuid = next(iter(model.gpus))
        model.inject(model.gpu(uuid), XidFault(xid=31))

    assert waiter.result() == [XidError(uuid, 31)]


def test_a_waiting_call_is_woken_by_a_fault_of_the_scenario() -> None:
    fault = TimedFault(at_s=50, gpu=1, what=LostFault())
    node = a_node(fault, speed=10_000)
    waiter = Waiter(node.wait_events)
    node.start()
    try:
        with node.update() as model:
            uuid = list(model.gpus)[1]
        assert waiter.result() == [GpuDisappeared(uuid)]
    finally:
        node.stop()


def test_every_event_is_told_once_and_in_order(node: RealTimeNode) -> None:
    with node.update() as model:
        gpu = model.find("0")
        for what in (LostFault(), Recovery(), XidFault(xid=79)):
            model.inject(gpu, what)
    uuid = gpu.identity.uuid

    assert list(node.wait_events(0)) == [
        GpuDisappeared(uuid),
        GpuAppeared(uuid),
        XidError(uuid, 79),
        GpuDisappeared(uuid),
    ]
    assert list(node.wait_events(0)) == []


def test_an_interrupt_ends_the_wait_without_events() -> None:
    node = a_node()
    entered = threading.Event()

    def wait(timeout_s: float) -> Sequence[Event]:
        entered.set()
        return node.wait_events(timeout_s)

    waiter = Waiter(wait)
    assert entered.wait(DEADLINE_S)
    while waiter.events is None:
        node.interrupt()  # until it is one that came while the call waited

    assert waiter.result() == []


def test_before_the_start_no_time_passes() -> None:
    node = a_node(TimedFault(at_s=0.000001, gpu=0, what=LostFault()))

    with node.update() as model:
        assert model.now_s == 0
        assert not model.has_events


def test_starting_and_stopping_twice_is_harmless() -> None:
    node = a_node()
    node.stop()
    node = a_node()
    node.start()
    node.start()
    node.stop()
    node.stop()

    assert not any(thread.name == "sim-clock" for thread in threading.enumerate())


def test_time_goes_on_and_never_back(node: RealTimeNode) -> None:
    times = []
    for _ in range(5):
        with node.update() as model:
            times.append(model.now_s)

    assert times == sorted(times)


# As a backend


@pytest.fixture
def backend(node: RealTimeNode) -> SimBackend:
    backend = SimBackend(node)
    backend.open()
    return backend


def test_a_lost_gpu_is_listed_and_probed_but_not_read(
    node: RealTimeNode, backend: SimBackend
) -> None:
    first, second = backend.gpus()
    with node.update() as model:
        model.inject(model.gpu(first.uuid), XidFault(xid=79))

    assert [gpu.state for gpu in backend.gpus()] == [GpuState.LOST, GpuState.OK]
    assert [gpu.uuid for gpu in backend.gpus()] == [first.uuid, second.uuid]
    assert not backend.probe(first.uuid).reachable
    assert backend.probe(second.uuid).clean
    with pytest.raises(GpuLost):
        backend.telemetry(first.uuid)
    with pytest.raises(GpuLost):
        backend.processes(first.uuid)
    with pytest.raises(GpuLost):
        backend.set_time_slice(first.uuid, TimeSliceLevel.LONG)


def test_a_gpu_that_was_never_there_is_unknown(backend: SimBackend) -> None:
    calls: list[Callable[[], object]] = [
        lambda: backend.probe("GPU-x"),
        lambda: backend.telemetry("GPU-x"),
        lambda: backend.processes("GPU-x"),
        lambda: backend.set_time_slice("GPU-x", TimeSliceLevel.LONG),
    ]
    for call in calls:
        with pytest.raises(UnknownGpu):
            call()


def test_the_driver_version_is_the_scenarios(backend: SimBackend) -> None:
    assert backend.driver_version == "999.1"


def test_readings_of_a_gpu(backend: SimBackend) -> None:
    first, second = backend.gpus()

    assert [process.name for process in backend.processes(first.uuid)] == ["one"]
    assert backend.telemetry(first.uuid).utilization == 0.5
    assert backend.processes(second.uuid) == ()
    assert set(backend.links()) == {(first.uuid, second.uuid), (second.uuid, first.uuid)}


def test_opening_again_after_closing_goes_on_with_the_same_node(
    node: RealTimeNode, backend: SimBackend
) -> None:
    first, _ = backend.gpus()
    with node.update() as model:
        model.inject(model.gpu(first.uuid), LostFault())
    backend.close()
    backend.close()
    backend.open()

    assert backend.gpus()[0].state is GpuState.LOST
    assert list(backend.wait_events(0)) == [GpuDisappeared(first.uuid)]


def test_a_node_in_real_time_keeps_nothing_of_requests_that_were_served() -> None:
    text = (
        "name: x\ngpus: [{model: l4}]\n"
        "tenants: [{name: a, gpu: 0, workload: {kind: closed-loop, busy_ms: 1}}]\n"
    )
    node = RealTimeNode(SimulatedNode(parse_scenario(text, "x")), speed=20)
    node.start()
    try:
        eventually(lambda: _asked(node) > 1000)
        with node.read() as model:
            (record,) = model.records
            assert len(record.latency_ns) == len(record.work_ns) == 0
    finally:
        node.stop()


def test_a_node_in_real_time_forgets_tenants_that_ended_long_ago(node: RealTimeNode) -> None:
    spec = TenantSpec("again", ClosedLoop(busy_ms=1), MemoryUse(), 1.0)
    with node.update() as model:
        first, second = (gpu.identity.uuid for gpu in model.present)
        stays = model.start_tenant(second, spec)
        for _ in range(3 * MOST_RECORDS):
            if (tenant := model.start_tenant(first, spec)) is not None:
                model.stop_tenant(first, tenant)
        newest = model.records[-1]
    with node.read() as model:
        assert stays is not None
        assert stays.record in model.records
        assert newest in model.records
        assert len(model.records) <= MOST_RECORDS


def _asked(node: RealTimeNode) -> int:
    with node.read() as model:
        return sum(record.asked for record in model.records)
