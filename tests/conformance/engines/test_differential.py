"""Both engines are asked the same, well-formed or not, and must answer the same.

Left out is what they are known to see differently: content types, methods other than POST, header
names that HTTP/2 forbids, compression, reserved flags of messages, and deadlines that pass at once
(in grpcio a race). Malformed deadlines are in `test_calls`: grpcio takes half a second for one.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuplugin.core.inventory import GPU_RESOURCE, Plan, build_inventory
from gpuplugin.core.sharing import SharedResource, TimeSlicing
from gpuplugin.kubelet.deviceplugin import SERVICE_NAME, DevicePlugin
from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from gpuplugin.kubelet.snapshot import snapshot_of
from sim.node.node import SimulatedNode
from sim.node.scenario import load_scenario
from tests.conformance.engines.conftest import BOOM, ECHO, ENGINES, FAIL, REPEAT, serving
from tests.conformance.engines.rawh2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    WINDOW,
    RawClient,
    grpc_message,
    pack,
    request_headers,
    u32,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conformance.engines.rawh2 import Answer


def _plugin() -> DevicePlugin:
    gpus = [gpu.identity for gpu in SimulatedNode(load_scenario("default")).gpus.values()]
    inventory = build_inventory(gpus, Plan(TimeSlicing((SharedResource(GPU_RESOURCE, 4),))))
    return DevicePlugin(snapshot_of(inventory.resources[0]))


PLUGIN = _plugin()
IDS = [one.id for one in PLUGIN.snapshot.resource.devices]


@pytest.fixture(scope="module")
def clients() -> Iterator[list[RawClient]]:
    """One connection to each engine, used for all examples."""
    with ExitStack() as stack:
        running = [
            stack.enter_context(serving(engine(), [PLUGIN.service()]))
            for engine in ENGINES.values()
        ]
        clients = [stack.enter_context(one.raw({4: 2**24})) for one in running]
        for client in clients:
            client.send(pack(WINDOW, 0, 0, u32(2**30)))
        yield clients


_ids = st.lists(st.sampled_from(IDS) | st.text(max_size=8), max_size=6)
_allocate = st.lists(_ids, max_size=3).map(
    lambda all_ids: pb.AllocateRequest(
        container_requests=[pb.ContainerAllocateRequest(devices_ids=ids) for ids in all_ids]
    ).SerializeToString()
)
_prefer = st.tuples(_ids, _ids, st.integers(-2, 8)).map(
    lambda drawn: pb.PreferredAllocationRequest(
        container_requests=[
            pb.ContainerPreferredAllocationRequest(
                available_deviceIDs=drawn[0],
                must_include_deviceIDs=drawn[1],
                allocation_size=drawn[2],
            )
        ]
    ).SerializeToString()
)
_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
_fail = st.tuples(st.sampled_from([2, 3, 8, 13]), _text).map(
    lambda drawn: f"{drawn[0]} {drawn[1]}".encode()
)
_calls = st.one_of(
    st.tuples(st.just(f"/{SERVICE_NAME}/Allocate"), _allocate | st.binary(max_size=60)),
    st.tuples(st.just(f"/{SERVICE_NAME}/GetPreferredAllocation"), _prefer),
    st.tuples(
        st.sampled_from(
            [f"/{SERVICE_NAME}/{name}" for name in ("GetDevicePluginOptions", "PreStartContainer")]
        ),
        st.binary(max_size=20),
    ),
    st.tuples(st.sampled_from([ECHO, BOOM]), _text.map(str.encode)),
    st.tuples(st.just(FAIL), _fail),
    st.tuples(st.just(REPEAT), st.integers(0, 50_000).map(lambda size: b"%d" % size)),
    st.tuples(st.sampled_from(["/", "/x", "/test.Conformance/", "//"]), st.binary(max_size=10)),
)
_timeouts = st.sampled_from([None, "20S", "1H", "99999999u"])
_extra = st.dictionaries(
    st.from_regex(r"x-[a-z0-9]{1,5}", fullmatch=True),
    st.text("abcXYZ019 /:", max_size=20).map(str.strip),
    max_size=3,
)


@st.composite
def _bodies(draw: st.DrawFn, message: bytes) -> bytes:
    """The message framed rightly, or cut, or followed by something, or compressed in name."""
    framed = grpc_message(message)
    change = draw(st.sampled_from(["", "", "", "cut", "more", "flag"]))
    if change == "cut":
        return framed[: draw(st.integers(0, len(framed) - 1))]
    if change == "more":
        return framed + draw(st.binary(max_size=20))
    if change == "flag":
        return b"\x01" + framed[1:]
    return framed


def _seen(answer: Answer) -> tuple[object, ...]:
    names = (":status", "content-type", "grpc-status")
    return (*(answer[name] for name in names), answer["grpc-message"] or "", answer.messages)


@settings(deadline=None, max_examples=150, database=None)
@given(data=st.data(), call=_calls, timeout=_timeouts, extra=_extra)
def test_equal_answers(
    clients: list[RawClient],
    data: st.DataObject,
    call: tuple[str, bytes],
    timeout: str | None,
    extra: dict[str, str],
) -> None:
    path, message = call
    body = data.draw(_bodies(message))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=3)))
    alone = not body and data.draw(st.booleans())
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    seen = []
    for client in clients:
        stream = client.stream()
        headers = [*request_headers(path, grpc_timeout=timeout), *extra.items()]
        if alone:
            client.send(client.headers(stream, headers, END_HEADERS | END_STREAM))
        else:
            frames = [pack(DATA, 0, stream, one) for one in pieces[:-1]]
            end = pack(DATA, END_STREAM, stream, pieces[-1])
            client.send(client.headers(stream, headers), *frames, end)
        seen.append(_seen(client.finish(stream)))
    assert seen[0] == seen[1]
