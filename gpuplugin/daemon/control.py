"""The daemon's local socket: reports health and what the page shows, and clears a GPU's fault.

Only root and the daemon's own user may use it. What clearing means is in `core.health`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from gpuplugin.core.departures import CannotForget
from gpuplugin.core.health import StillFaulty
from gpuplugin.core.healthboard import UnknownUnit
from gpuplugin.core.pacing import Backoff
from gpuplugin.daemon.logs import log_fact
from gpuplugin.daemon.serving.sockets import identity, listened_on, remove_socket
from gpuplugin.daemon.tasks import wait_period, wait_period_or
from gpuplugin.linesocket import ControlError, decode, encode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from gpuplugin.daemon.files import FileWatch
    from gpuplugin.daemon.http.pageview import PageView
    from gpuplugin.daemon.node import Node
    from gpuplugin.daemon.status import StatusBoard

SOCKET_NAME = ".gpuplugin-control.sock"
"""Hidden, so that the kubelet's plugin watcher passes it over."""

_ANOTHER = (
    "another plugin serves {}, and answers there; the kubelet takes each resource from the newer "
    "one: end one of the two, or give it a --kubelet-dir of its own"
)
POLL_S = 2.0
_FIRST_RETRY_S = 0.2
_RETRY_S = 30.0
_REQUEST_TIMEOUT_S = 5.0
_ACCEPT_TURNS = 2
"""Of the loop: in one a connection is accepted, in the next its transport is made."""
_LINE_LIMIT_BYTES = 64 * 1024
_CREDENTIALS = struct.Struct("3i")

log = logging.getLogger(__name__)


class _Taken(OSError):
    """Another process serves the socket."""


class ControlServer:
    """Serves a socket in `folder`; one that is removed is created again.

    `about` gives what its report says of the daemon's configuration.
    """

    def __init__(
        self,
        folder: Path,
        node: Node,
        status: StatusBoard,
        files: FileWatch,
        page: Callable[[], PageView],
        read_holdings: Callable[[], Awaitable[None]],
        about: Callable[[], Mapping[str, object]] = dict,
    ) -> None:
        """`page` is called in a thread; `read_holdings` tells the node what pods hold now."""
        self._files = files
        self._turn = asyncio.Event()
        self._page = page
        self._path = folder / SOCKET_NAME
        self._node = node
        self._status = status
        self._read_holdings = read_holdings
        self._about = about
        self._problem = ""

    async def run(self) -> None:
        """Serve until cancelled; the socket is removed when this returns."""
        backoff = Backoff(_FIRST_RETRY_S, _RETRY_S)
        while True:
            try:
                await self._serve()
                self._problem = ""
                backoff.reset()
            except OSError as error:
                # The folder may just be removed: then it is there again with the next try.
                self._log_problem(error)
                await asyncio.sleep(backoff.next_s())

    async def _serve(self) -> None:
        """Serve until the socket is no longer there; another plugin's is left to it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while listened_on(self._path):
            self._log_problem(_Taken(_ANOTHER.format(self._path)))
            await wait_period(POLL_S)
        self._path.unlink(missing_ok=True)
        # It does not listen yet: a cancellation meanwhile would leave the socket behind.
        server = await asyncio.start_unix_server(
            self._handle, self._path, limit=_LINE_LIMIT_BYTES, start_serving=False
        )
        made = None
        try:
            self._path.chmod(0o600)
            made = identity(self._path)
            await server.start_serving()
            self._problem = ""
            while True:
                look_s = self._files.follow([self._path.parent], self._turn)
                if identity(self._path) != made:
                    break
                await wait_period_or(self._turn, look_s)
        finally:
            # Raises nothing: an error would take the place of the cancellation of this task.
            if made is None or identity(self._path) == made:
                remove_socket(self._path)
            try:
                # asyncio leaves open what it accepts while the server is closed.
                for _ in range(_ACCEPT_TURNS):
                    await asyncio.sleep(0)
            finally:
                server.close()  # to wait for it would be to wait for clients (Python 3.12)

    def _log_problem(self, error: OSError) -> None:
        if self._problem != str(error):
            self._problem = str(error)
            text = f"the control socket of gpuplugin health cannot be served: {error}"
            path = str(self._path)
            log_fact(log, logging.WARNING, "control-unavailable", text, socket=path)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                line = await reader.readline()
                writer.write(encode(await self._response(line, _caller_uid(writer))))
                await writer.drain()
        except (OSError, ValueError, TimeoutError) as error:
            log.debug("control: %s", error, extra={"event": "control-dropped"})
        finally:
            writer.close()

    async def _response(self, line: bytes, caller_uid: int) -> Mapping[str, object]:
        own_uid = os.geteuid()
        if caller_uid not in (0, own_uid):
            return {"error": f"user {caller_uid} may not: only root and user {own_uid} may"}
        try:
            request = decode(line)
            if "clear" in request:
                return self._clear(str(request["clear"]), caller_uid)
            if "forget" in request:
                return await self._forget(str(request["forget"]), caller_uid)
            if "page" in request:
                return await asyncio.to_thread(self._page_as_json)
        except ControlError as error:
            return {"error": str(error)}
        return self._report()

    def _page_as_json(self) -> Mapping[str, object]:
        page = self._page()
        return {
            "node": page.node,
            "summary": page.summary,
            "tone": page.tone,
            "counts": page.counts,
            "problems": {name: one.text for name, one in page.components.items() if not one.ok},
            "units": [asdict(replace(one, holders=dict(one.holders))) for one in page.units],
            "calls": [asdict(one) for one in page.calls],
            "unseen": dict(page.unseen),
        }

    def _report(self) -> Mapping[str, object]:
        now_s = time.monotonic()
        view = self._node.view
        board, left_out = view.board, view.left_out
        healthy = view.healthy_devices()
        return {
            "pid": os.getpid(),
            "uid": os.geteuid(),
            **self._about(),
            "blind": board.blind,
            "parts": self._status.readiness().as_json()["parts"],
            "resources": {
                resource.name: {"devices": len(resource.devices), "healthy": healthy[resource.name]}
                for resource in view.inventory.resources
            },
            "units": [
                {
                    "uuid": uuid,
                    "index": view.index(uuid),
                    "state": health.state.value,
                    "for_s": round(now_s - health.since_s, 1),
                    "reason": health.fault.reason if health.fault else "",
                    "action": health.fault.action if health.fault else "",
                    "xid": health.fault.xid if health.fault else None,
                    "needs_reset": health.needs_reset,
                    "left_out": uuid in left_out,
                    "unknown": [str(failure) for failure in view.unknown_values(uuid)],
                }
                for uuid, health in board.units.items()
            ],
        }

    def _clear(self, name: str, caller_uid: int) -> Mapping[str, object]:
        """Clear a GPU or MIG device by UUID or index; `all` clears all that can be."""
        view = self._node.view
        units = view.board.units
        chosen = [uuid for uuid in units if name in (uuid, view.index(uuid))]
        if name == "all":
            chosen = [uuid for uuid, health in units.items() if not health.healthy]
        elif not chosen:
            known = ", ".join(view.index(uuid) for uuid in units) or "none"
            raise ControlError(f"no GPU or MIG device is {name!r}; known by index: {known}")
        cleared: list[str] = []
        refused: list[str] = []
        for uuid in chosen:
            try:
                self._node.clear(uuid)
            except (StillFaulty, UnknownUnit) as error:
                refused.append(f"{view.index(uuid)} ({uuid}) is still faulty: {error}")
                continue
            cleared.append(uuid)
            text = f"{uuid} was cleared by user {caller_uid}"
            log_fact(log, logging.WARNING, "health-cleared", text, uuid=uuid, uid=caller_uid)
        if refused and not cleared:
            raise ControlError(
                "; ".join(refused) + "; repair the hardware, and it recovers by itself"
            )
        return {"cleared": cleared, "refused": refused}

    async def _forget(self, uuid: str, caller_uid: int) -> Mapping[str, object]:
        await self._read_holdings()  # a pod may have come since they were read
        try:
            self._node.forget(uuid)
        except UnknownUnit:
            known = ", ".join(gpu.uuid for gpu in self._node.view.gpus) or "none"
            raise ControlError(f"no GPU has the UUID {uuid!r}; known are {known}") from None
        except CannotForget as error:
            raise ControlError(str(error)) from error
        text = f"GPU {uuid} was forgotten by user {caller_uid}"
        log_fact(log, logging.WARNING, "gpu-forgotten", text, uuid=uuid, uid=caller_uid)
        return {"forgotten": uuid}


def _caller_uid(writer: asyncio.StreamWriter) -> int:
    connection: socket.socket = writer.get_extra_info("socket")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, _gid = _CREDENTIALS.unpack(raw)
    return int(uid)
