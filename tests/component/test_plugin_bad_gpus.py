"""One bad GPU is the misfortune of that GPU alone, and is never called Healthy for a moment."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from gpuplugin.core.departures import MAX_GONE
from gpuplugin.core.pacing import Backoff
from gpuplugin.daemon.http.series import MAX_SERIES
from gpuplugin.daemon.serving.cdi import CdiWriter
from hal import DriverUnavailable, GpuLost, HalError, Probe, RecoveryAction, XidError
from sim.kubelet import Amount
from tests.component.fakedriver import FakeDriver
from tests.component.running import RESOURCE
from tests.component.waiting import DEADLINE_S, becomes_a_file, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gpuplugin.core.inventory import Inventory
    from hal import Gpu
    from sim.kubelet import Kubelet, NodeView
    from tests.component.conftest import MakeHardware, StartPlugin
    from tests.component.running import Hardware, PluginProcess

REPLICAS = 10


class PickyDriver(FakeDriver):
    """A driver that can fail, hang or complain when it is asked about one GPU."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.failing: dict[str, HalError] = {}
        self.sick: set[str] = set()
        self.hanging: set[str] = set()
        self.released = threading.Event()

    def probe(self, uuid: str) -> Probe:
        with self.calls.about(uuid):
            return self._probe(uuid)

    def _probe(self, uuid: str) -> Probe:
        if uuid in self.hanging:
            self.released.wait(DEADLINE_S)
        if uuid in self.failing:
            raise self.failing[uuid]
        healthy = super().probe(uuid)
        if uuid not in self.sick:
            return healthy
        return replace(healthy, recovery_action=RecoveryAction.RESET)


@pytest.fixture
def driver() -> Iterator[PickyDriver]:
    driver = PickyDriver(3)
    yield driver
    driver.released.set()
    driver.release()


def wait_for(kubelet: Kubelet, allocatable: int) -> NodeView:
    amount = Amount(3 * REPLICAS, allocatable)
    return kubelet.wait_until(lambda node: node.amounts.get(RESOURCE) == amount, DEADLINE_S)


def test_a_sick_gpu_is_not_healthy_even_in_the_first_list(
    kubelet: Kubelet, driver: PickyDriver, start_plugin: StartPlugin
) -> None:
    driver.sick.add(driver.listed[1].uuid)
    plugin = start_plugin(driver)
    node = wait_for(kubelet, 2 * REPLICAS)
    assert node.list_updates[RESOURCE] == 1
    transitions = "gpuplugin_gpu_health_transitions_total"
    assert plugin.metric(transitions, gpu="1", state="Unhealthy") == 1
    driver.sick.clear()
    wait_for(kubelet, 3 * REPLICAS)


def test_a_gpu_that_cannot_be_probed_does_not_blind_the_others(
    kubelet: Kubelet, driver: PickyDriver, start_plugin: StartPlugin
) -> None:
    plugin = start_plugin(driver)
    wait_for(kubelet, 3 * REPLICAS)
    broken = driver.listed[0].uuid
    driver.failing[broken] = GpuLost(broken)
    node = wait_for(kubelet, 2 * REPLICAS)
    assert {one.partition("::")[0] for one in node.unhealthy(RESOURCE)} == {broken}
    failures = plugin.metric("gpuplugin_monitor_failures_total", stage="probe")
    eventually(
        lambda: plugin.metric("gpuplugin_monitor_failures_total", stage="probe") > failures + 5
    )
    assert plugin.metric("gpuplugin_monitor_blind") == 0
    assert kubelet.view().allocatable(RESOURCE) == 2 * REPLICAS
    driver.failing.clear()
    wait_for(kubelet, 3 * REPLICAS)


def test_no_gpu_that_can_be_probed_is_a_monitor_that_is_blind(
    kubelet: Kubelet, driver: PickyDriver, start_plugin: StartPlugin
) -> None:
    plugin = start_plugin(driver)
    wait_for(kubelet, 3 * REPLICAS)
    driver.failing = {gpu.uuid: HalError("no answer") for gpu in driver.listed}
    wait_for(kubelet, 0)
    eventually(lambda: plugin.metric("gpuplugin_monitor_blind") == 1)
    driver.failing.clear()
    wait_for(kubelet, 3 * REPLICAS)


def test_a_probe_that_hangs_costs_its_own_gpu_only(
    kubelet: Kubelet,
    driver: PickyDriver,
    start_plugin: StartPlugin,
) -> None:
    plugin = start_plugin(driver)
    wait_for(kubelet, 3 * REPLICAS)
    stuck = driver.listed[2].uuid
    driver.hanging.add(stuck)
    node = wait_for(kubelet, 2 * REPLICAS)
    assert {one.partition("::")[0] for one in node.unhealthy(RESOURCE)} == {stuck}
    listings = driver.listings
    eventually(lambda: driver.listings > listings + 5)
    assert plugin.metric("gpuplugin_monitor_blind") == 0
    driver.hanging.clear()
    driver.released.set()
    wait_for(kubelet, 3 * REPLICAS)


def test_specs_that_can_no_longer_be_written_take_no_gpu_away(
    kubelet: Kubelet, make_hardware: MakeHardware, start_plugin: StartPlugin, tmp_path: Path
) -> None:
    hardware = make_hardware(3)
    folder = tmp_path / "cdi"
    flags = {"--device-list-strategy": "cdi-cri", "--cdi-root": str(folder)}
    plugin = start_plugin(hardware.backend, flags=flags)
    wait_for(kubelet, 3 * REPLICAS)
    spec = folder / "k8s.device-plugin.nvidia.com-gpu.json"
    text = spec.read_text()

    eventually(lambda: becomes_a_file(folder))
    eventually(lambda: "cdi" in plugin.get("/ready").parts)
    hardware.lose(1)
    wait_for(kubelet, 2 * REPLICAS)
    assert plugin.get("/ready").status == 503

    folder.unlink()
    eventually(spec.exists)
    assert spec.read_text() == text
    eventually(lambda: plugin.ready)


def test_specs_that_cannot_be_written_at_first_are_tried_again(
    kubelet: Kubelet, make_hardware: MakeHardware, start_plugin: StartPlugin, tmp_path: Path
) -> None:
    folder = tmp_path / "cdi"
    folder.write_text("in the way")
    flags = {"--device-list-strategy": "cdi-cri", "--cdi-root": str(folder)}
    plugin = start_plugin(make_hardware(3).backend, flags=flags)
    eventually(lambda: "cdi" in plugin.get("/ready").parts)
    assert plugin.sockets() == ()
    folder.unlink()
    wait_for(kubelet, 3 * REPLICAS)
    eventually(lambda: plugin.ready)


def test_whatever_keeps_specs_from_being_written_is_told(
    make_hardware: MakeHardware,
    start_plugin: StartPlugin,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_writer: CdiWriter, _inventory: Inventory) -> None:
        raise ValueError("nobody thought of this")

    flags = {"--device-list-strategy": "cdi-cri", "--cdi-root": str(tmp_path / "cdi")}
    with monkeypatch.context() as patch:
        patch.setattr(CdiWriter, "write", fail)
        plugin = start_plugin(make_hardware(3).backend, "none", flags)
        eventually(lambda: "nobody thought of this" in plugin.get("/ready").body)
    eventually(lambda: plugin.ready)


def test_a_driver_that_comes_late_has_its_files_in_the_specs(
    kubelet: Kubelet, driver: PickyDriver, start_plugin: StartPlugin, tmp_path: Path
) -> None:
    root, folder = tmp_path / "driver", tmp_path / "cdi"
    libraries = root / "usr/lib64"
    libraries.mkdir(parents=True)
    driver.on_open = HalError("no driver yet")
    flags = {
        "--backend": "nvml",
        "--driver-root-ctr-path": str(root),
        "--device-list-strategy": "cdi-cri",
        "--cdi-root": str(folder),
    }
    plugin = start_plugin(driver, flags=flags)
    eventually(lambda: plugin.metric("gpuplugin_monitor_failures_total", stage="open") >= 1)

    (libraries / "libcuda.so.580.1").write_text("")
    driver.on_open = None
    wait_for(kubelet, 3 * REPLICAS)
    spec = (folder / "k8s.device-plugin.nvidia.com-gpu.json").read_text()
    assert '"/usr/lib64/libcuda.so.580.1"' in spec


def test_a_folder_of_specs_that_hangs_holds_up_neither_health_nor_a_stop(
    kubelet: Kubelet,
    make_hardware: MakeHardware,
    start_plugin: StartPlugin,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a folder on a network that is down. Specs were written on the event loop once."""
    released = threading.Event()
    write = CdiWriter.write

    def write_or_hang(writer: CdiWriter, inventory: Inventory) -> None:
        if writing.is_set():
            hanging.set()
            released.wait(DEADLINE_S)
        write(writer, inventory)

    writing, hanging = threading.Event(), threading.Event()
    monkeypatch.setattr(CdiWriter, "write", write_or_hang)
    hardware = make_hardware(3)
    flags = {"--device-list-strategy": "cdi-cri", "--cdi-root": str(tmp_path / "cdi")}
    plugin = start_plugin(hardware.backend, flags=flags)
    wait_for(kubelet, 3 * REPLICAS)
    writing.set()
    assert hanging.wait(DEADLINE_S)
    try:
        hardware.lose(1)
        wait_for(kubelet, 2 * REPLICAS)
        assert plugin.get("/health").status == 200
        plugin.stop()
    finally:
        released.set()


class LyingDriver(FakeDriver):
    """A driver whose GPUs have other UUIDs at each look."""

    def gpus(self) -> tuple[Gpu, ...]:
        number = self.listings * len(self.listed)
        self.listed = tuple(
            replace(gpu, uuid=f"GPU-00000000-0000-4000-8000-{number + gpu.index:012d}")
            for gpu in super().gpus()
        )
        return self.listed


def test_a_driver_that_names_ever_new_gpus_does_not_make_the_plugin_grow(
    start_plugin: StartPlugin,
) -> None:
    driver = LyingDriver(8)
    plugin = start_plugin(driver)
    eventually(lambda: driver.listings > 30)
    listed = plugin.samples("gpuplugin_devices")
    # A scrape may see a list of which not all have left yet.
    assert sum(one.value for one in listed) <= (8 + MAX_GONE + 8) * REPLICAS
    assert len(plugin.samples("gpuplugin_gpu_health_transitions_total")) <= MAX_SERIES + 1
    for path in ("/", "/health", "/metrics"):
        assert plugin.get(path).status == 200


def test_xids_and_gpus_that_nobody_knows_share_a_series(
    kubelet: Kubelet, driver: PickyDriver, start_plugin: StartPlugin
) -> None:
    plugin = start_plugin(driver)
    wait_for(kubelet, 30)
    for code in range(1_000, 1_600):
        driver.report(XidError(driver.listed[code % 3].uuid, code))
        driver.report(XidError(f"GPU-{code}", code))
    eventually(lambda: plugin.metric("gpuplugin_xid_events_total") == 1_200)
    assert len(plugin.samples("gpuplugin_xid_events_total")) == 4
    assert plugin.metric("gpuplugin_xid_events_total", xid="other") == 1_200


def is_listed(plugin: PluginProcess, uuid: str) -> bool:
    return plugin.metric("gpuplugin_gpu_health", uuid=uuid) == 1


def test_gpus_that_are_replaced_over_and_over_do_not_pile_up(
    hardware: Hardware, start_plugin: StartPlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuplugin.core.departures.MAX_GONE", 3)
    plugin = start_plugin(hardware.backend)
    eventually(lambda: plugin.metric("gpuplugin_gpu_health", state="Healthy") == 8)
    for _ in range(10):
        new = hardware.replace(0)
        eventually(partial(is_listed, plugin, new))
    eventually(lambda: plugin.metric("gpuplugin_devices", resource=RESOURCE) == (8 + 3) * REPLICAS)
    assert plugin.metric("gpuplugin_devices", resource=RESOURCE, health="Healthy") == 80


def test_a_gpu_that_is_partitioned_over_and_over_leaves_nothing_behind(
    make_hardware: MakeHardware, start_plugin: StartPlugin
) -> None:
    hardware = make_hardware(1)
    plugin = start_plugin(hardware.backend, flags={"--mig-strategy": "mixed"})
    first = series_after(hardware, plugin, rounds=2)
    assert series_after(hardware, plugin, rounds=10) == first


def series_after(hardware: Hardware, plugin: PluginProcess, rounds: int) -> int:
    """The number of series of GPUs after as many rounds of partitions."""
    small, large = "nvidia.com/mig-1g.10gb", "nvidia.com/mig-3g.40gb"
    for _ in range(rounds):
        hardware.repartition(0, ["1g.10gb"] * 7)
        eventually(
            lambda: plugin.metric("gpuplugin_devices", resource=small, health="Healthy") == 7
        )
        hardware.repartition(0, ["3g.40gb"] * 2)
        eventually(
            lambda: plugin.metric("gpuplugin_devices", resource=large, health="Healthy") == 2
        )
    families = (
        "gpuplugin_gpu_health",
        "gpuplugin_devices",
        "gpuplugin_gpu_health_transitions_total",
    )
    return sum(len(plugin.samples(name)) for name in families)


def test_a_driver_that_cannot_be_opened_for_long_is_tried_seldom_and_taken_at_once(
    kubelet: Kubelet,
    driver: PickyDriver,
    start_plugin: StartPlugin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An hour in a second: the pauses are a thousandth of what they are."""
    pauses_s: list[float] = []

    class Shortened(Backoff):
        def next_s(self) -> float:
            pauses_s.append(super().next_s())
            return pauses_s[-1] / 1000

    monkeypatch.setattr("gpuplugin.core.watch.Backoff", Shortened)
    driver.on_open = DriverUnavailable("nvmlInit failed", "load the driver")
    plugin = start_plugin(driver)
    eventually(lambda: sum(pauses_s) > 3600)
    assert driver.opens < 400
    assert max(pauses_s) <= 30
    assert plugin.get("/health").status == 200
    assert plugin.get("/ready").status == 503
    assert plugin.metric("gpuplugin_task_restarts_total") == 0
    driver.on_open = None
    wait_for(kubelet, 30)
