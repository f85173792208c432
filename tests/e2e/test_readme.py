"""A new user's first ten minutes: the README top to bottom in a fresh clone, as it is printed.

What needs a driver, a cluster or many minutes is listed with the reason, and checked elsewhere.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import eventually, get
from tests.e2e.test_commands import needs_no_driver

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
NODE = Path("/tmp/node")
PORT = 2112
STATUS = {
    "make demo": 0,
    "make install": 0,
    ". .venv/bin/activate": 0,
    "gpuplugin sim node show --kubelet-dir /tmp/node --wait nvidia.com/gpu=80": 0,
    "gpuplugin sim pod create trainer --kubelet-dir /tmp/node": 0,
    "gpuplugin sim pod create greedy --kubelet-dir /tmp/node --limit nvidia.com/gpu=2": 1,
    "gpuplugin sim inject --kubelet-dir /tmp/node --gpu 3 --xid 79": 0,
    "gpuplugin health --kubelet-dir /tmp/node": 1,
    "gpuplugin sim node show --kubelet-dir /tmp/node": 0,
    "gpuplugin sim inject --kubelet-dir /tmp/node --gpu 3 --recover": 0,
    "gpuplugin sim node restart --kubelet-dir /tmp/node": 0,
    "gpuplugin sim share --model a100-sxm4-80gb --clients 3 --busy-ms 88.15": 0,
    "gpuplugin sim run noisy-neighbour --html noisy.html": 0,
    "gpuplugin devices": 1,  # the message that there is no driver
    "gpuplugin config check config.yaml": 0,
    "gpuplugin doctor": 3,
}
"""Commands that end, with their exit status on a machine without a driver and kubelet."""

RUNNING = {
    "gpuplugin sim up noisy-neighbour --kubelet-dir /tmp/node": "Ctrl-C ends it.",
    "gpuplugin sim kubelet --kubelet-dir /tmp/node": "kubelet serves",
    "gpuplugin run --backend sim --kubelet-dir /tmp/node --listen-address 127.0.0.1:2112": (
        "event=http port=2112"
    ),
}
"""Commands that go on, with what they say once they do."""

ELSEWHERE = {
    "make test": "this is one of its tests",
    "gpuplugin run --config-file config.yaml": "needs a kubelet and root: tests/hardware",
    "kubectl label node NODE node-type=gpu": "needs a cluster",
    "kubectl apply -k deploy/kustomize/overlays/mine": "needs a cluster: tests/deploy",
    "kubectl describe nodes | grep nvidia.com/gpu": "needs a cluster",
    "kubectl apply -k deploy/workloads/time-slicing": "needs a cluster: tests/deploy",
    "kubectl apply -k deploy/kustomize/overlays/dra": "needs a cluster: tests/deploy",
    "kubectl apply -k deploy/workloads/dra": "needs a cluster: tests/deploy",
    "kubectl rollout status deployment/shares --timeout=2m": "needs a cluster: tests/deploy",
    "kubectl get resourceslices": "needs a cluster: tests/deploy",
    "kubectl get resourceclaims": "needs a cluster: tests/deploy",
    "gpuplugin bench --quick": "takes minutes: tests/e2e/test_bench.py",
}

COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"^```console\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]


def test_every_command_of_the_readme_is_known() -> None:
    assert sorted(COMMANDS) == sorted([*STATUS, *RUNNING, *ELSEWHERE])


class Terminal:
    """A shell; `STATUS N` follows each command that ends."""

    def __init__(self, folder: Path) -> None:
        self._shell = subprocess.Popen(
            ["bash", "--norc"],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"},
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self.output = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._shell.stdout is not None
        for line in self._shell.stdout:
            self.output += line
            self._lines.put(line)

    def type(self, command: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{command}\necho STATUS $?\n")
        self._shell.stdin.flush()

    def run(self, command: str, within_s: float = 400.0) -> tuple[int, str]:
        """Run a command to its end; its exit status and output."""
        self.type(command)
        said, deadline_s = "", time.monotonic() + within_s
        while (found := re.search(r"^STATUS (\d+)$", said, re.MULTILINE)) is None:
            said += self._lines.get(timeout=max(0.0, deadline_s - time.monotonic()))
        return int(found[1]), said

    def start(self, command: str) -> None:
        self.type(command)
        eventually(lambda: RUNNING[command] in self.output, f"{command}: {RUNNING[command]}")

    def end(self) -> None:
        """Ctrl-C for what runs in it, and close it."""
        os.killpg(self._shell.pid, signal.SIGINT)
        self._shell.communicate(timeout=20)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme") / "gpuplugin"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True, timeout=60)
    return folder


@pytest.fixture
def place() -> Iterator[None]:
    """The folder that the README names, empty before and after, and its port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", PORT))
        except OSError:
            pytest.skip(f"another process has port {PORT}, which the README names")
    shutil.rmtree(NODE, ignore_errors=True)
    yield
    shutil.rmtree(NODE, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_no_driver
@pytest.mark.usefixtures("place")
def test_the_readme_top_to_bottom(clone: Path) -> None:
    (configuration,) = re.findall(r"^```yaml\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    (clone / "config.yaml").write_text(configuration)
    terminals = [Terminal(clone)]
    try:
        for command in COMMANDS:
            if command in ELSEWHERE:
                continue
            if command in RUNNING:
                terminals.insert(0, Terminal(clone))
                assert terminals[0].run(". .venv/bin/activate")[0] == 0
                terminals[0].start(command)
                if " sim up " in command:
                    assert get(PORT, "/")[0] == 200
                    terminals.pop(0).end()
                continue
            status, said = terminals[-1].run(command)
            assert status == STATUS[command], f"{command}\n{said}"
            assert "Traceback" not in said, said
        assert (clone / "noisy.html").stat().st_size > 100_000
    finally:
        for terminal in terminals:
            terminal.end()
