"""The driver and the node as a whole: versions, process names, units."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.nvml.abi import COUNT, U32, Device, Function, Source, array, out, text_out
from sim.nvml.codes import Code, NvmlFailure

if TYPE_CHECKING:
    from sim.nvml.call import Call

CPUS_PER_NUMA_NODE = 32
"""Assumed: how many CPUs belong to each NUMA node of a simulated node."""

_CUDA_OF_DRIVER = {525: 12000, 535: 12020, 550: 12040, 560: 12060, 570: 12080, 580: 13000}
"""The CUDA version that the branches of the driver support, as nvidia-smi prints it."""


def _driver_version(call: Call) -> str:
    return call.node.scenario.driver_version


def _cuda_version(call: Call) -> int:
    branch = int(_driver_version(call).partition(".")[0])
    known = [version for since, version in _CUDA_OF_DRIVER.items() if since <= branch]
    return max(known, default=11000)


def _nvml_version(call: Call) -> str:
    return f"{_cuda_version(call) // 1000}.{_driver_version(call)}"


def _process_name(call: Call) -> str:
    (pid, length) = call.numbers
    for gpu in call.node.present:
        for process in gpu.processes():
            if call.pids.shown(process.pid) == pid:
                # A name that is too long is cut off, as the real library does.
                return process.name.encode()[: length - 1].decode(errors="ignore")
    raise NvmlFailure(Code.NOT_FOUND)


def _gpus_near_cpu(call: Call) -> list[int]:
    numa_node = call.numbers[0] // CPUS_PER_NUMA_NODE
    return [
        call.handle_of_gpu(gpu) for gpu in call.node.present if gpu.identity.numa_node == numa_node
    ]


FUNCTIONS = (
    Function("nvmlSystemGetDriverVersion", (text_out(1), U32), Source.CONSTANT, _driver_version),
    Function("nvmlSystemGetNVMLVersion", (text_out(1), U32), Source.CONSTANT, _nvml_version),
    *(
        Function(name, (out(),), Source.CONSTANT, _cuda_version)
        for name in ("nvmlSystemGetCudaDriverVersion", "nvmlSystemGetCudaDriverVersion_v2")
    ),
    Function(
        "nvmlSystemGetProcessName",
        (U32, text_out(2), U32),
        Source.LIVE,
        _process_name,
        "the tenant's name",
    ),
    Function(
        "nvmlSystemGetTopologyGpuSet",
        (U32, COUNT, array(Device, 1, asks=True)),
        Source.ASSUMED,
        _gpus_near_cpu,
        f"{CPUS_PER_NUMA_NODE} CPUs for each NUMA node",
    ),
    Function("nvmlUnitGetCount", (out(),), Source.CONSTANT, lambda _: 0, "0"),
    Function("nvmlGetExcludedDeviceCount", (out(),), Source.CONSTANT, lambda _: 0, "0"),
)
