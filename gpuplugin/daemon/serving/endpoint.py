"""The life of one resource's socket: create, register, watch and renew it.

A socket is renewed under another name when its file vanished, when the kubelet's stream ended and
none came back, when the kubelet restarted (classic registration), when it knew the socket and never
connected, or when another plugin of the resource stopped. Facts behind this: docs/registration.md.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gpuplugin.core.pacing import Backoff
from gpuplugin.daemon.serving.sockets import (
    STOP_GRACE_S,
    OtherPlugin,
    identity,
    new_socket_path,
    remove_leftovers,
    start_server,
    stop_server,
)
from gpuplugin.daemon.tasks import wait_period_or
from gpuplugin.kubelet.registration import RegistrationFailed, register, registration_service
from gpuplugin.rpc.services import SocketError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gpuplugin.daemon.files import FileWatch
    from gpuplugin.daemon.http.metrics import Metrics
    from gpuplugin.daemon.serving.sockets import Identity, KubeletDirs
    from gpuplugin.daemon.status import StatusBoard
    from gpuplugin.kubelet.deviceplugin import DevicePlugin
    from gpuplugin.rpc.services import Engine, Service

POLL_S = 0.25
STREAM_GRACE_S = 2.0
"""Without a stream for this long after one was open, the socket is renewed."""

CONNECT_GRACE_S = 10.0
"""Time that the kubelet has to connect after it accepted a Register call or called GetInfo."""

MAX_PAUSE_S = 5.0
"""The longest pause before another socket."""

REGISTER_TIMEOUT_S = 5.0
_STABLE_AFTER_S = 5.0
"""A socket that a kubelet watched for this long was good: its end is no reason to wait longer."""

_OWN_NAMES = 16

_OTHER_LEFT = "other-plugin-left"
_STREAM_LOST = "stream-lost"
_NOT_CONNECTED = "kubelet-did-not-connect"
_KEPT_MEANWHILE = (_STREAM_LOST, _NOT_CONNECTED)
"""Reasons for which the old socket is served during the pause: a kubelet may still come to it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServingContext:
    dirs: KubeletDirs
    registration: Literal["watcher", "classic", "none"]
    engine: Engine
    status: StatusBoard
    metrics: Metrics
    files: FileWatch


@dataclass(slots=True)
class _Socket:
    """A socket and what the kubelet did with it; `file` is None until it is served."""

    path: Path
    opened_before: int
    patience_s: float = 0.0
    """How much longer it is kept when no kubelet watches it, so as not to chase another plugin."""
    file: Identity | None = None
    known_since_s: float | None = None
    refusal: str = ""
    watched_s: float = 0.0

    @property
    def removed(self) -> bool:
        """True if the file was removed or replaced."""
        return self.file is None or identity(self.path) != self.file

    def known(self) -> None:
        """A kubelet knows it from now on; one that fails after that reports nothing."""
        if self.known_since_s is None:
            self.known_since_s = time.monotonic()

    @property
    def known_for_s(self) -> float:
        return 0.0 if self.known_since_s is None else time.monotonic() - self.known_since_s


class Endpoint:
    def __init__(self, plugin: DevicePlugin, context: ServingContext) -> None:
        self._plugin = plugin
        self._context = context
        self._resource = plugin.snapshot.resource.name
        self._component = f"kubelet:{self._resource}"
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Event()
        self._names: deque[str] = deque(maxlen=_OWN_NAMES)
        """Of the last sockets, this one's included."""
        plugin.devices.on_streams = self._streams_changed_in_thread
        self._set_status(self._waiting_text(), ok=context.registration == "none")

    async def run(self) -> None:
        backoff = Backoff(0.1, MAX_PAUSE_S)
        pause_s = 0.0
        try:
            while True:
                kubelet = self._kubelet()
                folder = self._context.dirs.of(self._context.registration)
                path = new_socket_path(folder, self._resource)
                self._names.append(path.name)
                socket = _Socket(path, self._plugin.devices.opened_streams, pause_s)
                reason = await self._serve_one_socket(socket)
                good = socket.watched_s > _STABLE_AFTER_S or reason == _OTHER_LEFT
                if good or self._kubelet() != kubelet:
                    backoff.reset()
                pause_s = backoff.next_s()
                delay_s = 0.0 if reason in _KEPT_MEANWHILE else pause_s
                self._context.metrics.socket_renewals.labels(self._resource, reason).inc()
                refusal = f": {socket.refusal}" if socket.refusal else ""
                self._set_status(f"no kubelet: {reason}{refusal}", ok=False)
                text = f"renewing the socket of {self._resource} in {delay_s:g} s: {reason}"
                self._log(logging.WARNING, "socket-renewal", text)
                await asyncio.sleep(delay_s)
        finally:
            self._context.status.remove(self._component)
            if self._plugin.devices.on_streams == self._streams_changed_in_thread:
                self._plugin.devices.on_streams = lambda: None

    async def _serve_one_socket(self, socket: _Socket) -> str:
        """Serve a new socket until it must be renewed; returns the reason."""
        path = socket.path
        try:
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            remove_leftovers(path.parent, self._resource)
            server = await start_server(self._context.engine, path, self._services(socket))
        except (OSError, SocketError) as error:
            text = f"no socket for {self._resource} in {path.parent}: {error}"
            remedy = "the folder (--kubelet-dir) must be local and writable"
            self._log(logging.ERROR, "no-socket", f"{text}; {remedy}")
            return "no-socket"
        try:
            socket.file = identity(path)
            return "socket-removed" if socket.removed else await self._serve(socket)
        finally:
            self._plugin.devices.end_streams()
            self._context.metrics.streams.labels(self._resource).set(0)
            await stop_server(server, path, STOP_GRACE_S)

    async def _serve(self, socket: _Socket) -> str:
        text = f"serving {self._resource} on {socket.path}"
        self._log(logging.INFO, "serving", text, socket=str(socket.path))
        self._set_status(self._waiting_text(), ok=self._context.registration == "none")
        if self._context.registration == "classic":
            return await self._register_and_watch(socket)
        return await self._watch(socket, kubelet=None)

    def _kubelet(self) -> Identity | None:
        """The kubelet's socket; None if there is none, or the kubelet is the one that connects."""
        if self._context.registration != "classic":
            return None
        return identity(self._context.dirs.kubelet_socket)

    def _services(self, socket: _Socket) -> list[Service]:
        stats = self._context.metrics.calls[self._resource]
        services = [stats.wrap(self._plugin.service())]
        if self._context.registration == "watcher":
            services.append(
                registration_service(
                    self._resource,
                    lambda: self._soon(lambda: self._known(socket)),
                    lambda accepted, error: self._soon(
                        lambda: self._registered(socket, accepted=accepted, error=error)
                    ),
                )
            )
        return services

    async def _register_and_watch(self, socket: _Socket) -> str:
        """Classic: call Register until the kubelet accepts, then watch."""
        backoff = Backoff(0.5, 30.0)
        while True:
            if socket.removed:
                return "socket-removed"
            kubelet = self._kubelet()
            if kubelet is None:
                path = self._context.dirs.kubelet_socket
                self._set_status(f"waiting for {path}", ok=False)
                self._context.files.follow([path.parent], self._turn)
                if self._kubelet() is None:
                    await wait_period_or(self._turn, POLL_S * 8)
                continue
            if await self._register(socket):
                socket.known()
                return await self._watch(socket, kubelet)
            await self._wait_for_another_kubelet(kubelet, backoff.next_s())

    async def _register(self, socket: _Socket) -> bool:
        try:
            await register(
                self._context.dirs.kubelet_socket,
                socket.path.name,
                self._resource,
                REGISTER_TIMEOUT_S,
            )
        except RegistrationFailed as error:
            self._registered(socket, accepted=False, error=str(error))
            return False
        self._registered(socket, accepted=True, error="")
        return True

    async def _wait_for_another_kubelet(self, kubelet: Identity, timeout_s: float) -> None:
        """Wait before the next Register, but not longer than this kubelet's socket lives."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            await asyncio.sleep(POLL_S)
            if self._kubelet() != kubelet:
                return

    async def _watch(self, socket: _Socket, kubelet: Identity | None) -> str:
        """Watch the socket, its streams and the kubelet; returns why the socket must be renewed.

        `kubelet` is the one that accepted the socket's registration, None for the watcher.
        """
        devices = self._plugin.devices
        self._context.metrics.kubelet_restarts.labels(self._resource)
        other = OtherPlugin(
            self._context.dirs, self._resource, socket.path, self._names, STREAM_GRACE_S
        )
        alone_since_s = time.monotonic()
        was_open = False
        seen = socket.opened_before
        ended = devices.opened_streams - devices.open_streams

        folders = {socket.path.parent, *other.folders, self._context.dirs.kubelet_socket.parent}
        while True:
            look_s = self._context.files.follow(folders, self._turn, other.noticed)
            is_open = devices.open_streams > 0
            if (now_ended := devices.opened_streams - devices.open_streams) > ended:
                self._context.metrics.kubelet_restarts.labels(self._resource).inc(now_ended - ended)
                ended = now_ended
            connected = devices.opened_streams > socket.opened_before
            other.check()
            # A stream that began and ended between two checks counts as a connection, too.
            opened, seen = devices.opened_streams > seen, devices.opened_streams
            self._show(is_open=is_open, opened=opened, connected=connected, other=other)
            if is_open or was_open or opened:
                alone_since_s = time.monotonic()
            was_open = is_open
            self._context.metrics.streams.labels(self._resource).set(devices.open_streams)
            if reason := self._outdated(socket, kubelet, other):
                return reason
            lost_for_s = time.monotonic() - alone_since_s if connected else 0.0
            if lost_for_s > STREAM_GRACE_S + socket.patience_s:
                return _STREAM_LOST
            if connected and not is_open and other.is_leaving:
                return _OTHER_LEFT  # the kubelet had that one, and has none now
            if not connected and socket.known_for_s > CONNECT_GRACE_S + socket.patience_s:
                return _NOT_CONNECTED
            # While a kubelet watches, and before one knows the socket, nothing is urgent.
            if not (is_open or (not connected and socket.known_since_s is None)):
                look_s = POLL_S
            elif other.seen:
                look_s = POLL_S * 8
            checked_s = time.monotonic()
            await wait_period_or(self._turn, look_s)
            socket.watched_s += time.monotonic() - checked_s if is_open else 0.0

    def _show(self, *, is_open: bool, opened: bool, connected: bool, other: OtherPlugin) -> None:
        if is_open or opened:
            others = "; so it does with another plugin's" if other.present else ""
            self._set_status(f"the kubelet watches the device list{others}", ok=True)
        if connected and not is_open:
            self._set_status("the kubelet's stream has ended", ok=False)

    def _outdated(self, socket: _Socket, kubelet: Identity | None, other: OtherPlugin) -> str:
        """Why the socket must be renewed whatever its streams do; "" if it need not be."""
        if socket.removed:
            return "socket-removed"
        if socket.refusal:
            return "registration-refused"
        if kubelet and self._kubelet() not in (None, kubelet):
            return "kubelet-restarted"
        if other.has_left:
            return _OTHER_LEFT
        return ""

    def _known(self, socket: _Socket) -> None:
        socket.known()
        self._turn.set()

    def _streams_changed_in_thread(self) -> None:
        self._soon(self._turn.set)

    def _soon(self, change: Callable[[], None]) -> None:
        """From a thread of the engine: change the state on the loop, where all of it changes."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(change)

    def _registered(self, socket: _Socket, *, accepted: bool, error: str) -> None:
        context = self._context
        result = "accepted" if accepted else "refused"
        context.metrics.registrations.labels(self._resource, context.registration, result).inc()
        if accepted:
            self._log(logging.INFO, "registered", f"the kubelet registered {self._resource}")
            return
        if self._context.registration == "watcher":
            # Its path is in the kubelet's back-off now; another one is not.
            socket.refusal = error or "no reason given"
            self._turn.set()
        if self._set_status(f"the kubelet refused the plugin: {error}", ok=False):
            text = f"the kubelet did not register {self._resource}: {error}"
            self._log(logging.ERROR, "registration-failed", text)

    def _log(self, level: int, event: str, text: str, **facts: str) -> None:
        log.log(level, "%s", text, extra={"event": event, "resource": self._resource, **facts})

    def _set_status(self, text: str, *, ok: bool) -> bool:
        return self._context.status.set(self._component, text, ok=ok)

    def _waiting_text(self) -> str:
        if self._context.registration == "none":
            return "serving without registration"
        if self._context.registration == "classic":
            return "waiting for the kubelet to connect"
        return "waiting for the kubelet's plugin watcher"
