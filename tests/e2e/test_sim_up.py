"""`gpuplugin sim up` as a process: a whole node with pods at work, and its status page."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import termios
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from gpuplugin.cli.parser import build_parser
from tests.e2e.browser import browse, complaints, faults_of_layout
from tests.e2e.conftest import DEADLINE_S, Node, Process, eventually, get, gpuplugin, http_port

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
        top = json.loads(gpuplugin("top", *node.at, "--json").stdout)
        assert [(one["index"], one["state"]) for one in top["units"]] == [
            ("1", "Unhealthy"),
            ("0", "Healthy"),
        ]
        assert top["units"][0]["action"] == "Reboot the node"
        assert top["summary"] == "Ready, 1 of 2 usable"
        assert on_terminal(24, 80, "top", *node.at, "--interval", "0.2") == 0
        page = browse(f"http://127.0.0.1:{port}/", tmp_path / "profile")
        saved = tmp_path / "page.html"
        saved.write_text(get(port, "/")[1])
        assert up.stop() == 0, up.output
    text = re.sub(r"<[^>]+>", " ", page.stdout)
    for part in ("GPU 0", "GPU 1", "default/hungry-0", "over", "Unhealthy", "of 10 replicas"):
        assert part in text, part
    assert complaints(page) == []
    for scheme in ("light", "dark"):
        assert faults_of_layout(saved, tmp_path, scheme) == []


def test_a_node_with_dra(node: Node, tmp_path: Path) -> None:
    file = tmp_path / "shared.yaml"
    file.write_text(SCENARIO)
    with Process(
        "sim", "up", str(file), *node.at, "--dra", "--listen-address", "127.0.0.1:0"
    ) as up:
        http_port(up)

        def show() -> dict[str, list[dict[str, object]]]:
            shown: dict[str, list[dict[str, object]]] = json.loads(
                gpuplugin("sim", "node", "show", *node.at, "--json").stdout
            )
            return shown

        stays = {"modest-0", "modest-1", "modest-2", "hungry-0"}
        eventually(
            lambda: {pod["name"] for pod in show()["pods"] if pod["phase"] == "Running"} == stays,
            "pods of the scenario, without the one that is brief",
        )
        assert sum(int(str(one["taken"])) for one in show()["offered"]) == 4
        assert gpuplugin("sim", "pod", "create", "one", *node.at).returncode == 0
        node.inject("--gpu", "1", "--xid", "79")
        eventually(lambda: any(one["taints"] for one in show()["offered"]), "a taint")
        table = gpuplugin("sim", "node", "show", *node.at).stdout
        assert "gpu.gpuplugin.dev/xid=79:NoSchedule" in table
        assert gpuplugin("sim", "pod", "delete", "one", *node.at).returncode == 0
        eventually(lambda: len(show()["pods"]) == 4, "the end of a pod with a claim")
        assert up.stop() == 0, up.output
    assert "KUBECONFIG=" in up.output


def test_a_kubelet_with_dra_beside_a_plugin_of_its_own(node: Node) -> None:
    environment = {"KUBECONFIG": str(node.dir / "kubeconfig"), "NO_PROXY": "127.0.0.1"}
    flags = ("--allocation", "dra", "--node-name", "simulated", "--cdi-root", str(node.dir / "cdi"))
    with Process("sim", "kubelet", *node.at, "--dra", "--pod", "one=nvidia.com/gpu:1") as kubelet:
        kubelet.says("kubelet serves")
        with Process(
            "run", "--backend", "sim", *node.at, *flags, "--listen-address", "127.0.0.1:0",
            env={**os.environ, **environment},
        ):  # fmt: skip
            kubelet.says("default/one Running")


def on_terminal(lines: int, columns: int, *arguments: str) -> int:
    """Run `gpuplugin top` on a terminal until it has drawn a second time; its exit status."""
    main, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (lines, columns))
    with subprocess.Popen(
        [sys.executable, "-m", "gpuplugin", *arguments], stdin=terminal, stdout=terminal,
        stderr=terminal, start_new_session=True, env={**os.environ, "TERM": "xterm"},
    ) as top:  # fmt: skip
        os.close(terminal)
        drawn = b""
        while drawn.count(b"gpuplugin on ") < 2:
            drawn += os.read(main, 65_536)
        top.send_signal(signal.SIGINT)
        try:
            while os.read(main, 65_536):
                pass
        except OSError:  # the other side is closed
            pass
        except BaseException:  # it goes on: the end of the block would wait for it for ever
            top.kill()
            raise
        os.close(main)
        status = top.wait(DEADLINE_S)
    for text in ("GPU 1: Xid 79", "Reboot the node", "default/hungry-0"):
        assert text.encode() in drawn, text
    return status


def test_top_without_a_plugin_says_where_it_looked(node: Node) -> None:
    result = gpuplugin("top", *node.at)
    assert result.returncode == 1
    assert "no plugin runs here" in result.stderr


def test_a_scenario_that_cannot_be_used_is_told(node: Node) -> None:
    result = gpuplugin("sim", "up", "no-such-scenario", *node.at)
    assert result.returncode == 1
    assert "shipped scenarios: default" in result.stderr


def test_the_page_is_announced_when_it_is_there_and_not_before(node: Node) -> None:
    with Process("sim", "up", "homelab", *node.at, "--listen-address", "127.0.0.1:0") as up:
        up.says("Ctrl-C ends it.")
        page = re.search(r"look at http://127\.0\.0\.1:(\d+)/", up.output)
        assert page
        assert get(int(page[1]), "/")[0] == 200
        commands = [line.strip() for line in up.lines if line.startswith("  gpuplugin ")]
        assert len(commands) == 5
        for command in commands:
            assert build_parser().parse_args(shlex.split(command)[1:]).function
        assert gpuplugin(*shlex.split(commands[0])[1:]).returncode == 0
        taken = ("--listen-address", f"127.0.0.1:{page[1]}")
        result = gpuplugin("sim", "up", "homelab", "--kubelet-dir", str(node.dir / "x"), *taken)
        assert result.returncode == 1
        assert "look at" not in result.stdout
        assert "cannot listen on" in result.stdout + result.stderr
