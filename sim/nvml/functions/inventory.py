"""Which GPUs there are and what they are; the driver and the node as a whole."""

from __future__ import annotations

import ctypes
import hashlib
import re
import uuid as uuids
from typing import TYPE_CHECKING, ClassVar

import pynvml

from hal import ComputeMode
from hal.nvml.api import Code
from sim.nvml.abi import (
    ASSUMED,
    CONSTANT,
    COUNT,
    DEVICE,
    LIVE,
    TEXT,
    U32,
    Device,
    Functions,
    PciInfoV1,
    array,
    out,
    out_by,
    pci_info,
    pci_info_v1,
    pci_info_v2,
    text_out,
    version,
    versioned,
)
from sim.nvml.call import NvmlCall, NvmlFailure, choice, known

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim.gpu.gpu import SimulatedGpu


function, system = Functions(), Functions()

CPUS_PER_NUMA_NODE = 32
"""Assumed: how many CPUs belong to each NUMA node of a simulated node."""
_CPUS_NOTE = f"{CPUS_PER_NUMA_NODE} CPUs for each NUMA node"

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


@function(LIVE, "nvmlDeviceGetHandleByIndex nvmlDeviceGetHandleByIndex_v2", U32, out(Device))
def _by_index(call: NvmlCall) -> int:
    (index,) = call.numbers
    gpus = call.gpus
    if index >= len(gpus):
        raise NvmlFailure(Code.INVALID_ARGUMENT)
    return call.found(gpus[index])


def _first(call: NvmlCall, wanted: Callable[[SimulatedGpu], int | None]) -> int:
    """The handle that `wanted` finds; a lost GPU cannot be identified."""
    for gpu in call.gpus:
        if gpu.lost:
            raise NvmlFailure(Code.GPU_IS_LOST)
        found = wanted(gpu)
        if found is not None:
            return found
    raise NvmlFailure(Code.NOT_FOUND)


def _of_uuid(call: NvmlCall, uuid: str) -> int:
    def wanted(gpu: SimulatedGpu) -> int | None:
        if gpu.identity.uuid == uuid:
            return call.found(gpu)
        for device in call.migs_of(gpu).values():
            if device.uuid == uuid:
                return call.found(gpu, device)
        return None

    return _first(call, wanted)


_AFTER_LOST = "fails if a GPU before it is lost"


@function(LIVE, "nvmlDeviceGetHandleByUUID", TEXT, out(Device), note=_AFTER_LOST)
def _by_uuid(call: NvmlCall) -> int:
    return _of_uuid(call, call.texts[0])


@function(
    LIVE,
    "nvmlDeviceGetHandleByUUIDV",
    *(versioned((pynvml.nvmlUUID_v1, pynvml.c_nvmlUUID_t)), out(Device)),
)
def _by_uuid_v(call: NvmlCall) -> tuple[ctypes.Structure, int]:
    wanted = call.structure(pynvml.c_nvmlUUID_t)
    kind = choice(wanted.type, pynvml.NVML_UUID_TYPE_ASCII, pynvml.NVML_UUID_TYPE_BINARY)
    if kind == pynvml.NVML_UUID_TYPE_ASCII:
        return wanted, _of_uuid(call, wanted.value.str.decode("utf-8", "replace"))
    plain = uuids.UUID(bytes=bytes(wanted.value.bytes))
    try:
        return wanted, _of_uuid(call, f"GPU-{plain}")
    except NvmlFailure as failure:
        if failure.code is not Code.NOT_FOUND:
            raise
        return wanted, _of_uuid(call, f"MIG-{plain}")


@function(LIVE, "nvmlDeviceGetHandleBySerial", TEXT, out(Device))
def _by_serial(call: NvmlCall) -> int:
    def wanted(gpu: SimulatedGpu) -> int | None:
        same = not is_geforce(gpu) and serial(gpu) == call.texts[0]
        return call.found(gpu) if same else None

    return _first(call, wanted)


@function(LIVE, "nvmlDeviceGetHandleByPciBusId nvmlDeviceGetHandleByPciBusId_v2", TEXT, out(Device))
def _by_bus_id(call: NvmlCall) -> int:
    match = _BUS_ID.fullmatch(call.texts[0])
    if match is None:
        raise NvmlFailure(Code.INVALID_ARGUMENT)
    domain, bus, device = (int(part or "0", 16) for part in match.groups()[:3])
    wanted = f"{domain:08X}:{bus:02X}:{device:02X}.{match[4] or 0}"
    for gpu in call.gpus:
        if gpu.identity.pci_bus_id == wanted:
            return call.found(gpu)
    raise NvmlFailure(Code.NOT_FOUND)


@function(LIVE, "nvmlDeviceGetUUID", DEVICE, text_out(2), U32, mig=True)
def _uuid(call: NvmlCall) -> str:
    return call.gpu.identity.uuid if call.mig is None else call.mig.uuid


@function(CONSTANT, "nvmlDeviceGetName", DEVICE, text_out(2), U32, mig=True)
def _name(call: NvmlCall) -> str:
    product = call.gpu.identity.product
    return product if call.mig is None else f"{product} MIG {call.mig.profile}"


@function(CONSTANT, "nvmlDeviceGetCudaComputeCapability", DEVICE, out(), out(), mig=True)
def _capability(call: NvmlCall) -> tuple[int, int]:
    major, minor = call.profile.compute_capability
    return major, minor


@function(CONSTANT, "nvmlDeviceGetNumGpuCores", DEVICE, out())
def _cores(call: NvmlCall) -> int:
    per_sm = _CORES_PER_SM.get(call.profile.compute_capability, 128)
    return known(call.profile.sm_count) * per_sm


@function(CONSTANT, "nvmlDeviceGetBoardId", DEVICE, out(), note="made from the bus")
def _board_id(call: NvmlCall) -> int:
    domain, bus, _ = call.gpu.identity.pci_bus_id.split(":")
    return int(domain, 16) << 16 | int(bus, 16) << 8


@function(
    ASSUMED,
    "nvmlDeviceGetCpuAffinity",
    *(DEVICE, U32, out_by(ctypes.c_uint64, 1)),
    note=_CPUS_NOTE,
)
@function(
    ASSUMED,
    "nvmlDeviceGetCpuAffinityWithinScope",
    *(DEVICE, U32, out_by(ctypes.c_uint64, 1), U32),
    note="the same for both scopes",
)
def _cpus(call: NvmlCall) -> list[int]:
    node = known(call.gpu.identity.numa_node)
    bits = ((1 << CPUS_PER_NUMA_NODE) - 1) << (node * CPUS_PER_NUMA_NODE)
    return _words(bits, call.numbers[0])


@function(CONSTANT, "nvmlDeviceGetMemoryAffinity", DEVICE, U32, out_by(ctypes.c_uint64, 1), U32)
def _memory_nodes(call: NvmlCall) -> list[int]:
    return _words(1 << known(call.gpu.identity.numa_node), call.numbers[0])


def _words(bits: int, count: int) -> list[int]:
    """A set of bits as unsigned longs, lowest first."""
    most = min(count, bits.bit_length() // _ULONG_BITS + 1)
    return [bits >> _ULONG_BITS * word & (1 << _ULONG_BITS) - 1 for word in range(most)]


@function(
    ASSUMED,
    "nvmlDeviceGetSerial",
    *(DEVICE, text_out(2), U32),
    note="made from the UUID; none on GeForce",
)
def _serial(call: NvmlCall) -> str:
    return serial(call.gpu)


@function(CONSTANT, "nvmlDeviceGetIndex", DEVICE, out(), mig=True)
def _index(call: NvmlCall) -> int:
    if call.mig is None:
        return call.gpus.index(call.gpu)
    return next(index for index, one in call.mig_devices.items() if one == call.mig)


@function(CONSTANT, "nvmlDeviceGetMinorNumber", DEVICE, out(), mig=True)
def _minor(call: NvmlCall) -> int:
    return known(call.gpu.identity.minor)


@function(CONSTANT, "nvmlDeviceGetBrand", DEVICE, out())
def _brand(call: NvmlCall) -> int:
    return _BRAND_GEFORCE if is_geforce(call.gpu) else _BRAND_NVIDIA


@function(CONSTANT, "nvmlDeviceGetArchitecture", DEVICE, out())
def _architecture(call: NvmlCall) -> int:
    return architecture(call.gpu)


def _subsystem(call: NvmlCall) -> int:
    return call.profile.board.pci_subsystem_id or 0


@function(CONSTANT, "nvmlDeviceGetPciInfo_v3", DEVICE, out(pynvml.nvmlPciInfo_t))
def _pci(call: NvmlCall) -> ctypes.Structure:
    return pci_info(call.gpu.identity.pci_bus_id, call.profile.pci_device_id, _subsystem(call))


@function(CONSTANT, "nvmlDeviceGetPciInfo_v2", DEVICE, out(pynvml.nvmlPciInfo_v2_t))
def _pci_v2(call: NvmlCall) -> ctypes.Structure:
    return pci_info_v2(call.gpu.identity.pci_bus_id, call.profile.pci_device_id, _subsystem(call))


@function(CONSTANT, "nvmlDeviceGetPciInfo", DEVICE, out(PciInfoV1))
def _pci_v1(call: NvmlCall) -> ctypes.Structure:
    return pci_info_v1(call.gpu.identity.pci_bus_id, call.profile.pci_device_id)


@function(CONSTANT, "nvmlDeviceGetVbiosVersion", DEVICE, text_out(2), U32)
def _vbios(call: NvmlCall) -> str:
    return _printed(call.profile.board.vbios)


@function(CONSTANT, "nvmlDeviceGetBoardPartNumber", DEVICE, text_out(2), U32)
def _part_number(call: NvmlCall) -> str:
    return _printed(call.profile.board.part_number)


class FirmwareVersion(ctypes.Structure):
    """A string in a buffer of a fixed size."""

    _fields_: ClassVar = [("text", ctypes.c_char * 64)]


@function(
    ASSUMED, "nvmlDeviceGetGspFirmwareVersion", DEVICE, out(FirmwareVersion), note="the driver's"
)
def _gsp_version(call: NvmlCall) -> ctypes.Structure:
    return FirmwareVersion(_driver_version(call).encode())


function(CONSTANT, "nvmlDeviceGetAccountingBufferSize", DEVICE, out(), note="4000")(lambda _: 4000)


def _printed(value: str | None) -> str:
    if value is None:
        raise NvmlFailure(Code.NOT_SUPPORTED)
    return value


_ADDRESSING = {"none": 0, "hmm": 1, "ats": 2}
_ADDRESSING_V1 = versioned(version(pynvml.c_nvmlDeviceAddressingMode_t, 1))


@function(
    ASSUMED,
    "nvmlDeviceGetAddressingMode",
    *(DEVICE, _ADDRESSING_V1),
    note="HMM where no source has it; from Turing on",
)
def _addressing(call: NvmlCall) -> ctypes.Structure:
    info = call.structure(pynvml.c_nvmlDeviceAddressingMode_t)
    info.value = _ADDRESSING[call.profile.board.addressing or "hmm"]
    return info


_COUNTS = "nvmlDeviceGetCount nvmlDeviceGetCount_v2"
_ZERO = (
    "nvmlDeviceGetMultiGpuBoard nvmlDeviceGetDisplayMode nvmlDeviceGetDisplayActive "
    "nvmlDeviceGetVirtualizationMode"
)
function(LIVE, _COUNTS, out(), note="lost ones included")(lambda call: len(call.gpus))
function(CONSTANT, _ZERO, DEVICE, out(), note="0")(lambda _: 0)
function(CONSTANT, "nvmlDeviceGetAccountingMode", DEVICE, out(), note="0", mig=True)(lambda _: 0)
function(CONSTANT, "nvmlDeviceOnSameBoard", DEVICE, DEVICE, out(), note="0")(lambda _: 0)
function(CONSTANT, "nvmlDeviceGetPersistenceMode", DEVICE, out(), note="on", mig=True)(lambda _: 1)


_COMPUTE_MODES = {
    ComputeMode.DEFAULT: 0,
    ComputeMode.PROHIBITED: 2,
    ComputeMode.EXCLUSIVE_PROCESS: 3,
}


@function(LIVE, "nvmlDeviceGetComputeMode", DEVICE, out(), mig=True)
def _compute_mode(call: NvmlCall) -> int:
    mode = call.gpu.identity.compute_mode
    return known(None if mode is None else _COMPUTE_MODES[mode])


_NO_CONFIDENTIAL = "with `confidential_compute` in the scenario"


@system(
    CONSTANT,
    "nvmlSystemGetConfComputeState",
    out(pynvml.c_nvmlConfComputeSystemState_t),
    note=_NO_CONFIDENTIAL,
)
def _confidential(call: NvmlCall) -> ctypes.Structure:
    _in_confidential_computing(call)
    state: ctypes.Structure = pynvml.c_nvmlConfComputeSystemState_t(environment=2, ccFeature=1)
    return state


@system(LIVE, "nvmlSystemGetConfComputeGpusReadyState", out(), note=_NO_CONFIDENTIAL)
def _confidential_ready(call: NvmlCall) -> int:
    _in_confidential_computing(call)
    return int(call.node.driver.confidential_ready)


def _in_confidential_computing(call: NvmlCall) -> None:
    if not call.node.scenario.confidential_compute:
        raise NvmlFailure(Code.NOT_SUPPORTED)


@system(CONSTANT, "nvmlSystemGetDriverVersion", text_out(1), U32)
def _driver_version(call: NvmlCall) -> str:
    return call.node.scenario.driver_version


@system(CONSTANT, "nvmlSystemGetCudaDriverVersion nvmlSystemGetCudaDriverVersion_v2", out())
def _cuda_version(call: NvmlCall) -> int:
    major, minor = call.node.scenario.cuda_version
    return 1000 * major + 10 * minor


@system(CONSTANT, "nvmlSystemGetNVMLVersion", text_out(1), U32)
def _nvml_version(call: NvmlCall) -> str:
    return f"{_cuda_version(call) // 1000}.{_driver_version(call)}"


@system(LIVE, "nvmlSystemGetProcessName", U32, text_out(2), U32, note="the tenant's name")
def _process_name(call: NvmlCall) -> str:
    (pid, length) = call.numbers
    for gpu in call.node.present if call.visible is None else ():
        for process in gpu.processes():
            if call.pids.shown(process.pid) == pid:
                # A name that is too long is cut off, as the real library does.
                return process.name.encode()[: length - 1].decode(errors="ignore")
    raise NvmlFailure(Code.NOT_FOUND)


@system(
    ASSUMED,
    "nvmlSystemGetTopologyGpuSet",
    *(U32, COUNT, array(Device, 1, asks=True)),
    note=_CPUS_NOTE,
)
def _gpus_near_cpu(call: NvmlCall) -> list[int]:
    numa_node = call.numbers[0] // CPUS_PER_NUMA_NODE
    return [
        call.handle_of_gpu(gpu)
        for gpu in call.node.present
        if gpu.identity.numa_node == numa_node and call.sees(gpu)
    ]


system(CONSTANT, "nvmlUnitGetCount nvmlGetExcludedDeviceCount", out(), note="0")(lambda _: 0)
