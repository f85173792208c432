"""Follows the pods that are bound to a fleet's nodes, and writes what becomes of them."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

import httpx2

from gpuplugin.core.pacing import Backoff
from sim.fleet.api import CONFLICT, GONE, NOT_FOUND, Refused
from sim.fleet.pods import asked_pod, pod_status

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from gpuplugin.core.jsonobject import JsonObject
    from sim.fleet.api import FleetApi
    from sim.fleet.node import FleetNode
    from sim.fleet.pods import AskedPod

PODS: Final = "/api/v1/pods"
_BOUND: Final = "spec.nodeName!="
"""A selector of fields: pods that are bound to any node."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0

log = logging.getLogger(__name__)


class Nodes(Protocol):
    """The fleet, as its pods need it."""

    began: datetime

    @property
    def now_s(self) -> float: ...

    def node(self, name: str) -> FleetNode | None: ...

    def start(self, work: Coroutine[object, object, None]) -> None: ...


class PodKeeper:
    """One watch of all bound pods: a selector names no set of nodes."""

    def __init__(self, api: FleetApi, nodes: Nodes) -> None:
        self._api = api
        self._nodes = nodes
        self._known: dict[str, AskedPod] = {}
        self._writing: set[str] = set()
        self._ending: set[str] = set()

    async def follow(self) -> None:
        """List pods, watch them, and list again when the watch cannot go on."""
        backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        while True:
            try:
                bodies, version = await self._api.listed(PODS, fieldSelector=_BOUND)
                self._listed(bodies)
                del bodies
                while True:
                    async for kind, body in self._api.watch(PODS, version, fieldSelector=_BOUND):
                        version = _version(body)
                        if kind != "BOOKMARK":
                            self._seen(body, gone=kind == "DELETED")
                        backoff.reset()
                    await asyncio.sleep(_FIRST_PAUSE_S)
            except Refused as refused:
                if refused.code != GONE:
                    log.warning("pods: %s", refused, extra={"event": "api-refused"})
            except (httpx2.HTTPError, ValueError) as error:
                log.warning("the watch of pods broke: %r", error, extra={"event": "watch-broken"})
            await asyncio.sleep(backoff.next_s())

    def write_changes(self, node: FleetNode) -> None:
        """Write the statuses of pods that changed on a node."""
        for uid in node.changed - self._writing:
            node.changed.discard(uid)
            self._writing.add(uid)
            self._nodes.start(self._write(node, uid))

    def _listed(self, bodies: list[JsonObject]) -> None:
        now = datetime.now(UTC)
        asked = [asked_pod(body, now) for body in bodies]
        there = {pod.uid for pod in asked}
        for uid in [uid for uid in self._known if uid not in there]:
            self._forget(uid)
        # Those that run hold their devices already, for the longest first.
        for pod in sorted(asked, key=lambda pod: -1.0 if pod.age_s is None else pod.age_s)[::-1]:
            self._take(pod)

    def _seen(self, body: JsonObject, *, gone: bool) -> None:
        pod = asked_pod(body, datetime.now(UTC))
        if gone:
            self._forget(pod.uid)
        else:
            self._take(pod)

    def _take(self, pod: AskedPod) -> None:
        node = self._nodes.node(pod.node)
        if node is None:
            return
        if pod.deleted:
            node.remove(pod.uid, self._nodes.now_s)
            if pod.uid not in self._ending:
                self._ending.add(pod.uid)
                self._nodes.start(self._end(pod))
        elif not pod.ended and pod.uid not in self._known:
            for note in filter(None, (pod.note, node.unknown_load(pod))):
                text = f"pod {pod.pod.key}: {note}"
                log.warning("%s", text, extra={"event": "pod-annotation"})
            node.bind(pod, self._nodes.now_s)
            self.write_changes(node)
        self._known[pod.uid] = pod

    def _forget(self, uid: str) -> None:
        pod = self._known.pop(uid, None)
        self._ending.discard(uid)
        node = None if pod is None else self._nodes.node(pod.node)
        if node is not None:
            node.remove(uid, self._nodes.now_s)

    async def _write(self, node: FleetNode, uid: str) -> None:
        try:
            found = node.pod(uid)
            if found is None:
                return
            asked, state = found
            body = pod_status(asked, state, node.number, self._nodes.began, node.health(uid))
            # By its name alone another pod would get it, which has come in its place.
            await self._api.patch_status(_path(asked), {"metadata": {"uid": uid}, **body})
        except Refused as refused:
            if refused.code == CONFLICT:
                node.changed.add(uid)  # until the watch says that it is gone
            elif refused.code != NOT_FOUND:
                raise
        finally:
            self._writing.discard(uid)

    async def _end(self, pod: AskedPod) -> None:
        """Its containers have ended: as its kubelet, let the API server remove it."""
        body: JsonObject = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.uid}}
        await self._api.delete(_path(pod), body)


def _path(pod: AskedPod) -> str:
    return f"/api/v1/namespaces/{pod.pod.namespace}/pods/{pod.pod.name}"


def _version(body: JsonObject) -> str:
    metadata = body.get("metadata")
    return str(metadata.get("resourceVersion")) if isinstance(metadata, dict) else "0"
