"""The kubelet stand-in without I/O: its devices and pods, and every decision about them.

A driver reports what plugins and users did, makes the calls that `sync` yields, and carries out
`take_effects` after each input. Time is an argument and randomness is given, so the drivers with
sockets (`sim.kubelet.kubelet`) and in virtual time (`sim.virtual.kubelet`) take the same decisions.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from sim.kubelet.admission import UNSCHEDULABLE, admit, does_not_fit, start
from sim.kubelet.devices import (
    FILE_NAME,
    CheckpointDamaged,
    DeviceManager,
    read_checkpoint,
    write_checkpoint,
)
from sim.kubelet.pods import KubeletEvent, NodeView, Phase, PodStatus, PodView

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from random import Random

    from sim.kubelet.admission import PluginCall, Response
    from sim.kubelet.devices import Holding, Listed
    from sim.kubelet.pods import Pod


@dataclass(frozen=True, slots=True)
class SaveCheckpoint:
    """Effect: write `KubeletModel.checkpoint()` to the checkpoint file."""


Effect: TypeAlias = KubeletEvent | SaveCheckpoint


class KubeletModel:
    """State of one node. `generator` decides the order in which device ids go to plugins."""

    def __init__(self, generator: Random) -> None:
        self._generator = generator
        self._devices = DeviceManager()
        self._pods: dict[str, PodView] = {}
        self._requested: Counter[str] = Counter()
        self._list_updates: Counter[str] = Counter()
        self._effects: list[Effect] = []

    def take_effects(self) -> tuple[Effect, ...]:
        taken = tuple(self._effects)
        self._effects.clear()
        return taken

    def restarted(self, checkpoint: bytes | None, now_s: float) -> None:
        """The kubelet starts: pods stay, devices are those of the checkpoint, without a plugin."""
        self._devices = DeviceManager()
        self._list_updates.clear()
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

    def create(self, pod: Pod, uid: str) -> None:
        """Add a pod, Pending; raises `ValueError` if one of this name exists."""
        if pod.key in self._pods:
            raise ValueError(f"pod {pod.key} exists already")
        self._pods[pod.key] = PodView(replace(pod, uid=uid), PodStatus(Phase.PENDING))

    def delete(self, key: str) -> None:
        """Remove a pod by `namespace/name` and free its devices; raises `KeyError` without one."""
        view = self._pods.pop(key)
        self._devices.release(view.pod.uid)
        if _is_admitted(view.status):
            self._requested.subtract(view.pod.requests())
        self._effects.append(SaveCheckpoint())
        self._emit("pod", f"{key} deleted")

    @property
    def pending(self) -> tuple[str, ...]:
        return tuple(key for key, view in self._pods.items() if view.status.phase is Phase.PENDING)

    def sync(self, key: str, now_s: float) -> Generator[PluginCall, Response, PodStatus | None]:
        """Take a pending pod as far as possible; returns its status, None if it was deleted."""
        view = self._pods.get(key)
        if view is None:
            return None
        pod = view.pod
        if _is_admitted(view.status):
            status = yield from start(view.status.grants, self._devices)
        elif why := self._does_not_fit(pod, now_s):
            status = PodStatus(Phase.PENDING, UNSCHEDULABLE, why)
            self._set_status(pod, status)
            return status
        else:
            status = yield from admit(pod, self._devices, self._generator)
        if self._pods.get(key) is not view:
            self._devices.release(pod.uid)
            return None
        self._effects.append(SaveCheckpoint())
        self._set_status(pod, status)
        return status

    def checkpoint(self) -> str:
        return write_checkpoint(self._devices)

    def view(self, now_s: float) -> NodeView:
        devices = self._devices
        return NodeView(
            amounts=MappingProxyType(devices.amounts(now_s)),
            devices=MappingProxyType({one: devices.devices(one) for one in devices.resources}),
            pods=MappingProxyType(dict(self._pods)),
            list_updates=MappingProxyType(dict(self._list_updates)),
        )

    @property
    def devices(self) -> DeviceManager:
        return self._devices

    @property
    def list_updates(self) -> int:
        return self._list_updates.total()

    def held(self) -> list[tuple[Pod, tuple[Holding, ...]]]:
        holdings = self._devices.holdings
        return [
            (view.pod, tuple(held for held in holdings if held.pod_uid == view.pod.uid))
            for view in self._pods.values()
            if _is_admitted(view.status)
        ]

    def _does_not_fit(self, pod: Pod, now_s: float) -> str:
        """Why a pod has to wait, "" if it fits; a static one never waits."""
        if pod.static:
            return ""
        return does_not_fit(pod, self._devices.amounts(now_s), self._requested)

    def _set_status(self, pod: Pod, status: PodStatus) -> None:
        before = self._pods[pod.key].status
        if before == status:
            return
        if _is_admitted(status) and not _is_admitted(before):
            self._requested.update(pod.requests())
        self._pods[pod.key] = PodView(pod, status)
        reason = f" {status.reason}: {status.message}" if status.reason else ""
        self._emit("pod", f"{pod.key} {status.phase.value}{reason}")

    def _emit(self, kind: str, text: str) -> None:
        self._effects.append(KubeletEvent(kind, text))


def _is_admitted(status: PodStatus) -> bool:
    """True if the pod holds what it asked for, even if it could not be started yet."""
    return status.phase is Phase.RUNNING or bool(status.grants)
