"""Events of GPUs: NVML's event set, and GPUs that appear and disappear.

What an Xid means is not known here; see `hal.xid`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from typing import TYPE_CHECKING, Final

from hal.errors import HalError, HalHung
from hal.nvml.api import NO_INSTANCE, Code, EventType, NvmlError
from hal.nvml.failures import call_failure, hal_error
from hal.nvml.values import named
from hal.types import EccError, Event, GpuAppeared, GpuDisappeared, GpuState, XidError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hal.nvml.api import EventData, EventSet, Handle, NvmlApi
    from hal.nvml.inventory import Inventory, Snapshot

_log = logging.getLogger(__name__)

_WANTED: Final = EventType.XID | EventType.DOUBLE_BIT_ECC | EventType.SINGLE_BIT_ECC

WAIT_S: Final = 5.0
"""The longest wait inside NVML: it cannot be interrupted, so this bounds how soon the driver can be
opened again, and a GPU that appeared is listened to."""

_STEP_S: Final = 0.01

_MAX_BATCH: Final = 1024
"""The most events that one call returns, so that a storm of them cannot hold the caller."""


class Watcher:
    """The events of one connection to NVML. `wait` is for one thread, `close` for any other."""

    def __init__(
        self,
        api: NvmlApi,
        inventory: Inventory,
        rescan_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._inventory = inventory
        self._rescan_s = rescan_s
        self._clock = clock
        self._closing = threading.Event()
        self._busy = threading.Lock()
        self.waits = False
        """True while nothing is done but to wait for the driver to report an event."""
        self.thread = 0
        """The identifier of the thread that is in `wait`, or was in it last."""
        self._responding: frozenset[str] | None = None
        self._scanned_at = clock()
        self._scans_seen = inventory.scans
        self._set: EventSet | None = None
        self._uuids: dict[Handle, str] = {}
        self._pending: list[Event] = []
        """Changes that no call has returned yet: a call may fail after it found them."""
        self._warned: set[str] = set()

    def begin(self, start: Snapshot) -> None:
        """What changes after `start` is reported; otherwise, what changes after the first scan."""
        self._responding = _responding(start)
        self._scans_seen = self._inventory.scans

    def wait(self, timeout_s: float) -> Sequence[Event]:
        """As `hal.Backend.wait_events`; after a `HalError` the next call starts afresh."""
        with self._busy:
            self.thread = threading.get_ident()
            try:
                return self._wait(timeout_s)
            except NvmlError as err:
                self._drop_set()
                raise hal_error(err, "Waiting for GPU events") from err
            except HalError:
                self._drop_set()
                raise
            finally:
                if self._closing.is_set():
                    self._drop_set()  # whoever closed it did not wait for this call

    def close(self, timeout_s: float, *, anyway: bool = False) -> bool:
        """Make `wait` return and free the event set; False if it does not return in time.

        A wait for events inside NVML is waited for only with `anyway`.
        """
        self._closing.set()
        deadline_s = time.monotonic() + timeout_s
        while not self._busy.acquire(timeout=min(_STEP_S, max(0.0, deadline_s - time.monotonic()))):
            if time.monotonic() >= deadline_s or (self.waits and not anyway):
                return False
        try:
            self._drop_set()
        finally:
            self._busy.release()
        return True

    def _wait(self, timeout_s: float) -> list[Event]:
        deadline = self._clock() + timeout_s
        while not self._closing.is_set():
            if self._scan_due() and (events := self._changes()):
                return events
            left_ms = max(0, round((deadline - self._clock()) * 1000))
            slice_ms = min(left_ms, round(WAIT_S * 1000))
            events = self._take(slice_ms)
            if events or left_ms <= slice_ms:
                return events
        return []

    def _scan_due(self) -> bool:
        """True if somebody else has scanned the GPUs, or it is time to do so here."""
        scanned = self._inventory.scans != self._scans_seen
        return scanned or self._clock() - self._scanned_at >= self._rescan_s

    def _take(self, timeout_ms: int) -> list[Event]:
        """One event, waited for, and then all others that are there already."""
        if self._set is None:
            self._make_set()
            if self._pending:
                return self._take_pending()
        if self._set is None or not self._uuids:
            # NVML does not document a wait on an empty set.
            self._closing.wait(timeout_ms / 1000)
            return []
        events: list[Event] = []
        while len(events) < _MAX_BATCH:
            try:
                data = self._wait_in_driver(self._set, 0 if events else timeout_ms)
            except NvmlError as err:
                if err.code == Code.TIMEOUT:
                    break
                # With a lost GPU in it, a set does nothing but fail: the next is made without.
                self._drop_set()
                self._scanned_at = -math.inf
                changes = self._changes() if err.is_lost and not events else []
                if not changes and not events:
                    # Raised even for a lost GPU if all of them respond, or the caller would spin.
                    raise
                events.extend(changes)
                break
            events.extend(self._events(data))
        return events

    def _wait_in_driver(self, events: EventSet, timeout_ms: int) -> EventData:
        self.waits = timeout_ms > 0 and not self._closing.is_set()
        try:
            return self._api.event_wait(events, timeout_ms)
        finally:
            self.waits = False

    def _changes(self) -> list[Event]:
        """GPUs that appeared or disappeared since the last scan; the event set follows."""
        snapshot, lost = self._scan(anew=self._scanned_at == -math.inf)
        if lost:
            self._drop_set()
        elif self._set is not None:
            # Added to the set in use: a new set would lose events that wait in the old one.
            self._register_missing(self._set, snapshot)
        return self._take_pending()

    def _make_set(self) -> None:
        snapshot, _ = self._scan(anew=True)
        self._set = self._api.event_set_create()
        self._uuids = {}
        self._register_missing(self._set, snapshot)

    def _scan(self, *, anew: bool) -> tuple[Snapshot, bool]:
        """The GPUs, and whether any was lost; unless `anew`, a newer scan of others will do."""
        snapshot = (
            None if anew or self._inventory.scans == self._scans_seen else self._inventory.latest
        )
        snapshot = snapshot or self._inventory.scan(self._api)
        self._scans_seen = self._inventory.scans
        self._scanned_at = self._clock()
        now = _responding(snapshot)
        before, self._responding = now if self._responding is None else self._responding, now
        lost, new = sorted(before - self._responding), sorted(self._responding - before)
        failures = {gpu.uuid: gpu.failure for gpu in snapshot.gpus}
        self._pending += [GpuDisappeared(uuid, failures.get(uuid)) for uuid in lost]
        self._pending += [GpuAppeared(uuid) for uuid in new]
        return snapshot, bool(lost)

    def _take_pending(self) -> list[Event]:
        pending, self._pending = self._pending, []
        return pending

    def _register_missing(self, events: EventSet, snapshot: Snapshot) -> None:
        registered = set(self._uuids.values())
        for uuid, handle in snapshot.handles.items():
            if uuid not in registered:
                self._register(events, uuid, handle)

    def _register(self, events: EventSet, uuid: str, handle: Handle) -> None:
        try:
            with self._inventory.calls.about(self._inventory.known(uuid).index):
                types = named(self._api.event_types, handle) & int(_WANTED)
                if types:
                    named(self._api.event_register, handle, types, events)
        except HalHung:
            return  # registered by a later scan, when it responds
        except NvmlError as err:
            self._warn_once(uuid, str(call_failure(err)))
            return
        if types:
            self._uuids[handle] = uuid
        else:
            self._warn_once(uuid, "it supports none of the event types")

    def _warn_once(self, uuid: str, reason: str) -> None:
        if uuid not in self._warned:
            self._warned.add(uuid)
            _log.warning("GPU %s cannot report events, its faults may be missed: %s", uuid, reason)

    def _drop_set(self) -> None:
        events, self._set = self._set, None
        self._uuids = {}
        if events is not None:
            with contextlib.suppress(NvmlError):
                self._api.event_set_free(events)

    def _events(self, data: EventData) -> list[Event]:
        uuid = self._uuids.get(data.device) or self._ask_uuid(data.device)
        if data.type & EventType.XID:
            gi, ci = _instance(data.gpu_instance), _instance(data.compute_instance)
            return [XidError(uuid, data.data, gi, ci)]
        if data.type & EventType.DOUBLE_BIT_ECC:
            return [EccError(uuid, uncorrectable=True)]
        if data.type & EventType.SINGLE_BIT_ECC:
            return [EccError(uuid, uncorrectable=False)]
        return []

    def _ask_uuid(self, device: Handle) -> str | None:
        if not device:
            return None
        try:
            return self._api.uuid(device)
        except NvmlError:
            return None


def _responding(snapshot: Snapshot) -> frozenset[str]:
    return frozenset(gpu.uuid for gpu in snapshot.gpus if gpu.state is GpuState.OK)


def _instance(number: int) -> int | None:
    return None if number == NO_INSTANCE else number
