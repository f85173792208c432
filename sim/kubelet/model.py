"""The kubelet stand-in without I/O: its devices, claims and pods, and every decision about them.

A driver reports what plugins and users did, makes the calls that `sync` and `claim_work` yield, and
carries out `take_effects` after each input. Time is an argument and randomness is given, so the
drivers with sockets (`sim.kubelet.kubelet`) and in virtual time (`sim.virtual.kubelet`) take the
same decisions.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from sim.kubelet.admission import UNSCHEDULABLE, CallFailed, admit, does_not_fit, start
from sim.kubelet.claims import CLAIMS_FILE, ClaimManager, ClaimTiming, DriverMissing
from sim.kubelet.devices import (
    FILE_NAME,
    Amount,
    CheckpointDamaged,
    DeviceManager,
    read_checkpoint,
    write_checkpoint,
)
from sim.kubelet.pods import KubeletEvent, NodeView, Phase, PodStatus, PodView
from sim.scheduler.claims import Unschedulable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from random import Random

    from sim.kubelet.admission import PluginCall, Response
    from sim.kubelet.claims import Answers, DriverCall, HeldClaim
    from sim.kubelet.devices import Holding, Listed
    from sim.kubelet.pods import Pod
    from sim.scheduler.claims import ClaimScheduler, PlacedClaim

PREPARE_FAILED = "FailedPrepareDynamicResources"


@dataclass(frozen=True, slots=True)
class SaveCheckpoint:
    """Effect: write `KubeletModel.checkpoint()` to the checkpoint file."""


@dataclass(frozen=True, slots=True)
class SaveClaims:
    """Effect: write `KubeletModel.claims_checkpoint()` to the file of claims."""


Effect: TypeAlias = KubeletEvent | SaveCheckpoint | SaveClaims


class KubeletModel:
    """State of one node. `generator` decides the order in which device ids go to plugins.

    With a `scheduler` its pods may have claims, and extended resources of DeviceClasses.
    """

    def __init__(
        self,
        generator: Random,
        scheduler: ClaimScheduler | None = None,
        timing: ClaimTiming | None = None,
    ) -> None:
        self._generator = generator
        self._scheduler = scheduler
        self._timing = timing or ClaimTiming()
        self._devices = DeviceManager()
        self._claims = ClaimManager(self._timing)
        self._pods: dict[str, PodView] = {}
        self._counted: dict[str, dict[str, int]] = {}
        """What admitted pods ask of device plugins."""
        self._requested: Counter[str] = Counter()
        self._placed: dict[str, tuple[PlacedClaim, ...]] = {}
        """Claims of the pods that have some, from their allocation to the pod's end."""
        self._due_s: dict[str, float] = {}
        """When the claims of a pod are to be prepared or unprepared (again)."""
        self._lacking: dict[str, str] = {}
        """The driver that a pod waits for."""
        self._busy: set[str] = set()
        """Pods for which drivers are being called."""
        self._reconcile_at_s = math.inf
        self._running = True
        self._list_updates: Counter[str] = Counter()
        self._effects: list[Effect] = []

    def take_effects(self) -> tuple[Effect, ...]:
        taken = tuple(self._effects)
        self._effects.clear()
        return taken

    def restarted(
        self, checkpoint: bytes | None, now_s: float, claims_checkpoint: bytes | None = None
    ) -> None:
        """The kubelet starts: pods stay, devices are those of the checkpoint, without a plugin."""
        self._running = True
        self._devices = DeviceManager()
        self._list_updates.clear()
        self._restore_claims(claims_checkpoint, now_s)
        if checkpoint is None:
            return
        try:
            holdings, registered = read_checkpoint(checkpoint.decode())
        except (CheckpointDamaged, UnicodeDecodeError) as error:
            self._emit("refused", f"{FILE_NAME}: {error}; starting without it")
            return
        alive = {view.pod.uid for view in self._pods.values()}
        kept = [held for held in holdings if held.pod_uid in alive]
        self._devices.restore(kept, registered, now_s)

    def stopped(self) -> None:
        """The kubelet ends: pods that are deleted from now on are found gone by the next one."""
        self._running = False

    def registered(self, resource: str, *, has_preference: bool, wants_pre_start: bool) -> None:
        self._devices.connected(
            resource, has_preference=has_preference, wants_pre_start=wants_pre_start
        )

    def listed(self, resource: str, devices: Sequence[Listed], size_bytes: int) -> None:
        self._devices.listed(resource, devices)
        self._list_updates[resource] += 1
        self._effects.append(SaveCheckpoint())
        healthy = sum(device.healthy for device in devices)
        unhealthy = len(devices) - healthy
        self._emit("list", f"{resource}: {healthy} healthy, {unhealthy} not, {size_bytes} bytes")

    def disconnected(self, resource: str, now_s: float) -> None:
        self._devices.disconnected(resource, now_s)

    def driver_registered(self, driver: str, endpoint: str, now_s: float) -> None:
        """An instance of a DRA driver is there; raises `CallFailed` if it is not wanted."""
        self._claims.registered(driver, endpoint)
        for key, lacking in list(self._lacking.items()):
            if lacking == driver:
                del self._lacking[key]
                self._due_s[key] = now_s

    def driver_lost(self, driver: str, endpoint: str, now_s: float) -> None:
        self._claims.lost(driver, endpoint, now_s)

    def create(self, pod: Pod, uid: str) -> None:
        """Add a pod, Pending; raises `ValueError` if one of this name exists."""
        if pod.key in self._pods:
            raise ValueError(f"pod {pod.key} exists already")
        if self._scheduler is not None:
            uid = self._scheduler.create(pod)
        self._pods[pod.key] = PodView(replace(pod, uid=uid), PodStatus(Phase.PENDING))

    def delete(self, key: str, now_s: float = 0.0, *, force: bool = False) -> None:
        """Remove a pod by `namespace/name` and free its devices; raises `KeyError` without one.

        One with claims is Terminating until they are unprepared. By force, or while no kubelet
        runs, it is gone at once, and its claims are unprepared later.
        """
        view = self._pods[key]
        if key not in self._placed or force or not self._running:
            self._remove(key)
            if key in self._placed:
                del self._placed[key]
                wait_s = self._timing.forced_cleanup_s if force else self._timing.reconcile_s
                self._reconcile_at_s = min(self._reconcile_at_s, now_s + wait_s)
        elif view.status.phase is not Phase.TERMINATING:
            self._due_s[key] = now_s
            self._set_status(view.pod, replace(view.status, phase=Phase.TERMINATING))

    def renew_sandbox(self, key: str, now_s: float) -> None:
        """A pod's sandbox is made anew: what is not known to be prepared is prepared again."""
        if key in self._placed and self._pods[key].status.phase is Phase.RUNNING:
            self._due_s[key] = now_s

    def status(self, key: str) -> PodStatus:
        """Raises `KeyError`."""
        return self._pods[key].status

    @property
    def pending(self) -> tuple[str, ...]:
        """Pods to `sync`."""
        return tuple(
            key
            for key, view in self._pods.items()
            if view.status.phase is Phase.PENDING and key not in self._placed
        )

    def sync(self, key: str, now_s: float) -> Generator[PluginCall, Response, PodStatus | None]:
        """Take a pending pod as far as possible; returns its status, None if it was deleted.

        One that has claims is not started here: its claims are due for `claim_work`.
        """
        view = self._pods.get(key)
        if view is None:
            return None
        pod, by_claim = view.pod, frozenset[str]()
        placed: tuple[PlacedClaim, ...] = ()
        if key in self._counted:
            status = yield from start(view.status.grants, self._devices)
        else:
            by_claim = self._by_claim(pod, now_s)
            plain = _without(pod, by_claim)
            why = self._does_not_fit(plain, now_s)
            if not why and self._scheduler is not None and (by_claim or pod.claims):
                try:
                    placed = self._scheduler.place(pod, by_claim)
                except Unschedulable as error:
                    why = str(error)
            if why:
                status = PodStatus(Phase.PENDING, UNSCHEDULABLE, why)
                self._set_status(pod, status)
                return status
            status = yield from admit(plain, self._devices, self._generator)
        if self._pods.get(key) is not view:
            self._devices.release(pod.uid)
            return None
        self._effects.append(SaveCheckpoint())
        if key not in self._counted and status.phase is not Phase.FAILED:
            self._counted[key] = _without(pod, by_claim).requests()
            self._requested.update(self._counted[key])
        if placed and status.phase is Phase.RUNNING:
            self._placed[key] = placed
            self._due_s[key] = now_s
            status = replace(status, phase=Phase.PENDING)
        self._set_status(pod, status)
        return status

    def due(self, now_s: float) -> tuple[str, ...]:
        """Pods whose claims are to be worked on now, "" for those of pods that are gone."""
        keys = [key for key, at_s in self._due_s.items() if at_s <= now_s]
        if self._reconcile_at_s <= now_s:
            keys.append("")
        return tuple(key for key in keys if key not in self._busy)

    @property
    def next_due_s(self) -> float:
        """When there is something to do next, if nothing happens before; infinity for never."""
        wipe_s = self._claims.wipe_due_s
        idle = (at_s for key, at_s in self._due_s.items() if key not in self._busy)
        return min((*idle, self._reconcile_at_s, math.inf if wipe_s is None else wipe_s))

    def tick(self, now_s: float) -> None:
        """Wipe the slices whose time has come."""
        for driver in self._claims.take_wipes(now_s):
            if self._scheduler is not None:
                self._scheduler.wipe(driver)
                self._emit("wiped", f"ResourceSlices of {driver or 'all drivers'}")

    def claim_work(
        self, key: str, now: Callable[[], float]
    ) -> Generator[DriverCall, Answers, None]:
        """What is due for a pod's claims: prepare them, or unprepare them if it was deleted.

        From this call on until the end of what it returns the pod is not due again.
        """
        self._busy.add(key)
        self._due_s.pop(key, None)
        return self._work(key, now)

    def _work(self, key: str, now: Callable[[], float]) -> Generator[DriverCall, Answers, None]:
        view = self._pods.get(key)
        try:
            if not key:
                yield from self._reconcile(now)
            elif view is not None and view.status.phase is Phase.TERMINATING:
                yield from self._unprepare(view.pod, now)
            elif view is not None:
                yield from self._prepare(view.pod, now)
        finally:
            self._busy.discard(key)

    def checkpoint(self) -> str:
        return write_checkpoint(self._devices)

    def claims_checkpoint(self) -> str:
        return self._claims.checkpoint()

    def view(self, now_s: float) -> NodeView:
        devices = self._devices
        return NodeView(
            amounts=MappingProxyType(devices.amounts(now_s)),
            devices=MappingProxyType({one: devices.devices(one) for one in devices.resources}),
            pods=MappingProxyType(dict(self._pods)),
            list_updates=MappingProxyType(dict(self._list_updates)),
            drivers=MappingProxyType(dict(self._claims.drivers)),
            health=MappingProxyType(
                {
                    key: self._claims.health(self._pods[key].status.devices, now_s)
                    for key in self._placed
                }
            ),
            offered=self._scheduler.offered() if self._scheduler is not None else (),
        )

    @property
    def devices(self) -> DeviceManager:
        return self._devices

    @property
    def claims(self) -> ClaimManager:
        return self._claims

    @property
    def list_updates(self) -> int:
        return self._list_updates.total()

    def held(self) -> list[tuple[Pod, tuple[Holding, ...], tuple[HeldClaim, ...]]]:
        """The pods that are admitted, with their devices and claims."""
        holdings = self._devices.holdings
        return [
            (
                view.pod,
                tuple(held for held in holdings if held.pod_uid == view.pod.uid),
                self._claims.held(self._placed.get(key, ())),
            )
            for key, view in self._pods.items()
            if key in self._counted
        ]

    def _prepare(self, pod: Pod, now: Callable[[], float]) -> Generator[DriverCall, Answers, None]:
        placed = self._placed[pod.key]
        try:
            yield from self._claims.prepare(pod.uid, placed)
        except CallFailed as error:
            self._try_later(pod, error, now() + self._timing.prepare_retry_s)
            return
        self._effects.append(SaveClaims())
        view = self._same(pod)
        if view is not None and view.status.phase is not Phase.TERMINATING:
            devices = self._claims.claimed_devices(placed)
            status = PodStatus(Phase.RUNNING, grants=view.status.grants, devices=devices)
            self._set_status(pod, status)

    def _unprepare(
        self, pod: Pod, now: Callable[[], float]
    ) -> Generator[DriverCall, Answers, None]:
        try:
            yield from self._claims.unprepare(pod.uid)
        except CallFailed as error:
            self._try_later(pod, error, now() + self._timing.unprepare_retry_s)
            return
        self._effects.append(SaveClaims())
        if self._same(pod) is not None:
            self._placed.pop(pod.key, None)
            self._remove(pod.key)

    def _reconcile(self, now: Callable[[], float]) -> Generator[DriverCall, Answers, None]:
        self._reconcile_at_s = math.inf
        try:
            yield from self._claims.reconcile(view.pod.uid for view in self._pods.values())
        except CallFailed:
            self._reconcile_at_s = now() + self._timing.reconcile_s
        else:
            self._effects.append(SaveClaims())

    def _same(self, pod: Pod) -> PodView | None:
        """The pod as it is now, None if it is gone, or another one has its name."""
        view = self._pods.get(pod.key)
        return view if view is not None and view.pod.uid == pod.uid else None

    def _try_later(self, pod: Pod, error: CallFailed, at_s: float) -> None:
        view = self._same(pod)
        if view is None:
            return
        # A pod that was deleted during a call is due at once.
        self._due_s.setdefault(pod.key, at_s)
        if isinstance(error, DriverMissing) and view.status.phase is not Phase.TERMINATING:
            self._lacking[pod.key] = error.driver
        if view.status.phase is Phase.PENDING:
            status = replace(view.status, reason=PREPARE_FAILED, message=str(error))
            self._set_status(view.pod, status)

    def _remove(self, key: str) -> None:
        view = self._pods.pop(key)
        self._due_s.pop(key, None)
        self._lacking.pop(key, None)
        self._devices.release(view.pod.uid)
        self._requested.subtract(self._counted.pop(key, {}))
        if self._scheduler is not None:
            self._scheduler.release(view.pod)
        self._effects.append(SaveCheckpoint())
        self._emit("pod", f"{key} deleted")

    def _restore_claims(self, checkpoint: bytes | None, now_s: float) -> None:
        text = None
        try:
            text = None if checkpoint is None else checkpoint.decode()
            self._claims.restarted(text, now_s)
        except (CheckpointDamaged, UnicodeDecodeError) as error:
            self._emit("refused", f"{CLAIMS_FILE}: {error}; starting without it")
            self._claims.restarted(None, now_s)
        if self._scheduler is not None:
            self._reconcile_at_s = now_s + self._timing.reconcile_s

    def _by_claim(self, pod: Pod, now_s: float) -> frozenset[str]:
        """The resources that the pod gets by a claim: a class has them, and no device plugin."""
        if self._scheduler is None or pod.static:
            return frozenset()
        amounts = self._devices.amounts(now_s)
        without = (one for one in pod.requests() if not amounts.get(one, Amount(0, 0)).allocatable)
        return self._scheduler.extended(without)

    def _does_not_fit(self, pod: Pod, now_s: float) -> str:
        """Why a pod has to wait, "" if it fits; a static one never waits."""
        if pod.static:
            return ""
        return does_not_fit(pod, self._devices.amounts(now_s), self._requested)

    def _set_status(self, pod: Pod, status: PodStatus) -> None:
        if self._pods[pod.key].status == status:
            return
        self._pods[pod.key] = PodView(pod, status)
        reason = f" {status.reason}: {status.message}" if status.reason else ""
        self._emit("pod", f"{pod.key} {status.phase.value}{reason}")

    def _emit(self, kind: str, text: str) -> None:
        self._effects.append(KubeletEvent(kind, text))


def _without(pod: Pod, resources: frozenset[str]) -> Pod:
    """The pod as a device manager sees it: without what it gets by claims."""
    if not resources:
        return pod
    containers = (
        replace(
            one,
            limits=MappingProxyType({k: v for k, v in one.limits.items() if k not in resources}),
        )
        for one in pod.containers
    )
    return replace(pod, containers=tuple(containers))
