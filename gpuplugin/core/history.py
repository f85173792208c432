"""What became of the GPUs' health since the start: time out of use, and the last changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from gpuplugin.core.healthboard import Transition

MAX_CHANGES = 500

Seconds: TypeAlias = Mapping[tuple[str, str], float]
"""Seconds by UUID and index of a GPU or MIG device."""


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
    """Every GPU and MIG device that was ever listed; `changes` are the last `MAX_CHANGES`."""

    changes: tuple[HealthChange, ...] = ()
    _unhealthy_s: Seconds = field(default_factory=lambda: MappingProxyType({}))
    _unhealthy_since_s: Seconds = field(default_factory=lambda: MappingProxyType({}))

    def after(self, transition: Transition, index: str, now_s: float) -> HealthHistory:
        device = (transition.uuid, index)
        since = dict(self._unhealthy_since_s)
        total = dict(self._unhealthy_s)
        total[device] = total.get(device, 0.0) + now_s - since.pop(device, now_s)
        if not transition.healthy:
            since[device] = now_s
        reason = transition.fault.reason if transition.fault else ""
        change = HealthChange(now_s, transition.uuid, index, transition.after.value, reason)
        return HealthHistory(
            (*self.changes, change)[-MAX_CHANGES:], MappingProxyType(total), MappingProxyType(since)
        )

    def unhealthy_s(self, now_s: float) -> dict[tuple[str, str], float]:
        return {
            device: total_s + now_s - self._unhealthy_since_s.get(device, now_s)
            for device, total_s in self._unhealthy_s.items()
        }
