"""`topo -m`: how GPUs reach each other, their CPUs and their memory."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import pynvml

from sim.smi.driver import value
from sim.smi.fields import NOT_AVAILABLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sim.smi.driver import Gpu

_PATHS: Final = {0: "X", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
_SWITCH: Final = 2
_SWITCHES: Final = "switches"
_WORDS: Final = 64
_LEGEND: Final = """
Legend:

  X    = Self
  SYS  = PCIe and the interconnect between NUMA nodes (e.g., QPI/UPI)
  NODE = PCIe and the interconnect between host bridges of a NUMA node
  PHB  = PCIe and a host bridge (typically the CPU)
  PXB  = Several PCIe bridges, without the host bridge
  PIX  = One PCIe bridge at most
  NV#  = A bonded set of # NVLinks
"""


def matrix(gpus: Sequence[Gpu]) -> Iterator[str]:
    names = [f"GPU{gpu.index}" for gpu in gpus]
    yield "\t" + "\t".join((*names, "CPU Affinity", "NUMA Affinity", "GPU NUMA ID"))
    ends = {gpu.index: _ends(gpu) for gpu in gpus}
    for name, gpu in zip(names, gpus, strict=True):
        paths = [_path(gpu, other, ends) for other in gpus]
        places = (_ranges(_cpus(gpu)), _ranges(_nodes(gpu)), "", NOT_AVAILABLE)
        yield "\t".join((name, *paths, *places))
    yield from _LEGEND.splitlines()


def _path(gpu: Gpu, other: Gpu, ends: dict[int, Counter[str]]) -> str:
    if gpu.index == other.index:
        return " X "
    links = ends[gpu.index][other.bus_id]
    if not links:
        links = min(ends[gpu.index][_SWITCHES], ends[other.index][_SWITCHES])
    if links:
        return f"NV{links}"
    level = value(pynvml.nvmlDeviceGetTopologyCommonAncestor, gpu.handle, other.handle)
    return _PATHS.get(level, "SYS") if isinstance(level, int) else "SYS"


def _ends(gpu: Gpu) -> Counter[str]:
    """The number of active links by the bus id of the GPU at the other end, or to switches."""
    found: Counter[str] = Counter()
    for link in range(int(pynvml.NVML_NVLINK_MAX_LINKS)):
        if not gpu.number(pynvml.nvmlDeviceGetNvLinkState, link):
            continue
        if gpu.number(pynvml.nvmlDeviceGetNvLinkRemoteDeviceType, link) == _SWITCH:
            found[_SWITCHES] += 1
            continue
        remote = gpu.value(pynvml.nvmlDeviceGetNvLinkRemotePciInfo, link)
        if remote is not None:
            found[str(getattr(remote, "busId", ""))] += 1
    return found


def _cpus(gpu: Gpu) -> object:
    return gpu.value(pynvml.nvmlDeviceGetCpuAffinity, _WORDS)


def _nodes(gpu: Gpu) -> object:
    scope = pynvml.NVML_AFFINITY_SCOPE_NODE
    return gpu.value(pynvml.nvmlDeviceGetMemoryAffinity, _WORDS, scope)


def _ranges(words: object) -> str:
    """A set of bits, such as `0-15,32-47`."""
    if words is None:
        return NOT_AVAILABLE
    bits = [
        position * 64 + bit
        for position, word in enumerate(list(words))  # type: ignore[call-overload]
        for bit in range(64)
        if word >> bit & 1
    ]
    ranges: list[list[int]] = []
    for bit in bits:
        if ranges and ranges[-1][1] == bit - 1:
            ranges[-1][1] = bit
        else:
            ranges.append([bit, bit])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
