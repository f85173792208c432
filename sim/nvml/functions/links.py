"""PCIe, topology and NVLink."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pynvml

from hal import LinkKind
from hal.nvml.api import Code
from sim.nvml.abi import (
    COUNT,
    DEVICE,
    U32,
    Device,
    Function,
    Source,
    array,
    out,
    pci_info,
    pci_info_v2,
)
from sim.nvml.call import NvmlFailure, choice, known
from sim.nvml.functions.inventory import architecture

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable

    from sim.gpu.profiles import NvLink
    from sim.nvml.call import NvmlCall

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


def _generation(call: NvmlCall) -> int:
    return _GENERATIONS[architecture(call.gpu)]


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


def _nearest(call: NvmlCall) -> list[int]:
    wanted = choice(call.numbers[0], *_LEVELS.values())
    return [
        call.handles.of(("gpu", uuid)) for uuid, level in _levels(call).items() if level == wanted
    ]


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


def _active(call: NvmlCall) -> int:
    return int(bool(_nvlink(call).switches))


def _switch_bus_id(call: NvmlCall) -> str:
    switches = _nvlink(call).switches
    if not switches:
        raise NvmlFailure(Code.NOT_SUPPORTED)  # nothing is at the other end
    return f"00000000:{5 + call.numbers[0] % switches:02X}:00.0"


def _remote(
    make: Callable[[str, int | None], ctypes.Structure],
) -> Callable[[NvmlCall], ctypes.Structure]:
    return lambda call: make(_switch_bus_id(call), _SWITCH_DEVICE_ID)


def _remote_type(call: NvmlCall) -> int:
    _switch_bus_id(call)
    return _SWITCH


def _nvlink_version(call: NvmlCall) -> int:
    return known(_NVLINK_VERSIONS.get(_nvlink(call).version or 0))


def _nvlink_capability(call: NvmlCall) -> int:
    _nvlink(call)
    choice(call.numbers[1], *range(6))
    return int(call.numbers[1] != pynvml.NVML_NVLINK_CAP_SLI_BRIDGE)


_CONSTANT, _ASSUMED = Source.CONSTANT, Source.ASSUMED
_BEHIND_SWITCHES = "up where the model sits behind NVSwitches"

FUNCTIONS = (
    *(
        Function(name, (DEVICE, out()), _ASSUMED, _generation, "by architecture")
        for name in (
            "nvmlDeviceGetCurrPcieLinkGeneration",
            "nvmlDeviceGetMaxPcieLinkGeneration",
            "nvmlDeviceGetGpuMaxPcieLinkGeneration",
        )
    ),
    *(
        Function(name, (DEVICE, out()), _ASSUMED, lambda _: _WIDTH, str(_WIDTH))
        for name in ("nvmlDeviceGetCurrPcieLinkWidth", "nvmlDeviceGetMaxPcieLinkWidth")
    ),
    Function("nvmlDeviceGetPcieReplayCounter", (DEVICE, out()), _CONSTANT, lambda _: 0, "0"),
    Function("nvmlDeviceGetTopologyCommonAncestor", (DEVICE, DEVICE, out()), _CONSTANT, _level),
    Function(
        "nvmlDeviceGetTopologyNearestGpus",
        (DEVICE, U32, COUNT, array(Device, 2, asks=True)),
        Source.LIVE,
        _nearest,
        "lost ones left out",
    ),
    Function(
        "nvmlDeviceGetP2PStatus",
        (DEVICE, DEVICE, U32, out()),
        _ASSUMED,
        _p2p,
        "always over PCIe; over NVLink behind switches",
    ),
    Function(
        "nvmlDeviceGetNvLinkState", (DEVICE, U32, out()), _CONSTANT, _active, _BEHIND_SWITCHES
    ),
    Function("nvmlDeviceGetNvLinkVersion", (DEVICE, U32, out()), _CONSTANT, _nvlink_version),
    Function(
        "nvmlDeviceGetNvLinkCapability", (DEVICE, U32, U32, out()), _ASSUMED, _nvlink_capability
    ),
    Function(
        "nvmlDeviceGetNvLinkRemotePciInfo_v2",
        (DEVICE, U32, out(pynvml.nvmlPciInfo_t)),
        _ASSUMED,
        _remote(pci_info),
        "an NVSwitch",
    ),
    Function(
        "nvmlDeviceGetNvLinkRemotePciInfo",
        (DEVICE, U32, out(pynvml.nvmlPciInfo_v2_t)),
        _ASSUMED,
        _remote(pci_info_v2),
        "an NVSwitch",
    ),
    Function(
        "nvmlDeviceGetNvLinkRemoteDeviceType",
        (DEVICE, U32, out()),
        _CONSTANT,
        _remote_type,
        "an NVSwitch",
    ),
)
