"""The daemon with `--allocation dra`: over its sockets, and at an API server over HTTP."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from gpuplugin.kubelet.proto import dra_pb2 as pb
from hal import TimeSliceLevel
from tests.component.cluster import wipe
from tests.component.dranode import DRIVER
from tests.component.running import Hardware
from tests.component.test_plugin_control import command
from tests.component.waiting import eventually
from tests.conformance.engines.conftest import ENGINES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.component.dranode import DraNode

GPUS, SHARES = 8, 10
RESTORED_S = 2.0
"""The Go library that other drivers use needs 30 s."""


@pytest.fixture
def hardware() -> Iterator[Hardware]:
    hardware = Hardware(GPUS)
    yield hardware
    hardware.stop()


def uuids(devices: list[dict[str, Any]]) -> list[str]:
    return [one["attributes"]["uuid"]["string"] for one in devices]


def taints(node: DraNode) -> dict[str, list[str]]:
    """The taints of each GPU, as `key=value:effect`, by UUID."""
    return {
        one["attributes"]["uuid"]["string"]: [
            f"{taint['key']}={taint['value']}:{taint['effect']}" for taint in one.get("taints", ())
        ]
        for one in node.devices()
    }


@pytest.mark.parametrize("engine", ENGINES)
def test_eight_gpus_with_ten_shares_each_serve_eighty_claims(
    node: DraNode, hardware: Hardware, engine: str
) -> None:
    with node.plugin(hardware.backend, rpc_engine=engine) as plugin:
        eventually(lambda: len(node.devices()) == GPUS)
        assert uuids(node.devices()) == list(hardware.uuids)
        assert {one["capacity"]["shares"]["value"] for one in node.devices()} == {"10"}
        claims = [node.allocate(one) for one in node.devices() for _ in range(SHARES)]
        with node.connect() as kubelet, ThreadPoolExecutor(16) as threads:
            eventually(lambda: plugin.ready)
            prepared = list(threads.map(kubelet.prepared, claims))
            assert len({device.cdi_device_ids[0] for device in prepared}) == GPUS * SHARES
            assert all(device.share_id for device in prepared)
            spec = node.spec(claims[0])
            (device,) = spec["devices"]
            assert device["containerEdits"]["deviceNodes"] == [
                {"path": "/dev/nvidia0", "hostPath": "/dev/null"}
            ]
            common = [one["path"] for one in spec["containerEdits"]["deviceNodes"]]
            assert "/dev/nvidiactl" in common
            eventually(lambda: plugin.metric("gpuplugin_dra_prepared_claims") == 80)
            labels = {"operation": "prepare", "result": "ok"}
            assert plugin.metric("gpuplugin_dra_claims_total", **labels) == 80
            assert kubelet.unprepare(*claims) == dict.fromkeys([one.uid for one in claims], "")
            assert list(node.specs.iterdir()) == []
            eventually(lambda: plugin.metric("gpuplugin_dra_prepared_claims") == 0)


def test_a_fault_taints_a_gpu_and_its_end_takes_the_taint_away(
    node: DraNode, hardware: Hardware
) -> None:
    with node.plugin(hardware.backend, health_quiet_period="1s") as plugin:
        eventually(lambda: len(node.devices()) == GPUS)
        claim = node.allocate(node.device(1))
        with node.connect() as kubelet, kubelet.health() as stream:
            eventually(lambda: plugin.ready)
            assert {one.health for one in stream.next().values()} == {pb.HEALTHY}
            device = kubelet.prepared(claim).device_name
            hardware.xid(1, 79)
            hardware.xid(1, 31)
            eventually(lambda: f"{DRIVER}/xid=79:NoSchedule" in taints(node)[hardware.uuids[1]])
            sick = eventually(
                lambda: next(
                    (one for one in [stream.next()[device]] if one.health != pb.HEALTHY), None
                )
            )
            assert sick.health == pb.UNHEALTHY
            assert "xid 79" in sick.message
            assert "31" not in sick.message
            assert kubelet.prepared(claim).device_name == device, "it is prepared already"
            hardware.recover(1)
            eventually(lambda: taints(node)[hardware.uuids[1]] == [])


def ready(node: DraNode, claim: pb.Claim) -> list[str]:
    """Status and message of the condition Ready of a claim's devices."""
    devices = node.claim(claim)["status"].get("devices", [])
    return [f"{one['status']} {one['message']}" for each in devices for one in each["conditions"]]


def test_a_claim_is_told_what_is_wrong_with_its_device(node: DraNode, hardware: Hardware) -> None:
    with node.plugin(hardware.backend, health_quiet_period="1s"):
        claim = node.allocate(node.device(0))
        with node.connect() as kubelet:
            kubelet.prepared(claim)
            eventually(lambda: ready(node, claim) == ["True "])
            hardware.xid(0, 95)
            eventually(lambda: ready(node, claim) == ["False xid 95"])
            hardware.recover(0)
            eventually(lambda: ready(node, claim) == ["True "])


def test_a_claim_that_can_be_told_nothing_does_not_keep_others_waiting(
    node: DraNode, hardware: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a webhook of one namespace is down."""
    monkeypatch.setattr("gpuplugin.daemon.dra.claimcare.FIRST_RETRY_S", 0.01)
    monkeypatch.setattr("gpuplugin.daemon.dra.claimcare.LAST_RETRY_S", 0.01)
    with node.plugin(hardware.backend), node.connect() as kubelet:
        failing, *others = (node.allocate(node.device(0)) for _ in range(3))
        node.server.fail(500, 100_000, path=f"{failing.name}/status")
        for claim in (failing, *others):
            kubelet.prepared(claim)
        eventually(lambda: all(ready(node, claim) == ["True "] for claim in others))
        assert ready(node, failing) == []


def test_slices_are_back_within_two_seconds_of_a_wipe(node: DraNode, hardware: Hardware) -> None:
    with node.plugin(hardware.backend):
        for _ in range(3):
            eventually(lambda: len(node.devices()) == GPUS)
            wipe(node.server)
            wiped_s = time.monotonic()
            eventually(lambda: len(node.devices()) == GPUS)
            assert time.monotonic() - wiped_s < RESTORED_S


CONFIG = """
version: v1
sharing: {{timeSlicing: {{resources: [{{name: nvidia.com/gpu, replicas: {replicas}}}]}}}}
"""


def test_sharing_is_not_turned_off_while_shares_are_out(
    tmp_path: Path, node: DraNode, hardware: Hardware, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG.format(replicas=10))
    with node.plugin(hardware.backend, config_file=file) as plugin:
        shared = {one["name"] for one in eventually(node.devices)}
        assert len(shared) == GPUS
        claim = node.allocate(node.device(3))
        with node.connect() as kubelet:
            held = kubelet.prepared(claim).device_name
            file.write_text(CONFIG.format(replicas=1))
            plugin.reload()
            eventually(lambda: exclusive(node) == shared - {held})
            (kept,) = [one for one in node.devices() if one["name"] == held]
            assert kept["capacity"]["shares"]["value"] == "10"
            assert plugin.metric("gpuplugin_dra_devices_kept_shared") == 1
            text = str(plugin.get("/ready").parts["claims"]["text"])
            assert "GPU 3 stays shared until its shares are back" in text
            assert "GPU 3 stays shared" in caplog.text
            assert plugin.ready
            whole = node.allocate({"name": held})
            with ThreadPoolExecutor(1) as threads:
                waiting = threads.submit(kubelet.prepared, whole)
                eventually(lambda: plugin.metric("gpuplugin_rpc_in_flight") == 1)
                assert kubelet.unprepare(claim) == {claim.uid: ""}
                assert waiting.result(45).device_name == held
            eventually(lambda: exclusive(node) == shared)
            eventually(lambda: plugin.metric("gpuplugin_dra_devices_kept_shared") == 0)


def exclusive(node: DraNode) -> set[str]:
    return {one["name"] for one in node.devices() if not one.get("allowMultipleAllocations")}


def levels(hardware: Hardware) -> list[TimeSliceLevel]:
    """The time slices of the GPUs, by index."""
    with hardware.node.update() as model:
        return [gpu.time_slice for gpu in model.present]


def long_slices() -> dict[str, Any]:
    """The configuration of a claim that asks for long time slices."""
    sharing = {"strategy": "TimeSlicing", "timeSlicingConfig": {"interval": "Long"}}
    parameters = {
        "apiVersion": "resource.nvidia.com/v1beta1", "kind": "GpuConfig", "sharing": sharing,
    }  # fmt: skip
    opaque = {"driver": DRIVER, "parameters": parameters}
    return {"source": "FromClaim", "requests": [], "opaque": opaque}


def test_the_time_slice_of_a_claim_is_set_over_restarts_and_undone(
    node: DraNode, hardware: Hardware
) -> None:
    usual, long = TimeSliceLevel.DEFAULT, TimeSliceLevel.LONG
    with node.plugin(hardware.backend), node.connect() as kubelet:
        claim = node.allocate(node.device(2), config=[long_slices()])
        kubelet.prepared(claim)
        assert levels(hardware) == [usual, usual, long, *[usual] * 5]
    assert levels(hardware)[2] is long, "its pod still runs"
    with hardware.node.update() as model:
        model.present[2].time_slice = usual  # as after a reset
    with node.plugin(hardware.backend), node.connect() as kubelet:
        eventually(lambda: levels(hardware)[2] is long)
        assert kubelet.unprepare(claim) == {claim.uid: ""}
        eventually(lambda: levels(hardware) == [usual] * GPUS)


def test_health_is_sent_again_and_again(
    node: DraNode, hardware: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device of which the kubelet hears nothing is Unknown to it."""
    monkeypatch.setattr("gpuplugin.daemon.dra.frontdoor.HEARTBEAT_S", 1.0)
    with node.plugin(hardware.backend), node.connect() as kubelet, kubelet.health() as stream:
        first, *others = (stream.next() for _ in range(3))
        eventually(lambda: {*first} == {one["name"] for one in node.devices()})
        for one in others:
            assert {name: device.health for name, device in one.items()} == dict.fromkeys(
                first, pb.HEALTHY
            )


@pytest.mark.parametrize(("evict", "effect"), [("false", "NoSchedule"), ("true", "NoExecute")])
def test_pods_on_a_gpu_that_is_lost_are_deleted_where_that_is_wanted(
    node: DraNode, hardware: Hardware, evict: str, effect: str
) -> None:
    with node.plugin(hardware.backend, health_evict_lost=evict):
        eventually(lambda: len(node.devices()) == GPUS)
        hardware.lose(4)
        eventually(lambda: f"{DRIVER}/lost=true:{effect}" in taints(node)[hardware.uuids[4]])


def test_a_person_clears_a_fault(node: DraNode, hardware: Hardware) -> None:
    """Without waiting for the quiet period."""
    with node.plugin(hardware.backend, health_quiet_period="1h") as plugin:
        eventually(lambda: len(node.devices()) == GPUS)
        hardware.xid(5, 95)
        eventually(lambda: f"{DRIVER}/xid=95:NoSchedule" in taints(node)[hardware.uuids[5]])
        hardware.recover(5)
        eventually(lambda: plugin.metric("gpuplugin_gpu_health", gpu="5", state="Recovering") == 1)
        assert command(plugin, "clear", "5").returncode == 0
        eventually(lambda: taints(node)[hardware.uuids[5]] == [])


def test_another_fault_of_a_gpu_that_is_unhealthy_is_told_as_well(
    node: DraNode, hardware: Hardware
) -> None:
    with node.plugin(hardware.backend, health_evict_lost="true"):
        eventually(lambda: len(node.devices()) == GPUS)
        hardware.xid(6, 95)
        eventually(lambda: taints(node)[hardware.uuids[6]] == [f"{DRIVER}/xid=95:NoSchedule"])
        hardware.lose(6)
        eventually(lambda: f"{DRIVER}/lost=true:NoExecute" in taints(node)[hardware.uuids[6]])


@pytest.mark.parametrize(("policy", "place"), [("packed", 0), ("distributed", GPUS - 1)])
def test_the_order_follows_shares_as_they_are_taken(
    node: DraNode, hardware: Hardware, policy: str, place: int
) -> None:
    """The scheduler takes the first device with room."""
    with node.plugin(hardware.backend, shared_devices_allocation_policy=policy) as plugin:
        eventually(lambda: len(node.devices()) == GPUS)
        claim = node.allocate(node.device(3))
        with node.connect() as kubelet:
            device = kubelet.prepared(claim).device_name
            eventually(lambda: node.devices()[place]["name"] == device)
            assert plugin.metric("gpuplugin_dra_shares_out", device=device) == 1
            assert kubelet.unprepare(claim) == {claim.uid: ""}
            eventually(lambda: uuids(node.devices()) == list(hardware.uuids))
