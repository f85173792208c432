"""GetPreferredAllocation on messages as they may come, and on requests that make no sense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.core.preference import prefer
from gpuplugin.kubelet.deviceplugin import DevicePlugin
from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from gpuplugin.kubelet.snapshot import ServingPlan, snapshot_of
from gpuplugin.rpc import RpcCode, RpcError
from tests.unit.builders import a_resource, ids, uuid_of_gpu
from tests.unit.core.preference.topologies import islands, links_of

if TYPE_CHECKING:
    from collections.abc import Sequence

SHARED = DevicePlugin(snapshot_of(a_resource(3, 4)))
WHOLE = DevicePlugin(
    snapshot_of(a_resource(8, 1), ServingPlan(links=links_of(8, islands(4)))),
)


def chunk(field: int, content: bytes) -> bytes:
    """A field of bytes, shorter than 16384; its length is two bytes, even where one would do."""
    return bytes([field << 3 | 2, len(content) & 0x7F | 0x80, len(content) >> 7]) + content


def varint(field: int, value: int) -> bytes:
    """A field that is a number below 128."""
    return bytes([field << 3, value])


@dataclass(frozen=True)
class Asked:
    """What one container asks for, and the fields that say so in the order of the wire."""

    available: tuple[str, ...]
    must_include: tuple[str, ...]
    size: int
    fields: tuple[bytes, ...]


@st.composite
def containers(draw: st.DrawFn, known: Sequence[str]) -> Asked:
    """Fields in any order, between them some that are not known or of another type; last wins."""
    some_ids = st.lists(st.sampled_from([*known, "GPU-x", "", "\n\n\x18\x0a"]), max_size=12)
    available, must_include = draw(some_ids), draw(some_ids)
    sizes = draw(st.lists(st.integers(0, 12), max_size=3))
    other = st.sampled_from([varint(1, 7), varint(2, 7), chunk(3, b"abc"), chunk(9, b"\xff")])
    queues = [
        [chunk(1, one.encode()) for one in available],
        [chunk(2, one.encode()) for one in must_include],
        [varint(3, size) for size in sizes],
        draw(st.lists(other, max_size=2)),
    ]
    turns = draw(st.permutations([turn for turn, queue in enumerate(queues) for _ in queue]))
    fields = tuple(queues[turn].pop(0) for turn in turns)
    return Asked(tuple(available), tuple(must_include), sizes[-1] if sizes else 0, fields)


def message_of(asked: Sequence[Asked]) -> bytes:
    return b"".join(chunk(1, b"".join(one.fields)) for one in asked)


def answers(plugin: DevicePlugin, content: bytes) -> list[tuple[str, ...]]:
    answer = pb.PreferredAllocationResponse.FromString(plugin.preferred_allocation(content))
    return [tuple(one.deviceIDs) for one in answer.container_responses]


@pytest.mark.parametrize("plugin", [SHARED, WHOLE], ids=["shared", "whole"])
@given(data=st.data())
def test_the_order_of_fields_and_what_is_unknown_do_not_matter(
    plugin: DevicePlugin, data: st.DataObject
) -> None:
    index = plugin.snapshot.preference
    asked = data.draw(st.lists(containers(index.ids), max_size=3))

    found = answers(plugin, message_of(asked))

    assert found == [
        prefer("distributed", index, one.available, one.must_include, one.size).ids for one in asked
    ]


@given(st.lists(containers(ids(a_resource(3, 4))), min_size=1, max_size=2), st.data())
def test_a_message_that_ends_early_is_refused_or_is_another_message(
    asked: list[Asked], data: st.DataObject
) -> None:
    content = message_of(asked)
    cut = content[: data.draw(st.integers(0, len(content) - 1))]
    whole_containers = [message_of(asked[:count]) for count in range(len(asked))]

    if cut in whole_containers:
        assert len(answers(SHARED, cut)) == whole_containers.index(cut)
        return
    with pytest.raises(RpcError) as caught:
        SHARED.preferred_allocation(cut)
    assert caught.value.code is RpcCode.INVALID_ARGUMENT
    assert "v1beta1.PreferredAllocationRequest" in caught.value.message


G = tuple(map(uuid_of_gpu, range(8)))
R = ids(a_resource(3, 4))


@pytest.mark.parametrize(
    ("plugin", "available", "must_include", "size", "expected"),
    [
        pytest.param(WHOLE, (*G[1:3], "GPU-x", *G[1:3]), (), 3, G[1:3], id="whole: not enough"),
        pytest.param(WHOLE, G, G[5:8], 2, G[5:8], id="whole: must-include is more than the size"),
        pytest.param(WHOLE, G, ("GPU-x", "GPU-x"), 2, ("GPU-x", G[0]), id="whole: unknown must"),
        pytest.param(WHOLE, (*G[5:], *G[5:]), (), 3, G[5:], id="whole: repeats"),
        pytest.param(SHARED, ("GPU-x::0", R[4], R[4]), (), 2, (R[4],), id="not enough"),
        pytest.param(SHARED, R, R[5:8], 2, R[5:8], id="must-include is more than the size"),
        pytest.param(SHARED, R, ("GPU-x::0",), 2, ("GPU-x::0", R[0]), id="unknown must-include"),
        pytest.param(SHARED, (*R[:2],) * 9, (), 4, R[:2], id="more repeats than there are devices"),
        pytest.param(
            SHARED,
            ("GPU-x::0", "GPU-x::1") * 9 + R[2:4],
            (),
            2,
            R[2:4],
            id="more unknown ids than there are devices",
        ),
    ],
)
def test_requests_that_make_no_sense(
    plugin: DevicePlugin,
    available: Sequence[str],
    must_include: Sequence[str],
    size: int,
    expected: Sequence[str],
) -> None:
    request = pb.ContainerPreferredAllocationRequest(
        available_deviceIDs=available, must_include_deviceIDs=must_include, allocation_size=size
    )
    content = pb.PreferredAllocationRequest(container_requests=[request]).SerializeToString()

    assert answers(plugin, content) == [tuple(expected)]
