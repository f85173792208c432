"""The opaque configuration of a claim: which time slice its devices are to have.

It has the form of NVIDIA's driver, so that claims and classes written for it keep their meaning::

    apiVersion: resource.nvidia.com/v1beta1      # or resource.gpuplugin.dev/v1beta1
    kind: GpuConfig                              # MigDeviceConfig for MIG devices
    sharing: {strategy: TimeSlicing, timeSlicingConfig: {interval: Long}}

All shares of a GPU have one time slice. So a claim that asks for another one than a claim which
holds the GPU is refused until that one has ended; a claim that asks for none takes what there is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gpuplugin.core.dra.claims import ClaimError
from gpuplugin.core.jsonobject import JsonObject, objects, part
from hal import TimeSliceLevel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gpuplugin.core.dra.claims import ClaimRef

API_VERSIONS: Final = ("resource.gpuplugin.dev/v1beta1", "resource.nvidia.com/v1beta1")
GPU_CONFIG, MIG_CONFIG = "GpuConfig", "MigDeviceConfig"
TIME_SLICING: Final = "TimeSlicing"
INTERVALS: Final = {level.name.capitalize(): level for level in TimeSliceLevel}


def time_slices(claim: JsonObject, driver: str) -> dict[tuple[str, str], TimeSliceLevel | None]:
    """What an allocated claim asks for, by request and device; None where it asks for nothing.

    `claim` is the ResourceClaim as the API server has it. Configurations for other drivers are
    passed over. One that names no request is for all devices of its kind. One of the claim counts
    before one of a class, and among these the later one; it counts as a whole.

    Raises:
        ClaimError: a configuration for this driver has what cannot be done here.
    """
    allocation = part(part(part(claim, "status"), "allocation"), "devices")
    entries = [
        (one.get("source") != "FromClass", _requests(one), *_parsed(parameters))
        for one in objects(allocation.get("config"))
        for parameters in _mine(one, driver)
    ]
    entries.sort(key=lambda one: one[0])  # stable: classes first, and each in its order
    found: dict[tuple[str, str], TimeSliceLevel | None] = {}
    for result in objects(allocation.get("results")):
        if result.get("driver") != driver:
            continue
        request, device = str(result.get("request")), str(result.get("device"))
        found[request, device] = None
        for _, requests, kind, level in entries:
            named = bool(requests.intersection((request, request.partition("/")[0])))
            fits = (kind == MIG_CONFIG) == device.startswith("mig-")
            if named and not fits:
                raise ClaimError(f"{kind} cannot be applied to {device} of request {request}")
            if fits and (named or not requests):
                found[request, device] = level
    return found


def time_slice_conflict(
    asked: TimeSliceLevel | None, holders: Iterable[tuple[ClaimRef, TimeSliceLevel | None]]
) -> str:
    """Why a claim cannot have its time slice on a GPU that others hold, "" if it can."""
    for ref, level in holders:
        if asked is not None and level is not None and level is not asked:
            return (
                f"its time slice is {level.name.capitalize()} for claim {ref.namespace}/{ref.name} "
                f"until that is unprepared, and {asked.name.capitalize()} is asked for; all shares "
                "of a GPU have the same one"
            )
    return ""


def _mine(config: JsonObject, driver: str) -> Iterator[object]:
    opaque = part(config, "opaque")
    if opaque.get("driver") == driver:
        yield opaque.get("parameters")


def _requests(config: JsonObject) -> frozenset[str]:
    requests = config.get("requests")
    return frozenset(map(str, requests)) if isinstance(requests, list) else frozenset()


def _parsed(parameters: object) -> tuple[str, TimeSliceLevel | None]:
    """The kind of a configuration and its level; raises `ClaimError` for anything unknown."""
    config = _section(parameters, "parameters", ("apiVersion", "kind", "sharing"))
    version, kind = config.get("apiVersion"), config.get("kind")
    if version not in API_VERSIONS:
        raise _unfit("apiVersion", version, API_VERSIONS)
    if kind not in (GPU_CONFIG, MIG_CONFIG):
        raise _unfit("kind", kind, (GPU_CONFIG, MIG_CONFIG))
    if config.get("sharing") is None:
        return str(kind), None
    keys: tuple[str, ...] = ("strategy",)
    if kind == GPU_CONFIG:  # a MIG device has no time slice of its own
        keys = ("strategy", "timeSlicingConfig")
    sharing = config["sharing"]
    if isinstance(sharing, dict) and sharing.get("strategy") != TIME_SLICING:
        raise _unfit("sharing.strategy", sharing.get("strategy"), (TIME_SLICING,))
    sharing = _section(sharing, "sharing", keys)
    if sharing.get("timeSlicingConfig") is None:
        return str(kind), None
    place = "sharing.timeSlicingConfig"
    interval = _section(sharing["timeSlicingConfig"], place, ("interval",)).get("interval")
    if interval is None:
        return str(kind), None
    if not isinstance(interval, str) or interval not in INTERVALS:
        raise _unfit(f"{place}.interval", interval, INTERVALS)
    return str(kind), INTERVALS[interval]


def _section(value: object, place: str, keys: tuple[str, ...]) -> JsonObject:
    if not isinstance(value, dict):
        raise _wrong(f"{place} is no object")
    unknown = [key for key in value if key not in keys]
    if unknown:
        raise _wrong(f"{place} has the unknown field {unknown[0]!r}; known are {', '.join(keys)}")
    return value


def _unfit(place: str, value: object, allowed: Iterable[str]) -> ClaimError:
    return _wrong(f"{place} is {value!r}; possible is {' or '.join(allowed)}")


def _wrong(text: str) -> ClaimError:
    return ClaimError(f"the claim's opaque configuration: {text}")
