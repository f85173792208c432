"""Which GPUs there are and what they are; the driver and the node as a whole."""

from __future__ import annotations

import ctypes
import hashlib
import re
import uuid as uuids
from typing import TYPE_CHECKING

import pynvml

from hal.nvml.api import Code
from sim.nvml.abi import (
    COUNT,
    DEVICE,
    TEXT,
    U32,
    Device,
    Function,
    PciInfoV1,
    Source,
    array,
    out,
    out_by,
    pci_info,
    pci_info_v1,
    pci_info_v2,
    text_out,
    versioned,
)
from sim.nvml.call import NvmlCall, NvmlFailure, choice, known

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim.gpu.gpu import SimulatedGpu


CPUS_PER_NUMA_NODE = 32
"""Assumed: how many CPUs belong to each NUMA node of a simulated node."""

_ARCHITECTURES = {"Turing": 6, "Ampere": 7, "Ada Lovelace": 8, "Ada": 8, "Hopper": 9}
_BLACKWELL = 10
_BRAND_GEFORCE, _BRAND_NVIDIA = 5, 14
_CORES_PER_SM = {(7, 5): 64, (8, 0): 64}
"""From the CUDA programming guide; 128 for later ones."""

_BUS_ID = re.compile(
    r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})(?:\.([0-7]))?", re.IGNORECASE
)
_ULONG_BITS = 64


def is_geforce(gpu: SimulatedGpu) -> bool:
    """True for boards that are not for data centres."""
    return "GeForce" in gpu.profile.product


def serial(gpu: SimulatedGpu) -> str:
    if is_geforce(gpu):
        raise NvmlFailure(Code.NOT_SUPPORTED)
    digest = hashlib.sha256(gpu.identity.uuid.encode()).digest()
    return f"{int.from_bytes(digest[:8], 'big') % 10**13:013d}"


def architecture(gpu: SimulatedGpu) -> int:
    return _ARCHITECTURES.get(gpu.profile.architecture, _BLACKWELL)


def _by_index(call: NvmlCall) -> int:
    (index,) = call.numbers
    if index >= len(call.node.present):
        raise NvmlFailure(Code.INVALID_ARGUMENT)
    return _handle(call, call.node.present[index])


def _handle(call: NvmlCall, gpu: SimulatedGpu) -> int:
    if gpu.lost:
        raise NvmlFailure(Code.GPU_IS_LOST)
    return call.handle_of_gpu(gpu)


def _first(call: NvmlCall, wanted: Callable[[SimulatedGpu], int | None]) -> int:
    """The handle that `wanted` finds; a lost GPU cannot be identified."""
    for gpu in call.node.present:
        if gpu.lost:
            raise NvmlFailure(Code.GPU_IS_LOST)
        found = wanted(gpu)
        if found is not None:
            return found
    raise NvmlFailure(Code.NOT_FOUND)


def _of_uuid(call: NvmlCall, uuid: str) -> int:
    def wanted(gpu: SimulatedGpu) -> int | None:
        if gpu.identity.uuid == uuid:
            return call.handle_of_gpu(gpu)
        if any(device.uuid == uuid for device in gpu.identity.mig_devices):
            return call.handles.of(("mig", uuid))
        return None

    return _first(call, wanted)


def _by_uuid_v(call: NvmlCall) -> int:
    asked = call.structure(pynvml.c_nvmlUUID_t)
    kind = choice(asked.type, pynvml.NVML_UUID_TYPE_ASCII, pynvml.NVML_UUID_TYPE_BINARY)
    if kind == pynvml.NVML_UUID_TYPE_ASCII:
        return _of_uuid(call, asked.value.str.decode("utf-8", "replace"))
    plain = uuids.UUID(bytes=bytes(asked.value.bytes))
    try:
        return _of_uuid(call, f"GPU-{plain}")
    except NvmlFailure as failure:
        if failure.code is not Code.NOT_FOUND:
            raise
        return _of_uuid(call, f"MIG-{plain}")


def _by_serial(call: NvmlCall) -> int:
    def wanted(gpu: SimulatedGpu) -> int | None:
        same = not is_geforce(gpu) and serial(gpu) == call.texts[0]
        return call.handle_of_gpu(gpu) if same else None

    return _first(call, wanted)


def _by_bus_id(call: NvmlCall) -> int:
    match = _BUS_ID.fullmatch(call.texts[0])
    if match is None:
        raise NvmlFailure(Code.INVALID_ARGUMENT)
    domain, bus, device = (int(part or "0", 16) for part in match.groups()[:3])
    wanted = f"{domain:08X}:{bus:02X}:{device:02X}.{match[4] or 0}"
    for gpu in call.node.present:
        if gpu.identity.pci_bus_id == wanted:
            return _handle(call, gpu)
    raise NvmlFailure(Code.NOT_FOUND)


def _uuid(call: NvmlCall) -> str:
    return call.gpu.identity.uuid if call.mig is None else call.mig.uuid


def _name(call: NvmlCall) -> str:
    product = call.gpu.identity.product
    return product if call.mig is None else f"{product} MIG {call.mig.profile}"


def _capability(call: NvmlCall) -> tuple[int, int]:
    major, minor = call.profile.compute_capability
    return major, minor


def _cores(call: NvmlCall) -> int:
    per_sm = _CORES_PER_SM.get(call.profile.compute_capability, 128)
    return known(call.profile.sm_count) * per_sm


def _board_id(call: NvmlCall) -> int:
    domain, bus, _ = call.gpu.identity.pci_bus_id.split(":")
    return int(domain, 16) << 16 | int(bus, 16) << 8


def _cpus(call: NvmlCall) -> list[int]:
    node = known(call.gpu.identity.numa_node)
    bits = ((1 << CPUS_PER_NUMA_NODE) - 1) << (node * CPUS_PER_NUMA_NODE)
    return _words(bits, call.numbers[0])


def _memory_nodes(call: NvmlCall) -> list[int]:
    return _words(1 << known(call.gpu.identity.numa_node), call.numbers[0])


def _words(bits: int, count: int) -> list[int]:
    """A set of bits as unsigned longs, lowest first."""
    most = min(count, bits.bit_length() // _ULONG_BITS + 1)
    return [bits >> _ULONG_BITS * word & (1 << _ULONG_BITS) - 1 for word in range(most)]


def _pci(
    make: Callable[[str, int | None], ctypes.Structure],
) -> Callable[[NvmlCall], ctypes.Structure]:
    return lambda call: make(call.gpu.identity.pci_bus_id, call.profile.pci_device_id)


_LIVE, _CONSTANT, _ASSUMED = Source.LIVE, Source.CONSTANT, Source.ASSUMED

FUNCTIONS = (
    *(
        Function(name, (out(),), _LIVE, lambda call: len(call.node.present), "lost ones included")
        for name in ("nvmlDeviceGetCount", "nvmlDeviceGetCount_v2")
    ),
    *(
        Function(name, (U32, out(Device)), _LIVE, _by_index)
        for name in ("nvmlDeviceGetHandleByIndex", "nvmlDeviceGetHandleByIndex_v2")
    ),
    Function(
        "nvmlDeviceGetHandleByUUID",
        (TEXT, out(Device)),
        _LIVE,
        lambda call: _of_uuid(call, call.texts[0]),
        "fails if a GPU before it is lost",
    ),
    Function(
        "nvmlDeviceGetHandleByUUIDV",
        (versioned((pynvml.nvmlUUID_v1, pynvml.c_nvmlUUID_t)), out(Device)),
        _LIVE,
        lambda call: (call.structure(pynvml.c_nvmlUUID_t), _by_uuid_v(call)),
    ),
    Function("nvmlDeviceGetHandleBySerial", (TEXT, out(Device)), _LIVE, _by_serial),
    *(
        Function(name, (TEXT, out(Device)), _LIVE, _by_bus_id)
        for name in ("nvmlDeviceGetHandleByPciBusId", "nvmlDeviceGetHandleByPciBusId_v2")
    ),
    Function("nvmlDeviceGetUUID", (DEVICE, text_out(2), U32), _LIVE, _uuid, mig=True),
    Function("nvmlDeviceGetName", (DEVICE, text_out(2), U32), _CONSTANT, _name, mig=True),
    Function(
        "nvmlDeviceGetSerial",
        (DEVICE, text_out(2), U32),
        _ASSUMED,
        lambda call: serial(call.gpu),
        "made from the UUID; none on GeForce",
    ),
    Function(
        "nvmlDeviceGetIndex",
        (DEVICE, out()),
        _CONSTANT,
        lambda call: call.gpu.identity.index if call.mig is None else call.mig.index,
        mig=True,
    ),
    Function(
        "nvmlDeviceGetMinorNumber",
        (DEVICE, out()),
        _CONSTANT,
        lambda call: known(call.gpu.identity.minor),
        mig=True,
    ),
    Function(
        "nvmlDeviceGetBrand",
        (DEVICE, out()),
        _CONSTANT,
        lambda call: _BRAND_GEFORCE if is_geforce(call.gpu) else _BRAND_NVIDIA,
    ),
    Function(
        "nvmlDeviceGetArchitecture", (DEVICE, out()), _CONSTANT, lambda call: architecture(call.gpu)
    ),
    Function(
        "nvmlDeviceGetCudaComputeCapability",
        (DEVICE, out(), out()),
        _CONSTANT,
        _capability,
        mig=True,
    ),
    Function("nvmlDeviceGetNumGpuCores", (DEVICE, out()), _CONSTANT, _cores),
    Function(
        "nvmlDeviceGetPciInfo_v3", (DEVICE, out(pynvml.nvmlPciInfo_t)), _CONSTANT, _pci(pci_info)
    ),
    Function(
        "nvmlDeviceGetPciInfo_v2",
        (DEVICE, out(pynvml.nvmlPciInfo_v2_t)),
        _CONSTANT,
        _pci(pci_info_v2),
    ),
    Function("nvmlDeviceGetPciInfo", (DEVICE, out(PciInfoV1)), _CONSTANT, _pci(pci_info_v1)),
    Function("nvmlDeviceGetBoardId", (DEVICE, out()), _CONSTANT, _board_id, "made from the bus"),
    *(
        Function(name, (DEVICE, out()), _CONSTANT, lambda _: 0, "0", mig=mig)
        for name, mig in (
            ("nvmlDeviceGetMultiGpuBoard", False),
            ("nvmlDeviceGetDisplayMode", False),
            ("nvmlDeviceGetDisplayActive", False),
            ("nvmlDeviceGetVirtualizationMode", False),
            ("nvmlDeviceGetAccountingMode", True),
            ("nvmlDeviceGetComputeMode", True),
        )
    ),
    Function("nvmlDeviceGetPersistenceMode", (DEVICE, out()), _CONSTANT, lambda _: 1, "on", True),
    Function("nvmlDeviceOnSameBoard", (DEVICE, DEVICE, out()), _CONSTANT, lambda _: 0, "0"),
    Function(
        "nvmlDeviceGetCpuAffinity",
        (DEVICE, U32, out_by(ctypes.c_uint64, 1)),
        _ASSUMED,
        _cpus,
        f"{CPUS_PER_NUMA_NODE} CPUs for each NUMA node",
    ),
    Function(
        "nvmlDeviceGetCpuAffinityWithinScope",
        (DEVICE, U32, out_by(ctypes.c_uint64, 1), U32),
        _ASSUMED,
        _cpus,
        "the same for both scopes",
    ),
    Function(
        "nvmlDeviceGetMemoryAffinity",
        (DEVICE, U32, out_by(ctypes.c_uint64, 1), U32),
        _CONSTANT,
        _memory_nodes,
    ),
)


_CUDA_OF_DRIVER = {525: 12000, 535: 12020, 550: 12040, 560: 12060, 570: 12080, 580: 13000}
"""The CUDA version that the branches of the driver support, as nvidia-smi prints it."""


def _driver_version(call: NvmlCall) -> str:
    return call.node.scenario.driver_version


def _cuda_version(call: NvmlCall) -> int:
    branch = int(_driver_version(call).partition(".")[0])
    known = [version for since, version in _CUDA_OF_DRIVER.items() if since <= branch]
    return max(known, default=11000)


def _nvml_version(call: NvmlCall) -> str:
    return f"{_cuda_version(call) // 1000}.{_driver_version(call)}"


def _process_name(call: NvmlCall) -> str:
    (pid, length) = call.numbers
    for gpu in call.node.present:
        for process in gpu.processes():
            if call.pids.shown(process.pid) == pid:
                # A name that is too long is cut off, as the real library does.
                return process.name.encode()[: length - 1].decode(errors="ignore")
    raise NvmlFailure(Code.NOT_FOUND)


def _gpus_near_cpu(call: NvmlCall) -> list[int]:
    numa_node = call.numbers[0] // CPUS_PER_NUMA_NODE
    return [
        call.handle_of_gpu(gpu) for gpu in call.node.present if gpu.identity.numa_node == numa_node
    ]


SYSTEM_FUNCTIONS = (
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
