"""The length of time slices: set on GPUs that are shared, and put back when it is not wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal import GpuLost, HalError, NotSupported, TimeSliceLevel
from sim.gpu.faults import LostFault
from sim.node.realtime import SimBackend
from tests.component.dranode import DRIVER
from tests.component.fakedriver import FakeDriver
from tests.component.running import RESOURCE
from tests.component.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.component.conftest import MakeHardware
    from tests.component.dranode import DraNode
    from tests.component.following import Follow, Followed
    from tests.component.running import Hardware

DEFAULT, SHORT, LONG = TimeSliceLevel.DEFAULT, TimeSliceLevel.SHORT, TimeSliceLevel.LONG


def shared(interval: str | None, replicas: int = 4, devices: object = "all") -> str:
    more = f"interval: {interval}, " if interval else ""
    entry = f"{{name: gpu, replicas: {replicas}, devices: {devices}}}"
    return f"sharing: {{timeSlicing: {{{more}resources: [{entry}]}}}}\n"


def levels(hardware: Hardware) -> list[TimeSliceLevel]:
    """Those of the GPUs that are in the node, by index."""
    with hardware.node.update() as model:
        return [gpu.time_slice for gpu in model.present]


def told(plugin: Followed) -> str:
    """What /ready says of it."""
    part = plugin.get("/ready").parts.get("time-slices", {})
    return str(part.get("text", ""))


def test_gpus_that_are_shared_have_the_interval_of_the_file(
    make_hardware: MakeHardware, follow: Follow
) -> None:
    hardware = make_hardware(3)
    plugin = follow(hardware.backend, shared("Long", devices=[0, 2]), "none")
    eventually(lambda: levels(hardware) == [LONG, DEFAULT, LONG])
    eventually(lambda: told(plugin) == "Long on GPUs 0, 2")
    plugin.rewrite(shared("Short"))
    eventually(lambda: levels(hardware) == [SHORT] * 3)
    plugin.rewrite(shared("Short", devices=[1]))
    eventually(lambda: levels(hardware) == [DEFAULT, SHORT, DEFAULT])
    plugin.rewrite(shared(None))
    eventually(lambda: levels(hardware) == [DEFAULT] * 3)
    eventually(lambda: "time-slices" not in plugin.get("/ready").parts)


def test_it_is_the_default_again_when_the_plugin_stops(
    make_hardware: MakeHardware, follow: Follow
) -> None:
    hardware = make_hardware(2)
    plugin = follow(hardware.backend, shared("Medium"), "none")
    eventually(lambda: levels(hardware) == [TimeSliceLevel.MEDIUM] * 2)
    plugin.stop()
    assert levels(hardware) == [DEFAULT] * 2


def test_a_time_slice_that_somebody_else_has_set_stays_without_the_key(
    make_hardware: MakeHardware, follow: Follow
) -> None:
    hardware = make_hardware(2)
    SimBackend(hardware.node).set_time_slice(hardware.uuids[1], SHORT)
    plugin = follow(hardware.backend, shared(None), "none")
    eventually(lambda: plugin.ready)
    plugin.stop()
    assert levels(hardware) == [DEFAULT, SHORT]


def test_a_gpu_that_comes_back_gets_it_again(make_hardware: MakeHardware, follow: Follow) -> None:
    hardware = make_hardware(2)
    plugin = follow(hardware.backend, shared("Long") + "health: {quietPeriod: 10ms}\n", "none")
    eventually(lambda: levels(hardware) == [LONG] * 2)
    hardware.let(1, LostFault())
    eventually(lambda: plugin.devices() == 4)
    with hardware.node.update() as model:
        model.present[1].set_time_slice(DEFAULT)  # a reset forgets it
    hardware.recover(1)
    eventually(lambda: plugin.devices() == 8)
    eventually(lambda: levels(hardware) == [LONG] * 2)


class Refusing(FakeDriver):
    """A driver that sets no time slice on some GPUs."""

    def __init__(self, **refusals: HalError) -> None:
        super().__init__(3)
        self.refusals = {int(key.removeprefix("gpu")): error for key, error in refusals.items()}
        self.asked: list[tuple[int, TimeSliceLevel]] = []

    def set_time_slice(self, uuid: str, level: TimeSliceLevel) -> None:
        index = next(gpu.index for gpu in self.listed if gpu.uuid == uuid)
        self.asked.append((index, level))
        if index in self.refusals:
            raise self.refusals[index]


def test_where_it_cannot_be_set_the_plugin_says_so_and_works(follow: Follow) -> None:
    driver = Refusing(
        gpu0=NotSupported("no root", "Be root"), gpu2=NotSupported("no root", "Be root")
    )
    plugin = follow(driver, shared("Long"), "none")
    eventually(
        lambda: told(plugin) == "Long on GPU 1; not set on GPUs 0, 2 to Long: no root. Be root"
    )
    eventually(lambda: plugin.ready)
    assert plugin.devices(RESOURCE) == 12
    asked = list(driver.asked)
    assert sorted(asked) == [(0, LONG), (1, LONG), (2, LONG)]
    plugin.rewrite(shared("Long", replicas=5))
    eventually(lambda: plugin.devices(RESOURCE) == 15)
    assert driver.asked == asked, "nothing has changed for it"
    plugin.rewrite(shared("Short", replicas=5))
    eventually(lambda: len(driver.asked) == 6)
    plugin.stop()
    assert driver.asked[6:] == [(1, DEFAULT)]


def test_a_gpu_that_is_lost_meanwhile_does_not_keep_the_others_waiting(follow: Follow) -> None:
    driver = Refusing()
    driver.refusals[0] = GpuLost(driver.listed[0].uuid)
    plugin = follow(driver, shared("Long"), "none")
    eventually(lambda: told(plugin).startswith("Long on GPUs 1, 2; not set on GPU 0"))
    assert plugin.ready


# Claims: the same, by their GpuConfig


def asking(interval: str) -> list[dict[str, object]]:
    """The configuration of an allocated claim that asks for time slices of this length."""
    parameters = {
        "apiVersion": "resource.nvidia.com/v1beta1",
        "kind": "GpuConfig",
        "sharing": {"strategy": "TimeSlicing", "timeSlicingConfig": {"interval": interval}},
    }
    opaque = {"driver": DRIVER, "parameters": parameters}
    return [{"source": "FromClaim", "requests": [], "opaque": opaque}]


def shared_file(folder: Path, interval: str) -> Path:
    file = folder / "config.yaml"
    file.write_text(shared(interval))
    return file


def test_a_claim_has_its_time_slice_and_afterwards_the_gpu_has_the_usual_one(
    node: DraNode, make_hardware: MakeHardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuplugin.kubelet.draplugin.WAIT_S", 1.0)
    hardware = make_hardware(2)
    file = shared_file(node.folder, "Medium")
    with node.plugin(hardware.backend, config_file=file) as plugin:
        eventually(lambda: levels(hardware) == [TimeSliceLevel.MEDIUM] * 2)
        device = node.device(0)
        number = hardware.uuids.index(device["attributes"]["uuid"]["string"])
        long = node.allocate(device, config=asking("Long"))
        same = node.allocate(device, config=asking("Long"))
        short = node.allocate(device, config=asking("Short"))
        plain = node.allocate(device)
        with node.connect() as kubelet:
            eventually(lambda: plugin.ready)
            for one in (long, same, plain):
                kubelet.prepared(one)
            assert levels(hardware)[number] is LONG
            refused = kubelet.prepare(short)[short.uid].error
            assert "its time slice is Long for claim default/" in refused
            assert kubelet.unprepare(long, short) == {long.uid: "", short.uid: ""}
            assert levels(hardware)[number] is LONG, "another claim asks for it"
            kubelet.unprepare(same)
            eventually(lambda: levels(hardware) == [TimeSliceLevel.MEDIUM] * 2)
            kubelet.prepared(short)
            assert levels(hardware)[number] is SHORT
    assert levels(hardware)[number] is SHORT, "an instance that follows may serve already"


def test_where_it_is_not_permitted_a_claim_is_refused_with_the_reason(node: DraNode) -> None:
    driver = Refusing(gpu0=NotSupported("no root", "Be root"))
    file = shared_file(node.folder, "Default")
    with node.plugin(driver, config_file=file) as plugin:
        eventually(lambda: len(node.devices()) == 3)
        uuid = driver.listed[0].uuid
        (device,) = [one for one in node.devices() if one["attributes"]["uuid"]["string"] == uuid]
        claim, plain = node.allocate(device, config=asking("Long")), node.allocate(device)
        with node.connect() as kubelet:
            eventually(lambda: plugin.ready)
            assert "no root. Be root" in kubelet.prepare(claim)[claim.uid].error
            assert kubelet.unprepare(claim) == {claim.uid: ""}
            kubelet.prepared(plain)
