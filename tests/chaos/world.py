"""The system under test: a simulated node, the daemon in process, and the kubelet stand-in.

Faults of them, and what can be seen of them; what must be seen is in `oracle`.
"""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from gpuplugin.config.load import load_settings
from gpuplugin.config.options import OPTIONS
from gpuplugin.daemon.app import Daemon
from gpuplugin.daemon.control import SOCKET_NAME
from gpuplugin.kubelet.proto import deviceplugin_pb2 as dp
from gpuplugin.linesocket import ControlError, ask
from sim.kubelet import Kubelet, Phase, simple_pod
from sim.nvml.library import CannotBuild, built_library
from tests.component.nvmlhardware import NvmlHardware
from tests.component.running import (
    RESOURCE,
    Hardware,
    PluginProcess,
    allocate_request,
    chosen_engine,
    status_of,
)
from tests.component.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from gpuplugin.config.loaded import Loaded
    from hal import Backend
    from sim.kubelet import NodeView
    from sim.kubelet.devices import Listed

GPUS = 3
BACKENDS = ("sim", "nvml")
_BY_FLAG = {flag: option for option in OPTIONS for flag in option.flags}
_TRANSIENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""What a call gets whose socket is just being renewed."""


class RecordingKubelet(Kubelet):
    """Looks at every list that arrives, however short it holds."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.forbidden: frozenset[str] = frozenset()
        """GPUs that no list may call Healthy now."""
        self.violations: list[str] = []
        self.lists = 0
        self._last_sick: dict[str, int] = {}

    def sick_since(self, mark: int) -> frozenset[str]:
        """GPUs that were Unhealthy in a list after list number `mark`."""
        return frozenset(uuid for uuid, number in self._last_sick.items() if number > mark)

    def _listed(self, resource: str, devices: tuple[Listed, ...], size_bytes: int) -> None:
        with self._changed:
            self.lists += 1
            for device in devices:
                uuid = gpu_of(device.id)
                if not device.healthy:
                    self._last_sick[uuid] = self.lists
                elif uuid in self.forbidden:
                    self.violations.append(f"list {self.lists} calls {device.id} Healthy")
        super()._listed(resource, devices, size_bytes)


class FollowingPlugin(PluginProcess):
    """A plugin that follows its configuration file."""

    def __init__(self, file: Path, flags: Mapping[str, str], backend: Backend) -> None:
        given = {_BY_FLAG[flag]: text for flag, text in flags.items()}

        def load() -> Loaded:
            return load_settings(given, chosen_engine(), str(file))

        loaded = load()
        super().__init__(loaded.settings, backend)
        self._daemon = Daemon(loaded, load, backend, "test")

    def reload(self) -> None:
        """Read the file at once, as SIGHUP does."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._daemon.reload)


class World:
    """Everything that runs; `disturbances` counts what may cost the plugin its socket."""

    def __init__(
        self, folder: Path, registration: str, replicas: int, library: Path | None
    ) -> None:
        self.folder = folder
        self.registration = registration
        self.hardware = _hardware(folder, library)
        self.kubelet = RecordingKubelet(folder)
        self.disturbances = 0
        self.renewals = 0.0
        self.pods: list[str] = []
        self._pod_number = 0
        self._file = folder / "config.yaml"
        self.write_replicas(replicas)
        self.plugin = self._new_plugin()

    # Starting and stopping

    def start(self) -> None:
        """Start everything; nothing is registered yet when this returns."""
        self.kubelet.start()
        self.plugin.start()

    def stop(self) -> None:
        """Stop everything that runs."""
        try:
            self.stop_plugin()
        finally:
            self.kubelet.stop()
            self.hardware.stop()

    def stop_plugin(self) -> None:
        """End the plugin as SIGTERM does; it must go well and take its sockets along."""
        if self.plugin._thread.is_alive():
            self.count_renewals()
            assert self.plugin.metric("gpuplugin_task_restarts_total") == 0, "a task failed"
        self.plugin.stop()
        assert self.plugin.failure is None
        assert self.plugin.sockets() == ()

    def start_plugin(self) -> None:
        """Start another plugin."""
        self.plugin = self._new_plugin()
        self.plugin.start()

    def count_renewals(self) -> None:
        """Add up the renewals of a plugin that is about to end."""
        self.renewals += self.plugin.metric("gpuplugin_socket_renewals_total")

    def _new_plugin(self) -> FollowingPlugin:
        flags = {
            "--kubelet-dir": str(self.folder),
            "--listen-address": "127.0.0.1:0",
            "--backend": "sim",
            "--registration": self.registration,
            "--health-probe-interval": "30ms",
            "--health-blind-after": "200ms",
        }
        return FollowingPlugin(self._file, flags, self.hardware.backend)

    def wait_for_probes(self, gpus: Collection[int], rounds: int) -> None:
        """As `Hardware.wait_for_probes`, for several GPUs at a time."""
        probes = self.hardware.backend.probes
        uuids = [self.hardware.uuids[index] for index in gpus]
        wanted = {uuid: probes.get(uuid, 0) + rounds + 2 for uuid in uuids}
        eventually(lambda: all(probes.get(uuid, 0) >= wanted[uuid] for uuid in uuids))

    def wait_for_deliveries(self) -> None:
        """Wait until the plugin has taken all events: a probe may have told of the fault sooner."""
        eventually(lambda: self.hardware.heard)

    def wait_for_blindness(self) -> None:
        """Wait until the plugin knows that it cannot watch: it is patient for a moment."""
        eventually(lambda: not self.plugin.get("/ready").parts.get("monitor", {"ok": True})["ok"])

    def hiccup(self, index: int, for_s: float) -> None:
        """Let calls about a GPU not return for a while, and wait until they do."""
        self.hardware.hang(index, for_s)

        def over() -> bool:
            with self.hardware.node.update() as node:
                return not node.present[index].hangs(node.env.now)

        eventually(over)

    # Faults of the sockets, the kubelet and the configuration

    def restart_kubelet(self) -> None:
        """A quick restart."""
        self.disturbances += 1
        self.kubelet.restart()

    def stop_kubelet(self) -> None:
        """The kubelet stays away until the plugin has noticed."""
        self.disturbances += 1
        before = self.plugin.sockets()
        watched = self.plugin.metric("gpuplugin_open_streams") > 0
        self.kubelet.stop()
        if watched:
            eventually(lambda: self.plugin.sockets() and self.plugin.sockets() != before)

    def delete_socket(self) -> None:
        """The socket's file is deleted; it must be renewed."""
        self.disturbances += 1
        before = self.plugin.sockets()
        for path in before:
            path.unlink()
        self._wait_for_another_socket(before)

    def delete_folder(self) -> None:
        """The folder of the sockets is deleted; the classic one is the kubelet's as well."""
        self.disturbances += 1
        before = self.plugin.sockets()
        classic = self.registration == "classic"
        if classic:
            self.kubelet.stop()
        # In one step: whoever makes a socket meanwhile makes it in a new folder.
        gone = self.folder / "gone"
        self.plugin.folder.rename(gone)
        shutil.rmtree(gone)
        if classic:
            self.kubelet.start()
        self._wait_for_another_socket(before)

    def _wait_for_another_socket(self, before: Collection[Path]) -> None:
        if before:
            eventually(lambda: (now := self.plugin.sockets()) and not set(now) & set(before))
            eventually(lambda: self.plugin.metric("gpuplugin_open_streams") > 0)

    def write_replicas(self, replicas: int) -> None:
        """Write the configuration, in one step."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(
            f"sharing: {{timeSlicing: {{resources: [{{name: gpu, replicas: {replicas}}}]}}}}\n"
            "health: {quietPeriod: 60ms, quietPeriodCap: 120ms}\n"
        )
        fresh.replace(self._file)

    def clear_health(self) -> None:
        """`gpuplugin health clear all`, over the control socket."""
        path = self.plugin.folder / SOCKET_NAME

        def cleared() -> bool:
            try:
                ask(path, {"clear": "all"}, DEADLINE_S)
            except ControlError as error:
                return "still faulty" in str(error)
            return True

        eventually(cleared)

    # Pods and calls

    def run_pod(self) -> str | None:
        """Run a pod; returns the GPU that it got, or None if it had to wait or was too early.

        A pod that meets a socket which is just being renewed, or a GPU that fell ill since the
        kubelet counted, fails in a real node too; any other failure is the plugin's.
        """
        self._pod_number += 1
        name = f"pod-{self._pod_number}"
        status = self.kubelet.run_pod(simple_pod(name, {RESOURCE: 1}), DEADLINE_S)
        if status.phase is Phase.RUNNING:
            self.pods.append(name)
            return gpu_of(status.grants[0].device_ids[0])
        self.kubelet.delete_pod(name)
        excuses = ("Unschedulable", "Unavailable", "Canceled", "been stopped", "unavailable for")
        text = f"{status.reason} {status.message}"
        assert any(word in text for word in (*excuses, "no healthy devices")), text
        return None

    def delete_pod(self, number: int) -> None:
        """Delete one of the pods that run."""
        self.kubelet.delete_pod(self.pods.pop(number % len(self.pods)))

    def has_room(self, node: NodeView) -> bool:
        """True if the scheduler would find room for a pod with one device."""
        return node.allocatable(RESOURCE) > len(self.pods)

    def call_for(self, devices: Sequence[str]) -> None:
        """Ask the plugin for each device alone, and for a preference among all of them."""
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            try:
                self._call_for(devices)
            except grpc.RpcError as error:
                code, _text = status_of(error)
                if code not in _TRANSIENT or time.monotonic() > deadline_s:
                    raise
            else:
                return

    def _call_for(self, devices: Sequence[str]) -> None:
        socket = eventually(self.plugin.sockets)[0]
        service = "/v1beta1.DevicePlugin/"
        preference = dp.PreferredAllocationRequest(
            container_requests=[
                dp.ContainerPreferredAllocationRequest(
                    available_deviceIDs=devices, allocation_size=2
                )
            ]
        ).SerializeToString()
        with grpc.insecure_channel(f"unix://{socket}") as channel:
            allocate: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                service + "Allocate"
            )
            prefer: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                service + "GetPreferredAllocation"
            )
            for one in devices:
                raw = allocate(allocate_request((one,)), timeout=DEADLINE_S)
                (answer,) = dp.AllocateResponse.FromString(raw).container_responses
                assert answer.envs["NVIDIA_VISIBLE_DEVICES"] == gpu_of(one)
            chosen = dp.PreferredAllocationResponse.FromString(
                prefer(preference, timeout=DEADLINE_S)
            )
            (choice,) = chosen.container_responses
            assert len(choice.deviceIDs) == min(2, len(devices))
            assert set(choice.deviceIDs) <= set(devices)


def library_of(backend: str) -> Path | None:
    """The library for the NVML backend, None for the simulated one; skips without a compiler."""
    if backend == "sim":
        return None
    try:
        return built_library()
    except CannotBuild as error:
        pytest.skip(str(error))


def _hardware(folder: Path, library: Path | None) -> Hardware:
    """Seen by the simulated backend, or with a library by the one for NVML."""
    if library is None:
        return Hardware(GPUS)
    own = folder / "nvml"
    own.mkdir()
    return NvmlHardware(own, library, GPUS)


def gpu_of(device_id: str) -> str:
    """The UUID in a device id."""
    return device_id.partition("::")[0]


def threads() -> list[str]:
    """Names of the threads that Python knows."""
    return sorted(one.name for one in threading.enumerate())


def open_files() -> int:
    """File descriptors of this process."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def resident_mib() -> float:
    """Memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20
