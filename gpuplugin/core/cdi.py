"""CDI specs of an inventory: what a container runtime does for each device name. Pure.

A spec names everything that a container needs, so that no runtime hook of NVIDIA's is required:
device nodes, the driver's libraries under all their names, its programs. Where the hook program is
on the host, the container's linker cache is brought up to date as well. Format: the Container
Device Interface specification, version 0.6.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuplugin.core.injection import (
    CDI_VENDOR,
    DEVICE_MOUNT_ROOT,
    imex_channel_node,
    runtime_id,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gpuplugin.core.injection import InjectionPlan
    from gpuplugin.core.inventory import Device, Inventory
    from hal.driverfiles import DriverFiles

CDI_VERSION = "0.6.0"

_TALOS_HOOK = "/usr/local/bin/nvidia-cdi-hook"
_HOOKS = ("/usr/bin/nvidia-cdi-hook", _TALOS_HOOK)
_READ_ONLY = ("ro", "nosuid", "nodev", "bind")


@dataclass(frozen=True, slots=True)
class CdiHost:
    """What the host has for specs.

    `driver_root` is the driver's root on the host, `driver` the files below it. `hook` is the
    path of the CDI hook program, None if it is not there or hooks are switched off;
    `feature_nodes` are the device nodes of each switched-on feature.
    """

    driver_root: str
    driver: DriverFiles
    hook: str | None = None
    feature_nodes: tuple[tuple[str, tuple[str, ...]], ...] = ()


def hook_programs(configured: str) -> tuple[str, ...]:
    """Where the CDI hook program may be on the host, best first: as configured, or as usual.

    Up to 1.12 Talos has a wrapper under its name that knows no hooks; the program is beside it.
    """
    places = (
        place
        for path in (configured, *_HOOKS)
        for place in ((f"{path}.real", path) if path == _TALOS_HOOK else (path,))
    )
    return tuple(dict.fromkeys(places))


def spec_file_name(kind: str) -> str:
    return f"{CDI_VENDOR}-{kind}.json"


@dataclass(frozen=True, slots=True)
class CdiDevice:
    """A device in a spec: what the runtime calls it (`uuid`, an index), and its device nodes."""

    runtime_id: str
    nodes: tuple[str, ...]


def cdi_specs(
    inventory: Inventory, plan: InjectionPlan, host: CdiHost
) -> dict[str, dict[str, object]]:
    """Specs by file name: the GPUs, and what else the plan gives to containers.

    A runtime refuses a whole file for a device without edits, and a file without devices. So what
    has no device node is left out, and so is a class of which nothing is left.
    """
    kinds: dict[str, dict[str, CdiDevice]] = {
        "gpu": _gpus(inventory, plan),
        "imex-channel": {
            str(one): CdiDevice("", (imex_channel_node(one),)) for one in plan.imex_channels
        },
        **{feature: {"all": CdiDevice("", paths)} for feature, paths in host.feature_nodes},
    }
    edits = {"gpu": _common_edits(plan, host)}
    return {
        spec_file_name(kind): _spec(f"{CDI_VENDOR}/{kind}", devices, edits.get(kind, {}))
        for kind, by_name in kinds.items()
        if (devices := [_device(name, one, plan) for name, one in by_name.items() if one.nodes])
    }


def claim_spec(
    kind: str,
    devices: Mapping[str, CdiDevice],
    plan: InjectionPlan,
    host: CdiHost,
    annotations: Mapping[str, str],
) -> dict[str, object]:
    """The spec of a claim: its devices by their CDI names.

    What else the plan gives to containers (IMEX channels, features) comes with every device.
    """
    edits = _common_edits(plan, host)
    features = dict(host.feature_nodes)
    more = (
        *(imex_channel_node(one) for one in plan.imex_channels),
        *(node for one in plan.features for node in features.get(one, ())),
    )
    every = (*plan.control_nodes, *more)
    if every:
        edits["deviceNodes"] = _nodes(every, plan)
    edits["env"] = [
        "NVIDIA_VISIBLE_DEVICES=void",
        *(f"NVIDIA_{feature.upper()}=enabled" for feature in plan.features),
        *_extra_envs(plan),
    ]
    listed = [_device(name, one, plan) for name, one in devices.items()]
    return {**_spec(kind, listed, edits), "annotations": dict(annotations)}


def _gpus(inventory: Inventory, plan: InjectionPlan) -> dict[str, CdiDevice]:
    """Every distinct GPU or MIG device, by its name for the runtime."""
    distinct: dict[str, Device] = {}
    for resource in inventory.resources:
        for device in resource.devices:
            distinct.setdefault(runtime_id(device, plan), device)
    return {name: CdiDevice(name, device.nodes) for name, device in sorted(distinct.items())}


def _common_edits(plan: InjectionPlan, host: CdiHost) -> dict[str, object]:
    edits: dict[str, object] = {
        # The environment variable must not add GPUs to those that CDI gives.
        "env": ["NVIDIA_VISIBLE_DEVICES=void", *_extra_envs(plan)],
        "deviceNodes": _nodes(plan.control_nodes, plan),
        "mounts": [
            *_mounts(host),
            *(_mount(one.host_path, one.container_path) for one in plan.extras.mounts),
        ],
    }
    if host.hook is not None and host.driver.libraries:
        folders = [f"--folder=/{folder}" for folder in host.driver.library_folders]
        program = host.hook.rpartition("/")[2]
        verb = ["hook", "update-ldcache"] if program == "nvidia-ctk" else ["update-ldcache"]
        edits["hooks"] = [
            {"hookName": "createContainer", "path": host.hook, "args": [program, *verb, *folders]}
        ]
    return {key: value for key, value in edits.items() if value}


def _extra_envs(plan: InjectionPlan) -> list[str]:
    return [f"{name}={value}" for name, value in plan.extras.envs]


def _mounts(host: CdiHost) -> Iterable[dict[str, object]]:
    root = host.driver_root.rstrip("/")
    for path, other_names in host.driver.libraries:
        for name in (path, *other_names):
            yield _mount(f"{root}/{path}", f"/{name}")
    for path in (*host.driver.programs, *host.driver.sockets):
        yield _mount(f"{root}/{path}", f"/{path}")


def _mount(host_path: str, container_path: str) -> dict[str, object]:
    return {"hostPath": host_path, "containerPath": container_path, "options": list(_READ_ONLY)}


def _spec(
    kind: str, devices: list[dict[str, object]], edits: Mapping[str, object]
) -> dict[str, object]:
    spec: dict[str, object] = {
        "cdiVersion": CDI_VERSION,
        "kind": kind,
        "devices": devices,
    }
    if edits:
        spec["containerEdits"] = dict(edits)
    return spec


def _device(name: str, device: CdiDevice, plan: InjectionPlan) -> dict[str, object]:
    edits: dict[str, object] = {"deviceNodes": _nodes(device.nodes, plan)}
    if plan.extras.mounts and device.runtime_id:
        # Variables of several devices would replace one another; files in a folder add up.
        path = f"{DEVICE_MOUNT_ROOT}/{device.runtime_id}"
        edits["mounts"] = [_mount("/dev/null", path)]
    return {"name": name, "containerEdits": edits}


def _nodes(paths: Iterable[str], plan: InjectionPlan) -> list[dict[str, object]]:
    """Device nodes; the host's path is named where it is another one."""
    if plan.stand_in_node:
        return [{"path": path, "hostPath": plan.stand_in_node} for path in paths]
    root = plan.dev_root.rstrip("/")
    return [{"path": path, **({"hostPath": root + path} if root else {})} for path in paths]
