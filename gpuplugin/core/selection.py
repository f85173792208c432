"""Which GPUs take part, and under which resource names: filters and patterns, as pure matching."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hal import Gpu


def matches(pattern: str, text: str) -> bool:
    """NVIDIA's patterns: anchored, case-sensitive, `*` is the only wildcard."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text) is not None


@dataclass(frozen=True, slots=True)
class NamePattern:
    """A product or MIG profile pattern and the full resource name for what it matches."""

    pattern: str
    name: str


def first_match(patterns: tuple[NamePattern, ...], text: str) -> str | None:
    """The name of the first pattern that matches, None if none does."""
    return next((one.name for one in patterns if matches(one.pattern, text)), None)


@dataclass(frozen=True, slots=True)
class GpuFilter:
    """GPUs by index, UUID, PCI bus id or product pattern.

    A GPU takes part if it is in `include` (or that is empty) and not in `exclude`.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def admits(self, gpu: Gpu) -> bool:
        """True if the GPU takes part."""
        if self.include and not any(_names(term, gpu) for term in self.include):
            return False
        return not any(_names(term, gpu) for term in self.exclude)

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
        or _bus_id(term) == _bus_id(gpu.pci_bus_id)
        or matches(term, gpu.product)
    )


def _bus_id(text: str) -> str:
    """NVML's form (eight-digit domain, upper case) and sysfs' form (four, lower case) are equal."""
    domain, _, rest = text.lower().partition(":")
    return f"{domain.lstrip('0')}:{rest}"
