"""How GPUs are shared: what the user wants, which GPUs take part, and the ids of replicas."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hal import Gpu, TimeSliceLevel

SEPARATOR = "::"


def replica_id(uuid: str, replica: int | str) -> str:
    """`<uuid>::<n>`, the form that NVIDIA's plugin, dcgm-exporter and others parse."""
    return f"{uuid}{SEPARATOR}{replica}"


def is_replica_id(device_id: str) -> bool:
    return SEPARATOR in device_id


def uuid_of(device_id: str) -> str:
    """The UUID in a device id, replica or not: everything before the first `::`."""
    return device_id.partition(SEPARATOR)[0]


def replica_of(device_id: str) -> str:
    """The number of the replica in a device id, "" for a whole device."""
    return device_id.partition(SEPARATOR)[2]


def matches(pattern: str, text: str) -> bool:
    """NVIDIA's patterns: anchored, case-sensitive, `*` is the only wildcard."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text) is not None


@dataclass(frozen=True, slots=True)
class NamePattern:
    """A product or MIG profile pattern and the full resource name for what it matches."""

    pattern: str
    name: str


def first_match(patterns: tuple[NamePattern, ...], text: str) -> str | None:
    return next((one.name for one in patterns if matches(one.pattern, text)), None)


@dataclass(frozen=True, slots=True)
class GpuFilter:
    """GPUs by index, UUID, PCI bus id or product pattern.

    A GPU takes part if it is in `include` (or that is empty) and not in `exclude`.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def admits(self, gpu: Gpu) -> bool:
        if self.include and not any(_names(term, gpu) for term in self.include):
            return False
        return self.excluded_by(gpu) is None

    def excluded_by(self, gpu: Gpu) -> str | None:
        """The first term that excludes it."""
        return next((term for term in self.exclude if _names(term, gpu)), None)

    def notes(self, gpus: Sequence[Gpu]) -> Iterator[str]:
        """What the user may have meant otherwise, given all GPUs of a node that has some."""
        for key, terms in (("include", self.include), ("exclude", self.exclude)):
            for term in terms:
                if not any(_names(term, gpu) for gpu in gpus):
                    yield f"gpus.{key}: {term} names no GPU of this node"
        if not any(self.admits(gpu) for gpu in gpus):
            yield "gpus.include and gpus.exclude leave no GPU"


def _names(term: str, gpu: Gpu) -> bool:
    return (
        term == str(gpu.index)
        or term.lower() == gpu.uuid.lower()
        or (":" in term and _bus_id(term) == _bus_id(gpu.pci_bus_id))
        or matches(term, gpu.product)
    )


def _bus_id(text: str) -> str:
    """NVML's form (eight-digit domain, upper case) and sysfs' form (four, lower case) are equal."""
    domain, _, rest = text.lower().partition(":")
    return f"{domain.lstrip('0')}:{rest}"


SHARED_SUFFIX = ".shared"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which devices of a resource are meant: all, the first `count`, or those named in `ids`.

    An id is a GPU index (`0`), a MIG index (`0:1`), a UUID of either, or the legacy MIG name
    `MIG-GPU-<uuid>/<gi>/<ci>`.
    """

    count: int | None = None
    ids: frozenset[str] | None = None

    @property
    def everything(self) -> bool:
        return self.count is None and self.ids is None


@dataclass(frozen=True, slots=True)
class SharedResource:
    """One entry of the sharing configuration; `name` and `rename` are full resource names."""

    name: str
    replicas: int
    selection: Selection = Selection()
    rename: str | None = None


@dataclass(frozen=True, slots=True)
class TimeSlicing:
    """Time slicing by resource name; several entries may name the same resource."""

    resources: tuple[SharedResource, ...] = ()
    rename_by_default: bool = False
    fail_requests_greater_than_one: bool = False
    interval: TimeSliceLevel | None = None
    """The length of the time slices of GPUs that are shared; None leaves it as it is."""

    def advertised_name(self, entry: SharedResource) -> str:
        """The name under which the kubelet sees what `entry` shares."""
        if entry.rename is not None:
            return entry.rename
        if self.rename_by_default and entry.replicas > 1:
            return entry.name + SHARED_SUFFIX
        return entry.name
