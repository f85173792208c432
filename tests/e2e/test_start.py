"""Starts: everything that serves is loaded before it serves, so no start ends with half of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.machine import resident_mib
from sim.apiserver import ApiServer
from tests.component.cluster import over_tls, wipe
from tests.component.dranode import NODE, DraNode, dra_flags
from tests.e2e.conftest import Node, Plugin, eventually
from tests.e2e.served import ServedNode

if TYPE_CHECKING:
    from collections.abc import Iterator

STARTS = 50
BUSY_PROCESSES = 3


@pytest.mark.parametrize(
    ("engine", "registration"),
    [
        ("fast", "watcher"),
        pytest.param("fast", "classic", marks=pytest.mark.slow),
        pytest.param("grpcio", "watcher", marks=pytest.mark.slow),
        pytest.param("grpcio", "classic", marks=pytest.mark.slow),
    ],
)
def test_nothing_is_imported_once_it_serves(node: Node, engine: str, registration: str) -> None:
    with ServedNode(node.dir) as served, node.start_kubelet():
        arguments = ("--rpc-engine", engine, "--registration", registration)
        env = {**served.env, "PYTHONPROFILEIMPORTTIME": "1"}
        with Plugin("--backend", "nvml", *node.at, *arguments, env=env) as plugin:
            node.wait_allocatable(80)
            assert node.create("pod")["phase"] == "Running"
            for path in ("/health", "/ready", "/metrics", "/"):
                assert plugin.get(path)[0] == 200
            assert plugin.stop() == 0
        assert "import time:" in plugin.output, "what is imported is not shown"
        _, _, serving = plugin.output.partition("event=http")
        assert re.findall(r"import time:.*\| +(\S+)", serving) == []


@pytest.mark.slow
@pytest.mark.parametrize("way", ["file", "node", "node-feature"])
def test_with_labels_nothing_is_imported_once_it_serves(
    node: Node, tmp_path: Path, way: str
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"flags: {{gfd: {{outputFile: {tmp_path}/gfd}}}}\n")
    with ServedNode(node.dir) as served, ApiServer([NODE]) as server:
        env = {
            **served.env,
            "KUBECONFIG": str(server.kubeconfig(tmp_path)),
            "NODE_NAME": NODE,
            "GPUPLUGIN_NODE_LABELS": way,
            "PYTHONPROFILEIMPORTTIME": "1",
        }
        arguments = ("--backend", "nvml", *node.at, "--config-file", str(config))
        with Plugin(*arguments, env=env) as plugin:
            eventually(lambda: "labels are written" in plugin.output, "labels")
            assert plugin.stop() == 0
        assert "import time:" in plugin.output, "what is imported is not shown"
        _, _, serving = plugin.output.partition("event=http")
        assert re.findall(r"import time:.*\| +(\S+)", serving) == []


MAX_DRA_RSS_MIB = 60


@pytest.mark.parametrize(
    "tls",
    [pytest.param(False, id="http"), pytest.param(True, id="tls", marks=pytest.mark.slow)],
)
def test_with_dra_nothing_is_imported_once_it_serves_and_memory_is_bounded(
    node: Node, tmp_path: Path, tls: bool
) -> None:
    """The client for the API server is loaded before, whatever asyncio was loaded without."""
    with ServedNode(node.dir) as served, ApiServer([NODE]) as server:
        kubeconfig = server.kubeconfig(tmp_path)
        if tls:
            over_tls(server, kubeconfig)
        flags = [text for flag in dra_flags(node.dir).items() for text in flag]
        env = {**served.env, "KUBECONFIG": str(kubeconfig), "PYTHONPROFILEIMPORTTIME": "1"}
        arguments = ("--backend", "nvml", *node.at, *flags)
        with Plugin(*arguments, env=env) as plugin:
            dra = DraNode(node.dir, server)
            device = dra.device(0)
            with dra.connect() as kubelet, kubelet.health() as stream:
                assert len(stream.next()) == len(dra.devices())
                for _ in range(20):
                    claim = dra.allocate(device)
                    kubelet.prepared(claim)
                    assert kubelet.unprepare(claim) == {claim.uid: ""}
                wipe(server)
                eventually(dra.devices, "the slices are back")
            for path in ("/health", "/ready", "/metrics", "/"):
                assert plugin.get(path)[0] == 200
            assert resident_mib([plugin.pid]) < MAX_DRA_RSS_MIB
            assert plugin.stop() == 0
        _, _, serving = plugin.output.partition("event=http")
        assert re.findall(r"import time:.*\| +(\S+)", serving) == []


# In a process that was forked, as the reader of the configuration is: it waits for the file.
WAITING = """
import os, time

def wait():
    parent = os.getppid()
    while not os.path.exists(os.environ["GO_ON"]) and os.getppid() == parent:
        time.sleep(0.01)

os.register_at_fork(after_in_child=wait)
"""


@contextmanager
def starting(node: Node, folder: Path) -> Iterator[tuple[Plugin, Path]]:
    """A plugin whose configuration is being read, until the file is made."""
    (folder / "sitecustomize.py").write_text(WAITING)
    go_on = folder / "go-on"
    env = os.environ | {"PYTHONPATH": str(folder), "GO_ON": str(go_on)}
    with Plugin("--backend", "sim", *node.at, env=env) as plugin:
        children = Path(f"/proc/{plugin.pid}/task/{plugin.pid}/children")
        eventually(lambda: children.read_text() or not plugin.running, "the reader has begun")
        yield plugin, go_on


def test_a_stop_while_it_starts_is_a_stop(node: Node, tmp_path: Path) -> None:
    with starting(node, tmp_path) as (plugin, _):
        assert plugin.stop() == 0
        assert "event=http" not in plugin.output, "it had started already"
    assert list(node.dir.rglob("*.sock")) == []


def test_a_request_to_reload_while_it_starts_does_no_harm(node: Node, tmp_path: Path) -> None:
    with starting(node, tmp_path) as (plugin, go_on):
        plugin.signal(signal.SIGHUP)
        go_on.touch()
        assert plugin.get("/health")[0] == 200
        assert plugin.stop() == 0


def test_a_crash_leaves_the_stacks_of_all_threads(node: Node) -> None:
    with Plugin("--backend", "sim", *node.at) as plugin:
        assert plugin.get("/health")[0] == 200
        plugin.signal(signal.SIGSEGV)
        assert plugin.exit_status() == -signal.SIGSEGV
        assert "Segmentation fault" in plugin.output
        assert "gpuplugin/daemon/http/server.py" in plugin.output


@pytest.fixture
def busy_machine() -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(BUSY_PROCESSES):
            process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("busy_machine")
def test_each_of_fifty_starts_under_load_serves_http(node: Node) -> None:
    with ServedNode(node.dir) as served:
        for _ in range(STARTS):
            with Plugin(
                *("--backend", "nvml", *node.at, "--metrics-interval", "1s"), env=served.env
            ) as plugin:
                assert plugin.get("/health")[0] == 200
                assert "gpuplugin_build_info" in plugin.get("/metrics")[1]
                assert plugin.stop() == 0
                assert "Traceback" not in plugin.output
