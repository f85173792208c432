"""`gpuplugin sim up` as a process: a whole node with pods at work, and its status page."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.browser import browse, complaints
from tests.e2e.conftest import Node, Process, eventually, get, gpuplugin, http_port

if TYPE_CHECKING:
    from pathlib import Path

SCENARIO = """
name: shared
gpus: [{model: a100-sxm4-80gb, count: 2}]
pods:
  - {name: modest, count: 3, workload: {kind: closed-loop, busy_ms: 5}, memory: {start_gib: 2}}
  - {name: hungry, workload: {kind: closed-loop, busy_ms: 20}, memory: {start_gib: 50}}
  - name: brief
    lifetime_s: 0.5
    workload: {kind: closed-loop, busy_ms: 5}
"""


def memory_by_pod(port: int) -> dict[str, float]:
    return {
        sample.labels["pod"]: sample.value
        for family in text_string_to_metric_families(get(port, "/metrics")[1])
        for sample in family.samples
        if sample.name == "gpuplugin_pod_memory_bytes"
    }


def test_a_node_with_pods_at_work_and_a_page_that_names_them(node: Node, tmp_path: Path) -> None:
    file = tmp_path / "shared.yaml"
    file.write_text(SCENARIO)
    with Process("sim", "up", str(file), *node.at, "--listen-address", "127.0.0.1:0") as up:
        port = http_port(up)
        names = {"modest-0", "modest-1", "modest-2", "hungry-0"}
        eventually(lambda: set(memory_by_pod(port)) == names, "memory of the pods that stay")
        node.inject("--gpu", "1", "--xid", "79")
        eventually(lambda: "Xid 79" in get(port, "/")[1], "the fault on the page")
        pods = json.loads(gpuplugin("sim", "pod", "list", *node.at, "--json").stdout)["pods"]
        assert {pod["name"] for pod in pods} >= names
        page = browse(f"http://127.0.0.1:{port}/", tmp_path / "profile", "--window-size=390,900")
        assert up.stop() == 0, up.output
    text = re.sub(r"<[^>]+>", " ", page.stdout)
    for part in ("GPU 0", "GPU 1", "default/hungry-0", "over", "Unhealthy", "of 10 replicas"):
        assert part in text, part
    assert complaints(page) == []


def test_a_scenario_that_cannot_be_used_is_told(node: Node) -> None:
    result = gpuplugin("sim", "up", "no-such-scenario", *node.at)
    assert result.returncode == 1
    assert "shipped scenarios: default" in result.stderr
