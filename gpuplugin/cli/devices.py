"""`gpuplugin devices` and `cdi`: the GPUs of this machine, what would be advertised, CDI specs."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.cli.backends import CannotList, list_gpus
from gpuplugin.cli.text import gib, table
from gpuplugin.config.plans import injection_plan

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from gpuplugin.core.inventory import Inventory, Resource
    from hal import Gpu


def devices(parsed: argparse.Namespace) -> int:
    """Print them; 1 if the configuration or the driver cannot be used."""
    try:
        listed = list_gpus(parsed)
    except CannotList as error:
        return _fail(error)
    show = _as_json if parsed.json else _as_text
    print(show(listed.gpus, listed.inventory))
    return 0


def show_cdi(parsed: argparse.Namespace) -> int:
    """Print every CDI spec by file name; 1 if the configuration or the driver cannot be used."""
    from gpuplugin.daemon.plans import existing_nodes
    from gpuplugin.daemon.serving.cdi import cdi_writer, present_features

    try:
        listed = list_gpus(parsed)
    except CannotList as error:
        return _fail(error)
    settings = listed.settings
    plan = injection_plan(
        settings, existing_nodes(settings), features_present=present_features(settings)
    )
    print(json.dumps(cdi_writer(settings, plan).specs(listed.inventory), indent=2))
    return 0


def remove_cdi(parsed: argparse.Namespace) -> int:
    """Remove the plugin's CDI specs; 1 if a file cannot be removed."""
    from gpuplugin.daemon.serving.cdi import remove_specs

    try:
        removed = remove_specs(Path(parsed.cdi_root))
    except OSError as error:
        return _fail(error)
    if parsed.json:
        print(json.dumps({"removed": [str(path) for path in removed]}, indent=2))
        return 0
    for path in removed:
        print(f"removed {path}")
    return 0


def _fail(error: Exception) -> int:
    print(f"gpuplugin: {error}", file=sys.stderr)
    return 1


def _as_json(gpus: Sequence[Gpu], inventory: Inventory) -> str:
    return json.dumps(
        {
            "gpus": [_gpu_as_json(gpu) for gpu in gpus],
            "resources": [
                {
                    "name": resource.name,
                    "replicas": resource.largest_replica_count,
                    "devices": [device.id for device in resource.devices],
                }
                for resource in inventory.resources
            ],
        },
        indent=2,
    )


def _gpu_as_json(gpu: Gpu) -> dict[str, object]:
    mode = gpu.compute_mode
    words = {"state": gpu.state.value, "compute_mode": None if mode is None else mode.value}
    return {**asdict(gpu), **words}


def _as_text(gpus: Sequence[Gpu], inventory: Inventory) -> str:
    header = ("GPU", "UUID", "PRODUCT", "MEMORY", "PCI BUS", "NUMA", "STATE")
    lines = table(header, [row for gpu in gpus for row in _rows(gpu)])
    lines.append("")
    for resource in inventory.resources:
        lines.append(f"advertised: {resource.name}, {_amount(resource)}")
        first, last = resource.devices[0].id, resource.devices[-1].id
        lines.append(f"            {first} to {last}" if first != last else f"            {first}")
    if not inventory.resources:
        lines.append("advertised: nothing, for there is no GPU")
    lines.extend(f"note: {note}" for note in inventory.notes)
    return "\n".join(lines)


def _rows(gpu: Gpu) -> list[tuple[str, ...]]:
    numa_node = "-" if gpu.numa_node is None else str(gpu.numa_node)
    memory = "-" if gpu.memory_bytes is None else gib(gpu.memory_bytes)
    whole = (gpu.uuid, gpu.product, memory, gpu.pci_bus_id, numa_node, gpu.state.value)
    parts = [
        (
            f"{gpu.index}:{mig.index}",
            mig.uuid,
            f"MIG {mig.profile}",
            gib(mig.memory_bytes),
            "",
            "",
            "",
        )
        for mig in gpu.mig_devices
    ]
    return [(str(gpu.index), *whole), *parts]


def _amount(resource: Resource) -> str:
    count = len(resource.devices)
    devices = "1 device" if count == 1 else f"{count} devices"
    replicas = sorted(Counter(device.uuid for device in resource.devices).values())
    if not resource.shared:
        return f"{devices}, not shared"
    each = str(replicas[0]) if replicas[0] == replicas[-1] else f"{replicas[0]} to {replicas[-1]}"
    return f"{devices}, {each} replicas per GPU"
