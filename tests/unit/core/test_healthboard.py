"""The health of all GPUs of a node."""

from __future__ import annotations

import pytest

from gpuplugin.core.health import HealthPolicy, Status
from gpuplugin.core.healthboard import HealthBoard
from hal import EccError, Event, Gpu, GpuAppeared, GpuDisappeared, XidError
from tests.unit.builders import a_gpu, a_probe, gpus, uuid_of_gpu

POLICY = HealthPolicy(quiet_period_s=30)
A, B, C = (uuid_of_gpu(index) for index in range(3))
ALL = (A, B, C)


@pytest.fixture
def board() -> HealthBoard:
    return HealthBoard().with_gpus(gpus(3), 0)


def unhealthy(board: HealthBoard) -> list[str]:
    return [uuid for uuid in ALL if not board.healthy(uuid)]


@pytest.mark.parametrize(
    ("event", "hit"),
    [
        pytest.param(XidError(B, 79), [B], id="a named GPU alone"),
        pytest.param(XidError(None, 79), [A, B, C], id="unnamed Xid: all"),
        pytest.param(XidError("GPU-unknown", 79), [A, B, C], id="Xid of an unknown GPU: all"),
        pytest.param(XidError(None, 31), [], id="unnamed application error"),
        pytest.param(XidError(B, 79, 1, 0), [B], id="MIG instance: the GPU"),
        pytest.param(EccError(None, uncorrectable=True), [], id="unnamed ECC event"),
        pytest.param(GpuDisappeared(C), [C], id="gone"),
        pytest.param(GpuDisappeared("GPU-unknown"), [], id="an unknown GPU gone"),
        pytest.param(GpuAppeared("GPU-unknown"), [], id="an unknown GPU appeared"),
        pytest.param(GpuAppeared(A), [], id="a known GPU appeared"),
    ],
)
def test_who_is_hit_by_an_event(board: HealthBoard, event: Event, hit: list[str]) -> None:
    after = board.with_event(event, 1)

    assert unhealthy(after) == hit
    assert unhealthy(board) == [], "the old board is as it was"
    assert set(after.gpus) == set(ALL)


def test_an_unknown_gpu_is_not_healthy(board: HealthBoard) -> None:
    assert not board.healthy("GPU-unknown")
    assert board.status_of("GPU-unknown") is None


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
    after = board.with_gpus(found, 1)

    assert unhealthy(after) == [B]
    assert after.gpus[B] == board.with_event(GpuDisappeared(B), 1).gpus[B]


def test_a_gpu_that_is_found_lost_at_the_start_is_unhealthy() -> None:
    board = HealthBoard().with_gpus([a_gpu(0), a_gpu(1, lost=True)], 0)

    assert (board.healthy(A), board.healthy(B)) == (True, False)


def test_an_empty_enumeration_leaves_no_gpu_healthy(board: HealthBoard) -> None:
    assert unhealthy(board.with_gpus([], 1)) == [A, B, C]


def test_a_gpu_that_is_back_in_the_list_waits_for_probes(board: HealthBoard) -> None:
    back = board.with_gpus(gpus(2), 1).with_gpus(gpus(3), 2)

    assert unhealthy(back) == [C]
    recovering = back.with_probe(C, a_probe(), 3, POLICY)
    assert recovering.status_of(C) is Status.RECOVERING
    assert recovering.with_probe(C, a_probe(), 33, POLICY).healthy(C)


def test_a_new_gpu_enters_healthy_and_leaves_the_others_alone(board: HealthBoard) -> None:
    faulty = board.with_event(XidError(A, 79), 1)

    after = faulty.with_gpus(gpus(4), 2)

    assert after.healthy(uuid_of_gpu(3))
    assert after.gpus[A] == faulty.gpus[A]


def test_a_blind_board_has_no_healthy_gpu_and_remembers_what_it_knew(board: HealthBoard) -> None:
    blind = board.with_event(XidError(A, 79), 1).blinded("the driver is gone")

    assert unhealthy(blind) == [A, B, C]
    assert unhealthy(blind.blinded("")) == [A]


def test_a_probe_of_an_unknown_gpu_changes_nothing(board: HealthBoard) -> None:
    assert board.with_probe("GPU-unknown", a_probe(reachable=False), 1, POLICY) == board


def test_a_probe_concerns_its_gpu_alone(board: HealthBoard) -> None:
    assert unhealthy(board.with_probe(B, a_probe(reachable=False), 1, POLICY)) == [B]


def test_transitions_are_told_once_with_their_cause(board: HealthBoard) -> None:
    after = board.with_event(XidError(B, 79), 1)

    (transition,) = after.transitions_from(board)

    assert (transition.uuid, transition.xid) == (B, 79)
    assert (transition.before, transition.after) == (Status.HEALTHY, Status.UNHEALTHY)
    assert transition.reason.startswith("Xid 79")
    assert transition.action == "reboot-node"
    assert after.transitions_from(after) == ()
    assert after.with_event(XidError(B, 79), 2).transitions_from(after) == ()


def test_a_new_gpu_is_a_transition_from_nothing() -> None:
    board = HealthBoard().with_gpus(gpus(2), 0)

    transitions = board.transitions_from(HealthBoard())

    assert [(one.uuid, one.before, one.after) for one in transitions] == [
        (A, None, Status.HEALTHY),
        (B, None, Status.HEALTHY),
    ]
