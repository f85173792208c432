"""The life of a pod as steps: what a driver is asked for, and when."""

from __future__ import annotations

from itertools import islice
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.gpu.workloads import ClosedLoop
from sim.kubelet.pods import Grant, Phase, PodStatus
from sim.node.podlife import (
    KUBELET_BACKOFF,
    Admit,
    Arrival,
    Backoff,
    Delete,
    Exit,
    Live,
    PodOver,
    Run,
    Wait,
    arrivals,
    pod_life,
)
from sim.node.scenario import Pods

if TYPE_CHECKING:
    from sim.node.podlife import Life, Step

GRANT = Grant("main", "nvidia.com/gpu", ("GPU-a::3",))
RUNNING = PodStatus(Phase.RUNNING, grants=(GRANT,))
REFUSED = PodStatus(Phase.FAILED, "UnexpectedAdmissionError", "no")


def a_group(**keys: object) -> Pods:
    workload = {"kind": "closed-loop", "busy_ms": 1}
    return Pods.model_validate({"name": "p", "workload": workload, **keys})


def a_life(group: Pods, backoff: Backoff = KUBELET_BACKOFF) -> tuple[Life, Arrival]:
    arrival = next(arrivals(group, Random(1)))
    return pod_life(group, arrival, backoff), arrival


def running(life: Life, arrival: Arrival) -> Step:
    """The first step of the container of a pod that is admitted at once."""
    assert next(life) == Admit(arrival.pod)
    assert life.send(RUNNING) == Live(arrival.lifetime_s)
    return life.send(None)


def test_the_container_runs_on_the_gpu_of_the_first_device_as_its_group_says() -> None:
    step = running(*a_life(a_group(occupancy=0.5)))
    assert isinstance(step, Run)
    assert (step.uuid, step.spec.name, step.spec.occupancy) == ("GPU-a", "p-0", 0.5)
    assert step.spec.workload == ClosedLoop(busy_ms=1)


def test_a_refused_pod_is_made_anew_until_it_is_admitted() -> None:
    life, arrival = a_life(a_group(), Backoff(10.0, 60.0, 600.0))
    step: Step = next(life)
    for wait_s in (1, 2, 4, 8, 16, 32, 60, 60):
        assert step == Admit(arrival.pod)
        assert life.send(REFUSED) == Wait(wait_s)
        step = life.send(None)
    assert step == Admit(arrival.pod)
    assert isinstance(life.send(RUNNING), Live)


@given(
    runs_s=st.lists(st.one_of(st.none(), st.floats(0, 1200)), max_size=12),
    first_s=st.floats(0.1, 20),
    factor=st.floats(1, 50),
)
def test_the_back_off_doubles_up_to_its_longest_and_a_steady_container_resets_it(
    runs_s: list[float | None], first_s: float, factor: float
) -> None:
    backoff = Backoff(first_s, first_s * factor, 600.0)
    life, arrival = a_life(a_group(), backoff)
    running(life, arrival)
    since_steady = 0
    for ran_s in runs_s:
        since_steady = 0 if ran_s is not None and ran_s >= 600.0 else since_steady
        step = life.send(Exit(ran_s))
        assert isinstance(step, Wait)
        assert step.delay_s == pytest.approx(min(first_s * 2**since_steady, first_s * factor))
        assert isinstance(life.send(None), Run)
        since_steady += 1


def test_without_restart_a_pod_ends_with_its_container_but_not_for_one_that_cannot_start() -> None:
    life, arrival = a_life(a_group(restart=False))
    running(life, arrival)
    assert life.send(Exit(None)) == Wait(10.0)
    assert isinstance(life.send(None), Run)
    assert life.send(Exit(3.0)) == Delete(arrival.pod)
    with pytest.raises(StopIteration):
        life.send(None)


@pytest.mark.parametrize("steps", range(4))
def test_a_pod_that_is_over_is_deleted_wherever_it_stands(steps: int) -> None:
    life, arrival = a_life(a_group(lifetime_s=5))
    next(life)
    for reply in (RUNNING, None, Exit(1.0))[:steps]:
        life.send(reply)
    assert life.throw(PodOver()) == Delete(arrival.pod)


def test_a_group_arrives_at_once_or_at_its_rate_and_the_seed_decides_when() -> None:
    together = list(arrivals(a_group(count=3, lifetime_s=60), Random(1)))
    assert [(one.pod.name, one.after_s, one.lifetime_s) for one in together] == [
        ("p-0", 0.0, 60), ("p-1", 0.0, 60), ("p-2", 0.0, 60),
    ]  # fmt: skip
    rate = a_group(arrivals_per_hour=60, lifetime_s=600, random_lifetime=True)
    stream = list(islice(arrivals(rate, Random(1)), 2000))
    assert stream == list(islice(arrivals(rate, Random(1)), 2000))
    assert sum(one.after_s for one in stream) / 2000 == pytest.approx(60, rel=0.1)
    assert sum(one.lifetime_s or 0 for one in stream) / 2000 == pytest.approx(600, rel=0.1)
