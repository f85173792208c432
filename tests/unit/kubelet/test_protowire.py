"""Messages that are written by hand are those that the protobuf library writes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.core.injection import DeviceNode, Injection, Mount
from gpuplugin.kubelet.answers import container_response
from gpuplugin.kubelet.deviceplugin import OPTIONS
from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from gpuplugin.kubelet.proto import pluginregistration_pb2
from gpuplugin.kubelet.protowire import message, number, text
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
    with pytest.raises(RpcError) as refused:
        notify(b"\xff")
    assert refused.value.code is RpcCode.INVALID_ARGUMENT
