"""Pods of a real cluster at work on simulated GPUs: what each declares becomes a tenant.

Who holds what is the kubelet's pod-resources API; what a pod declares, and whether it still runs,
is the API server's.
"""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gpuplugin.core.dra.devices import device_names
from gpuplugin.core.pacing import Backoff
from gpuplugin.core.usage import Holding
from gpuplugin.daemon.cluster.pods import PodResources, PodResourcesUnavailable
from sim.advise.workload import PRESETS
from sim.gpu.tenancy import TenantSpec
from sim.gpu.workloads import ClosedLoop, MemoryUse, OpenLoop
from sim.kubelet.pods import Grant, NodeView, Phase, Pod, PodStatus, PodView
from sim.node.podlife import tenant_spec
from sim.node.podwork import PodWork
from sim.pods.podlist import LOAD, ClusterPod, NodePods, PodList, PodsUnreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from gpuplugin.config.settings import DaemonSettings
    from gpuplugin.core.usage import ClaimUse
    from sim.node.realtime import RealTimeNode
    from sim.node.scenario import Scenario

POLL_S: Final = 2.0
"""Between two looks at who holds what."""
_CALL_S: Final = 2.0
_TRAINER: Final = "trainer"
_LIST, _HOLDINGS = "list", "holdings"  # what is told; pods have a slash in their keys

log = logging.getLogger(__name__)


def load_names(scenario: Scenario) -> tuple[str, ...]:
    """What a pod may declare: pods of the scenario, then presets."""
    return tuple(dict.fromkeys((*(group.name for group in scenario.pods), *_PRESETS)))


def declared(scenario: Scenario, load: str, pod: str) -> TenantSpec | None:
    """The tenant that a pod of this name becomes; None for a load that there is not."""
    for group in scenario.pods:
        if group.name == load:
            return tenant_spec(group, pod)
    preset = PRESETS.get(_PRESETS.get(load, ""))
    if preset is None:
        return None
    busy_ms, period_ms = preset.busy_ms, preset.period_ms
    workload: ClosedLoop | OpenLoop = (
        OpenLoop(busy_ms=busy_ms, per_s=1000 / period_ms)
        if preset.arrival == "open"
        else ClosedLoop(busy_ms=busy_ms, idle_ms=period_ms - busy_ms)
    )
    memory = MemoryUse(start_gib=preset.memory_gib[0])
    return TenantSpec(pod, workload, memory, preset.occupancy, preset.mps_share)


_PRESETS: Final = {_TRAINER if name == "training" else name: name for name in PRESETS}
"""The presets of `gpuplugin advise`, by what pods call them."""


@dataclass
class ClusterPods:
    """The node's pods, as `PodWork` follows them; safe from any thread.

    `holdings` lists who holds what, and blocks.
    """

    scenario: Scenario
    pods: PodList
    holdings: Callable[[], Iterable[Holding]]
    poll_s: float = POLL_S
    _known: dict[str, ClusterPod] = field(default_factory=dict)
    _held: dict[str, list[Grant]] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _stop: threading.Event = field(default_factory=threading.Event)
    _asked: threading.Event = field(default_factory=threading.Event)
    """Once the kubelet has said who holds what: without that nobody need know the pods."""

    def start(self) -> None:
        for name, run in (("pod-list", self._follow), ("pod-holdings", self._poll)):
            # A watch may block in the network: nobody waits for its thread.
            threading.Thread(target=run, name=name, daemon=True).start()

    def stop(self) -> None:
        self._stop.set()
        self._asked.set()

    def view(self) -> NodeView:
        with self._changed:
            pods = {
                key: PodView(
                    Pod(pod.name, (), pod.namespace, pod.uid),
                    PodStatus(Phase.RUNNING, grants=tuple(self._held[key])),
                )
                for key, pod in self._known.items()
                if pod.phase == Phase.RUNNING.value and key in self._held
            }
        return NodeView({}, {}, pods, {})

    def wait_until(self, condition: Callable[[NodeView], object], timeout_s: float) -> NodeView:
        """The view once `condition` holds for it; raises `TimeoutError`."""
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self.view()), timeout_s):
                raise TimeoutError
            return self.view()

    def create_pod(self, pod: Pod) -> None:
        raise ValueError(f"{pod.key}: the cluster makes its pods")

    def delete_pod(self, key: str) -> None:
        raise KeyError(key)

    def work_of(self, pod: Pod) -> TenantSpec | None:
        """What a pod does on its GPU; None for one that declares nothing."""
        with self._changed:
            known = self._known.get(pod.key)
        if known is None or known.load is None:
            return None
        spec = declared(self.scenario, known.load, pod.name)
        if spec is None:
            names = ", ".join(load_names(self.scenario))
            text = f"pod {pod.key} is idle: its {LOAD} is {known.load!r}; there are {names}"
            self._tell(pod.key, text)
        return spec

    def _follow(self) -> None:
        backoff = Backoff(1.0, 60.0)
        self._asked.wait()
        while not self._stop.is_set():
            pause_s = 0.1  # the server ends watches now and then
            try:
                for pod, is_there in self.pods.follow():
                    backoff.reset()
                    self._told.discard(_LIST)
                    with self._changed:
                        if is_there:
                            self._known[pod.key] = pod
                        else:
                            self._known.pop(pod.key, None)
                            self._told.discard(pod.key)
                        self._changed.notify_all()
                    if self._stop.is_set():
                        return
            except PodsUnreadable as error:
                text = f"what pods declare as {LOAD} is not known, so they are idle: {error}"
                self._tell(_LIST, text)
                pause_s = backoff.next_s()
            self._stop.wait(pause_s)

    def _poll(self) -> None:
        while not self._stop.is_set():
            try:
                held: dict[str, list[Grant]] = {}
                for one in self.holdings():
                    grant = Grant(one.container, one.resource, one.device_ids)
                    held.setdefault(f"{one.pod.namespace}/{one.pod.name}", []).append(grant)
                with self._changed:
                    self._held = held
                    self._changed.notify_all()
                self._told.discard(_HOLDINGS)
                self._asked.set()
            except PodResourcesUnavailable as error:
                text = f"which pod has which GPU is not known, so pods are idle: {error}"
                self._tell(_HOLDINGS, text)
            self._stop.wait(self.poll_s)

    def _tell(self, what: str, text: str) -> None:
        """Say it once, until that is over; the text may be another one each time."""
        if what not in self._told:
            self._told.add(what)
            log.warning("%s", text, extra={"event": "pod-load"})


@contextmanager
def pod_loads(node: RealTimeNode, daemon: DaemonSettings) -> Iterator[None]:
    """Follow the node's pods, and let them work on its GPUs.

    Their processes have cgroups in `proc` and their pods names in `pod-logs`, both in the folder of
    `--host-proc`, where metrics look; in `host` of the kubelet's folder if it is the machine's own.
    """
    with node.read() as model:
        scenario = model.scenario

    def of_claims(uses: Iterable[ClaimUse]) -> Iterator[Holding]:
        with node.read() as model:
            names = device_names(uuid for gpu in model.present for uuid in gpu.tenancies)
        uuids = {name: uuid for uuid, name in names.items()}
        for use in uses:
            if use.driver == daemon.dra_driver_name and use.device in uuids:
                yield Holding(use.pod, use.container, "", (uuids[use.device],), by_claim=True)

    resources = PodResources(daemon.kubelet_dir / "pod-resources/kubelet.sock", _CALL_S, of_claims)
    pods = ClusterPods(scenario, NodePods(daemon.node_name), resources.holdings)
    own = daemon.host_proc == Path("/proc")
    host = daemon.kubelet_dir / "host" if own else daemon.host_proc.parent
    work = PodWork(pods, node, host, pods.work_of)
    pods.start()
    work.start()
    try:
        yield
    finally:
        pods.stop()
        work.stop()
