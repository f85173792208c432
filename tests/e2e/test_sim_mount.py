"""`sim env --mount`: any program finds the simulated node in the places of a real one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import DEADLINE_S
from tests.e2e.served import ServedNode

if TYPE_CHECKING:
    from collections.abc import Iterator

SCENARIO = """
gpus: [{model: h100-sxm5-80gb, count: 2}, {model: h100-sxm5-80gb, mig: [3g.40gb]}]
tenants: [{name: trainer, gpu: 0, utilization: 0.5}]
"""
LOOK = r"""
set -e
env -u LD_LIBRARY_PATH PATH=/usr/bin:/bin nvidia-smi -L
cat /proc/driver/nvidia/version
cat /proc/driver/nvidia/gpus/0000:53:00.0/information
cat /sys/bus/pci/devices/0000:53:00.0/vendor /sys/bus/pci/devices/0000:53:00.0/class
readlink -f /sys/bus/pci/devices/0000:53:00.0/driver
cat /sys/module/nvidia/version
grep nvidia /proc/devices
ls /dev/nvidia0 /dev/nvidiactl /dev/nvidia-uvm /dev/nvidia-caps/*
echo words > /dev/null
"""


@pytest.fixture(scope="module")
def node() -> Iterator[ServedNode]:
    with TemporaryDirectory(prefix="gp") as folder:
        scenario = Path(folder) / "scenario.yaml"
        scenario.write_text(SCENARIO)
        with ServedNode(Path(folder), "--scenario", str(scenario)) as process:
            yield process


def _env(
    folder: Path, *arguments: str, before: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """`gpuplugin sim env` with these arguments, perhaps run by another program."""
    return subprocess.run(
        [
            *(*before, sys.executable, "-m", "gpuplugin", "sim", "env"),
            *("--kubelet-dir", str(folder), *arguments),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def _mounted(node: ServedNode, *command: str) -> subprocess.CompletedProcess[str]:
    done = _env(node.node.dir, "--mount", "--", *command)
    if "not permitted here" in done.stderr or "may not mount" in done.stderr:
        pytest.skip(done.stderr.strip())
    return done


def test_everything_is_in_its_real_place(node: ServedNode) -> None:
    done = _mounted(node, "sh", "-c", LOOK)
    assert done.returncode == 0, done.stderr
    text = done.stdout
    for part in (
        "GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-",
        "  MIG 3g.40gb     Device  0: (UUID: MIG-",
        "580.105.08  Release Build",
        "Bus Location: \t 0000:53:00.0",
        "0x10de\n0x030200\n",
        "/bus/pci/drivers/nvidia\n",
        "195 nvidia\n",
        "/dev/nvidia-caps/nvidia-cap1\n",
        "/dev/nvidia-caps/nvidia-cap282\n",
    ):
        assert part in text, part


def test_nothing_outside_changes(node: ServedNode) -> None:
    places = ("/dev/nvidiactl", "/usr/bin/nvidia-smi", "/proc/driver/nvidia")
    before = [Path(place).exists() for place in places]
    assert _mounted(node, "true").returncode == 0
    assert [Path(place).exists() for place in places] == before
    assert list((node.node.dir / "gpuplugin-sim-kernel/work").iterdir()) == []


def test_the_status_is_that_of_the_command(node: ServedNode) -> None:
    assert _mounted(node, "sh", "-c", "exit 7").returncode == 7
    missing = _mounted(node, "/no/such/program")
    assert (missing.returncode, "cannot be run" in missing.stderr) == (1, True)
    assert _env(node.node.dir, "--", "nvidia-smi", "-L").stdout.startswith("GPU 0: ")


def test_what_cannot_be_done_is_said(node: ServedNode, tmp_path: Path) -> None:
    bare = _env(node.node.dir, "--mount")
    assert (bare.returncode, "--mount needs a command" in bare.stderr) == (1, True)
    nowhere = _env(tmp_path, "--mount", "--", "true")
    assert (nowhere.returncode, "nobody answers" in nowhere.stderr) == (1, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up a capability here")
def test_without_the_right_to_mount_a_user_namespace_does_it(node: ServedNode) -> None:
    without = ("setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin")
    done = _env(node.node.dir, "--mount", "--", "nvidia-smi", "-L", before=without)
    if "not permitted here" in done.stderr:
        assert "leave --mount out" in done.stderr
        pytest.skip(done.stderr.strip())
    assert done.stdout.startswith("GPU 0: "), done.stderr
