"""What a node advertises."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpuplugin.core.inventory import GPU_RESOURCE, Inventory, Plan, build_inventory
from gpuplugin.core.sharing import SharedResource, TimeSlicing, is_replica_id, replica_id, uuid_of
from hal import ComputeMode
from tests.unit.builders import a_gpu, a_resource, gpus, ids, sharing, uuid_of_gpu


def test_eight_gpus_shared_by_ten_are_eighty_devices_in_order() -> None:
    inventory = build_inventory(gpus(8), sharing(10))

    (resource,) = inventory.resources
    assert resource.name == "nvidia.com/gpu"
    assert inventory.device_count == 80
    assert [device.id for device in resource.devices] == [
        f"{uuid_of_gpu(gpu)}::{replica}" for gpu in range(8) for replica in range(10)
    ]
    assert [(device.gpu_index, device.replica) for device in resource.devices] == [
        (gpu, replica) for gpu in range(8) for replica in range(10)
    ]
    assert resource.shared


def test_the_order_is_that_of_the_indices_whatever_the_order_of_enumeration() -> None:
    assert build_inventory(reversed(gpus(5)), sharing(3)) == build_inventory(gpus(5), sharing(3))


def test_the_order_is_that_of_the_indices_whatever_the_uuids() -> None:
    first, second = replace(a_gpu(0), uuid="GPU-z"), replace(a_gpu(1), uuid="GPU-a")

    (resource,) = build_inventory([second, first], Plan()).resources

    assert ids(resource) == ("GPU-z", "GPU-a")


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(Plan(), id="nothing shared"),
        pytest.param(sharing(1), id="one replica"),
        pytest.param(sharing(1, rename=True), id="one replica, renamed if it were shared"),
        pytest.param(
            Plan(TimeSlicing((SharedResource("nvidia.com/other", 4),))), id="another resource"
        ),
    ],
)
def test_an_unshared_gpu_keeps_its_uuid_and_the_plain_name(plan: Plan) -> None:
    (resource,) = build_inventory(gpus(2), plan).resources

    assert resource.name == GPU_RESOURCE
    assert [device.id for device in resource.devices] == [uuid_of_gpu(0), uuid_of_gpu(1)]
    assert [device.replica for device in resource.devices] == [None, None]
    assert not resource.shared


@pytest.mark.parametrize(
    ("rename", "name"), [(True, "nvidia.com/gpu.shared"), (False, "nvidia.com/gpu")]
)
def test_rename_by_default_puts_shared_behind_the_name(rename: bool, name: str) -> None:
    assert a_resource(2, 4, rename=rename).name == name


def test_a_lost_gpu_stays_listed_with_all_its_replicas() -> None:
    found = build_inventory([a_gpu(0), a_gpu(1, lost=True)], sharing(3))

    assert found == build_inventory([a_gpu(0), a_gpu(1)], sharing(3))


def test_a_node_without_gpus_advertises_nothing() -> None:
    assert build_inventory([], sharing(10)) == Inventory()
    assert Inventory().device_count == 0


def test_replicas_share_the_numa_node_of_their_gpu() -> None:
    resource = a_resource(4, 2, numa_nodes=2)

    assert [device.numa_node for device in resource.devices] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_every_id_is_unique_and_leads_back_to_its_gpu() -> None:
    resource = a_resource(3, 12)

    assert len(set(ids(resource))) == 36
    for device in resource.devices:
        assert uuid_of(device.id) == device.gpu_uuid
        assert is_replica_id(device.id)


def test_an_id_is_split_at_its_first_separator() -> None:
    assert uuid_of(replica_id("GPU-a", 7)) == "GPU-a"
    assert uuid_of("GPU-a::1::2") == "GPU-a"
    assert uuid_of("GPU-a") == "GPU-a"
    assert not is_replica_id("GPU-a")


@pytest.mark.parametrize("replicas", [1, 2, 10])
def test_the_largest_replica_count_of_a_resource(replicas: int) -> None:
    (resource,) = build_inventory(gpus(2), sharing(replicas)).resources
    assert resource.largest_replica_count == replicas
    assert replace(resource, devices=()).largest_replica_count == 1


@pytest.mark.parametrize(
    ("mode", "replicas", "warned"),
    [
        (ComputeMode.PROHIBITED, 1, "GPU 1 is in compute mode prohibited: no pod can use it"),
        (ComputeMode.EXCLUSIVE_PROCESS, 4, "GPU 1 is shared and in compute mode exclusive-process"),
        (ComputeMode.EXCLUSIVE_PROCESS, 1, None),
        (ComputeMode.DEFAULT, 4, None),
    ],
)
def test_compute_modes_that_keep_pods_out_are_warned_of(
    mode: ComputeMode, replicas: int, warned: str | None
) -> None:
    first, second = gpus(2)
    found = build_inventory([first, replace(second, compute_mode=mode)], sharing(replicas)).warnings
    assert len(found) == (warned is not None)
    assert all(str(warned) in one and "'nvidia-smi -c DEFAULT -i 1'" in one for one in found)
