"""One ConfigMap, several nodes: the node's label chooses its configuration."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import Node, Plugin, eventually
from tests.e2e.nodeapi import NodeApi

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NODE = "gpu-node-1"


def replicas(count: int) -> str:
    return (
        "version: v1\nsharing: {timeSlicing: {resources: "
        f"[{{name: nvidia.com/gpu, replicas: {count}}}]}}}}\n"
    )


class Cluster:
    """A kubelet, an API server and a ConfigMap with configurations of 2, 4 and 6 replicas."""

    def __init__(self, node: Node, api: NodeApi, folder: Path) -> None:
        self.node = node
        self.api = api
        self.map = folder / "configs"
        self.map.mkdir()
        for name, count in (("two", 2), ("four.yaml", 4), ("default", 6)):
            (self.map / name).write_text(replicas(count))
        self._env = {
            **os.environ,
            "KUBECONFIG": str(api.kubeconfig(folder)),
            "NODE_NAME": NODE,
            "NO_PROXY": "127.0.0.1",
        }

    def plugin(self, *arguments: str) -> Plugin:
        given = ("--backend", "sim", "--config-map-dir", str(self.map))
        return Plugin(*given, *self.node.at, *arguments, env=self._env)

    def wait_replicas(self, count: int) -> None:
        self.node.wait_allocatable(8 * count)


@pytest.fixture
def cluster(node: Node, tmp_path: Path) -> Iterator[Cluster]:
    with NodeApi(NODE) as api, node.start_kubelet():
        yield Cluster(node, api, tmp_path)


def test_the_label_chooses_and_is_followed(cluster: Cluster) -> None:
    cluster.api.label("two")
    with cluster.plugin() as plugin:
        cluster.wait_replicas(2)
        assert "devices healthy" in plugin.get("/ready")[1]
        assert "6 replicas" not in plugin.output
        cluster.api.label("four")
        cluster.wait_replicas(4)
        (cluster.map / "four.yaml").write_text(replicas(3))
        cluster.wait_replicas(3)
        cluster.api.label(None)
        cluster.wait_replicas(6)
        assert plugin.stop() == 0, plugin.output


@pytest.mark.slow
def test_an_unknown_name_changes_nothing_until_it_is_there(cluster: Cluster) -> None:
    cluster.api.label("two")
    with cluster.plugin() as plugin:
        cluster.wait_replicas(2)
        cluster.api.label("seven")
        plugin.says("names 'seven', and the files are: default, four.yaml, two")
        cluster.wait_replicas(2)
        (cluster.map / "seven").write_text(replicas(7))
        cluster.wait_replicas(7)


def test_a_node_with_an_unknown_name_begins_as_one_without(cluster: Cluster) -> None:
    cluster.api.label("nonsense")
    with cluster.plugin("--default-config", "four") as plugin:
        cluster.wait_replicas(4)
        assert "begins as if it had no label" in plugin.output
        cluster.api.label("two")
        cluster.wait_replicas(2)


def test_without_the_right_to_read_nodes_it_serves_and_says_so(cluster: Cluster) -> None:
    cluster.api.refuse = 403
    with cluster.plugin() as plugin:
        cluster.wait_replicas(6)
        plugin.says("needs get, list and watch on nodes")
        eventually(lambda: plugin.get("/ready")[0] == 503, "not ready without the label")
        cluster.api.label("two")
        cluster.api.refuse = 0
        cluster.wait_replicas(2)
        eventually(lambda: plugin.get("/ready")[0] == 200, "ready with the label")


def test_a_node_without_a_name_is_told(cluster: Cluster) -> None:
    with cluster.plugin("--node-name", "") as plugin:
        assert plugin.exit_status() == 1
        assert "NODE_NAME" in plugin.output
