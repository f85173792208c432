"""PCIe, topology and NVLink."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pynvml

from hal import LinkKind
from hal.nvml.api import Code
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
)
from sim.nvml.call import NvmlFailure, choice, known
from sim.nvml.functions.inventory import architecture

if TYPE_CHECKING:
    import ctypes

    from sim.gpu.profiles import NvLink
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

_MOST_LINKS = 36
_SWITCH = 2
_SWITCH_DEVICE_ID = 0x22A310DE
_P2P_OK, _P2P_NOT_SUPPORTED = 0, 5
_P2P_NVLINK = 2
_BEHIND_SWITCHES = "up where the model sits behind NVSwitches"


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


@function(CONSTANT, "nvmlDeviceGetTopologyCommonAncestor", DEVICE, DEVICE, out())
def _level(call: NvmlCall) -> int:
    if call.other is None or call.other.gpu is call.gpu:
        raise NvmlFailure(Code.INVALID_ARGUMENT)
    return _levels(call)[call.other.gpu.identity.uuid]


def _levels(call: NvmlCall) -> dict[str, int]:
    """How far the other GPUs that answer are."""
    return {
        other: _LEVELS[link.kind]
        for (one, other), link in call.node.links().items()
        if one == call.gpu.identity.uuid
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
    note="always over PCIe; over NVLink behind switches",
)
def _p2p(call: NvmlCall) -> int:
    index = choice(call.numbers[0], *range(5))
    if call.other is None or call.other.gpu is call.gpu:
        raise NvmlFailure(Code.INVALID_ARGUMENT)
    if index != _P2P_NVLINK:
        return _P2P_OK
    both = (call.profile.nvlink, call.other.gpu.profile.nvlink)
    return _P2P_OK if all(one and one.switches for one in both) else _P2P_NOT_SUPPORTED


def _nvlink(call: NvmlCall) -> NvLink:
    """The NVLinks of the GPU, and that there is one of the number that was asked for."""
    if call.numbers[0] >= _MOST_LINKS:
        raise NvmlFailure(Code.INVALID_ARGUMENT)
    nvlink = call.profile.nvlink
    if nvlink is None or call.numbers[0] >= nvlink.links:
        raise NvmlFailure(Code.NOT_SUPPORTED)
    return nvlink


@function(CONSTANT, "nvmlDeviceGetNvLinkState", DEVICE, U32, out(), note=_BEHIND_SWITCHES)
def _active(call: NvmlCall) -> int:
    return int(bool(_nvlink(call).switches))


def _switch_bus_id(call: NvmlCall) -> str:
    switches = _nvlink(call).switches
    if not switches:
        raise NvmlFailure(Code.NOT_SUPPORTED)  # nothing is at the other end
    return f"00000000:{5 + call.numbers[0] % switches:02X}:00.0"


@function(
    ASSUMED,
    "nvmlDeviceGetNvLinkRemotePciInfo_v2",
    *(DEVICE, U32, out(pynvml.nvmlPciInfo_t)),
    note="an NVSwitch",
)
def _remote(call: NvmlCall) -> ctypes.Structure:
    return pci_info(_switch_bus_id(call), _SWITCH_DEVICE_ID)


@function(
    ASSUMED,
    "nvmlDeviceGetNvLinkRemotePciInfo",
    *(DEVICE, U32, out(pynvml.nvmlPciInfo_v2_t)),
    note="an NVSwitch",
)
def _remote_v2(call: NvmlCall) -> ctypes.Structure:
    return pci_info_v2(_switch_bus_id(call), _SWITCH_DEVICE_ID)


@function(CONSTANT, "nvmlDeviceGetNvLinkRemoteDeviceType", DEVICE, U32, out(), note="an NVSwitch")
def _remote_type(call: NvmlCall) -> int:
    _switch_bus_id(call)
    return _SWITCH


@function(CONSTANT, "nvmlDeviceGetNvLinkVersion", DEVICE, U32, out())
def _nvlink_version(call: NvmlCall) -> int:
    return known(_NVLINK_VERSIONS.get(_nvlink(call).version or 0))


@function(ASSUMED, "nvmlDeviceGetNvLinkCapability", DEVICE, U32, U32, out())
def _nvlink_capability(call: NvmlCall) -> int:
    _nvlink(call)
    choice(call.numbers[1], *range(6))
    return int(call.numbers[1] != pynvml.NVML_NVLINK_CAP_SLI_BRIDGE)
