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
from sim.kubelet.claims import CLAIMS_FILE, ClaimTiming, DriverMissing, drive_calls
from sim.kubelet.devices import FILE_NAME
from sim.kubelet.drivers import DriverConnections
from sim.kubelet.model import KubeletModel, SaveCheckpoint, SaveClaims
from sim.kubelet.plugins import Connections
from sim.kubelet.pods import CallRecord, KubeletEvent, NodeView, Phase, Pod, PodStatus
from sim.kubelet.registration import DRA_PLUGIN, PluginWatcher
from sim.kubelet.services import PodResources, Services
from sim.scheduler.claims import ClaimScheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    from gpuplugin.kubelet.proto import deviceplugin_pb2 as dp
    from sim.apiserver import Store
    from sim.kubelet.admission import PluginCall, Response
    from sim.kubelet.claims import Answers, DeviceHealth, DriverCall, HeldClaim
    from sim.kubelet.devices import Holding, Listed
    from sim.kubelet.plugins import PluginClient
    from sim.kubelet.registration import Registrant

MAX_FOLDER_BYTES = 51
"""Of its path: Linux allows 107 for a socket, and this plugin's for nvidia.com/gpu takes 56."""
GRACE_CHECK_S = 1.0
"""How often the sync loop runs without a change: the grace period ends by itself."""


class Kubelet:
    """A kubelet for one folder; a context manager that starts and stops it.

    `listener` is called with every fact, from several threads; it must be quick and must not call
    back. `seed` makes the random order of device ids repeatable. `clock` is a monotonic clock in
    seconds. With a `store` of the API's objects its pods may have claims, which are allocated from
    the ResourceSlices of `node`; `timing` is then when it retries and wipes.

    Raises:
        ValueError: the folder's path is too long for sockets in it, as that of `tmp_path` may be.
    """

    def __init__(
        self,
        kubelet_dir: Path,
        *,
        seed: int | str = 0,
        listener: Callable[[KubeletEvent], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        store: Store | None = None,
        node: str = "",
        timing: ClaimTiming | None = None,
    ) -> None:
        if (length := len(str(kubelet_dir).encode())) > MAX_FOLDER_BYTES:
            raise ValueError(
                f"the kubelet's folder {kubelet_dir} has a path of {length} bytes, more than the "
                f"{MAX_FOLDER_BYTES} that leave room for sockets in it; take a shorter one, such "
                "as tempfile.mkdtemp(prefix='gp')"
            )
        self.dir = kubelet_dir
        self._store = store
        self._claims_file = kubelet_dir / CLAIMS_FILE
        self._device_plugins = kubelet_dir / "device-plugins"
        self._plugins_registry = kubelet_dir / "plugins_registry"
        self._pod_resources = kubelet_dir / "pod-resources"
        self._listener = listener or (lambda _event: None)
        self._clock = clock
        self._changed = threading.Condition(threading.RLock())
        scheduler = None if store is None else ClaimScheduler(store, node)
        timing = timing or ClaimTiming()
        self._model = KubeletModel(random.Random(seed), scheduler, timing)
        self._connections = Connections(self._record, self._listed, self._stream_ended)
        self._drivers = DriverConnections(timing.call_deadline_s, self._record, self._healthy)
        self._workers: list[threading.Thread] = []
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
            checkpoint = _read(self._device_plugins / FILE_NAME)
            self._model.restarted(checkpoint, self._clock(), _read(self._claims_file))
            self._carry_out()
        self._running = True
        self._services.start(self._register_classic, PodResources(self._held, self._allocatable))
        self._watcher = PluginWatcher(
            self._plugins_registry, self._connect_watched, self._removed, self._refuse
        )
        self._watcher.start()
        self._sync_thread = threading.Thread(target=self._sync_loop, name="sync-loop", daemon=True)
        self._sync_thread.start()
        if self._store is not None:
            follower = threading.Thread(
                target=self._follow, args=(self._store,), name="store", daemon=True
            )
            self._workers.append(follower)
            follower.start()
        self._emit("started", f"kubelet serves {self.dir}")

    def stop(self) -> None:
        """Stop; running pods are left alone, as when a kubelet ends. Safe to call twice."""
        with self._changed:
            if not self._running:
                return
            self._running = False
            self._model.stopped()
            self._changed.notify_all()
        if self._store is not None:
            self._store.wake()
        if self._watcher is not None:
            self._watcher.stop()
        self._services.stop()
        self._connections.close_all()
        self._drivers.close_all()
        if self._watcher is not None:
            self._watcher.join_workers()
        if self._sync_thread is not None:
            self._sync_thread.join()
        for worker in self._workers:
            worker.join()
        self._workers.clear()
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

    def delete_pod(self, key: str, *, force: bool = False) -> None:
        """Remove a pod by `namespace/name` (or by name, in `default`); raises `KeyError`.

        One with claims is gone once they are unprepared, or at once by force.
        """
        with self._changed:
            self._model.delete(_full(key), self._clock(), force=force)
            self._carry_out()

    def renew_sandbox(self, key: str) -> None:
        """Make the sandbox of a running pod anew; its claims may be prepared again by that."""
        with self._changed:
            self._model.renew_sandbox(_full(key), self._clock())
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
                self._model.tick(self._clock())
                self._carry_out()
                for key in self._model.due(self._clock()):
                    self._begin_claim_work(key)
                if not any(progress):
                    due_s = self._model.next_due_s - self._clock()
                    self._changed.wait(max(0.0, min(due_s, GRACE_CHECK_S)))

    def _begin_claim_work(self, key: str) -> None:
        """In a thread of its own: a driver that hangs holds up only this pod."""
        steps = self._model.claim_work(key, self._clock)
        self._workers = [worker for worker in self._workers if worker.is_alive()]
        worker = threading.Thread(
            target=self._work, args=(steps,), name=f"claims-{key}", daemon=True
        )
        self._workers.append(worker)
        worker.start()

    def _work(self, steps: Generator[DriverCall, Answers, None]) -> None:
        with self._changed:
            drive_calls(steps, self._call_driver)
            self._carry_out()

    def _call_driver(self, call: DriverCall) -> Answers:
        """The lock is free while a driver works."""
        endpoint = self._model.claims.in_charge(call.driver)
        client = self._drivers.client(endpoint or "")
        if client is None:
            raise DriverMissing(call.driver)
        self._changed.release()
        try:
            return client.call(call)
        finally:
            self._changed.acquire()

    def _follow(self, store: Store) -> None:
        """Let pods that wait for devices try again when the objects of the cluster change."""
        version = store.version
        while self._running:
            version = store.wait(version, GRACE_CHECK_S)
            with self._changed:
                self._changed.notify_all()

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

    def _connect_watched(self, plugin: Registrant) -> None:
        if plugin.type == DRA_PLUGIN:
            self._connect_driver(plugin)
            return
        client = self._connections.dial(plugin.name, plugin.endpoint)
        try:
            options = client.options()
        except CallFailed:
            self._connections.give_up(client)
            raise
        self._put_in_charge(client, options)

    def _connect_driver(self, plugin: Registrant) -> None:
        with self._changed:
            if not self._running:
                return
            self._model.driver_registered(plugin.name, str(plugin.endpoint), self._clock())
            self._drivers.open(plugin.name, plugin.endpoint, plugin.version)
            self._changed.notify_all()
        self._emit("registered", f"{plugin.name} at {plugin.endpoint.name}")

    def _removed(self, plugin: Registrant) -> None:
        if plugin.type != DRA_PLUGIN:
            self._disconnect(plugin.name)
            return
        with self._changed:
            self._model.driver_lost(plugin.name, str(plugin.endpoint), self._clock())
            self._drivers.close(plugin.endpoint)
            self._changed.notify_all()

    def _healthy(self, driver: str, devices: Sequence[DeviceHealth]) -> None:
        with self._changed:
            self._model.claims.health_received(driver, devices, self._clock())
            self._changed.notify_all()

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

    def _held(self) -> list[tuple[Pod, tuple[Holding, ...], tuple[HeldClaim, ...]]]:
        with self._changed:
            return self._model.held()

    def _allocatable(self) -> dict[str, dict[str, tuple[int, ...]]]:
        with self._changed:
            return self._model.devices.allocatable()

    def _carry_out(self) -> None:
        """Do what the model asks for, and wake those who wait for a change."""
        for effect in self._model.take_effects():
            match effect:
                case SaveCheckpoint():
                    _save(self._device_plugins / FILE_NAME, self._model.checkpoint())
                case SaveClaims():
                    _save(self._claims_file, self._model.claims_checkpoint())
                case KubeletEvent():
                    self._listener(effect)
        self._changed.notify_all()

    def _record(self, call: CallRecord) -> None:
        text = f"{call.method} {call.duration_s * 1e6:.0f} us"
        self._listener(KubeletEvent("call", f"{text} {call.error}".rstrip(), call))

    def _emit(self, kind: str, text: str) -> None:
        self._listener(KubeletEvent(kind, text))


def _full(key: str) -> str:
    return key if "/" in key else f"default/{key}"


def _save(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _summary(node: NodeView) -> str:
    amounts = ", ".join(
        f"{name} {amount.allocatable}/{amount.capacity}" for name, amount in node.amounts.items()
    )
    pods = ", ".join(f"{key} {view.status.phase.value}" for key, view in node.pods.items())
    return f"allocatable/capacity: {amounts or 'none'}; pods: {pods or 'none'}"
