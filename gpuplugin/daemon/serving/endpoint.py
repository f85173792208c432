"""The life of one resource's socket: make, register, watch, and renew it when it is of no use.

A socket is renewed under another name when its file vanished, when the kubelet's stream ended and
none came back, when the kubelet restarted (classic registration), when it was told of the socket
and never came, or when another plugin of the resource left. Facts behind this:
docs/registration.md.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gpuplugin.core.pacing import Backoff
from gpuplugin.daemon.serving.sockets import (
    identity,
    new_socket_path,
    others_serve,
    remove_leftovers,
    remove_socket,
)
from gpuplugin.daemon.tasks import tick_or
from gpuplugin.kubelet.registration import RegistrationFailed, register, registration_service
from gpuplugin.rpc.services import SocketError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gpuplugin.daemon.http.metrics import Metrics
    from gpuplugin.daemon.serving.sockets import Identity, KubeletDirs
    from gpuplugin.daemon.status import StatusBoard
    from gpuplugin.kubelet.deviceplugin import DevicePlugin
    from gpuplugin.rpc.services import Engine, Server, Service

POLL_S = 0.25
STREAM_GRACE_S = 2.0
"""Without a stream for this long after one was open, the socket is renewed."""

CONNECT_GRACE_S = 10.0
"""Time that the kubelet has to connect after it accepted a Register call or asked GetInfo."""

REGISTER_TIMEOUT_S = 5.0
STOP_GRACE_S = 1.0
_STABLE_AFTER_S = 5.0
"""A socket that a kubelet watched for this long was good: its end is no reason to wait longer."""

_LEFT_ALONE = "other-plugin-left"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Surroundings:
    dirs: KubeletDirs
    registration: Literal["watcher", "classic", "none"]
    engine: Engine
    status: StatusBoard
    metrics: Metrics


class _Company:
    """Whether another plugin serves the resource too, as while one is being replaced.

    The kubelet knows plugins by resource alone. If the one that leaves was in charge, the kubelet
    has none from then on, while the stream of the one that stays is open as ever.
    """

    def __init__(self, dirs: KubeletDirs, resource: str, own: Path) -> None:
        self._folders = (dirs.plugin_watcher, dirs.device_plugins)
        self._resource = resource
        self._own = own
        self._seen_at_s: float | None = None
        self.present = False

    def look(self) -> None:
        """See who is there."""
        self.present = others_serve(self._folders, self._resource, self._own)
        if self.present:
            self._seen_at_s = time.monotonic()

    @property
    def has_left(self) -> bool:
        """True once there was company and is none for longer than a renewal of its socket takes."""
        seen_at_s = self._seen_at_s
        return seen_at_s is not None and time.monotonic() - seen_at_s > STREAM_GRACE_S


@dataclass(slots=True)
class _Socket:
    """A socket and what the kubelet did with it; `file` is None until it is served."""

    path: Path
    opened_before: int
    """Streams that were opened before it was made."""
    file: Identity | None = None
    known_since_s: float | None = None
    """When a kubelet was told of it."""
    refusal: str = ""
    watched_s: float = 0.0
    """For how long a kubelet's stream was open on it."""

    @property
    def removed(self) -> bool:
        """True if the file is gone, or is another one."""
        return self.file is None or identity(self.path) != self.file

    def known(self) -> None:
        """A kubelet knows it from now on; one that fails after it says nothing, and backs off."""
        if self.known_since_s is None:
            self.known_since_s = time.monotonic()

    @property
    def known_for_s(self) -> float:
        return 0.0 if self.known_since_s is None else time.monotonic() - self.known_since_s


class Endpoint:
    """Serves one device plugin to the kubelet until cancelled."""

    def __init__(self, plugin: DevicePlugin, surroundings: Surroundings) -> None:
        self._plugin = plugin
        self._around = surroundings
        self._resource = plugin.snapshot.resource.name
        self._part = f"kubelet:{self._resource}"
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Event()
        plugin.devices.on_streams = self._streams_changed_in_thread
        self._say(self._waiting_text(), ok=surroundings.registration == "none")

    async def run(self) -> None:
        backoff = Backoff(0.1, 30.0)
        try:
            while True:
                kubelet = self._kubelet()
                path = new_socket_path(self._folder(), self._resource)
                socket = _Socket(path, self._plugin.devices.opened_streams)
                reason = await self._serve_one_socket(socket)
                good = socket.watched_s > _STABLE_AFTER_S or reason == _LEFT_ALONE
                if good or self._kubelet() != kubelet:
                    backoff.reset()
                delay_s = backoff.next_s()
                self._around.metrics.socket_renewals.labels(self._resource, reason).inc()
                words = f": {socket.refusal}" if socket.refusal else ""
                self._say(f"no kubelet: {reason}{words}", ok=False)
                log.warning(
                    "renewing the socket of %s in %g s: %s",
                    self._resource,
                    delay_s,
                    reason,
                    extra={"event": "socket-renewal", "resource": self._resource},
                )
                await asyncio.sleep(delay_s)
        finally:
            self._around.status.remove(self._part)
            if self._plugin.devices.on_streams == self._streams_changed_in_thread:
                self._plugin.devices.on_streams = lambda: None

    async def _serve_one_socket(self, socket: _Socket) -> str:
        """Serve a new socket until it is of no use; returns why that is."""
        path = socket.path
        try:
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            remove_leftovers(path.parent, self._resource)
            server = await self._start_server(socket)
        except (OSError, SocketError) as error:
            log.error(  # noqa: TRY400 - the text says it all
                "no socket for %s in %s: %s; the folder (--kubelet-dir) must be local and writable",
                self._resource,
                path.parent,
                error,
                extra={"event": "no-socket", "resource": self._resource},
            )
            return "no-socket"
        try:
            socket.file = identity(path)
            return "socket-removed" if socket.removed else await self._serve(socket)
        finally:
            self._plugin.devices.end_streams()
            await asyncio.shield(asyncio.to_thread(server.stop, STOP_GRACE_S))
            remove_socket(path)
            self._around.metrics.streams.labels(self._resource).set(0)

    async def _start_server(self, socket: _Socket) -> Server:
        """Start serving in a thread; a cancellation meanwhile leaves no server behind."""
        starting = asyncio.ensure_future(
            asyncio.to_thread(self._around.engine.serve, socket.path, self._services(socket))
        )
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            with suppress(OSError, SocketError):  # no server then, and the end of the task counts
                server = await starting
                await asyncio.to_thread(server.stop, STOP_GRACE_S)  # which removes the socket
            raise

    async def _serve(self, socket: _Socket) -> str:
        log.info(
            "serving %s on %s",
            self._resource,
            socket.path,
            extra={"event": "serving", "resource": self._resource, "socket": str(socket.path)},
        )
        self._say(self._waiting_text(), ok=self._around.registration == "none")
        if self._around.registration == "classic":
            return await self._register_and_watch(socket)
        return await self._watch(socket, kubelet=None)

    def _kubelet(self) -> Identity | None:
        """Which kubelet there is; None if there is none, or only its own watcher can tell."""
        if self._around.registration != "classic":
            return None
        return identity(self._around.dirs.kubelet_socket)

    def _folder(self) -> Path:
        dirs = self._around.dirs
        classic = self._around.registration == "classic"
        return dirs.device_plugins if classic else dirs.plugin_watcher

    def _services(self, socket: _Socket) -> list[Service]:
        stats = self._around.metrics.calls.of(self._resource)
        services = [stats.wrap(self._plugin.service())]
        if self._around.registration == "watcher":
            services.append(
                registration_service(
                    self._resource,
                    lambda: self._soon(socket.known),
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
                self._say(f"waiting for {self._around.dirs.kubelet_socket}", ok=False)
                await asyncio.sleep(POLL_S)
                continue
            if await self._register(socket):
                socket.known()
                return await self._watch(socket, kubelet)
            await self._wait_for_another_kubelet(kubelet, backoff.next_s())

    async def _register(self, socket: _Socket) -> bool:
        try:
            await register(
                self._around.dirs.kubelet_socket,
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

        `kubelet` is the one that was told of the socket, if it was told.
        """
        devices = self._plugin.devices
        self._around.metrics.kubelet_restarts.labels(self._resource)
        company = _Company(self._around.dirs, self._resource, socket.path)
        alone_since_s = time.monotonic()
        was_open = False
        seen = socket.opened_before
        ended = devices.opened_streams - devices.open_streams
        while True:
            is_open = devices.open_streams > 0
            if (gone := devices.opened_streams - devices.open_streams) > ended:
                self._around.metrics.kubelet_restarts.labels(self._resource).inc(gone - ended)
                ended = gone
            connected = devices.opened_streams > socket.opened_before
            company.look()
            # A stream that began and ended between two looks was contact, too.
            opened, seen = devices.opened_streams > seen, devices.opened_streams
            if is_open or opened:
                others = "; so it does with another plugin's" if company.present else ""
                self._say(f"the kubelet watches the device list{others}", ok=True)
            if connected and not is_open:
                self._say("the kubelet's stream has ended", ok=False)
            if is_open or was_open or opened:
                alone_since_s = time.monotonic()
            was_open = is_open
            self._around.metrics.streams.labels(self._resource).set(devices.open_streams)
            if reason := self._outdated(socket, kubelet, company):
                return reason
            if connected and time.monotonic() - alone_since_s > STREAM_GRACE_S:
                return "stream-lost"
            if not connected and socket.known_for_s > CONNECT_GRACE_S:
                return "kubelet-did-not-connect"
            # While a kubelet watches, nothing is urgent.
            pause_s = POLL_S * (8 if is_open else 1)
            looked_s = time.monotonic()
            await tick_or(self._turn, pause_s)
            socket.watched_s += time.monotonic() - looked_s if is_open else 0.0

    def _outdated(self, socket: _Socket, kubelet: Identity | None, company: _Company) -> str:
        """Why the socket is of no use whatever its streams do; "" if it is not."""
        if socket.removed:
            return "socket-removed"
        if socket.refusal:
            return "registration-refused"
        if kubelet and self._kubelet() not in (None, kubelet):
            return "kubelet-restarted"
        if company.has_left:
            return _LEFT_ALONE
        return ""

    def _streams_changed_in_thread(self) -> None:
        self._soon(self._turn.set)

    def _soon(self, change: Callable[[], None]) -> None:
        """From a thread of the engine: change the state on the loop, where all of it changes."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(change)

    def _registered(self, socket: _Socket, *, accepted: bool, error: str) -> None:
        """The kubelet said what it makes of the plugin."""
        around = self._around
        result = "accepted" if accepted else "refused"
        around.metrics.registrations.labels(self._resource, around.registration, result).inc()
        if accepted:
            log.info(
                "the kubelet registered %s",
                self._resource,
                extra={"event": "registered", "resource": self._resource},
            )
            return
        if self._around.registration == "watcher":
            # Its path is in the kubelet's back-off now; another one is not.
            socket.refusal = error or "no reason given"
            self._turn.set()
        if self._say(f"the kubelet refused the plugin: {error}", ok=False):
            log.error(
                "the kubelet did not register %s: %s",
                self._resource,
                error,
                extra={"event": "registration-failed", "resource": self._resource},
            )

    def _say(self, text: str, *, ok: bool) -> bool:
        return self._around.status.set(self._part, text, ok=ok)

    def _waiting_text(self) -> str:
        if self._around.registration == "none":
            return "serving without registration"
        if self._around.registration == "classic":
            return "waiting for the kubelet to connect"
        return "waiting for the kubelet's plugin watcher"
