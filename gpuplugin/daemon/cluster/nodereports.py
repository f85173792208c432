"""Reports GPU health to the Kubernetes API server: Events, and the condition GPUHealthy.

Reports change nothing about the node's devices or readiness, whether or not they are accepted.
`kubeapi` makes the requests and is imported only if reports are wanted; `core.nodecondition` has
their content, `eventqueue` the Events that wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

from gpuplugin.core.pacing import Backoff
from gpuplugin.daemon.calls import HalThread
from gpuplugin.daemon.cluster.eventqueue import EventQueue, NodeCondition, ReportFailed, TokenBucket
from gpuplugin.daemon.tasks import Fatal
from hal import HalHung

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from gpuplugin.config.settings import Settings
    from gpuplugin.core.nodecondition import Condition, GpuReport
    from gpuplugin.daemon.cluster.eventqueue import NodeEvent
    from gpuplugin.daemon.http.metrics import Metrics

HEARTBEAT_S = 300.0
DEADLINE_S = 15.0
"""Longer than a request's own timeouts, which are for one read or write each."""
BURST = 10
EVERY_S = 10.0
FIRST_RETRY_S = 1.0
LAST_RETRY_S = 60.0

_NEVER = float("inf")
_P = ParamSpec("_P")
_T = TypeVar("_T")

log = logging.getLogger(__name__)


class Api(Protocol):
    """The two requests, both blocking; they raise ReportFailed and nothing else."""

    def post_event(self, event: NodeEvent) -> None:
        """Make an Event on the node, or count up one that is known."""

    def patch_condition(self, condition: NodeCondition | None) -> NodeCondition | None:
        """Set the node's condition (None: leave it as it is); returns the stored one."""


class _Lane:
    """The rate limit, counts and log of one kind of report."""

    def __init__(self, kind: str, metrics: Metrics) -> None:
        self._kind = kind
        self._metrics = metrics
        self._bucket = TokenBucket(BURST, EVERY_S)
        self._backoff = Backoff(FIRST_RETRY_S, LAST_RETRY_S)
        self._not_before_s = -_NEVER
        self._problem = ""

    def due_s(self, now_s: float) -> float:
        """When the next request may go: `now_s` or later."""
        return max(self._bucket.due_s(now_s), self._not_before_s)

    def count(self, result: str, times: int = 1) -> None:
        if times:
            self._metrics.node_reports.labels(self._kind, result).inc(times)

    def sent(self, now_s: float) -> None:
        self._bucket.take(now_s)
        self._backoff.reset()
        self.count("sent")
        if self._problem:
            log.info("%ss reach the API server again", self._kind, extra=self._extra("sent"))
        self._problem = ""

    def failed(self, error: ReportFailed, now_s: float) -> None:
        result = "failed" if error.retryable else "refused"
        if error.retryable:
            self._not_before_s = now_s + max(self._backoff.next_s(), error.wait_s)
        else:
            self._bucket.take(now_s)
        self.count(result)
        if self._problem != result:
            text = "%s was not sent: %s" if error.retryable else "%s was refused: %s"
            log.warning(text, self._kind, error, extra=self._extra(result))
        self._problem = result

    def _extra(self, result: str) -> dict[str, str]:
        return {"event": "node-report", "kind": self._kind, "result": result}


class NodeReporter:
    """Sends what `report` was given. `report` and `run` are of one event loop."""

    def __init__(
        self,
        api: Api,
        node: str,
        metrics: Metrics,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = api
        self._monotonic = monotonic
        self._wall = wall
        self._thread = HalThread("node-reports")
        self._wake = asyncio.Event()
        self._event_lane = _Lane("event", metrics)
        self._condition_lane = _Lane("condition", metrics)
        self._events = EventQueue(node)
        self._wanted: Condition | None = None
        self._wanted_since = wall()
        self._settled: Condition | None = None
        self._settled_s = 0.0
        self._stored_read = False
        self._stored: NodeCondition | None = None

    def report(self, reports: Iterable[GpuReport], condition: Condition) -> None:
        """Each of `reports` becomes an Event; `condition` is how the node is now. Never blocks.

        What waits is bounded: the oldest Events are dropped, the last condition never is.
        """
        now_s, now = self._monotonic(), self._wall()
        for one in reports:
            self._event_lane.count("dropped", self._events.add(one, now_s, now))
        if self._wanted is None or self._wanted.status != condition.status:
            self._wanted_since = now
        self._wanted = condition
        self._wake.set()

    async def run(self) -> None:
        while True:
            self._wake.clear()
            wait_s = await self.turn()
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def turn(self) -> float | None:
        """Send what may go now; returns in how many seconds more may, None if nothing waits."""
        while True:
            now_s = self._monotonic()
            self._event_lane.count("dropped", self._events.drop_stale(now_s))
            # The condition first: many Events must not delay it.
            for due_s, send in (
                (self._condition_due_s(now_s), self._send_condition),
                (self._event_due_s(now_s), self._send_event),
            ):
                if due_s <= now_s:
                    await send()
                    break
            else:
                due_s = min(self._condition_due_s(now_s), self._event_due_s(now_s))
                return None if due_s == _NEVER else due_s - now_s

    def _event_due_s(self, now_s: float) -> float:
        return self._event_lane.due_s(now_s) if len(self._events) else _NEVER

    def _condition_due_s(self, now_s: float) -> float:
        if self._wanted is None:
            return _NEVER
        due_s = self._condition_lane.due_s(now_s)
        changed = self._wanted != self._settled
        return due_s if changed else max(due_s, self._settled_s + HEARTBEAT_S)

    async def _send_event(self) -> None:
        event = self._events.next()
        if event is None:
            return
        await self._attempt(
            self._event_lane,
            self._call(self._api.post_event, event),
            lambda sent: self._events.settled(event, sent=sent),
        )

    async def _send_condition(self) -> None:
        wanted = self._wanted
        if wanted is None:
            return
        await self._attempt(
            self._condition_lane,
            self._patch(wanted, self._wanted_since),
            lambda _sent: self._settle(wanted),
        )

    async def _patch(self, wanted: Condition, since: datetime) -> None:
        if not self._stored_read:
            # After a restart the time since which an unchanged status holds is kept.
            self._stored = await self._call(self._api.patch_condition, None)
            self._stored_read = True
        if self._stored is not None and self._stored.status == wanted.status:
            since = self._stored.since
        new = NodeCondition(wanted.status, wanted.reason, wanted.message, since, self._wall())
        self._stored = await self._call(self._api.patch_condition, new) or new

    def _settle(self, condition: Condition) -> None:
        self._settled, self._settled_s = condition, self._monotonic()

    async def _attempt(
        self, lane: _Lane, request: Awaitable[None], settle: Callable[[bool], None]
    ) -> None:
        """Make a request; `settle` is called unless it is to be tried again."""
        try:
            await request
        except ReportFailed as error:
            lane.failed(error, self._monotonic())
            if not error.retryable:
                settle(False)
        else:
            lane.sent(self._monotonic())
            settle(True)

    async def _call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return await self._thread.call(DEADLINE_S, function, *args, **kwargs)
        except HalHung:
            text = f"no response from the API server within {DEADLINE_S:g} s"
            raise ReportFailed(text, retryable=True) from None


def make_reporter(settings: Settings, metrics: Metrics) -> NodeReporter | None:
    """None if no reports are wanted; raises `Fatal` without a client library or a cluster."""
    options = settings.daemon
    if not options.kubernetes_reports:
        return None
    try:
        from gpuplugin.daemon.cluster.kubeapi import KubeApi, NoCluster
    except ImportError as error:
        raise Fatal(
            "--kubernetes-reports needs a Kubernetes client, which is not installed "
            f"({error}): pip install 'gpuplugin[kubernetes]'"
        ) from error
    try:
        api = KubeApi(options.node_name)
    except NoCluster as error:
        raise Fatal(f"--kubernetes-reports: {error}") from error
    return NodeReporter(api, options.node_name, metrics)
