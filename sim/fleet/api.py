"""Requests to the API server for a whole fleet, as JSON: one client, paced, tried again.

lightkube finds the cluster and its credentials; its typed objects would cost a fleet more than
everything else does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from typing import TYPE_CHECKING, Final

import httpx2
from lightkube.config.client_adapter import user_auth

from gpuplugin.core.pacing import Backoff
from gpuplugin.daemon.cluster.kubeapi import NoCluster, async_transport, cluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from typing import Self

    from gpuplugin.core.jsonobject import JsonObject

MERGE: Final = "application/merge-patch+json"
STRATEGIC: Final = "application/strategic-merge-patch+json"
CONNECTIONS: Final = 16
TIMEOUT_S: Final = 10.0
WATCH_S: Final = 300
"""After this the server ends a watch; tokens and certificates are read anew for the next."""
FORBIDDEN, NOT_FOUND, CONFLICT, GONE = 403, 404, 409, 410
_TOO_MANY, _SERVER_ERROR = 429, 500
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_LONGEST_WAIT_S = 60.0
FORBIDDEN_S: Final = 15.0
"""An API server that has just started does not know yet what anybody may do: it says 403."""
_PAGE = 500
_RIGHTS = (
    "sim fleet needs get, list, create, patch and delete on nodes; list, watch and delete on pods; "
    "patch on nodes/status and pods/status; create and patch on leases (docs/fleet.md)"
)

log = logging.getLogger(__name__)


__all__ = ["FleetApi", "NoCluster", "Pace", "Refused"]


class Refused(Exception):
    """The API server refuses a request for good; `code` is that of HTTP."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Pace:
    """Turns at most `per_s` a second, without a burst."""

    def __init__(self, per_s: float) -> None:
        self._step_s = 1.0 / per_s
        self._next_s = 0.0

    async def turn(self) -> None:
        now_s = asyncio.get_running_loop().time()
        at_s = max(now_s, self._next_s)
        self._next_s = at_s + self._step_s
        if at_s > now_s:
            await asyncio.sleep(at_s - now_s)


class FleetApi:
    """A client; an async context manager. Raises `NoCluster` if no cluster is configured."""

    def __init__(self, qps: float) -> None:
        config = cluster()
        self.server = config.cluster.server
        self._pace = Pace(qps)
        self._client = httpx2.AsyncClient(
            base_url=self.server,
            auth=user_auth(config.user),
            timeout=httpx2.Timeout(TIMEOUT_S),
            transport=async_transport(config),
        )
        self._places = asyncio.Semaphore(CONNECTIONS)
        self._let_in = False
        """Whether this user was allowed anything before."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._client.aclose()

    async def get(self, path: str, **query: str) -> JsonObject:
        return await self._lasting("GET", path, query=query)

    async def create(self, path: str, body: JsonObject) -> JsonObject:
        """Raises `Refused`: 409 if there is one of this name."""
        return await self._lasting("POST", path, body)

    async def patch(self, path: str, body: JsonObject, *, paced: bool = True) -> JsonObject:
        """A merge patch; raises `Refused`: 404 if the object is gone."""
        return await self._lasting("PATCH", path, body, paced=paced)

    async def patch_status(self, path: str, body: JsonObject) -> JsonObject:
        """A strategic merge patch of an object's status: conditions of others stay."""
        return await self._lasting("PATCH", f"{path}/status", body, kind=STRATEGIC)

    async def delete(self, path: str, body: JsonObject | None = None) -> None:
        """Remove an object if it is still there."""
        try:
            await self._lasting("DELETE", path, body)
        except Refused as refused:
            if refused.code not in (NOT_FOUND, CONFLICT):
                raise

    async def listed(self, path: str, **query: str) -> tuple[list[JsonObject], str]:
        """All objects, page by page, and the version to watch from."""
        found: list[JsonObject] = []
        query["limit"] = str(_PAGE)
        while True:
            body = await self.get(path, **query)
            metadata = body.get("metadata")
            metadata = metadata if isinstance(metadata, dict) else {}
            items = body.get("items")
            found += items if isinstance(items, list) else []
            query["continue"] = str(metadata.get("continue") or "")
            if not query["continue"]:
                return found, str(metadata.get("resourceVersion") or "0")

    async def watch(
        self, path: str, version: str, **query: str
    ) -> AsyncIterator[tuple[str, JsonObject]]:
        """Events after a version, until the server ends the watch.

        Raises:
            Refused: 410 if the version is too old.
            httpx2.HTTPError: the server cannot be reached.
        """
        query |= {
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S),
        }
        timeout = httpx2.Timeout(TIMEOUT_S, read=WATCH_S + TIMEOUT_S)
        async with self._client.stream("GET", path, params=query, timeout=timeout) as response:
            if response.is_error:
                await response.aread()
                raise Refused(response.status_code, _told(response))
            async for line in response.aiter_lines():
                event = json.loads(line)
                body = event["object"]
                if event["type"] == "ERROR":
                    raise Refused(int(body.get("code", 500)), str(body.get("message")))
                yield event["type"], body

    async def _lasting(
        self,
        method: str,
        path: str,
        body: JsonObject | None = None,
        *,
        query: Mapping[str, str] | None = None,
        kind: str = "",
        paced: bool = True,
    ) -> JsonObject:
        """Make a request, again and again while it fails for a while; raises `Refused`."""
        loop, forbidden_until_s = asyncio.get_running_loop(), math.inf
        backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        kind = kind or (MERGE if method == "PATCH" else "application/json")
        content = None if body is None else json.dumps(body, separators=(",", ":"))
        while True:
            if paced:
                await self._pace.turn()
            try:
                async with self._places:
                    response = await self._client.request(
                        method, path, content=content, params=query, headers={"Content-Type": kind}
                    )
                if not response.is_error:
                    found: JsonObject = response.json()
                    self._let_in = True
                    return found
            except (httpx2.HTTPError, ValueError) as error:
                pause_s = backoff.next_s()
                told = str(error) or repr(error)
                text = f"the API server at {self.server} cannot be reached: {told}"
                log.warning("%s", text, extra={"event": "api-unreachable"})
                await asyncio.sleep(pause_s)
                continue
            code = response.status_code
            passes = code == _TOO_MANY or code >= _SERVER_ERROR
            if code == FORBIDDEN and self._let_in:
                forbidden_until_s = min(forbidden_until_s, loop.time() + FORBIDDEN_S)
                passes = loop.time() < forbidden_until_s
            if not passes:
                raise Refused(code, _told(response))
            pause_s = max(backoff.next_s(), _retry_after_s(response))
            log.warning("%s", _told(response), extra={"event": "api-busy"})
            await asyncio.sleep(pause_s)


def _told(response: httpx2.Response) -> str:
    try:
        message = str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        message = response.reason_phrase
    text = f"{response.status_code} from the API server: {message}"
    return f"{text}; {_RIGHTS}" if response.status_code == FORBIDDEN else text


def _retry_after_s(response: httpx2.Response) -> float:
    # In seconds: the API server uses no other form.
    after = response.headers.get("Retry-After", "")
    wait_s = float(after) if after.isascii() and after.isdecimal() else 0.0
    return min(wait_s, _LONGEST_WAIT_S)
