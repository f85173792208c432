"""Pods of the kubelet stand-in at work on a simulated node, in real time.

What a kubelet and a container runtime do for a pod that got its devices: its process runs on the
GPU of its first device, is in a cgroup that names the pod, and its logs have a folder. Runs in
virtual time have pods of their own (`sim.virtual.pods`).
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.gpu.tenancy import TenantSpec
from sim.kubelet.pods import Phase

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sim.gpu.tenancy import Tenant
    from sim.kubelet import Kubelet, NodeView, Pod
    from sim.kubelet.pods import PodView
    from sim.node.realtime import RealTimeNode
    from sim.node.scenario import Scenario

FIRST_RESTART_S = 1.0
LONGEST_RESTART_S = 30.0
"""Shorter than a kubelet's 10 s and 5 min: somebody is looking."""

_LOOK_S = 0.25


@dataclass(slots=True)
class _Running:
    """A pod whose work was begun; `tenant` is None while it cannot run."""

    pod: Pod
    spec: TenantSpec
    uuid: str
    tenant: Tenant | None = None
    delay_s: float = FIRST_RESTART_S
    retry_at_s: float = 0.0


class PodWork:
    """Follows a kubelet stand-in; `work_of` says what a pod does, None for one that does nothing.

    `host` is a folder for what the host would have: `proc/PID/cgroup` and `pod-logs/`.
    """

    def __init__(
        self,
        kubelet: Kubelet,
        node: RealTimeNode,
        host: Path,
        work_of: Callable[[Pod], TenantSpec | None],
    ) -> None:
        self.proc = host / "proc"
        self.pod_logs = host / "pod-logs"
        self._kubelet = kubelet
        self._node = node
        self._work_of = work_of
        self._running: dict[str, _Running] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pod-work", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        for folder in (self.proc, self.pod_logs):
            folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop following and end what was begun."""
        self._stopping.set()
        self._thread.join()
        for uid in list(self._running):
            self._end(self._running.pop(uid))

    def _run(self) -> None:
        while not self._stopping.is_set():
            view = self._kubelet.view()
            self._reconcile(view)
            self._wait_for_another(view)

    def _wait_for_another(self, seen: NodeView) -> None:
        with suppress(TimeoutError):
            self._kubelet.wait_until(lambda now: now.pods != seen.pods, _LOOK_S)

    def _reconcile(self, view: NodeView) -> None:
        wanted = {one.pod.uid: one for one in view.pods.values() if _holds_devices(one)}
        for uid in self._running.keys() - wanted.keys():
            self._end(self._running.pop(uid))
        for uid, one in wanted.items():
            if uid not in self._running:
                spec = self._work_of(one.pod)
                if spec is not None:
                    uuid = one.status.grants[0].device_ids[0].partition("::")[0]
                    (self.pod_logs / _log_folder(one.pod)).mkdir(exist_ok=True)
                    self._running[uid] = _Running(one.pod, spec, uuid)
        for running in self._running.values():
            self._keep(running)

    def _keep(self, running: _Running) -> None:
        """Start the pod's process if there is none; one that ended begins anew after a while."""
        now_s = time.monotonic()
        with self._node.present() as node:
            if running.tenant is not None and running.tenant.gone.triggered:
                self._forget_process(running.tenant.pid)
                running.tenant = None
                running.retry_at_s = now_s + running.delay_s
                running.delay_s = min(2 * running.delay_s, LONGEST_RESTART_S)
            if running.tenant is None and now_s >= running.retry_at_s:
                running.tenant = node.start_tenant(running.uuid, running.spec)
                if running.tenant is not None:
                    self._tell_of_process(running.tenant.pid, running.pod)

    def _end(self, running: _Running) -> None:
        shutil.rmtree(self.pod_logs / _log_folder(running.pod), ignore_errors=True)
        tenant = running.tenant
        if tenant is None:
            return
        with self._node.present() as node:
            for gpu in node.present:
                if running.uuid in gpu.tenancies and not tenant.gone.triggered:
                    gpu.tenancies[running.uuid].kill(tenant.pid, "pod deleted")
        self._forget_process(tenant.pid)

    def _tell_of_process(self, pid: int, pod: Pod) -> None:
        """The cgroup as systemd and containerd name it, with cgroup v2."""
        unit = f"kubepods-besteffort-pod{pod.uid.replace('-', '_')}.slice"
        container = hashlib.sha256(f"{pod.uid}/{pid}".encode()).hexdigest()
        folder = self.proc / str(pid)
        folder.mkdir(exist_ok=True)
        (folder / "cgroup").write_text(
            f"0::/kubepods.slice/kubepods-besteffort.slice/{unit}/cri-containerd-{container}.scope\n"
        )

    def _forget_process(self, pid: int) -> None:
        shutil.rmtree(self.proc / str(pid), ignore_errors=True)


def scenario_work(scenario: Scenario) -> Callable[[Pod], TenantSpec | None]:
    """What pods named as a scenario names its own (GROUP-NUMBER) do."""
    groups = {group.name: group for group in scenario.pods}

    def work_of(pod: Pod) -> TenantSpec | None:
        group = groups.get(pod.name.rpartition("-")[0])
        if group is None:
            return None
        return TenantSpec(pod.name, group.workload, group.memory, group.occupancy)

    return work_of


def _holds_devices(view: PodView) -> bool:
    return view.status.phase is Phase.RUNNING and bool(view.status.grants)


def _log_folder(pod: Pod) -> str:
    return f"{pod.namespace}_{pod.name}_{pod.uid}"
