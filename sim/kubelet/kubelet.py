"""The kubelet stand-in over sockets: threads, files and connections around `KubeletModel`.

One lock guards the model. Pods are admitted one after the other by a single sync loop, and a plugin
call that hangs holds it up, as in a real kubelet; lists arrive in threads of their own.
"""

from __future__ import annotations

import random
import stat
import threading
import time
import uuid
from typing import TYPE_CHECKING, Self

from sim.kubelet.admission import CallFailed, drive
from sim.kubelet.devices import FILE_NAME
from sim.kubelet.model import KubeletModel, SaveCheckpoint
from sim.kubelet.plugins import Connections
from sim.kubelet.pods import CallRecord, KubeletEvent, NodeView, Phase, Pod, PodStatus
from sim.kubelet.registration import PluginWatcher
from sim.kubelet.services import PodResources, Services

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gpuplugin.kubelet.proto import deviceplugin_pb2 as dp
    from sim.kubelet.admission import PluginCall, Response
    from sim.kubelet.devices import Holding, Listed
    from sim.kubelet.plugins import PluginClient

GRACE_CHECK_S = 1.0
"""How often the sync loop runs without a change: the grace period ends by itself."""


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
        seed: int | str = 0,
        listener: Callable[[KubeletEvent], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dir = kubelet_dir
        self._device_plugins = kubelet_dir / "device-plugins"
        self._plugins_registry = kubelet_dir / "plugins_registry"
        self._pod_resources = kubelet_dir / "pod-resources"
        self._listener = listener or (lambda _event: None)
        self._clock = clock
        self._changed = threading.Condition(threading.RLock())
        self._model = KubeletModel(random.Random(seed))
        self._connections = Connections(self._record, self._listed, self._stream_ended)
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
        with self._changed:
            self._model.restarted(self._saved(), self._clock())
            self._carry_out()
        self._running = True
        self._services.start(self._register_classic, PodResources(self._held, self._allocatable))
        self._watcher = PluginWatcher(
            self._plugins_registry, self._connect_watched, self._disconnect, self._refuse
        )
        self._watcher.start()
        self._sync_thread = threading.Thread(target=self._sync_loop, name="sync-loop", daemon=True)
        self._sync_thread.start()
        self._emit("started", f"kubelet serves {self.dir}")

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
        self._emit("stopped", "kubelet stopped")

    def restart(self) -> None:
        self.stop()
        self.start()

    def create_pod(self, pod: Pod) -> None:
        """Hand a pod to the node; raises `ValueError` if one of this name exists."""
        with self._changed:
            self._model.create(pod, pod.uid or str(uuid.uuid4()))
            self._carry_out()

    def run_pod(self, pod: Pod, timeout_s: float = 10.0) -> PodStatus:
        """Create a pod and wait until it was admitted, refused, or found not to fit."""
        self.create_pod(pod)

        def decided(node: NodeView) -> bool:
            status = node.pods[pod.key].status
            return status.phase is not Phase.PENDING or bool(status.reason)

        return self.wait_until(decided, timeout_s).pods[pod.key].status

    def delete_pod(self, key: str) -> None:
        """Remove a pod by `namespace/name` (or by name, in `default`); raises `KeyError`."""
        with self._changed:
            self._model.delete(key if "/" in key else f"default/{key}")
            self._carry_out()

    def view(self) -> NodeView:
        with self._changed:
            return self._model.view(self._clock())

    def wait_until(self, condition: Callable[[NodeView], object], timeout_s: float) -> NodeView:
        """The node once `condition` holds for it; raises `TimeoutError` with the node's state."""
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
        with self._changed:
            while self._running:
                progress = [self._sync(key) for key in self._model.pending]
                if not any(progress):
                    self._changed.wait(GRACE_CHECK_S)

    def _sync(self, key: str) -> bool:
        """Take one pending pod a step further; True if it is pending no more."""
        status = drive(self._model.sync(key, self._clock()), self._call)
        self._carry_out()
        return status is None or status.phase is not Phase.PENDING

    def _call(self, call: PluginCall) -> Response:
        """The lock is free while a plugin works."""
        client = self._connections.current(call.resource)
        if client is None:
            raise CallFailed(f"endpoint of {call.resource} has been stopped")
        self._changed.release()
        try:
            return client.call(call)
        finally:
            self._changed.acquire()

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
            self._model.registered(
                client.resource,
                has_preference=options.get_preferred_allocation_available,
                wants_pre_start=options.pre_start_required,
            )
            self._connections.put_in_charge(client)
        self._emit("registered", f"{client.resource} at {client.socket.name}")

    def _listed(self, resource: str, devices: tuple[Listed, ...], size_bytes: int) -> None:
        with self._changed:
            if self._running:
                self._model.listed(resource, devices, size_bytes)
                self._carry_out()

    def _stream_ended(self, resource: str, reason: str) -> None:
        if self._running:
            self._emit("stream-ended", f"{resource}: {reason or 'closed by the plugin'}")
            self._disconnect(resource)

    def _disconnect(self, resource: str) -> None:
        with self._changed:
            if self._connections.drop(resource):
                self._model.disconnected(resource, self._clock())
                self._changed.notify_all()

    def _refuse(self, socket: Path, reason: str) -> None:
        self._emit("refused", f"{socket.name}: {reason}")

    def _held(self) -> list[tuple[Pod, tuple[Holding, ...]]]:
        with self._changed:
            return self._model.held()

    def _allocatable(self) -> dict[str, dict[str, tuple[int, ...]]]:
        with self._changed:
            return self._model.devices.allocatable()

    def _carry_out(self) -> None:
        """Do what the model asks for, and wake those who wait for a change."""
        for effect in self._model.take_effects():
            if isinstance(effect, SaveCheckpoint):
                self._save()
            else:
                self._listener(effect)
        self._changed.notify_all()

    def _save(self) -> None:
        path = self._device_plugins / FILE_NAME
        temporary = path.with_name(f".{FILE_NAME}.tmp")
        temporary.write_text(self._model.checkpoint())
        temporary.replace(path)

    def _saved(self) -> bytes | None:
        try:
            return (self._device_plugins / FILE_NAME).read_bytes()
        except FileNotFoundError:
            return None

    def _record(self, call: CallRecord) -> None:
        text = f"{call.method} {call.duration_s * 1e6:.0f} us"
        self._listener(KubeletEvent("call", f"{text} {call.error}".rstrip(), call))

    def _emit(self, kind: str, text: str) -> None:
        self._listener(KubeletEvent(kind, text))


def _summary(node: NodeView) -> str:
    amounts = ", ".join(
        f"{name} {amount.allocatable}/{amount.capacity}" for name, amount in node.amounts.items()
    )
    pods = ", ".join(f"{key} {view.status.phase.value}" for key, view in node.pods.items())
    return f"allocatable/capacity: {amounts or 'none'}; pods: {pods or 'none'}"
