"""Writes Events about the GPUs of a fleet's nodes."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from gpuplugin.daemon.cluster.eventqueue import EventQueue
from sim.fleet.api import CONFLICT, NOT_FOUND, Refused
from sim.fleet.objects import EVENT_NAMESPACE, event_body, event_count

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from gpuplugin.core.nodecondition import GpuReport
    from gpuplugin.daemon.cluster.eventqueue import NodeEvent
    from sim.fleet.api import FleetApi

EVENTS: Final = f"/api/v1/namespaces/{EVENT_NAMESPACE}/events"


class EventKeeper:
    """One queue for each node that has had Events; `start` begins work beside everything else."""

    def __init__(
        self, api: FleetApi, start: Callable[[Coroutine[object, object, None]], None]
    ) -> None:
        self._api = api
        self._start = start
        self._queues: dict[str, EventQueue] = {}
        self._sending: set[str] = set()

    def report(self, node: str, reports: Iterable[GpuReport]) -> None:
        for one in reports:
            queue = self._queues.setdefault(node, EventQueue(node))
            queue.add(one, time.monotonic(), datetime.now(UTC))
            if node not in self._sending:
                self._sending.add(node)
                self._start(self._send(node, queue))

    async def _send(self, node: str, queue: EventQueue) -> None:
        try:
            while (event := queue.next()) is not None:
                try:
                    await self._write(node, event)
                except Refused:
                    queue.settled(event, sent=False)
                    raise
                queue.settled(event, sent=True)
        finally:
            self._sending.discard(node)

    async def _write(self, node: str, event: NodeEvent) -> None:
        if event.known:
            try:
                await self._api.patch(f"{EVENTS}/{event.name}", event_count(event))
            except Refused as refused:
                if refused.code != NOT_FOUND:
                    raise
            else:
                return
        try:
            await self._api.create(EVENTS, event_body(event, node))
        except Refused as refused:
            # An earlier attempt succeeded, though its response was lost.
            if refused.code != CONFLICT:
                raise
