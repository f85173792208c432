"""The handlers of one resource, bytes in and bytes out."""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING

import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuplugin.core import preference
from gpuplugin.kubelet import deviceplugin
from gpuplugin.kubelet.deviceplugin import MAX_STREAMS, DevicePlugin
from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from gpuplugin.kubelet.proto import pluginregistration_pb2 as registration_pb
from gpuplugin.kubelet.registration import registration_service
from gpuplugin.kubelet.snapshot import snapshot_of
from gpuplugin.rpc import RpcCode, RpcError, Service
from gpuplugin.rpc.callstats import BOUNDS_S, CallStats
from tests.unit.builders import a_resource, ids, uuid_of_gpu

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

A, B, C = (uuid_of_gpu(index) for index in range(3))
RESOURCE = a_resource(3, 4)
PLUGIN = DevicePlugin(snapshot_of(RESOURCE))
STRICT = DevicePlugin(snapshot_of(a_resource(3, 4, fail=True)))

CONTAINERS = st.lists(st.lists(st.sampled_from(ids(RESOURCE)), max_size=4), max_size=4)


def allocate(plugin: DevicePlugin, *containers: Sequence[str]) -> list[dict[str, str]]:
    request = pb.AllocateRequest(
        container_requests=[pb.ContainerAllocateRequest(devices_ids=one) for one in containers]
    )
    answer = pb.AllocateResponse.FromString(plugin.allocate(request.SerializeToString()))
    return [dict(one.envs) for one in answer.container_responses]


def prefer(
    plugin: DevicePlugin, *containers: tuple[Sequence[str], Sequence[str], int]
) -> list[list[str]]:
    request = pb.PreferredAllocationRequest(
        container_requests=[
            pb.ContainerPreferredAllocationRequest(
                available_deviceIDs=available, must_include_deviceIDs=must, allocation_size=size
            )
            for available, must, size in containers
        ]
    )
    content = plugin.preferred_allocation(request.SerializeToString())
    answer = pb.PreferredAllocationResponse.FromString(content)
    return [list(one.deviceIDs) for one in answer.container_responses]


# Allocate


@pytest.mark.parametrize(
    ("containers", "visible"),
    [
        pytest.param([], [], id="no container"),
        pytest.param([[f"{B}::3"]], [B], id="one device"),
        pytest.param([[f"{C}::0", f"{A}::0"]], [f"{C},{A}"], id="two devices"),
        pytest.param([[f"{C}::0"], [f"{A}::0"]], [C, A], id="two containers"),
        pytest.param(
            [[f"{A}::0", f"{A}::1"], [f"{B}::0"], [f"{B}::1", f"{C}::0"]],
            [A, B, f"{B},{C}"],
            id="all kinds",
        ),
    ],
)
def test_each_container_gets_its_gpus(containers: list[list[str]], visible: list[str]) -> None:
    assert allocate(PLUGIN, *containers) == [{"NVIDIA_VISIBLE_DEVICES": one} for one in visible]


@given(CONTAINERS)
def test_many_containers_are_answered_as_one_after_the_other(containers: list[list[str]]) -> None:
    alone = [allocate(PLUGIN, one)[0] for one in containers]

    assert allocate(PLUGIN, *containers) == alone


@pytest.mark.parametrize(
    ("plugin", "containers", "reason"),
    [
        pytest.param(PLUGIN, [["GPU-x"]], "unknown device: GPU-x", id="unknown"),
        pytest.param(
            PLUGIN, [[f"{A}::0"], [f"{A}::0", "GPU-x"]], "unknown device: GPU-x", id="second one"
        ),
        pytest.param(
            STRICT,
            [[f"{A}::0", f"{B}::0"]],
            "maximum request size for shared resources is 1; found 2",
            id="too many",
        ),
    ],
)
def test_a_refusal_is_an_error_status_with_nvidias_text(
    plugin: DevicePlugin, containers: list[list[str]], reason: str
) -> None:
    with pytest.raises(RpcError) as caught:
        allocate(plugin, *containers)

    assert caught.value.code is RpcCode.INVALID_ARGUMENT
    assert caught.value.message == (
        f'invalid allocation request for "nvidia.com/gpu": invalid request: {reason}'
    )


def test_health_is_not_looked_at() -> None:
    plugin = DevicePlugin(snapshot_of(RESOURCE))
    plugin.update(plugin.snapshot, lambda _gpu, _mig: False)

    assert allocate(plugin, [f"{A}::0"]) == [{"NVIDIA_VISIBLE_DEVICES": A}]


def test_a_new_snapshot_is_answered_from_at_once() -> None:
    plugin = DevicePlugin(snapshot_of(a_resource(1, 2)))
    plugin.update(snapshot_of(a_resource(1, 3)), lambda _gpu, _mig: True)

    assert allocate(plugin, [f"{A}::2"]) == [{"NVIDIA_VISIBLE_DEVICES": A}]


# GetPreferredAllocation


def test_each_container_gets_a_choice_by_the_policy() -> None:
    index = preference.PreferenceIndex.of(RESOURCE)
    available = ids(RESOURCE)[2:]

    answers = prefer(PLUGIN, (available, (), 3), (available, available[:1], 2))

    assert answers == [
        list(preference.prefer("distributed", index, available, (), 3).ids),
        list(preference.prefer("distributed", index, available, available[:1], 2).ids),
    ]


ANY_IDS = st.lists(st.one_of(st.sampled_from(ids(RESOURCE)), st.text(max_size=4)), max_size=8)


@given(st.lists(st.tuples(ANY_IDS, ANY_IDS, st.integers(-(2**31), 2**31 - 1)), max_size=3))
def test_a_preference_never_fails(containers: list[tuple[list[str], list[str], int]]) -> None:
    assert len(prefer(PLUGIN, *containers)) == len(containers)


@given(st.binary(max_size=40))
def test_a_preference_never_fails_on_bytes_that_can_be_read(content: bytes) -> None:
    try:
        request = pb.PreferredAllocationRequest.FromString(content)
    except DecodeError:
        return
    answer = pb.PreferredAllocationResponse.FromString(PLUGIN.preferred_allocation(content))
    assert len(answer.container_responses) == len(request.container_requests)


@pytest.mark.parametrize(
    ("available", "must_include", "size", "expected"),
    [
        (["a", "b", "c"], [], 2, ["a", "b"]),
        (["a", "b", "c"], ["c"], 2, ["c", "a"]),
        (["a", "a", "b"], [], 2, ["a", "b"]),
        (["a"], [], 5, ["a"]),
        (["a", "b"], ["b"], 0, ["b"]),
        (["a", "b"], [], -1, []),
        (["a", "b"], ["b", "b"], 1, ["b"]),
    ],
)
def test_a_policy_that_raises_is_replaced_by_a_plain_choice(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    available: list[str],
    must_include: list[str],
    size: int,
    expected: list[str],
) -> None:
    def broken(*_: object) -> tuple[str, ...]:
        raise ZeroDivisionError

    monkeypatch.setattr(deviceplugin, "prefer", broken)
    with caplog.at_level(logging.ERROR):
        assert prefer(PLUGIN, (available, must_include, size)) == [expected]
    assert "preference policy failed" in caplog.text


# Other methods


def test_the_options_ask_for_preferences_and_no_pre_start() -> None:
    options = pb.DevicePluginOptions.FromString(PLUGIN.options(b""))

    assert options.get_preferred_allocation_available
    assert not options.pre_start_required


def test_pre_start_answers_empty() -> None:
    content = PLUGIN.pre_start_container(pb.PreStartContainerRequest().SerializeToString())

    assert pb.PreStartContainerResponse.FromString(content) == pb.PreStartContainerResponse()


def test_the_table_has_every_method_of_the_protocol() -> None:
    service = PLUGIN.service()

    assert service.name == "v1beta1.DevicePlugin"
    assert {*service.unary, *service.streams} == {
        "GetDevicePluginOptions",
        "ListAndWatch",
        "GetPreferredAllocation",
        "Allocate",
        "PreStartContainer",
    }


MALFORMED = [
    pytest.param(b"\xff", id="cut tag"),
    pytest.param(b"\x0a\x05ab", id="cut field"),
    pytest.param(b"\x0a\x03\x0a\x01\xff", id="not UTF-8"),
    pytest.param(b"\x07", id="wire type 7"),
    pytest.param(b"\x0c", id="end of a group that did not start"),
    pytest.param(b"\x0b", id="group without an end"),
    pytest.param(b"\x0a" + b"\xff" * 11, id="endless length"),
]


@pytest.mark.parametrize("content", MALFORMED)
@pytest.mark.parametrize("method", ["Allocate", "GetPreferredAllocation"])
def test_malformed_requests_are_invalid_arguments(method: str, content: bytes) -> None:
    with pytest.raises(RpcError) as caught:
        PLUGIN.service().unary[method](content)

    assert caught.value.code is RpcCode.INVALID_ARGUMENT
    assert "v1beta1." in caught.value.message


def watcher(on_status: Callable[[bool, str], None] = lambda _ok, _text: None) -> Service:
    return registration_service("nvidia.com/gpu", lambda: None, on_status)


PARSERS: dict[str, tuple[Callable[[bytes], bytes], type[Message]]] = {
    "Allocate": (PLUGIN.allocate, pb.AllocateRequest),
    "GetPreferredAllocation": (PLUGIN.preferred_allocation, pb.PreferredAllocationRequest),
    "NotifyRegistrationStatus": (
        watcher().unary["NotifyRegistrationStatus"],
        registration_pb.RegistrationStatus,
    ),
}


@settings(max_examples=200)
@given(st.sampled_from(sorted(PARSERS)), st.binary(max_size=40))
def test_any_bytes_are_answered_or_are_an_invalid_argument(method: str, content: bytes) -> None:
    handler, message = PARSERS[method]
    readable = True
    try:
        message.FromString(content)
    except DecodeError:
        readable = False
    code = RpcCode.OK
    try:
        handler(content)
    except RpcError as error:
        code = error.code
    if not readable:
        assert code is RpcCode.INVALID_ARGUMENT
    elif method != "Allocate":
        assert code is RpcCode.OK
    else:
        assert code in {RpcCode.OK, RpcCode.INVALID_ARGUMENT}


# ListAndWatch


def test_a_stream_gets_the_list_and_its_changes() -> None:
    plugin = DevicePlugin(snapshot_of(RESOURCE))
    woken: list[None] = []
    assert plugin.update(plugin.snapshot, lambda _gpu, _mig: True)
    stream = plugin.list_and_watch(lambda: woken.append(None))
    first = stream.take()

    assert not plugin.update(plugin.snapshot, lambda _gpu, _mig: True), "nothing changed"
    assert plugin.update(plugin.snapshot, lambda uuid, _mig: uuid != B)
    second = stream.take()

    assert len(woken) == 2
    assert first is not None
    assert second is not None
    assert unhealthy_in(first) == set()
    assert unhealthy_in(second) == {f"{B}::{replica}" for replica in range(4)}


def unhealthy_in(content: bytes) -> set[str]:
    devices = pb.ListAndWatchResponse.FromString(content).devices
    return {device.ID for device in devices if device.health != "Healthy"}


def test_one_stream_too_many_ends_the_newest_and_never_the_oldest() -> None:
    plugin = DevicePlugin(snapshot_of(RESOURCE))
    streams = [plugin.list_and_watch(lambda: None) for _ in range(MAX_STREAMS + 2)]

    closed = [number for number, stream in enumerate(streams) if stream.closed]
    assert closed == [MAX_STREAMS - 1, MAX_STREAMS]
    assert plugin.devices.open_streams == MAX_STREAMS
    streams[MAX_STREAMS].close()  # the engine does, when it sees that the stream has ended
    assert plugin.devices.open_streams == MAX_STREAMS


@pytest.mark.parametrize("method", ["Allocate", "GetPreferredAllocation"])
@pytest.mark.parametrize(
    "content",
    [b"\x0a\x00" * 1001, b"\x0a\xcd\xb4\x25" + b"\x0a\x01x" * 203_879, b"\x0a\x00" * 2_000_000],
    ids=["containers", "ids", "2 million containers"],
)
def test_a_request_for_too_much_is_refused(method: str, content: bytes) -> None:
    call = DevicePlugin(snapshot_of(RESOURCE)).service().unary[method]
    with pytest.raises(RpcError) as caught:
        call(content)
    assert caught.value.code is RpcCode.RESOURCE_EXHAUSTED


def test_a_request_for_as_many_as_a_list_has_is_read() -> None:
    ids = [f"GPU-00000000-0000-0000-0000-000000000000::{number}" for number in range(60_000)]
    request = pb.PreferredAllocationRequest(
        container_requests=[
            pb.ContainerPreferredAllocationRequest(available_deviceIDs=ids, allocation_size=1)
        ]
    )
    plugin = DevicePlugin(snapshot_of(RESOURCE))
    assert plugin.preferred_allocation(request.SerializeToString())


@pytest.mark.parametrize(
    "content", [b"\x0a", b"\x0a\xff", b"\x0a\xff\xff\xff\xff\x7f", b"\x0a\x05a"]
)
def test_a_request_that_is_cut_off_is_told(content: bytes) -> None:
    with pytest.raises(RpcError) as caught:
        DevicePlugin(snapshot_of(RESOURCE)).allocate(content)
    assert caught.value.code is RpcCode.INVALID_ARGUMENT


# The plugin watcher's service


def test_the_watcher_is_told_name_type_and_version() -> None:
    info = registration_pb.PluginInfo.FromString(watcher().unary["GetInfo"](b""))

    assert (info.type, info.name, info.endpoint) == ("DevicePlugin", "nvidia.com/gpu", "")
    assert list(info.supported_versions) == ["v1beta1"]


@pytest.mark.parametrize(("registered", "error"), [(True, ""), (False, "no such version")])
def test_what_came_of_a_registration_is_passed_on(registered: bool, error: str) -> None:
    told: list[tuple[bool, str]] = []
    request = registration_pb.RegistrationStatus(plugin_registered=registered, error=error)
    notify = watcher(lambda ok, text: told.append((ok, text))).unary["NotifyRegistrationStatus"]

    assert notify(request.SerializeToString()) == b""
    assert told == [(registered, error)]


# Observation


def counted(stats: CallStats) -> dict[tuple[str, str], int]:
    counts = {(one.method, one.code): sum(one.by_bucket) for one in stats.calls()}
    return {key: count for key, count in counts.items() if count}


def test_every_call_is_counted_with_its_code() -> None:
    def crash(_: bytes) -> bytes:
        raise ZeroDivisionError

    def refuse(_: bytes) -> bytes:
        raise RpcError(RpcCode.RESOURCE_EXHAUSTED, "full")

    table = {"Good": lambda request: request + b"!", "Crash": crash, "Refuse": refuse}
    stats = CallStats()
    service = stats.wrap(Service("a.B", table, PLUGIN.service().streams))

    assert service.unary["Good"](b"hello") == b"hello!"
    with pytest.raises(ZeroDivisionError):
        service.unary["Crash"](b"")
    for _ in range(2):
        with pytest.raises(RpcError, match="full"):
            service.unary["Refuse"](b"")
    assert counted(stats) == {
        ("Good", "OK"): 1,
        ("Crash", "UNKNOWN"): 1,
        ("Refuse", "RESOURCE_EXHAUSTED"): 2,
    }
    assert service.name == "a.B"
    assert set(service.streams) == {"ListAndWatch"}


def test_a_counted_refusal_of_allocate_is_an_invalid_argument() -> None:
    stats = CallStats()
    service = stats.wrap(STRICT.service())
    with contextlib.suppress(RpcError):
        service.unary["Allocate"](b"\xff")
    service.unary["GetDevicePluginOptions"](b"")
    assert counted(stats) == {
        ("Allocate", "INVALID_ARGUMENT"): 1,
        ("GetDevicePluginOptions", "OK"): 1,
    }


def test_counts_of_many_threads_lose_nothing_and_outlive_a_new_socket() -> None:
    stats = CallStats()

    def work() -> None:
        call = stats.wrap(Service("a.B", {"Good": lambda _request: b""}, {})).unary["Good"]
        for _ in range(500):
            call(b"")

    for _ in range(3):
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert counted(stats) == {("Good", "OK"): 3 * 8 * 500}
    assert stats.running() == {"Good": 0}


def test_a_call_is_in_the_bucket_of_its_time() -> None:
    times_s = iter([0.0, 0.0002, 1.0, 1.00025, 2.0, 9.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpuplugin.rpc.callstats.time.perf_counter", lambda: next(times_s))
        stats = CallStats()
        call = stats.wrap(Service("a.B", {"Good": lambda _request: b""}, {})).unary["Good"]
        for _ in range(3):
            call(b"")
    (good,) = (one for one in stats.calls() if one.code == "OK")
    assert good.seconds == pytest.approx(7.00045)
    by_bound = dict(zip((*BOUNDS_S, float("inf")), good.by_bucket, strict=True))
    assert {bound: count for bound, count in by_bound.items() if count} == {
        200e-6: 1,
        500e-6: 1,
        float("inf"): 1,
    }
