"""Keeps the ResourceSlices of this node at the API server as the node's devices are.

Slices are followed all the time: the kubelet deletes them when it starts, and nobody else puts
them back. What to write is decided in `core.dra.slices`. Imported only where DRA is wanted.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import httpx2
from lightkube.generic_resource import create_global_resource
from lightkube.models.meta_v1 import ObjectMeta, OwnerReference
from lightkube.resources.core_v1 import Node

from gpuplugin.core.dra.slices import (
    Create,
    Delete,
    Stored,
    Update,
    dropped_gates,
    stored_replicas,
    trial_spec,
    writes,
)
from gpuplugin.core.pacing import Backoff
from gpuplugin.daemon.cluster.kubeapi import async_client_of, watch_broke
from gpuplugin.daemon.dra.claimapi import FIELD_MANAGER
from gpuplugin.daemon.dra.claimstore import to_lock
from gpuplugin.daemon.logs import log_fact
from gpuplugin.daemon.tasks import alone, wait_period, wait_period_or

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lightkube import AsyncClient, SingleConfig
    from lightkube.generic_resource import GenericGlobalResource
    from lightkube.operators import BinaryOperator, SequenceOperator

    from gpuplugin.core.dra.devices import Offer
    from gpuplugin.core.dra.slices import Pool, Write
    from gpuplugin.core.jsonobject import JsonObject
    from gpuplugin.daemon.http.metrics import Metrics
    from gpuplugin.daemon.status import StatusBoard

COMPONENT: Final = "slices"
SHARES_GATE, TAINTS_GATE = "DRAConsumableCapacity", "DRADeviceTaints"
REQUEST_TIMEOUT_S = 10.0
LOOK_S = 15.0
"""How often to look whether a device plugin has left the node."""
LEAD_S = 0.5
"""How often to look whether the instance that publishes has ended."""
WATCH_S = 300
"""After this the server ends a watch, and another one begins."""
_PAUSE_S = 0.1
_STABLE_AFTER_S = 10.0
"""What fails after so long is no reason to wait longer before the next try."""

ResourceSlice = create_global_resource("resource.k8s.io", "v1", "ResourceSlice", "resourceslices")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Published:
    """What was written: the version of the devices, and the feature gates that are off."""

    version: int
    dropped: frozenset[str]


class _Anew(Exception):
    """Slices are to be listed again, with a new connection."""


class _WatchBroken(Exception):
    """As servers and proxies do now and then: what is published is as good as before."""


class SlicePublisher:
    """Publishes the devices that `offer` was last given; all of it on one event loop.

    Of several instances on a node the one that has locked the file `lead` publishes, until it ends:
    two would undo each other's order of devices for ever.
    """

    def __init__(
        self,
        pool: Pool,
        lead: Path,
        config: SingleConfig,
        status: StatusBoard,
        metrics: Metrics,
        listed: Callable[[Mapping[str, int]], object] = lambda _offered: None,
    ) -> None:
        """`listed` is given the replicas of what is offered, before anything is written."""
        self._pool = pool
        self._lead = lead
        self._config = config
        self._status = status
        self._metrics = metrics
        self._listed = listed
        self._offers: tuple[Offer, ...] = ()
        self._version = 0
        self._turn = asyncio.Event()
        self._stored: dict[str, Stored] = {}
        self._gone: set[str] = set()
        """UIDs of slices that were deleted since the last list."""
        self._dropped: frozenset[str] = frozenset()
        self._backoff = Backoff(_PAUSE_S, 30.0)
        self._anew = asyncio.Event()
        self._leads = False
        self._elsewhere: frozenset[str] = frozenset()
        """Resources that a device plugin offers on this node."""
        self.published: Published | None = None
        status.set(COMPONENT, "nothing was published yet", ok=False)

    def offer(self, offers: Sequence[Offer]) -> None:
        """Publish these devices, in this order."""
        self._offers = tuple(offers)
        self._version += 1
        self._turn.set()

    def look_again(self) -> None:
        """List the slices anew: that somebody deleted them may have been missed."""
        self._anew.set()

    async def run(self) -> None:
        """Publish until cancelled; slices stay when this ends: pods keep what they have."""
        self._leads = False
        with to_lock(self._lead) as descriptor:
            while True:
                began_s, pause_s = time.monotonic(), _PAUSE_S
                try:
                    await alone(partial(self._follow, descriptor), "slices")
                except* _Anew:
                    pass
                except* _WatchBroken as group:
                    pause_s = self._pause_s(began_s)
                    log.debug("%s", _reason(group), extra={"event": "slices-watch"})
                except* Exception as group:  # noqa: BLE001 - responses of other servers, tokens
                    pause_s = self._pause_s(began_s)
                    self._metrics.dra_slice_writes.labels(result="failed").inc()
                    reason = _reason(group)
                    if self._status.set(COMPONENT, f"not published: {reason}", ok=False):
                        text = f"ResourceSlices cannot be published, trying again: {reason}"
                        log_fact(log, logging.WARNING, "slices-failed", text)
                await asyncio.sleep(pause_s)

    def _pause_s(self, began_s: float) -> float:
        """How long to wait after a failure of what was begun then."""
        if time.monotonic() - began_s > _STABLE_AFTER_S:
            self._backoff.reset()
        return self._backoff.next_s()

    async def _follow(self, descriptor: int) -> None:
        """With one connection: list, then write whatever is not as it should be."""
        timeout = httpx2.Timeout(REQUEST_TIMEOUT_S)
        async with async_client_of(self._config, timeout, field_manager=FIELD_MANAGER) as client:
            self._anew.clear()
            owner = await self._owner(client)
            self._dropped = await self._missing_gates()
            listing = client.list(ResourceSlice, fields=self._mine())
            found = [_stored(one) async for one in listing]
            self._stored = {one.name: one for one in found}
            self._gone = set()
            self._listed(stored_replicas(found))
            self._turn.set()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch(client, listing.resourceVersion))
                tasks.create_task(self._publish(client, owner))
                tasks.create_task(self._until_anew())
                if not self._leads:
                    tasks.create_task(self._until_lead(descriptor))

    async def _until_lead(self, descriptor: int) -> None:
        while not _locked(descriptor):
            text = "another instance of the driver publishes; this one will when that has ended"
            if self._status.set(COMPONENT, text, ok=True):
                log_fact(log, logging.INFO, "slices-of-another", text)
            await wait_period(LEAD_S)
        self._leads = True
        self._turn.set()

    async def _until_anew(self) -> None:
        """A watch on a broken connection shows nothing; tokens and what the node has change."""
        await wait_period_or(self._anew, LOOK_S if self._elsewhere else WATCH_S + 10)
        raise _Anew

    async def _missing_gates(self) -> frozenset[str]:
        """The feature gates without which a device would be stored as something else.

        Asked without storing anything: an exclusive GPU in place of a shared one would be given
        out at once.
        """
        spec = trial_spec(self._pool)
        metadata = ObjectMeta(generateName=f"{self._pool.slice_name(0)[:200]}-trial-")
        timeout = httpx2.Timeout(REQUEST_TIMEOUT_S)
        async with async_client_of(self._config, timeout, dry_run=True) as client:
            made = await client.create(ResourceSlice(metadata=metadata, spec=spec))
        return dropped_gates(spec, _stored(made).spec)

    def _mine(self) -> dict[str, str | BinaryOperator | SequenceOperator]:
        return {"spec.nodeName": self._pool.node, "spec.driver": self._pool.driver}

    async def _owner(self, client: AsyncClient) -> OwnerReference:
        """Slices go with their node; what a device plugin offers there is not offered again.

        The scheduler takes a resource from the device plugin as long as the node has any of it.
        """
        node = await client.get(Node, self._pool.node)
        allocatable = (node.status.allocatable if node.status else None) or {}
        self._elsewhere = frozenset(name for name, count in allocatable.items() if count != "0")
        uid = (node.metadata.uid if node.metadata else None) or ""
        return OwnerReference(
            apiVersion="v1", kind="Node", name=self._pool.node, uid=uid, controller=True
        )

    async def _watch(self, client: AsyncClient, version: str) -> None:
        changes = client.watch(
            ResourceSlice, fields=self._mine(), server_timeout=WATCH_S, resource_version=version
        )
        try:
            async for operation, one in changes:
                self._seen(operation, _stored(one))
        except httpx2.HTTPError as error:
            if watch_broke(error):
                raise _WatchBroken(str(error)) from error
            raise

    def _seen(self, operation: str, seen: Stored) -> None:
        known = self._stored.get(seen.name)
        if operation == "DELETED":
            self._gone.add(seen.uid)
            if known is not None and known.uid == seen.uid:
                del self._stored[seen.name]
                self._turn.set()
        elif known is None or _newer(seen, known):
            self._stored[seen.name] = seen
            self._turn.set()

    async def _publish(self, client: AsyncClient, owner: OwnerReference) -> None:
        while True:
            await self._turn.wait()
            self._turn.clear()
            if not (self._version and self._leads):
                continue
            version = self._version
            if any(isinstance(write, Create) for write in self._due()):
                # Slices that are gone went with the node perhaps: one that is back is another one.
                owner = await self._owner(client)
            for write in self._due():
                await self._write(client, owner, write)
            if self._turn.is_set():
                continue
            self.published = Published(version, self._dropped)
            self._tell()

    def _due(self) -> tuple[Write, ...]:
        return writes(self._possible(), self._pool, self._stored.values())

    def _possible(self) -> list[Offer]:
        """What this API server can express: a GPU is never offered whole in place of shares."""
        return [
            offer
            for offer in self._offers
            if offer.resource not in self._elsewhere
            and not (offer.shared and SHARES_GATE in self._dropped)
            and not (offer.taints and TAINTS_GATE in self._dropped)
        ]

    async def _write(self, client: AsyncClient, owner: OwnerReference, write: Write) -> None:
        await self._put(client, owner, write)
        self._metrics.dra_slice_writes.labels(result="ok").inc()

    async def _put(self, client: AsyncClient, owner: OwnerReference, write: Write) -> None:
        match write:
            case Create(name=name, spec=spec):
                metadata = ObjectMeta(name=name, ownerReferences=[owner])
                made = await client.create(ResourceSlice(metadata=metadata, spec=spec))
                self._keep(_stored(made), spec)
            case Update(stored=stored, spec=spec):
                metadata = ObjectMeta(
                    name=stored.name,
                    resourceVersion=stored.resource_version,
                    ownerReferences=[owner],
                )
                made = await client.replace(ResourceSlice(metadata=metadata, spec=spec))
                self._keep(_stored(made), spec)
            case Delete(stored=stored):
                try:
                    await client.delete(ResourceSlice, stored.name)
                except httpx2.HTTPStatusError as error:
                    if error.response.status_code != httpx2.codes.NOT_FOUND:
                        raise
                self._stored.pop(stored.name, None)

    def _keep(self, stored: Stored, sent: JsonObject) -> None:
        """What the server made of a slice: fields of features that are off are not there.

        The watch may have shown what came after it before this response was read.
        """
        known = self._stored.get(stored.name)
        if stored.uid in self._gone:
            self._turn.set()
        elif known is None or _newer(stored, known):
            self._stored[stored.name] = stored
        dropped = dropped_gates(sent, stored.spec)
        if not dropped <= self._dropped:
            self._dropped |= dropped
            self._turn.set()

    def _tell(self) -> None:
        count = sum(len(_devices(one.spec)) for one in self._stored.values())
        missing = len(self._offers) - len(self._possible())
        self._metrics.dra_devices_left_out.set(missing)
        slices = len(self._stored)
        texts = [f"{count} devices in {slices} {'slice' if slices == 1 else 'slices'}"]
        if self._dropped:
            gates = " and ".join(sorted(self._dropped))
            some = "gate" if len(self._dropped) == 1 else "gates"
            texts.append(f"switch on the feature {some} {gates}")
        if names := self._elsewhere.intersection(offer.resource for offer in self._offers):
            texts.append(
                f"a device plugin offers {', '.join(sorted(names))} on this node: remove it from "
                "the node, or use --allocation device-plugin; pods of both would share GPUs unseen"
            )
        if missing:
            texts[0] += f", {missing} devices are left out"
        text, ok = "; ".join(texts), not (names or self._dropped)
        if self._status.set(COMPONENT, text, ok=ok):
            level = logging.INFO if ok else logging.WARNING
            log_fact(log, level, "slices-published", f"published {text}")


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _stored(one: GenericGlobalResource) -> Stored:
    metadata = one.metadata or ObjectMeta()
    spec: JsonObject = dict(one.get("spec") or {})
    return Stored(metadata.name or "", metadata.uid or "", metadata.resourceVersion or "", spec)


def _newer(seen: Stored, known: Stored) -> bool:
    """Whether a watch shows something newer than an own write that came back sooner."""
    if seen.uid != known.uid:
        return True
    try:
        return int(seen.resource_version) > int(known.resource_version)
    except ValueError:
        return seen.resource_version != known.resource_version


def _devices(spec: JsonObject) -> list[object]:
    devices = spec.get("devices")
    return devices if isinstance(devices, list) else []


def _reason(group: BaseExceptionGroup[Exception]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, httpx2.HTTPError | OSError):
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error}"
