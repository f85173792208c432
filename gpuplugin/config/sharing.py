"""`sharing` and `resources` of the file: what is shared, and under which names."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, PlainSerializer

from gpuplugin.config.section import Integer, ResourceName, Section
from gpuplugin.config.values import device_reference
from gpuplugin.core.sharing import Selection


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


def _written(value: object) -> object:
    """A selection as the file spells it."""
    if not isinstance(value, Selection) or value.everything:
        return "all"
    return value.count if value.ids is None else sorted(value.ids)


class SharedResourceSection(Section):
    """One entry of sharing.timeSlicing.resources."""

    name: ResourceName
    """the resource to share; `nvidia.com/` is added where it is missing"""
    rename: ResourceName | None = None
    """advertise what is shared under this name"""
    devices: Annotated[
        object, BeforeValidator(_selection), PlainSerializer(_written, when_used="json")
    ] = Selection()
    """`all`, the first N, or a list of GPU index, MIG index `i:j`, and UUIDs of either"""
    replicas: Annotated[Integer, Field(ge=1)]
    """replicas per device; 1 is not shared"""


class TimeSlicingSection(Section):
    """sharing.timeSlicing."""

    rename_by_default: bool = False
    """advertise what is shared as `<name>.shared`"""
    fail_requests_greater_than_one: bool = False
    """refuse a container that asks for more than one replica"""
    resources: Annotated[list[SharedResourceSection], Field(min_length=1)]
    """what to share"""


def _no_mps(value: object) -> object:
    if value is not None:
        raise ValueError("sharing by MPS is not supported yet; use sharing.timeSlicing")
    return value


class SharingSection(Section):
    """sharing."""

    time_slicing: TimeSlicingSection | None = None
    """sharing by time slices"""
    mps: Annotated[None, BeforeValidator(_no_mps)] = None
    """not supported yet: an error"""


class NamePatternSection(Section):
    """One entry of resources.gpus or resources.mig."""

    pattern: Annotated[str, Field(min_length=1)]
    """a product or MIG profile; `*` stands for any text"""
    name: ResourceName
    """the resource for what matches"""


class ResourcesSection(Section):
    """resources: names for products and MIG profiles; the first pattern that matches counts."""

    gpus: list[NamePatternSection] = []
    """names for GPUs by product; `nvidia.com/gpu` where no pattern matches"""
    mig: list[NamePatternSection] = []
    """names for MIG devices by profile (strategy mixed); `nvidia.com/mig-<profile>` otherwise"""
