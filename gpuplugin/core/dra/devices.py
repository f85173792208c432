"""What a node offers by DRA: one device for each GPU or MIG device, with its shares and taints.

Rules of the API are in the comments where they apply; they are those of resource.k8s.io/v1 as
Kubernetes 1.36 checks them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from gpuplugin.core.cdi import CdiHost
    from gpuplugin.core.faults import Cause, Fault
    from gpuplugin.core.healthboard import HealthBoard
    from gpuplugin.core.inventory import Device, Inventory, Resource, Unit
    from gpuplugin.core.jsonobject import JsonObject
    from hal import Gpu

Effect: TypeAlias = Literal["NoSchedule", "NoExecute"]

SHARES, MEMORY, SHARED = "shares", "memory", "shared"
STANDARD = "resource.kubernetes.io/"
"""The prefix of attributes that all drivers share; a bare name is the driver's own."""
MIB = 1024**2

_MAX_TEXT = 64
_SUFFIXES = {
    "E": 10**18, "P": 10**15, "T": 10**12, "G": 10**9, "M": 10**6, "k": 1000, "": 1,
}  # fmt: skip
_ARCHITECTURES = {
    (5, 0): "Maxwell", (5, 2): "Maxwell", (5, 3): "Maxwell",
    (6, 0): "Pascal", (6, 1): "Pascal", (6, 2): "Pascal",
    (7, 0): "Volta", (7, 2): "Volta", (7, 5): "Turing",
    (8, 0): "Ampere", (8, 6): "Ampere", (8, 7): "Ampere", (8, 9): "Ada Lovelace",
    (9, 0): "Hopper", (10, 0): "Blackwell", (10, 3): "Blackwell", (11, 0): "Blackwell",
    (12, 0): "Blackwell", (12, 1): "Blackwell",
}  # fmt: skip
"""By CUDA compute capability: docs.nvidia.com/cuda, "Compute Capabilities"."""


@dataclass(frozen=True, slots=True)
class Version:
    """A semantic version, as attributes of that type want it."""

    text: str


Attribute: TypeAlias = str | int | Version


@dataclass(frozen=True, slots=True)
class Taint:
    """Why the scheduler must not give a device out; `key` has the domain of the driver."""

    key: str
    value: str
    effect: Effect

    @property
    def told(self) -> str:
        """What is wrong, for people: `xid 79`, `lost`."""
        what = self.key.rpartition("/")[2]
        return what if self.value == "true" else f"{what} {self.value}"

    def as_json(self) -> JsonObject:
        return {"key": self.key, "value": self.value, "effect": self.effect}


@dataclass(frozen=True, slots=True)
class Offer:
    """A device of a ResourceSlice: a GPU or MIG device, exclusive or with shares.

    `resource` is the extended resource that the configuration names it by; a DeviceClass selects
    by it. `memory_bytes` is None where it is not known.
    """

    name: str
    unit: tuple[str, str | None]
    resource: str
    replicas: int
    memory_bytes: int | None
    attributes: Mapping[str, Attribute] = field(default_factory=lambda: MappingProxyType({}))
    taints: tuple[Taint, ...] = ()
    one_share_each: bool = False
    """True if a request may have one share only."""
    nodes: tuple[str, ...] = ()
    """Its device nodes; not part of a slice."""

    @property
    def uuid(self) -> str:
        return self.unit[1] or self.unit[0]

    @property
    def shared(self) -> bool:
        return self.replicas > 1

    @property
    def trouble(self) -> str:
        """What is wrong with it, for people; "" if nothing is."""
        return ", ".join(taint.told for taint in self.taints)

    def as_json(self) -> JsonObject:
        """The device as the API has it."""
        # Not `allowMultipleAllocations`, which selectors know from Kubernetes 1.34 on with a gate.
        attributes = {**self.attributes, SHARED: self.shared}
        device: JsonObject = {
            "name": self.name,
            "attributes": {name: _attribute(value) for name, value in attributes.items()},
            "capacity": dict(self._capacity()),
        }
        if self.shared:
            device["allowMultipleAllocations"] = True
        if self.taints:
            device["taints"] = [taint.as_json() for taint in self.taints]
        return device

    def _capacity(self) -> Iterator[tuple[str, JsonObject]]:
        """A device that is not shared may have no policy: the API refuses one for N = 1."""
        if self.memory_bytes is not None:
            memory: JsonObject = {"value": quantity(self.memory_bytes)}
            if self.shared:
                # Without the default of 0 the first pod would be charged all of it.
                memory["requestPolicy"] = {"default": "0", "validRange": {"min": "0"}}
                if self.memory_bytes > MIB:
                    memory["requestPolicy"] = {
                        "default": "0",
                        "validRange": {"min": "0", "step": "1Mi"},
                    }
            yield MEMORY, memory
        if self.shared:
            most = 1 if self.one_share_each else self.replicas
            valid = {"min": "1", "max": quantity(most), "step": "1"}
            policy = {"default": "1", "validRange": valid}
            yield SHARES, {"value": quantity(self.replicas), "requestPolicy": policy}


@dataclass(frozen=True, slots=True)
class DraPlan:
    """What a configuration and its machine mean for claims.

    `cdi` is what the host has for their containers; `pcie_roots` are those of PCI devices by bus id
    (`0000:3b:00.0` -> `pci0000:3a`). A GPU that is lost gets the taint effect NoExecute if
    `evict_lost`: pods that use it are deleted.
    """

    cdi: CdiHost
    pcie_roots: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    evict_lost: bool = False


@dataclass(frozen=True, slots=True)
class Offering:
    """How devices are offered: the driver's name, and what the machine adds to their attributes.

    `withheld` are the UUIDs of what is not given out for a reason other than its health.
    """

    driver: str
    driver_version: str = ""
    pcie_roots: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    evict_lost: bool = False
    withheld: Collection[str] = ()


def offers(
    inventory: Inventory, gpus: Iterable[Gpu], board: HealthBoard, offering: Offering
) -> tuple[Offer, ...]:
    """What a node offers, by GPU index: its GPUs and MIG devices, with taints for their faults.

    A GPU that is no longer listed is left out, whatever the inventory says.
    """
    by_uuid = {gpu.uuid: gpu for gpu in gpus}
    found = [
        (device, count, resource)
        for resource in inventory.resources
        for device, count in _units(resource)
        if device.gpu_uuid in by_uuid
    ]
    found.sort(key=lambda one: one[0].order)
    names = device_names(device.uuid for device, _, _ in found)
    return tuple(
        Offer(
            names[device.uuid],
            device.unit,
            resource.name,
            replicas,
            device.mig.memory_bytes if device.mig else by_uuid[device.gpu_uuid].memory_bytes,
            MappingProxyType(
                dict(_attributes(device, by_uuid[device.gpu_uuid], resource.name, offering))
            ),
            tuple(_taints(device, board, offering)),
            resource.fail_requests_greater_than_one,
            device.nodes,
        )
        for device, replicas, resource in found
    )


def _units(resource: Resource) -> Iterator[tuple[Device, int]]:
    """The first device of each GPU or MIG device, and how many there are of it."""
    seen: set[Unit] = set()
    for device in resource.devices:
        if device.unit not in seen:
            seen.add(device.unit)
            yield device, resource.units[device.unit]


def device_names(uuids: Iterable[str]) -> dict[str, str]:
    """A DNS label for each UUID that stays the same over reboots: `gpu-` or `mig-` and its digits.

    Twelve digits, or all where two of a node begin alike.
    """
    digits = {uuid: re.sub(r"[^0-9a-z]", "", uuid.lower())[3:] for uuid in uuids}
    short = [text[:12] for text in digits.values()]
    return {
        uuid: ("mig-" if uuid.startswith("MIG-") else "gpu-")
        + (text[:12] if short.count(text[:12]) == 1 else text[:59])
        for uuid, text in digits.items()
    }


def quantity(number: int) -> str:
    """A number in the canonical form of the API, which may be what comes back: 1000 is `1k`.

    Its suffix is as large as leaves no fraction.
    """
    suffix = next((one for one, size in _SUFFIXES.items() if number and not number % size), "")
    return f"{number // _SUFFIXES[suffix]}{suffix}"


def whole_number(text: str) -> int:
    """The number that such a quantity stands for; raises ValueError for another one."""
    size = _SUFFIXES.get(text[-1:], 1)
    return int(text if size == 1 else text[:-1]) * size


def semantic_version(version: str) -> Version | None:
    """A driver's version with three parts and no leading zeros: 580.65.06 is 580.65.6.

    None for a text that is no version: the API would refuse the whole slice.
    """
    parts = version.split(".")
    if not 1 <= len(parts) <= 3 or not all(part.isascii() and part.isdigit() for part in parts):
        return None
    return Version(".".join(str(int(part)) for part in (*parts, "0", "0")[:3]))


def _attributes(
    device: Device, gpu: Gpu, resource: str, offering: Offering
) -> Iterator[tuple[str, Attribute]]:
    """At most 32 together with the capacities; a text has at most 64 bytes."""
    yield "type", "gpu" if device.mig is None else "mig"
    yield "uuid", device.uuid
    yield "resource", resource
    if device.mig is not None:
        yield "profile", device.mig.profile
        yield "parentUUID", gpu.uuid
    if gpu.product:
        yield "productName", gpu.product
    if gpu.compute_capability is not None:
        major, minor = gpu.compute_capability
        yield "cudaComputeCapability", Version(f"{major}.{minor}.0")
        if architecture := _ARCHITECTURES.get((major, minor)):
            yield "architecture", architecture
    if version := semantic_version(offering.driver_version):
        yield "driverVersion", version
    if gpu.pci_bus_id:
        domain, _, rest = gpu.pci_bus_id.lower().partition(":")
        bus_id = f"{domain[-4:]}:{rest}"
        yield f"{STANDARD}pciBusID", bus_id
        if root := offering.pcie_roots.get(bus_id):
            yield f"{STANDARD}pcieRoot", root
    if gpu.numa_node is not None:
        yield f"{STANDARD}numaNode", gpu.numa_node


def _attribute(value: Attribute) -> JsonObject:
    match value:
        case Version(text=text):
            return {"version": text}
        case bool():
            return {"bool": value}
        case int():
            return {"int": value}
        case str():
            return {"string": value.encode()[:_MAX_TEXT].decode(errors="ignore")}


def _taints(device: Device, board: HealthBoard, offering: Offering) -> Iterator[Taint]:
    """One key for each kind of fault, so that one of them never hides another."""
    if board.blind:
        yield Taint(f"{offering.driver}/unwatched", "true", "NoSchedule")
    if device.uuid in offering.withheld:
        yield Taint(f"{offering.driver}/withheld", "true", "NoSchedule")
    seen: set[Cause] = set()
    for uuid in filter(None, device.unit):
        health = board.units.get(uuid)
        if health is None or health.healthy:
            continue
        for fault in (health.fault, health.obstacle):
            if fault is not None and fault.cause not in seen:
                seen.add(fault.cause)
                yield _taint(fault, offering)
    if not seen and not board.blind and not board.healthy(*device.unit):
        yield Taint(f"{offering.driver}/recovering", "true", "NoSchedule")


def _taint(fault: Fault, offering: Offering) -> Taint:
    value = str(fault.xid) if fault.xid is not None else "true"
    lost = fault.cause.value in ("lost", "unreachable")
    effect: Effect = "NoExecute" if lost and offering.evict_lost else "NoSchedule"
    return Taint(f"{offering.driver}/{fault.cause.value}", value, effect)
