"""MIG devices as resources: the strategies none, single and mixed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gpuplugin.core.inventory import (
    Inventory,
    InventoryError,
    Plan,
    build_inventory,
    mig_resource_name,
)
from gpuplugin.core.sharing import NamePattern, Selection, SharedResource, TimeSlicing
from hal import Gpu, MigDevice
from tests.unit.builders import a_gpu, uuid_of_gpu

if TYPE_CHECKING:
    from gpuplugin.core.inventory import MigStrategy


def mig_gpu(index: int, *profiles: str) -> Gpu:
    """A GPU in MIG mode with devices of these profiles."""
    return replace(
        a_gpu(index, numa_node=1),
        mig_enabled=True,
        mig_devices=tuple(
            MigDevice(
                uuid=f"MIG-{index}{position}",
                index=position,
                gpu_instance=position + 1,
                compute_instance=0,
                profile=profile,
                memory_bytes=10 * 1024**3,
                device_nodes=(f"/dev/nvidia{index}", f"/dev/nvidia-caps/nvidia-cap{position}"),
            )
            for position, profile in enumerate(profiles)
        ),
    )


def ids(inventory: Inventory) -> dict[str, list[str]]:
    return {one.name: [device.id for device in one.devices] for one in inventory.resources}


@pytest.mark.parametrize("strategy", ["none", "single", "mixed"])
def test_gpus_that_are_not_in_mig_mode_are_gpus(strategy: MigStrategy) -> None:
    found = build_inventory([a_gpu(0), a_gpu(1)], Plan(mig_strategy=strategy))
    assert ids(found) == {"nvidia.com/gpu": [uuid_of_gpu(0), uuid_of_gpu(1)]}


def test_none_advertises_the_gpu_itself() -> None:
    found = build_inventory([mig_gpu(0, "1g.10gb"), a_gpu(1)], Plan(mig_strategy="none"))
    assert ids(found) == {"nvidia.com/gpu": [uuid_of_gpu(0), uuid_of_gpu(1)]}


def test_single_advertises_mig_devices_as_gpus() -> None:
    gpus = [mig_gpu(0, "1g.10gb", "1g.10gb"), mig_gpu(1, "1g.10gb")]
    found = build_inventory(gpus, Plan(mig_strategy="single"))
    assert ids(found) == {"nvidia.com/gpu": ["MIG-00", "MIG-01", "MIG-10"]}
    (resource,) = found.resources
    first = resource.devices[0]
    assert (first.index, first.gpu_uuid, first.numa_node) == ("0:0", uuid_of_gpu(0), 1)
    assert first.nodes == ("/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap0")


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        ([mig_gpu(0, "1g.10gb"), a_gpu(1)], "GPUs 1 are not in MIG mode"),
        ([mig_gpu(0, "1g.10gb"), mig_gpu(1)], "GPUs 1 are in MIG mode without a MIG device"),
        ([mig_gpu(0, "1g.10gb", "2g.20gb")], r"differ \(1g.10gb, 2g.20gb\)"),
        ([mig_gpu(0, "1g.10gb"), mig_gpu(1, "7g.80gb")], r"differ \(1g.10gb, 7g.80gb\)"),
    ],
)
def test_single_wants_gpus_that_are_alike(gpus: list[Gpu], words: str) -> None:
    with pytest.raises(InventoryError, match=words):
        build_inventory(gpus, Plan(mig_strategy="single"))


def test_single_does_not_ask_a_lost_gpu_for_its_mode() -> None:
    gpus = [mig_gpu(0, "1g.10gb"), a_gpu(1, lost=True)]
    inventory = build_inventory(gpus, Plan(mig_strategy="single"))
    assert ids(inventory) == {"nvidia.com/gpu": ["MIG-00"]}


def test_mixed_names_resources_by_profile() -> None:
    gpus = [mig_gpu(0, "1g.10gb", "3g.40gb", "1g.10gb+me"), a_gpu(1)]
    assert ids(build_inventory(gpus, Plan(mig_strategy="mixed"))) == {
        "nvidia.com/gpu": [uuid_of_gpu(1)],
        "nvidia.com/mig-1g.10gb": ["MIG-00"],
        "nvidia.com/mig-1g.10gb.me": ["MIG-02"],
        "nvidia.com/mig-3g.40gb": ["MIG-01"],
    }


@pytest.mark.parametrize(
    ("profile", "name"),
    [
        ("1g.5gb", "nvidia.com/mig-1g.5gb"),
        ("1g.5gb+me", "nvidia.com/mig-1g.5gb.me"),
        ("1g.24gb+me.all", "nvidia.com/mig-1g.24gb.me.all"),
        ("1g.24gb-me", "nvidia.com/mig-1g.24gb-me"),
        ("1g.24gb+gfx", "nvidia.com/mig-1g.24gb.gfx"),
        ("7g.141gb", "nvidia.com/mig-7g.141gb"),
        ("1c.2g.10gb", None),
    ],
)
def test_names_of_profiles(profile: str, name: str | None) -> None:
    assert mig_resource_name(profile) == name


def test_mixed_leaves_out_what_has_no_name_and_says_so() -> None:
    found = build_inventory(
        [mig_gpu(0, "1c.2g.10gb", "1g.10gb"), mig_gpu(1)], Plan(mig_strategy="mixed")
    )
    assert ids(found) == {"nvidia.com/mig-1g.10gb": ["MIG-01"]}
    compute, empty = found.notes
    assert "MIG-00" in compute
    assert "1c.2g.10gb" in compute
    assert "GPU 1 is in MIG mode without a MIG device" in empty


def test_patterns_name_profiles() -> None:
    names = (NamePattern("1g.*", "nvidia.com/small"), NamePattern("*", "nvidia.com/large"))
    gpus = [mig_gpu(0, "1g.10gb", "3g.40gb", "1c.2g.10gb")]
    assert ids(build_inventory(gpus, Plan(mig_strategy="mixed", mig_names=names))) == {
        "nvidia.com/large": ["MIG-01", "MIG-02"],
        "nvidia.com/small": ["MIG-00"],
    }


@pytest.mark.parametrize(
    "named", ["0:1", "MIG-01", f"MIG-{uuid_of_gpu(0)}/2/0"], ids=["index", "UUID", "legacy"]
)
def test_mig_devices_are_shared_like_gpus(named: str) -> None:
    entry = SharedResource("nvidia.com/mig-1g.10gb", 2, Selection(ids=frozenset({named})))
    plan = Plan(TimeSlicing((entry,)), mig_strategy="mixed")
    assert ids(build_inventory([mig_gpu(0, "1g.10gb", "1g.10gb")], plan)) == {
        "nvidia.com/mig-1g.10gb": ["MIG-00", "MIG-01::0", "MIG-01::1"]
    }


def test_under_single_mig_devices_are_shared_as_gpus() -> None:
    plan = Plan(TimeSlicing((SharedResource("nvidia.com/gpu", 2),)), mig_strategy="single")
    assert ids(build_inventory([mig_gpu(0, "1g.10gb")], plan)) == {
        "nvidia.com/gpu": ["MIG-00::0", "MIG-00::1"]
    }
