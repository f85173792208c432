"""Fixtures: short folders, a kubelet stand-in, daemons and simulated GPUs that are cleaned up."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from gpuplugin.core.pacing import Backoff
from sim.apiserver import ApiServer
from sim.kubelet import Kubelet
from tests.component.dranode import NODE, DraNode
from tests.component.following import Followed
from tests.component.running import Hardware, PluginProcess, settings_for
from tests.component.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hal import Backend
    from tests.component.following import Follow

BOTH_WAYS = ("watcher", "classic")


class StartPlugin(Protocol):
    """Starts a daemon that is stopped when the test ends."""

    def __call__(
        self,
        backend: Backend,
        registration: str = "watcher",
        flags: Mapping[str, str] | None = None,
        *,
        config_file: Path | None = None,
    ) -> PluginProcess: ...


class MakeHardware(Protocol):
    """Makes a simulated node whose clock is stopped when the test ends."""

    def __call__(self, count: int = 8, **scenario: object) -> Hardware: ...


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """An API server with the node of `node`."""
    with ApiServer([NODE]) as server:
        yield server


@pytest.fixture
def node(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[DraNode]:
    """A node for DRA; who looks for the cluster finds the server."""
    folder = Path(tempfile.mkdtemp(prefix="gp"))
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(folder)))
    yield DraNode(folder, server)
    shutil.rmtree(folder)


@pytest.fixture(autouse=True, scope="module")
def quick_polls() -> Iterator[None]:
    """Both sides look and try again sooner than in earnest, so that tests wait less."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sim.kubelet.registration.POLL_S", 0.05)
        patch.setattr("gpuplugin.daemon.serving.endpoint.POLL_S", 0.05)
        patch.setattr("gpuplugin.daemon.serving.endpoint.STREAM_GRACE_S", 1.0)
        patch.setattr(
            "gpuplugin.core.watch.Backoff",
            lambda first_s, cap_s: Backoff(first_s / 10, cap_s / 10),
        )
        yield


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder with a short path: a unix socket's path may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="gp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def kubelet_dir() -> Iterator[Path]:
    """The kubelet's folder of one test."""
    with short_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def lone_hardware() -> Iterator[Hardware]:
    """Eight GPUs that no fault is injected into, for all tests of a module."""
    hardware = Hardware(8)
    yield hardware
    hardware.stop()


@pytest.fixture(scope="module")
def lone_plugin(lone_hardware: Hardware) -> Iterator[PluginProcess]:
    """A plugin that no kubelet knows, for tests that only ask: they leave no trace in it."""
    with short_folder() as folder:
        settings = settings_for(folder, {"--registration": "none"})
        with PluginProcess(settings, lone_hardware.backend) as plugin:
            eventually(plugin.sockets)
            eventually(lambda: plugin.ready)
            yield plugin


@pytest.fixture
def kubelet(kubelet_dir: Path) -> Iterator[Kubelet]:
    """A kubelet stand-in that runs."""
    with Kubelet(kubelet_dir) as running:
        yield running


one_way_unless_slow = pytest.mark.parametrize(
    "registration", ["watcher", pytest.param("classic", marks=pytest.mark.slow)]
)
"""For tests that take long, of what the way of registration has little to do with."""


@pytest.fixture(params=BOTH_WAYS)
def registration(request: pytest.FixtureRequest) -> str:
    """Each way of registration in turn."""
    way: str = request.param
    return way


@pytest.fixture
def make_hardware() -> Iterator[MakeHardware]:
    with ExitStack() as stack:

        def make(count: int = 8, **scenario: object) -> Hardware:
            hardware = Hardware(count, **scenario)
            stack.callback(hardware.stop)
            return hardware

        yield make


@pytest.fixture
def hardware(make_hardware: MakeHardware) -> Hardware:
    """Eight simulated GPUs."""
    return make_hardware(8)


@pytest.fixture
def start_plugin(kubelet_dir: Path) -> Iterator[StartPlugin]:
    with ExitStack() as stack:

        def start(
            backend: Backend,
            registration: str = "watcher",
            flags: Mapping[str, str] | None = None,
            *,
            config_file: Path | None = None,
        ) -> PluginProcess:
            given = {
                "--registration": registration,
                "--health-quiet-period": "150ms",
                "--health-probe-interval": "40ms",
                "--health-blind-after": "200ms",
                **(flags or {}),
            }
            settings = settings_for(kubelet_dir, given, config_file=config_file)
            plugin = PluginProcess(settings, backend)
            stack.callback(plugin.stop)
            plugin.start()
            return plugin

        yield start


@pytest.fixture
def follow(kubelet_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Follow]:
    """Starts plugins that follow a file, and look often."""
    monkeypatch.setattr("gpuplugin.daemon.reload.POLL_S", 0.05)
    with ExitStack() as stack:

        def start(
            backend: Backend,
            text: str,
            registration: str = "watcher",
            flags: Mapping[str, str] | None = None,
        ) -> Followed:
            file = kubelet_dir / "config.yaml"
            file.write_text(text)
            given = {
                "--kubelet-dir": str(kubelet_dir),
                "--listen-address": "127.0.0.1:0",
                "--backend": "sim",
                "--registration": registration,
                "--health-probe-interval": "40ms",
                **(flags or {}),
            }
            plugin = Followed(file, given, backend)
            stack.callback(plugin.stop)
            plugin.start()
            return plugin

        yield start
