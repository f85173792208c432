"""CDI specs of an inventory: what a container runtime does for each device name. Pure.

A spec names everything that a container needs, so that no runtime hook of NVIDIA's is required:
device nodes, the driver's libraries under all their names, its programs. Where the hook program is
on the host, the container's linker cache is brought up to date as well. Format: the Container
Device Interface specification, version 0.6.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuplugin.core.injection import CDI_VENDOR, imex_channel_node, runtime_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gpuplugin.core.injection import InjectionPlan
    from gpuplugin.core.inventory import Device, Inventory
    from hal.driverfiles import DriverFiles

CDI_VERSION = "0.6.0"
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


def spec_file_name(kind: str) -> str:
    """The file of one class of devices."""
    return f"{CDI_VENDOR}-{kind}.json"


def cdi_specs(
    inventory: Inventory, plan: InjectionPlan, host: CdiHost
) -> dict[str, dict[str, object]]:
    """Specs by file name: the GPUs, and what else the plan gives to containers."""
    specs = {spec_file_name("gpu"): _gpu_spec(inventory, plan, host)}
    if plan.imex_channels:
        devices = [
            _device(str(channel), [imex_channel_node(channel)], plan)
            for channel in plan.imex_channels
        ]
        specs[spec_file_name("imex-channel")] = _spec("imex-channel", devices, {})
    for feature, nodes in host.feature_nodes:
        specs[spec_file_name(feature)] = _spec(feature, [_device("all", nodes, plan)], {})
    return specs


def _gpu_spec(inventory: Inventory, plan: InjectionPlan, host: CdiHost) -> dict[str, object]:
    distinct: dict[str, Device] = {}
    for resource in inventory.resources:
        for device in resource.devices:
            distinct.setdefault(runtime_id(device, plan), device)
    devices = [_device(name, device.nodes, plan) for name, device in sorted(distinct.items())]
    return _spec("gpu", devices, _common_edits(plan, host))


def _common_edits(plan: InjectionPlan, host: CdiHost) -> dict[str, object]:
    """What every container with a GPU gets."""
    edits: dict[str, object] = {
        # The older way of asking must not add GPUs to those that CDI gives.
        "env": ["NVIDIA_VISIBLE_DEVICES=void"],
        "deviceNodes": _nodes(plan.control_nodes, plan),
        "mounts": list(_mounts(host)),
    }
    if host.hook is not None and host.driver.libraries:
        folders = [f"--folder=/{folder}" for folder in host.driver.library_folders]
        program = host.hook.rpartition("/")[2]
        verb = ["hook", "update-ldcache"] if program == "nvidia-ctk" else ["update-ldcache"]
        edits["hooks"] = [
            {
                "hookName": "createContainer",
                "path": host.hook,
                "args": [program, *verb, *folders],
            }
        ]
    return {key: value for key, value in edits.items() if value}


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
        "kind": f"{CDI_VENDOR}/{kind}",
        "devices": devices,
    }
    if edits:
        spec["containerEdits"] = dict(edits)
    return spec


def _device(name: str, nodes: Iterable[str], plan: InjectionPlan) -> dict[str, object]:
    return {"name": name, "containerEdits": {"deviceNodes": _nodes(nodes, plan)}}


def _nodes(paths: Iterable[str], plan: InjectionPlan) -> list[dict[str, object]]:
    """Device nodes; the host's path is named where it is another one."""
    root = plan.dev_root.rstrip("/")
    return [{"path": path, **({"hostPath": root + path} if root else {})} for path in paths]
