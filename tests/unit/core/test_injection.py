"""What a container gets: every strategy, alone and together."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gpuplugin.core.injection import DeviceNode, Extras, InjectionPlan, Mount, inject
from gpuplugin.core.inventory import Device, Plan, build_inventory
from tests.unit.builders import a_resource, gpus, uuid_of_gpu
from tests.unit.core.test_mig_strategies import mig_gpu

if TYPE_CHECKING:
    from gpuplugin.core.injection import DeviceListStrategy

NAME = "nvidia.com/gpu"
A, B = uuid_of_gpu(0), uuid_of_gpu(1)
WHOLE = build_inventory(gpus(2), Plan()).resources[0].devices
SHARED = a_resource(2, 2).devices
(MIG,) = build_inventory([mig_gpu(3, "1g.10gb")], Plan(mig_strategy="single")).resources[0].devices
CDI = "k8s.device-plugin.nvidia.com"


def plan(*strategies: DeviceListStrategy) -> InjectionPlan:
    return InjectionPlan(strategies=frozenset(strategies))


@pytest.mark.parametrize(
    ("devices", "by_uuid", "by_index"),
    [
        pytest.param([WHOLE[0]], A, "0", id="one"),
        pytest.param([WHOLE[1], WHOLE[0]], f"{B},{A}", "1,0", id="order of the request"),
        pytest.param([SHARED[0], SHARED[1]], A, "0", id="two replicas of a GPU"),
        pytest.param([SHARED[3], SHARED[0], SHARED[2]], f"{B},{A}", "1,0", id="no repeats"),
        pytest.param([MIG], "MIG-30", "3:0", id="MIG"),
        pytest.param([], "", "", id="nothing"),
    ],
)
def test_envvar(devices: list[Device], by_uuid: str, by_index: str) -> None:
    assert inject(NAME, devices, plan("envvar")).envs == (("NVIDIA_VISIBLE_DEVICES", by_uuid),)
    indexed = replace(plan("envvar"), id_strategy="index")
    assert inject(NAME, devices, indexed).envs == (("NVIDIA_VISIBLE_DEVICES", by_index),)


def test_volume_mounts() -> None:
    granted = inject(NAME, WHOLE, plan("volume-mounts"))
    assert granted.envs == (("NVIDIA_VISIBLE_DEVICES", "/var/run/nvidia-container-devices"),)
    assert granted.mounts == (
        Mount(f"/var/run/nvidia-container-devices/{A}", "/dev/null"),
        Mount(f"/var/run/nvidia-container-devices/{B}", "/dev/null"),
    )


EXTRAS = Extras((("LD_LIBRARY_PATH", "/x/lib64"),), (Mount("/x", "/host/x"),))


def test_what_every_container_gets_comes_after_its_devices() -> None:
    granted = inject(NAME, WHOLE, replace(plan("envvar"), extras=EXTRAS))
    assert granted.envs == (("NVIDIA_VISIBLE_DEVICES", f"{A},{B}"), *EXTRAS.envs)
    assert granted.mounts == EXTRAS.mounts
    granted = inject(NAME, WHOLE, replace(plan("volume-mounts"), extras=EXTRAS))
    assert granted.mounts == (*inject(NAME, WHOLE, plan("volume-mounts")).mounts, *EXTRAS.mounts)


def test_with_cdi_alone_specs_have_what_every_container_gets() -> None:
    for strategies in (plan("cdi-cri"), plan("cdi-annotations", "cdi-cri")):
        assert inject(NAME, WHOLE, replace(strategies, extras=EXTRAS)) == inject(
            NAME, WHOLE, strategies
        )


def test_volume_mounts_win_over_envvar() -> None:
    both = inject(NAME, WHOLE, plan("envvar", "volume-mounts"))
    assert both == inject(NAME, WHOLE, plan("volume-mounts"))


def test_cdi_cri_gives_names_and_nothing_else() -> None:
    granted = inject(NAME, SHARED, plan("cdi-cri"))
    assert granted.cdi_devices == (f"{CDI}/gpu={A}", f"{CDI}/gpu={B}")
    assert (granted.envs, granted.mounts, granted.nodes, granted.annotations) == ((), (), (), ())


def test_cdi_annotations() -> None:
    granted = inject(NAME, WHOLE, plan("cdi-annotations"))
    ((key, value),) = granted.annotations
    assert key.startswith("cdi.k8s.io/nvidia-device-plugin_")
    assert value == f"{CDI}/gpu={A},{CDI}/gpu={B}"
    assert (granted.envs, granted.cdi_devices) == ((), ())
    assert inject(NAME, WHOLE, plan("cdi-annotations")) == granted


def test_the_annotation_differs_by_resource_and_request_and_takes_a_prefix() -> None:
    annotations = plan("cdi-annotations")
    keys = {
        inject(name, devices, annotations).annotations[0][0]
        for name, devices in ((NAME, WHOLE), (NAME, WHOLE[:1]), ("nvidia.com/x", WHOLE))
    }
    assert len(keys) == 3
    other = replace(annotations, cdi_annotation_prefix="example.com/")
    ((key, _),) = inject(NAME, WHOLE, other).annotations
    assert key.startswith("example.com/nvidia-device-plugin_")


STRATEGIES: tuple[DeviceListStrategy, ...] = (
    "envvar",
    "volume-mounts",
    "cdi-annotations",
    "cdi-cri",
)


@pytest.mark.parametrize(
    "chosen",
    [one for count in range(5) for one in itertools.combinations(STRATEGIES, count)],
    ids=lambda chosen: "+".join(chosen) or "none",
)
def test_every_combination(chosen: tuple[DeviceListStrategy, ...]) -> None:
    granted = inject(NAME, WHOLE, replace(plan(*chosen), pass_device_specs=True))
    plain = {"envvar", "volume-mounts"} & set(chosen)
    assert bool(granted.envs) == bool(plain)
    assert bool(granted.nodes) == bool(plain)
    assert bool(granted.mounts) == ("volume-mounts" in chosen)
    assert bool(granted.annotations) == ("cdi-annotations" in chosen)
    assert bool(granted.cdi_devices) == ("cdi-cri" in chosen)


def test_device_nodes_come_once_each_with_control_nodes_first() -> None:
    wanted = replace(
        plan("envvar"),
        pass_device_specs=True,
        control_nodes=("/dev/nvidiactl", "/dev/nvidia-uvm"),
        dev_root="/run/nvidia/driver/",
        imex_channels=(0,),
    )
    paths = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidia1"]
    paths.append("/dev/nvidia-caps-imex-channels/channel0")
    assert inject(NAME, SHARED, wanted).nodes == tuple(
        DeviceNode(path, f"/run/nvidia/driver{path}") for path in paths
    )


def test_without_a_dev_root_host_and_container_paths_are_equal() -> None:
    (node,) = inject(NAME, WHOLE[:1], replace(plan("envvar"), pass_device_specs=True)).nodes
    assert node == DeviceNode("/dev/nvidia0", "/dev/nvidia0")


def test_a_mig_device_brings_its_capability_nodes() -> None:
    nodes = inject(NAME, [MIG], replace(plan("envvar"), pass_device_specs=True)).nodes
    assert [node.host_path for node in nodes] == ["/dev/nvidia3", "/dev/nvidia-caps/nvidia-cap0"]


def test_features_and_imex_channels() -> None:
    wanted = InjectionPlan(
        strategies=frozenset({"envvar", "cdi-cri", "volume-mounts"}),
        features=("gdrcopy", "gds", "mofed"),
        imex_channels=(0,),
    )
    granted = inject(NAME, WHOLE[:1], wanted)
    assert dict(granted.envs) == {
        "NVIDIA_GDRCOPY": "enabled",
        "NVIDIA_GDS": "enabled",
        "NVIDIA_MOFED": "enabled",
        "NVIDIA_IMEX_CHANNELS": "0",
        "NVIDIA_VISIBLE_DEVICES": "/var/run/nvidia-container-devices",
    }
    assert granted.mounts[-1].container_path == "/var/run/nvidia-container-devices/imex/0"
    assert granted.cdi_devices == (
        f"{CDI}/gpu={A}",
        f"{CDI}/imex-channel=0",
        f"{CDI}/gdrcopy=all",
        f"{CDI}/gds=all",
        f"{CDI}/mofed=all",
    )


def test_features_are_told_even_where_cdi_alone_gives_devices() -> None:
    wanted = replace(plan("cdi-cri"), features=("gds",))
    assert inject(NAME, WHOLE, wanted).envs == (("NVIDIA_GDS", "enabled"),)
