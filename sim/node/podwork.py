"""Pods at work on a simulated node in real time: the driver of `sim.node.podlife` on threads.

It is the controller, kubelet and container runtime of a scenario's pods: they arrive at a kubelet
stand-in, and once one has its devices its process runs on the GPU of the first of them, is in a
cgroup that names the pod, and its logs have a folder. Pods made by hand are run, too.
"""

from __future__ import annotations

import hashlib
import logging
import math
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Protocol, assert_never

from sim.kubelet.pods import Phase
from sim.node.podlife import (
    INTERACTIVE_BACKOFF,
    Admit,
    Delete,
    Exit,
    Live,
    PodOver,
    Run,
    Wait,
    arrivals,
    container_life,
    pod_life,
    tenant_spec,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sim.gpu.tenancy import Tenant, TenantSpec
    from sim.kubelet import NodeView, Pod
    from sim.node.podlife import Arrival, Backoff, Life, Reply, Step
    from sim.node.realtime import RealTimeNode
    from sim.node.scenario import Pods, Scenario

_POLL_S = 0.25

log = logging.getLogger(__name__)


class PodSource(Protocol):
    """Who has the node's pods: a kubelet stand-in, or a real cluster."""

    def view(self) -> NodeView: ...

    def wait_until(self, condition: Callable[[NodeView], object], timeout_s: float) -> NodeView:
        """The node once `condition` holds for it; raises `TimeoutError`."""

    def create_pod(self, pod: Pod) -> None:
        """Raises `ValueError` if that cannot be."""

    def delete_pod(self, key: str) -> None:
        """Raises `KeyError` without such a pod."""


@dataclass(slots=True)
class _Group:
    """The arrivals of a group of pods: the next one is due `at_s` after the start."""

    group: Pods
    rest: Iterator[Arrival]
    next: Arrival | None
    at_s: float


@dataclass(slots=True)
class _Life:
    """A pod's life and what its present step waits for; `pod` is as the kubelet has it."""

    steps: Life
    step: Step
    key: str
    pod: Pod | None = None
    over_at_s: float = math.inf
    waits_until_s: float = 0.0
    started_s: float = 0.0
    tenant: Tenant | None = None
    logs: Path | None = None


class PodWork:
    """Follows a kubelet stand-in, and brings the pods of a scenario to it.

    `work_of` says what a pod made by hand does, None for one that does nothing. `host` is a folder
    for what the host would have: `proc/PID/cgroup` and `pod-logs/`.
    """

    def __init__(
        self,
        kubelet: PodSource,
        node: RealTimeNode,
        host: Path,
        work_of: Callable[[Pod], TenantSpec | None],
        scenario: Scenario | None = None,
        backoff: Backoff = INTERACTIVE_BACKOFF,
    ) -> None:
        self.proc = host / "proc"
        self.pod_logs = host / "pod-logs"
        self._kubelet = kubelet
        self._node = node
        self._work_of = work_of
        self._backoff = backoff
        self._groups = _planned(scenario) if scenario is not None else []
        self._lives: dict[str, _Life] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pod-work", daemon=True)

    def start(self) -> None:
        for folder in (self.proc, self.pod_logs):
            folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        for life in self._lives.values():
            self._end(life)

    def _run(self) -> None:
        started_s = time.monotonic()
        while not self._stopping.is_set():
            self._bring(time.monotonic() - started_s)
            view = self._kubelet.view()
            self._find_made_by_hand(view)
            for key, life in list(self._lives.items()):
                if not self._advance(life, view):
                    self._end(self._lives.pop(key))
            self._wait_for_another(view)

    def _wait_for_another(self, seen: NodeView) -> None:
        with suppress(TimeoutError):
            self._kubelet.wait_until(lambda now: now.pods != seen.pods, _POLL_S)

    def _bring(self, since_start_s: float) -> None:
        for plan in self._groups:
            while plan.next is not None and plan.at_s <= since_start_s:
                pod = plan.next.pod
                self._add(pod.key, pod_life(plan.group, plan.next, self._backoff))
                plan.next = next(plan.rest, None)
                plan.at_s += plan.next.after_s if plan.next is not None else 0.0

    def _find_made_by_hand(self, view: NodeView) -> None:
        for key, one in view.pods.items():
            running = one.status.phase is Phase.RUNNING and one.status.uuids
            spec = self._work_of(one.pod) if running and key not in self._lives else None
            if spec is not None:
                life = container_life(one.status.uuids[0], spec, self._backoff)
                self._add(key, life, one.pod)

    def _add(self, key: str, steps: Life, pod: Pod | None = None) -> None:
        if key in self._lives:
            return
        life = _Life(steps, next(steps), key, pod)
        with suppress(PodOver):
            self._begin(life)
            self._lives[key] = life

    def _advance(self, life: _Life, view: NodeView) -> bool:
        """Take a life as far as it goes now; False at its end."""
        try:
            while True:
                if self._is_over(life, view):
                    self._stop_container(life)
                    life.step = life.steps.throw(PodOver())
                elif self._is_done(life, view):
                    life.step = life.steps.send(self._reply(life, view))
                else:
                    return True
                self._begin(life)
                if isinstance(life.step, Admit):
                    return True  # the view is older than the pod
        except (StopIteration, PodOver):
            return False

    def _is_over(self, life: _Life, view: NodeView) -> bool:
        """Whether its lifetime has passed, or it was deleted by hand."""
        if isinstance(life.step, Delete):
            return False
        seen = view.pods.get(life.key)
        if life.pod is None and seen is not None:
            life.pod = seen.pod
        is_deleted = life.pod is not None and (seen is None or seen.pod.uid != life.pod.uid)
        return is_deleted or time.monotonic() >= life.over_at_s

    def _begin(self, life: _Life) -> None:
        """Begin a step; raises `PodOver` where another pod has this name."""
        now_s = time.monotonic()
        match life.step:
            case Admit(pod=pod):
                if life.pod is not None:
                    self._delete(life)
                try:
                    self._kubelet.create_pod(pod)
                except ValueError as error:
                    raise PodOver from error
            case Live(lifetime_s=lifetime_s):
                life.over_at_s = math.inf if lifetime_s is None else now_s + lifetime_s
            case Run():
                self._start_container(life, life.step)
                life.started_s = now_s
            case Wait(delay_s=delay_s):
                life.waits_until_s = now_s + delay_s
            case Delete():
                self._delete(life)
            case _:
                assert_never(life.step)

    def _is_done(self, life: _Life, view: NodeView) -> bool:
        match life.step:
            case Admit():
                seen = view.pods.get(life.key)
                return seen is not None and seen.status.phase is not Phase.PENDING
            case Run():
                with self._node.read():
                    return life.tenant is None or life.tenant.gone.triggered
            case Wait():
                return time.monotonic() >= life.waits_until_s
            case Live() | Delete():
                return True
            case _:
                assert_never(life.step)

    def _reply(self, life: _Life, view: NodeView) -> Reply:
        if isinstance(life.step, Admit):
            return view.pods[life.key].status
        if isinstance(life.step, Run):
            if life.tenant is None:
                return Exit(None)
            self._stop_container(life)
            return Exit(time.monotonic() - life.started_s)
        return None

    def _delete(self, life: _Life) -> None:
        with suppress(KeyError):
            self._kubelet.delete_pod(life.key)
        life.pod = None

    def _start_container(self, life: _Life, run: Run) -> None:
        pod = life.pod
        if pod is None:
            return
        life.logs = self.pod_logs / f"{pod.namespace}_{pod.name}_{pod.uid}"
        with self._node.update() as node:
            life.tenant = node.start_tenant(run.uuid, run.spec)
            try:
                life.logs.mkdir(exist_ok=True)
                if life.tenant is not None:
                    self._write_cgroup(life.tenant.pid, pod)
            except OSError as error:  # a full disk, or names that together are too long
                log.warning("pod %s works, and its usage is not known: %s", pod.key, error)

    def _stop_container(self, life: _Life) -> None:
        if life.tenant is not None and isinstance(life.step, Run):
            with self._node.update() as node:
                node.stop_tenant(life.step.uuid, life.tenant)
            shutil.rmtree(self.proc / str(life.tenant.pid), ignore_errors=True)
            life.tenant = None

    def _end(self, life: _Life) -> None:
        self._stop_container(life)
        if life.logs is not None:
            shutil.rmtree(life.logs, ignore_errors=True)

    def _write_cgroup(self, pid: int, pod: Pod) -> None:
        """The cgroup as systemd and containerd name it, with cgroup v2."""
        unit = f"kubepods-besteffort-pod{pod.uid.replace('-', '_')}.slice"
        container = hashlib.sha256(f"{pod.uid}/{pid}".encode()).hexdigest()
        folder = self.proc / str(pid)
        folder.mkdir(exist_ok=True)
        (folder / "cgroup").write_text(
            f"0::/kubepods.slice/kubepods-besteffort.slice/{unit}/cri-containerd-{container}.scope\n"
        )


def scenario_work(scenario: Scenario) -> Callable[[Pod], TenantSpec | None]:
    """What pods named as a scenario names its own (GROUP-NUMBER) do."""
    groups = {group.name: group for group in scenario.pods}

    def work_of(pod: Pod) -> TenantSpec | None:
        group = groups.get(pod.name.rpartition("-")[0])
        return None if group is None else tenant_spec(group, pod.name)

    return work_of


def _planned(scenario: Scenario) -> list[_Group]:
    groups = []
    for group in scenario.pods:
        rest = arrivals(group, Random(f"{scenario.seed}/pods/{group.name}"))
        first = next(rest)
        groups.append(_Group(group, rest, first, group.start_s + first.after_s))
    return groups
