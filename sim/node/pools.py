"""One folder of scenarios for a cluster: a label of the node chooses which of them it simulates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from gpuplugin.config.loaded import ConfigError
from gpuplugin.core.nodechoice import LabelUnreadable, UnknownName, choose
from gpuplugin.daemon.cluster.nodeconfig import config_names
from sim.node.scenario import ScenarioError, load_scenario, scenario_names

if TYPE_CHECKING:
    from sim.node.scenario import Scenario

SCENARIO_LABEL: Final = "gpuplugin.dev/scenario"


def scenario_of_node(scenario: str, node: str) -> Scenario:
    """The scenario of a node: a file, a shipped one, or of a folder what the node's label names.

    A label names a file of the folder, else a shipped scenario. A node without the label has the
    file `default` of the folder, or its only file.

    Raises:
        ScenarioError: nothing chooses, it cannot be used, or the label cannot be read.
    """
    folder = Path(scenario)
    if scenario in scenario_names() or not folder.is_dir():
        return load_scenario(scenario)
    label = _label(scenario, node)
    try:
        files = config_names(folder)
        chosen = choose(label, "", files, SCENARIO_LABEL)
    except ConfigError as error:
        raise ScenarioError(str(error)) from error
    except UnknownName as error:
        if label in scenario_names():
            return load_scenario(label)
        shipped = ", ".join(scenario_names())
        raise ScenarioError(f"{folder}: {error}; shipped scenarios: {shipped}") from error
    if chosen is None:
        raise ScenarioError(
            f"{folder} has no file 'default', and node {node} has no label {SCENARIO_LABEL}: set "
            "the label, or add the file"
        )
    return load_scenario(str(folder / chosen))


def _label(folder: str, node: str) -> str | None:
    """The node's label; raises `ScenarioError` where it cannot be read."""
    why = f"--scenario {folder} is a folder: the node's label {SCENARIO_LABEL} chooses a file"
    if not node:
        raise ScenarioError(f"{why}: set NODE_NAME or --node-name")
    try:
        from gpuplugin.daemon.cluster.kubeapi import NoCluster, NodeLabel
    except ImportError as error:
        raise ScenarioError(f"{why}: {error}: pip install 'gpuplugin[kubernetes]'") from error
    try:
        return NodeLabel(node, SCENARIO_LABEL).read()
    except (NoCluster, LabelUnreadable) as error:
        raise ScenarioError(f"{why}: {error}") from error
