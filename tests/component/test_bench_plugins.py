"""Plugins by their command lines: both ways of registration, private folders, and failures."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.devices import healthy_ids
from benchmarks.kubelet import MeasuringKubelet, NeverCame
from benchmarks.machine import processes_of
from benchmarks.plugins import (
    DEFAULT_KUBELET_DIR,
    Node,
    NoNamespace,
    PluginSpec,
    check_namespaces,
    isolates,
    own_plugin,
    started,
    with_private_kubelet_dir,
)
from benchmarks.scrape import scrape
from benchmarks.servers import DidNotStart
from tests.component.tinyplugin import WIDGET, TinyPlugin
from tests.component.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
NO_NODE = Node("sim", {"PYTHONPATH": str(ROOT)}, None)
SCRIPT = """
import sys, threading
from pathlib import Path
from tests.component.tinyplugin import TinyPlugin
way, folder = sys.argv[1], Path(sys.argv[2])
socket = folder / ("plugins_registry/t.sock" if way == "watcher" else "device-plugins/t.sock")
plugin = TinyPlugin(socket, ["w0", ("w1", "Unhealthy"), "w2"])
plugin.start()
if way == "classic":
    plugin.register(folder)
threading.Event().wait()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="gp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def script(folder: Path) -> Path:
    path = folder / "tiny.py"
    path.write_text(textwrap.dedent(SCRIPT))
    return path


@pytest.mark.parametrize("way", ["watcher", "classic"])
def test_a_foreign_plugin_is_started_registered_and_ended(script: Path, way: str) -> None:
    spec = PluginSpec("tiny", (sys.executable, str(script), way, "{kubelet_dir}"))
    with started(spec, NO_NODE, 10) as running:
        plugin = running.first()
        assert (plugin.resource, plugin.way) == (WIDGET, way)
        assert healthy_ids(plugin.lists[0].data) == ["w0", "w2"]
        assert plugin.registered_ns is not None
        assert running.started_ns < plugin.registered_ns
        assert running.started_ns < plugin.lists[0].at_ns
        assert running.pids == [running.process.pid]
        own = Path("/proc/self/ns/mnt").readlink()
        assert (Path(f"/proc/{running.process.pid}/ns/mnt").readlink() != own) == isolates()
        kubelet_dir = running.kubelet.folder
    assert running.process.poll() is not None
    assert not kubelet_dir.exists()


def test_a_plugin_that_ends_shows_its_log() -> None:
    code = "import sys; print('no GPUs here', file=sys.stderr); sys.exit(3)"
    spec = PluginSpec("broken", (sys.executable, "-c", code))
    with started(spec, NO_NODE, 10) as running, pytest.raises(DidNotStart) as caught:
        running.first()
    assert "plugin broken has no device list" in str(caught.value)
    assert "it ended with 3" in str(caught.value)
    assert "no GPUs here" in str(caught.value)
    with (
        pytest.raises(DidNotStart, match="plugin none cannot be started"),
        started(PluginSpec("none", ("/nowhere/plugin",)), NO_NODE, 10),
    ):
        pass


def test_a_plugin_that_tells_no_port_has_none(script: Path) -> None:
    spec = PluginSpec("tiny", (sys.executable, str(script), "watcher", "{kubelet_dir}"))
    with started(spec, NO_NODE, 1) as running:
        running.first()
        assert running.http_port is None


def test_our_own_plugin_has_told_its_port_when_it_is_there() -> None:
    with started(own_plugin("grpcio", "sim"), NO_NODE, 1) as running:
        running.first()
        assert running.http_port is not None
        _, body_bytes = scrape(running.http_port)
        assert body_bytes > 1000


def test_a_plugins_children_are_ended_with_it(folder: Path) -> None:
    """A shell that ignores the signal, and a child of it."""
    mark = folder / "mark"
    script = f"trap '' TERM; sleep 600 & echo up >{mark}; wait; wait"
    with started(PluginSpec("sh", ("sh", "-c", script)), NO_NODE, 1) as running:
        eventually(lambda: mark.exists() and len(running.pids) == 2)
        running.process.kill()
    eventually(lambda: not processes_of(running.process.pid))


def test_placeholders_are_filled_in(folder: Path) -> None:
    out = folder / "out"
    command = ("sh", "-c", f'cat "$1" >{out}; echo "$2" >>{out}; sleep 600', "sh")
    with started(PluginSpec("sh", (*command, "{config}", "{kubelet_dir}/x")), NO_NODE, 7) as run:
        eventually(lambda: out.exists() and "/x" in out.read_text())
        assert f"{run.kubelet.folder}/x" in out.read_text()
    assert "replicas: 7" in out.read_text()


def test_the_kubelet_follows_lists_and_tells_what_is_wrong(folder: Path) -> None:
    with MeasuringKubelet(folder) as kubelet:
        registry = folder / "plugins_registry"
        with TinyPlugin(registry / "sub" / "t.sock") as tiny:
            kubelet.wait_until(lambda one: bool(one.plugins), DEADLINE_S, lambda: True)
            eventually(lambda: tiny.statuses == [(True, "")])
            (plugin,) = kubelet.plugins
            eventually(lambda: len(plugin.lists) == 1)
            tiny.send(["w0"])
            kubelet.wait_until(lambda _: len(plugin.lists) == 2, DEADLINE_S, lambda: True)
            first, second = plugin.lists
            assert first.at_ns < second.at_ns
            assert healthy_ids(second.data) == ["w0"]
        with TinyPlugin(registry / "csi.sock", kind="CSIPlugin"):
            eventually(lambda: any("is a CSIPlugin" in one for one in kubelet.problems))
        with pytest.raises(NeverCame, match=r"is a CSIPlugin.*waited 0\.05 s"):
            kubelet.wait_until(lambda one: len(one.plugins) > 1, 0.05, lambda: True)
        with pytest.raises(NeverCame, match="it has ended"):
            kubelet.wait_until(lambda _: False, DEADLINE_S, lambda: False)


@pytest.fixture
def _namespaces() -> None:
    try:
        check_namespaces()
    except NoNamespace as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("_namespaces")
def test_a_private_folder_is_at_the_fixed_place_and_the_host_is_as_before(script: Path) -> None:
    def host() -> list[object]:
        mounts = Path("/proc/self/mounts").read_text()
        return [sorted(Path("/var/lib").iterdir()), mounts]

    before = host()
    command = (sys.executable, str(script), "classic", "{kubelet_dir}")
    spec = PluginSpec("fixed", command, private=True)
    with started(spec, NO_NODE, 1) as running:
        assert running.first().resource == WIDGET
        arguments = Path(f"/proc/{running.process.pid}/cmdline").read_text().split("\0")
        assert str(DEFAULT_KUBELET_DIR) in arguments
        assert host() == before
    assert host() == before


@pytest.mark.usefixtures("_namespaces")
def test_a_place_that_the_host_lacks_is_made_for_the_plugin_alone(folder: Path) -> None:
    base = folder / "lib"
    (base / "other").mkdir(parents=True)
    (base / "other" / "file").write_text("kept")
    (base / "plain").write_text("kept too")
    (base / "link").symlink_to("plain")
    ours, hold, out = folder / "ours", folder / "hold", folder / "out"
    ours.mkdir()
    hold.mkdir()
    target = base / "deep" / "kubelet"
    script = f'cat {base}/other/file {base}/plain {base}/link >"{out}" && echo made >"{target}/new"'
    command = with_private_kubelet_dir(["sh", "-c", script], ours, hold, target)
    subprocess.run(command, check=True)
    assert out.read_text() == "keptkept tookept too"
    assert (ours / "new").read_text() == "made\n"
    assert sorted(one.name for one in base.iterdir()) == ["link", "other", "plain"]
    assert list(hold.iterdir()) == []


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NoNamespace, match="needs root"):
        check_namespaces()
