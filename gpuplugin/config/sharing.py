"""`sharing` and `resources` of the file: what is shared, and under which names."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from gpuplugin.config.section import Integer, ResourceName, Section
from gpuplugin.config.values import device_reference
from gpuplugin.core.selection import NamePattern
from gpuplugin.core.sharing import Selection, SharedResource, TimeSlicing


def _selection(value: object) -> object:
    """`all`, a count, or a list of device references."""
    if isinstance(value, Selection):
        return value
    if value == "all":
        return Selection()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return Selection(count=value)
    if isinstance(value, list) and value:
        return Selection(ids=frozenset(device_reference(one) for one in value))
    raise ValueError(
        f"must be 'all', a number above 0, or a list of indices and UUIDs, found {value!r}"
    )


class SharedResourceSection(Section):
    """One entry of sharing.timeSlicing.resources."""

    name: ResourceName
    rename: ResourceName | None = None
    devices: Annotated[object, BeforeValidator(_selection)] = Selection()
    replicas: Annotated[Integer, Field(ge=1)]

    def entry(self) -> SharedResource:
        """The entry as the inventory needs it."""
        selection = self.devices if isinstance(self.devices, Selection) else Selection()
        return SharedResource(self.name, self.replicas, selection, self.rename)


class TimeSlicingSection(Section):
    """sharing.timeSlicing."""

    rename_by_default: bool = False
    fail_requests_greater_than_one: bool = False
    resources: Annotated[list[SharedResourceSection], Field(min_length=1)]


def _no_mps(value: object) -> object:
    if value is not None:
        raise ValueError("sharing by MPS is not supported yet; use sharing.timeSlicing")
    return value


class SharingSection(Section):
    """sharing."""

    time_slicing: TimeSlicingSection | None = None
    mps: Annotated[None, BeforeValidator(_no_mps)] = None

    def plan(self) -> TimeSlicing:
        """The sharing plan, as the inventory needs it."""
        section = self.time_slicing
        if section is None:
            return TimeSlicing()
        return TimeSlicing(
            resources=tuple(entry.entry() for entry in section.resources),
            rename_by_default=section.rename_by_default,
            fail_requests_greater_than_one=section.fail_requests_greater_than_one,
        )


class NamePatternSection(Section):
    """One entry of resources.gpus or resources.mig."""

    pattern: Annotated[str, Field(min_length=1)]
    name: ResourceName


class ResourcesSection(Section):
    """resources: names for products and MIG profiles; the first pattern that matches counts."""

    gpus: list[NamePatternSection] = []
    mig: list[NamePatternSection] = []

    def gpu_names(self) -> tuple[NamePattern, ...]:
        """Patterns of products."""
        return tuple(NamePattern(one.pattern, one.name) for one in self.gpus)

    def mig_names(self) -> tuple[NamePattern, ...]:
        """Patterns of MIG profiles."""
        return tuple(NamePattern(one.pattern, one.name) for one in self.mig)
