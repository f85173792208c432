"""`gpuplugin cdi`: print the CDI specs that the plugin would write, or remove those it wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.cli.backends import CannotList, list_gpus
from gpuplugin.config.plans import injection_plan
from gpuplugin.daemon.plans import existing_nodes
from gpuplugin.daemon.serving.cdi import cdi_writer, present_features, remove_specs

if TYPE_CHECKING:
    import argparse


def show(parsed: argparse.Namespace) -> int:
    """Print every spec with its file name; 1 if the configuration or the driver cannot be used."""
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
