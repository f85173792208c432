"""`gpuplugin cdi`: look at the CDI specs that the plugin would write, or remove those it wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.cli.backends import BackendError, make_backend
from gpuplugin.cli.options import load
from gpuplugin.config.load import ConfigError
from gpuplugin.config.plans import injection_plan, inventory_plan
from gpuplugin.core.inventory import InventoryError, build_inventory
from gpuplugin.daemon.cdifiles import cdi_writer, remove_specs
from gpuplugin.daemon.plans import existing_nodes
from hal import HalError

if TYPE_CHECKING:
    import argparse


def show(parsed: argparse.Namespace) -> int:
    """Print every spec with its file name; 1 if the configuration or the driver cannot be used."""
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
        return _fail(error)
    plan = injection_plan(settings, existing_nodes(settings))
    print(json.dumps(cdi_writer(settings, plan).specs(inventory), indent=2))
    return 0


def remove(parsed: argparse.Namespace) -> int:
    """Remove the plugin's specs; 1 if a file cannot be removed."""
    try:
        removed = remove_specs(Path(parsed.cdi_root))
    except OSError as error:
        return _fail(error)
    for path in removed:
        print(f"removed {path}")
    return 0


def _fail(error: Exception) -> int:
    print(f"gpuplugin: {error}", file=sys.stderr)
    return 1
