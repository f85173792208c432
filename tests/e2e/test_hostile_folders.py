"""Folders and files that do not let the plugin do what it has to: rights, inodes, long paths."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from gpuplugin.rpc.services import MAX_SOCKET_PATH_BYTES
from tests.e2e.conftest import RESOURCE, Node, Plugin, eventually

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can set this up")
FOUR = """\
version: v1
sharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 4}]}}
"""
SOCKET_NAME = "gpuplugin-nvidia.com-gpu-01234567.sock"


@AS_ROOT
@pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv is not installed")
def test_a_file_that_may_not_be_read_any_more_changes_nothing(node: Node) -> None:
    config = node.dir / "config.yaml"
    config.write_text(FOUR)
    # Root without the right to ignore the mode of its files.
    rights = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
    with (
        node.start_kubelet(),
        Plugin("--backend", "sim", *node.at, "--config-file", str(config), under=rights) as plugin,
    ):
        node.wait_allocatable(32)
        config.chmod(0)
        plugin.signal(signal.SIGHUP)
        plugin.says("event=config-refused")
        why = json.loads(plugin.get("/ready")[1])["parts"]["config"]["text"]
        assert f"{config}: cannot be read: Permission denied" in why
        assert node.create("pod")["phase"] == "Running"
        config.chmod(0o600)
        config.write_text(FOUR.replace("4", "5"))
        plugin.signal(signal.SIGHUP)
        node.wait_allocatable(40)


@AS_ROOT
@pytest.mark.skipif(not shutil.which("unshare"), reason="unshare is not installed")
@pytest.mark.parametrize("engine", ["fast", "grpcio"])
def test_it_serves_as_soon_as_the_folder_has_room_again(node: Node, engine: str) -> None:
    """The folder of the sockets is a file system of its own whose inodes are all taken."""
    folder = node.dir / "plugins_registry" / "gpuplugin"
    folder.mkdir(parents=True)
    fill = "mount -t tmpfs -o nr_inodes=8 none $0 && cd $0 && touch 1 2 3 4 5 6 7; exec $@"
    under = ("unshare", "--mount", "sh", "-c", fill, str(folder))
    arguments = ("--backend", "sim", *node.at, "--registration", "none", "--rpc-engine", engine)
    with Plugin(*arguments, under=under) as plugin:
        plugin.says("event=no-socket")
        assert "No space left on device" in plugin.output
        assert plugin.get("/health")[0] == 200
        assert plugin.get("/ready")[0] == 503
        inside = Path(f"/proc/{plugin.pid}/root{folder}")
        for path in inside.glob("[1-7]"):
            path.unlink()
        eventually(lambda: plugin.get("/ready")[0] == 200, "it is ready")
        assert len(list(inside.glob("gpuplugin-nvidia*.sock"))) == 1
        assert plugin.stop() == 0


@pytest.mark.parametrize("engine", ["fast", "grpcio"])
@pytest.mark.parametrize("excess", [0, 1])
def test_the_longest_socket_path_is_served_and_a_longer_one_is_told(
    node: Node, engine: str, excess: int
) -> None:
    rest = len(f"/plugins_registry/gpuplugin/{SOCKET_NAME}")
    name = "k" * (MAX_SOCKET_PATH_BYTES + excess - rest - len(f"{node.dir}/"))
    folder = node.dir / name
    folder.mkdir()
    long = Node(folder)
    arguments = ("--backend", "sim", *long.at, "--registration", "none", "--rpc-engine", engine)
    with Plugin(*arguments) as plugin:
        if excess:
            plugin.says("108 bytes long, the limit is 107")
            assert plugin.get("/ready")[0] == 503
            assert RESOURCE in plugin.get("/ready")[1]
        else:
            eventually(lambda: plugin.get("/ready")[0] == 200, "it is ready")
        assert plugin.stop() == 0
