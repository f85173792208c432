"""The size of a device list by arithmetic is that of the message, and so is what fits."""

from __future__ import annotations

import re
from dataclasses import replace
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuplugin.core.inventory import Device, Planned, Resource, expand
from gpuplugin.kubelet import snapshot as module
from gpuplugin.kubelet.snapshot import ListTooLarge, check_list_size, snapshot_of
from gpuplugin.rpc.services import MAX_MESSAGE_BYTES
from tests.unit.builders import a_resource, uuid_of_gpu

NAME = "nvidia.com/gpu"
Wholes = tuple[tuple[Device, int], ...]


def a_device(index: int, uuid: str, numa_node: int | None) -> Device:
    return Device(uuid, uuid, str(index), uuid, index, numa_node, ())


def resource(wholes: Wholes) -> Resource:
    (one,) = expand(Planned(MappingProxyType({NAME: wholes}), False, ())).resources
    return one


def message_bytes(wholes: Wholes) -> int:
    """The list as it goes over the wire, at its longest."""
    return len(snapshot_of(resource(wholes)).device_list(lambda _gpu, _mig: False))


def at_most(wholes: Wholes, count: int) -> Wholes:
    return tuple((device, min(count, replicas)) for device, replicas in wholes)


def refusal(wholes: Wholes, limit: int) -> ListTooLarge | None:
    """What `check_list_size` says if the kubelet received `limit` bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_MESSAGE_BYTES", limit)
        try:
            check_list_size(NAME, wholes)
        except ListTooLarge as error:
            return error
    return None


REPLICAS = st.one_of(
    st.sampled_from([1, 2, 9, 10, 11, 99, 100, 101, 999, 1000, 1001]), st.integers(1, 300)
)
UUIDS = st.one_of(
    st.sampled_from(
        [1, 40, 44, 63, 64, 107, 108, 109, 110, 111, 112, 122, 123, 124, 125, 127, 128]
    ),
    st.integers(1, 300),
).map(lambda length: "u" * length)
NUMA_NODES = st.sampled_from([None, 0, 1, 127, 128, 200])


@st.composite
def some_wholes(draw: st.DrawFn) -> Wholes:
    count = draw(st.integers(1, 3))
    return tuple(
        (a_device(index, f"{index}{draw(UUIDS)}", draw(NUMA_NODES)), draw(REPLICAS))
        for index in range(count)
    )


@settings(max_examples=120)
@given(some_wholes())
def test_the_arithmetic_is_exact(wholes: Wholes) -> None:
    size = message_bytes(wholes)

    assert refusal(wholes, size) is None
    error = refusal(wholes, size - 1)
    assert error is not None
    assert f"is {size} bytes with {max(count for _, count in wholes)} replicas" in str(error)


@settings(max_examples=120)
@given(some_wholes(), st.floats(0, 0.999))
def test_the_largest_count_that_fits_is_exact(wholes: Wholes, share: float) -> None:
    limit = int(message_bytes(wholes) * share)
    error = refusal(wholes, limit)

    assert error is not None
    fits = error.largest_replica_count
    assert message_bytes(at_most(wholes, fits + 1)) > limit
    if fits:
        assert message_bytes(at_most(wholes, fits)) <= limit
        assert refusal(at_most(wholes, fits), limit) is None


@pytest.mark.parametrize("numa_node", [None, 0, 1, 200])
@pytest.mark.parametrize("replicas", [1, 9, 10, 11, 100, 101, 1000])
def test_a_gpu_with_a_real_uuid(numa_node: int | None, replicas: int) -> None:
    wholes = ((a_device(0, uuid_of_gpu(0), numa_node), replicas),)
    size = message_bytes(wholes)

    assert refusal(wholes, size) is None
    assert refusal(wholes, size - 1) is not None


def test_a_healthy_list_is_no_longer_than_an_unhealthy_one() -> None:
    snapshot = snapshot_of(a_resource(2, 12, numa_nodes=2))

    assert len(snapshot.device_list(lambda _gpu, _mig: True)) < len(
        snapshot.device_list(lambda _gpu, _mig: False)
    )


def test_an_empty_list_fits() -> None:
    check_list_size(NAME, ())


def test_the_count_that_the_message_names_fits_the_real_limit_and_one_more_does_not() -> None:
    wholes = tuple((a_device(gpu, uuid_of_gpu(gpu), 0), 20_000) for gpu in range(8))
    with pytest.raises(ListTooLarge) as caught:
        check_list_size(NAME, wholes)
    found = re.search(r"to at most (\d+)$", str(caught.value))
    assert found
    fits = int(found[1])

    assert fits == caught.value.largest_replica_count
    assert message_bytes(at_most(wholes, fits)) <= MAX_MESSAGE_BYTES
    check_list_size(NAME, at_most(wholes, fits))
    with pytest.raises(ListTooLarge):
        check_list_size(NAME, at_most(wholes, fits + 1))


def test_a_device_that_has_fewer_replicas_keeps_them() -> None:
    few, many = (a_device(gpu, uuid_of_gpu(gpu), None) for gpu in range(2))
    wholes = ((few, 2), (many, 70_000))
    error = refusal(wholes, MAX_MESSAGE_BYTES)
    alone = refusal(((replace(many), 70_000),), MAX_MESSAGE_BYTES)

    assert error is not None
    assert alone is not None
    assert 0 < alone.largest_replica_count - error.largest_replica_count <= 2
