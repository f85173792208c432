"""Messages are written as the protobuf library writes them, and read as it reads them."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuplugin.core.injection import DeviceNode, Injection, Mount
from gpuplugin.core.usage import ClaimUse, Holding, PodName
from gpuplugin.daemon.cluster.pods import read_holdings
from gpuplugin.kubelet.answers import container_response
from gpuplugin.kubelet.deviceplugin import OPTIONS
from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from gpuplugin.kubelet.proto import pluginregistration_pb2
from gpuplugin.kubelet.proto import podresources_pb2 as pr
from gpuplugin.kubelet.protowire import NotAMessage, Received, message, number, text, varint
from gpuplugin.kubelet.registration import registration_service
from gpuplugin.rpc import RpcCode, RpcError

TEXTS = st.text(max_size=300)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), max_size=4).map(tuple)
INJECTIONS = st.builds(
    Injection,
    envs=PAIRS,
    mounts=st.lists(st.builds(Mount, TEXTS, TEXTS), max_size=3).map(tuple),
    nodes=st.lists(st.builds(DeviceNode, TEXTS, TEXTS), max_size=3).map(tuple),
    annotations=PAIRS,
    cdi_devices=st.lists(TEXTS.filter(bool), max_size=3).map(tuple),
)


@given(INJECTIONS)
def test_a_containers_answer(given_: Injection) -> None:
    expected = pb.ContainerAllocateResponse(
        envs=dict(given_.envs),
        mounts=[
            pb.Mount(container_path=one.container_path, host_path=one.host_path, read_only=True)
            for one in given_.mounts
        ],
        devices=[
            pb.DeviceSpec(
                container_path=one.container_path, host_path=one.host_path, permissions="rw"
            )
            for one in given_.nodes
        ],
        annotations=dict(given_.annotations),
        cdi_devices=[pb.CDIDevice(name=name) for name in given_.cdi_devices],
    )
    assert pb.ContainerAllocateResponse.FromString(container_response(given_)) == expected
    assert len(container_response(given_)) == expected.ByteSize()


@given(st.integers(0, 2**63 - 1))
def test_a_number(value: int) -> None:
    assert number(1, value) == pb.NUMANode(ID=value).SerializeToString()


@given(TEXTS, st.binary(max_size=70_000))
def test_a_text_and_a_message(words: str, content: bytes) -> None:
    assert text(1, words) == pb.CDIDevice(name=words).SerializeToString()
    kind = pluginregistration_pb2.PluginInfo
    assert message(4, words.encode()) == kind(supported_versions=[words]).SerializeToString()
    assert message(1, content).endswith(content)


def test_the_options() -> None:
    options = pb.DevicePluginOptions.FromString(OPTIONS)
    assert (options.pre_start_required, options.get_preferred_allocation_available) == (False, True)


def test_what_the_kubelet_says_of_the_plugin_is_read_however_it_is_written() -> None:
    said: list[tuple[bool, str]] = []
    service = registration_service("a/b", lambda: None, lambda *words: said.append(words))
    notify = service.unary["NotifyRegistrationStatus"]
    for status in ((True, ""), (False, "no"), (True, "odd"), (False, "")):
        kind = pluginregistration_pb2.RegistrationStatus
        notify(kind(plugin_registered=status[0], error=status[1]).SerializeToString())
    assert said == [(True, ""), (False, "no"), (True, "odd"), (False, "")]
    kind = pluginregistration_pb2.RegistrationStatus
    for number_bytes in (b"\x80" * 9 + b"\x02", b"\x80" * 9 + b"\x01", b"\x80\x00"):
        data = b"\x08" + number_bytes
        notify(data)
        assert said.pop() == (kind.FromString(data).plugin_registered, "")
    with pytest.raises(RpcError) as refused:
        notify(b"\xff")
    assert refused.value.code is RpcCode.INVALID_ARGUMENT


def _tag(field: int, kind: int) -> bytes:
    return varint(field << 3 | kind)


@st.composite
def fields(draw: st.DrawFn) -> bytes:
    """A field of any type: known or not, complete or not, of a container or of anything else."""
    field = draw(st.sampled_from([1, 1, 2, 3, 3, 9, 0, 300, 1 << 29]))
    content = st.one_of(
        st.binary(max_size=4),
        st.text(max_size=3).map(str.encode),
        st.sampled_from([b"\x0a\x01a", b"\x18\x02", b"\x0a\x01a\x12\x01b\x18\x05"]),
    )
    numbers = st.one_of(
        st.integers(0, 2**64 - 1).map(varint),
        st.binary(min_size=1, max_size=11),
        st.sampled_from([b"\xff" * 9 + b"\x01", b"\xff" * 9 + b"\x7f", b"\xff" * 10 + b"\x01"]),
    )
    match draw(st.integers(0, 6)):
        case 0:
            return _tag(field, 0) + draw(numbers)
        case 1:
            return _tag(field, 1) + draw(st.binary(min_size=7, max_size=8))
        case 2:
            return _tag(field, 2) + draw(numbers) + draw(content)
        case 3:
            return _tag(field, 3) + draw(content) + _tag(draw(st.sampled_from([field, 2])), 4)
        case 4:
            return _tag(field, draw(st.sampled_from([3, 4, 5, 6, 7]))) + draw(content)
        case _:
            return message(field & 7, draw(content))


def _as_read(data: bytes) -> object:
    try:
        return [
            (one.texts(1), one.texts(2), one.number(3) & 0xFFFF_FFFF)
            for one in Received(data).messages(1)
        ]
    except NotAMessage:
        return None


def _as_by_the_library(data: bytes) -> object:
    try:
        containers = pb.PreferredAllocationRequest.FromString(data).container_requests
    except DecodeError:
        return None
    return [
        (
            list(one.available_deviceIDs),
            list(one.must_include_deviceIDs),
            one.allocation_size & 0xFFFF_FFFF,
        )
        for one in containers
    ]


@settings(max_examples=400)
@given(st.lists(fields(), max_size=5), st.lists(fields(), max_size=2))
def test_what_is_read_is_what_the_library_reads(inside: list[bytes], outside: list[bytes]) -> None:
    data = message(1, b"".join(inside)) + b"".join(outside)
    assert _as_read(data) == _as_by_the_library(data)


@pytest.mark.parametrize("depth", [1, 100, 101, 5000])
def test_groups_in_groups(depth: int) -> None:
    data = _tag(9, 3) * depth + _tag(9, 4) * depth
    assert _as_read(data) == _as_by_the_library(data)


@pytest.mark.parametrize("junk", [b"\x08\x00", b"\x4b\x4c", b"\x4a\x00"])
def test_what_has_more_fields_than_a_message_can_have_is_not_read_for_seconds(junk: bytes) -> None:
    with pytest.raises(NotAMessage, match="fields"):
        Received(junk * (1 << 20))


def test_what_pods_hold_is_read_as_by_the_library() -> None:
    claim = pr.DynamicResource(claim_name="c", claim_namespace="n")
    claim.claim_resources.add(driver_name="d", pool_name="p", device_name="gpu-0", share_id="s")
    devices = pr.ContainerDevices(resource_name="nvidia.com/gpu", device_ids=["a", "", "é"])
    container = pr.ContainerResources(
        name="main", devices=[devices], cpu_ids=[1, 2], dynamic_resources=[claim]
    )
    pod = pr.PodResources(name="pod", namespace="ns", containers=[container])
    data = pr.ListPodResourcesResponse(pod_resources=[pod, pr.PodResources()]).SerializeToString()

    holdings, claims = read_holdings(data)

    assert holdings == [Holding(PodName("ns", "pod"), "main", "nvidia.com/gpu", ("a", "", "é"))]
    assert claims == [ClaimUse(PodName("ns", "pod"), "main", "n", "c", "d", "gpu-0", "s")]
