"""Lists and answers that are serialised in advance."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.core import listsize
from gpuplugin.core.inventory import plan_devices
from gpuplugin.core.listsize import ListTooLarge, check_list_size
from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from gpuplugin.kubelet.snapshot import snapshot_of
from tests.unit.builders import a_resource, gpus, sharing, uuid_of_gpu


def whole_list(
    count: int, replicas: int, numa_nodes: int, unhealthy: set[int]
) -> pb.ListAndWatchResponse:
    """The list as protobuf makes it from the devices, without any part of the code under test."""
    message = pb.ListAndWatchResponse()
    for gpu in range(count):
        for replica in range(replicas):
            device = message.devices.add()
            device.ID = uuid_of_gpu(gpu) + (f"::{replica}" if replicas > 1 else "")
            device.health = "Unhealthy" if gpu in unhealthy else "Healthy"
            if numa_nodes:
                device.topology.nodes.add().ID = gpu * numa_nodes // count
    return message


@given(
    st.integers(1, 6),
    st.integers(1, 12),
    st.integers(0, 3),
    st.sets(st.integers(0, 5)),
)
def test_the_list_is_what_protobuf_makes_of_the_whole(
    count: int, replicas: int, numa_nodes: int, unhealthy: set[int]
) -> None:
    snapshot = snapshot_of(a_resource(count, replicas, numa_nodes=numa_nodes))
    bad = {uuid_of_gpu(gpu) for gpu in unhealthy}

    content = snapshot.device_list(lambda uuid, _mig: uuid not in bad)

    expected = whole_list(count, replicas, numa_nodes, unhealthy)
    assert content == expected.SerializeToString()
    assert pb.ListAndWatchResponse.FromString(content) == expected


def test_numa_node_zero_is_not_left_out() -> None:
    content = snapshot_of(a_resource(1, 1, numa_nodes=1)).device_list(lambda _gpu, _mig: True)

    (device,) = pb.ListAndWatchResponse.FromString(content).devices
    assert [node.ID for node in device.topology.nodes] == [0]


def test_without_numa_nodes_there_is_no_topology() -> None:
    content = snapshot_of(a_resource(1, 1)).device_list(lambda _gpu, _mig: True)

    (device,) = pb.ListAndWatchResponse.FromString(content).devices
    assert not device.HasField("topology")


def test_health_is_asked_once_per_gpu() -> None:
    asked: list[str] = []

    def is_healthy(uuid: str, _mig: str | None) -> bool:
        asked.append(uuid)
        return True

    snapshot_of(a_resource(3, 10)).device_list(is_healthy)

    assert asked == [uuid_of_gpu(0), uuid_of_gpu(1), uuid_of_gpu(2)]


def check(count: int, replicas: int, numa_nodes: int) -> None:
    planned = plan_devices(gpus(count, numa_nodes=numa_nodes), sharing(replicas))
    for name, devices in planned.resources.items():
        check_list_size(name, devices)


def largest_list_bytes(count: int, replicas: int, numa_nodes: int) -> int:
    return whole_list(count, replicas, numa_nodes, set(range(count))).ByteSize()


@pytest.mark.parametrize(
    ("count", "replicas", "numa_nodes", "limit"),
    [
        pytest.param(1, 20, 0, 700, id="one GPU"),
        pytest.param(2, 105, 1, 11_500, id="ids grow with the number of digits"),
        pytest.param(8, 130, 2, 50_000, id="eight GPUs on two nodes"),
        pytest.param(3, 1500, 0, 170_000, id="far too large"),
    ],
)
def test_a_list_that_is_too_large_is_refused_with_the_largest_count_that_fits(
    monkeypatch: pytest.MonkeyPatch, count: int, replicas: int, numa_nodes: int, limit: int
) -> None:
    monkeypatch.setattr(listsize, "MAX_LIST_BYTES", limit)
    assert largest_list_bytes(count, replicas, numa_nodes) > limit

    with pytest.raises(ListTooLarge) as caught:
        check(count, replicas, numa_nodes)

    fitting = caught.value.largest_replica_count
    assert f"at most {fitting}" in str(caught.value)
    assert "nvidia.com/gpu" in str(caught.value)
    assert fitting >= 2
    check(count, fitting, numa_nodes)
    assert largest_list_bytes(count, fitting, numa_nodes) <= limit
    with pytest.raises(ListTooLarge):
        check(count, fitting + 1, numa_nodes)
    assert largest_list_bytes(count, fitting + 1, numa_nodes) > limit


def test_the_limit_is_that_of_the_kubelet_with_everything_unhealthy() -> None:
    with pytest.raises(ListTooLarge, match="4194304") as caught:
        check(8, 20_000, 0)

    fitting = caught.value.largest_replica_count
    assert largest_list_bytes(8, fitting, 0) <= 4 * 1024 * 1024
    assert largest_list_bytes(8, fitting + 1, 0) > 4 * 1024 * 1024


def test_an_absurd_count_is_refused_without_being_built() -> None:
    with pytest.raises(ListTooLarge):
        check(8, 10**12, 2)


def _lone(device_id: str) -> bytes:
    """An AllocateRequest for one device, as protobuf writes it."""
    return pb.AllocateRequest(
        container_requests=[pb.ContainerAllocateRequest(devices_ids=[device_id])]
    ).SerializeToString()


@pytest.mark.parametrize("length", [1, 40, 124, 125, 126, 127, 128, 300])
def test_a_request_for_a_device_is_known_whatever_the_length_of_its_id(length: int) -> None:
    resource = a_resource(1, 1)
    (device,) = resource.devices
    device = replace(device, id="x" * length)
    snapshot = snapshot_of(replace(resource, devices=(device,)))
    assert list(snapshot.lone_responses) == [_lone(device.id)]


@pytest.mark.parametrize("replicas", [1, 4])
def test_every_device_has_its_answer_ready(replicas: int) -> None:
    resource = a_resource(3, replicas)
    snapshot = snapshot_of(resource)

    lone = {device.id: _lone(device.id) for device in resource.devices}
    assert set(snapshot.lone_responses) == set(lone.values())
    for device in resource.devices:
        answer = pb.AllocateResponse.FromString(snapshot.lone_responses[lone[device.id]])
        (container,) = answer.container_responses
        assert dict(container.envs) == {"NVIDIA_VISIBLE_DEVICES": device.gpu_uuid}
