"""What the status page shows, as plain values. How it looks is in `html`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpuplugin.daemon.status import Part


@dataclass(frozen=True, slots=True)
class TenantView:
    """A pod (or what is in none) on a unit; None is what is not seen."""

    name: str
    container: str
    replicas: int
    memory_bytes: int | None
    fair_bytes: int | None
    sm_share: float | None

    @property
    def over(self) -> bool:
        """True if it has more memory than its replicas entitle it to."""
        known = self.memory_bytes is not None and self.fair_bytes is not None
        return known and (self.memory_bytes or 0) > (self.fair_bytes or 0)


@dataclass(frozen=True, slots=True)
class SpanView:
    """A unit was in a state from `begin` to `end`, as shares (0 to 1) of its history."""

    begin: float
    end: float
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class UnitView:
    """A GPU, or a MIG device of one, that is advertised."""

    index: str
    uuid: str
    product: str
    state: str
    reason: str
    replicas: int
    holders: Mapping[int, str]
    """Who holds which replica, by its number."""
    allocated: int | None
    tenants: Sequence[TenantView]
    history_s: float
    """How far back the history goes: an hour, or to the plugin's start."""
    history: Sequence[SpanView]
    utilization: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int = 0
    temperature_c: float | None = None
    power_w: float | None = None
    clock_mhz: int | None = None
    throttled: str = ""


@dataclass(frozen=True, slots=True)
class CallView:
    """An Allocate call: `age_s` ago, for `devices` of a resource; `error` is "" if it succeeded."""

    age_s: float
    resource: str
    devices: Sequence[str]
    error: str


@dataclass(frozen=True, slots=True)
class PageView:
    """The whole page."""

    version: str
    node: str
    backend: str
    ready: bool
    parts: Mapping[str, Part]
    now_s: float
    units: Sequence[UnitView]
    calls: Sequence[CallView]
    unseen: Mapping[str, str]
    configuration: str
    source: str
