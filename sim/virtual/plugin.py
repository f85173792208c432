"""The plugin in virtual time: the daemon's own decisions, run by simpy's clock.

What the daemon runs with asyncio and threads (`gpuplugin.core.node`, `gpuplugin.core.watch`) is run
here with timeouts; RPC handlers are called directly. Nothing is decided here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, assert_never

import simpy

from gpuplugin.config.plans import health_policy, injection_plan, inventory_plan
from gpuplugin.core import watch as deadlines
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
from gpuplugin.core.nodeview import NodePlan
from gpuplugin.core.timeslices import TimeSlices, usual_time_slices
from gpuplugin.core.watch import Watch, WatchFailed, WatchPlan, judge_probes
from hal import HalError, HalHung
from sim.gpu.scheduler import to_ns
from sim.node.reader import NodeReader

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from typing import TypeAlias

    from gpuplugin.config.settings import Settings
    from gpuplugin.core.healthboard import HealthBoard, Transition
    from gpuplugin.core.node import Effect
    from gpuplugin.core.nodeview import NodeView
    from hal import Probe
    from sim.node.node import SimulatedNode
    from sim.node.population import Log
    from sim.virtual.doors import Door

    Steps: TypeAlias = Generator[simpy.Event, object, None]

_HANG_STEP_NS = 100_000_000
"""How often it is seen whether a hanging call has returned."""


class VirtualPlugin:
    """The plugin of a simulated node; `door` serves its newest view.

    A run whose first GPUs do not suit the configuration ends with `ConfigurationMisfit`.
    """

    def __init__(
        self,
        node: SimulatedNode,
        settings: Settings,
        door: Door,
        log: Log,
    ) -> None:
        self._node = node
        self._reader = NodeReader(node)
        self._env = node.env
        health = health_policy(settings)
        self._model = NodeModel(
            NodePlan(
                inventory=inventory_plan(settings),
                injection=injection_plan(settings, frozenset()),
                policy=settings.flags.plugin.shared_devices_allocation_policy,
                health=health,
            )
        )
        self._watch = Watch(
            WatchPlan(
                settings.health.probe_interval, settings.health.blind_after, health.needs_events
            )
        )
        self._door = door
        self._log = log
        self._blind = ""
        self._slices = TimeSlices()
        self._changed = self._env.event()
        self._unsettled = self._env.event()
        self._hanging: set[str] = set()
        node.on_change = self._node_changed
        self._env.process(self._run())

    @property
    def view(self) -> NodeView:
        return self._model.view

    @property
    def reader(self) -> NodeReader:
        """The driver as the plugin has it open."""
        return self._reader

    @property
    def board(self) -> HealthBoard:
        return self._model.view.board

    def _node_changed(self) -> None:
        _trigger(self._changed)
        _trigger(self._unsettled)

    def _run(self) -> Steps:
        """Open the driver, watch, and open it again when watching fails."""
        while True:
            yield from self._open()
            failed = self._env.event()
            tasks = [
                self._env.process(_until_failure(steps, failed))
                for steps in (self._receive_events(), self._update())
            ]
            reason = yield failed
            for task in tasks:
                if task.is_alive:
                    task.interrupt()
            self._apply(self._model.blinded(str(reason), self._node.now_s))
            yield self._until(self._watch.closed(self._node.now_s))

    def _open(self) -> Steps:
        while True:
            try:
                yield from self._call(deadlines.OPEN_DEADLINE_S)
                self._reader.connect()
                self._reader.driver_version()
                if self._watch.plan.watch_events:
                    yield from self._call(deadlines.CALL_DEADLINE_S, watching=True)
                yield from self._read(deadlines.CALL_DEADLINE_S)
            except HalError:
                yield self._until(self._watch.open_failed(self._node.now_s))
                continue
            self._watch.opened(self._node.now_s)
            return

    def _receive_events(self) -> Steps:
        node, watch = self._node, self._watch
        while watch.plan.watch_events:
            if not node.has_events and not self._watching_fails:
                self._changed = self._env.event()
                yield self._changed
                watch.events.repeated(node.now_s, deadlines.EVENT_WAIT_S)
            try:
                wait_s = deadlines.EVENT_WAIT_S + watch.plan.blind_after_s
                yield from self._call(wait_s, watching=True)
            except HalError as error:
                yield self._until(node.now_s + watch.events_failed(error, node.now_s))
                continue
            watch.events.succeeded(node.now_s)
            if events := node.take_events():
                watch.events_received(events)
                self._apply(self._model.events_received(events, node.now_s))
                _trigger(self._unsettled)

    @property
    def _watching_fails(self) -> bool:
        return self._node.driver.watch_failure(self._node.now_s) is not None or self._node.hangs()

    def _update(self) -> Steps:
        """Read and probe at every interval while anything is unsettled or an event requires it.

        A daemon does it all the time; where everything is well and nothing happened, its updates
        find nothing and change nothing.
        """
        node, watch = self._node, self._watch
        while True:
            if watch.settled(self.board):
                self._unsettled = self._env.event()
                yield self._unsettled
                watch.skip_updates(node.now_s)
            if watch.update_due_s(self.board) == math.inf:
                continue
            # In whole nanoseconds: a sum of seconds may lie behind the moment that is waited for.
            while to_ns(due_s := watch.update_due_s(self.board)) > self._env.now:
                self._unsettled = self._env.event()
                yield self._unsettled | self._until(due_s)
            try:
                yield from self._read(watch.plan.hang_after_s)
            except HalError as error:
                watch.update_failed(error, node.now_s)
                continue
            watch.updated(node.now_s)

    def _read(self, hang_after_s: float) -> Steps:
        """List and probe all GPUs; raises `HalError` if none can be listed, or none probed."""
        yield from self._call(hang_after_s)
        node, view = self._node, self._model.view
        gpus = self._reader.gpus()
        results: dict[str, Probe | HalError] = {}
        for uuid in dict.fromkeys((*(gpu.uuid for gpu in gpus), *view.board.gpus)):
            try:
                yield from self._call(hang_after_s, uuid)
                results[uuid] = self._reader.probe(uuid)
            except HalError as error:
                results[uuid] = error
        probes = judge_probes(results, view.board)
        events = () if self._watching_fails else node.take_events()
        self._apply(self._model.updated(gpus, probes.by_uuid, node.now_s, events))
        if self._watch.links_due(probes.by_uuid):
            self._apply(self._model.linked(self._reader.links(), node.now_s))

    def _call(self, deadline_s: float, uuid: str | None = None, *, watching: bool = False) -> Steps:
        """A call to the driver, about a GPU or not; raises `HalError`, also at its deadline."""
        node = self._node
        due_ns = int(self._env.now) + to_ns(deadline_s)
        while node.hangs(uuid):
            # A call that still hangs is not made again: the GPU has no answer at once.
            if self._env.now >= due_ns or uuid in self._hanging:
                if uuid is not None:
                    self._hanging.add(uuid)
                raise HalHung(f"the call did not return within {deadline_s:g} s")
            yield self._env.timeout(min(due_ns - int(self._env.now), _HANG_STEP_NS))
        self._hanging.discard(uuid or "")
        failure = node.driver.watch_failure(node.now_s) if watching else node.driver.failure()
        if failure is not None:
            raise failure

    def _until(self, due_s: float) -> simpy.Event:
        return self._env.timeout(max(0, to_ns(due_s) - int(self._env.now)))

    def _apply(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Publish():
                    self._door.publish(self._model.view)
                    self._set_time_slices()
                case WakeAt(at_s=at_s):
                    self._env.process(self._wake(at_s))
                case WriteSpecs(number=number):
                    self._apply(self._model.specs_written(number, self._node.now_s))
                case EventReceived():
                    pass  # the node has logged the fault behind it
                case HealthChanged(transition=transition):
                    self._log_change(transition)
                case ProblemFound(kind=kind, text=text):
                    self._log(kind, {"text": text})
                    if self._model.view.misfit and not self._door.serves:
                        raise ConfigurationMisfit(text)
                case _:
                    assert_never(effect)
        if self.board.blind != self._blind:
            self._blind = self.board.blind
            self._log("monitor", {"blind": self._blind})

    def _set_time_slices(self) -> None:
        """As the daemon's task does, which takes no time here."""
        view = self._model.view
        usable = {gpu.uuid for gpu in view.gpus if view.board.healthy(gpu.uuid)}
        listed = {gpu.uuid for gpu in view.gpus}
        wanted = usual_time_slices(view.inventory, view.plan.inventory.sharing.interval)
        slices = self._slices.of_interest(wanted, listed)
        if not view.board.blind:
            slices = slices.uncertain(listed - usable)
        for uuid, level in slices.due(wanted, usable).items():
            gpu = self._node.gpu(uuid)
            if gpu.identity.mig_enabled or not gpu.profile.has_levels:
                slices = slices.after_refusal(uuid, level, "it has none")
            else:
                gpu.set_time_slice(level)
                slices = slices.after_setting(uuid, level, wanted=uuid in wanted)
        self._slices = slices

    def _wake(self, at_s: float) -> Steps:
        yield self._until(at_s)
        self._apply(self._model.timer(self._node.now_s))

    def _log_change(self, transition: Transition) -> None:
        fault = transition.fault
        if transition.before is None and fault is None:
            return
        self._log(
            "gpu-health",
            {
                "uuid": transition.uuid,
                "gpu": self._model.view.index(transition.uuid),
                "state": transition.after.value,
                "cause": fault.cause.value if fault else "",
                "reason": fault.reason if fault else "",
                "action": fault.action if fault else "",
                "xid": fault.xid if fault else None,
            },
        )


def _trigger(event: simpy.Event) -> None:
    if not event.triggered:
        event.succeed()


def _until_failure(steps: Steps, failed: simpy.Event) -> Steps:
    """Follow the steps; if watching fails in them, `failed` has the reason."""
    try:
        yield from steps
    except WatchFailed as failure:
        if not failed.triggered:
            failed.succeed(str(failure))
    except simpy.Interrupt:
        return
