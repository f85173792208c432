"""The ABI of NVML: kinds of arguments, and the structures that pynvml does not have.

`Kind` is shared with `library/client.h`: the numbers are the same there.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, ClassVar, TypeAlias, TypeVar

import pynvml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sim.nvml.call import NvmlCall

    Number: TypeAlias = ctypes.c_uint32 | ctypes.c_uint64 | ctypes.c_int32 | ctypes.c_int64
    CType: TypeAlias = type[ctypes.Structure | Number | ctypes.c_char]

    Value: TypeAlias = (
        int | str | bytes | ctypes.Structure | Sequence[int] | Sequence[ctypes.Structure]
    )
    """What is written to one pointer of the caller."""

    Response: TypeAlias = Value | tuple[Value, ...]
    """What is written to all of them, in order, without counts, which follow from their arrays."""

    Respond: TypeAlias = Callable[[NvmlCall], Response | None]
    """Returns what is written to the caller's pointers, or raises `NvmlFailure`."""


_Respond = TypeVar("_Respond", bound="Respond")


class Kind(IntEnum):
    NUMBER = 0
    """passed by value"""
    TEXT = 1
    """a string of the caller"""
    OUT = 2
    """a pointer to where the answer goes"""
    INOUT = 3
    """a pointer to something that is read, and written to"""
    VERSIONED = 4
    """the same, its size given by the version in its first four bytes"""
    OUT_BY = 5
    """an array for the answer, its length in another argument"""
    INOUT_BY = 6
    """the same, also read"""
    COUNT = 7
    """a pointer to the length of arrays: what there is room for, then what there is"""
    ARRAY = 8
    """an array for the answer, its length in a `COUNT`"""
    FILL = 9
    """an array that the caller made large enough for all that there can be"""


WRITTEN = frozenset(Kind) - {Kind.NUMBER, Kind.TEXT}
READ = frozenset({Kind.INOUT, Kind.VERSIONED, Kind.INOUT_BY, Kind.COUNT})


class Device(ctypes.c_uint64):
    """A handle of a GPU or MIG device."""


class EventSet(ctypes.c_uint64):
    """A handle of an event set."""


class GpuInstance(ctypes.c_uint64):
    """A handle of a GPU instance."""


class ComputeInstance(ctypes.c_uint64):
    """A handle of a compute instance."""


class GpmSample(ctypes.c_uint64):
    """A handle of a sample of GPM."""


PLACES = (Device, GpuInstance, ComputeInstance)
"""Handles that are about a GPU."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument; `ctype` is what is passed, pointed to, or an element of what is pointed to.

    `by` is the position of the argument with the length. `asks`: an `ARRAY` that is NULL asks
    for the count, and that is no failure. `versions` are the structures that
    a `VERSIONED` pointer may point to, by version.
    """

    kind: Kind
    ctype: CType
    by: int = 0
    asks: bool = False
    versions: Mapping[int, type[ctypes.Structure]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return ctypes.sizeof(self.ctype)


DEVICE = Argument(Kind.NUMBER, Device)
EVENT_SET = Argument(Kind.NUMBER, EventSet)
GPM_SAMPLE = Argument(Kind.NUMBER, GpmSample)
GPU_INSTANCE = Argument(Kind.NUMBER, GpuInstance)
COMPUTE_INSTANCE = Argument(Kind.NUMBER, ComputeInstance)
U32 = Argument(Kind.NUMBER, ctypes.c_uint32)
U64 = Argument(Kind.NUMBER, ctypes.c_uint64)
TEXT = Argument(Kind.TEXT, ctypes.c_char)
COUNT = Argument(Kind.COUNT, ctypes.c_uint32)


def out(ctype: CType = ctypes.c_uint32) -> Argument:
    return Argument(Kind.OUT, ctype)


def versioned(*structures: tuple[int, type[ctypes.Structure]]) -> Argument:
    return Argument(Kind.VERSIONED, structures[0][1], versions=dict(structures))


def version(structure: type[ctypes.Structure], number: int) -> tuple[int, type[ctypes.Structure]]:
    """The version number as NVML makes it: size and count in one."""
    return (ctypes.sizeof(structure) | number << 24, structure)


def inout(ctype: CType) -> Argument:
    return Argument(Kind.INOUT, ctype)


def text_out(by: int) -> Argument:
    """A buffer for a string; argument `by` is its size."""
    return Argument(Kind.OUT_BY, ctypes.c_char, by)


def out_by(ctype: CType, by: int) -> Argument:
    return Argument(Kind.OUT_BY, ctype, by)


def inout_by(ctype: type[ctypes.Structure], by: int) -> Argument:
    return Argument(Kind.INOUT_BY, ctype, by)


def array(ctype: CType, by: int, *, asks: bool = False) -> Argument:
    """An array; argument `by`, a `COUNT`, is its length. It may be NULL."""
    return Argument(Kind.ARRAY, ctype, by, asks)


def fill(ctype: CType) -> Argument:
    """An array that is large enough; it may be NULL."""
    return Argument(Kind.FILL, ctype)


class Source(Enum):
    LIVE = "live"
    CONSTANT = "constant"
    ASSUMED = "assumed"


LIVE, CONSTANT, ASSUMED = Source


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the library.

    The response of a `waits` function may be None: nothing has happened yet. `mig`: it can be
    called for MIG devices as well. `changes`: it changes the node. `inner`: a
    hand-written part of the library has its name, and asks the node with these arguments.
    """

    name: str
    arguments: tuple[Argument, ...]
    source: Source
    response: Respond
    note: str = ""
    mig: bool = False
    waits: bool = False
    changes: bool = False
    inner: bool = False

    @property
    def on_device(self) -> bool:
        """True if it is about one GPU, so that the end of the node is its loss."""
        return bool(self.arguments) and self.arguments[0].ctype in (*PLACES, EventSet)


class Functions:
    """A part of the library: as a decorator it adds a response under one or several names."""

    def __init__(self) -> None:
        self._functions: list[Function] = []

    def __iter__(self) -> Iterator[Function]:
        return iter(self._functions)

    def __call__(
        self,
        source: Source,
        names: str,
        *arguments: Argument,
        note: str = "",
        mig: bool = False,
        waits: bool = False,
        changes: bool = False,
        inner: bool = False,
    ) -> Callable[[_Respond], _Respond]:
        def add(response: _Respond) -> _Respond:
            self._functions += [
                Function(name, arguments, source, response, note, mig, waits, changes, inner)
                for name in names.split()
            ]
            return response

        return add


class ProcessInfoV1(ctypes.Structure):
    _fields_: ClassVar = [("pid", ctypes.c_uint32), ("usedGpuMemory", ctypes.c_uint64)]


class ProcessInfoV3(ctypes.Structure):
    """What drivers 535.43 to 535.86 write for version 3, in place of version 2's structure."""

    _fields_: ClassVar = [
        *pynvml.c_nvmlProcessInfo_v2_t._fields_,
        ("usedGpuCcProtectedMemory", ctypes.c_uint64),
    ]


class EventDataV1(ctypes.Structure):
    _fields_: ClassVar = [
        ("device", ctypes.c_uint64),
        ("eventType", ctypes.c_uint64),
        ("eventData", ctypes.c_uint64),
    ]


class EventData(ctypes.Structure):
    """An event; the binding's has a pointer where this has a number."""

    _fields_: ClassVar = [
        *EventDataV1._fields_,
        ("gpuInstanceId", ctypes.c_uint32),
        ("computeInstanceId", ctypes.c_uint32),
    ]


class GpuInstanceInfo(ctypes.Structure):
    _fields_: ClassVar = [
        ("device", ctypes.c_uint64),
        ("id", ctypes.c_uint32),
        ("profileId", ctypes.c_uint32),
        ("placement", pynvml.c_nvmlGpuInstancePlacement_t),
    ]


class ComputeInstanceInfo(ctypes.Structure):
    _fields_: ClassVar = [
        ("device", ctypes.c_uint64),
        ("gpuInstance", ctypes.c_uint64),
        ("id", ctypes.c_uint32),
        ("profileId", ctypes.c_uint32),
        ("placement", pynvml.c_nvmlComputeInstancePlacement_t),
    ]


class PciInfoV1(ctypes.Structure):
    """The part of a PCI device's description that the oldest callers know."""

    _fields_: ClassVar = [
        ("busId", ctypes.c_char * 16),
        ("domain", ctypes.c_uint32),
        ("bus", ctypes.c_uint32),
        ("device", ctypes.c_uint32),
        ("pciDeviceId", ctypes.c_uint32),
    ]


def pci_info(bus_id: str, device_id: int | None, subsystem_id: int = 0) -> ctypes.Structure:
    legacy, numbers = _address(bus_id, device_id)
    info: ctypes.Structure = pynvml.nvmlPciInfo_t(
        busIdLegacy=legacy, busId=bus_id.encode(), pciSubSystemId=subsystem_id, **numbers
    )
    return info


def pci_info_v2(bus_id: str, device_id: int | None, subsystem_id: int = 0) -> ctypes.Structure:
    legacy, numbers = _address(bus_id, device_id)
    info: ctypes.Structure = pynvml.nvmlPciInfo_v2_t(
        busId=legacy, pciSubSystemId=subsystem_id, **numbers
    )
    return info


def pci_info_v1(bus_id: str, device_id: int | None) -> ctypes.Structure:
    legacy, numbers = _address(bus_id, device_id)
    return PciInfoV1(busId=legacy, **numbers)


def _address(bus_id: str, device_id: int | None) -> tuple[bytes, dict[str, int]]:
    """The short form of `00000000:07:00.0`, and the numbers of the device."""
    domain, bus, device = (int(part, 16) for part in bus_id.partition(".")[0].split(":"))
    numbers = {"domain": domain, "bus": bus, "device": device, "pciDeviceId": device_id or 0}
    return f"{domain:04X}:{bus_id[9:]}".encode(), numbers
