"""PCIe, topology and NVLink."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

import pynvml

from hal import FabricState, LinkKind
from hal.nvml.api import Code
from sim.gpu.nvlinks import MOST_NVLINKS, NVSWITCH_DEVICE_ID, Peer, Switch
from sim.nvml.abi import (
    ASSUMED,
    CONSTANT,
    COUNT,
    DEVICE,
    LIVE,
    U32,
    Device,
    Functions,
    array,
    out,
    pci_info,
    pci_info_v2,
    versioned,
)
from sim.nvml.call import NvmlFailure, choice, known
from sim.nvml.functions.inventory import architecture

if TYPE_CHECKING:
    import ctypes

    from sim.gpu.nvlinks import LinkEnd
    from sim.nvml.call import NvmlCall

function = Functions()

_GENERATIONS = {6: 3, 7: 4, 8: 4, 9: 5, 10: 5}
"""PCIe generation by architecture, from the data sheets."""

_WIDTH = 16
_LEVELS = {
    LinkKind.SAME_BOARD: 0,
    LinkKind.SINGLE_SWITCH: 10,
    LinkKind.MULTI_SWITCH: 20,
    LinkKind.HOST_BRIDGE: 30,
    LinkKind.SAME_CPU: 40,
    LinkKind.CROSS_CPU: 50,
}
_NVLINK_VERSIONS = {1: 1, 2: 2, 3: 4, 4: 6, 5: 7}
"""NVML's numbers of NVLink 1.0, 2.0, 3.0, 4.0 and 5.0."""

_GPU, _SWITCH = 0, 2
_P2P_OK, _P2P_NOT_SUPPORTED = 0, 5
_P2P_NVLINK = 2


@function(
    ASSUMED,
    "nvmlDeviceGetCurrPcieLinkGeneration nvmlDeviceGetMaxPcieLinkGeneration "
    "nvmlDeviceGetGpuMaxPcieLinkGeneration",
    *(DEVICE, out()),
    note="by architecture",
)
def _generation(call: NvmlCall) -> int:
    return _GENERATIONS[architecture(call.gpu)]


_WIDTHS = "nvmlDeviceGetCurrPcieLinkWidth nvmlDeviceGetMaxPcieLinkWidth"
function(ASSUMED, _WIDTHS, DEVICE, out(), note=str(_WIDTH))(lambda _: _WIDTH)
function(CONSTANT, "nvmlDeviceGetPcieReplayCounter", DEVICE, out(), note="0")(lambda _: 0)


@function(CONSTANT, "nvmlDeviceGetPcieThroughput", DEVICE, U32, out(), note="0")
def _throughput(call: NvmlCall) -> int:
    choice(call.numbers[0], 0, 1)
    return 0


@function(CONSTANT, "nvmlDeviceGetTopologyCommonAncestor", DEVICE, DEVICE, out())
def _level(call: NvmlCall) -> int:
    if call.other is None or call.other.gpu is call.gpu:
        raise NvmlFailure(Code.INVALID_ARGUMENT)
    return _levels(call)[call.other.gpu.identity.uuid]


def _levels(call: NvmlCall) -> dict[str, int]:
    """How far the other GPUs that answer, and that it sees, are."""
    return {
        other: _LEVELS[link.kind]
        for (one, other), link in call.node.links().items()
        if one == call.gpu.identity.uuid and call.sees(call.node.gpu(other))
    }


@function(
    LIVE,
    "nvmlDeviceGetTopologyNearestGpus",
    *(DEVICE, U32, COUNT, array(Device, 2, asks=True)),
    note="lost ones left out",
)
def _nearest(call: NvmlCall) -> list[int]:
    wanted = choice(call.numbers[0], *_LEVELS.values())
    return [
        call.handles.of(("gpu", uuid)) for uuid, level in _levels(call).items() if level == wanted
    ]


@function(
    ASSUMED,
    "nvmlDeviceGetP2PStatus",
    *(DEVICE, DEVICE, U32, out()),
    note="always over PCIe; over NVLink where links are up",
)
def _p2p(call: NvmlCall) -> int:
    index = choice(call.numbers[0], *range(5))
    if call.other is None or call.other.gpu is call.gpu:
        raise NvmlFailure(Code.INVALID_ARGUMENT)
    if index != _P2P_NVLINK:
        return _P2P_OK
    ends = [call.node.nvlinks[place.identity.index] for place in (call.gpu, call.other.gpu)]
    direct = Peer(call.other.gpu.identity.index) in ends[0]
    switched = all(any(isinstance(end, Switch) for end in one) for one in ends)
    return _P2P_OK if direct or switched else _P2P_NOT_SUPPORTED


def _end(call: NvmlCall) -> LinkEnd:
    """Where the link that was asked for leads; raises `NvmlFailure` if there is no such link."""
    if call.numbers[0] >= MOST_NVLINKS:
        raise NvmlFailure(Code.INVALID_ARGUMENT)
    ends = call.node.nvlinks[call.gpu.identity.index]
    if call.numbers[0] >= len(ends):
        raise NvmlFailure(Code.NOT_SUPPORTED)
    end = ends[call.numbers[0]]
    if isinstance(end, Peer) and call.node.present[end.index].lost:
        return None
    return end


_UP = "up where the model sits behind NVSwitches, or a recording has links between GPUs"


@function(LIVE, "nvmlDeviceGetNvLinkState", DEVICE, U32, out(), note=_UP)
def _active(call: NvmlCall) -> int:
    return int(_end(call) is not None)


def _remote_address(call: NvmlCall) -> tuple[str, int | None]:
    """The PCI address and device id at the other end of a link."""
    match _end(call):
        case Switch(bus_id):
            return bus_id, NVSWITCH_DEVICE_ID
        case Peer(index):
            peer = call.node.present[index]
            return peer.identity.pci_bus_id, peer.profile.pci_device_id
        case None:
            raise NvmlFailure(Code.NOT_SUPPORTED)
        case end:
            assert_never(end)


_REMOTE = "an NVSwitch or a GPU; the addresses of switches are assumed"


@function(
    ASSUMED,
    "nvmlDeviceGetNvLinkRemotePciInfo_v2",
    *(DEVICE, U32, out(pynvml.nvmlPciInfo_t)),
    note=_REMOTE,
)
def _remote(call: NvmlCall) -> ctypes.Structure:
    return pci_info(*_remote_address(call))


@function(
    ASSUMED,
    "nvmlDeviceGetNvLinkRemotePciInfo",
    *(DEVICE, U32, out(pynvml.nvmlPciInfo_v2_t)),
    note=_REMOTE,
)
def _remote_v2(call: NvmlCall) -> ctypes.Structure:
    return pci_info_v2(*_remote_address(call))


@function(CONSTANT, "nvmlDeviceGetNvLinkRemoteDeviceType", DEVICE, U32, out())
def _remote_type(call: NvmlCall) -> int:
    _remote_address(call)
    return _SWITCH if isinstance(_end(call), Switch) else _GPU


@function(CONSTANT, "nvmlDeviceGetNvLinkVersion", DEVICE, U32, out())
def _nvlink_version(call: NvmlCall) -> int:
    _end(call)
    nvlink = call.profile.nvlink
    return known(_NVLINK_VERSIONS.get(nvlink.version or 0) if nvlink else None)


@function(ASSUMED, "nvmlDeviceGetNvLinkCapability", DEVICE, U32, U32, out())
def _nvlink_capability(call: NvmlCall) -> int:
    _end(call)
    choice(call.numbers[1], *range(6))
    return int(call.numbers[1] != pynvml.NVML_NVLINK_CAP_SLI_BRIDGE)


_FABRIC_STATES = {
    FabricState.NOT_STARTED: 1,
    FabricState.IN_PROGRESS: 2,
    FabricState.COMPLETED: 3,
}
_HAS_FABRIC = "from Hopper on, with NVLink"


def _fabric(call: NvmlCall, info: ctypes.Structure) -> ctypes.Structure:
    fabric = call.gpu.fabric
    if fabric is None:
        raise NvmlFailure(Code.NOT_SUPPORTED)
    info.state, info.status = _FABRIC_STATES[fabric.state], Code[str(fabric.code)]
    return info


@function(
    LIVE,
    "nvmlDeviceGetGpuFabricInfo",
    *(DEVICE, out(pynvml.c_nvmlGpuFabricInfo_t)),
    note=_HAS_FABRIC,
)
def _fabric_v1(call: NvmlCall) -> ctypes.Structure:
    return _fabric(call, pynvml.c_nvmlGpuFabricInfo_t())


@function(
    LIVE,
    "nvmlDeviceGetGpuFabricInfoV",
    *(
        DEVICE,
        versioned(
            (pynvml.nvmlGpuFabricInfo_v2, pynvml.c_nvmlGpuFabricInfo_v2_t),
            (pynvml.nvmlGpuFabricInfo_v3, pynvml.c_nvmlGpuFabricInfo_v3_t),
        ),
    ),
    note=_HAS_FABRIC,
)
def _fabric_of_version(call: NvmlCall) -> ctypes.Structure:
    (info,) = call.structures
    return _fabric(call, info)
