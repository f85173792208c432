"""The node's decisions: its devices, their health, and what is sent to the kubelet.

`NodeModel` has no I/O, clock or threads: each input returns the effects that follow from it, and
`view` is the newest immutable `NodeView`. The daemon runs the effects with asyncio and threads,
virtual time with simpy; both are thin. When the hardware is read is decided in `watch`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from gpuplugin.core.departures import Departures
from gpuplugin.core.healthboard import HealthBoard, Transition, UnknownUnit
from gpuplugin.core.holdings import held_by_plugin, withheld
from gpuplugin.core.inventory import Inventory, InventoryError, expand, plan_devices
from gpuplugin.core.listsize import ListTooLarge, check_list_size
from gpuplugin.core.nodeview import NodePlan, NodeView
from gpuplugin.core.pacing import list_due_s
from gpuplugin.core.xidlog import log_of, logged
from hal import GpuState, XidError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gpuplugin.core.usage import Holding, Reading
    from hal import Event, Gpu, Link, Probe


class ConfigurationMisfit(Exception):
    """The GPUs of this node cannot be advertised or listed as the configuration wants it."""


@dataclass(frozen=True, slots=True)
class Publish:
    """Serve the newest view to the kubelet; send lists that differ from the last ones."""


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Call `timer` at this moment."""

    at_s: float


@dataclass(frozen=True, slots=True)
class WriteSpecs:
    """Write these CDI specs, then call `specs_written` or `specs_failed` with `number`."""

    number: int
    inventory: Inventory
    plan: NodePlan


@dataclass(frozen=True, slots=True)
class EventReceived:
    """The driver reported something; `fatal` if it makes its GPU Unhealthy."""

    event: Event
    fatal: bool


@dataclass(frozen=True, slots=True)
class HealthChanged:
    """A GPU or MIG device changed its state; `by_hand` if a person cleared it."""

    transition: Transition
    by_hand: bool = False


@dataclass(frozen=True, slots=True)
class ProblemFound:
    """Something about the configuration or its specs for a person's attention; `error` if grave."""

    kind: str
    text: str
    error: bool = True


Effect: TypeAlias = Publish | WakeAt | WriteSpecs | EventReceived | HealthChanged | ProblemFound


@dataclass(frozen=True, slots=True)
class _Candidate:
    number: int
    plan: NodePlan
    inventory: Inventory
    requested: bool
    """True if a person requested this plan: if its specs cannot be written, it is refused."""


class NodeModel:
    """The decisions of one node. Not safe for threads; `view` may be read from any."""

    def __init__(self, plan: NodePlan) -> None:
        self.view = NodeView(plan)
        self.plan = plan
        self._gpus: dict[str, Gpu] = {}
        self._departures = Departures()
        self._rebuild_required = False
        self._candidate: _Candidate | None = None
        self._number = 0
        self.refusal = ""
        """Why the plan of the last `configure` did not come into force after all."""
        self._published_s = -math.inf
        self._published: tuple[object, ...] = ()
        self._due = False
        self._effects: list[Effect] = []

    def updated(
        self,
        gpus: Iterable[Gpu],
        probes: Mapping[str, Probe],
        now_s: float,
        events: Iterable[Event] = (),
    ) -> tuple[Effect, ...]:
        """The backend listed its GPUs and probed them: applied together, published once.

        `events` came before the probes and were not applied yet: a reset that the probes show
        came after them.
        """
        found = self._departures.listed(gpus)
        # A GPU that may be in use is never dropped: the kubelet would call it Healthy.
        missing = {
            uuid: replace(gpu, state=GpuState.LOST)
            for uuid, gpu in self._gpus.items()
            if uuid not in found
        }
        changed = found | missing != self._gpus
        self._gpus = found | missing
        listed = tuple(self._gpus.values())
        self.view = replace(
            self.view,
            gpus=listed,
            listed=True,
            probes=MappingProxyType(dict(probes)),
            indices=_indices(listed),
        )
        board = self.view.board.with_gpus(listed, now_s, self.plan.health).blinded("")
        board = self._with_events(board, events, now_s)
        for uuid, probe in probes.items():
            board = board.with_probe(uuid, probe, now_s, self.plan.health)
        self._set_board(board, now_s)
        if changed:
            self.view = replace(self.view, history=self.view.history.of(board))
        if changed or self._rebuild_required or self.view.misfit or self.view.specs_problem:
            self._rebuild(now_s)
        else:
            self._keep_specs()
        for uuid, why in self._departures.due(self._gpus, self.view.holdings, now_s):
            self._forget(uuid, why, now_s)
        self._publish_soon(now_s)
        return self._taken()

    def events_received(self, events: Iterable[Event], now_s: float) -> tuple[Effect, ...]:
        """Events of one wait: applied together."""
        self._set_board(self._with_events(self.view.board, events, now_s), now_s)
        self._publish_soon(now_s)
        return self._taken()

    def linked(self, links: Mapping[tuple[str, str], Link], now_s: float) -> tuple[Effect, ...]:
        if links != self.view.links:
            self.view = replace(self.view, links=links)
            self._publish_now(now_s)
        return self._taken()

    def configure(self, plan: NodePlan, now_s: float) -> tuple[Effect, ...]:
        """Advertise as another configuration wants it; resources that stay keep their streams.

        Where CDI specs have to be written, it comes into force when they are.
        Raises ConfigurationMisfit if it does not suit these GPUs; everything stays as it was.
        """
        self.refusal = ""
        self._propose(plan, now_s, requested=True)
        return self._taken()

    def replan(self, plan: NodePlan) -> None:
        """The same configuration has another meaning on this machine from the next update on."""
        self.plan = plan
        self._rebuild_required = True
        if self._candidate is not None and not self._candidate.requested:
            self._candidate = None

    def specs_written(self, number: int, now_s: float) -> tuple[Effect, ...]:
        candidate = self._candidate
        if candidate is not None and candidate.number == number:
            self._commit(candidate.plan, candidate.inventory, now_s)
        self.view = replace(self.view, specs_problem="")
        return self._taken()

    def specs_failed(self, number: int, reason: str) -> tuple[Effect, ...]:
        """The specs of a `WriteSpecs` cannot be written: the devices stay as they are."""
        candidate = self._candidate
        if candidate is not None and candidate.number == number:
            self._candidate = None
            if candidate.requested:
                self.refusal = reason
                return ()
        if reason != self.view.specs_problem:
            self._effects.append(ProblemFound("cdi-unwritten", reason))
            self.view = replace(self.view, specs_problem=reason)
        return self._taken()

    def blinded(self, reason: str, now_s: float) -> tuple[Effect, ...]:
        """The GPUs cannot be watched: none is healthy until the next update."""
        if reason != self.view.board.blind:
            self.view = replace(self.view, board=self.view.board.blinded(reason))
            self._publish_soon(now_s)
        return self._taken()

    def clear(self, uuid: str, now_s: float) -> tuple[Effect, ...]:
        """A person cleared a fault; raises `UnknownUnit` or `StillFaulty`."""
        self._set_board(self.view.board.cleared(uuid, now_s), now_s, by_hand=True)
        self._publish_soon(now_s)
        return self._taken()

    def used(self, reading: Reading) -> None:
        self.view = replace(self.view, reading=reading)

    def held(self, holdings: Iterable[Holding], now_s: float) -> tuple[Effect, ...]:
        """What pods hold: nothing is offered in another form than it is held in."""
        self.view = replace(self.view, holdings=tuple(holdings))
        self._withhold()
        self._publish_soon(now_s)
        return self._taken()

    def forget(self, uuid: str, now_s: float) -> tuple[Effect, ...]:
        """A person says that a GPU which is gone will not come back: its devices go, too.

        Raises CannotForget if it responds or a pod holds it, `UnknownUnit` if there is none.
        """
        if uuid not in self._gpus:
            raise UnknownUnit(uuid)
        self._forget(uuid, "a person had it forgotten", now_s)
        return self._taken()

    def timer(self, now_s: float) -> tuple[Effect, ...]:
        if self._due:
            self._publish_now(now_s)
        return self._taken()

    def _rebuild(self, now_s: float) -> None:
        """Follow a change of the GPUs; what was listed stays listed if that fails."""
        candidate = self._candidate
        try:
            if candidate is not None and candidate.requested:
                self._propose(candidate.plan, now_s, requested=True)
                return
        except ConfigurationMisfit as misfit:
            self._candidate, self.refusal = None, str(misfit)
        try:
            self._propose(self.plan, now_s, requested=False)
        except ConfigurationMisfit as misfit:
            text = str(misfit)
            if text != self.view.misfit:
                self._effects.append(ProblemFound("configuration-misfit", text))
            self.view = replace(self.view, misfit=text)
            self._publish_now(now_s)

    def _propose(self, plan: NodePlan, now_s: float, *, requested: bool) -> None:
        """Make the inventory anew; it is in force at once, or when its specs are written."""
        try:
            planned = plan_devices(self._gpus.values(), plan.inventory)
            for name, devices in planned.resources.items():
                check_list_size(name, devices)
        except (InventoryError, ListTooLarge) as error:
            raise ConfigurationMisfit(str(error)) from error
        inventory = expand(planned)
        if not plan.injection.uses_cdi:
            self._commit(plan, inventory, now_s)
            self.view = replace(self.view, specs_problem="")
            return
        self._number += 1
        self._candidate = _Candidate(self._number, plan, inventory, requested)
        self._effects.append(WriteSpecs(self._number, inventory, plan))

    def _commit(self, plan: NodePlan, inventory: Inventory, now_s: float) -> None:
        for note in inventory.notes:
            if note not in self.view.inventory.notes:
                self._effects.append(ProblemFound("inventory-note", note, error=False))
        for warning in inventory.warnings:
            if warning not in self.view.inventory.warnings:
                self._effects.append(ProblemFound("inventory-warning", warning, error=False))
        if inventory == self.view.inventory:
            inventory = self.view.inventory
        self.plan = plan
        self._candidate = None
        self._rebuild_required = False
        self.view = replace(self.view, plan=plan, inventory=inventory, misfit="")
        self._withhold()
        self._publish_now(now_s)

    def _withhold(self) -> None:
        view = self.view
        reasons_of = withheld if view.plan.dra is None else held_by_plugin
        reasons = reasons_of(view.inventory, view.holdings or ())
        for uuid in reasons.keys() - view.withheld.keys():
            text = f"GPU {view.index(uuid)} is not offered until then: {reasons[uuid]}"
            self._effects.append(ProblemFound("gpu-withheld", text, error=False))
        for uuid in view.withheld.keys() - reasons.keys():
            text = f"GPU {view.index(uuid)} is offered again: no pod holds it otherwise"
            self._effects.append(ProblemFound("gpu-offered", text, error=False))
        self.view = replace(view, withheld=reasons)

    def _forget(self, uuid: str, why: str, now_s: float) -> None:
        self._departures.forget(self._gpus[uuid], self.view.holdings or ())
        text = f"GPU {uuid} is no longer listed: {why}"
        self._effects.append(ProblemFound("gpu-forgotten", text, error=False))
        del self._gpus[uuid]
        listed = tuple(self._gpus.values())
        board = self.view.board.without(uuid)
        self.view = replace(
            self.view,
            gpus=listed,
            indices=_indices(listed),
            board=board,
            history=self.view.history.of(board),
            xids=log_of(self.view.xids, self._gpus),
        )
        self._rebuild(now_s)

    def _keep_specs(self) -> None:
        """Specs that were removed or changed by others are written again."""
        plan = self.view.plan
        if plan.injection.uses_cdi and self._candidate is None:
            self._effects.append(WriteSpecs(self._number, self.view.inventory, plan))

    def _with_events(
        self, board: HealthBoard, events: Iterable[Event], now_s: float
    ) -> HealthBoard:
        policy = self.plan.health
        for event in events:
            fatal = False
            if isinstance(event, XidError):
                fatal = policy.xids.is_fatal(event.xid)
                if event.uuid in self._gpus:
                    self.view = replace(self.view, xids=logged(self.view.xids, event, now_s))
            self._effects.append(EventReceived(event, fatal))
            board = board.with_event(event, now_s, policy)
        return board

    def _set_board(self, board: HealthBoard, now_s: float, *, by_hand: bool = False) -> None:
        history = self.view.history
        for transition in board.transitions_from(self.view.board):
            history = history.after(transition, self.view.index(transition.uuid), now_s)
            self._effects.append(HealthChanged(transition, by_hand))
        self.view = replace(self.view, board=board, history=history)

    def _publish_soon(self, now_s: float) -> None:
        """Publish at the next turn, or later: a storm is a few lists and not thousands."""
        if not self._due and self._content() != self._published:
            self._due = True
            self._effects.append(WakeAt(list_due_s(now_s, self._published_s)))

    def _publish_now(self, now_s: float) -> None:
        self._due = False
        content = self._content()
        if content != self._published:
            self._published_s, self._published = now_s, content
        self._effects.append(Publish())

    def _content(self) -> tuple[object, ...]:
        """What lists and ResourceSlices follow from: equal content makes equal ones."""
        view = self.view
        healthy = [
            view.healthy(*unit) for resource in view.inventory.resources for unit in resource.units
        ]
        faults = [health.kinds for health in view.board.units.values() if not health.healthy]
        return (view.inventory, view.board.blind, *healthy, *faults)

    def _taken(self) -> tuple[Effect, ...]:
        effects, self._effects = tuple(self._effects), []
        return effects


def _indices(gpus: Iterable[Gpu]) -> Mapping[str, str]:
    indices: dict[str, str] = {}
    for gpu in gpus:
        indices[gpu.uuid] = str(gpu.index)
        indices |= {mig.uuid: f"{gpu.index}:{mig.index}" for mig in gpu.mig_devices}
    return MappingProxyType(indices)
