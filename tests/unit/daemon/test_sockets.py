"""Names, leftovers and identities of sockets."""

from __future__ import annotations

import socket
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from gpuplugin.daemon.serving.sockets import (
    KubeletDirs,
    identity,
    new_socket_path,
    others_serve,
    remove_leftovers,
    remove_socket,
)
from gpuplugin.rpc.services import SocketError, check_socket_path

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder with a short name, for the paths of sockets have a limit."""
    with TemporaryDirectory(prefix="gp") as folder:
        yield Path(folder)


def bind(path: Path) -> None:
    """Leave a socket file behind, as a process that died does."""
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def test_the_kubelets_folders() -> None:
    dirs = KubeletDirs(Path("/var/lib/kubelet"))

    assert str(dirs.kubelet_socket) == "/var/lib/kubelet/device-plugins/kubelet.sock"
    assert str(dirs.device_plugins) == "/var/lib/kubelet/device-plugins"
    assert dirs.plugin_watcher.parent == Path("/var/lib/kubelet/plugins_registry")
    assert not dirs.plugin_watcher.name.startswith("."), "the kubelet passes over such names"


def test_a_new_path_never_comes_back_and_fits_a_socket() -> None:
    folder = KubeletDirs(Path("/var/lib/kubelet")).plugin_watcher
    paths = {new_socket_path(folder, "nvidia.com/gpu.shared") for _ in range(200)}

    assert len(paths) == 200
    for path in paths:
        assert path.parent == folder
        assert path.suffix == ".sock"
        assert not path.name.startswith(".")
        check_socket_path(path)


def test_a_path_of_107_bytes_is_the_longest(tmp_path: Path) -> None:
    check_socket_path(Path("/" + "a" * 106))
    with pytest.raises(SocketError, match="108 bytes long, the limit is 107"):
        check_socket_path(Path("/" + "a" * 107))
    with pytest.raises(SocketError):
        check_socket_path(Path("/" + "\u00e9" * 54))


def test_only_this_plugins_sockets_are_leftovers(tmp_path: Path) -> None:
    mine = sorted(new_socket_path(tmp_path, "nvidia.com/gpu") for _ in range(2))
    for path in mine:
        bind(path)
    bind(tmp_path / "kubelet.sock")
    bind(tmp_path / "other-plugin.sock")
    not_a_socket = new_socket_path(tmp_path, "nvidia.com/gpu")
    not_a_socket.write_text("precious")
    link = new_socket_path(tmp_path, "nvidia.com/gpu")
    link.symlink_to(tmp_path / "kubelet.sock")

    assert remove_leftovers(tmp_path) == tuple(mine)
    assert {path.name for path in tmp_path.iterdir()} == {
        "kubelet.sock",
        "other-plugin.sock",
        not_a_socket.name,
        link.name,
    }
    assert remove_leftovers(tmp_path) == ()


def test_a_missing_folder_has_no_leftovers(tmp_path: Path) -> None:
    assert remove_leftovers(tmp_path / "missing") == ()


def test_a_leftover_that_vanishes_meanwhile_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stays = new_socket_path(tmp_path, "b")
    bind(stays)
    gone = new_socket_path(tmp_path, "a")
    monkeypatch.setattr(Path, "glob", lambda *_args, **_kwargs: iter([gone, stays]))

    assert remove_leftovers(tmp_path) == (stays,)


def test_a_file_that_was_made_anew_has_another_identity(tmp_path: Path) -> None:
    path = tmp_path / "kubelet.sock"
    assert identity(path) is None
    bind(path)
    first = identity(path)
    assert first is not None
    assert identity(path) == first

    replacement = tmp_path / "new.sock"
    bind(replacement)
    replacement.replace(path)

    assert identity(path) not in (None, first)
    assert identity(path / "below") is None


def test_a_socket_that_is_listened_on_is_no_leftover(tmp_path: Path) -> None:
    """A plugin that is being replaced serves until it is stopped."""
    path = new_socket_path(tmp_path, "nvidia.com/gpu")
    dead = new_socket_path(tmp_path, "nvidia.com/gpu")
    bind(dead)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        assert remove_leftovers(tmp_path) == (dead,)
        assert others_serve([tmp_path], "nvidia.com/gpu", own=dead)
        assert not others_serve([tmp_path], "nvidia.com/gpu", own=path)
    assert not others_serve([tmp_path], "nvidia.com/gpu", own=dead)


def test_leftovers_and_others_are_those_of_the_resource(tmp_path: Path) -> None:
    """A resource's name may begin with another's."""
    path = new_socket_path(tmp_path, "a/b.shared")
    longer = new_socket_path(tmp_path, "a/b-0badcafe")
    bind(path)
    bind(longer)
    assert remove_leftovers(tmp_path, "a/b") == ()
    assert remove_leftovers(tmp_path, "a/b.shared") == (path,)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        assert not others_serve([tmp_path], "a/b", own=longer)


def test_what_cannot_be_removed_or_looked_at_ends_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.touch()
    remove_socket(folder / "one.sock")
    assert identity(folder / "one.sock") is None
    remove_socket(tmp_path)
    assert tmp_path.is_dir()
