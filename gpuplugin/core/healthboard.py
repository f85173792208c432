"""The health of all GPUs and MIG devices of a node as one immutable value, and its history.

A MIG device has a state of its own, for faults that name its instance; a fault of its GPU concerns
it all the same. The machine behind each state is in `health`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from gpuplugin.core.health import Health, HealthState, cleared, on_event, on_probe
from hal import GpuDisappeared, GpuState, XidError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gpuplugin.core.faults import Fault
    from gpuplugin.core.health import HealthPolicy
    from hal import Event, Gpu, MigDevice, Probe


States: TypeAlias = Mapping[str, Health]
"""Health by UUID."""

MAX_CHANGES = 500

Seconds: TypeAlias = Mapping[str, float]
"""Seconds by the UUID of a GPU or MIG device: its index may change."""


def _none() -> States:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Transition:
    """A GPU, or MIG device of it, changed its state; `fault` is why it is not healthy."""

    uuid: str
    gpu_uuid: str
    before: HealthState | None
    after: HealthState
    fault: Fault | None

    @property
    def healthy(self) -> bool:
        return self.after is HealthState.HEALTHY


class UnknownUnit(Exception):
    """No GPU or MIG device of that UUID is on the board."""


@dataclass(frozen=True, slots=True)
class HealthBoard:
    """Health of GPUs, and of the MIG devices of each GPU, by UUID.

    `blind` is why nothing can be watched now, empty if all is well: meanwhile nothing counts as
    healthy, whatever its last known state.
    """

    gpus: States = field(default_factory=_none)
    instances: Mapping[str, tuple[MigDevice, ...]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    """MIG devices by the UUID of their GPU."""
    mig: States = field(default_factory=_none)
    blind: str = ""

    def healthy(self, gpu_uuid: str, mig_uuid: str | None = None) -> bool:
        """True if a device may be given out: known, watched, without a fault.

        Without `mig_uuid` the whole GPU is meant, which is no healthier than its MIG devices.
        """
        health = self.gpus.get(gpu_uuid)
        if health is None or not health.healthy or self.blind:
            return False
        if mig_uuid is None:
            return all(self.mig[one.uuid].healthy for one in self.instances.get(gpu_uuid, ()))
        instance = self.mig.get(mig_uuid)
        return instance is not None and instance.healthy

    @property
    def settled(self) -> bool:
        """True if everything is healthy and remembers no fault."""
        return all(one.healthy and not one.faults for one in self.units.values())

    @property
    def units(self) -> States:
        return {**self.gpus, **self.mig}

    def state_of(self, uuid: str) -> HealthState | None:
        health = self.gpus.get(uuid) or self.mig.get(uuid)
        return health.state if health else None

    def gpu_of(self, uuid: str) -> str:
        """The GPU of a GPU or MIG device; raises `UnknownUnit`."""
        if uuid in self.gpus:
            return uuid
        for gpu_uuid, devices in self.instances.items():
            if any(device.uuid == uuid for device in devices):
                return gpu_uuid
        raise UnknownUnit(uuid)

    def with_gpus(self, gpus: Iterable[Gpu], now_s: float, policy: HealthPolicy) -> HealthBoard:
        """The board after an enumeration: new GPUs are added, known ones stay.

        A GPU that is found lost, or that is missing, counts as disappeared, with the MIG devices
        that it had. A MIG device that a GPU no longer has leaves the board.
        """
        states = dict(self.gpus)
        instances = dict(self.instances)
        seen: set[str] = set()
        for gpu in gpus:
            seen.add(gpu.uuid)
            states.setdefault(gpu.uuid, Health(now_s))
            if gpu.state is GpuState.LOST:
                event = GpuDisappeared(gpu.uuid, gpu.failure)
                states[gpu.uuid] = on_event(states[gpu.uuid], event, now_s, policy)
            instances[gpu.uuid] = gpu.mig_devices
        for uuid in states.keys() - seen:
            states[uuid] = on_event(states[uuid], GpuDisappeared(uuid), now_s, policy)
        mig = {
            device.uuid: self.mig.get(device.uuid) or Health(now_s, epoch=states[uuid].epoch)
            for uuid, devices in instances.items()
            for device in devices
        }
        return replace(
            self,
            gpus=MappingProxyType(states),
            instances=MappingProxyType(instances),
            mig=MappingProxyType(mig),
        )

    def with_event(self, event: Event, now_s: float, policy: HealthPolicy) -> HealthBoard:
        """The board after an event; one that names no GPU concerns all.

        One of an unknown GPU, such as one that was just added, concerns no other. An Xid that names
        MIG instances of a GPU concerns those alone.
        """
        named = self._named_instances(event)
        if named:
            return replace(self, mig=_changed(self.mig, named, event, now_s, policy))
        uuid = event.uuid
        touched = [one for one in self.gpus if uuid in (None, one)]
        return replace(self, gpus=_changed(self.gpus, touched, event, now_s, policy))

    def with_probe(
        self, uuid: str, probe: Probe, now_s: float, policy: HealthPolicy
    ) -> HealthBoard:
        """The board after a probe of one GPU; a probe of an unknown GPU changes nothing.

        Its MIG devices recover by it too. A fault that it finds is the GPU's, not theirs.
        """
        if uuid not in self.gpus:
            return self
        states = {**self.gpus, uuid: on_probe(self.gpus[uuid], probe, now_s, policy)}
        mig = dict(self.mig)
        for device in self.instances.get(uuid, ()):
            health = mig[device.uuid]
            mig[device.uuid] = (
                replace(health, epoch=probe.epoch)
                if health.healthy
                else on_probe(health, probe, now_s, policy)
            )
        return replace(self, gpus=MappingProxyType(states), mig=MappingProxyType(mig))

    def cleared(self, uuid: str, now_s: float) -> HealthBoard:
        """A GPU with its MIG devices, or one MIG device; raises `UnknownUnit` or `StillFaulty`."""
        if uuid in self.mig:
            return replace(
                self, mig=MappingProxyType({**self.mig, uuid: cleared(self.mig[uuid], now_s)})
            )
        if uuid not in self.gpus:
            raise UnknownUnit(uuid)
        mine = {device.uuid for device in self.instances.get(uuid, ())}
        gpus = {**self.gpus, uuid: cleared(self.gpus[uuid], now_s)}
        mig = {
            one: Health(now_s, epoch=health.epoch) if one in mine else health
            for one, health in self.mig.items()
        }
        return replace(self, gpus=MappingProxyType(gpus), mig=MappingProxyType(mig))

    def without(self, gpu_uuid: str) -> HealthBoard:
        """The board without a GPU and its MIG devices."""
        migs = {one.uuid for one in self.instances.get(gpu_uuid, ())}
        return replace(
            self,
            gpus=MappingProxyType({k: v for k, v in self.gpus.items() if k != gpu_uuid}),
            instances=MappingProxyType({k: v for k, v in self.instances.items() if k != gpu_uuid}),
            mig=MappingProxyType({k: v for k, v in self.mig.items() if k not in migs}),
        )

    def blinded(self, why: str) -> HealthBoard:
        """The board while the monitor cannot watch; an empty text once it can again."""
        return replace(self, blind=why)

    def transitions_from(self, before: HealthBoard) -> tuple[Transition, ...]:
        """HealthState changes from `before` to this board: GPUs, then MIG devices, by UUID."""
        return tuple(
            Transition(uuid, self.gpu_of(uuid), before.state_of(uuid), health.state, health.fault)
            for states in (self.gpus, self.mig)
            for uuid, health in sorted(states.items())
            if before.state_of(uuid) is not health.state
        )

    def _named_instances(self, event: Event) -> list[str]:
        """UUIDs of the MIG devices that an Xid names; one of GI and CI may be unknown."""
        if not isinstance(event, XidError) or event.uuid is None:
            return []
        if event.gpu_instance is None and event.compute_instance is None:
            return []
        return [
            device.uuid
            for device in self.instances.get(event.uuid, ())
            if event.gpu_instance in (None, device.gpu_instance)
            and event.compute_instance in (None, device.compute_instance)
        ]


def _changed(
    states: States, uuids: Iterable[str], event: Event, now_s: float, policy: HealthPolicy
) -> States:
    after = dict(states)
    for uuid in uuids:
        after[uuid] = on_event(after[uuid], event, now_s, policy)
    return MappingProxyType(after)


@dataclass(frozen=True, slots=True)
class HealthChange:
    """A GPU or MIG device came into a state at `at_s` (the model's clock)."""

    at_s: float
    uuid: str
    index: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class HealthHistory:
    """How long GPUs and MIG devices were not healthy; `changes` are the last `MAX_CHANGES`."""

    changes: tuple[HealthChange, ...] = ()
    _unhealthy_s: Seconds = field(default_factory=lambda: MappingProxyType({}))
    _unhealthy_since_s: Seconds = field(default_factory=lambda: MappingProxyType({}))

    def after(self, transition: Transition, index: str, now_s: float) -> HealthHistory:
        uuid = transition.uuid
        since = dict(self._unhealthy_since_s)
        total = dict(self._unhealthy_s)
        total[uuid] = total.get(uuid, 0.0) + now_s - since.pop(uuid, now_s)
        if not transition.healthy:
            since[uuid] = now_s
        reason = transition.fault.reason if transition.fault else ""
        change = HealthChange(now_s, uuid, index, transition.after.value, reason)
        return HealthHistory(
            (*self.changes, change)[-MAX_CHANGES:], MappingProxyType(total), MappingProxyType(since)
        )

    def of(self, board: HealthBoard) -> HealthHistory:
        """The times of what is on the board alone; the changes of others stay."""
        kept, since = (
            {uuid: value for uuid, value in times.items() if uuid in board.units}
            for times in (self._unhealthy_s, self._unhealthy_since_s)
        )
        return replace(
            self,
            _unhealthy_s=MappingProxyType(kept),
            _unhealthy_since_s=MappingProxyType(since),
        )

    def unhealthy_s(self, now_s: float) -> dict[str, float]:
        return {
            uuid: total_s + now_s - self._unhealthy_since_s.get(uuid, now_s)
            for uuid, total_s in self._unhealthy_s.items()
        }
