"""The `distributed` policy, against an oracle that is written from its description."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuplugin.core.preference import PreferenceIndex, distributed
from tests.unit.builders import a_resource, ids, uneven_resource, uuid_of_gpu

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuplugin.core.inventory import Resource

A, B, C = (uuid_of_gpu(index) for index in range(3))


def oracle(
    resource: Resource, available: Sequence[str], must_include: Sequence[str], size: int
) -> tuple[str, ...]:
    """The policy word for word: one device at a time, everything counted anew each time."""
    answer: list[str] = []
    for one in must_include:
        if one not in answer:
            answer.append(one)
    picked: list[str] = []
    while len(answer) < size:
        free = [
            device
            for device in resource.devices
            if device.id in available and device.id not in answer
        ]
        if not free:
            break

        def rank(gpu_uuid: str) -> tuple[int, int]:
            of_gpu = [device for device in resource.devices if device.gpu_uuid == gpu_uuid]
            still_free = [
                device for device in of_gpu if device.id in available and device.id not in answer
            ]
            taken_now = sum(1 for device in of_gpu if device.id in picked)
            return len(of_gpu) - len(still_free), taken_now

        best = min(
            free,
            key=lambda device: (*rank(device.gpu_uuid), device.gpu_index, device.replica or 0),
        )
        answer.append(best.id)
        picked.append(best.id)
    return tuple(answer)


@dataclass(frozen=True)
class Request:
    resource: Resource
    available: tuple[str, ...]
    must_include: tuple[str, ...]
    size: int


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


def ask(request: Request) -> tuple[str, ...]:
    index = PreferenceIndex.of(request.resource)
    return distributed(index, request.available, request.must_include, request.size)


@settings(max_examples=300)
@given(sensible_requests())
def test_it_agrees_with_the_oracle(request: Request) -> None:
    expected = oracle(request.resource, request.available, request.must_include, request.size)

    assert ask(request) == expected


@settings(max_examples=200)
@given(wild_requests())
def test_it_agrees_with_the_oracle_on_wild_requests(request: Request) -> None:
    expected = oracle(request.resource, request.available, request.must_include, request.size)

    assert ask(request) == expected


@settings(max_examples=200)
@given(wild_requests())
def test_an_answer_is_sound_whatever_is_asked(request: Request) -> None:
    answer = ask(request)

    must_include = dict.fromkeys(request.must_include)
    usable = set(request.available) & set(ids(request.resource))
    assert len(answer) == len(set(answer)), "no device twice"
    assert answer[: len(must_include)] == tuple(must_include), "must-include first and whole"
    assert set(answer[len(must_include) :]) <= usable, "the rest is available and known"
    assert len(answer) == max(
        len(must_include), min(request.size, len(usable | must_include.keys()))
    )


@given(sensible_requests(), st.integers())
def test_the_order_of_the_available_ids_does_not_matter(request: Request, seed: int) -> None:
    shuffled = random.Random(seed).sample(request.available, len(request.available))
    other = Request(request.resource, tuple(shuffled), request.must_include, request.size)

    assert ask(other) == ask(request)


@given(sensible_requests())
def test_a_larger_request_starts_with_the_answer_to_a_smaller_one(request: Request) -> None:
    larger = Request(request.resource, request.available, request.must_include, request.size + 1)

    assert ask(larger)[: len(ask(request))] == ask(request)


@pytest.mark.parametrize(
    ("taken", "must_include", "size", "expected"),
    [
        pytest.param([], [], 3, [f"{A}::0", f"{B}::0", f"{C}::0"], id="an empty node is spread"),
        pytest.param([], [], 4, [f"{A}::0", f"{B}::0", f"{C}::0", f"{A}::1"], id="second round"),
        pytest.param(
            [f"{A}::0", f"{A}::1", f"{B}::0"], [], 1, [f"{C}::0"], id="the least used first"
        ),
        pytest.param(
            [f"{A}::0", f"{A}::1", f"{A}::2", f"{C}::0", f"{C}::1"],
            [],
            2,
            [f"{B}::0", f"{B}::1"],
            id="the node's history counts, not the spread of this pod",
        ),
        pytest.param(
            [f"{A}::0"],
            [],
            4,
            [f"{B}::0", f"{C}::0", f"{A}::1", f"{B}::1"],
            id="level GPUs: the one least taken in this call",
        ),
        pytest.param([f"{A}::1"], [], 5, None, id="lowest replica"),
        pytest.param(
            [],
            [f"{A}::3"],
            2,
            [f"{A}::3", f"{B}::0"],
            id="must-include counts as allocated",
        ),
        pytest.param([], [f"{B}::1", f"{A}::0"], 1, [f"{B}::1", f"{A}::0"], id="size too small"),
        pytest.param([], [f"{B}::1"], 0, [f"{B}::1"], id="size 0"),
        pytest.param([], [], -1, [], id="negative size"),
    ],
)
def test_examples(
    taken: list[str], must_include: list[str], size: int, expected: list[str] | None
) -> None:
    resource = a_resource(3, 4)
    available = [one for one in ids(resource) if one not in taken]
    if expected is None:
        expected = list(oracle(resource, available, must_include, size))

    answer = ask(Request(resource, tuple(available), tuple(must_include), size))

    assert list(answer) == expected


def test_whole_gpus_are_taken_in_order_of_their_index() -> None:
    resource = a_resource(12, 1)

    answer = ask(Request(resource, tuple(reversed(ids(resource))), (), 12))

    assert answer == ids(resource)


def test_ten_replicas_are_taken_by_number_not_by_spelling() -> None:
    resource = a_resource(1, 12)

    answer = ask(Request(resource, tuple(sorted(ids(resource))), (), 12))

    assert answer == ids(resource)
