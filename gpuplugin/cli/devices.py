"""`gpuplugin devices`: the GPUs of this machine and what would be advertised of them."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from gpuplugin.cli.backends import BackendError, make_backend
from gpuplugin.cli.options import load
from gpuplugin.cli.text import gib, table
from gpuplugin.config.load import ConfigError
from gpuplugin.config.plans import inventory_plan
from gpuplugin.core.inventory import Inventory, InventoryError, build_inventory
from hal import Gpu, HalError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def devices(parsed: argparse.Namespace) -> int:
    """Print them; 1 if the configuration or the driver cannot be used."""
    try:
        settings = load(parsed).settings
        with make_backend(settings, control=False) as backend:
            backend.open()
            try:
                gpus = backend.gpus()
            finally:
                backend.close()
        inventory = build_inventory(gpus, inventory_plan(settings))
    except (ConfigError, BackendError, HalError, InventoryError) as error:
        print(f"gpuplugin: {error}", file=sys.stderr)
        return 1
    text = _as_json(gpus, inventory) if parsed.json else _as_text(gpus, inventory)
    print(text)
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
