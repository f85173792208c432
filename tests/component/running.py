"""The daemon in a thread of its own, and what a test looks at: its HTTP answers and its sockets."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Self

import grpc
from prometheus_client.parser import text_string_to_metric_families

from gpuplugin.config.load import load_settings
from gpuplugin.config.loaded import Loaded
from gpuplugin.config.options import OPTIONS
from gpuplugin.daemon.app import Daemon, run
from gpuplugin.daemon.serving.sockets import KubeletDirs
from gpuplugin.kubelet.proto import deviceplugin_pb2 as dp
from hal import Backend
from sim.gpu.faults import (
    DriverDown,
    DriverHang,
    DriverUp,
    EccFault,
    Hang,
    LostFault,
    Plug,
    Recovery,
    Repartition,
    Replacement,
    RowRemap,
    ThermalShutdown,
    Unplug,
    WatchBroken,
    WatchMended,
    XidFault,
)
from sim.node.node import SimulatedNode
from sim.node.realtime import RealTimeNode, SimBackend
from sim.node.scenario import GpuGroup, Scenario
from tests.component.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from pathlib import Path

    from prometheus_client.samples import Sample

    from gpuplugin.config.settings import Settings
    from hal import Probe
    from sim.gpu.faults import GpuFault, NodeFault

RESOURCE = "nvidia.com/gpu"
STOP_TIMEOUT_S = 5.0

_BY_FLAG = {flag: option for option in OPTIONS for flag in option.flags}


def chosen_engine() -> dict[str, str]:
    """The variable that names the engine, if a run of the tests is for another one."""
    name = "GPUPLUGIN_RPC_ENGINE"
    return {name: os.environ[name]} if name in os.environ else {}


def settings_for(
    kubelet_dir: Path,
    flags: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    config_file: Path | None = None,
) -> Settings:
    """Settings as the command line makes them; the HTTP port is a free one."""
    given = {
        "--kubelet-dir": str(kubelet_dir),
        "--listen-address": "127.0.0.1:0",
        "--backend": "sim",
        **(flags or {}),
    }
    return load_settings(
        {_BY_FLAG[flag]: text for flag, text in given.items()},
        {**chosen_engine(), **(environment or {})},
        str(config_file) if config_file else None,
    ).settings


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer over HTTP."""

    status: int
    content_type: str
    body: str

    @property
    def parts(self) -> dict[str, dict[str, object]]:
        """The parts of /health or /ready by name."""
        parts: dict[str, dict[str, object]] = json.loads(self.body)["parts"]
        return parts


def http_get(host: str, port: int, path: str, headers: Mapping[str, str] | None = None) -> Answer:
    """One GET request."""
    connection = http.client.HTTPConnection(host, port, timeout=DEADLINE_S)
    try:
        connection.request("GET", path, headers=dict(headers or {}))
        response = connection.getresponse()
        body = response.read().decode()
        return Answer(response.status, response.headers.get("Content-Type", ""), body)
    finally:
        connection.close()


class PluginProcess:
    """The daemon's work on a loop in a thread; `stop` ends it as SIGTERM does."""

    def __init__(
        self, settings: Settings, backend: Backend, again: Callable[[], Settings] | None = None
    ) -> None:
        """`again` reads the settings when the daemon is told to."""
        self.settings = settings
        load = again or (lambda: settings)
        loaded = Loaded(settings, "a test", None, ())
        self._daemon = Daemon(loaded, lambda: replace(loaded, settings=load()), backend, "test")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._work: asyncio.Task[None] | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="plugin", daemon=True)
        self.failure: BaseException | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start; nothing is registered yet when this returns."""
        self._thread.start()
        assert self._ready.wait(DEADLINE_S)
        eventually(lambda: self._daemon.port or not self._thread.is_alive())

    def stop(self) -> None:
        """Stop and wait until the sockets are gone. Safe to call twice."""
        self._cancel()
        self._thread.join(STOP_TIMEOUT_S)
        if self._thread.is_alive():
            self._cancel()  # so that it does no harm to other tests
            self._thread.join(STOP_TIMEOUT_S)
            raise AssertionError("the daemon did not stop when it was told to")

    def _cancel(self) -> None:
        if self._loop is not None and self._work is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._work.cancel)

    def reload(self) -> None:
        """As SIGHUP does."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._daemon.reload)

    def cancel_task(self, name: str) -> None:
        """Cancel one of the daemon's tasks, as nobody should."""
        loop = self._loop
        assert loop is not None
        (task,) = (one for one in asyncio.all_tasks(loop) if one.get_name() == name)
        loop.call_soon_threadsafe(task.cancel)

    def join(self) -> BaseException | None:
        """Wait until the daemon ends by itself; returns what ended it."""
        self._thread.join(STOP_TIMEOUT_S)
        assert not self._thread.is_alive(), "the daemon does not end"
        return self.failure

    @property
    def port(self) -> int:
        """The daemon's own port."""
        port = self._daemon.port
        assert port is not None
        return port

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        """GET from the daemon's own port."""
        return http_get("127.0.0.1", self.port, path, headers)

    @property
    def ready(self) -> bool:
        """Whether /ready says 200."""
        return self.get("/ready").status == 200

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry `labels`; 0 if there is none."""
        return sum(
            sample.value for sample in self.samples(name) if labels.items() <= sample.labels.items()
        )

    def samples(self, name: str) -> list[Sample]:
        """The samples of a metric."""
        # Parsing the whole page costs more than all else that a test waits with.
        lines = self.get("/metrics").body.splitlines()
        own = "".join(f"{line}\n" for line in lines if line.startswith((f"{name}{{", f"{name} ")))
        return [
            sample for family in text_string_to_metric_families(own) for sample in family.samples
        ]

    @property
    def folder(self) -> Path:
        """Where the plugin's socket is."""
        dirs = KubeletDirs(self.settings.daemon.kubelet_dir)
        classic = self.settings.daemon.way_of_registration == "classic"
        return dirs.device_plugins if classic else dirs.plugin_watcher

    def sockets(self) -> tuple[Path, ...]:
        """The plugin's sockets at this moment."""
        return tuple(sorted(self.folder.glob("gpuplugin-*.sock")))

    def call(self, method: str, request: bytes) -> bytes:
        """Call a method of the plugin with raw bytes, as any client of its socket can."""
        (socket,) = eventually(self.sockets)
        return raw_call(socket, f"/v1beta1.DevicePlugin/{method}", request)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # noqa: BLE001 - kept for whoever asks
            self.failure = error

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._work = asyncio.create_task(self._daemon.run())
        self._ready.set()
        await self._work


def run_as_loaded(settings: Settings, backend: Backend) -> Coroutine[object, object, int]:
    """The daemon's own entry, signals included, with settings that never change."""
    loaded = Loaded(settings, "a test", None, ())
    return run(loaded, lambda: loaded, backend, "test")


def raw_call(socket: Path, method: str, request: bytes) -> bytes:
    """A unary call with bytes for messages."""
    with grpc.insecure_channel(f"unix://{socket}") as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        # The socket may be there before its server listens.
        return call(request, timeout=DEADLINE_S, wait_for_ready=True)


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Code and text of a failed call: grpcio raises errors that are calls at the same time."""
    assert isinstance(error, grpc.Call)
    return error.code(), error.details() or ""


def allocate_request(*containers: tuple[str, ...]) -> bytes:
    """An AllocateRequest, serialised."""
    return dp.AllocateRequest(
        container_requests=[dp.ContainerAllocateRequest(devices_ids=ids) for ids in containers]
    ).SerializeToString()


class CountedBackend(Backend, Protocol):
    """A backend that counts how often each GPU was probed."""

    probes: dict[str, int]


class CountingBackend(SimBackend):
    """A simulated node that counts how often each GPU was probed."""

    def __init__(self, node: RealTimeNode) -> None:
        super().__init__(node)
        self.probes: dict[str, int] = {}

    def probe(self, uuid: str) -> Probe:
        answer = super().probe(uuid)
        self.probes[uuid] = self.probes.get(uuid, 0) + 1
        return answer


class Hardware:
    """A simulated node with its backend, and a hand for what befalls its GPUs.

    `uuids` are those of the GPUs that are in the node, by index: `replace` changes one.
    """

    def __init__(self, count: int = 8, **scenario: object) -> None:
        self.scenario = Scenario.model_validate(
            {"gpus": [GpuGroup(model="h100-sxm5-80gb", count=count)], **scenario}
        )
        self.node = RealTimeNode(SimulatedNode(self.scenario))
        self.backend: CountedBackend = CountingBackend(self.node)
        with self.node.update() as model_node:
            self.uuids = _uuids(model_node)

    def replicas(self, gpu: int, count: int = 10) -> tuple[str, ...]:
        """The device ids of a GPU."""
        return tuple(f"{self.uuids[gpu]}::{number}" for number in range(count))

    def xid(self, gpu: int, code: int, times: int = 1, mig: int | None = None) -> None:
        """Inject an Xid into a GPU, or a MIG device of it, `times` times at one instant."""
        self._inject_into(gpu, *[XidFault(xid=code, mig=mig)] * times)

    def ecc(self, gpu: int, *, uncorrectable: bool, count: int = 1) -> None:
        """Inject ECC errors into a GPU; it is one event."""
        self._inject_into(gpu, EccFault(uncorrectable=uncorrectable, count=count))

    def row_remap(self, gpu: int, *, failed: bool) -> None:
        """Let a row remap be pending or failed on a GPU, without an event."""
        self._inject_into(gpu, RowRemap(failed=failed))

    def let(self, gpu: int, *what: GpuFault) -> None:
        """Inject faults of any kind into a GPU."""
        self._inject_into(gpu, *what)

    def let_node(self, what: NodeFault) -> None:
        """Inject a fault of any kind into the node."""
        self._inject_node(what)

    def lose(self, gpu: int) -> None:
        """Let a GPU stop answering."""
        self._inject_into(gpu, LostFault())

    def hang(self, gpu: int, for_s: float | None = None) -> None:
        """Let calls about a GPU not return, for some seconds or until `recover`."""
        self._inject_into(gpu, Hang(for_s=for_s))

    def thermal_shutdown(self, gpu: int, lost_after_s: float = 2.0) -> None:
        """Let a GPU overheat, and be lost `lost_after_s` later."""
        self._inject_into(gpu, ThermalShutdown(lost_after_s=lost_after_s))

    def unplug(self, gpu: int) -> None:
        """Remove a GPU from the bus."""
        self._inject_into(gpu, Unplug())

    def plug(self, gpu: int) -> None:
        """Put the GPU that was removed back."""
        self._inject_into(gpu, Plug())

    def replace(self, gpu: int) -> str:
        """Put another GPU in the place of this one; returns its UUID."""
        self._inject_into(gpu, Replacement())
        with self.node.update() as model:
            self.uuids = _uuids(model)
        return self.uuids[gpu]

    def repartition(self, gpu: int, mig: Sequence[str] | None) -> None:
        """Partition a GPU anew; None turns MIG off."""
        self._inject_into(gpu, Repartition(mig=None if mig is None else list(mig)))

    def recover(self, gpu: int) -> None:
        """Reset a GPU."""
        self._inject_into(gpu, Recovery())

    def driver_down(self) -> None:
        """Unload the driver: every call fails."""
        self._inject_node(DriverDown())

    def driver_up(self) -> None:
        """Load the driver anew."""
        self._inject_node(DriverUp())

    def driver_hang(self, for_s: float | None = None) -> None:
        """Let no call return, for some seconds or until `driver_up`."""
        self._inject_node(DriverHang(for_s=for_s))

    def break_watching(self, for_s: float | None = None) -> None:
        """Let waiting for events fail, for some seconds or until `mend_watching`."""
        self._inject_node(WatchBroken(for_s=for_s))

    def mend_watching(self) -> None:
        """Let events be waited for again."""
        self._inject_node(WatchMended())

    @property
    def heard(self) -> bool:
        """True if the events so far were taken."""
        with self.node.update() as model:
            return not model.has_events

    def wait_for_probes(self, gpu: int, rounds: int) -> None:
        """Wait until the GPU was probed `rounds` more times, and what came of it was dealt with.

        The daemon acts on a round after its last probe, so one round more is waited for.
        """
        uuid = self.uuids[gpu]
        wanted = self.backend.probes.get(uuid, 0) + rounds + 2
        eventually(lambda: self.backend.probes.get(uuid, 0) >= wanted)

    def stop(self) -> None:
        """Stop the node's clock."""
        self.node.stop()

    def _inject_into(self, gpu: int, *what: GpuFault) -> None:
        with self.node.update() as model:
            for one in what:
                model.inject(model.present[gpu], one)

    def _inject_node(self, what: NodeFault) -> None:
        with self.node.update() as model:
            model.inject_node(what)


def _uuids(model: SimulatedNode) -> tuple[str, ...]:
    return tuple(gpu.identity.uuid for gpu in model.present)
