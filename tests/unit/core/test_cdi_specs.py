"""CDI specs: valid by the specification, and with everything that a container needs."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from gpuplugin.core.cdi import (
    CdiDevice,
    CdiHost,
    cdi_specs,
    claim_spec,
    hook_programs,
    spec_file_name,
)
from gpuplugin.core.injection import Extras, InjectionPlan, Mount, inject
from gpuplugin.core.inventory import Inventory, Plan, build_inventory
from gpuplugin.core.sharing import NamePattern, Selection, SharedResource, TimeSlicing
from hal.driverfiles import DriverFiles
from tests.unit.builders import a_gpu, gpus, sharing, uuid_of_gpu
from tests.unit.core.cdi_schema import SPEC
from tests.unit.core.test_mig_strategies import mig_gpu

if TYPE_CHECKING:
    from collections.abc import Callable

VENDOR = "k8s.device-plugin.nvidia.com"
GPU_FILE = f"{VENDOR}-gpu.json"
VALIDATOR = Draft202012Validator(SPEC)

LIB = "usr/lib/x86_64-linux-gnu"
DRIVER = DriverFiles(
    version="580.1",
    libraries=(
        (f"{LIB}/libcuda.so.580.1", (f"{LIB}/libcuda.so", f"{LIB}/libcuda.so.1")),
        (f"{LIB}/libnvidia-ml.so.580.1", (f"{LIB}/libnvidia-ml.so.1",)),
        (f"{LIB}/libnvidia-alone.so.580.1", ()),
    ),
    programs=("usr/bin/nvidia-smi",),
    sockets=("run/nvidia-persistenced/socket",),
)
NO_DRIVER = CdiHost("/", DriverFiles())
HOST = CdiHost("/", DRIVER)
CDI = InjectionPlan(strategies=frozenset({"cdi-cri"}))
WHOLE = build_inventory(gpus(3), Plan())
SHARED = build_inventory(gpus(3), sharing(10))
SPLIT = build_inventory(
    gpus(3),
    Plan(
        TimeSlicing(
            (
                SharedResource("nvidia.com/gpu", 4, Selection(ids=frozenset({"1"}))),
                SharedResource("nvidia.com/gpu", 2, Selection(count=1), "nvidia.com/small"),
            )
        )
    ),
)
MIG = build_inventory(
    [mig_gpu(0, "1g.10gb", "2g.20gb"), a_gpu(1)],
    Plan(sharing=TimeSlicing((SharedResource("nvidia.com/mig-1g.10gb", 3),)), mig_strategy="mixed"),
)
INVENTORIES = {"whole": WHOLE, "shared": SHARED, "split": SPLIT, "mig": MIG}
CONTROL = ("/dev/nvidiactl", "/dev/nvidia-uvm")


def specs(
    inventory: Inventory, plan: InjectionPlan = CDI, host: CdiHost = HOST
) -> dict[str, dict[str, Any]]:
    """The specs, each valid and by its right name."""
    made: dict[str, dict[str, Any]] = cdi_specs(inventory, plan, host)
    for name, spec in made.items():
        VALIDATOR.validate(spec)
        assert name == spec_file_name(spec["kind"].rpartition("/")[2])
        assert json.loads(json.dumps(spec)) == spec
    return made


def gpu_spec(
    inventory: Inventory, plan: InjectionPlan = CDI, host: CdiHost = HOST
) -> dict[str, Any]:
    return specs(inventory, plan, host)[GPU_FILE]


def node_paths(edits: dict[str, Any]) -> list[str]:
    return [node["path"] for node in edits["deviceNodes"]]


# The schema itself


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SPEC)


def _add(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda spec: spec.__setitem__(key, value)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(_add("cdiVersion", "1"), id="version"),
        pytest.param(_add("kind", "gpu"), id="no vendor"),
        pytest.param(_add("kind", "a/b/c"), id="two slashes"),
        pytest.param(_add("extra", 1), id="unknown key"),
        pytest.param(_add("devices", []), id="no devices"),
        pytest.param(lambda spec: spec["devices"][0].update(name="-a"), id="name"),
        pytest.param(lambda spec: spec["devices"][0].update(name="a b"), id="space"),
        pytest.param(
            lambda spec: spec["devices"][0]["containerEdits"].update(deviceNodes=[]),
            id="a device without edits",
        ),
        pytest.param(
            lambda spec: spec["devices"][0]["containerEdits"]["deviceNodes"][0].update(path="x"),
            id="relative",
        ),
        pytest.param(lambda spec: spec["containerEdits"]["mounts"][0].pop("hostPath"), id="mount"),
        pytest.param(lambda spec: spec["containerEdits"].update(env=["A"]), id="env"),
    ],
)
def test_the_schema_refuses_what_is_wrong(spoil: Callable[[dict[str, Any]], object]) -> None:
    spec = deepcopy(gpu_spec(WHOLE))
    spoil(spec)

    with pytest.raises(ValidationError):
        VALIDATOR.validate(spec)


# Devices


@pytest.mark.parametrize("name", INVENTORIES)
@pytest.mark.parametrize("strategy", ["uuid", "index"])
def test_every_device_is_there_once_by_the_name_that_containers_are_given(
    name: str, strategy: Any
) -> None:
    inventory, plan = INVENTORIES[name], replace(CDI, id_strategy=strategy)
    named = [device["name"] for device in gpu_spec(inventory, plan)["devices"]]
    given = {
        one.rpartition("=")[2]
        for resource in inventory.resources
        for one in inject(resource.name, resource.devices, plan).cdi_devices
    }

    assert len(named) == len(set(named))
    assert set(named) == given


@pytest.mark.parametrize("inventory", [WHOLE, SHARED, SPLIT])
def test_gpus_by_uuid_and_by_index(inventory: Inventory) -> None:
    by_index = replace(CDI, id_strategy="index")

    assert [one["name"] for one in gpu_spec(inventory)["devices"]] == [
        uuid_of_gpu(0),
        uuid_of_gpu(1),
        uuid_of_gpu(2),
    ]
    devices = gpu_spec(inventory, by_index)["devices"]
    assert [one["name"] for one in devices] == ["0", "1", "2"]
    assert [node_paths(one["containerEdits"]) for one in devices] == [
        ["/dev/nvidia0"],
        ["/dev/nvidia1"],
        ["/dev/nvidia2"],
    ]


def test_mig_devices_bring_their_nodes() -> None:
    nodes = {one["name"]: node_paths(one["containerEdits"]) for one in gpu_spec(MIG)["devices"]}

    assert nodes == {
        "MIG-00": ["/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap0"],
        "MIG-01": ["/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap1"],
        uuid_of_gpu(1): ["/dev/nvidia1"],
    }
    by_index = gpu_spec(MIG, replace(CDI, id_strategy="index"))["devices"]
    assert [one["name"] for one in by_index] == ["0:0", "0:1", "1"]


def test_a_gpu_of_another_resource_is_in_the_same_spec() -> None:
    patterns = (NamePattern("Other*", "nvidia.com/other"),)
    mixed = [a_gpu(0), replace(a_gpu(1), product="Other GPU")]
    inventory = build_inventory(mixed, Plan(gpu_names=patterns))

    assert len(inventory.resources) == 2
    assert len(gpu_spec(inventory)["devices"]) == 2


def test_a_gpu_without_known_nodes_does_not_spoil_the_spec() -> None:
    """A runtime refuses a whole file for one device without edits."""
    inventory = build_inventory([a_gpu(0), replace(a_gpu(1), minor=None)], Plan())

    assert [one["name"] for one in gpu_spec(inventory)["devices"]] == [uuid_of_gpu(0)]


def test_without_a_gpu_there_is_no_spec_of_gpus() -> None:
    """A runtime refuses a file without devices."""
    assert specs(Inventory()) == {}


# What every container gets


def test_the_older_way_of_asking_is_switched_off() -> None:
    assert gpu_spec(WHOLE)["containerEdits"]["env"] == ["NVIDIA_VISIBLE_DEVICES=void"]


def test_control_nodes_are_for_every_container() -> None:
    edits = gpu_spec(WHOLE, replace(CDI, control_nodes=CONTROL))["containerEdits"]

    assert node_paths(edits) == list(CONTROL)
    assert "deviceNodes" not in gpu_spec(WHOLE)["containerEdits"]


@pytest.mark.parametrize(
    ("dev_root", "prefix"),
    [("/", ""), ("/run/nvidia/driver", "/run/nvidia/driver"), ("/host/", "/host")],
)
def test_the_dev_root_is_before_every_host_path(dev_root: str, prefix: str) -> None:
    plan = replace(
        CDI, dev_root=dev_root, control_nodes=CONTROL, imex_channels=(0,), features=("gds",)
    )
    host = replace(HOST, feature_nodes=(("gds", ("/dev/nvidia-fs0",)),))
    nodes = [
        node
        for spec in specs(MIG, plan, host).values()
        for edits in (
            spec.get("containerEdits", {}),
            *(device["containerEdits"] for device in spec["devices"]),
        )
        for node in edits.get("deviceNodes", [])
    ]

    assert len(nodes) == 2 + 5 + 1 + 1
    for node in nodes:
        assert node["path"].startswith("/dev/")
        assert node.get("hostPath", node["path"]) == prefix + node["path"]
        assert ("hostPath" in node) == bool(prefix)


@pytest.mark.parametrize(
    ("root", "prefix"),
    [("/", ""), ("/run/nvidia/driver", "/run/nvidia/driver"), ("/host/", "/host")],
)
def test_libraries_are_there_under_all_their_names(root: str, prefix: str) -> None:
    mounts = gpu_spec(WHOLE, host=CdiHost(root, DRIVER))["containerEdits"]["mounts"]

    assert {one["containerPath"]: one["hostPath"] for one in mounts} == {
        f"/{LIB}/libcuda.so.580.1": f"{prefix}/{LIB}/libcuda.so.580.1",
        f"/{LIB}/libcuda.so": f"{prefix}/{LIB}/libcuda.so.580.1",
        f"/{LIB}/libcuda.so.1": f"{prefix}/{LIB}/libcuda.so.580.1",
        f"/{LIB}/libnvidia-ml.so.580.1": f"{prefix}/{LIB}/libnvidia-ml.so.580.1",
        f"/{LIB}/libnvidia-ml.so.1": f"{prefix}/{LIB}/libnvidia-ml.so.580.1",
        f"/{LIB}/libnvidia-alone.so.580.1": f"{prefix}/{LIB}/libnvidia-alone.so.580.1",
        "/usr/bin/nvidia-smi": f"{prefix}/usr/bin/nvidia-smi",
        "/run/nvidia-persistenced/socket": f"{prefix}/run/nvidia-persistenced/socket",
    }
    assert len(mounts) == 8
    assert all({"ro", "bind", "nosuid", "nodev"} == set(one["options"]) for one in mounts)


def test_without_driver_files_there_are_no_mounts() -> None:
    assert "mounts" not in gpu_spec(WHOLE, host=NO_DRIVER)["containerEdits"]


@pytest.mark.parametrize(
    ("hook", "arguments"),
    [
        ("/usr/bin/nvidia-ctk", ["nvidia-ctk", "hook", "update-ldcache"]),
        ("/usr/bin/nvidia-cdi-hook", ["nvidia-cdi-hook", "update-ldcache"]),
    ],
)
def test_the_linker_cache_is_brought_up_to_date(hook: str, arguments: list[str]) -> None:
    (made,) = gpu_spec(WHOLE, host=replace(HOST, hook=hook))["containerEdits"]["hooks"]

    assert made["hookName"] == "createContainer"
    assert made["path"] == hook
    assert made["args"] == [*arguments, f"--folder=/{LIB}"]


def test_each_folder_of_libraries_is_named_once() -> None:
    libraries = ((f"{LIB}/liba.so.1", ()), (f"{LIB}/libb.so.1", ()), ("lib64/libc.so.1", ()))
    host = CdiHost("/", DriverFiles("1", libraries), hook="/h/nvidia-cdi-hook")
    (made,) = gpu_spec(WHOLE, host=host)["containerEdits"]["hooks"]

    assert made["args"][2:] == [f"--folder=/{LIB}", "--folder=/lib64"]


@pytest.mark.parametrize("host", [HOST, replace(NO_DRIVER, hook="/usr/bin/nvidia-ctk")])
def test_no_hook_where_there_is_none_or_nothing_to_do(host: CdiHost) -> None:
    assert "hooks" not in gpu_spec(WHOLE, host=host)["containerEdits"]


# Other classes


def test_what_every_container_gets_is_in_the_spec_and_devices_are_named_by_files() -> None:
    extras = Extras((("LD_LIBRARY_PATH", "/x/lib64"),), (Mount("/x", "/host/x"),))
    for inventory in INVENTORIES.values():
        spec = gpu_spec(inventory, replace(CDI, extras=extras), NO_DRIVER)
        options = ["ro", "nosuid", "nodev", "bind"]
        edits = spec["containerEdits"]
        assert edits["env"] == ["NVIDIA_VISIBLE_DEVICES=void", "LD_LIBRARY_PATH=/x/lib64"]
        assert edits["mounts"] == [
            {"hostPath": "/host/x", "containerPath": "/x", "options": options}
        ]
        for device in spec["devices"]:
            (mount,) = device["containerEdits"]["mounts"]
            assert mount["hostPath"] == "/dev/null"
            name = device["name"]
            assert mount["containerPath"] == f"/var/run/nvidia-container-devices/{name}"


def test_imex_channels_have_a_class() -> None:
    spec = specs(WHOLE, replace(CDI, imex_channels=(0,)))[f"{VENDOR}-imex-channel.json"]

    assert spec["kind"] == f"{VENDOR}/imex-channel"
    (device,) = spec["devices"]
    assert device["name"] == "0"
    assert node_paths(device["containerEdits"]) == ["/dev/nvidia-caps-imex-channels/channel0"]


FEATURES = {
    "gdrcopy": ("/dev/gdrdrv",),
    "gds": ("/dev/nvidia-fs0", "/dev/nvidia-fs1"),
    "mofed": ("/dev/infiniband/uverbs0", "/dev/infiniband/rdma_cm"),
}


@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_has_a_class(feature: str) -> None:
    host = replace(HOST, feature_nodes=((feature, FEATURES[feature]),))
    spec = specs(WHOLE, replace(CDI, features=(feature,)), host)[f"{VENDOR}-{feature}.json"]

    (device,) = spec["devices"]
    assert (spec["kind"], device["name"]) == (f"{VENDOR}/{feature}", "all")
    assert node_paths(device["containerEdits"]) == list(FEATURES[feature])


@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_that_the_machine_does_not_have_has_no_spec(feature: str) -> None:
    """As with NVIDIA's plugin, which leaves out specs that would be empty."""
    host = replace(HOST, feature_nodes=((feature, ()),))

    assert set(specs(WHOLE, replace(CDI, features=(feature,)), host)) == {GPU_FILE}


def test_nothing_that_is_switched_off_has_a_spec() -> None:
    assert set(specs(WHOLE)) == {GPU_FILE}


# All together


@pytest.mark.parametrize(
    ("name", "strategy", "hook"),
    list(product(INVENTORIES, ("uuid", "index"), (None, "/usr/bin/nvidia-ctk"))),
)
def test_every_name_that_a_container_is_given_has_a_spec(
    name: str, strategy: Any, hook: str | None
) -> None:
    plan = replace(
        CDI, id_strategy=strategy, imex_channels=(0,), features=tuple(FEATURES), dev_root="/host"
    )
    host = replace(HOST, hook=hook, feature_nodes=tuple(FEATURES.items()))
    known = {
        f"{spec['kind']}={device['name']}"
        for spec in specs(INVENTORIES[name], plan, host).values()
        for device in spec["devices"]
    }
    for resource in INVENTORIES[name].resources:
        for device in resource.devices:
            given = inject(resource.name, [device], plan).cdi_devices
            assert len(given) == 5
            assert set(given) <= known


def test_the_same_devices_give_the_same_text_in_whatever_order_they_are_listed() -> None:
    listed = gpus(12)
    one = specs(build_inventory(listed, sharing(3)))
    other = specs(build_inventory(reversed(listed), sharing(3)))

    assert json.dumps(one) == json.dumps(other)


# Claims


def test_the_spec_of_a_claim_has_its_devices_and_all_that_containers_get() -> None:
    plan = replace(
        CDI,
        control_nodes=CONTROL,
        features=("gds", "mofed"),
        imex_channels=(0, 3),
        extras=Extras((("LD_LIBRARY_PATH", "/x"),), (Mount("/x", "/host/x"),)),
    )
    host = replace(HOST, feature_nodes=(("gds", ("/dev/nvidia-fs0",)), ("other", ("/dev/o",))))
    devices = {
        "uid-gpu-a": CdiDevice(uuid_of_gpu(0), ("/dev/nvidia0",)),
        "uid-gpu-b": CdiDevice("", ("/dev/nvidia1",)),
    }
    spec: dict[str, Any] = claim_spec("gpuplugin/claim", devices, plan, host, {"note": "text"})
    VALIDATOR.validate(spec)
    assert (spec["kind"], spec["annotations"]) == ("gpuplugin/claim", {"note": "text"})
    assert {one["name"]: node_paths(one["containerEdits"]) for one in spec["devices"]} == {
        "uid-gpu-a": ["/dev/nvidia0"],
        "uid-gpu-b": ["/dev/nvidia1"],
    }
    first, second = (one["containerEdits"].get("mounts") for one in spec["devices"])
    assert [one["containerPath"] for one in first] == [
        f"/var/run/nvidia-container-devices/{uuid_of_gpu(0)}"
    ]
    assert second is None
    edits = spec["containerEdits"]
    assert node_paths(edits) == [
        *CONTROL,
        "/dev/nvidia-caps-imex-channels/channel0",
        "/dev/nvidia-caps-imex-channels/channel3",
        "/dev/nvidia-fs0",
    ]
    assert edits["env"] == [
        "NVIDIA_VISIBLE_DEVICES=void",
        "NVIDIA_GDS=enabled",
        "NVIDIA_MOFED=enabled",
        "LD_LIBRARY_PATH=/x",
    ]
    assert edits["mounts"][-1]["containerPath"] == "/x"


def test_the_spec_of_a_claim_where_nothing_is_common() -> None:
    spec: dict[str, Any] = claim_spec("vendor/claim", {}, CDI, NO_DRIVER, {})
    assert spec["containerEdits"] == {"env": ["NVIDIA_VISIBLE_DEVICES=void"]}


@pytest.mark.parametrize(
    ("configured", "places"),
    [
        ("/opt/hook", ["/opt/hook"]),
        ("/usr/bin/nvidia-cdi-hook", []),
        (
            "/usr/local/bin/nvidia-cdi-hook",
            ["/usr/local/bin/nvidia-cdi-hook.real", "/usr/local/bin/nvidia-cdi-hook"],
        ),
    ],
)
def test_where_the_hook_program_is_looked_for(configured: str, places: list[str]) -> None:
    usual = (
        "/usr/bin/nvidia-cdi-hook",
        "/usr/local/bin/nvidia-cdi-hook.real",
        "/usr/local/bin/nvidia-cdi-hook",
    )
    assert hook_programs(configured) == tuple(dict.fromkeys((*places, *usual)))
