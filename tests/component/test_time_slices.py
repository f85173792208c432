"""The length of time slices: set on GPUs that are shared, and put back when it is not wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hal import GpuLost, HalError, NotSupported, TimeSliceLevel
from sim.gpu.faults import LostFault
from sim.node.realtime import SimBackend
from tests.component.fakedriver import FakeDriver
from tests.component.running import RESOURCE
from tests.component.waiting import eventually

if TYPE_CHECKING:
    from tests.component.conftest import MakeHardware
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
