"""When the driver is opened, GPUs are read and probed, and how long that may fail. No I/O.

The model decides; its driver makes the calls and passes on the results: the daemon with asyncio
and threads, virtual time with simpy. `now_s` is seconds of any monotonic clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from gpuplugin.core.pacing import Backoff, next_multiple_s
from hal import (
    DriverUnavailable,
    GpuAppeared,
    HalError,
    HalHung,
    Probe,
    UnknownGpu,
    XidAction,
    XidError,
    lookup_xid,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gpuplugin.core.healthboard import HealthBoard
    from hal import Event

OPEN_DEADLINE_S = 60.0
CALL_DEADLINE_S = 20.0
CLOSE_DEADLINE_S = 3.0
UNSETTLED_S = 5.0
"""The probe interval while a GPU is not Healthy, where none is configured."""

LEAST_HANG_S = 1.0
"""What takes less is a slow driver, or a busy machine."""
EVENT_WAIT_S = 15.0
"""How long a wait for events lasts if there is none."""

SOON_S = 0.1
"""The earliest update after another one, if an event requires it."""

STABLE_AFTER_S = 60.0
"""Watched for this long, the driver is opened again at once after a failure."""


class WatchFailed(Exception):
    """Watching has failed for too long: the GPUs are Unhealthy, the driver must be reopened."""


@dataclass(frozen=True, slots=True)
class WatchPlan:
    """How the hardware is watched: the period of updates, and for how long watching may fail.

    With a `probe_interval_s` of 0 there are updates only while a GPU is not Healthy.
    `watch_events` is false where no event could change anything: some platforms have none.
    """

    probe_interval_s: float
    blind_after_s: float
    watch_events: bool = True

    @property
    def hang_after_s(self) -> float:
        """A call about a GPU that takes longer than this hangs.

        It is noticed within `blind_after_s` if `probe_interval_s` is at most half of that.
        """
        limit_s = 0.8 * max(self.blind_after_s - self.period_s, self.blind_after_s / 2)
        return max(limit_s, LEAST_HANG_S)

    @property
    def period_s(self) -> float:
        """Seconds between updates, where there are any."""
        return self.probe_interval_s or UNSETTLED_S


class Activity:
    """One kind of watching: its failures in a row, and since when."""

    def __init__(self, stage: str, first_s: float, cap_s: float) -> None:
        self.stage = stage
        self.failures = 0
        self._backoff = Backoff(first_s, cap_s)
        self._good_s = 0.0

    def succeeded(self, now_s: float) -> None:
        self.failures = 0
        self._good_s = now_s
        self._backoff.reset()

    def repeated(self, now_s: float, period_s: float) -> None:
        """It has worked each `period_s` until now."""
        self.succeeded(now_s - (now_s - self._good_s) % period_s)

    def failed(self, error: HalError, now_s: float, blind_after_s: float) -> float:
        """Returns in how many seconds to retry; raises `WatchFailed` after `blind_after_s`."""
        self.failures += 1
        failing_s = now_s - self._good_s
        if failing_s >= blind_after_s:
            raise WatchFailed(f"{self.stage} failed for {failing_s:.1f} s: {error}")
        return min(blind_after_s - failing_s, self._backoff.next_s())


class Watch:
    """The schedule of one driver: closed, or open with updates and waits for events."""

    def __init__(self, plan: WatchPlan) -> None:
        self.plan = plan
        self.opened_before = False
        self.events = Activity("events", 0.1, 5.0)
        self.updates = Activity("probe", 0.5, 5.0)
        self._open_backoff = Backoff(1.0, 30.0)
        self._reopen_backoff = Backoff(1.0, 30.0)
        self._opened_s = 0.0
        self._updated_s = 0.0
        self._pause_s = plan.period_s
        self._update_required = False
        self._linked: frozenset[str] = frozenset()

    def open_failed(self, now_s: float) -> float:
        """The driver could not be opened, or not read; when to try again."""
        return now_s + self._open_backoff.next_s()

    def opened(self, now_s: float) -> None:
        self.opened_before = True
        self._open_backoff.reset()
        self._opened_s = now_s
        self.events.succeeded(now_s)
        self.updated(now_s)

    def closed(self, now_s: float) -> float:
        """Watching failed; when to open the driver again."""
        if now_s - self._opened_s > STABLE_AFTER_S:
            self._reopen_backoff.reset()
        return now_s + self._reopen_backoff.next_s()

    def links_due(self, probes: Mapping[str, Probe]) -> bool:
        """True if these probes reached other GPUs than those whose links were read last."""
        reached = frozenset(uuid for uuid, probe in probes.items() if probe.reachable)
        due = not reached <= self._linked
        if due:
            self._linked = reached
        return due

    def settled(self, board: HealthBoard) -> bool:
        """True if another update is expected to find what the last one did: all is well."""
        return board.settled and not self.updates.failures and not self.events.failures

    def update_due_s(self, board: HealthBoard) -> float:
        """When GPUs are read and probed next: at whole periods, sooner if an event requires it.

        Infinite if nothing requires it.
        """
        pause_s = min(self._pause_s, self.plan.period_s)  # the plan may be a new one
        soonest_s = self._updated_s + min(pause_s, SOON_S)
        if self._update_required:
            return soonest_s
        if not self.plan.probe_interval_s and self.settled(board):
            return math.inf
        return max(next_multiple_s(self._updated_s, pause_s), soonest_s)

    def updated(self, now_s: float) -> None:
        self.updates.succeeded(now_s)
        self._next_update(now_s, self.plan.period_s)

    def skip_updates(self, now_s: float) -> None:
        """Updates until now were left out, because they would have found nothing new."""
        period_s = self.plan.period_s
        self._updated_s = next_multiple_s(now_s, period_s) - period_s
        self._pause_s = period_s
        self.updates.succeeded(now_s)

    def update_failed(self, error: HalError, now_s: float) -> None:
        """No GPU could be read, or none probed; raises `WatchFailed` after `blind_after_s`."""
        plan = self.plan
        retry_s = self.updates.failed(error, now_s, plan.blind_after_s)
        self._next_update(now_s, min(plan.period_s, retry_s))

    def events_received(self, events: Iterable[Event]) -> None:
        """Some require an update sooner than planned: only a probe shows what they mean."""
        required = any(_requires_update(event) for event in events)
        self._update_required = self._update_required or required

    def events_failed(self, error: HalError, now_s: float) -> float:
        """Returns in how many seconds to retry; raises `WatchFailed` after `blind_after_s`."""
        return self.events.failed(error, now_s, self.plan.blind_after_s)

    def _next_update(self, now_s: float, pause_s: float) -> None:
        self._updated_s = now_s
        self._pause_s = pause_s
        self._update_required = False


@dataclass(frozen=True, slots=True)
class Probes:
    """What probes of GPUs showed, by UUID; `failures` are those that count as unreachable."""

    by_uuid: Mapping[str, Probe]
    failures: Mapping[str, HalError]


def judge_probes(results: Mapping[str, Probe | HalError], board: HealthBoard) -> Probes:
    """Failed probes count as unreachable; raises `HalError` if the driver or all of them failed.

    A GPU that hangs is that GPU's fault, even where it is the only one.
    """
    probes: dict[str, Probe] = {}
    failures: dict[str, HalError] = {}
    for uuid, result in results.items():
        match result:
            case UnknownGpu():
                continue  # known from an earlier driver: the board has it as lost
            case DriverUnavailable():
                raise result
            case HalError():
                failures[uuid] = result
                health = board.gpus.get(uuid)
                probes[uuid] = Probe.unreachable((health.epoch if health else None) or "")
            case Probe():
                probes[uuid] = result
    others = [error for error in failures.values() if not isinstance(error, HalHung)]
    if others and len(failures) == len(probes):
        raise others[-1]
    return Probes(MappingProxyType(probes), MappingProxyType(failures))


def _requires_update(event: Event) -> bool:
    if isinstance(event, XidError):
        return lookup_xid(event.xid).action is XidAction.RECOVERY_ACTION_CHANGED
    return isinstance(event, GpuAppeared)
