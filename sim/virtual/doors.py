"""The two ways by which the plugin of virtual time serves the kubelet: device plugins, and DRA.

They do what the daemon's front doors do, with its own decisions (`gpuplugin.core.dra`) and
handlers, called directly. Nothing is decided here.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, assert_never

from gpuplugin.core.dra.claims import ClaimError, Claims, results_of
from gpuplugin.core.dra.devices import Offering, offers
from gpuplugin.core.dra.slices import (
    ORDER_PAUSE_S,
    Create,
    Delete,
    Pool,
    Stored,
    Update,
    arranged,
    writes,
)
from gpuplugin.core.jsonobject import JsonObject, part
from gpuplugin.kubelet.deviceplugin import DevicePlugins
from gpuplugin.kubelet.draplugin import DraPlugin, health_message
from sim.apiserver.store import CLAIMS, NODES, SLICES, ApiProblem, Key, Selection
from sim.gpu.scheduler import to_ns

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    import simpy

    from gpuplugin.core.dra.claims import ClaimRef, HeldDevice
    from gpuplugin.core.dra.devices import Offer
    from gpuplugin.core.dra.slices import Order, Write
    from gpuplugin.core.nodeview import NodeView
    from gpuplugin.kubelet.deviceplugin import DevicePlugin
    from sim.apiserver.store import Store
    from sim.node.node import SimulatedNode

BOOT = "virtual"
CDI_KIND = "gpuplugin.dev/claim"


class Door(Protocol):
    @property
    def serves(self) -> bool:
        """Whether something was published yet."""

    def publish(self, view: NodeView) -> None:
        """Serve this view from now on."""


class PluginDoor:
    """The device plugins by resource; `listed` is handed each new list."""

    def __init__(self, listed: Callable[[str, DevicePlugin], None]) -> None:
        self._plugins = DevicePlugins()
        self._listed = listed

    @property
    def serves(self) -> bool:
        return bool(self._plugins.by_resource)

    def publish(self, view: NodeView) -> None:
        applied = self._plugins.apply(view)
        for name in applied.lists:
            self._listed(name, self._plugins.by_resource[name])
        for name, plugin in applied.removed.items():
            plugin.devices.publish(b"")
            self._listed(name, plugin)


class ClaimDoor:
    """A DRA driver of `name`; `published` is called after slices were written.

    Claims are held in memory: no CDI spec is written and no file of claims.
    """

    def __init__(
        self,
        node: SimulatedNode,
        store: Store,
        pool: Pool,
        driver_version: str,
        published: Callable[[], None],
    ) -> None:
        self._env = node.env
        self._store = store
        self.pool = pool
        self._driver_version = driver_version
        self._published = published
        self._view: NodeView | None = None
        self._claims = Claims(BOOT)
        self._replicas: dict[str, int] = {}
        self._offers: tuple[Offer, ...] = ()
        self._seen_version = 0
        self._claims_turn, self._slices_turn = node.env.event(), node.env.event()
        self.writes_total = 0
        self.plugin = DraPlugin(self)
        store.listeners.append(self._store_changed)
        node.env.process(self._follow_claims())
        node.env.process(self._follow_slices())

    @property
    def serves(self) -> bool:
        return self._view is not None

    @property
    def health(self) -> bytes:
        """The newest message of the health stream."""
        now_s = int(self._env.now) // to_ns(1)
        return health_message(self._offers, self.pool.node, now_s)

    def publish(self, view: NodeView) -> None:
        self._view = view
        self._arrange()

    def prepare(self, ref: ClaimRef, deadline_s: float) -> Sequence[HeldDevice]:
        """See `ClaimWork`: nothing is waited for."""
        if not self._claims.is_prepared(ref.uid):
            try:
                claim = self._store.get(Key(CLAIMS, ref.name, ref.namespace))
            except ApiProblem as problem:
                raise ClaimError(str(problem)) from problem
            results = results_of(claim, ref.uid, self.pool.driver)
            by_name = {offer.name: offer for offer in self._offers}
            ids = {one.device: (f"{CDI_KIND}={ref.uid}-{one.device}",) for one in results}
            self._claims = self._claims.started(ref, results, by_name).prepared(ref.uid, ids)
            self._claims_changed()
        return self._claims.by_uid[ref.uid].devices

    def unprepare(self, ref: ClaimRef) -> None:
        """See `ClaimWork`."""
        self._claims = self._claims.without(ref.uid)
        self._claims_changed()

    def _claims_changed(self) -> None:
        if not self._claims_turn.triggered:
            self._claims_turn.succeed()

    def _follow_claims(self) -> Generator[simpy.Event, object, None]:
        """The order follows shares as they are taken, at most once in a while."""
        while True:
            yield self._claims_turn
            self._claims_turn = self._env.event()
            self._arrange()
            yield self._env.timeout(to_ns(ORDER_PAUSE_S))

    def _store_changed(self) -> None:
        changed = self._store.version_of(SLICES) > self._seen_version
        if changed and not self._slices_turn.triggered:
            self._slices_turn.succeed()

    def _follow_slices(self) -> Generator[simpy.Event, object, None]:
        """As a watch does: what somebody else deleted or changed is put right."""
        while True:
            yield self._slices_turn
            self._slices_turn = self._env.event()
            if self._view is not None:
                self._write()

    def _arrange(self) -> None:
        view = self._view
        if view is None:
            return
        offering = Offering(self.pool.driver, self._driver_version, withheld=view.withheld)
        wanted = offers(view.inventory, view.gpus, view.board, offering)
        order: Order = "packed" if view.plan.policy == "packed" else "distributed"
        now = arranged(wanted, self._claims, self._replicas, order)
        self._replicas = {offer.name: offer.replicas for offer in now.offers}
        self._offers = now.offers
        self._write()

    def _write(self) -> None:
        todo = writes(self._offers, self.pool, self._stored())
        for write in todo:
            self._carry_out(write)
        self._seen_version = self._store.version_of(SLICES)
        if todo:
            self.writes_total += len(todo)
            self._published()

    def _stored(self) -> list[Stored]:
        fields = {"spec.nodeName": self.pool.node, "spec.driver": self.pool.driver}
        _, bodies = self._store.select(Selection(SLICES, fields=MappingProxyType(fields)))
        return [_stored(body) for body in bodies]

    def _carry_out(self, write: Write) -> None:
        match write:
            case Create(name=name, spec=spec):
                node = self._store.get(Key(NODES, self.pool.node))
                owner: JsonObject = {"kind": "Node", "uid": part(node, "metadata")["uid"]}
                metadata: JsonObject = {"ownerReferences": [owner]}
                self._store.create(Key(SLICES, name), {"metadata": metadata, "spec": spec})
            case Update(stored=stored, spec=spec):
                metadata = {"resourceVersion": stored.resource_version}
                body: JsonObject = {"metadata": metadata, "spec": spec}
                self._store.replace(Key(SLICES, stored.name), body)
            case Delete(stored=stored):
                self._store.delete(Key(SLICES, stored.name))
            case _:
                assert_never(write)


def _stored(body: JsonObject) -> Stored:
    metadata = part(body, "metadata")
    name, uid, version = (str(metadata[key]) for key in ("name", "uid", "resourceVersion"))
    return Stored(name, uid, version, part(body, "spec"))
