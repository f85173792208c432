"""The policies for replicas, against oracles that are written from their descriptions."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuplugin.core.preference import PolicyName, PreferenceIndex, needs_distinct_gpus, prefer
from tests.unit.builders import a_resource, ids, uneven_resource, uuid_of_gpu

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuplugin.core.inventory import Device, Resource

A, B, C = (uuid_of_gpu(index) for index in range(3))

POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)


@dataclass(frozen=True)
class Request:
    resource: Resource
    available: tuple[str, ...]
    must_include: tuple[str, ...]
    size: int

    def ask(self, policy: PolicyName) -> tuple[str, ...]:
        index = PreferenceIndex.of(self.resource)
        return prefer(policy, index, self.available, self.must_include, self.size).ids


def oracle(policy: PolicyName, request: Request) -> tuple[str, ...]:
    """One device at a time, everything counted anew each time."""
    answer = list(dict.fromkeys(request.must_include))
    picked: list[str] = []
    while len(answer) < request.size:
        free = [
            device
            for device in request.resource.devices
            if device.id in request.available and device.id not in answer
        ]
        if not free:
            break

        def turn(device: Device, free: Sequence[Device] = tuple(free)) -> tuple[int, ...]:
            of_gpu = [one.id for one in request.resource.devices if one.gpu_uuid == device.gpu_uuid]
            allocated = len(of_gpu) - len([one for one in free if one.id in of_gpu])
            of_request = len([one for one in answer if one in of_gpu])
            of_call = len([one for one in picked if one in of_gpu])
            first = {
                "distributed": (allocated, of_call),
                "packed": (-allocated, of_call),
                "spread": (of_request, allocated, of_call),
                "spread-strict": (of_request, allocated, of_call),
            }[policy]
            return (*first, device.gpu_index, device.replica or 0)

        best = min(free, key=turn)
        answer.append(best.id)
        picked.append(best.id)
    return tuple(answer)


@st.composite
def sensible_requests(draw: st.DrawFn) -> Request:
    """As a kubelet makes them: known ids, no repeats, must-include among the available."""
    resource = uneven_resource(draw(st.lists(st.integers(1, 5), min_size=1, max_size=5)))
    available = draw(st.permutations(ids(resource)))
    available = available[: draw(st.integers(0, len(available)))]
    must_include = available[: draw(st.integers(0, min(3, len(available))))]
    size = draw(st.integers(0, len(available) + 1))
    return Request(resource, tuple(draw(st.permutations(available))), tuple(must_include), size)


@st.composite
def wild_requests(draw: st.DrawFn) -> Request:
    """Anything that the wire format can carry."""
    resource = uneven_resource(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    some_ids = st.lists(
        st.one_of(
            st.sampled_from(ids(resource)),
            st.sampled_from([A, "GPU-x", "GPU-x::0", f"{A}::99", "::", ""]),
            st.text(max_size=5),
        ),
        max_size=12,
    ).map(tuple)
    size = draw(st.one_of(st.integers(-3, 15), st.integers(-(2**31), 2**31 - 1)))
    return Request(resource, draw(some_ids), draw(some_ids), size)


def requests() -> st.SearchStrategy[Request]:
    return st.one_of(sensible_requests(), wild_requests())


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=150)
@given(request=requests())
def test_a_policy_agrees_with_its_oracle(policy: PolicyName, request: Request) -> None:
    assert request.ask(policy) == oracle(policy, request)


@pytest.mark.parametrize("policy", POLICIES)
@given(request=requests())
def test_an_answer_is_sound_whatever_is_asked(policy: PolicyName, request: Request) -> None:
    answer = request.ask(policy)

    must_include = dict.fromkeys(request.must_include)
    usable = set(request.available) & set(ids(request.resource))
    assert len(answer) == len(set(answer)), "no device twice"
    assert answer[: len(must_include)] == tuple(must_include), "must-include first and whole"
    assert set(answer[len(must_include) :]) <= usable, "the rest is available and known"
    assert len(answer) == max(
        len(must_include), min(request.size, len(usable | must_include.keys()))
    )


@pytest.mark.parametrize("policy", POLICIES)
@given(request=requests(), seed=st.integers())
def test_order_and_repeats_of_the_available_ids_do_not_matter(
    policy: PolicyName, request: Request, seed: int
) -> None:
    shuffled = random.Random(seed).sample(request.available * 2, 2 * len(request.available))
    other = Request(request.resource, tuple(shuffled), request.must_include, request.size)

    assert other.ask(policy) == request.ask(policy)


@given(sensible_requests())
def test_spread_takes_a_gpu_twice_only_when_the_others_have_nothing_left(request: Request) -> None:
    answer = request.ask("spread")

    index = PreferenceIndex.of(request.resource)
    use = Counter(index.gpu_of[index.rank[one]] for one in answer)
    picked = Counter(
        index.gpu_of[index.rank[one]] for one in answer if one not in request.must_include
    )
    left = {index.gpu_of[index.rank[one]] for one in request.available if one not in answer}
    assert all(use[gpu] >= max(use[other] for other in picked) - 1 for gpu in left if picked)


@given(sensible_requests())
def test_packed_finishes_a_gpu_before_it_starts_the_next(request: Request) -> None:
    answer = request.ask("packed")

    index = PreferenceIndex.of(request.resource)
    gpus = [index.gpu_of[index.rank[one]] for one in answer[len(request.must_include) :]]
    switches = sum(1 for one, other in pairwise(gpus) if one != other)
    assert switches == max(len(set(gpus)) - 1, 0)


@pytest.mark.parametrize(
    ("policy", "taken", "must_include", "size", "expected"),
    [
        ("distributed", ["A0", "A1", "A2", "C0", "C1"], [], 2, ["B0", "B1"]),
        ("distributed", [], [], 4, ["A0", "B0", "C0", "A1"]),
        ("packed", [], [], 4, ["A0", "A1", "A2", "A3"]),
        ("packed", ["B2"], [], 5, ["B0", "B1", "B3", "A0", "A1"]),
        ("packed", ["B0", "C0", "C1"], ["B1", "B2"], 4, ["B1", "B2", "B3", "C2"]),
        ("spread", ["A0", "A1", "A2", "C0", "C1"], [], 3, ["B0", "C2", "A3"]),
        ("spread", [], ["A2"], 3, ["A2", "B0", "C0"]),
        ("spread", [], ["A2"], 5, ["A2", "B0", "C0", "A0", "B1"]),
        ("spread", ["A0"], ["A2", "A1"], 6, ["A2", "A1", "B0", "C0", "B1", "C1"]),
        ("spread", ["B0", "B1", "B2", "B3"], [], 3, ["A0", "C0", "A1"]),
    ],
)
def test_examples(
    policy: PolicyName, taken: list[str], must_include: list[str], size: int, expected: list[str]
) -> None:
    resource = a_resource(3, 4)
    names = {f"{'ABC'[one.gpu_index]}{one.replica}": one.id for one in resource.devices}
    available = tuple(device_id for name, device_id in names.items() if name not in taken)
    request = Request(resource, available, tuple(names[name] for name in must_include), size)

    assert request.ask(policy) == tuple(names[name] for name in expected)


def test_only_the_strict_policy_needs_distinct_gpus() -> None:
    assert [name for name in POLICIES if needs_distinct_gpus(name)] == ["spread-strict"]


def test_thousands_of_allocated_replicas_weigh_less_than_one_of_the_request() -> None:
    resource = a_resource(2, 2_000)
    available = tuple(one.id for one in resource.devices[1_900:])
    answer = Request(resource, available, (), 2).ask("spread")
    assert [one.partition("::")[0] for one in answer] == [B, A]
