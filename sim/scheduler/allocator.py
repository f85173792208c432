"""Chooses devices for one claim: the first that fit, in the order of the slices. Pure.

As Kubernetes 1.36 does it for what GPU drivers use: complete pools of the newest generation alone,
slices by name, devices as they are listed; capacities are summed up over all claims; tainted
devices are skipped. Where a first choice leaves a later request without a device, others are tried.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING

from sim.apiserver.rules import Capacity, Device, SliceSpec, quantity
from sim.scheduler.selectors import Selectable, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from gpuplugin.core.jsonobject import JsonObject
    from sim.apiserver.rules import Constraint, Taint, Toleration
    from sim.scheduler.selectors import Value

MAX_RESULTS = 32


class CannotAllocate(Exception):
    """The claim cannot be allocated now; the text is for the pod's condition."""


@dataclass(frozen=True, slots=True)
class DeviceId:
    driver: str
    pool: str
    name: str


@dataclass(frozen=True, slots=True)
class Listed:
    """A device of a slice."""

    id: DeviceId
    selectable: Selectable
    capacity: Mapping[str, Capacity]
    taints: tuple[Taint, ...] = ()

    @property
    def shared(self) -> bool:
        return self.selectable.shared


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request: `count` different devices (None: all that match), and what it needs of each."""

    name: str
    selectors: tuple[str, ...]
    count: int | None = 1
    amounts: Mapping[str, Decimal] = field(default_factory=lambda: MappingProxyType({}))
    tolerations: tuple[Toleration, ...] = ()


@dataclass(frozen=True, slots=True)
class Given:
    """A device for a request; `consumed` is None for an exclusive device."""

    request: str
    device: DeviceId
    consumed: Mapping[str, Decimal] | None


@dataclass(frozen=True, slots=True)
class InUse:
    """What claims hold: exclusive devices, and the sums of what they consume of the others."""

    exclusive: frozenset[DeviceId] = frozenset()
    consumed: Mapping[DeviceId, Mapping[str, Decimal]] = field(
        default_factory=lambda: MappingProxyType({})
    )

    def plus(self, given: Iterable[Given]) -> InUse:
        exclusive, consumed = set(self.exclusive), dict(self.consumed)
        for one in given:
            if one.consumed is None:
                exclusive.add(one.device)
                continue
            before = consumed.get(one.device, {})
            consumed[one.device] = {
                name: before.get(name, Decimal(0)) + one.consumed.get(name, Decimal(0))
                for name in before.keys() | one.consumed.keys()
            }
        return InUse(frozenset(exclusive), MappingProxyType(consumed))


def listed_devices(slices: Iterable[tuple[str, JsonObject]], node: str) -> tuple[Listed, ...]:
    """The devices of a node in the scheduler's order; `slices` are names with their specs.

    A pool counts once all slices of its newest generation are there; one in which a device is
    named twice does not count at all.
    """
    pools: dict[tuple[str, str], list[SliceSpec]] = {}
    for _, body in sorted(slices, key=lambda one: one[0]):
        spec = SliceSpec.model_validate(body)
        pools.setdefault((spec.driver, spec.pool.name), []).append(spec)
    found: list[Listed] = []
    for _, specs in sorted(pools.items()):
        newest = max(spec.pool.generation for spec in specs)
        current = [spec for spec in specs if spec.pool.generation == newest]
        devices = [device for spec in current for device in spec.devices]
        complete = len(current) == current[0].pool.resource_slice_count
        if complete and len({device.name for device in devices}) == len(devices):
            found += (
                _listed(spec, device)
                for spec in current
                if spec.node_name == node or spec.all_nodes
                for device in spec.devices
            )
    return tuple(found)


def allocate(
    wanted: Sequence[Wanted],
    devices: Sequence[Listed],
    in_use: InUse,
    constraints: Sequence[Constraint] = (),
) -> tuple[Given, ...]:
    """Devices for all requests of a claim.

    Raises:
        CannotAllocate: there are none.
        UnsupportedSelector, SelectorFailed: a selector cannot be evaluated.
    """
    search = _Search(devices, in_use, constraints)
    total = 0
    for request in wanted:
        matching = search.matching(request)
        count = len(matching) if request.count is None else request.count
        total += count
        if total > MAX_RESULTS or not count or len(matching) < count:
            raise CannotAllocate("cannot allocate all claims")
        search.add(request, matching, count)
    if not search.found():
        raise CannotAllocate("cannot allocate all claims")
    return tuple(search.given)


class _Search:
    """A depth-first search over the devices of one request after the other."""

    def __init__(
        self, devices: Sequence[Listed], in_use: InUse, constraints: Sequence[Constraint]
    ) -> None:
        self._devices = devices
        self._by_id = {device.id: device for device in devices}
        self._in_use = in_use
        self._constraints = constraints
        self._slots: list[tuple[Wanted, list[Listed], bool]] = []
        """A request, its candidates, and whether the device must be behind the one before it."""
        self.given: list[Given] = []

    def matching(self, request: Wanted) -> list[Listed]:
        """Devices that are selected and not tainted, whether or not somebody has them."""
        selectors = [parse(text) for text in request.selectors]
        return [
            device
            for device in self._devices
            if all(selector.selects(device.selectable) for selector in selectors)
            and all(_tolerated(taint, request.tolerations) for taint in device.taints)
        ]

    def add(self, request: Wanted, matching: list[Listed], count: int) -> None:
        self._slots += ((request, matching, number > 0) for number in range(count))

    def found(self) -> bool:
        return self._fill(0, 0)

    def _fill(self, slot: int, first: int) -> bool:
        if slot == len(self._slots):
            return True
        request, candidates, same = self._slots[slot]
        for at in range(first if same else 0, len(candidates)):
            given = self._possible(request, candidates[at])
            if given is None:
                continue
            self.given.append(given)
            if self._constrained() and self._fill(slot + 1, at + 1):
                return True
            self.given.pop()
        return False

    def _possible(self, request: Wanted, device: Listed) -> Given | None:
        """The device for the request, None if it has no room."""
        now = self._in_use.plus(self.given)
        if device.id in now.exclusive:
            return None
        if request.amounts.keys() - device.capacity.keys():
            return None
        if not device.shared:
            # Shares that are out are not looked at: neither does Kubernetes 1.36.
            fits = all(
                amount <= quantity(device.capacity[name].value)
                for name, amount in request.amounts.items()
            )
            return Given(request.name, device.id, None) if fits else None
        used = now.consumed.get(device.id, {})
        consumed: dict[str, Decimal] = {}
        for name, capacity in device.capacity.items():
            amount = _charged(capacity, request.amounts.get(name))
            if amount is None or used.get(name, Decimal(0)) + amount > quantity(capacity.value):
                return None
            consumed[name] = amount
        return Given(request.name, device.id, MappingProxyType(consumed))

    def _constrained(self) -> bool:
        return all(self._holds(constraint) for constraint in self._constraints)

    def _holds(self, constraint: Constraint) -> bool:
        path = constraint.match_attribute or constraint.distinct_attribute
        if path is None:
            return True
        domain, _, name = path.rpartition("/")
        values: list[Value | None] = [
            self._by_id[one.device].selectable.attributes.get(domain, {}).get(name)
            for one in self.given
            if not constraint.requests or one.request in constraint.requests
        ]
        if None in values:
            return False
        different = len(set(values))
        return different <= 1 if constraint.match_attribute else different == len(values)


def _charged(capacity: Capacity, asked: Decimal | None) -> Decimal | None:
    """What a request is charged of a capacity, None if the policy does not allow it."""
    policy = capacity.request_policy
    if asked is None:
        default = policy.default if policy else None
        return quantity(capacity.value if default is None else default)
    if policy is None:
        return asked
    if policy.valid_values:
        allowed = (quantity(value) for value in policy.valid_values)
        return next((value for value in allowed if value >= asked), None)
    valid = policy.valid_range
    if valid is None:
        return asked
    least = quantity(valid.min)
    amount = max(asked, least)
    if valid.step is not None:
        step = quantity(valid.step)
        steps, rest = divmod(amount - least, step)
        amount = least + (steps + bool(rest)) * step
    return None if valid.max is not None and amount > quantity(valid.max) else amount


def _tolerated(taint: Taint, tolerations: Iterable[Toleration]) -> bool:
    return taint.effect == "None" or any(
        one.key in ("", taint.key)
        and one.effect in ("", taint.effect)
        and (one.operator == "Exists" or one.value == taint.value)
        for one in tolerations
    )


def _listed(spec: SliceSpec, device: Device) -> Listed:
    attributes: dict[str, dict[str, Value]] = {}
    for path, attribute in device.attributes.items():
        domain, _, name = path.rpartition("/")
        values: Iterator[Value | None] = iter(
            (attribute.string, attribute.version, attribute.flag, attribute.number)
        )
        value = next(value for value in values if value is not None)
        attributes.setdefault(domain or spec.driver, {})[name] = value
    return Listed(
        DeviceId(spec.driver, spec.pool.name, device.name),
        Selectable(spec.driver, attributes, device.allow_multiple_allocations),
        MappingProxyType(device.capacity),
        tuple(device.taints),
    )
