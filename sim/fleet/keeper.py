"""Keeps a fleet's nodes at the API server, in time: objects, leases, status. One task each."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from gpuplugin.core.gpulabels import differences, is_own
from gpuplugin.core.jsonobject import JsonObject, part
from gpuplugin.core.nodecondition import condition_of
from gpuplugin.daemon.logs import log_fact
from gpuplugin.daemon.status import StatusBoard
from gpuplugin.linesocket import ControlError
from hal import HalError
from sim.fleet.api import CONFLICT, NOT_FOUND, Refused
from sim.fleet.eventkeeper import EventKeeper
from sim.fleet.metrics import FleetFamilies
from sim.fleet.node import FleetNode
from sim.fleet.objects import (
    FLEET,
    LEASE_NAMESPACE,
    PodAddresses,
    addresses,
    lease_body,
    lease_renewal,
    node_body,
    node_conditions,
    node_info,
    node_status,
    taints,
)
from sim.fleet.podkeeper import PodKeeper
from sim.node.control import injected
from sim.node.pools import SCENARIO_LABEL

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Mapping, Sequence

    from gpuplugin.daemon.http.textformat import Family
    from sim.fleet.api import FleetApi
    from sim.fleet.plan import FleetPlan
    from sim.node.scenario import Scenario

NODES: Final = "/api/v1/nodes"
LEASES: Final = f"/apis/coordination.k8s.io/v1/namespaces/{LEASE_NAMESPACE}/leases"
STEP_S: Final = 1.0
"""How often nodes are brought to the present, where something happens on them."""
REPORT_S: Final = 300.0
"""A kubelet (1.36) reports a status that has not changed so often: nodeStatusReportFrequency."""
_RENEWAL_STEP_S = 0.25
_MADE_AT_ONCE = 10
_REMOVAL_S = 120.0

log = logging.getLogger(__name__)


class NotOurs(Exception):
    """A node of the wanted name exists, and another one keeps it; the text says what to do."""


@dataclass(slots=True)
class _Kept:
    """A node at the API server; times are in seconds since the fleet began."""

    node: FleetNode
    scenario: Scenario
    uid: str = ""
    renew_at_s: float = 0.0
    report_at_s: float = 0.0
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Of its GPUs, as they are stored."""
    conditions: Sequence[JsonObject] = ()
    """As they are stored."""
    renewing: bool = False
    reporting: bool = False


class Keeper:
    """Keeps the nodes of a plan from `run` to its end."""

    def __init__(self, plan: FleetPlan, api: FleetApi) -> None:
        self._plan = plan
        self._api = api
        self._kept: dict[str, _Kept] = {}
        self._began_s = time.monotonic()
        self.began = datetime.now(UTC)
        self._running: set[asyncio.Task[None]] = set()
        self._registered = False
        """Whether any node may be at the API server."""
        self._pods = PodKeeper(api, self)
        self._events = EventKeeper(api, self.start)
        self.status = StatusBoard()

    def node(self, name: str) -> FleetNode | None:
        """The node of this name, None if the fleet has none."""
        kept = self._kept.get(name)
        return None if kept is None else kept.node

    @property
    def now_s(self) -> float:
        return time.monotonic() - self._began_s

    async def families(self) -> list[Family]:
        """The metrics of all nodes at this moment."""
        found = FleetFamilies()
        for name, kept in list(self._kept.items()):
            view = kept.node.view(self.now_s)
            found.add(name, view, kept.node.model.now_s)
            await asyncio.sleep(0)
        return list(found.by_name.values())

    def inject(self, request: Mapping[str, object]) -> Mapping[str, object]:
        """Inject a fault into a node, as `sim.node.control` spells it; raises `ControlError`."""
        name = str(request.get("node") or "")
        node = self.node(name)
        if node is None:
            first, last = f"{self._plan.prefix}-0", f"{self._plan.prefix}-{self._plan.count - 1}"
            told = f"the fleet has no node {name!r}" if name else "name a node with --node"
            raise ControlError(f"{told}: it has {first} to {last}")
        node.advance(self.now_s)
        response = injected(node.model, request)
        node.advance(self.now_s)
        return response

    async def run(self, stop: asyncio.Event, ready: asyncio.Event) -> None:
        """Register the nodes, keep them until `stop`, remove them; `ready` is set between.

        Raises:
            ConfigurationMisfit: the configuration does not suit a scenario's GPUs.
            NotOurs: a node of one of the names exists and is not of this fleet.
            Refused: the API server refuses what a fleet needs.
        """
        await self._make()
        try:
            if not await _unless(stop, self._register()):
                return
            ready.set()
            async with asyncio.TaskGroup() as tasks:
                works = (self._renew(), self._follow(), self._pods.follow())
                following = [tasks.create_task(one) for one in works]
                await stop.wait()
                for task in (*following, *self._running):
                    task.cancel()
        finally:
            if self._registered and not self._plan.keep:
                await self._remove_all()

    async def _make(self) -> None:
        number, addresses = 0, PodAddresses()
        self._began_s, self.began = time.monotonic(), datetime.now(UTC)
        for pool in self._plan.pools:
            for _ in range(pool.count):
                name = f"{self._plan.prefix}-{number}"
                of_pool = (pool.scenario, pool.settings, self._plan.machine)
                node = FleetNode(name, number, *of_pool, addresses)
                self._kept[name] = _Kept(node, pool.scenario)
                number += 1
                if number % _MADE_AT_ONCE == 0:
                    await asyncio.sleep(0)

    async def _register(self) -> None:
        known, _ = await self._api.listed(NODES, labelSelector=f"{FLEET}={self._plan.prefix}")
        uids = dict(map(_identity, known))
        self._registered = True
        surplus = [name for name in uids if name not in self._kept]
        await _all(self._api.delete(f"{NODES}/{name}") for name in surplus)
        await _all(self._register_one(kept, name in uids) for name, kept in self._kept.items())
        # Leases and reports are spread evenly over their periods.
        count, now_s = len(self._kept), self.now_s
        for place, kept in enumerate(self._kept.values()):
            kept.renew_at_s = now_s + self._renewal_s * place / count
            kept.report_at_s = now_s + REPORT_S * (place + 1) / count
        text = f"{count} nodes are registered, {len(uids) - len(surplus)} of them adopted"
        log_fact(log, logging.INFO, "fleet-registered", text, nodes=count)
        self.status.set("nodes", text, ok=True)

    async def _register_one(self, kept: _Kept, known: bool) -> None:
        name, machine, scenario = kept.node.name, self._plan.machine, kept.scenario
        status = self._status(kept)
        kept.labels = _labels(kept.node)
        labels = {SCENARIO_LABEL: scenario.name, **kept.labels}
        body = node_body(
            name, self._plan.prefix, scenario.name, kept.node.number, machine, status, labels
        )
        found = None if known else await self._create(body)
        _, kept.uid = _identity(found or await self._adopt(kept, body))
        await self._create_lease(kept)

    async def _create(self, body: JsonObject) -> JsonObject | None:
        """None if there is one of this name."""
        try:
            return await self._api.create(NODES, body)
        except Refused as refused:
            if refused.code != CONFLICT:
                raise
            return None

    async def _adopt(self, kept: _Kept, body: JsonObject) -> JsonObject:
        """Take over a node of an earlier run, or of a request whose response was lost."""
        name, number = kept.node.name, kept.node.number
        found = await self._api.get(f"{NODES}/{name}")
        labels = part(part(found, "metadata"), "labels")
        if labels.get(FLEET) != self._plan.prefix:
            del self._kept[name]
            raise NotOurs(
                f"node {name} exists and is not of this fleet (its label {FLEET} is not "
                f"{self._plan.prefix!r}): choose another --name-prefix"
            )
        path = f"{NODES}/{name}"
        new = part(part(body, "metadata"), "labels")
        old = {key: str(value) for key, value in labels.items() if is_own(key)}
        changed = dict.fromkeys(old.keys() - new.keys()) | new
        wanted: JsonObject = {"metadata": {"labels": changed}}
        spec = part(found, "spec")
        if (wanted_taints := taints(spec, self._plan.machine)) != (spec.get("taints") or []):
            wanted["spec"] = {"taints": wanted_taints}
        found = await self._api.patch(path, wanted)
        stored = part(found, "status").get("conditions")
        kept.conditions = stored if isinstance(stored, list) else []
        fixed = {"addresses": addresses(name, number), "nodeInfo": node_info(name)}
        status = {**self._status(kept), **fixed}
        await self._api.patch_status(path, {"status": status})
        return found

    async def _create_lease(self, kept: _Kept) -> None:
        now = datetime.now(UTC)
        body = lease_body(kept.node.name, kept.uid, self._plan.lease_s, now)
        try:
            await self._api.create(LEASES, body)
        except Refused as refused:
            if refused.code != CONFLICT:
                raise
            await self._api.patch(f"{LEASES}/{kept.node.name}", body)

    @property
    def _renewal_s(self) -> float:
        return self._plan.lease_s / 4

    async def _renew(self) -> None:
        """Renew leases, a few at a time."""
        while True:
            now_s = self.now_s
            for kept in self._kept.values():
                if kept.renew_at_s <= now_s and not kept.renewing:
                    kept.renewing = True
                    late = now_s - kept.renew_at_s >= self._renewal_s
                    kept.renew_at_s = (now_s if late else kept.renew_at_s) + self._renewal_s
                    self.start(self._renew_one(kept))
            await asyncio.sleep(_RENEWAL_STEP_S)

    async def _renew_one(self, kept: _Kept) -> None:
        try:
            body = lease_renewal(datetime.now(UTC))
            await self._api.patch(f"{LEASES}/{kept.node.name}", body, paced=False)
        except Refused as refused:
            if refused.code != NOT_FOUND:
                raise
            if await self._is_there(kept):
                await self._create_lease(kept)
        finally:
            kept.renewing = False

    async def _is_there(self, kept: _Kept) -> bool:
        """False, and it is kept no longer, if somebody deleted the node."""
        try:
            await self._api.get(f"{NODES}/{kept.node.name}")
        except Refused as refused:
            if refused.code != NOT_FOUND:
                raise
            if self._kept.pop(kept.node.name, None) is not None:
                text = f"node {kept.node.name} was deleted: the fleet keeps it no longer"
                log_fact(log, logging.WARNING, "node-deleted", text, node=kept.node.name)
            return False
        return True

    async def _follow(self) -> None:
        """Bring nodes to the present, and report those whose status changed or is old."""
        while True:
            for kept in list(self._kept.values()):
                now_s = self.now_s
                if kept.node.next_s <= now_s:
                    kept.node.advance(now_s)
                    await asyncio.sleep(0)
                self._pods.write_changes(kept.node)
                if self._plan.reports:
                    self._events.report(kept.node.name, kept.node.take_reports())
                if (kept.node.dirty or kept.report_at_s <= now_s) and not kept.reporting:
                    kept.reporting, kept.node.dirty = True, False
                    kept.report_at_s = now_s + REPORT_S
                    self.start(self._report(kept))
            self.status.beat()
            await asyncio.sleep(STEP_S)

    async def _report(self, kept: _Kept) -> None:
        try:
            path = f"{NODES}/{kept.node.name}"
            await self._api.patch_status(path, {"status": self._status(kept)})
            labels = _labels(kept.node, kept.labels)
            if labels != kept.labels:
                changed = differences(kept.labels, labels)
                await self._api.patch(path, {"metadata": {"labels": changed}})
                kept.labels = labels
        except Refused as refused:
            if refused.code != NOT_FOUND:
                raise
            await self._is_there(kept)
        finally:
            kept.reporting = False

    def _status(self, kept: _Kept) -> JsonObject:
        kept.node.dirty = False
        gpus = condition_of(kept.node.plugin.view) if self._plan.reports else None
        kept.conditions = node_conditions(gpus, kept.conditions, datetime.now(UTC))
        return node_status(kept.node.amounts(), self._plan.machine, kept.conditions)

    def start(self, work: Coroutine[object, object, None]) -> None:
        """Do it beside everything else; what the API server refuses is logged."""
        task = asyncio.create_task(self._logged(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _logged(self, work: Coroutine[object, object, None]) -> None:
        try:
            await work
        except Refused as refused:
            log.warning("%s", refused, extra={"event": "api-refused"})

    async def _remove_all(self) -> None:
        """What has the fleet's label: also what was registered without a response."""
        selector = f"{FLEET}={self._plan.prefix}"
        try:
            async with asyncio.timeout(_REMOVAL_S):
                found, _ = await self._api.listed(NODES, labelSelector=selector)
                names = [name for name, _ in map(_identity, found)]
                await _all(self._api.delete(f"{NODES}/{name}") for name in names)
        except (TimeoutError, Refused) as error:
            text = f"nodes are left: kubectl delete nodes -l {selector} ({error!r})"
            log_fact(log, logging.WARNING, "fleet-left", text)
        else:
            log_fact(log, logging.INFO, "fleet-removed", f"{len(names)} nodes are removed")


async def _unless(stop: asyncio.Event, work: Coroutine[object, object, None]) -> bool:
    """Do it unless `stop` comes first; False then. Raises what `work` raises."""
    task, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        return task.done() and not stop.is_set()
    finally:
        for one in (task, stopping):
            one.cancel()
        await asyncio.gather(task, stopping, return_exceptions=True)


def _labels(node: FleetNode, before: Mapping[str, str] = MappingProxyType({})) -> Mapping[str, str]:
    """Those of the node's GPUs; as before while its driver cannot be read."""
    try:
        return node.labels()
    except HalError:
        return before


async def _all(works: Iterable[Coroutine[object, object, None]]) -> None:
    """All at once; the first that fails ends the others."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for work in works:
                tasks.create_task(work)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


def _identity(body: JsonObject) -> tuple[str, str]:
    metadata = part(body, "metadata")
    return str(metadata.get("name")), str(metadata.get("uid"))
