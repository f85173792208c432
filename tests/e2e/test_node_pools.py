"""One folder of scenarios for several pools of simulated nodes: a node's label chooses."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from sim.node.pools import SCENARIO_LABEL, scenario_of_node
from sim.node.scenario import ScenarioError
from tests.e2e.conftest import gpuplugin
from tests.e2e.nodeapi import NodeApi

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NODE = "gpu-node-1"


@pytest.fixture
def pools(tmp_path: Path) -> str:
    folder = tmp_path / "scenarios"
    folder.mkdir()
    (folder / "inference.yaml").write_text("name: small\ngpus: [{model: l4, count: 2}]\n")
    (folder / "default").write_text("name: usual\ngpus: [{model: t4}]\n")
    return str(folder)


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NodeApi]:
    with NodeApi(NODE, name=SCENARIO_LABEL) as api:
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path)))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield api


@pytest.mark.parametrize(
    ("label", "name"), [("inference", "small"), (None, "usual"), ("mig", "mig")]
)
def test_the_label_names_a_file_of_the_folder_or_a_shipped_scenario(
    pools: str, api: NodeApi, label: str | None, name: str
) -> None:
    api.label(label)

    assert scenario_of_node(pools, NODE).name == name


@pytest.mark.slow
def test_commands_list_the_gpus_of_the_pool(pools: str, api: NodeApi) -> None:
    api.label("inference")
    uuids = []
    for name in (NODE, NODE, "gpu-node-2"):
        api.node = name
        done = gpuplugin(
            *("devices", "--backend", "sim", "--scenario", pools, "--node-name", name, "--json")
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("NVIDIA L4") >= 2
        uuids.append(set(re.findall(r"GPU-[0-9a-f-]{36}", done.stdout)))
    assert uuids[0] == uuids[1]
    assert not uuids[0] & uuids[2]


def test_a_label_that_names_nothing_is_refused_with_what_there_is(pools: str, api: NodeApi) -> None:
    api.label("inferense")

    with pytest.raises(ScenarioError) as refused:
        scenario_of_node(pools, NODE)

    for part in (SCENARIO_LABEL, "'inferense'", "inference.yaml", "noisy-neighbour"):
        assert part in str(refused.value)


def test_without_the_right_to_read_nodes_the_text_names_it(pools: str, api: NodeApi) -> None:
    api.refuse = 403

    with pytest.raises(ScenarioError, match="needs get, list and watch on nodes"):
        scenario_of_node(pools, NODE)


def test_a_folder_needs_the_nodes_name(pools: str) -> None:
    with pytest.raises(ScenarioError, match="NODE_NAME"):
        scenario_of_node(pools, "")
