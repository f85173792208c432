"""Which policy answers a request, and that one always does."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuplugin.core.inventory import Resource
from gpuplugin.core.preference import PolicyName, PreferenceIndex, prefer
from gpuplugin.core.preference.linked import choose_linked, from_table
from hal import MigDevice
from tests.unit.builders import a_resource, ids, uuid_of_gpu
from tests.unit.core.preference.topologies import islands, links_of, pcie_tree, ring, wired

if TYPE_CHECKING:
    from collections.abc import Sequence

POLICY_NAMES: tuple[PolicyName, ...] = get_args(PolicyName)


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_whole_gpus_go_by_their_links_whatever_the_policy(name: PolicyName) -> None:
    index = wired(8, islands(4))
    available = index.ids[1:]

    choice = prefer(name, index, available, (), 4)

    assert choice == choose_linked(index, available, (), 4)
    assert choice.ids == tuple(map(uuid_of_gpu, (4, 5, 6, 7)))


def test_one_replica_among_the_available_ids_is_enough_for_the_policy() -> None:
    index = wired(8, islands(4))

    choice = prefer("distributed", index, (*index.ids[1:], "GPU-x::0"), (), 4)

    assert choice.method == "plain"
    assert choice.ids == tuple(map(uuid_of_gpu, (1, 2, 3, 4)))


def test_whole_gpus_of_a_resource_that_has_replicas_too_go_by_their_links() -> None:
    shared, whole = a_resource(2, 2), a_resource(8, 1)
    resource = replace(whole, devices=(*shared.devices, *whole.devices[2:]))
    index = PreferenceIndex.of(resource, links_of(8, islands(4)))
    available = tuple(map(uuid_of_gpu, range(2, 8)))

    choice = prefer("packed", index, available, (f"{uuid_of_gpu(0)}::1",), 3)

    assert choice.ids == (f"{uuid_of_gpu(0)}::1", uuid_of_gpu(2), uuid_of_gpu(3))
    assert choice.method == "exact"


@settings(max_examples=400)
@given(st.integers(1, 9), st.sampled_from(["islands", "tree", "ring"]), st.data())
def test_the_table_answers_as_the_policy_does(
    count: int, topology: str, data: st.DataObject
) -> None:
    index = wired(
        count, {"islands": islands(4), "tree": pcie_tree(8), "ring": ring(count)}[topology]
    )
    available = data.draw(st.lists(st.sampled_from(index.ids), max_size=12))
    size = data.draw(st.one_of(st.integers(-2, 10), st.integers(-(2**70), 2**70)))

    choice = from_table(index, available, size)

    assert choice is not None
    # With an id that nobody knows the policy is asked itself.
    assert prefer("packed", index, [*available, "GPU-x"], (), size) == choice
    assert choose_linked(index, available, (), size) == choice


@pytest.mark.parametrize(
    "available",
    [
        pytest.param(("GPU-x",), id="not known"),
        pytest.param((f"{uuid_of_gpu(0)}::0",), id="a replica"),
        pytest.param((uuid_of_gpu(3), f"{uuid_of_gpu(1)}::1"), id="a replica beside a whole GPU"),
    ],
)
def test_the_table_is_for_whole_gpus_alone(available: Sequence[str]) -> None:
    shared, whole = a_resource(2, 2), a_resource(8, 1)
    resource = replace(whole, devices=(*shared.devices, *whole.devices[2:]))

    assert from_table(PreferenceIndex.of(resource), available, 1) is None


def test_a_replica_is_no_whole_gpu_even_where_it_is_the_only_one_of_its_gpu() -> None:
    shared, whole = a_resource(1, 2), a_resource(4, 1)
    resource = replace(whole, devices=(shared.devices[0], *whole.devices[1:]))
    index = PreferenceIndex.of(resource, links_of(4, islands(2)))

    assert from_table(index, index.ids, 2) is None
    assert prefer("distributed", index, index.ids, (), 2).method == "plain"


def test_a_node_without_a_table_is_not_answered_from_one() -> None:
    for resource in (a_resource(17, 1), a_resource(3, 4), Resource("nvidia.com/gpu", ())):
        assert from_table(PreferenceIndex.of(resource), (), 1) is None


def test_mig_devices_go_by_the_policy() -> None:
    mig = MigDevice("MIG-a", 0, 1, 0, "1g.10gb", 10)
    whole = a_resource(2, 1)
    devices = tuple(
        replace(one, id=f"MIG-{one.gpu_index}-{number}", mig=replace(mig, index=number))
        for one in whole.devices
        for number in range(3)
    )
    index = PreferenceIndex.of(replace(whole, devices=devices))

    packed_choice = prefer("packed", index, index.ids, (), 2)
    spread_choice = prefer("spread", index, index.ids, (), 2)

    assert packed_choice.ids == ("MIG-0-0", "MIG-0-1")
    assert spread_choice.ids == ("MIG-0-0", "MIG-1-0")


@st.composite
def resources(draw: st.DrawFn) -> Resource:
    count = draw(st.integers(0, 6))
    if count == 0:
        return Resource("nvidia.com/gpu", ())
    return a_resource(count, draw(st.integers(1, 3)))


@given(resources(), st.sampled_from(POLICY_NAMES), st.data())
def test_there_is_an_answer_whatever_is_asked(
    resource: Resource, name: PolicyName, data: st.DataObject
) -> None:
    some_ids = st.lists(
        st.one_of(
            st.sampled_from([*ids(resource), "GPU-x", f"{uuid_of_gpu(0)}::99", "::", ""]),
            st.text(max_size=5),
        ),
        max_size=12,
    )
    available, must_include = data.draw(some_ids), data.draw(some_ids)
    size = data.draw(st.one_of(st.integers(-3, 15), st.integers(-(2**70), 2**70)))
    index = PreferenceIndex.of(resource, links_of(6, islands(2)))

    choice = prefer(name, index, available, must_include, size)

    wanted = tuple(dict.fromkeys(must_include))
    usable = set(available) & set(ids(resource))
    assert choice.ids[: len(wanted)] == wanted
    assert set(choice.ids[len(wanted) :]) <= usable
    assert len(set(choice.ids)) == len(choice.ids)
    assert len(choice.ids) == max(len(wanted), min(size, len(usable | set(wanted))))
    assert choice == prefer(name, index, sorted(available), must_include, size)
