"""The kubelet stand-in itself: sockets and threads around the pure device manager and admission.

One lock guards the state. Pods are admitted one after the other by a single sync loop, and a plugin
call that hangs holds it up, as in a real kubelet; lists arrive in threads of their own.
"""

from __future__ import annotations

import random
import stat
import threading
import time
import uuid
from collections import Counter
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

from sim.kubelet.admission import (
    UNSCHEDULABLE,
    AllocateCall,
    Answer,
    Call,
    CallFailed,
    PreferCall,
    admit,
    does_not_fit,
    start,
)
from sim.kubelet.devices import (
    FILE_NAME,
    CheckpointDamaged,
    DeviceManager,
    read_checkpoint,
    write_checkpoint,
)
from sim.kubelet.plugins import Connections
from sim.kubelet.pods import CallRecord, Happened, NodeView, Phase, Pod, PodStatus, PodView
from sim.kubelet.registration import PluginWatcher
from sim.kubelet.services import PodResources, Services

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from gpuplugin.kubelet.proto import deviceplugin_pb2 as dp
    from sim.kubelet.devices import Holding, Listed
    from sim.kubelet.plugins import PluginClient

GRACE_CHECK_S = 1.0
"""How often the sync loop turns when nothing happens, for what only time changes."""


class Kubelet:
    """A kubelet for one folder; a context manager that starts and stops it.

    `listener` is called with every fact, from several threads; it must be quick and must not call
    back. `seed` makes the random order of device ids repeatable. `clock` is a monotonic clock in
    seconds.
    """

    def __init__(
        self,
        kubelet_dir: Path,
        *,
        seed: int = 0,
        listener: Callable[[Happened], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dir = kubelet_dir
        self._device_plugins = kubelet_dir / "device-plugins"
        self._plugins_registry = kubelet_dir / "plugins_registry"
        self._pod_resources = kubelet_dir / "pod-resources"
        self._generator = random.Random(seed)
        self._listener = listener or (lambda _happened: None)
        self._clock = clock
        self._changed = threading.Condition(threading.RLock())
        self._manager = DeviceManager()
        self._connections = Connections(self._record, self._listed, self._stream_ended)
        self._pods: dict[str, PodView] = {}
        self._list_updates: Counter[str] = Counter()
        self._running = False
        self._sync_thread: threading.Thread | None = None
        self._services = Services(
            self._device_plugins / "kubelet.sock", self._pod_resources / "kubelet.sock"
        )
        self._watcher: PluginWatcher | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start as a kubelet does: remove dead sockets, read the checkpoint, then listen."""
        for folder in (self._device_plugins, self._plugins_registry, self._pod_resources):
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        for path in self._device_plugins.iterdir():
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()
        self._manager = DeviceManager()
        self._list_updates.clear()
        self._restore()
        self._running = True
        self._services.start(self._register_classic, PodResources(self._held, self._allocatable))
        self._watcher = PluginWatcher(
            self._plugins_registry, self._connect_watched, self._disconnect, self._refuse
        )
        self._watcher.start()
        self._sync_thread = threading.Thread(target=self._sync_loop, name="sync-loop", daemon=True)
        self._sync_thread.start()
        self._tell("started", f"kubelet serves {self.dir}")

    def stop(self) -> None:
        """Stop; running pods are left alone, as when a kubelet ends. Safe to call twice."""
        with self._changed:
            if not self._running:
                return
            self._running = False
            self._changed.notify_all()
        if self._watcher is not None:
            self._watcher.stop()
        self._services.stop()
        self._connections.close_all()
        if self._watcher is not None:
            self._watcher.join_workers()
        if self._sync_thread is not None:
            self._sync_thread.join()
        self._tell("stopped", "kubelet stopped")

    def restart(self) -> None:
        """Stop and start again: pods and the checkpoint stay, plugins must come back."""
        self.stop()
        self.start()

    def create_pod(self, pod: Pod) -> None:
        """Hand a pod to the node; what becomes of it is in `view`.

        Raises:
            ValueError: a pod of this name exists.
        """
        with self._changed:
            if pod.key in self._pods:
                raise ValueError(f"pod {pod.key} exists already")
            if not pod.uid:
                pod = replace(pod, uid=str(uuid.uuid4()))
            self._pods[pod.key] = PodView(pod, PodStatus(Phase.PENDING))
            self._changed.notify_all()

    def run_pod(self, pod: Pod, timeout_s: float = 10.0) -> PodStatus:
        """Create a pod and wait until it was admitted, refused, or found not to fit."""
        self.create_pod(pod)
        node = self.wait_until(lambda node: _decided(node.pods[pod.key].status), timeout_s)
        return node.pods[pod.key].status

    def delete_pod(self, key: str) -> None:
        """Remove a pod by `namespace/name` (or by name, in `default`) and free its devices.

        Raises:
            KeyError: there is no such pod.
        """
        key = key if "/" in key else f"default/{key}"
        with self._changed:
            view = self._pods.pop(key)
            self._manager.release(view.pod.uid)
            self._save()
            self._changed.notify_all()
        self._tell("pod", f"{key} deleted")

    def view(self) -> NodeView:
        """The node now."""
        with self._changed:
            manager = self._manager
            return NodeView(
                amounts=MappingProxyType(manager.amounts(self._clock())),
                devices=MappingProxyType({one: manager.devices(one) for one in manager.resources}),
                pods=MappingProxyType(dict(self._pods)),
                list_updates=MappingProxyType(dict(self._list_updates)),
            )

    def wait_until(self, condition: Callable[[NodeView], object], timeout_s: float) -> NodeView:
        """Wait until `condition` holds for the node and return the node then.

        Raises:
            TimeoutError: it did not in time; the text shows the node as it is.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while True:
                node = self.view()
                if condition(node):
                    return node
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise TimeoutError(f"not so after {timeout_s:g} s: {_summary(node)}")
                self._changed.wait(min(left_s, GRACE_CHECK_S))

    def _sync_loop(self) -> None:
        """Admit and start pending pods, one at a time, in the order in which they were created."""
        with self._changed:
            while self._running:
                busy = [
                    self._sync(view)
                    for view in list(self._pods.values())
                    if view.status.phase is Phase.PENDING
                ]
                if not any(busy):
                    self._changed.wait(GRACE_CHECK_S)

    def _sync(self, view: PodView) -> bool:
        """Take one pending pod a step further; True if it is pending no more."""
        pod = view.pod
        if self._pods.get(pod.key) is not view:
            return False
        if _admitted(view.status):
            status = self._drive(start(view.status.grants, self._manager))
        elif why := self._does_not_fit(pod):
            self._set_status(pod, PodStatus(Phase.PENDING, UNSCHEDULABLE, why))
            return False
        else:
            status = self._drive(admit(pod, self._manager, self._generator))
        if self._pods.get(pod.key) is not view:
            self._manager.release(pod.uid)  # deleted while a plugin was asked
            return True
        self._save()
        self._set_status(pod, status)
        return status.phase is not Phase.PENDING

    def _does_not_fit(self, pod: Pod) -> str:
        """Why a pod has to wait, "" if it fits; a static one never waits."""
        return "" if pod.static else does_not_fit(pod, self.view().amounts, self._requested())

    def _drive(self, admission: Generator[Call, Answer, PodStatus]) -> PodStatus:
        """Make the calls that admission asks for; the lock is free while a plugin works."""
        try:
            call = next(admission)
            while True:
                try:
                    answer = self._perform(call)
                except CallFailed as error:
                    call = admission.throw(error)
                else:
                    call = admission.send(answer)
        except StopIteration as end:
            status: PodStatus = end.value
            return status

    def _perform(self, call: Call) -> Answer:
        client = self._connections.current(call.resource)
        if client is None:
            raise CallFailed(f"endpoint of {call.resource} has been stopped")
        self._changed.release()
        try:
            if isinstance(call, PreferCall):
                return client.prefer(call.available, call.must_include, call.size)
            if isinstance(call, AllocateCall):
                return client.allocate(call.container, call.device_ids)
            client.pre_start(call.device_ids)
            return None
        finally:
            self._changed.acquire()

    def _set_status(self, pod: Pod, status: PodStatus) -> None:
        if self._pods[pod.key].status == status:
            return
        self._pods[pod.key] = PodView(pod, status)
        reason = f" {status.reason}: {status.message}" if status.reason else ""
        self._tell("pod", f"{pod.key} {status.phase.value}{reason}")
        self._changed.notify_all()

    def _requested(self) -> Counter[str]:
        requested: Counter[str] = Counter()
        for view in self._pods.values():
            if _admitted(view.status):
                requested.update(view.pod.requests())
        return requested

    def _register_classic(self, request: dp.RegisterRequest) -> None:
        socket = self._device_plugins / request.endpoint
        client = self._connections.dial(request.resource_name, socket)
        self._put_in_charge(client, request.options)

    def _connect_watched(self, resource: str, socket: Path) -> None:
        client = self._connections.dial(resource, socket)
        try:
            options = client.options()
        except CallFailed:
            self._connections.give_up(client)
            raise
        self._put_in_charge(client, options)

    def _put_in_charge(self, client: PluginClient, options: dp.DevicePluginOptions) -> None:
        with self._changed:
            if not self._running:
                self._connections.give_up(client)
                return
            self._manager.connected(
                client.resource,
                has_preference=options.get_preferred_allocation_available,
                wants_pre_start=options.pre_start_required,
            )
            self._connections.put_in_charge(client)
        self._tell("registered", f"{client.resource} at {client.socket.name}")

    def _listed(self, resource: str, devices: tuple[Listed, ...], size_bytes: int) -> None:
        healthy = sum(device.healthy for device in devices)
        with self._changed:
            if not self._running:
                return
            self._manager.listed(resource, devices)
            self._list_updates[resource] += 1
            self._save()
            self._changed.notify_all()
        unhealthy = len(devices) - healthy
        self._tell("list", f"{resource}: {healthy} healthy, {unhealthy} not, {size_bytes} bytes")

    def _stream_ended(self, resource: str, reason: str) -> None:
        if self._running:
            self._tell("stream-ended", f"{resource}: {reason or 'closed by the plugin'}")
            self._disconnect(resource)

    def _disconnect(self, resource: str) -> None:
        with self._changed:
            if self._connections.drop(resource):
                self._manager.disconnected(resource, self._clock())
                self._changed.notify_all()

    def _refuse(self, socket: Path, reason: str) -> None:
        self._tell("refused", f"{socket.name}: {reason}")

    def _held(self) -> list[tuple[Pod, tuple[Holding, ...]]]:
        with self._changed:
            holdings = self._manager.holdings
            return [
                (view.pod, tuple(held for held in holdings if held.pod_uid == view.pod.uid))
                for view in self._pods.values()
                if _admitted(view.status)
            ]

    def _allocatable(self) -> dict[str, dict[str, tuple[int, ...]]]:
        with self._changed:
            manager = self._manager
            return {
                resource: {
                    id_: nodes
                    for id_, nodes in manager.numa_nodes(resource).items()
                    if manager.devices(resource)[id_]
                }
                for resource in manager.resources
            }

    def _save(self) -> None:
        path = self._device_plugins / FILE_NAME
        temporary = path.with_name(f".{FILE_NAME}.tmp")
        temporary.write_text(write_checkpoint(self._manager))
        temporary.replace(path)

    def _restore(self) -> None:
        try:
            text = (self._device_plugins / FILE_NAME).read_text()
            holdings, registered = read_checkpoint(text)
        except FileNotFoundError:
            return
        except (CheckpointDamaged, UnicodeDecodeError) as error:
            self._tell("refused", f"{FILE_NAME}: {error}; starting without it")
            return
        alive = {view.pod.uid for view in self._pods.values()}
        kept = [held for held in holdings if held.pod_uid in alive]
        self._manager.restore(kept, registered, self._clock())

    def _record(self, call: CallRecord) -> None:
        text = f"{call.method} {call.duration_s * 1e6:.0f} us"
        self._listener(Happened("call", f"{text} {call.error}".rstrip(), call))

    def _tell(self, kind: str, text: str) -> None:
        self._listener(Happened(kind, text))


def _decided(status: PodStatus) -> bool:
    return status.phase is not Phase.PENDING or bool(status.reason)


def _admitted(status: PodStatus) -> bool:
    """True if the pod holds what it asked for, even if it could not be started yet."""
    return status.phase is Phase.RUNNING or bool(status.grants)


def _summary(node: NodeView) -> str:
    amounts = ", ".join(
        f"{name} {amount.allocatable}/{amount.capacity}" for name, amount in node.amounts.items()
    )
    pods = ", ".join(f"{key} {view.status.phase.value}" for key, view in node.pods.items())
    return f"allocatable/capacity: {amounts or 'none'}; pods: {pods or 'none'}"
