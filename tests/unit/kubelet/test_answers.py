"""What is joined from serialised pieces is what the library and `inject` make of any request."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuplugin.core.injection import (
    DeviceListStrategy,
    Extras,
    Injection,
    InjectionPlan,
    Mount,
    inject,
)
from gpuplugin.core.preference import PolicyName
from gpuplugin.kubelet.answers import AllocateAnswers, PreferredAnswers, container_response
from gpuplugin.kubelet.deviceplugin import DevicePlugin
from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from gpuplugin.kubelet.protowire import message
from gpuplugin.kubelet.snapshot import ServingPlan, snapshot_of
from gpuplugin.rpc import RpcError
from hal import MigDevice
from tests.unit.builders import a_resource
from tests.unit.core.preference.topologies import islands, links_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gpuplugin.core.inventory import Device, Resource

NAMES = st.lists(st.sampled_from(["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/x"]), max_size=3)
PLANS = st.builds(
    InjectionPlan,
    strategies=st.sets(st.sampled_from(get_args(DeviceListStrategy)), min_size=1).map(frozenset),
    id_strategy=st.sampled_from(["uuid", "index"]),
    pass_device_specs=st.booleans(),
    dev_root=st.sampled_from(["/", "/driver"]),
    control_nodes=NAMES.map(tuple),
    imex_channels=st.sampled_from([(), (0,), (3, 7)]),
    features=st.sampled_from([(), ("gdrcopy",), ("gds", "mofed")]),
    absent_features=st.sampled_from([frozenset[str](), frozenset({"gds"})]),
    extras=st.sampled_from(
        [Extras(), Extras((("B", "1"), ("A", "2")), (Mount("/x", "/y"), Mount("/z", "/dev/null")))]
    ),
)


def _with_instances(resource: Resource) -> Resource:
    """Each device as two MIG devices, which share a device node."""
    devices = [
        replace(
            device,
            id=f"MIG-{number}-{device.id}",
            uuid=f"MIG-{number}-{device.uuid}",
            index=f"{device.index}:{number}",
            nodes=(*device.nodes, f"/dev/nvidia-caps/nvidia-cap{device.gpu_index}{number}"),
            mig=MigDevice(f"MIG-{number}-{device.uuid}", number, number, 0, "1g.10gb", 10 << 30),
        )
        for device in resource.devices
        for number in range(2)
    ]
    return replace(resource, devices=tuple(devices))


def _with_ids(resource: Resource, ids: Sequence[str]) -> Resource:
    devices = (replace(one, id=name) for one, name in zip(resource.devices, ids, strict=True))
    return replace(resource, devices=tuple(devices))


RESOURCES = {
    "shared": a_resource(2, 3),
    "refusing": a_resource(2, 3, fail=True),
    "whole": a_resource(4, 1),
    "many": a_resource(4, 40),
    "instances": _with_instances(a_resource(2, 1)),
    "uneven": _with_ids(a_resource(2, 2), ("a::0", "bb::0", "c::10", "d")),
    "odd": _with_ids(a_resource(2, 2), ("a::0", "b::0", "\n::0", "d::\n")),
}
"""Ids of many devices, and of different lengths, are found by their tags."""


def _request(containers: Sequence[Sequence[str]]) -> bytes:
    return pb.AllocateRequest(
        container_requests=[pb.ContainerAllocateRequest(devices_ids=ids) for ids in containers]
    ).SerializeToString()


@st.composite
def allocations(draw: st.DrawFn) -> tuple[Resource, list[list[Device]]]:
    resource = RESOURCES[draw(st.sampled_from([kind for kind in RESOURCES if kind != "odd"]))]
    most = 1 if resource.fail_requests_greater_than_one else 6
    some = st.lists(st.sampled_from(resource.devices), min_size=1, max_size=most)
    return resource, draw(st.lists(some, min_size=1, max_size=5))


@given(allocations(), PLANS)
def test_joined_responses_are_what_is_injected(
    wanted: tuple[Resource, list[list[Device]]], plan: InjectionPlan
) -> None:
    resource, containers = wanted
    answers = AllocateAnswers.of(resource, plan, "distributed")

    joined = answers.response(_request([[one.id for one in devices] for devices in containers]))

    assert joined is not None
    assert pb.AllocateResponse.FromString(joined) == _expected(resource, plan, containers)


def _expected(
    resource: Resource, plan: InjectionPlan, containers: Sequence[Sequence[Device]]
) -> pb.AllocateResponse:
    response = pb.AllocateResponse()
    for devices in containers:
        injection: Injection = inject(resource.name, devices, plan)
        response.container_responses.add().MergeFromString(container_response(injection))
    return response


def _mixed(known: Sequence[str]) -> st.SearchStrategy[str]:
    odd = ["", "GPU-x", "\n", "\x0a\x18\x01", known[0][:-1], f"{known[0]}0", "é" * 70]
    return st.sampled_from([*known, *odd])


@st.composite
def requests(draw: st.DrawFn, resource: Resource, *, sizes: bool) -> bytes:
    """A request as a kubelet makes it, or one with a byte more, less or another one."""
    ids = [device.id for device in resource.devices]
    known = st.lists(st.sampled_from(ids), min_size=1, max_size=7, unique=draw(st.booleans()))
    some = known if draw(st.integers(0, 3)) else st.lists(_mixed(ids), max_size=4)
    whole = pb.PreferredAllocationRequest()
    for _ in range(draw(st.sampled_from([1, 1, 1, 4]))):
        container = whole.container_requests.add(available_deviceIDs=draw(some))
        if sizes:
            container.allocation_size = draw(st.sampled_from([1, 2, 3, 5, 10, 0, -1, 300]))
            if not draw(st.integers(0, 5)):
                container.must_include_deviceIDs.extend(draw(some))
    data = bytearray(whole.SerializeToString())
    if not draw(st.integers(0, 4)):
        place = draw(st.integers(0, len(data) - 1))
        data[place : place + draw(st.integers(0, 1))] = draw(st.binary(max_size=2))
    return bytes(data)


def _outcome(call: Callable[[bytes], bytes], request: bytes) -> object:
    try:
        return call(request)
    except RpcError as error:
        # The library does not always say the same of what is no request.
        return error.code, str(error).partition("Error parsing")[0]


@pytest.mark.parametrize("kind", RESOURCES)
@pytest.mark.parametrize("policy", get_args(PolicyName))
@settings(max_examples=30)
@given(st.data())
def test_allocate_is_the_same_with_and_without_pieces(
    kind: str, policy: PolicyName, data: st.DataObject
) -> None:
    resource = RESOURCES[kind]
    request = data.draw(requests(resource, sizes=False))
    snapshot = snapshot_of(resource, ServingPlan(policy=policy))
    nothing = AllocateAnswers.of(replace(resource, devices=()), InjectionPlan(), policy)
    slow = DevicePlugin(replace(snapshot, lone_responses={}, allocate=nothing))

    expected = _outcome(slow.allocate, request)

    assert _outcome(DevicePlugin(snapshot).allocate, request) == expected


@pytest.mark.parametrize("kind", RESOURCES)
@pytest.mark.parametrize("policy", get_args(PolicyName))
@settings(max_examples=30)
@given(st.data())
def test_a_preference_is_the_same_with_and_without_pieces(
    kind: str, policy: PolicyName, data: st.DataObject
) -> None:
    resource = RESOURCES[kind]
    request = data.draw(requests(resource, sizes=True))
    plan = ServingPlan(policy=policy, links=links_of(4, islands(2)))
    snapshot = snapshot_of(resource, plan)
    nothing = PreferredAnswers.of(policy, snapshot_of(replace(resource, devices=())).preference)
    methods: list[str] = []
    fast = DevicePlugin(snapshot, methods.append)
    slow = DevicePlugin(replace(snapshot, preferred=nothing), methods.append)

    expected = _outcome(slow.preferred_allocation, request)
    counted = methods.copy()
    methods.clear()

    assert _outcome(fast.preferred_allocation, request) == expected
    assert methods == counted


def _one(resource: Resource) -> bytes:
    """A container that asks for two devices of three."""
    ids = [device.id for device in resource.devices[:3]]
    container = pb.ContainerPreferredAllocationRequest(available_deviceIDs=ids, allocation_size=2)
    return container.SerializeToString()


ODD: dict[str, Callable[[bytes], bytes]] = {
    "another field first": lambda one: b"\x4a\x01x" + one,
    "what must be included first": lambda one: b"\x12\x01x" + one,
    "another field last": lambda one: one + b"\x4a\x01x",
    "a byte of an id less": lambda one: one[:-3] + one[-2:],
    "a size of two bytes": lambda one: one + b"\x18\x81\x01",
    "a size that is cut off": lambda one: one[:-1] + b"\x81",
    "a size of nothing": lambda one: one[:-1] + b"\x00",
    "two sizes": lambda one: one + b"\x18\x03",
    "another field first and no size": lambda one: b"\x4a\x01x" + one[:-2],
    "what is no field first": lambda one: b"\xff" + one[:-2],
    "no size": lambda one: one[:-2],
    "no device": lambda one: one[-2:],
    "nothing": lambda _one: b"",
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("kind", ["shared", "whole", "many"])
@pytest.mark.parametrize("outside", [b"", b"\x4a\x01x", b"\x0a", b"\x0a\x05x"])
def test_odd_requests_are_read_as_by_the_library(kind: str, odd: str, outside: bytes) -> None:
    resource = RESOURCES[kind]
    container = ODD[odd](_one(resource))
    request = message(1, container) + outside
    snapshot = snapshot_of(resource)
    allocate = AllocateAnswers.of(replace(resource, devices=()), InjectionPlan(), "distributed")
    empty = snapshot_of(replace(resource, devices=())).preference
    preferred = PreferredAnswers.of("distributed", empty)
    slow = DevicePlugin(replace(snapshot, allocate=allocate, preferred=preferred))
    fast = DevicePlugin(snapshot)

    for call in ("allocate", "preferred_allocation"):
        assert _outcome(getattr(fast, call), request) == _outcome(getattr(slow, call), request)


@pytest.mark.parametrize("kind", ["shared", "whole", "many", "instances"])
@pytest.mark.parametrize("policy", get_args(PolicyName))
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_what_a_kubelet_prefers_needs_no_library(
    kind: str, policy: PolicyName, share: float
) -> None:
    resource = RESOURCES[kind]
    ids = [device.id for device in resource.devices][::-1][: int(len(resource.devices) * share)]
    container = pb.ContainerPreferredAllocationRequest(available_deviceIDs=ids, allocation_size=2)
    request = pb.PreferredAllocationRequest(container_requests=[container]).SerializeToString()
    snapshot = snapshot_of(resource, ServingPlan(policy=policy))

    assert snapshot.preferred.response(request) is not None


def test_a_request_is_not_split_into_more_pieces_than_there_can_be_devices() -> None:
    """Or a request of 4 MiB would take hundreds of MiB."""
    snapshot = snapshot_of(RESOURCES["shared"])
    many = pb.AllocateRequest(
        container_requests=[pb.ContainerAllocateRequest(devices_ids=[""] * 50_000)]
    ).SerializeToString()

    assert snapshot.allocate.response(many) is None
    assert snapshot.preferred.response(many + b"\x18\x01") is None
