"""`gpuplugin sim inject` as a process, and what the node behind its control socket shows then."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hal import DriverUnavailable, EccError, GpuState, RecoveryAction, XidError
from sim.node.control import serve_control, status
from sim.node.node import SimulatedNode
from sim.node.realtime import RealTimeNode, SimBackend
from sim.node.scenario import parse_scenario
from tests.e2e.conftest import eventually, gpuplugin

if TYPE_CHECKING:
    from collections.abc import Iterator

SCENARIO = "gpus: [{model: h100-sxm5-80gb, mig: [1g.10gb, 1g.10gb]}, {model: h100-sxm5-80gb}]"


class Target:
    """A simulated node in this process; its model time does not go on."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.model = SimulatedNode(parse_scenario(SCENARIO, "target"))
        self.node = RealTimeNode(self.model)
        self.hal = SimBackend(self.node)
        self.server = serve_control(self.node, socket)
        self.uuids = tuple(gpu.uuid for gpu in self.hal.gpus())

    def inject(self, *arguments: str) -> str:
        """Inject; returns what was printed."""
        result = gpuplugin("sim", "inject", "--control", str(self.socket), *arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def refuse(self, *arguments: str, status: int = 1) -> str:
        """Try to inject; returns the error."""
        result = gpuplugin("sim", "inject", "--control", str(self.socket), *arguments)
        assert result.returncode == status, result.stdout + result.stderr
        assert result.stdout == ""
        return result.stderr


@pytest.fixture
def target() -> Iterator[Target]:
    folder = Path(tempfile.mkdtemp(prefix="gp"))
    target = Target(folder / "sim.sock")
    yield target
    target.server.close()
    shutil.rmtree(folder)


def test_errors_of_a_gpu(target: Target) -> None:
    first, second = target.uuids
    device = target.hal.gpus()[0].mig_devices[1]

    said = target.inject("--gpu", "0", "--xid", "31", "--mig", "1")
    assert said == (
        f"GPU 0 ({first}): MIG device 1: Xid 31, GPU memory page fault (action: restart-app)\n"
    )
    target.inject("--gpu", second, "--ecc", "uncorrectable", "--count", "3")
    target.inject("--gpu", "1", "--row-remap", "pending")
    target.inject("--gpu", "0", "--row-remap", "failed")

    assert target.hal.wait_events(0) == (
        XidError(first, 31, device.gpu_instance, device.compute_instance),
        EccError(second, uncorrectable=True),
    )
    probe, other = target.hal.probe(first), target.hal.probe(second)
    assert (probe.row_remap_failed, probe.row_remap_pending) == (True, False)
    assert (other.row_remap_failed, other.row_remap_pending) == (False, True)
    assert other.uncorrectable_ecc == 3


def test_gpus_that_go_come_and_change(target: Target) -> None:
    first, second = target.uuids

    target.inject("--gpu", "1", "--unplug")
    assert target.hal.gpus()[1].state is GpuState.LOST
    assert "GPU 1 is unplugged: plug it" in target.refuse("--gpu", "1", "--recover")
    target.inject("--gpu", "1", "--plug")
    assert target.hal.gpus()[1].state is GpuState.OK

    said = target.inject("--gpu", "1", "--replace")
    new = target.hal.gpus()[1]
    assert said == f"GPU 1 ({second}): taken out, {new.uuid} is in its place\n"
    assert target.hal.gpus()[2].uuid == second
    assert [gpu.uuid for gpu in status(target.socket)] == [first, new.uuid]

    target.inject("--gpu", "0", "--repartition", "3g.40gb,2g.20gb")
    profiles = [device.profile for device in target.hal.gpus()[0].mig_devices]
    assert profiles == ["3g.40gb", "2g.20gb"]
    assert "no MIG profile '9g'" in target.refuse("--gpu", "0", "--repartition", "9g")
    target.inject("--gpu", "0", "--repartition", "none")
    assert not target.hal.gpus()[0].mig_enabled

    target.inject("--gpu", first, "--thermal-shutdown")
    assert target.hal.probe(first).thermal_shutdown


def test_all_gpus_that_it_applies_to(target: Target) -> None:
    target.inject("--gpu", "1", "--unplug")
    said = target.inject("--gpu", "all", "--xid", "95")

    assert re.findall(r"^GPU (\d)", said, re.MULTILINE) == ["0"]
    assert target.hal.probe(target.uuids[0]).recovery_action is RecoveryAction.RESET
    assert "GPU 0 is not unplugged" in target.refuse("--gpu", "0", "--plug")
    target.inject("--gpu", "all", "--plug")
    assert "GPU 0 is not unplugged" in target.refuse("--gpu", "all", "--plug")


def test_hangs_end_by_themselves_or_by_hand(target: Target) -> None:
    first, second = target.uuids
    assert "hangs until it recovers" in target.inject("--gpu", "0", "--hang")
    assert "hangs for 2.5 s" in target.inject("--gpu", "1", "--hang", "2.5")
    with target.node.update() as model:
        assert (model.hangs(first), model.hangs(second)) == (True, True)
        model.advance(2.5)
        assert (model.hangs(first), model.hangs(second)) == (True, False)
    target.inject("--gpu", "0", "--recover")
    assert target.hal.probe(first).clean


def test_the_driver_and_the_watch(target: Target) -> None:
    assert target.inject("--driver", "down") == "the driver is not loaded\n"
    with pytest.raises(DriverUnavailable, match="not loaded"):
        target.hal.gpus()
    target.inject("--driver", "up")
    assert len(target.hal.gpus()) == 2

    target.inject("--driver", "hang", "--for", "60")
    with target.node.update() as model:
        assert model.hangs()
        model.advance(60)
    eventually(lambda: len(target.hal.gpus()) == 2, "the driver answers")

    target.inject("--watch", "broken")
    with pytest.raises(DriverUnavailable, match="wait for events"):
        target.hal.wait_events(0)
    target.inject("--watch", "mended")
    assert target.hal.wait_events(0) == ()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--lost",), "name it with --gpu INDEX, --gpu UUID or --gpu all"),
        (("--gpu", "0", "--driver", "up"), "leave --gpu out"),
        (("--gpu", "0", "--watch", "broken"), "leave --gpu out"),
        (("--gpu", "0", "--lost", "--mig", "0"), "--mig goes with --xid"),
        (("--gpu", "0", "--lost", "--count", "2"), "--count goes with --ecc"),
        (
            ("--driver", "up", "--for", "2"),
            "--for goes with --returns, --driver hang and --watch broken",
        ),
        (("--gpu", "0", "--hang", "--for", "2"), "give the seconds of a hang as --hang SECONDS"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(
    target: Target, arguments: tuple[str, ...], said: str
) -> None:
    error = target.refuse(*arguments, status=2)
    assert "usage: gpuplugin sim inject" in error
    assert said in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--gpu", "0", "--xid", "0"), "this cannot be injected: xid.xid: "),
        (("--gpu", "0", "--hang", "0"), "this cannot be injected: hang.for_s: "),
        (("--gpu", "0", "--hang", "nan"), "this cannot be injected: hang.for_s: "),
        (("--gpu", "0", "--xid", "31", "--mig", "2"), "GPU 0 has no MIG device 2, only 2"),
        (("--gpu", "2", "--lost"), "no GPU has the UUID 2; this node has GPUs 0 to 1"),
    ],
)
def test_what_cannot_be_is_refused(target: Target, arguments: tuple[str, ...], said: str) -> None:
    assert said in target.refuse(*arguments)
