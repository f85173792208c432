"""The simulated scheduler's choice of devices, against one that tries everything."""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.apiserver.rules import Constraint, Toleration
from sim.scheduler.allocator import (
    CannotAllocate,
    Given,
    InUse,
    Wanted,
    allocate,
    listed_devices,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sim.scheduler.allocator import Listed

DRIVER, NODE = "gpu.example.com", "n1"
GPU = f"device.driver == '{DRIVER}'"
TAINT = {"key": f"{DRIVER}/xid", "value": "79", "effect": "NoSchedule"}


def gpu(number: int, shares: int | None = 10, **changes: Any) -> dict[str, Any]:
    device: dict[str, Any] = {
        "name": f"gpu-{number}",
        "attributes": {"uuid": {"string": f"GPU-{number}"}, "odd": {"bool": number % 2 == 1}},
        "capacity": {"memory": {"value": "24Gi"}},
    }
    if shares is not None:
        device["allowMultipleAllocations"] = True
        device["capacity"] = {
            "shares": {"value": str(shares), "requestPolicy": {"default": "1"}},
            "memory": {"value": "24Gi", "requestPolicy": {"default": "0"}},
        }
    return device | changes


def pool(
    *devices: dict[str, Any], name: str = "a", generation: int = 1, count: int = 1, **changes: Any
) -> tuple[str, dict[str, Any]]:
    told = {"name": NODE, "generation": generation, "resourceSliceCount": count}
    spec = {"driver": DRIVER, "nodeName": NODE, "pool": told, "devices": list(devices)}
    return name, spec | changes


def names(devices: Iterable[Listed]) -> list[str]:
    return [device.id.name for device in devices]


def chosen(
    devices: Sequence[Listed],
    *wanted: Wanted,
    in_use: InUse | None = None,
    constraints: Sequence[Constraint] = (),
) -> list[str]:
    """Names of what is allocated, empty if nothing is."""
    try:
        found = allocate(wanted, devices, in_use or InUse(), constraints)
    except CannotAllocate:
        return []
    return [one.device.name for one in found]


def one(name: str = "gpu", count: int | None = 1, **changes: Any) -> Wanted:
    return Wanted(name, (GPU,), count, **changes)


# Which devices there are


def test_slices_by_name_and_devices_as_they_are_listed() -> None:
    slices = [pool(gpu(3), name="b", count=2), pool(gpu(2), gpu(1), name="a", count=2)]
    assert names(listed_devices(slices, NODE)) == ["gpu-2", "gpu-1", "gpu-3"]


@pytest.mark.parametrize(
    ("slices", "expected"),
    [
        ([pool(gpu(0), name="a"), pool(gpu(1), name="b", generation=2)], ["gpu-1"]),
        ([pool(gpu(0), count=2)], []),
        ([pool(gpu(0), name="a", count=2), pool(gpu(0), name="b", count=2)], []),
        ([pool(gpu(0), nodeName="n2")], []),
        ([pool(gpu(0), nodeName=None, allNodes=True)], ["gpu-0"]),
        ([pool()], []),
    ],
)
def test_pools(slices: list[tuple[str, dict[str, Any]]], expected: list[str]) -> None:
    assert names(listed_devices(slices, NODE)) == expected


# What is chosen


def filled(devices: Sequence[Listed], wanted: Wanted) -> list[str]:
    """One claim after the other, until there is no room."""
    in_use = InUse()
    result: list[str] = []
    while True:
        try:
            found = allocate([wanted], devices, in_use)
        except CannotAllocate:
            return result
        in_use = in_use.plus(found)
        result.append(",".join(given.device.name for given in found))


def test_the_first_gpu_is_filled_first_and_there_is_an_end() -> None:
    devices = listed_devices([pool(gpu(0, 10), gpu(1, 4))], NODE)
    assert filled(devices, one()) == ["gpu-0"] * 10 + ["gpu-1"] * 4


def test_two_are_two_different_gpus() -> None:
    devices = listed_devices([pool(gpu(0), gpu(1), gpu(2, 1))], NODE)
    assert filled(devices, one(count=2)) == ["gpu-0,gpu-1"] * 10
    alone = listed_devices([pool(gpu(0))], NODE)
    assert chosen(alone, one(count=2)) == []
    assert chosen(alone, one("a"), one("b")) == ["gpu-0", "gpu-0"]


def test_three_shares_of_one_gpu() -> None:
    devices = listed_devices([pool(gpu(0, 10), gpu(1, 2))], NODE)
    three = one(amounts={"shares": Decimal(3)})
    assert filled(devices, three) == ["gpu-0"] * 3
    assert chosen(devices, one(amounts={"cores": Decimal(1)})) == []


def test_memory_without_a_policy_makes_the_gpu_exclusive() -> None:
    capacity = gpu(0)["capacity"] | {"memory": {"value": "24Gi"}}
    devices = listed_devices([pool(gpu(0, capacity=capacity))], NODE)
    assert filled(devices, one()) == ["gpu-0"]


def test_no_capacity_is_no_limit() -> None:
    devices = listed_devices([pool(gpu(0, capacity={}))], NODE)
    (given_,) = allocate([one()], devices, InUse())
    assert given_.consumed == {}


@pytest.mark.parametrize(
    ("policy", "asked", "charged"),
    [
        ({"default": "1", "validRange": {"min": "1", "step": "1"}}, "1500m", 2),
        ({"default": "1", "validRange": {"min": "1", "step": "1"}}, "3", 3),
        ({"default": "2", "validRange": {"min": "2"}}, "1", 2),
        ({"default": "1", "validRange": {"min": "1", "max": "4", "step": "1"}}, "5", None),
        ({"default": "1", "validRange": {"min": "1", "step": "3"}}, "5", 7),
        ({"default": "1", "validValues": ["1", "4", "8"]}, "2", 4),
        ({"default": "1", "validValues": ["1", "4", "8"]}, "9", None),
        ({"default": "1"}, "2", 2),
        (None, "2", 2),
    ],
)
def test_what_a_request_is_charged(
    policy: dict[str, Any] | None, asked: str, charged: int | None
) -> None:
    shares = {"value": "10"} | ({"requestPolicy": policy} if policy else {})
    devices = listed_devices([pool(gpu(0, capacity={"shares": shares}))], NODE)
    wanted = one(amounts={"shares": Decimal("1.5") if asked == "1500m" else Decimal(asked)})
    if charged is None:
        assert chosen(devices, wanted) == []
    else:
        (found,) = allocate([wanted], devices, InUse())
        assert found.consumed == {"shares": Decimal(charged)}


def test_a_taint_keeps_new_claims_away() -> None:
    devices = listed_devices([pool(gpu(0, taints=[TAINT]), gpu(1))], NODE)
    assert chosen(devices, one()) == ["gpu-1"]
    for toleration, expected in (
        (Toleration(key=f"{DRIVER}/xid", operator="Exists"), "gpu-0"),
        (Toleration(key=f"{DRIVER}/xid", value="79"), "gpu-0"),
        (Toleration(key=f"{DRIVER}/xid", value="48"), "gpu-1"),
        (Toleration(key="", operator="Exists"), "gpu-0"),
        (Toleration(key=f"{DRIVER}/xid", operator="Exists", effect="NoExecute"), "gpu-1"),
    ):
        assert chosen(devices, one(tolerations=(toleration,))) == [expected]
    told = listed_devices([pool(gpu(0, taints=[{**TAINT, "effect": "None"}]))], NODE)
    assert chosen(told, one()) == ["gpu-0"]


def test_an_exclusive_device_is_one_claims() -> None:
    devices = listed_devices([pool(gpu(0, None), gpu(1))], NODE)
    first = allocate([one()], devices, InUse())
    assert [(given.device.name, given.consumed) for given in first] == [("gpu-0", None)]
    in_use = InUse().plus(first)
    assert chosen(devices, one(), in_use=in_use) == ["gpu-1"]
    now_shared = listed_devices([pool(gpu(0, 10))], NODE)
    assert chosen(now_shared, one(), in_use=in_use) == [], "until it is released"


def test_a_device_that_is_no_longer_shared_is_given_out_on_top_of_its_shares() -> None:
    """As Kubernetes 1.36.2 does it, and a driver has to prevent it."""
    in_use = InUse().plus(allocate([one()], listed_devices([pool(gpu(0))], NODE), InUse()))
    assert chosen(listed_devices([pool(gpu(0, None))], NODE), one(), in_use=in_use) == ["gpu-0"]


def test_all_devices() -> None:
    devices = listed_devices([pool(gpu(0, None), gpu(1, None))], NODE)
    assert chosen(devices, one(count=None)) == ["gpu-0", "gpu-1"]
    in_use = InUse().plus(allocate([one()], devices, InUse()))
    assert chosen(devices, one(count=None), in_use=in_use) == []


def test_a_first_choice_that_leaves_nothing_is_taken_back() -> None:
    devices = listed_devices([pool(gpu(1, None), gpu(2, None))], NODE)
    odd = Wanted("odd", (f"device.attributes['{DRIVER}'].odd",))
    assert chosen(devices, one(), odd) == ["gpu-2", "gpu-1"]


# Against all possibilities

REQUESTS = st.builds(
    Wanted,
    name=st.sampled_from(["a", "b", "c"]),
    selectors=st.sampled_from([(GPU,), (GPU, f"device.attributes['{DRIVER}'].odd")]),
    count=st.integers(1, 3),
    amounts=st.sampled_from([{}, {"shares": Decimal(2)}]),
    tolerations=st.sampled_from([(), (Toleration(operator="Exists"),)]),
)
CONSTRAINTS = st.sampled_from(
    [
        [],
        [Constraint(distinct_attribute=f"{DRIVER}/uuid")],
        [Constraint(match_attribute=f"{DRIVER}/odd", requests=["a", "b"])],
    ]
)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Listed], InUse]:
    devices = []
    for number in range(draw(st.integers(1, 4))):
        taints = [TAINT] if draw(st.integers(0, 4)) == 0 else []
        devices.append(gpu(number, draw(st.sampled_from([None, 1, 2, 3])), taints=taints))
    listed = list(listed_devices([pool(*devices)], NODE))
    out = draw(st.lists(st.sampled_from(listed), max_size=3))
    in_use = InUse()
    for device in out:
        consumed = {"shares": Decimal(1), "memory": Decimal(0)} if device.shared else None
        in_use = in_use.plus([Given("x", device.id, consumed)])
    return listed, in_use


def tried(
    wanted: Sequence[Wanted],
    devices: Sequence[Listed],
    in_use: InUse,
    constraints: Sequence[Constraint],
) -> list[str] | None:
    """The first of all combinations of devices that is allowed, by name."""
    slots = [request for request in wanted for _ in range(request.count or 0)]
    for choice in product(range(len(devices)), repeat=len(slots)):
        if _allowed(slots, [devices[at] for at in choice], choice, in_use, constraints):
            return [devices[at].id.name for at in choice]
    return None


def _allowed(
    slots: Sequence[Wanted],
    choice: Sequence[Listed],
    places: Sequence[int],
    in_use: InUse,
    constraints: Sequence[Constraint],
) -> bool:
    pairs = list(zip(slots, choice, strict=True))
    placed = list(zip(slots, places, strict=True))
    return (
        all(left is not right or at < behind for (left, at), (right, behind) in pairwise(placed))
        and all(_matches(request, device) for request, device in pairs)
        and all(
            _has_room(device, [request for request, other in pairs if other is device], in_use)
            for device in choice
        )
        and all(_holds(constraint, pairs) for constraint in constraints)
    )


def _is_odd(device: Listed) -> bool:
    return int(device.id.name[-1]) % 2 == 1


def _matches(request: Wanted, device: Listed) -> bool:
    selected = len(request.selectors) == 1 or _is_odd(device)
    tolerated = not device.taints or bool(request.tolerations)
    return selected and tolerated and (device.shared or not request.amounts)


def _has_room(device: Listed, requests: Sequence[Wanted], in_use: InUse) -> bool:
    if device.id in in_use.exclusive:
        return False
    if not device.shared:
        return len(requests) == 1
    out = in_use.consumed.get(device.id, {}).get("shares", Decimal(0))
    more = sum(request.amounts.get("shares", Decimal(1)) for request in requests)
    return out + more <= int(device.capacity["shares"].value)


def _holds(constraint: Constraint, pairs: Sequence[tuple[Wanted, Listed]]) -> bool:
    about = [
        device
        for request, device in pairs
        if not constraint.requests or request.name in constraint.requests
    ]
    if constraint.distinct_attribute:
        return len({device.id for device in about}) == len(about)
    return len(set(map(_is_odd, about))) <= 1


@settings(max_examples=300, deadline=None)
@given(
    worlds(),
    st.lists(REQUESTS, min_size=1, max_size=2, unique_by=lambda one: one.name),
    CONSTRAINTS,
)
def test_it_finds_what_trying_everything_finds(
    world: tuple[list[Listed], InUse], wanted: list[Wanted], constraints: list[Constraint]
) -> None:
    devices, in_use = world
    found = chosen(devices, *wanted, in_use=in_use, constraints=constraints)
    assert (found or None) == tried(wanted, devices, in_use, constraints)
