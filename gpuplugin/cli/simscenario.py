"""`gpuplugin sim scenario`: the shipped scenarios, checking one's own, and the schema."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from gpuplugin.cli.text import table
from sim.node.scenario import Scenario, ScenarioError, load_scenario, scenario_names

if TYPE_CHECKING:
    import argparse


def listing(_parsed: argparse.Namespace) -> int:
    """Print the shipped scenarios with what they are about."""
    rows = [(name, " ".join(load_scenario(name).description.split())) for name in scenario_names()]
    print("\n".join(table(("SCENARIO", "WHAT IT IS ABOUT"), rows)))
    return 0


def check(parsed: argparse.Namespace) -> int:
    """Check a scenario and say what it is; 1 if it cannot be used."""
    try:
        scenario = load_scenario(parsed.scenario)
    except ScenarioError as error:
        print(f"gpuplugin: {error}", file=sys.stderr)
        return 1
    pods = sum(group.count for group in scenario.pods if group.arrivals_per_hour is None)
    streams = sum(group.arrivals_per_hour is not None for group in scenario.pods)
    print(
        f"{scenario.name}: {scenario.gpu_count} GPUs, {len(scenario.tenants)} tenants, {pods} pods "
        f"and {streams} streams of pods, {len(scenario.faults)} timed faults, "
        f"{len(scenario.failures)} kinds of failures"
    )
    return 0


def schema(_parsed: argparse.Namespace) -> int:
    """Print the JSON schema of scenarios, for editors and other programs."""
    print(json.dumps(Scenario.model_json_schema(), indent=2))
    return 0
