"""A kubelet that only registers plugins and records when each device list arrived.

Both ways of registration. Times are those of `time.perf_counter_ns`, which is one clock for all
processes of a Linux machine. What a kubelet decides from a list is in `sim.kubelet`.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from benchmarks.calls import TIMEOUT_S, device_plugin_method
from gpuplugin.daemon.serving.sockets import KubeletDirs
from gpuplugin.kubelet.proto import deviceplugin_pb2 as dp
from gpuplugin.kubelet.proto import pluginregistration_pb2 as pr
from gpuplugin.rpc import RpcCode, RpcError, Service
from gpuplugin.rpc.client import CallFailed, Connection, ConnectionFailed, Method
from gpuplugin.rpc.grpcio_engine import GrpcioEngine
from sim.kubelet.registration import sockets_below

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpuplugin.rpc import Server
    from gpuplugin.rpc.client import ClientCall

SCAN_S = 0.001
CALM_SCAN_S = 0.05
"""Between two scans once a plugin is registered: they must not disturb what is measured then."""

PLUGIN_TYPE = "DevicePlugin"
_GET_INFO = Method.of("/pluginregistration.Registration/GetInfo")
_NOTIFY = Method.of("/pluginregistration.Registration/NotifyRegistrationStatus")


class NeverCame(Exception):
    """The awaited condition did not hold in time."""


@dataclass(frozen=True, slots=True)
class Listed:
    at_ns: int
    data: bytes


@dataclass(slots=True)
class Registered:
    """A plugin: its resource and socket, when it was registered, and its lists so far."""

    resource: str
    socket: Path
    way: Literal["watcher", "classic"]
    registered_ns: int | None = None
    lists: list[Listed] = field(default_factory=list)


class MeasuringKubelet:
    """Serves a folder that plays /var/lib/kubelet, from `with` on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plugins: list[Registered] = []
        self.problems: list[str] = []
        """Problems with plugins, as text."""
        self._changed = threading.Condition()
        self._streams: list[tuple[Connection, threading.Thread]] = []
        self._seen: set[tuple[Path, int]] = set()
        self._stopping = threading.Event()
        self._scanner = threading.Thread(target=self._scan, name="scanner", daemon=True)
        self._server: Server | None = None

    def __enter__(self) -> Self:
        dirs = KubeletDirs(self.folder)
        dirs.device_plugins.mkdir(parents=True, exist_ok=True)
        self._registry.mkdir(parents=True, exist_ok=True)
        service = Service("v1beta1.Registration", {"Register": self._register}, {})
        self._server = GrpcioEngine().serve(dirs.kubelet_socket, [service])
        self._scanner.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stopping.set()
        self._scanner.join()
        for connection, thread in self._streams:
            connection.interrupt()
            thread.join()
            connection.close()
        if self._server is not None:
            self._server.stop(0)

    def wait_until(
        self, condition: Callable[[Self], bool], timeout_s: float, alive: Callable[[], bool]
    ) -> None:
        """Wait for `condition`, which is called whenever something happened.

        Raises:
            NeverCame: not within `timeout_s`, or `alive` said no.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while not condition(self):
                left_s = deadline_s - time.monotonic()
                if not alive():
                    raise NeverCame("; ".join([*self.problems[-3:], "it has ended"]))
                if left_s <= 0:
                    raise NeverCame("; ".join([*self.problems[-3:], f"waited {timeout_s:g} s"]))
                self._changed.wait(min(left_s, 0.2))

    @property
    def _registry(self) -> Path:
        return KubeletDirs(self.folder).plugin_watcher.parent

    def _scan(self) -> None:
        while not self._stopping.is_set():
            for path, status in sockets_below(self._registry):
                seen = path, status.st_ino
                if seen not in self._seen and self._register_watched(path):
                    self._seen.add(seen)
            time.sleep(CALM_SCAN_S if self.plugins else SCAN_S)

    def _register_watched(self, path: Path) -> bool:
        """Register what is behind a new socket; False if nothing listens there yet."""
        try:
            connection = Connection(path, TIMEOUT_S)
        except ConnectionFailed:
            return False
        with connection:
            try:
                info = pr.PluginInfo.FromString(connection.call(_GET_INFO, b""))
                if info.type != PLUGIN_TYPE:
                    self._add_problem(f"{path} is a {info.type}, no {PLUGIN_TYPE}")
                    return True
                plugin = Registered(info.name, Path(info.endpoint or path), "watcher")
                self._connect(plugin)
                status = pr.RegistrationStatus(plugin_registered=True)
                connection.call(_NOTIFY, status.SerializeToString())
            except CallFailed as error:
                self._add_problem(f"{path} cannot be registered: {error}")
                return True
        self._registered(plugin)
        return True

    def _register(self, data: bytes) -> bytes:
        """The classic Register call; the kubelet, too, calls the plugin before it answers."""
        request = dp.RegisterRequest.FromString(data)
        socket = KubeletDirs(self.folder).device_plugins / request.endpoint
        plugin = Registered(request.resource_name, socket, "classic")
        try:
            self._connect(plugin)
        except CallFailed as error:
            self._add_problem(f"{socket} cannot be registered: {error}")
            raise RpcError(RpcCode.UNKNOWN, str(error)) from error
        self._registered(plugin)
        return b""

    def _connect(self, plugin: Registered) -> None:
        connection = Connection(plugin.socket)
        try:
            connection.call(device_plugin_method("GetDevicePluginOptions"), b"")
            stream = connection.start(device_plugin_method("ListAndWatch"), b"", streaming=True)
        except CallFailed:
            connection.close()
            raise
        thread = threading.Thread(
            target=self._follow, args=(plugin, connection, stream), name="list", daemon=True
        )
        self._streams.append((connection, thread))
        thread.start()

    def _follow(self, plugin: Registered, connection: Connection, stream: ClientCall) -> None:
        try:
            while (data := connection.next_response(stream)) is not None:
                listed = Listed(time.perf_counter_ns(), data)
                with self._changed:
                    plugin.lists.append(listed)
                    self._changed.notify_all()
        except CallFailed as error:
            if not self._stopping.is_set():
                self._add_problem(f"the list of {plugin.resource} has ended: {error}")

    def _registered(self, plugin: Registered) -> None:
        plugin.registered_ns = time.perf_counter_ns()
        with self._changed:
            self.plugins.append(plugin)
            self._changed.notify_all()

    def _add_problem(self, problem: str) -> None:
        with self._changed:
            self.problems.append(problem)
            self._changed.notify_all()
