"""Programs that others wrote, unmodified, on a simulated node: each with what it is known for.

Those that are not installed are skipped: docs/nvml.md has the versions that were tried.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.conftest import DEADLINE_S, Process, eventually
from tests.e2e.served import ServedNode

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

A100, H100 = 0, 2
SCENARIO = """
gpus: [{model: a100-sxm4-80gb, count: 2}, {model: h100-sxm5-80gb}]
tenants: [{name: trainer, gpu: 0, utilization: 0.6, memory_gib: 30}]
"""
MIG = """
version: v1
mig-configs:
  wanted:
    - {devices: [0], mig-enabled: false}
    - devices: [1, 2]
      mig-enabled: true
      mig-devices: {"1g.10gb": 2, "2g.20gb": 1, "3g.40gb": 1}
"""
CODECARBON = """
import json, time
from codecarbon.core.gpu import AllGPUDevices
from codecarbon.core.units import Time
gpus = AllGPUDevices()
gpus.start()
time.sleep(1)
(first, *_) = gpus.get_delta(Time(1))
print(json.dumps([len(gpus.devices), first["name"], first["power_usage"].kW]))
"""
ZEUS = """
import json, time
from zeus.device.gpu import get_gpus
gpus = get_gpus()
before = gpus.get_total_energy_consumption(0)
time.sleep(1)
used = gpus.get_total_energy_consumption(0) - before
powers = [gpus.get_average_power_usage(2), gpus.get_average_memory_power_usage(2)]
gpus.set_power_management_limit(2, 350000)
print(json.dumps([used, powers, gpus.get_power_management_limit(2)]))
"""
PLUGIN = (
    "mount -t tmpfs none /var/lib && mkdir /var/lib/kubelet && "
    'mount --bind "$1" /var/lib/kubelet && exec nvidia-device-plugin'
)


@pytest.fixture(scope="module")
def node() -> Iterator[ServedNode]:
    with ExitStack() as stack:
        yield serve(stack, SCENARIO)


def serve(stack: ExitStack, scenario: str) -> ServedNode:
    """A node of this scenario, with tenants that are processes."""
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="gp")))
    file = folder / "scenario.yaml"
    file.write_text(scenario)
    return stack.enter_context(ServedNode(folder, "--scenario", str(file), "--processes"))


def run(node: ServedNode, *command: str) -> str:
    """The output of a program in the environment of `sim env`."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**node.env, "TERM": "dumb"},
        timeout=DEADLINE_S * 3,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python(node: ServedNode, package: str, program: str) -> Any:
    """What a program of this Python prints as its last line, in JSON."""
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    return json.loads(run(node, sys.executable, "-c", program).splitlines()[-1])


def installed(program: str) -> str:
    beside = Path(sys.executable).parent / program
    found = str(beside) if beside.is_file() else shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def mounted(node: ServedNode) -> list[str]:
    """The beginning of a command that runs with everything in its real place."""
    command = [sys.executable, "-m", "gpuplugin", "sim", "env", "--kubelet-dir", str(node.node.dir)]
    command += ["--mount", "--"]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(tried.stderr.strip())
    return command


def test_glances_shows_load_and_memory(node: ServedNode) -> None:
    text = run(node, installed("glances"), "--stdout", "gpu", "--stop-after", "2")
    assert "'name': 'NVIDIA A100-SXM4-80GB'" in text
    assert "'proc': 60" in text
    assert "'gpu_id': 'nvidia2'" in text


def test_py3nvml_shows_gpus_and_their_processes(node: ServedNode) -> None:
    text = run(node, installed("py3smi"), "-w", "120")
    assert "320W / 500W" in text
    assert "60%" in text
    assert "trainer" in text


def test_nvtop_shows_gpus_and_their_processes(node: ServedNode) -> None:
    gpus = json.loads(run(node, installed("nvtop"), "-s"))
    first = gpus[A100]
    assert (first["device_name"], first["gpu_util"]) == ("NVIDIA A100-SXM4-80GB", "60%")
    (process,) = first["processes"]
    assert (process["cmdline"].strip(), process["kind"]) == ("trainer", "compute")


def test_codecarbon_measures_energy(node: ServedNode) -> None:
    count, name, power_kw = python(node, "codecarbon", CODECARBON)
    assert (count, name) == (3, "NVIDIA A100-SXM4-80GB")
    assert 0.25 < power_kw < 0.4


def test_zeus_tells_the_memorys_power_from_the_boards(node: ServedNode) -> None:
    used_mj, (board_mw, memory_mw), limit_mw = python(node, "zeus", ZEUS)
    assert 250_000 < used_mj < 700_000
    assert 0 < memory_mw < board_mw
    assert limit_mw == 350_000


def test_gpu_feature_discovery_labels_the_node(node: ServedNode, tmp_path: Path) -> None:
    program = installed("gpu-feature-discovery")
    labels = tmp_path / "labels"
    run(
        node,
        *(*mounted(node), program, "--oneshot", "--use-node-feature-api=false"),
        *("--mig-strategy", "none", "--output-file", str(labels)),
    )
    found = dict(line.split("=", 1) for line in labels.read_text().splitlines())
    assert found["nvidia.com/cuda.driver-version.full"] == "580.105.08"
    assert found["nvidia.com/gpu.mode"] == "compute"
    assert found["nvidia.com/mig.capable"] == "true"


def test_mig_parted_applies_a_partition(tmp_path: Path) -> None:
    program = installed("nvidia-mig-parted")
    if not Path("/proc/modules").exists():
        pytest.skip("this kernel has no /proc/modules, which mig-parted reads")
    config = tmp_path / "mig.yaml"
    config.write_text(MIG)
    with ExitStack() as stack:
        node = serve(stack, SCENARIO)
        for verb in ("apply", "assert"):
            run(node, *mounted(node), program, verb, "-f", str(config), "-c", "wanted")
        devices = [line for line in run(node, "nvidia-smi", "-L").splitlines() if " MIG " in line]
        assert len(devices) == 8


def test_nvidias_plugin_gives_out_two_gpus_behind_switches() -> None:
    """It looks at the links of whole GPUs, which once led to a GPU instead of a switch."""
    program = installed("nvidia-device-plugin")
    with ExitStack() as stack:
        node = serve(stack, "gpus: [{model: a100-sxm4-40gb, count: 8}]")
        folder = str(node.node.dir)
        stack.enter_context(Process("sim", "kubelet", "--kubelet-dir", folder))
        path = f"{Path(program).parent}{os.pathsep}{node.env['PATH']}"
        plugin = subprocess.Popen(
            [*mounted(node), "sh", "-c", PLUGIN, "sh", folder],
            env={**node.env, "PATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(plugin.wait)
        stack.callback(plugin.terminate)
        gpuplugin = (sys.executable, "-m", "gpuplugin", "sim")
        at = ("--kubelet-dir", folder)
        eventually(lambda: "  8  " in run(node, *gpuplugin, "node", "show", *at), "eight GPUs")
        text = run(node, *gpuplugin, "pod", "create", *at, "two", "--limit", "nvidia.com/gpu=2")
        assert "two Running" in text
        assert text.count("GPU-") == 2
        assert plugin.poll() is None
