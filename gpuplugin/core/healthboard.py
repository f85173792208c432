"""The health of all GPUs of a node as one immutable value, and what changed between two of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from gpuplugin.core.health import GpuHealth, on_event, on_probe
from hal import GpuAppeared, GpuDisappeared, GpuState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gpuplugin.core.health import HealthPolicy, Status
    from hal import Event, Gpu, Probe


@dataclass(frozen=True, slots=True)
class Transition:
    """One GPU changed its status."""

    uuid: str
    before: Status | None
    after: Status
    reason: str
    action: str
    xid: int | None


@dataclass(frozen=True, slots=True)
class HealthBoard:
    """Health by UUID. `blind` is why nothing can be watched now, empty if all is well.

    While the monitor is blind no device counts as healthy, whatever its last known state.
    """

    gpus: Mapping[str, GpuHealth] = field(default_factory=lambda: MappingProxyType({}))
    blind: str = ""

    def healthy(self, uuid: str) -> bool:
        """True if the GPU is known, healthy and watched."""
        health = self.gpus.get(uuid)
        return health is not None and health.healthy and not self.blind

    def status_of(self, uuid: str) -> Status | None:
        """The status of a GPU, None if it is not on the board."""
        health = self.gpus.get(uuid)
        return health.status if health else None

    def with_gpus(self, gpus: Iterable[Gpu], now_s: float) -> HealthBoard:
        """The board after an enumeration: new GPUs enter, known ones stay.

        A GPU that is found lost, or that is missing, counts as disappeared.
        """
        states = dict(self.gpus)
        seen: set[str] = set()
        for gpu in gpus:
            seen.add(gpu.uuid)
            states.setdefault(gpu.uuid, GpuHealth(since_s=now_s))
            if gpu.state is GpuState.LOST:
                states[gpu.uuid] = on_event(states[gpu.uuid], GpuDisappeared(gpu.uuid), now_s)
        for uuid in states.keys() - seen:
            states[uuid] = on_event(states[uuid], GpuDisappeared(uuid), now_s)
        return replace(self, gpus=MappingProxyType(states))

    def with_event(self, event: Event, now_s: float) -> HealthBoard:
        """The board after an event; one that names no GPU, or an unknown one, concerns all.

        Arrivals and departures are the exception: an unknown GPU is nobody's fault.
        """
        if event.uuid not in self.gpus and isinstance(event, GpuAppeared | GpuDisappeared):
            return self
        uuid = event.uuid
        touched = [uuid] if uuid is not None and uuid in self.gpus else list(self.gpus)
        states = dict(self.gpus)
        for uuid in touched:
            states[uuid] = on_event(states[uuid], event, now_s)
        return replace(self, gpus=MappingProxyType(states))

    def with_probe(
        self, uuid: str, probe: Probe, now_s: float, policy: HealthPolicy
    ) -> HealthBoard:
        """The board after a probe of one GPU; a probe of an unknown GPU changes nothing."""
        if uuid not in self.gpus:
            return self
        states = dict(self.gpus)
        states[uuid] = on_probe(states[uuid], probe, now_s, policy)
        return replace(self, gpus=MappingProxyType(states))

    def blinded(self, why: str) -> HealthBoard:
        """The board while the monitor cannot watch; an empty text says that it can again."""
        return replace(self, blind=why)

    def transitions_from(self, before: HealthBoard) -> tuple[Transition, ...]:
        """Status changes from `before` to this board, by UUID."""
        return tuple(
            Transition(
                uuid,
                before.status_of(uuid),
                health.status,
                health.reason,
                health.action,
                health.xid,
            )
            for uuid, health in sorted(self.gpus.items())
            if before.status_of(uuid) is not health.status
        )
