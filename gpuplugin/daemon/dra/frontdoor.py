"""Dynamic Resource Allocation as the front door: what the node's view means for slices and claims.

Claims are prepared in the kubelet's calls (`claimwork`), slices are published on the event loop
(`publisher`). This follows the node's view and the file of claims, and hands both what follows.
Imported only where DRA is wanted: it loads a Kubernetes client.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from gpuplugin.core.dra.claims import ClaimError, Claims
from gpuplugin.core.dra.devices import Offering, offers
from gpuplugin.core.dra.holdings import holdings_of, uses_of
from gpuplugin.core.dra.slices import ORDER_PAUSE_S, Arranged, Pool, arranged
from gpuplugin.core.inventory import Inventory
from gpuplugin.daemon.dra.claimapi import ClaimApi
from gpuplugin.daemon.dra.claimcare import ClaimCare
from gpuplugin.daemon.dra.claimstore import ClaimStore
from gpuplugin.daemon.dra.claimwork import ClaimKeeper, Offered, claims_of_specs
from gpuplugin.daemon.dra.endpoint import DraEndpoint
from gpuplugin.daemon.dra.publisher import SlicePublisher
from gpuplugin.daemon.http.pageview import CallView
from gpuplugin.daemon.logs import log_fact
from gpuplugin.daemon.serving.sockets import KubeletDirs
from gpuplugin.daemon.tasks import supervise, wait_period, wait_period_or
from gpuplugin.kubelet.draplugin import DraPlugin, health_message
from hal import HalError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from lightkube import SingleConfig

    from gpuplugin.config.settings import Settings
    from gpuplugin.core.dra.devices import DraPlan
    from gpuplugin.core.dra.slices import Order
    from gpuplugin.core.nodeview import NodeView
    from gpuplugin.core.usage import ClaimUse, Holding
    from gpuplugin.daemon.frontdoor import DoorContext
    from gpuplugin.rpc import Engine

COMPONENT: Final = "claims"
HEARTBEAT_S = 10.0
"""The kubelet takes a device of which it heard nothing for 30 s for Unknown."""
BOOT_ID = "sys/kernel/random/boot_id"

for _name in (
    "anyio._backends._asyncio",
    "httpcore2._backends.anyio",
    "httpcore2._backends.sync",
    "encodings.idna",
):
    import_module(_name)  # the client would, when it connects first

log = logging.getLogger(__name__)


class DraDoor:
    """Serves the newest view by DRA; see `daemon.frontdoor.FrontDoor`."""

    def __init__(
        self,
        settings: Settings,
        context: DoorContext,
        engine: Engine,
        cluster: SingleConfig,
        boot_id: str,
    ) -> None:
        self._context = context
        daemon = settings.daemon
        self._driver = driver = daemon.dra_driver_name
        self._node_name = daemon.node_name
        self._cdi_folder = daemon.cdi_root
        dirs = KubeletDirs(daemon.kubelet_dir)
        self._folder = dirs.dra_driver(driver)
        self._store = ClaimStore(
            self._folder,
            boot_id,
            lambda: claims_of_specs(daemon.cdi_root, driver, boot_id),
        )
        self._api = ClaimApi(cluster)
        self._keeper = ClaimKeeper(
            driver,
            self._store,
            daemon.cdi_root,
            lambda: self._offered,
            self._api.read,
            context.set_time_slices,
        )
        self._care = ClaimCare(driver, self._api, self._keeper)
        self._plugin = DraPlugin(self._keeper, self._count)
        self._publisher = SlicePublisher(
            Pool(driver, daemon.node_name),
            self._folder / "slices.lock",
            cluster,
            context.status,
            context.metrics,
            self._slices_listed,
        )
        stats = context.metrics.calls[driver]
        self._endpoint = DraEndpoint(
            driver,
            self._plugin,
            dirs,
            engine,
            context.status,
            context.files,
            self._publisher.look_again,
            stats.wrap,
        )
        self._driver_version = ""
        self._turn = asyncio.Event()
        self._view: NodeView | None = None
        self._claims = Claims(boot_id)
        self._claims_known = False
        self._problems: tuple[str, ...] = ()
        self._replicas: dict[str, int] = {}
        """With how many replicas each device was offered last."""
        self._arranged: Arranged | None = None
        self._offered: Offered | None = None
        """Read by the threads of calls."""
        context.status.set(COMPONENT, "the file of claims was not read yet", ok=False)

    def calls(self) -> Sequence[CallView]:
        claims, now_s = self._claims.by_uid, time.time()
        found: list[CallView] = []
        for at_s, operation, ref, error in reversed(self._plugin.recent):
            claim = claims.get(ref.uid)
            names = [held.result.device for held in claim.devices] if claim else []
            text = error and f"{operation}: {error}"
            found.append(CallView(now_s - at_s, f"{ref.namespace}/{ref.name}", names, text))
        return found

    def holdings(self, uses: Iterable[ClaimUse]) -> Iterable[Holding]:
        inventory = Inventory() if self._view is None else self._view.inventory
        return holdings_of(uses, self._driver, self._newest_claims(), inventory)

    def held(self) -> Iterable[Holding]:
        return self.holdings(uses_of(self._newest_claims(), self._driver))

    def _newest_claims(self) -> Claims:
        """In a thread: those of the file, or as they were last known."""
        try:
            return self._store.claims
        except OSError:
            return self._claims

    def publish(self, view: NodeView) -> None:
        self._view = view
        self._arrange(fresh=False)
        self._turn.set()

    async def run(self) -> None:
        """Serve until cancelled; slices and prepared claims stay when this returns."""
        status, metrics = self._context.status, self._context.metrics
        self._api.open()
        self._keeper.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                for name, task in (
                    ("dra-claims", self._follow_claims),
                    ("dra-slices", self._publisher.run),
                    ("dra-health", self._send_health),
                    ("dra-endpoint", self._endpoint.run),
                    ("dra-conditions", self._care.report),
                    ("dra-cleanup", self._care.clean_up),
                ):
                    metrics.task_restarts.labels(task=name)
                    tasks.create_task(supervise(name, task, status, metrics))
                try:
                    await asyncio.get_running_loop().create_future()
                finally:
                    self._keeper.stop()  # first: the endpoint waits for calls that run
        finally:
            self._api.close()

    async def _follow_claims(self) -> None:
        """Claims change in the threads of calls, and in an instance that serves beside this one."""
        while True:
            look_s = self._context.files.follow([self._folder, self._cdi_folder], self._turn)
            try:
                self._claims = await asyncio.to_thread(lambda: self._store.claims)
                self._claims_known = True
                if self._offered is not None:
                    self._note(await asyncio.to_thread(self._keeper.restore))
            except (OSError, ClaimError) as error:
                self._tell(f"claims cannot be followed: {error}", ok=False)
            else:
                self._arrange(fresh=True)
            await asyncio.sleep(ORDER_PAUSE_S)
            await wait_period_or(self._turn, look_s)

    def _arrange(self, *, fresh: bool) -> None:
        """Offer what the newest view and claims allow; `fresh` if these were just read.

        Sharing is turned off by fresh ones alone: a share may be out that others do not show.
        """
        view = self._view
        plan = None if view is None else view.plan.dra
        if view is None or plan is None or not self._claims_known:
            return
        if not view.gpus and not view.board.blind:
            return  # nothing was listed yet
        wanted = offers(view.inventory, view.gpus, view.board, self._offering(view, plan))
        if not fresh and any(
            not one.shared and self._replicas.get(one.name, 0) > 1 for one in wanted
        ):
            return
        now = arranged(wanted, self._claims, self._replicas, _order(view))
        if view.gpus:
            by_name = MappingProxyType({offer.name: offer for offer in now.offers})
            self._offered = Offered(by_name, view.plan.injection, plan.cdi)
        self._show(view, now)
        if self._arranged is None or now.offers != self._arranged.offers:
            self._replicas = {offer.name: offer.replicas for offer in now.offers}
            self._publisher.offer(now.offers)
            self._publish_health()
        self._arranged = now
        if self._offered is not None:
            self._care.follow(self._claims, self._offered.offers)
        self._keeper.retry()

    def _offering(self, view: NodeView, plan: DraPlan) -> Offering:
        with suppress(HalError):  # it is closed now: it has the version that it had
            self._driver_version = self._context.driver_version()
        withheld = set(view.withheld)
        if view.misfit:
            resources = view.inventory.resources
            withheld |= {mig or gpu for one in resources for gpu, mig in one.units}
        return Offering(
            self._driver,
            self._driver_version,
            plan.pcie_roots,
            plan.evict_lost,
            withheld,
        )

    def _slices_listed(self, offered: Mapping[str, int]) -> None:
        """What an earlier instance offered is what stays shared; it may be more than is out."""
        kept = offered.keys() if self._arranged is None else self._arranged.kept
        for name in kept:
            self._replicas[name] = max(self._replicas.get(name, 0), offered.get(name, 0))
        self._arrange(fresh=False)

    def _show(self, view: NodeView, now: Arranged) -> None:
        metrics, claims = self._context.metrics, self._claims
        metrics.dra_prepared_claims.set(len(claims.by_uid))
        metrics.dra_devices_kept_shared.set(len(now.kept))
        taken = claims.taken()
        names = {offer.name for offer in now.offers}
        for name in self._replicas.keys() - names:
            metrics.dra_shares_out.remove_by_labels({"device": name})
        for offer in now.offers:
            metrics.dra_shares_out.labels(offer.name).set(taken.get(offer.name, 0))
        text = f"{len(claims.by_uid)} claims hold {sum(taken.values())} devices and shares"
        kept = [view.index(offer.uuid) for offer in now.offers if offer.name in now.kept]
        if kept:
            text += (
                f"; GPU {', '.join(kept)} stays shared until its shares are back, though the "
                "configuration has one replica of it: the scheduler would give it out as a whole"
            )
        text = "; ".join((text, *self._problems))
        before = self._arranged.kept if self._arranged is not None else frozenset()
        self._tell(text, ok=True)
        if now.kept != before:
            event = "kept-shared" if now.kept else "no-longer-kept-shared"
            log_fact(log, logging.WARNING if now.kept else logging.INFO, event, text)

    def _note(self, problems: tuple[str, ...]) -> None:
        """Claims that cannot be set up again, whose pods may not start again; others can."""
        for text in problems:
            if text not in self._problems:
                log_fact(log, logging.ERROR, "claim-not-restored", text)
        self._problems = problems

    def _tell(self, text: str, *, ok: bool) -> None:
        if self._context.status.set(COMPONENT, text, ok=ok) and not ok:
            log_fact(log, logging.ERROR, "claims-failed", text)

    async def _send_health(self) -> None:
        while True:
            await wait_period(HEARTBEAT_S)
            self._publish_health()

    def _publish_health(self) -> None:
        if self._offered is not None:
            now_s = int(time.time())
            message = health_message(self._offered.offers.values(), self._node_name, now_s)
            self._plugin.health.publish(message)

    def _count(self, operation: str, result: str) -> None:
        self._context.metrics.dra_claims.labels(operation, result).inc()


def _order(view: NodeView) -> Order:
    return "packed" if view.plan.policy == "packed" else "distributed"


def read_boot_id(procfs_root: Path) -> str:
    """That of this boot of the machine; raises `OSError`."""
    return (procfs_root / BOOT_ID).read_text().strip()
