"""Structures of NVML that the Python binding does not have, and ways to fill those that it has."""

from __future__ import annotations

import ctypes
from typing import ClassVar

import pynvml

_NOTHING = 0


class ProcessInfoV1(ctypes.Structure):
    """A process, before MIG."""

    _fields_: ClassVar = [("pid", ctypes.c_uint32), ("usedGpuMemory", ctypes.c_uint64)]


class EventDataV1(ctypes.Structure):
    """An event, before MIG."""

    _fields_: ClassVar = [
        ("device", ctypes.c_uint64),
        ("eventType", ctypes.c_uint64),
        ("eventData", ctypes.c_uint64),
    ]


class EventData(ctypes.Structure):
    """An event; the binding's has a pointer where this has a number."""

    _fields_: ClassVar = [
        ("device", ctypes.c_uint64),
        ("eventType", ctypes.c_uint64),
        ("eventData", ctypes.c_uint64),
        ("gpuInstanceId", ctypes.c_uint32),
        ("computeInstanceId", ctypes.c_uint32),
    ]


class GpuInstanceInfo(ctypes.Structure):
    """A GPU instance; as above."""

    _fields_: ClassVar = [
        ("device", ctypes.c_uint64),
        ("id", ctypes.c_uint32),
        ("profileId", ctypes.c_uint32),
        ("placement", pynvml.c_nvmlGpuInstancePlacement_t),
    ]


class ComputeInstanceInfo(ctypes.Structure):
    """A compute instance; as above."""

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


def pci_info(bus_id: str, device_id: int | None) -> ctypes.Structure:
    """A PCI device in NVML's newest form."""
    domain, bus, device = _address(bus_id)
    info: ctypes.Structure = pynvml.nvmlPciInfo_t(
        busIdLegacy=f"{domain:04X}:{bus_id[9:]}".encode(),
        domain=domain,
        bus=bus,
        device=device,
        pciDeviceId=device_id or _NOTHING,
        busId=bus_id.encode(),
    )
    return info


def pci_info_v2(bus_id: str, device_id: int | None) -> ctypes.Structure:
    """The same as the driver told it before."""
    domain, bus, device = _address(bus_id)
    info: ctypes.Structure = pynvml.nvmlPciInfo_v2_t(
        busId=f"{domain:04X}:{bus_id[9:]}".encode(),
        domain=domain,
        bus=bus,
        device=device,
        pciDeviceId=device_id or _NOTHING,
    )
    return info


def pci_info_v1(bus_id: str, device_id: int | None) -> ctypes.Structure:
    """The same as the first drivers told it."""
    domain, bus, device = _address(bus_id)
    legacy = f"{domain:04X}:{bus_id[9:]}".encode()
    return PciInfoV1(legacy, domain, bus, device, device_id or _NOTHING)


def _address(bus_id: str) -> tuple[int, int, int]:
    """Domain, bus and device of `00000000:07:00.0`."""
    domain, bus, rest = bus_id.split(":")
    return int(domain, 16), int(bus, 16), int(rest.partition(".")[0], 16)
