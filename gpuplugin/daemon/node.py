"""Runs the node's decisions on the event loop: its inputs come here, its effects go out.

What is decided is in `core.node`. Everything here is for the event loop alone, but for `view`,
which may be read from any thread. Nothing here blocks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, assert_never

from gpuplugin.core.node import (
    ConfigurationMisfit,
    EventReceived,
    HealthChanged,
    NodeModel,
    ProblemFound,
    Publish,
    WakeAt,
    WriteSpecs,
)
from gpuplugin.daemon.calls import HalThread
from gpuplugin.daemon.logs import log_fact
from hal import HalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from gpuplugin.core.node import Effect
    from gpuplugin.core.nodeview import NodePlan, NodeView
    from gpuplugin.core.usage import Holding, Reading
    from gpuplugin.daemon.healthlog import HealthLog
    from gpuplugin.daemon.status import StatusBoard
    from hal import Event, Gpu, Link, Probe

_SPECS_DEADLINE_S = 20.0

log = logging.getLogger(__name__)


class Node:
    """The node's model, and who follows its view."""

    def __init__(self, plan: NodePlan, status: StatusBoard, health_log: HealthLog) -> None:
        self._model = NodeModel(plan)
        self._status = status
        self._health_log = health_log
        self._specs_thread = HalThread("cdi")
        self._specs_wanted: WriteSpecs | None = None
        self._specs_writing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.followers: list[Callable[[], object]] = []
        """Called when devices or their health have changed."""
        status.set("inventory", "no GPU was listed yet", ok=False)

    @property
    def view(self) -> NodeView:
        return self._model.view

    def updated(
        self, gpus: Iterable[Gpu], probes: Mapping[str, Probe], events: Iterable[Event] = ()
    ) -> None:
        self._run(self._model.updated(gpus, probes, time.monotonic(), events))

    def events_received(self, events: Iterable[Event]) -> None:
        self._run(self._model.events_received(events, time.monotonic()))

    def linked(self, links: Mapping[tuple[str, str], Link]) -> None:
        self._run(self._model.linked(links, time.monotonic()))

    def blinded(self, reason: str) -> None:
        self._run(self._model.blinded(reason, time.monotonic()))

    def clear(self, uuid: str) -> None:
        self._run(self._model.clear(uuid, time.monotonic()))

    def forget(self, uuid: str) -> None:
        self._run(self._model.forget(uuid, time.monotonic()))

    def used(self, reading: Reading) -> None:
        self._model.used(reading)

    def held(self, holdings: Iterable[Holding]) -> None:
        self._run(self._model.held(holdings, time.monotonic()))

    def replan(self, plan: NodePlan) -> None:
        self._model.replan(plan)

    async def configure(self, plan: NodePlan) -> None:
        """Returns when the plan is in force; raises `ConfigurationMisfit` if it does not fit."""
        self._run(self._model.configure(plan, time.monotonic()))
        while self._model.plan is not plan and self._specs_writing is not None:
            await asyncio.wait({self._specs_writing})
        if self._model.plan is not plan:
            raise ConfigurationMisfit(self._model.refusal or "another configuration came first")

    def close(self) -> None:
        """Nothing is published or written any more."""
        for pending in (self._timer, self._specs_writing):
            if pending is not None:
                pending.cancel()
        self._specs_thread.close()

    def _run(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Publish():
                    for follower in self.followers:
                        follower()
                case WakeAt(at_s=at_s):
                    loop = asyncio.get_running_loop()
                    delay_s = max(0.0, at_s - time.monotonic())
                    self._timer = loop.call_later(delay_s, self._wake)
                case WriteSpecs():
                    self._specs_wanted = effect
                    if self._specs_writing is None:
                        self._specs_writing = asyncio.ensure_future(self._keep_specs())
                case EventReceived(event=event, fatal=fatal):
                    self._health_log.received(event, fatal, self.view)
                case HealthChanged(transition=transition, by_hand=by_hand):
                    self._health_log.changed(transition, self.view, by_hand=by_hand)
                case ProblemFound(kind=kind, text=text, error=error):
                    log_fact(log, logging.ERROR if error else logging.WARNING, kind, text)
                case _:
                    assert_never(effect)
        self._show()

    def _wake(self) -> None:
        self._timer = None
        self._run(self._model.timer(time.monotonic()))

    async def _keep_specs(self) -> None:
        """Write what is wanted last; what was wanted before it does not count any more."""
        try:
            while (wanted := self._specs_wanted) is not None:
                self._specs_wanted = None
                try:
                    if (specs := wanted.plan.specs) is not None:
                        await self._specs_thread.call(
                            _SPECS_DEADLINE_S, specs.write, wanted.inventory
                        )
                except Exception as error:  # whatever it is, the node must go on
                    if not isinstance(error, OSError | HalError):
                        log.exception("writing CDI specs failed", extra={"event": "cdi-failed"})
                    reason = (
                        f"CDI specs cannot be written: {error}; mount the folder, choose another "
                        "--cdi-root, or use a device list strategy without CDI"
                    )
                    self._run(self._model.specs_failed(wanted.number, reason))
                else:
                    self._run(self._model.specs_written(wanted.number, time.monotonic()))
        finally:
            self._specs_writing = None

    def _show(self) -> None:
        """Report the newest view, and set the status of the components that it is about."""
        view = self.view
        self._health_log.report(view)
        healthy = view.healthy_devices()
        if view.specs_problem:
            self._status.set("cdi", view.specs_problem, ok=False)
        else:
            self._status.remove("cdi")
        if view.misfit:
            self._status.set("inventory", view.misfit, ok=False)
        elif view.gpus:
            count = view.inventory.device_count
            text = f"{len(view.gpus)} GPUs, {sum(healthy.values())} of {count} devices healthy"
            for uuid, why in view.withheld.items():
                text += f"; GPU {view.index(uuid)} is not offered: {why}"
            text = "; ".join((text, *view.inventory.warnings))
            self._status.set("inventory", text, ok=bool(view.inventory.resources))
