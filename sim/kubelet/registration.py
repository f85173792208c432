"""The plugin watcher: finds sockets in `plugins_registry` and calls GetInfo on them.

Polls where the kubelet uses inotify; the rest follows it: names that start with a dot are ignored,
GetInfo has a deadline of one second, and a path that fails is tried again after a delay of its own
(0.5 s, doubling to 2 min 2 s).
"""

from __future__ import annotations

import logging
import re
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import grpc

from gpuplugin.kubelet.proto import pluginregistration_pb2 as pb
from gpuplugin.rpc.services import grpc_target
from sim.kubelet.admission import CallFailed
from sim.kubelet.plugins import go_error

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator


def sockets_below(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The sockets with their status in the file system, in the order of their names."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            status = entry.lstat()
        except OSError:
            continue
        if stat.S_ISDIR(status.st_mode):
            yield from sockets_below(entry)
        elif stat.S_ISSOCK(status.st_mode):
            yield entry, status


POLL_S = 0.2
GET_INFO_TIMEOUT_S = 1.0
NOTIFY_TIMEOUT_S = 5.0
FIRST_RETRY_S = 0.5
LAST_RETRY_S = 122.0
DEVICE_PLUGIN, DRA_PLUGIN = "DevicePlugin", "DRAPlugin"
API_VERSION = "v1beta1"
DRA_VERSIONS = ("v1.DRAPlugin", "v1beta1.DRAPlugin")

_EXTENDED_RESOURCE = re.compile(
    r"(?!kubernetes\.io/)(?!requests\.)[a-z0-9]([-a-z0-9.]*[a-z0-9])?/"
    r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)

Identity: TypeAlias = tuple[int, int]

log = logging.getLogger(__name__)


def is_extended_resource(name: str) -> bool:
    return _EXTENDED_RESOURCE.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Registrant:
    """What a plugin says of itself: `name` is its resource, or its driver with DRA.

    `version` is the one that the kubelet takes.
    """

    type: str
    name: str
    endpoint: Path
    version: str


@dataclass(slots=True)
class _Known:
    """A socket that was seen; `registered` is set once it is."""

    identity: Identity
    registered: Registrant | None = None
    busy: bool = False


@dataclass(slots=True)
class _Failures:
    """The back-off of a path, whatever socket is there by now."""

    retry_at_s: float = 0.0
    delay_s: float = FIRST_RETRY_S


class PluginWatcher:
    """A thread that keeps registered plugins and sockets in the folder the same.

    `connect` is called with a plugin and raises `CallFailed`; `removed` with one whose socket is
    gone.
    """

    def __init__(
        self,
        folder: Path,
        connect: Callable[[Registrant], None],
        removed: Callable[[Registrant], None],
        refused: Callable[[Path, str], None],
    ) -> None:
        self._folder = folder
        self._connect = connect
        self._removed = removed
        self._refused = refused
        self._known: dict[Path, _Known] = {}
        self._failures: dict[Path, _Failures] = {}
        self._workers: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="plugin-watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def join_workers(self) -> None:
        """Wait for registrations that were under way; close their connections before."""
        for worker in self._workers:
            worker.join()

    def _watch(self) -> None:
        while not self._stopping.is_set():
            self._reconcile()
            self._stopping.wait(POLL_S)

    def _reconcile(self) -> None:
        found = {
            path: (status.st_ino, status.st_ctime_ns)
            for path, status in sockets_below(self._folder)
        }
        for path, known in list(self._known.items()):
            # One that is being registered is left until it is known whether it has to be removed.
            if found.get(path) != known.identity and not known.busy:
                del self._known[path]
                if known.registered is not None:
                    self._removed(known.registered)
        self._workers = [worker for worker in self._workers if worker.is_alive()]
        for path, identity in found.items():
            known = self._known.setdefault(path, _Known(identity))
            failures = self._failures.setdefault(path, _Failures())
            if not (known.registered or known.busy) and time.monotonic() >= failures.retry_at_s:
                self._begin(path, known, failures)

    def _begin(self, path: Path, known: _Known, failures: _Failures) -> None:
        """Register in a thread of its own: a plugin that hangs must not hold up the others."""
        known.busy = True
        worker = threading.Thread(
            target=self._register, args=(path, known, failures), name="register", daemon=True
        )
        self._workers.append(worker)
        worker.start()

    def _register(self, path: Path, known: _Known, failures: _Failures) -> None:
        with grpc.insecure_channel(grpc_target(path)) as channel:
            try:
                info = _get_info(channel)
                registrant = _check(info, path)
                self._connect(registrant)
            except CallFailed as error:
                failures.retry_at_s = time.monotonic() + failures.delay_s
                failures.delay_s = min(failures.delay_s * 2, LAST_RETRY_S)
                self._refused(path, str(error))
                _notify(channel, registered=False, error=str(error))
            else:
                known.registered = registrant
                self._failures.pop(path, None)
                _notify(channel, registered=True, error="")
            finally:
                known.busy = False


def _get_info(channel: grpc.Channel) -> pb.PluginInfo:
    call = channel.unary_unary(
        "/pluginregistration.Registration/GetInfo",
        pb.InfoRequest.SerializeToString,
        pb.PluginInfo.FromString,
    )
    try:
        return call(pb.InfoRequest(), timeout=GET_INFO_TIMEOUT_S)
    except grpc.RpcError as error:
        raise CallFailed(f"failed to get plugin info: {go_error(error)}") from error


def _check(info: pb.PluginInfo, path: Path) -> Registrant:
    endpoint = Path(info.endpoint) if info.endpoint else path
    if info.type == DRA_PLUGIN:
        # The first of the plugin's own that the kubelet knows.
        for version in info.supported_versions:
            if version in DRA_VERSIONS:
                return Registrant(DRA_PLUGIN, info.name, endpoint, version)
        raise CallFailed(
            f"none of services supported by the plugin {list(info.supported_versions)} are "
            f"supported by the kubelet {list(DRA_VERSIONS)}"
        )
    if info.type != DEVICE_PLUGIN:
        raise CallFailed(f"no handler registered for plugin type: {info.type} at socket {path}")
    if API_VERSION not in info.supported_versions:
        raise CallFailed(
            f"manager for device plugin version {list(info.supported_versions)} is not supported"
        )
    if not is_extended_resource(info.name):
        raise CallFailed(f"invalid name of device plugin resource {info.name!r}")
    return Registrant(DEVICE_PLUGIN, info.name, endpoint, API_VERSION)


def _notify(channel: grpc.Channel, *, registered: bool, error: str) -> None:
    call = channel.unary_unary(
        "/pluginregistration.Registration/NotifyRegistrationStatus",
        pb.RegistrationStatus.SerializeToString,
        pb.RegistrationStatusResponse.FromString,
    )
    try:
        call(
            pb.RegistrationStatus(plugin_registered=registered, error=error),
            timeout=NOTIFY_TIMEOUT_S,
        )
    except grpc.RpcError as failure:
        log.debug("the plugin did not take the registration status: %s", go_error(failure))
