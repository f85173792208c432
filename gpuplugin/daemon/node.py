"""The node's state: GPUs, their health, and what is published of them. Event loop only.

Whoever learns something (the monitor) calls a method here; whoever serves (the endpoints) is handed
the plugin of each resource. Nothing here blocks.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from gpuplugin.core.healthboard import HealthBoard
from gpuplugin.core.inventory import Inventory, InventoryError, expand, plan_devices
from gpuplugin.core.pacing import list_due_s
from gpuplugin.kubelet.deviceplugin import DevicePlugin
from gpuplugin.kubelet.snapshot import ListTooLarge, ServingPlan, check_list_size, snapshot_of
from hal import GpuState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from gpuplugin.core.health import HealthPolicy
    from gpuplugin.core.injection import InjectionPlan
    from gpuplugin.core.inventory import Plan
    from gpuplugin.core.preference import PolicyName
    from gpuplugin.daemon.healthnews import HealthNews
    from gpuplugin.daemon.http.metrics import Metrics
    from gpuplugin.daemon.status import Vitals
    from gpuplugin.kubelet.snapshot import ResourceSnapshot
    from hal import Event, Gpu, Link, Probe

log = logging.getLogger(__name__)


class SpecsUnwritten(Exception):
    """The container runtime cannot be told of the devices."""


class ConfigurationMisfit(Exception):
    """The GPUs of this node cannot be advertised or listed as the configuration wants it."""


@dataclass(frozen=True, slots=True)
class NodePlans:
    """Everything that a configuration means for the node."""

    inventory: Plan
    injection: InjectionPlan
    policy: PolicyName
    health: HealthPolicy
    write_specs: Callable[[Inventory], None] = lambda _inventory: None
    """Makes the container runtime know the devices, before the kubelet does; raises OSError."""


class Node:
    """What the daemon knows; `plugins` has one entry per resource that is served."""

    def __init__(
        self, plans: NodePlans, vitals: Vitals, metrics: Metrics, news: HealthNews
    ) -> None:
        self._plans = plans
        self._vitals = vitals
        self._metrics = metrics
        self._gpus: dict[str, Gpu] = {}
        self._links: Mapping[tuple[str, str], Link] = MappingProxyType({})
        self._probes: Mapping[str, Probe] = MappingProxyType({})
        self._board = HealthBoard()
        self._inventory = Inventory()
        self._plugins: dict[str, DevicePlugin] = {}
        self._snapshots: dict[str, ResourceSnapshot] = {}
        self._misfit = ""
        self._specs_unwritten = ""
        self._replanned = False
        self._news = news
        self._publishing: asyncio.TimerHandle | None = None
        self._published_s = -math.inf
        self.resources_changed = asyncio.Event()
        vitals.set("inventory", "no GPU was listed yet", ok=False)

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """GPUs as last enumerated; one that vanished is kept as lost."""
        return tuple(self._gpus.values())

    @property
    def inventory(self) -> Inventory:
        """What is advertised."""
        return self._inventory

    @property
    def probes(self) -> Mapping[str, Probe]:
        """The last answer of each GPU that was probed, by UUID."""
        return self._probes

    @property
    def board(self) -> HealthBoard:
        """Health of the GPUs."""
        return self._board

    def index(self, uuid: str) -> str:
        """The index by which people know a GPU (`0`) or MIG device (`0:1`)."""
        return self._news.index(uuid)

    @property
    def plugins(self) -> Mapping[str, DevicePlugin]:
        """The device plugin of each resource, by name."""
        return self._plugins

    def saw(
        self, gpus: Iterable[Gpu], probes: Mapping[str, Probe], before: Iterable[Event] = ()
    ) -> None:
        """The backend listed its GPUs and probed them: applied together, published once.

        `before` are events that nobody dealt with yet when the GPUs were probed: what the probes
        show of a reset comes after them.
        """
        found = {gpu.uuid: gpu for gpu in gpus}
        # A GPU that may be in use is never dropped: the kubelet would call it Healthy.
        missing = {
            uuid: replace(gpu, state=GpuState.LOST)
            for uuid, gpu in self._gpus.items()
            if uuid not in found
        }
        listed = found | missing
        changed = listed != self._gpus
        self._gpus = listed
        self._probes = MappingProxyType(dict(probes))
        self._news.learn(listed)
        now_s, policy = time.monotonic(), self._plans.health
        board = self._board.with_gpus(listed.values(), now_s, policy)
        board = self._with_events(board, before, now_s)
        for uuid, probe in probes.items():
            board = board.with_probe(uuid, probe, now_s, policy)
        self._set_board(board)
        if changed or self._replanned or self._misfit or self._specs_unwritten:
            self._rebuild()
            self._publish()
        else:
            self._keep_specs()
            self._publish_soon()

    def configure(self, plans: NodePlans) -> None:
        """Advertise as another configuration wants it; resources that stay keep their streams.

        Raises:
            ConfigurationMisfit: it does not suit these GPUs; everything stays as it was.
        """
        try:
            self._adopt(plans)
        except SpecsUnwritten as error:
            raise ConfigurationMisfit(str(error)) from error
        self._plans = plans
        self._publish()

    def replanned(self, plans: NodePlans) -> None:
        """The same configuration means something else on this machine now, from `saw` on."""
        self._plans = plans
        self._replanned = True

    def linked(self, links: Mapping[tuple[str, str], Link]) -> None:
        """The backend told how the GPUs are connected."""
        if links != self._links:
            self._links = links
            self._rebuild()
            self._publish()

    def happened(self, events: Iterable[Event]) -> None:
        """Events of one wait: applied together, published with those of the next moment."""
        self._set_board(self._with_events(self._board, events, time.monotonic()))
        self._publish_soon()

    def _with_events(
        self, board: HealthBoard, events: Iterable[Event], now_s: float
    ) -> HealthBoard:
        policy = self._plans.health
        for event in events:
            self._news.happened(event, policy)
            board = board.with_event(event, now_s, policy)
        return board

    def clear(self, uuid: str) -> None:
        """A person says that the fault of a GPU or MIG device is over.

        Raises:
            UnknownUnit: there is none of that UUID.
            StillFaulty: the hardware itself reports a fault now.
        """
        self._set_board(self._board.cleared(uuid, time.monotonic()), by_hand=True)
        self._publish_soon()

    def blinded(self, why: str) -> None:
        """The GPUs cannot be watched (`why`), or can be again (empty text)."""
        if why == self._board.blind:
            return
        self._metrics.monitor_blind.set(1 if why else 0)
        self._board = self._board.blinded(why)
        self._publish_soon()

    def _set_board(self, board: HealthBoard, *, by_hand: bool = False) -> None:
        transitions = board.transitions_from(self._board)
        self._board = board
        for transition in transitions:
            self._news.changed(transition, by_hand=by_hand)

    def _rebuild(self) -> None:
        """Follow a change of the GPUs; if the configuration does not suit them, all is Unhealthy.

        What was listed stays listed then: it may be in use. If only the specs cannot be written,
        everything stays as it was, for the devices that it names are still right.
        """
        try:
            self._adopt(self._plans)
        except ConfigurationMisfit as misfit:
            if self._misfit != str(misfit):
                log.error("%s", misfit, extra={"event": "configuration-misfit"})  # noqa: TRY400
            self._misfit = str(misfit)
        except SpecsUnwritten as error:
            self._note_specs(str(error))

    def _keep_specs(self) -> None:
        """Specs that somebody removed are written again."""
        try:
            self._write_specs(self._plans, self._inventory)
        except SpecsUnwritten as error:
            self._note_specs(str(error))

    def _write_specs(self, plans: NodePlans, inventory: Inventory) -> None:
        try:
            plans.write_specs(inventory)
        except OSError as error:
            raise SpecsUnwritten(
                f"CDI specs cannot be written: {error}; mount the folder, choose another "
                "--cdi-root, or use a device list strategy without CDI"
            ) from error
        self._note_specs("")

    def _note_specs(self, problem: str) -> None:
        """Tell that specs cannot be written, or (empty text) that they are."""
        if problem == self._specs_unwritten:
            return
        self._specs_unwritten = problem
        if problem:
            log.error("%s", problem, extra={"event": "cdi-unwritten"})
            self._vitals.set("cdi", problem, ok=False)
        else:
            self._vitals.remove("cdi")

    def _adopt(self, plans: NodePlans) -> None:
        """Make inventory and snapshots anew; nothing changes if that fails."""
        serving = ServingPlan(plans.injection, plans.policy, self._links)
        try:
            planned = plan_devices(self._gpus.values(), plans.inventory)
            for name, devices in planned.resources.items():
                check_list_size(name, devices)
            inventory = expand(planned)
            snapshots = [snapshot_of(resource, serving) for resource in inventory.resources]
        except (InventoryError, ListTooLarge) as error:
            raise ConfigurationMisfit(str(error)) from error
        self._write_specs(plans, inventory)
        for note in inventory.notes:
            if note not in self._inventory.notes:
                log.warning("%s", note, extra={"event": "inventory-note"})
        self._misfit = ""
        self._replanned = False
        self._inventory = inventory
        self._snapshots = {snapshot.resource.name: snapshot for snapshot in snapshots}
        for name in self._plugins.keys() - self._snapshots.keys():
            self._forget(name)
        self._plugins = {
            name: self._plugins.get(name) or DevicePlugin(snapshot, self._metrics.choices_of(name))
            for name, snapshot in self._snapshots.items()
        }
        self.resources_changed.set()

    def _forget(self, resource: str) -> None:
        """A resource is served no more: its series end."""
        for metric in self._metrics.by_resource:
            metric.remove_by_labels({"resource": resource})

    def _publish_soon(self) -> None:
        """Publish at the loop's next turn, or later: a storm is a few lists and not thousands."""
        if self._publishing is None:
            loop = asyncio.get_running_loop()
            due_s = list_due_s(loop.time(), self._published_s)
            self._publishing = loop.call_at(due_s, self._publish)

    def _publish(self) -> None:
        """Send new lists where they changed and refresh what is shown."""
        if self._publishing is not None:
            self._publishing.cancel()
            self._publishing = None
        for name, plugin in self._plugins.items():
            if plugin.update(self._snapshots[name], self._is_healthy):
                self._published_s = asyncio.get_running_loop().time()
                self._metrics.list_updates.labels(resource=name).inc()
        self._show()

    def _is_healthy(self, gpu_uuid: str, mig_uuid: str | None) -> bool:
        return not self._misfit and self._board.healthy(gpu_uuid, mig_uuid)

    def _show(self) -> None:
        devices = self._metrics.devices
        healthy = 0
        for name, plugin in self._plugins.items():
            good = plugin.snapshot.healthy_count(self._is_healthy)
            bad = len(plugin.snapshot.resource.devices) - good
            devices.labels(resource=name, health="Healthy").set(good)
            devices.labels(resource=name, health="Unhealthy").set(bad)
            self._metrics.list_bytes.labels(resource=name).set(plugin.devices.size_bytes)
            healthy += good
        self._news.show(self._board)
        if self._misfit:
            self._vitals.set("inventory", self._misfit, ok=False)
        elif self._gpus:
            total = self._inventory.device_count
            text = f"{len(self._gpus)} GPUs, {healthy} of {total} devices healthy"
            self._vitals.set("inventory", text, ok=bool(self._plugins))
