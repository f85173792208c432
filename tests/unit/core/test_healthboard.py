"""The health of all GPUs of a node."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpuplugin.core.health import HealthPolicy, HealthState, StillFaulty
from gpuplugin.core.healthboard import HealthBoard, HealthHistory, Transition, UnknownUnit
from hal import EccError, Event, Gpu, GpuAppeared, GpuDisappeared, MigDevice, XidError
from tests.unit.builders import a_gpu, a_probe, gpus, uuid_of_gpu

POLICY = HealthPolicy(quiet_period_s=30)
A, B, C = (uuid_of_gpu(index) for index in range(3))
ALL = (A, B, C)


@pytest.fixture
def board() -> HealthBoard:
    return HealthBoard().with_gpus(gpus(3), 0, POLICY)


def unhealthy(board: HealthBoard) -> list[str]:
    return [uuid for uuid in ALL if not board.healthy(uuid)]


@pytest.mark.parametrize(
    ("event", "hit"),
    [
        pytest.param(XidError(B, 79), [B], id="a named GPU alone"),
        pytest.param(XidError(None, 79), [A, B, C], id="unnamed Xid: all"),
        pytest.param(XidError("GPU-unknown", 79), [], id="Xid of an unknown GPU"),
        pytest.param(XidError(None, 31), [], id="unnamed application error"),
        pytest.param(XidError(B, 79, 1, 0), [B], id="an instance that it does not have: the GPU"),
        pytest.param(EccError(B, uncorrectable=True), [B], id="uncorrectable ECC error"),
        pytest.param(EccError(B, uncorrectable=False), [], id="corrected ECC error"),
        pytest.param(EccError(None, uncorrectable=True), [A, B, C], id="unnamed ECC error: all"),
        pytest.param(GpuDisappeared(C), [C], id="gone"),
        pytest.param(GpuDisappeared("GPU-unknown"), [], id="an unknown GPU gone"),
        pytest.param(GpuAppeared("GPU-unknown"), [], id="an unknown GPU appeared"),
        pytest.param(GpuAppeared(A), [], id="a known GPU appeared"),
    ],
)
def test_who_is_hit_by_an_event(board: HealthBoard, event: Event, hit: list[str]) -> None:
    after = board.with_event(event, 1, POLICY)

    assert unhealthy(after) == hit
    assert unhealthy(board) == [], "the old board is as it was"
    assert set(after.gpus) == set(ALL)


def test_an_unknown_gpu_is_not_healthy(board: HealthBoard) -> None:
    assert not board.healthy("GPU-unknown")
    assert board.state_of("GPU-unknown") is None


@pytest.mark.parametrize(
    "found",
    [
        pytest.param([a_gpu(0), a_gpu(2)], id="missing"),
        pytest.param([a_gpu(0), a_gpu(1, lost=True), a_gpu(2)], id="listed as lost"),
    ],
)
def test_a_gpu_that_is_missing_or_lost_counts_as_disappeared(
    board: HealthBoard, found: list[Gpu]
) -> None:
    after = board.with_gpus(found, 1, POLICY)

    assert unhealthy(after) == [B]
    assert after.gpus[B] == board.with_event(GpuDisappeared(B), 1, POLICY).gpus[B]


def test_a_gpu_that_is_found_lost_at_the_start_is_unhealthy() -> None:
    board = HealthBoard().with_gpus([a_gpu(0), a_gpu(1, lost=True)], 0, POLICY)

    assert (board.healthy(A), board.healthy(B)) == (True, False)


def test_an_empty_enumeration_leaves_no_gpu_healthy(board: HealthBoard) -> None:
    assert unhealthy(board.with_gpus([], 1, POLICY)) == [A, B, C]


def test_a_gpu_that_is_back_in_the_list_waits_for_probes(board: HealthBoard) -> None:
    back = board.with_gpus(gpus(2), 1, POLICY).with_gpus(gpus(3), 2, POLICY)

    assert unhealthy(back) == [C]
    recovering = back.with_probe(C, a_probe(), 3, POLICY)
    assert recovering.state_of(C) is HealthState.RECOVERING
    assert recovering.with_probe(C, a_probe(), 33, POLICY).healthy(C)


def test_a_new_gpu_enters_healthy_and_leaves_the_others_alone(board: HealthBoard) -> None:
    faulty = board.with_event(XidError(A, 79), 1, POLICY)

    after = faulty.with_gpus(gpus(4), 2, POLICY)

    assert after.healthy(uuid_of_gpu(3))
    assert after.gpus[A] == faulty.gpus[A]


def test_a_blind_board_has_no_healthy_gpu_and_remembers_what_it_knew(board: HealthBoard) -> None:
    blind = board.with_event(XidError(A, 79), 1, POLICY).blinded("the driver is gone")

    assert unhealthy(blind) == [A, B, C]
    assert unhealthy(blind.blinded("")) == [A]


def test_a_probe_of_an_unknown_gpu_changes_nothing(board: HealthBoard) -> None:
    assert board.with_probe("GPU-unknown", a_probe(reachable=False), 1, POLICY) == board


def test_a_probe_concerns_its_gpu_alone(board: HealthBoard) -> None:
    assert unhealthy(board.with_probe(B, a_probe(reachable=False), 1, POLICY)) == [B]


def test_transitions_are_told_once_with_their_cause(board: HealthBoard) -> None:
    after = board.with_event(XidError(B, 79), 1, POLICY)

    (transition,) = after.transitions_from(board)

    assert (transition.uuid, transition.gpu_uuid) == (B, B)
    assert (transition.before, transition.after) == (HealthState.HEALTHY, HealthState.UNHEALTHY)
    assert transition.fault == after.gpus[B].fault
    assert transition.fault is not None
    assert transition.fault.xid == 79
    assert after.transitions_from(after) == ()
    assert after.with_event(XidError(B, 79), 2, POLICY).transitions_from(after) == ()


def test_a_new_gpu_is_a_transition_from_nothing() -> None:
    board = HealthBoard().with_gpus(gpus(2), 0, POLICY)

    transitions = board.transitions_from(HealthBoard())

    assert [(one.uuid, one.before, one.after) for one in transitions] == [
        (A, None, HealthState.HEALTHY),
        (B, None, HealthState.HEALTHY),
    ]


def a_mig_device(gpu: int, number: int) -> MigDevice:
    return MigDevice(
        uuid=f"MIG-{gpu}-{number}",
        index=number,
        gpu_instance=number + 7,
        compute_instance=number % 2,
        profile="1g.10gb",
        memory_bytes=10,
    )


def a_mig_gpu(index: int, devices: int) -> Gpu:
    parts = tuple(a_mig_device(index, number) for number in range(devices))
    return replace(a_gpu(index), mig_enabled=True, mig_devices=parts)


MIG = ("MIG-0-0", "MIG-0-1", "MIG-0-2")


@pytest.fixture
def partitioned() -> HealthBoard:
    """GPU A with three MIG devices (GI 7 to 9; CI 0, 1, 0), GPU B with one, GPU C whole."""
    return HealthBoard().with_gpus([a_mig_gpu(0, 3), a_mig_gpu(1, 1), a_gpu(2)], 0, POLICY)


def sick(board: HealthBoard) -> list[str]:
    return [uuid for uuid in MIG if not board.healthy(A, uuid)]


@pytest.mark.parametrize(
    ("event", "hit"),
    [
        pytest.param(XidError(A, 46, 8, 1), [MIG[1]], id="the instance that it names"),
        pytest.param(XidError(A, 46, 8, None), [MIG[1]], id="by the GPU instance alone"),
        pytest.param(XidError(A, 46, None, 0), [MIG[0], MIG[2]], id="by compute instance alone"),
        pytest.param(XidError(A, 46), list(MIG), id="none is named: all"),
        pytest.param(XidError(A, 46, 8, 0), list(MIG), id="one that is not there: all"),
        pytest.param(XidError(A, 31, 8, 1), [], id="an application error"),
        pytest.param(XidError(None, 46, 8, 1), list(MIG), id="of an unknown GPU: all"),
        pytest.param(GpuDisappeared(A), list(MIG), id="the GPU is gone"),
        pytest.param(EccError(A, uncorrectable=True), list(MIG), id="ECC names no instance"),
    ],
)
def test_which_mig_devices_are_hit(partitioned: HealthBoard, event: Event, hit: list[str]) -> None:
    after = partitioned.with_event(event, 1, POLICY)

    assert sick(after) == hit
    assert after.healthy(A) == (not hit), "the whole GPU is no healthier than its parts"
    of_all = isinstance(event, XidError) and event.uuid is None
    assert after.healthy(B, "MIG-1-0") == (not of_all)


def test_a_mig_device_recovers_by_the_probe_of_its_gpu(partitioned: HealthBoard) -> None:
    board = partitioned.with_probe(A, a_probe(epoch="one"), 0, POLICY)
    board = board.with_event(XidError(A, 46, 8, 1), 1, POLICY)
    board = board.with_probe(A, a_probe(epoch="one"), 2, POLICY)
    assert board.state_of(MIG[1]) is HealthState.UNHEALTHY, "only a reset ends it"
    board = board.with_probe(B, a_probe(epoch="two"), 3, POLICY)
    assert board.state_of(MIG[1]) is HealthState.UNHEALTHY, "another GPU was reset"
    board = board.with_probe(A, a_probe(epoch="two"), 4, POLICY)
    assert board.state_of(MIG[1]) is HealthState.RECOVERING
    assert board.state_of(A) is HealthState.HEALTHY
    assert sick(board.with_probe(A, a_probe(epoch="two"), 34, POLICY)) == []


def test_an_unclean_probe_is_the_gpus_fault(partitioned: HealthBoard) -> None:
    board = partitioned.with_probe(A, a_probe(reachable=False), 1, POLICY)

    assert sick(board) == list(MIG)
    assert [one.uuid for one in board.transitions_from(partitioned)] == [A]


def test_transitions_of_mig_devices_name_their_gpu(partitioned: HealthBoard) -> None:
    (transition,) = partitioned.with_event(XidError(A, 46, 9, 0), 1, POLICY).transitions_from(
        partitioned
    )
    assert (transition.uuid, transition.gpu_uuid) == (MIG[2], A)


def test_mig_devices_come_and_go_with_the_enumeration(partitioned: HealthBoard) -> None:
    faulty = partitioned.with_event(XidError(A, 46, 8, 1), 1, POLICY)
    fewer = faulty.with_gpus([a_mig_gpu(0, 2), a_mig_gpu(1, 1), a_gpu(2)], 2, POLICY)
    assert set(fewer.mig) == {MIG[0], MIG[1], "MIG-1-0"}
    assert not fewer.healthy(A, MIG[1]), "what stays keeps its state"
    assert not fewer.healthy(A, MIG[2])
    none = fewer.with_gpus([a_gpu(0), a_mig_gpu(1, 1), a_gpu(2)], 3, POLICY)
    assert set(none.mig) == {"MIG-1-0"}
    assert none.healthy(A), "without its MIG devices it is whole again"


def test_a_lost_gpu_keeps_its_mig_devices_on_the_board(partitioned: HealthBoard) -> None:
    gone = partitioned.with_gpus([a_gpu(2)], 1, POLICY)

    assert sick(gone) == list(MIG)
    assert set(gone.mig) == {*MIG, "MIG-1-0"}


def test_clearing_a_gpu_clears_its_mig_devices_and_no_others(partitioned: HealthBoard) -> None:
    board = partitioned
    for event in (XidError(A, 46), XidError(A, 46, 8, 1), XidError(B, 46, 7, 0), XidError(C, 46)):
        board = board.with_event(event, 1, POLICY)

    after = board.cleared(A, 2)

    assert sick(after) == []
    assert not after.healthy(B, "MIG-1-0")
    assert not after.healthy(C)


def test_clearing_a_mig_device_clears_it_alone(partitioned: HealthBoard) -> None:
    board = partitioned.with_event(XidError(A, 46, None, 0), 1, POLICY)
    assert sick(board.cleared(MIG[0], 2)) == [MIG[2]]


def test_what_cannot_be_cleared(partitioned: HealthBoard) -> None:
    with pytest.raises(UnknownUnit):
        partitioned.cleared("GPU-unknown", 1)
    with pytest.raises(StillFaulty, match="does not respond"):
        partitioned.with_probe(A, a_probe(reachable=False), 1, POLICY).cleared(A, 2)


def test_every_unit_belongs_to_a_gpu(partitioned: HealthBoard) -> None:
    assert {uuid: partitioned.gpu_of(uuid) for uuid in partitioned.units} == {
        A: A, B: B, C: C, MIG[0]: A, MIG[1]: A, MIG[2]: A, "MIG-1-0": B
    }  # fmt: skip
    with pytest.raises(UnknownUnit):
        partitioned.gpu_of("MIG-unknown")


@pytest.mark.parametrize("indices", ["0000", "1100"], ids=["kept", "numbered anew by a reset"])
def test_time_out_of_use_adds_up(indices: str) -> None:
    states = [HealthState.HEALTHY, HealthState.UNHEALTHY, HealthState.RECOVERING]
    history, before = HealthHistory(), None
    totals_s = []
    steps = zip((100.0, 110.0, 113.0, 115.0), [*states, states[0]], indices, strict=True)
    for at_s, state, index in steps:
        history = history.after(Transition("u", "u", before, state, None), index, at_s)
        before = state
        totals_s.append(history.unhealthy_s(at_s)["u"])
    assert totals_s == [0.0, 0.0, 3.0, 5.0]
    assert history.unhealthy_s(200.0) == {"u": 5.0}
    assert [one.state for one in history.changes] == [
        "Healthy", "Unhealthy", "Recovering", "Healthy",
    ]  # fmt: skip
