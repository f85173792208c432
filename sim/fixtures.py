"""Fixtures of pytest for projects that use GPUs: a kubelet, the plugin, and a node of both.

They come with the distribution gpuplugin-sim, without a GPU and without a cluster:

    def test_two_pods_share_a_gpu(gpu_node):
        first, second = (gpu_node.run_pod(name) for name in ("first", "second"))
        assert first.phase == second.phase == "Running"
        gpu_node.inject({"kind": "xid", "xid": 79}, gpu=0)
        gpu_node.wait_for(70)

`@pytest.mark.gpu_node(scenario=..., config=...)` chooses another node or configuration.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sim.kubelet import Kubelet, NodeView, PodStatus

RESOURCE = "nvidia.com/gpu"
WAIT_S = 20.0
_MARK = "gpu_node"
_POLL_S = 0.05
_PORT = re.compile(r"event=http port=(\d+)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{_MARK}(scenario='default', config=None): of the fixtures of gpuplugin-sim: a shipped "
        "scenario or a file, and the text of a configuration",
    )


def _read(url: str) -> bytes:
    # Every pytest beside which this is installed loads this module: it loads little.
    from urllib.request import urlopen

    with urlopen(url, timeout=WAIT_S) as response:  # noqa: S310 - an address of this machine
        body: bytes = response.read()
    return body


class GpuPlugin:
    """`gpuplugin run` on simulated GPUs, as a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: list[str] = []
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="gpu-plugin", daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        """What it logged so far."""
        with self._more:
            return "".join(self._lines)

    @property
    def url(self) -> str:
        """Where /metrics, /health, /ready and the status page are; waits until it is served."""
        with self._more:
            self._more.wait_for(lambda: self._port() or not self._reader.is_alive(), WAIT_S)
        port = self._port()
        if not port:
            raise AssertionError(f"the plugin serves no HTTP; it logged:\n{self.output}")
        return f"http://127.0.0.1:{port}"

    def wait_until_ready(self, timeout_s: float = WAIT_S) -> None:
        """Until the kubelet has all its resources; raises AssertionError with what it logged."""
        deadline_s = time.monotonic() + timeout_s
        pause = threading.Event()
        while self._reader.is_alive() and time.monotonic() < deadline_s:
            with suppress(OSError):
                _read(f"{self.url}/ready")
                return
            pause.wait(_POLL_S)
        raise AssertionError(f"the plugin is not ready; it logged:\n{self.output}")

    def metrics(self) -> str:
        """/metrics as Prometheus gets it."""
        return _read(f"{self.url}/metrics").decode()

    def stop(self) -> int:
        """End it as Kubernetes does, by SIGTERM; returns its exit status."""
        self._process.terminate()
        status = self._process.wait(WAIT_S)
        self._reader.join()
        return status

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def _port(self) -> str:
        found = _PORT.search("".join(self._lines))
        return found[1] if found else ""

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        with self._process.stdout as stream:
            for line in stream:
                with self._more:
                    self._lines.append(line)
                    self._more.notify_all()
        with self._more:
            self._more.notify_all()


class GpuNode:
    """A kubelet with the plugin: pods get simulated GPUs."""

    def __init__(self, kubelet: Kubelet, plugin: GpuPlugin) -> None:
        self.kubelet = kubelet
        self.plugin = plugin

    def run_pod(
        self, name: str, gpus: int = 1, resource: str = RESOURCE, timeout_s: float = WAIT_S
    ) -> PodStatus:
        """Create a pod of one container, and return what became of it.

        A pod that has to wait for a GPU is `Pending`; one that was refused is `Failed`, with
        reason and message. Raises `TimeoutError`.
        """
        from sim.kubelet import simple_pod

        return self.kubelet.run_pod(simple_pod(name, {resource: gpus}), timeout_s)

    def delete_pod(self, name: str) -> None:
        self.kubelet.delete_pod(name)

    def allocatable(self, resource: str = RESOURCE) -> int:
        return self.kubelet.view().allocatable(resource)

    def wait_for(
        self, allocatable: int, resource: str = RESOURCE, timeout_s: float = WAIT_S
    ) -> NodeView:
        """Wait until as many devices are allocatable; raises `TimeoutError` with what there is."""
        return self.kubelet.wait_until(
            lambda node: node.allocatable(resource) == allocatable, timeout_s
        )

    def inject(self, fault: Mapping[str, object], gpu: int | str | None = None) -> None:
        """Let a fault happen, written as in a scenario; None for one of the whole node.

        Raises `ControlError` for what cannot be.
        """
        from sim.node.control import control_socket, inject

        inject(control_socket(self.kubelet.dir), None if gpu is None else str(gpu), fault)


@pytest.fixture
def kubelet() -> Iterator[Kubelet]:
    """A kubelet that serves a folder, `kubelet.dir`, to which device plugins may be given.

    The folder is not below `tmp_path`, whose names may be too long for sockets.
    """
    from sim.kubelet import Kubelet

    folder = Path(tempfile.mkdtemp(prefix="gp"))
    try:
        with Kubelet(folder) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def gpu_plugin(kubelet: Kubelet, request: pytest.FixtureRequest) -> Iterator[GpuPlugin]:
    """The plugin, registered with the kubelet."""
    mark = request.node.get_closest_marker(_MARK)
    wanted: dict[str, str] = {} if mark is None else dict(mark.kwargs)
    arguments = ["--scenario", wanted.pop("scenario", "default")]
    if (config := wanted.pop("config", None)) is not None:
        path = kubelet.dir / "config.yaml"
        path.write_text(config)
        arguments += ["--config-file", str(path)]
    if wanted or (mark is not None and mark.args):
        raise pytest.UsageError(f"{_MARK} takes scenario= and config=, not {mark!r}")
    with _running(kubelet.dir, arguments) as plugin:
        plugin.wait_until_ready()
        yield plugin


@pytest.fixture
def gpu_node(kubelet: Kubelet, gpu_plugin: GpuPlugin) -> GpuNode:
    """A node with simulated GPUs: eight, each of which ten pods can share, if not marked."""
    return GpuNode(kubelet, gpu_plugin)


@contextmanager
def _running(folder: Path, arguments: Sequence[str]) -> Iterator[GpuPlugin]:
    command = [sys.executable, "-m", "gpuplugin", "run", "--backend", "sim"]
    command += ["--kubelet-dir", str(folder), "--listen-address", "127.0.0.1:0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    plugin = GpuPlugin(process)
    try:
        yield plugin
    finally:
        plugin.kill()
