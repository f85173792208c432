"""Processes for end-to-end tests: plugin, kubelet stand-in and commands, as a user runs them."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from gpuplugin.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Command = Callable[..., subprocess.CompletedProcess[str]]

DEADLINE_S = 20.0
RESOURCE = "nvidia.com/gpu"


def eventually(condition: Callable[[], object], what: str, timeout_s: float = DEADLINE_S) -> None:
    """Wait until `condition` holds, or fail saying what did not come about."""
    deadline_s = time.monotonic() + timeout_s
    tick = threading.Event()
    while not condition():
        if time.monotonic() > deadline_s:
            pytest.fail(f"not so after {timeout_s:g} s: {what}")
        tick.wait(0.05)


class Process:
    """A `gpuplugin` command that runs in the background; its output is read as it comes.

    `under` is a program that runs it, with its arguments.
    """

    def __init__(
        self, *arguments: str, env: dict[str, str] | None = None, under: Sequence[str] = ()
    ) -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [*under, sys.executable, "-m", "gpuplugin", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                self.lines.append(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._process.poll() is None:
            self.signal(signal.SIGKILL)
        self._process.wait(DEADLINE_S)
        self._reader.join()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def exit_status(self) -> int:
        status = self._process.wait(DEADLINE_S)
        self._reader.join()
        return status

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.exit_status()

    def says(self, text: str) -> None:
        eventually(lambda: text in self.output or not self.running, f"output has {text!r}")
        assert text in self.output, self.output


class Plugin(Process):
    """`gpuplugin run`."""

    def __init__(
        self, *arguments: str, env: dict[str, str] | None = None, under: Sequence[str] = ()
    ) -> None:
        super().__init__("run", "--listen-address", "127.0.0.1:0", *arguments, env=env, under=under)

    @property
    def port(self) -> int:
        return http_port(self)

    def get(self, path: str) -> tuple[int, str]:
        return get(self.port, path)


def http_port(process: Process) -> int:
    """The port that a plugin listens on, from its log."""
    process.says("event=http port=")
    found = re.search(r"event=http port=(\d+)", process.output)
    assert found
    return int(found[1])


def get(port: int, path: str) -> tuple[int, str]:
    """Status and body of an answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def gpuplugin(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "gpuplugin", *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S * 2,
        check=False,
    )


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """As `gpuplugin`, but in this process: for many arguments where some were tried as a user does.

    To start a process costs half a second of processor time.
    """

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            status = main(arguments)
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
        output = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, status, output.out, output.err)

    return run


class Node:
    """A folder with a kubelet stand-in process, seen through the command line alone."""

    def __init__(self, folder: Path) -> None:
        self.dir = folder
        self.at = ("--kubelet-dir", str(folder))

    def start_kubelet(self) -> Process:
        kubelet = Process("sim", "kubelet", *self.at)
        kubelet.says("kubelet serves")
        eventually((self.dir / "sim-kubelet.sock").exists, "the kubelet's control socket")
        return kubelet

    def wait_allocatable(self, count: int) -> dict[str, Any]:
        result = gpuplugin(
            *("sim", "node", "show", *self.at, "--json"),
            *("--wait", f"{RESOURCE}={count}", "--timeout", str(DEADLINE_S)),
        )
        assert result.returncode == 0, result.stderr
        amounts: dict[str, Any] = json.loads(result.stdout)["resources"][RESOURCE]
        return amounts

    def create(self, name: str, count: int = 1) -> dict[str, Any]:
        result = gpuplugin(
            "sim", "pod", "create", name, *self.at, "--limit", f"{RESOURCE}={count}", "--json"
        )
        assert result.stdout, result.stderr
        pod: dict[str, Any] = json.loads(result.stdout)
        return pod

    def inject(self, *arguments: str) -> str:
        result = gpuplugin("sim", "inject", *self.at, *arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout


@pytest.fixture
def node() -> Iterator[Node]:
    """An empty folder with a short path, as unix sockets need."""
    folder = Path(tempfile.mkdtemp(prefix="gp"))
    yield Node(folder)
    shutil.rmtree(folder)
