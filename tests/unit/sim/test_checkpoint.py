"""The device manager's checkpoint."""

from __future__ import annotations

import json
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.kubelet.devices import (
    CheckpointDamaged,
    DeviceManager,
    Listed,
    read_checkpoint,
    write_checkpoint,
)

GPU = "nvidia.com/gpu"


@st.composite
def managers(draw: st.DrawFn) -> DeviceManager:
    manager = DeviceManager()
    for resource in draw(st.lists(st.sampled_from([GPU, "a.com/x"]), unique=True)):
        manager.connected(resource, has_preference=True, wants_pre_start=False)
        numa = st.sampled_from([(), (0,), (1,), (0, 1)])
        devices = [f"{resource}-{number}" for number in range(draw(st.integers(1, 6)))]
        manager.listed(
            resource,
            [Listed(one, healthy=draw(st.booleans()), numa_nodes=draw(numa)) for one in devices],
        )
        for number in range(draw(st.integers(0, 3))):
            held = draw(st.lists(st.sampled_from(devices), min_size=1, unique=True))
            raw = draw(st.binary(max_size=8))
            manager.hold(f"pod-{number}", draw(st.text(max_size=3)), resource, held, raw)
    return manager


@settings(max_examples=150)
@given(managers())
def test_what_is_written_is_read_back(manager: DeviceManager) -> None:
    holdings, resources = read_checkpoint(write_checkpoint(manager))

    assert tuple(sorted(resources)) == manager.resources
    assert len(holdings) == len(manager.holdings)
    for read, held in zip(holdings, manager.holdings, strict=True):
        assert (read.pod_uid, read.container, read.resource, read.raw) == (
            held.pod_uid,
            held.container,
            held.resource,
            held.raw,
        )
        assert sorted(read.device_ids) == sorted(held.device_ids)
        assert {one: sorted(nodes) for one, nodes in read.numa.items()} == {
            one: sorted(nodes) for one, nodes in held.numa.items()
        }


def a_checkpoint() -> str:
    manager = DeviceManager()
    manager.connected(GPU, has_preference=True, wants_pre_start=False)
    manager.listed(GPU, [Listed("d0", healthy=True, numa_nodes=(0,)), Listed("d1", healthy=True)])
    manager.hold("pod", "main", GPU, ["d1"], b"raw")
    return write_checkpoint(manager)


def test_the_layout_is_the_kubelets() -> None:
    data = json.loads(a_checkpoint())["Data"]

    assert data == {
        "PodDeviceEntries": [
            {
                "PodUID": "pod",
                "ContainerName": "main",
                "ResourceName": GPU,
                "DeviceIDs": {"-1": ["d1"]},
                "AllocResp": "cmF3",
            }
        ],
        "RegisteredDevices": {GPU: ["d0", "d1"]},
    }


def signed(data: object) -> str:
    """Any data with a checksum that fits."""
    checksum = zlib.crc32(json.dumps(data, sort_keys=True).encode())
    return json.dumps({"Data": data, "Checksum": checksum})


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("{}", id="no keys"),
        pytest.param("[]", id="a list"),
        pytest.param("null", id="null"),
        pytest.param("7", id="a number"),
        pytest.param(a_checkpoint()[:-5], id="cut off"),
        pytest.param(a_checkpoint().replace("d1", "d2", 1), id="changed"),
        pytest.param(signed(None), id="no data"),
        pytest.param(signed([]), id="data is a list"),
        pytest.param(signed({"PodDeviceEntries": 7, "RegisteredDevices": {}}), id="no entries"),
        pytest.param(signed({"PodDeviceEntries": ["x"], "RegisteredDevices": {}}), id="text"),
        pytest.param(
            signed({"PodDeviceEntries": [None], "RegisteredDevices": {}}), id="null entry"
        ),
        pytest.param(
            signed({"PodDeviceEntries": [], "RegisteredDevices": None}), id="null devices"
        ),
        pytest.param(
            signed({"PodDeviceEntries": [], "RegisteredDevices": [[]]}), id="a list in it"
        ),
        pytest.param(signed({"PodDeviceEntries": [], "RegisteredDevices": [7]}), id="no name"),
        pytest.param(
            signed({"PodDeviceEntries": [], "RegisteredDevices": "gpu"}), id="a word for a mapping"
        ),
        pytest.param(
            signed({"PodDeviceEntries": [], "RegisteredDevices": {GPU: [7]}}), id="a number as id"
        ),
        pytest.param("[" * 100_000, id="too deep"),
    ],
)
def test_damage_is_noticed(text: str) -> None:
    with pytest.raises(CheckpointDamaged):
        read_checkpoint(text)


@settings(max_examples=150)
@given(st.data())
def test_one_changed_byte_is_noticed_or_changes_nothing(data: st.DataObject) -> None:
    text = a_checkpoint()
    position = data.draw(st.integers(0, len(text) - 1))
    replacement = data.draw(st.characters(min_codepoint=32, max_codepoint=126))
    damaged = text[:position] + replacement + text[position + 1 :]
    try:
        found = read_checkpoint(damaged)
    except CheckpointDamaged:
        return
    assert found == read_checkpoint(text)


KEY_NAMES = (
    "PodUID ContainerName ResourceName DeviceIDs AllocResp PodDeviceEntries RegisteredDevices -1 0"
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(
                st.sampled_from(KEY_NAMES.split()),
                st.text(max_size=3),
            ),
            inner,
            max_size=5,
        ),
    ),
    max_leaves=10,
)
ENTRIES = st.fixed_dictionaries(
    {
        "PodUID": JSON,
        "ContainerName": JSON,
        "ResourceName": JSON,
        "DeviceIDs": st.one_of(JSON, st.dictionaries(st.text(max_size=2), JSON, max_size=2)),
        "AllocResp": st.one_of(JSON, st.just("cmF3")),
    }
)


@settings(max_examples=200)
@given(
    st.one_of(
        JSON,
        st.fixed_dictionaries({"PodDeviceEntries": JSON, "RegisteredDevices": JSON}),
        st.fixed_dictionaries(
            {"PodDeviceEntries": st.lists(ENTRIES, max_size=2), "RegisteredDevices": st.just({})}
        ),
    )
)
def test_any_content_with_a_right_checksum_is_read_or_damaged(data: object) -> None:
    try:
        holdings, resources = read_checkpoint(signed(data))
    except CheckpointDamaged:
        return
    manager = DeviceManager()
    manager.restore(holdings, resources, 0)
    write_checkpoint(manager)


@given(st.text(max_size=30))
def test_any_text_is_damaged(text: str) -> None:
    with pytest.raises(CheckpointDamaged):
        read_checkpoint(text)
