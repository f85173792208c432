"""The plugin in virtual time: its own core and RPC handlers, called directly.

What the daemon does with tasks and threads (watch, probe, debounce, publish) happens here by the
simulated clock; every decision is made by the same functions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gpuplugin.config.plans import health_policy, injection_plan, inventory_plan
from gpuplugin.core.healthboard import HealthBoard
from gpuplugin.core.inventory import build_inventory
from gpuplugin.core.pacing import list_due_s
from gpuplugin.kubelet.deviceplugin import DevicePlugin
from gpuplugin.kubelet.snapshot import ServingPlan, snapshot_of
from hal import Probe, RecoveryAction
from sim.gpu.scheduler import to_ns

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    import simpy

    from gpuplugin.config.settings import Settings
    from gpuplugin.core.healthboard import Transition
    from gpuplugin.kubelet.snapshot import ResourceSnapshot
    from hal import Gpu
    from sim.node.node import SimulatedNode
    from sim.node.population import Log


class VirtualPlugin:
    """The device plugins of a simulated node, by resource; `publish` is handed each new list."""

    def __init__(
        self,
        node: SimulatedNode,
        settings: Settings,
        publish: Callable[[str, DevicePlugin], None],
        log: Log,
    ) -> None:
        self._node = node
        self._settings = settings
        self._policy = health_policy(settings)
        self._publish_list = publish
        self._log = log
        self._changed = node.env.event()
        self._unsettled = node.env.event()
        self._failing_since_s: float | None = None
        self._publishing = False
        self._published_s = -math.inf
        self._gpus: tuple[Gpu, ...] = ()
        self._snapshots: dict[str, ResourceSnapshot] = {}
        self.board = HealthBoard()
        self.plugins: dict[str, DevicePlugin] = {}
        node.on_change = self._node_changed
        self._look()
        node.env.process(self._watch())
        node.env.process(self._look_around())

    def index(self, uuid: str) -> str:
        """The index of a GPU (`0`) or MIG device (`0:1`), empty if it is not known."""
        for gpu in self._gpus:
            if gpu.uuid == uuid:
                return str(gpu.index)
            for mig in gpu.mig_devices:
                if mig.uuid == uuid:
                    return f"{gpu.index}:{mig.index}"
        return ""

    def _node_changed(self) -> None:
        for event in (self._changed, self._unsettled):
            if not event.triggered:
                event.succeed()

    def _watch(self) -> Generator[simpy.Event, object, None]:
        """Events of the driver, at once."""
        while True:
            yield self._changed
            self._changed = self._node.env.event()
            self._read_events()

    def _read_events(self) -> None:
        node = self._node
        if node.driver.watch_failure(node.now_s) is not None or node.hangs():
            return
        board = self.board
        for event in node.take_events():
            board = board.with_event(event, node.now_s, self._policy)
        self._adopt(board)

    def _look_around(self) -> Generator[simpy.Event, object, None]:
        """Look at every interval while anything is unsettled, and again when something happens.

        A daemon looks all the time; where everything is well and nothing happened, its looks find
        nothing and change nothing.
        """
        node, interval_s = self._node, self._settings.health.probe_interval
        while True:
            yield self._unsettled
            self._unsettled = node.env.event()
            while True:
                rounds = math.floor(node.now_s / interval_s) + 1
                yield node.env.timeout(max(1, to_ns(rounds * interval_s) - int(node.env.now)))
                self._look()
                if self._settled:
                    break

    @property
    def _settled(self) -> bool:
        well = all(one.healthy and not one.faults for one in self.board.units.values())
        return well and self._failing_since_s is None

    def _look(self) -> None:
        """List and probe all GPUs, as far as the driver lets anybody."""
        node, now_s = self._node, self._node.now_s
        if node.driver.watch_failure(now_s) is not None or node.hangs():
            since_s = self._failing_since_s
            self._failing_since_s = now_s if since_s is None else since_s
            if now_s - self._failing_since_s >= self._settings.health.blind_after:
                self._adopt(self.board.blinded("the driver cannot be watched"))
            return
        self._failing_since_s = None
        self._read_events()
        gpus = node.listed()
        board = self.board.with_gpus(gpus, now_s, self._policy).blinded("")
        for gpu in gpus:
            board = board.with_probe(gpu.uuid, self._probe(gpu.uuid), now_s, self._policy)
        if gpus != self._gpus:
            self._gpus = gpus
            self._rebuild()
        self._adopt(board)

    def _probe(self, uuid: str) -> Probe:
        """A probe; one that hangs counts as no answer."""
        if not self._node.hangs(uuid):
            return self._node.gpu(uuid).probe()
        health = self.board.gpus.get(uuid)
        return Probe(
            reachable=False,
            recovery_action=RecoveryAction.UNKNOWN,
            row_remap_pending=False,
            row_remap_failed=False,
            uncorrectable_ecc=None,
            epoch=(health.epoch if health else None) or "",
        )

    def _rebuild(self) -> None:
        """Resources and answers follow the GPUs."""
        inventory = build_inventory(self._gpus, inventory_plan(self._settings))
        serving = ServingPlan(
            injection_plan(self._settings, frozenset()),
            self._settings.flags.plugin.shared_devices_allocation_policy,
            self._node.links(),
        )
        self._snapshots = {
            resource.name: snapshot_of(resource, serving) for resource in inventory.resources
        }
        for name, snapshot in self._snapshots.items():
            self.plugins.setdefault(name, DevicePlugin(snapshot))
        for name in self.plugins.keys() - self._snapshots.keys():
            plugin = self.plugins.pop(name)
            plugin.devices.publish(b"")
            self._publish_list(name, plugin)

    def _adopt(self, board: HealthBoard) -> None:
        for transition in board.transitions_from(self.board):
            self._tell(transition)
        if board.blind != self.board.blind:
            self._log("monitor", {"blind": board.blind})
        self.board = board
        if not self._publishing:
            self._publishing = True
            self._node.env.process(self._publish_soon())

    def _publish_soon(self) -> Generator[simpy.Event, object, None]:
        now_s = self._node.now_s
        yield self._node.env.timeout(to_ns(list_due_s(now_s, self._published_s) - now_s))
        self._publishing = False
        for name, plugin in self.plugins.items():
            if plugin.update(self._snapshots[name], self.board.healthy):
                self._published_s = self._node.now_s
                self._publish_list(name, plugin)

    def _tell(self, transition: Transition) -> None:
        if transition.before is None and transition.fault is None:
            return
        fault = transition.fault
        self._log(
            "gpu-health",
            {
                "uuid": transition.uuid,
                "gpu": self.index(transition.uuid),
                "state": transition.after.value,
                "cause": fault.cause.value if fault else "",
                "reason": fault.reason if fault else "",
                "xid": fault.xid if fault else None,
            },
        )
