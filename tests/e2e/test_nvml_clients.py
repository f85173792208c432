"""Tools that know NVML see a simulated node as if it were real: nothing in them is changed."""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.conftest import DEADLINE_S, eventually
from tests.e2e.served import ServedNode

if TYPE_CHECKING:
    from collections.abc import Iterator

SCENARIO = """
gpus: [{model: h100-sxm5-80gb, count: 3}]
tenants:
  - {name: trainer, gpu: 0, utilization: 0.6, memory_gib: 30}
  - {name: chat, gpu: 0, utilization: 0.2, memory_gib: 10}
  - {name: notebook, gpu: 2, utilization: 0.1, memory_gib: 2}
"""
TENANTS = [[("trainer", 30 * 1024), ("chat", 10 * 1024)], [], [("notebook", 2 * 1024)]]
"""Name and memory in MiB of each GPU's tenants."""
LOST = 2
PRODUCT = "NVIDIA H100 80GB HBM3"
NVML = """
import json
import pynvml as nvml
nvml.nvmlInit()
found = []
for index in range(nvml.nvmlDeviceGetCount()):
    try:
        gpu = nvml.nvmlDeviceGetHandleByIndex(index)
        found.append([
            [nvml.nvmlSystemGetProcessName(one.pid), one.usedGpuMemory // 2**20]
            for one in nvml.nvmlDeviceGetComputeRunningProcesses(gpu)
        ])
    except nvml.NVMLError_GpuIsLost as error:
        found.append(str(error))
print(json.dumps(found))
"""
NVITOP = """
import json
from nvitop import Device
print(json.dumps([
    [
        device.index,
        device.name(),
        device.uuid(),
        sorted((one.command(), one.gpu_memory() // 2**20) for one in device.processes().values()),
    ]
    for device in Device.all()
]))
"""


@contextmanager
def _serving() -> Iterator[ServedNode]:
    """A node with three GPUs and tenants that are real processes."""
    with TemporaryDirectory(prefix="gp") as folder:
        scenario = Path(folder) / "scenario.yaml"
        scenario.write_text(SCENARIO)
        arguments = ("--scenario", str(scenario), "--processes")
        with ServedNode(Path(folder), *arguments) as process:
            # A stand-in bears its name a moment after it is started.
            eventually(lambda: _names(process) == [["trainer", "chat"], [], ["notebook"]], "names")
            yield process


@pytest.fixture(scope="module")
def sound() -> Iterator[ServedNode]:
    """A node that is well, for tests that only look."""
    with _serving() as process:
        yield process


@pytest.fixture(scope="module")
def maimed() -> Iterator[ServedNode]:
    """One that lost a GPU, for tests that only look."""
    with _serving() as process:
        process.node.inject("--gpu", str(LOST), "--xid", "79")
        yield process


def _json(served: ServedNode, program: str, *arguments: str) -> Any:
    done = served.run(program, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _names(served: ServedNode) -> list[list[str]]:
    """The programs on each GPU as /proc has them, in the order in which the node started them."""
    found: list[list[str]] = []
    for gpu in _json(served, "gpustat", "--json")["gpus"]:
        processes = sorted(gpu["processes"], key=lambda one: -one["gpu_memory_usage"])
        found.append([one["command"] for one in processes])
    return found


def _expected() -> list[list[list[object]]]:
    """The tenants of each GPU as JSON has them."""
    return [[list(one) for one in sorted(gpu)] for gpu in TENANTS]


def test_nvidia_ml_py_lists_gpus_and_tenants(sound: ServedNode) -> None:
    assert [sorted(gpu) for gpu in _json(sound, "python", "-c", NVML)] == _expected()


def test_nvidia_ml_py_meets_a_lost_gpu(maimed: ServedNode) -> None:
    gpus = _json(maimed, "python", "-c", NVML)
    assert gpus[LOST] == "GPU is lost"
    assert [sorted(gpu) for gpu in gpus[:LOST]] == _expected()[:LOST]


def test_gpustat_lists_gpus_and_tenants(sound: ServedNode) -> None:
    gpus = _json(sound, "gpustat", "--json")["gpus"]
    assert [gpu["index"] for gpu in gpus] == [0, 1, 2]
    assert [gpu["name"] for gpu in gpus] == [PRODUCT] * 3
    for gpu, tenants in zip(gpus, TENANTS, strict=True):
        shown = {(one["command"], one["gpu_memory_usage"]) for one in gpu["processes"]}
        assert shown == set(tenants)
        assert sum(memory for _, memory in tenants) <= gpu["memory.used"] < gpu["memory.total"]
        assert all(Path(f"/proc/{one['pid']}").exists() for one in gpu["processes"])
    (first, *_) = sound.run("gpustat", "--no-color", "--no-header", "--show-cmd").stdout.split("\n")
    assert "80 %" in first
    assert "trainer" in first


def test_gpustat_shows_a_lost_gpu(maimed: ServedNode) -> None:
    gpus = _json(maimed, "gpustat", "--json")["gpus"]
    assert gpus[LOST]["name"] == "((GPU is lost))"
    assert [gpu["name"] for gpu in gpus[:LOST]] == [PRODUCT] * LOST
    assert "GPU is lost" in maimed.run("gpustat", "--no-color").stdout


def test_nvitop_lists_gpus_and_tenants(sound: ServedNode) -> None:
    gpus = _json(sound, "python", "-c", NVITOP)
    assert [gpu[:2] for gpu in gpus] == [[number, PRODUCT] for number in range(3)]
    known = _json(sound, "gpustat", "--json")["gpus"]
    assert [gpu[2] for gpu in gpus] == [gpu["uuid"] for gpu in known]
    assert [gpu[3] for gpu in gpus] == _expected()
    text = sound.run("nvitop", "--once").stdout
    assert all(name in text for gpu in TENANTS for name, _ in gpu)
    assert "GPU is Lost" not in text


def test_nvitop_shows_a_lost_gpu(maimed: ServedNode) -> None:
    text = maimed.run("nvitop", "-1").stdout
    assert "GPU is Lost" in text
    assert "trainer" in text
    assert "notebook" not in text


def _smi(served: ServedNode, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`nvidia-smi` as a shell finds it on the PATH that `sim env` exports."""
    return subprocess.run(
        ["nvidia-smi", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=served.env,
        timeout=DEADLINE_S,
        check=False,
    )


def test_nvidia_smi_lists_gpus_and_tenants(sound: ServedNode) -> None:
    lines = _smi(sound, "-L").stdout.splitlines()
    assert [line.partition(" (")[0] for line in lines] == [
        f"GPU {number}: {PRODUCT}" for number in range(3)
    ]
    query = "--query-compute-apps=process_name,used_memory"
    rows = _smi(sound, query, "--format=csv,noheader,nounits").stdout.splitlines()
    expected = [f"{name}, {memory}" for gpu in TENANTS for name, memory in gpu]
    assert sorted(rows) == sorted(expected)


def test_nvidia_smi_sets_time_slices_and_refuses_to_reset_what_is_in_use(
    sound: ServedNode,
) -> None:
    uuid = _smi(sound, "--query-gpu=uuid", "--format=csv,noheader", "-i", "1").stdout.strip()
    done = _smi(sound, "compute-policy", "-i", uuid, "--set-timeslice=2")
    assert done.returncode == 0, done.stdout
    listed = _smi(sound, "compute-policy", "--list").stdout
    assert [line.split()[3] for line in listed.splitlines() if "Timeslice" in line] == [
        *("Default", "Medium", "Default"),
    ]
    assert _smi(sound, "-r", "-i", "0").returncode == 19
    assert "successfully reset" in _smi(sound, "-r", "-i", "1").stdout


def test_nvidia_smi_meets_a_lost_gpu(maimed: ServedNode) -> None:
    done = _smi(maimed)
    assert done.returncode == 15
    assert "GPU is lost" in done.stdout
    assert _smi(maimed, "-i", "0,1").returncode == 0
