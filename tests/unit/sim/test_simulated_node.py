"""Faults of a simulated node and its GPUs, in model time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hal import (
    EccError,
    Event,
    GpuAppeared,
    GpuDisappeared,
    GpuState,
    LinkKind,
    RecoveryAction,
    UnknownGpu,
    XidError,
)
from sim.gpu.faults import (
    EccFault,
    GpuFault,
    Hang,
    LostFault,
    Recovery,
    RowRemap,
    ThermalShutdown,
    TimedFault,
    XidFault,
)
from sim.gpu.scheduler import to_ns
from sim.node.node import SimulatedNode
from sim.node.scenario import load_scenario, scenario_names
from tests.unit.sim.nodes import a_node, names

if TYPE_CHECKING:
    from collections.abc import Callable


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
    node.inject(b, LostFault())
    assert set(node.links()) == {
        (a.identity.uuid, c.identity.uuid),
        (c.identity.uuid, a.identity.uuid),
    }


# Happenings


def test_faults_come_at_their_model_time() -> None:
    node, (a, b, _) = a_node(
        TimedFault(at_s=20, gpu=1, what=XidFault(xid=79)),
        TimedFault(at_s=5, gpu=0, what=EccFault()),
        TimedFault(at_s=80, gpu=1, what=Recovery()),
    )
    a_uuid, b_uuid = a.identity.uuid, b.identity.uuid

    seen: dict[float, tuple[Event, ...]] = {}
    for until_s in (4.0, 6.0, 19.0, 21.0, 79.0, 81.0):
        node.env.run(until=to_ns(until_s))
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
    node, (a, *_) = a_node(TimedFault(at_s=20, gpu=0, what=LostFault()))

    lost = []
    for now_s in (19.9, 20.0):
        node.advance(now_s)
        lost.append(a.lost)

    assert lost == [False, True]
    assert node.now_s == 20
    assert node.next_s == float("inf"), "nothing is left to wait for"


def test_what_is_due_at_the_start_happens_without_time_going_on() -> None:
    node, (a, *_) = a_node(TimedFault(at_s=0, gpu=0, what=LostFault()))

    node.advance(0.0)

    assert a.lost


def test_time_never_goes_back() -> None:
    node, _ = a_node()
    node.advance(10)
    node.advance(5)

    assert node.now_s == 10


def test_events_are_taken_once() -> None:
    node, (a, *_) = a_node()
    waiting = [node.has_events]
    node.inject(a, XidFault(xid=31))
    waiting.append(node.has_events)
    taken = [node.take_events()]
    waiting.append(node.has_events)
    taken.append(node.take_events())

    assert waiting == [False, True, False]
    assert taken == [(XidError(a.identity.uuid, 31),), ()]


def test_events_that_nobody_takes_do_not_pile_up_and_the_latest_are_kept() -> None:
    node, (a, *_) = a_node()
    for _ in range(10_000):
        node.inject(a, XidFault(xid=31))
    node.inject(a, XidFault(xid=43))
    taken = node.take_events()
    assert len(taken) < 5000
    assert taken[-1] == XidError(a.identity.uuid, 43)
    assert node.take_events() == ()


@pytest.mark.parametrize("name", scenario_names())
def test_the_same_scenario_gives_the_same_events(name: str) -> None:
    def history() -> list[tuple[float, tuple[Event, ...]]]:
        node = SimulatedNode(load_scenario(name))
        found = []
        for second in range(1, 200):
            node.advance(float(second))
            found.append((node.now_s, node.take_events()))
        return found

    assert history() == history()


# Faults


def test_xid_79_loses_the_gpu_and_its_tenants() -> None:
    node, (a, *_) = a_node()
    node.inject(a, XidFault(xid=79))
    probe = a.probe()

    assert a.listed().state is GpuState.LOST
    assert a.listed().uuid == a.identity.uuid
    assert not probe.reachable
    assert probe.recovery_action is RecoveryAction.REBOOT
    assert a.processes() == ()


def test_xid_31_kills_one_tenant_and_leaves_the_gpu_clean() -> None:
    node, (a, b, _) = a_node()
    node.inject(a, XidFault(xid=31))

    assert names(a) == ["two"]
    assert names(b) == ["three"]
    assert a.probe().clean
    assert a.listed().state is GpuState.OK


def test_an_application_error_on_an_idle_gpu_is_only_reported() -> None:
    node, (*_, c) = a_node()
    before = c.probe()
    node.inject(c, XidFault(xid=31))

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
    node.inject(a, XidFault(xid=code))
    probe = a.probe()

    assert probe.clean == clean
    assert probe.uncorrectable_ecc == ecc
    assert (probe.row_remap_pending, probe.row_remap_failed) == (pending, failed)
    assert clean or a.processes() == (), "a GPU that wants a reset runs nothing"


@pytest.mark.parametrize("uncorrectable", [False, True])
def test_ecc_errors_are_counted_and_reported(uncorrectable: bool) -> None:
    node, (a, *_) = a_node()
    for _ in range(3):
        node.inject(a, EccFault(uncorrectable=uncorrectable))
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
    node.inject(a, loss)
    node.take_events()
    before = a.probe()

    node.inject(a, what)

    assert a.probe() == before
    assert node.take_events() == (event(a.identity.uuid),)


def test_a_gpu_is_lost_once() -> None:
    node, (a, *_) = a_node()
    node.inject(a, LostFault())
    node.inject(a, LostFault())

    assert node.take_events() == (GpuDisappeared(a.identity.uuid),)


FAULTS: list[GpuFault] = [
    *(XidFault(xid=code) for code in (79, 46, 64)),
    LostFault(),
    EccFault(),
    RowRemap(),
    RowRemap(failed=True),
    Hang(),
    ThermalShutdown(),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_recovery_changes_the_epoch_and_leaves_the_gpu_as_new(fault: GpuFault) -> None:
    node, (a, *_) = a_node()
    fresh = a.probe()
    node.inject(a, fault)
    assert a.probe().epoch == fresh.epoch, "a fault alone is no reset"
    was_lost = a.lost
    node.take_events()

    node.inject(a, Recovery())
    probe = a.probe()

    assert probe.epoch != fresh.epoch
    assert probe.clean
    assert probe.uncorrectable_ecc == 0
    assert not probe.row_remap_pending
    assert a.listed() == a.identity
    assert node.take_events() == ((GpuAppeared(a.identity.uuid),) if was_lost else ())


def test_every_reset_has_an_epoch_of_its_own() -> None:
    node, (a, *_) = a_node()
    epochs = [a.probe().epoch]
    for _ in range(5):
        node.inject(a, Recovery())
        epochs.append(a.probe().epoch)

    assert len(set(epochs)) == 6
