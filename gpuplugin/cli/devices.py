"""`gpuplugin devices`: the GPUs of this machine and what would be advertised of them."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from gpuplugin.cli.look import CannotLook, look
from gpuplugin.cli.text import gib, table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from gpuplugin.core.inventory import Inventory
    from hal import Gpu


def devices(parsed: argparse.Namespace) -> int:
    """Print them; 1 if the configuration or the driver cannot be used."""
    try:
        seen = look(parsed)
    except CannotLook as error:
        print(f"gpuplugin: {error}", file=sys.stderr)
        return 1
    show = _as_json if parsed.json else _as_text
    print(show(seen.gpus, seen.inventory))
    return 0


def _as_json(gpus: Sequence[Gpu], inventory: Inventory) -> str:
    return json.dumps(
        {
            "gpus": [{**asdict(gpu), "state": gpu.state.value} for gpu in gpus],
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


def _as_text(gpus: Sequence[Gpu], inventory: Inventory) -> str:
    rows = [
        (
            str(gpu.index),
            gpu.uuid,
            gpu.product,
            gib(gpu.memory_bytes),
            gpu.pci_bus_id,
            "-" if gpu.numa_node is None else str(gpu.numa_node),
            gpu.state.value,
        )
        for gpu in gpus
    ]
    lines = table(("GPU", "UUID", "PRODUCT", "MEMORY", "PCI BUS", "NUMA", "STATE"), rows)
    lines.append("")
    for resource in inventory.resources:
        count = resource.largest_replica_count
        shared = f", {count} replicas per GPU" if resource.shared else ", not shared"
        lines.append(f"advertised: {resource.name}, {len(resource.devices)} devices{shared}")
        first, last = resource.devices[0].id, resource.devices[-1].id
        lines.append(f"            {first} to {last}" if first != last else f"            {first}")
    if not inventory.resources:
        lines.append("advertised: nothing, for there is no GPU")
    return "\n".join(lines)
