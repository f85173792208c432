"""ResourceSlices of a node: which there should be, and what to write so that there are.

A pool is complete once all slices of its newest generation are there. So a change inside one slice
is an update in place; a change of several slices, or of their number, is a new generation of all.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from gpuplugin.core.dra.devices import Offer, Taint, whole_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from gpuplugin.core.dra.claims import Claims
    from gpuplugin.core.jsonobject import JsonObject

DEVICES_PER_SLICE = 64
"""128 without taints; but a fault must not change the layout."""
MAX_NAME = 253
ORDER_PAUSE_S = 1.0
"""Between two orders of the devices that follow shares as they are taken."""

Order: TypeAlias = Literal["packed", "distributed"]

GATES = {
    "allowMultipleAllocations": "DRAConsumableCapacity",
    "requestPolicy": "DRAConsumableCapacity",
    "taints": "DRADeviceTaints",
}
"""Fields that an API server drops without a word where their feature gate is off."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A slice as the API server has it; `spec` is its JSON."""

    name: str
    uid: str
    resource_version: str
    spec: JsonObject


@dataclass(frozen=True, slots=True)
class Create:
    name: str
    spec: JsonObject


@dataclass(frozen=True, slots=True)
class Update:
    """Replace the spec of a slice, if it is still at its version."""

    stored: Stored
    spec: JsonObject


@dataclass(frozen=True, slots=True)
class Delete:
    stored: Stored


Write: TypeAlias = Create | Update | Delete


@dataclass(frozen=True, slots=True)
class Pool:
    """The pool of one driver on one node; its name is that of the node."""

    driver: str
    node: str

    def slice_name(self, number: int) -> str:
        """The same at each start, so that what was there before is recognised."""
        name = f"{self.node}-{self.driver}-{number}"
        if len(name) <= MAX_NAME:
            return name
        return f"{hashlib.sha256(name.encode()).hexdigest()[:40]}-{number}"


def in_order(offers: Iterable[Offer], taken: Mapping[str, int], order: Order) -> tuple[Offer, ...]:
    """Devices as the scheduler should try them: it takes the first with room.

    `taken` are shares that are out, by device name. Packed: those that are used, the fullest
    first; distributed: those with the fewest. Devices of one count stay in their order.
    """
    sign = -1 if order == "packed" else 1
    return tuple(sorted(offers, key=lambda offer: sign * taken.get(offer.name, 0)))


def kept_shared(wanted: Offer, offered_replicas: int, out: int) -> int:
    """With how many replicas a device may be offered: those that are wanted, with one exception.

    A device whose shares are out stays shared: the scheduler (1.36) would give it whole to the next
    pod, on top of them. `offered_replicas` is what it is offered with now, 0 if that is not known.
    """
    if wanted.shared or not out:
        return wanted.replicas
    return max(offered_replicas, out, 2)


@dataclass(frozen=True, slots=True)
class Arranged:
    """What is offered, in order; `kept` are names of devices that stay shared for now."""

    offers: tuple[Offer, ...] = ()
    kept: frozenset[str] = frozenset()


def arranged(
    wanted: Sequence[Offer], claims: Claims, offered: Mapping[str, int], order: Order
) -> Arranged:
    """Devices as they may be offered while these claims are prepared, in the order of the policy.

    `offered` are the replicas with which devices are offered now, by name, as far as known.
    """
    out = claims.shares_out()
    possible = tuple(
        replace(one, replicas=kept_shared(one, offered.get(one.name, 0), out.get(one.name, 0)))
        for one in wanted
    )
    kept = frozenset(
        now.name for now, one in zip(possible, wanted, strict=True) if now.replicas != one.replicas
    )
    return Arranged(in_order(possible, claims.taken(), order), kept)


def writes(offers: Sequence[Offer], pool: Pool, stored: Iterable[Stored]) -> tuple[Write, ...]:
    """What to write so that the API server has these devices in this order, in this turn.

    Slices of an older generation go first, so that no device is in two slices of one generation.
    Without devices one empty slice says that the driver works.
    """
    chunks = [
        [offer.as_json() for offer in offers[at : at + DEVICES_PER_SLICE]]
        for at in range(0, max(1, len(offers)), DEVICES_PER_SLICE)
    ]
    have = {one.name: one for one in stored}
    names = [pool.slice_name(number) for number in range(len(chunks))]
    superseded = tuple(Delete(one) for name, one in have.items() if name not in names)
    newest = max((_generation(one) for one in have.values()), default=0)
    changed = [
        name
        for name, devices in zip(names, chunks, strict=True)
        if name not in have or not _same(devices, have[name], len(chunks), newest)
    ]
    if not changed:
        return superseded
    in_place = len(changed) == 1 and changed[0] in have and not superseded
    if in_place and len({_generation(one) for one in have.values()}) == 1:
        generation, touched = newest, changed
    else:
        generation, touched = newest + 1, names
    result: list[Write] = [*superseded]
    for name, devices in zip(names, chunks, strict=True):
        if name in touched:
            spec = _spec(pool, generation, len(chunks), devices)
            known = have.get(name)
            result.append(
                Create(name, spec) if known is None else Update(known, _timed(spec, known))
            )
    return tuple(result)


def dropped_gates(sent: JsonObject, stored: JsonObject) -> frozenset[str]:
    """The feature gates that are off, by the fields of a slice's spec that were not stored."""
    return frozenset(GATES[field] for field in _fields(sent) - _fields(stored) if field in GATES)


def stored_replicas(stored: Iterable[Stored]) -> dict[str, int]:
    """How many shares each device is offered with, by its name; 1 for an exclusive one."""
    found: dict[str, int] = {}
    for one in stored:
        for device in _devices(one.spec):
            replicas = 1
            if device.get("allowMultipleAllocations"):
                capacity = device.get("capacity")
                shares = capacity.get("shares") if isinstance(capacity, dict) else None
                if isinstance(shares, dict):
                    replicas = whole_number(str(shares["value"]))
            found[str(device["name"])] = replicas
    return found


def trial_spec(pool: Pool) -> JsonObject:
    """A slice that uses whatever an API server may drop; it is not to be stored."""
    taint = Taint(f"{pool.driver}/trial", "true", "NoSchedule")
    device = Offer("trial", ("", None), "", 2, None, taints=(taint,))
    return _spec(pool, 0, 1, [device.as_json()])


def _spec(pool: Pool, generation: int, count: int, devices: list[JsonObject]) -> JsonObject:
    return {
        "driver": pool.driver,
        "nodeName": pool.node,
        "pool": {"name": pool.node, "generation": generation, "resourceSliceCount": count},
        "devices": devices,
    }


def _same(devices: list[JsonObject], stored: Stored, count: int, newest: int) -> bool:
    """Whether a slice is as wanted, but for the times that the API server adds to taints."""
    pool = stored.spec.get("pool")
    if not isinstance(pool, dict) or pool.get("resourceSliceCount") != count:
        return False
    return _generation(stored) == newest and devices == [
        _without_times(device) for device in _devices(stored.spec)
    ]


def _timed(spec: JsonObject, stored: Stored) -> JsonObject:
    """The spec with the times of taints that stay: a new one would begin to tolerate again."""
    times = {
        (device["name"], taint["key"], taint["value"], taint["effect"]): taint["timeAdded"]
        for device in _devices(stored.spec)
        for taint in _taints(device)
        if "timeAdded" in taint
    }
    devices = []
    for device in _devices(spec):
        taints = [
            {**taint, "timeAdded": times[key]}
            if (key := (device["name"], taint["key"], taint["value"], taint["effect"])) in times
            else taint
            for taint in _taints(device)
        ]
        devices.append({**device, "taints": taints} if taints else device)
    return {**spec, "devices": devices}


def _without_times(device: JsonObject) -> JsonObject:
    taints = [
        {key: value for key, value in taint.items() if key != "timeAdded"}
        for taint in _taints(device)
    ]
    return {**device, "taints": taints} if taints else device


def _generation(stored: Stored) -> int:
    pool = stored.spec.get("pool")
    generation = pool.get("generation") if isinstance(pool, dict) else None
    return generation if isinstance(generation, int) else 0


def _devices(spec: JsonObject) -> list[JsonObject]:
    devices = spec.get("devices")
    return devices if isinstance(devices, list) else []


def _taints(device: JsonObject) -> list[JsonObject]:
    taints = device.get("taints")
    return taints if isinstance(taints, list) else []


def _fields(value: object) -> set[str]:
    return set(_every_field(value))


def _every_field(value: object) -> Iterator[str]:
    match value:
        case dict():
            for key, inner in value.items():
                yield key
                yield from _every_field(inner)
        case list():
            for inner in value:
                yield from _every_field(inner)
