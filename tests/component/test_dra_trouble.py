"""What goes wrong around a DRA driver: restarts, upgrades, reboots, other plugins, no cluster."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import pytest

from sim.apiserver import NODES, Key
from sim.node.realtime import SimBackend
from tests.component.cluster import body_of, slices
from tests.component.dranode import NODE
from tests.component.running import Hardware, PluginProcess, settings_for
from tests.component.waiting import DEADLINE_S, eventually
from tests.conformance.engines.conftest import ENGINES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.component.dranode import DraNode

GPUS = 2
RESOURCE = "nvidia.com/gpu"


@pytest.fixture
def hardware() -> Iterator[Hardware]:
    hardware = Hardware(GPUS)
    yield hardware
    hardware.stop()


def allocatable(node: DraNode, count: str) -> None:
    """What a device plugin offers on the node, as the kubelet tells the API server."""
    node.server.store.patch(
        Key(NODES, NODE), {"status": {"allocatable": {RESOURCE: count}}}, status=True
    )


def slices_text(plugin: PluginProcess) -> str:
    return str(plugin.get("/ready").parts["slices"]["text"])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_prepare_waits_for_the_api_server(node: DraNode, hardware: Hardware, engine: str) -> None:
    """And a claim that is prepared needs none; nor does one wait for another."""
    with node.plugin(hardware.backend, rpc_engine=engine):
        known, new = (node.allocate(node.device(0)) for _ in range(2))
        with node.connect() as kubelet, ThreadPoolExecutor(1) as threads:
            device = kubelet.prepared(known)
            node.server.fail(503, 1000, path="resourceclaims")
            waiting = threads.submit(kubelet.prepared, new)
            eventually(lambda: node.server.failures_left < 999)
            assert kubelet.prepared(known) == device
            assert not waiting.done()
            node.server.mend()
            assert waiting.result(DEADLINE_S).device_name == device.device_name
            assert kubelet.unprepare(known) == {known.uid: ""}


def test_without_an_api_server_pods_keep_what_they_have(node: DraNode, hardware: Hardware) -> None:
    with node.plugin(hardware.backend) as plugin:
        claim = node.allocate(node.device(0))
        with node.connect() as kubelet:
            device = kubelet.prepared(claim)
            node.server.stop()
            eventually(lambda: "not published" in slices_text(plugin))
            assert kubelet.prepared(claim) == device
    with node.plugin(hardware.backend), node.connect() as kubelet:
        assert kubelet.prepared(claim) == device, "after a restart as well"
        assert kubelet.unprepare(claim) == {claim.uid: ""}
        assert not node.spec_path(claim).exists()


def test_a_prepare_waits_until_the_gpus_were_listed(node: DraNode, hardware: Hardware) -> None:
    with node.plugin(hardware.backend):
        claim = node.allocate(node.device(0))
    hardware.driver_down()
    with (
        node.plugin(hardware.backend),
        node.connect() as kubelet,
        ThreadPoolExecutor(1) as threads,
    ):
        waiting = threads.submit(kubelet.prepared, claim)
        eventually(lambda: ("get", "resourceclaims", "default") in node.server.rights())
        hardware.driver_up()
        assert waiting.result(DEADLINE_S).cdi_device_ids


def test_a_stop_ends_a_prepare_that_waits(node: DraNode, hardware: Hardware) -> None:
    with node.plugin(hardware.backend) as plugin, ThreadPoolExecutor(1) as threads:
        claim = node.allocate(node.device(0))
        with node.connect() as kubelet:
            kubelet.prepared(node.allocate(node.device(0)))
            node.server.fail(503, 1000, path="resourceclaims")
            waiting = threads.submit(kubelet.prepare, claim)
            eventually(lambda: node.server.failures_left < 999)
            plugin.stop()
            assert "503" in waiting.result(DEADLINE_S)[claim.uid].error
    assert node.registrations() == []


@pytest.mark.parametrize("broken", [b"", b"{", b"\xff\x00", b'{"version": 2}'])
def test_a_broken_file_of_claims_is_made_from_their_specs(
    node: DraNode, hardware: Hardware, broken: bytes
) -> None:
    with node.plugin(hardware.backend), node.connect() as kubelet:
        claim = node.allocate(node.device(0))
        device = kubelet.prepared(claim)
    node.claims_file.write_bytes(broken)
    with node.plugin(hardware.backend) as plugin, node.connect() as kubelet:
        eventually(lambda: plugin.metric("gpuplugin_dra_prepared_claims") == 1)
        assert kubelet.prepared(claim) == device
        assert kubelet.unprepare(claim) == {claim.uid: ""}
        assert not node.spec_path(claim).exists()


def test_a_reboot_forgets_what_was_set_up_and_not_what_was_granted(
    tmp_path: Path, node: DraNode, hardware: Hardware
) -> None:
    """The specs are on a file system that is empty then; Prepare comes again for each pod."""
    boot_id = tmp_path / "sys/kernel/random/boot_id"
    boot_id.parent.mkdir(parents=True)
    boot_id.write_text("one\n")
    proc = str(tmp_path)
    with node.plugin(hardware.backend, procfs_root=proc), node.connect() as kubelet:
        claim = node.allocate(node.device(0))
        device = kubelet.prepared(claim)
    shutil.rmtree(node.specs)
    with node.plugin(hardware.backend, procfs_root=proc):
        eventually(node.spec_path(claim).exists, DEADLINE_S)
    boot_id.write_text("two\n")
    shutil.rmtree(node.specs)
    with node.plugin(hardware.backend, procfs_root=proc) as plugin, node.connect() as kubelet:
        eventually(lambda: plugin.ready)
        kubelet.prepared(node.allocate(node.device(0)))
        # What is missing is written before a claim is counted.
        eventually(lambda: plugin.metric("gpuplugin_dra_prepared_claims") == 2)
        assert not node.spec_path(claim).exists()
        assert kubelet.prepared(claim) == device
        assert node.spec_path(claim).exists()


def test_an_upgrade_has_no_gap(node: DraNode, hardware: Hardware) -> None:
    """Two instances at once; each Prepare succeeds, whichever gets it, and slices stay."""
    stop, prepared = threading.Event(), count()
    done = [0]

    def more() -> None:
        """Wait until some more claims were prepared."""
        wanted = done[0] + 5
        eventually(lambda: done[0] > wanted)

    def pods_come_and_go() -> None:
        device = node.device(0)
        while not stop.is_set():
            claim = node.allocate(device)
            with node.connect() as kubelet:
                kubelet.prepared(claim)
                done[0] = next(prepared)
            with node.connect() as kubelet:
                assert kubelet.unprepare(claim) == {claim.uid: ""}

    with ThreadPoolExecutor(2) as threads:
        old = node.plugin(SimBackend(hardware.node))
        old.start()
        kept = node.allocate(node.device(1))
        with node.connect() as kubelet:
            kubelet.prepared(kept)
        (name,) = {one["metadata"]["uid"] for one in slices(node.server)}
        coming = [threads.submit(pods_come_and_go) for _ in range(2)]
        for _ in range(3):
            new = node.plugin(SimBackend(hardware.node))
            new.start()
            eventually(lambda: len(node.registrations()) == 2)
            more()
            old.stop()
            old = new
            more()
        stop.set()
        for one in coming:
            one.result(DEADLINE_S)
        assert {one["metadata"]["uid"] for one in slices(node.server)} == {name}
        with node.connect() as kubelet:
            assert kubelet.unprepare(kept) == {kept.uid: ""}
        old.stop()
    assert list(node.specs.iterdir()) == []


def test_nothing_is_offered_that_a_device_plugin_offers_on_the_node(
    node: DraNode, hardware: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuplugin.daemon.dra.publisher.LOOK_S", 0.2)
    allocatable(node, "16")
    with node.plugin(hardware.backend) as plugin:
        eventually(lambda: f"a device plugin offers {RESOURCE} on this node" in slices_text(plugin))
        assert node.devices() == []
        assert not plugin.ready
        assert plugin.get("/health").status == 200, "it goes on"
        assert plugin.metric("gpuplugin_dra_devices_left_out") == GPUS
        allocatable(node, "0")
        node.connect()
        eventually(lambda: len(node.devices()) == GPUS)
        eventually(lambda: plugin.ready)


def test_a_device_plugin_waits_until_the_dra_driver_is_gone(
    node: DraNode, hardware: Hardware
) -> None:
    plugin = PluginProcess(settings_for(node.folder), SimBackend(hardware.node))
    with node.plugin(SimBackend(hardware.node)) as driver:
        node.connect()
        plugin.start()
        try:
            eventually(lambda: "allocation" in plugin.get("/ready").parts)
            assert "serves this node" in str(plugin.get("/ready").parts["allocation"]["text"])
            assert plugin.sockets() == ()
            driver.stop()
            eventually(plugin.sockets)
            eventually(lambda: "allocation" not in plugin.get("/ready").parts)
        finally:
            plugin.stop()


def test_gates_that_are_off_are_named_and_shares_are_never_whole_gpus(
    node: DraNode, hardware: Hardware
) -> None:
    node.server.store.off.add("DRAConsumableCapacity")
    with node.plugin(hardware.backend) as plugin:
        eventually(lambda: "feature gate DRAConsumableCapacity" in slices_text(plugin))
        assert not plugin.ready
        assert node.devices() == []
        sent = [
            body_of(request)["spec"]["devices"]
            for request in node.server.requests
            if request.right[:2] == ("create", "resourceslices")
            if request.query.get("dryRun") != "All"
        ]
        assert not any(sent), "not even for a moment"


def test_a_claim_whose_object_is_gone_is_cleaned_up(
    node: DraNode, hardware: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuplugin.daemon.dra.claimcare.CLEANUP_S", 0.2)
    with node.plugin(hardware.backend) as plugin, node.connect() as kubelet:
        kept, gone = node.allocate(node.device(0)), node.allocate(node.device(1))
        kubelet.prepared(kept)
        kubelet.prepared(gone)
        node.delete(gone)
        eventually(lambda: not node.spec_path(gone).exists())
        eventually(lambda: plugin.metric("gpuplugin_dra_prepared_claims") == 1)
        assert node.spec_path(kept).exists()


def test_a_response_that_is_about_no_claim_is_not_the_end_of_all_claims(
    node: DraNode, hardware: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy has it while no server is behind it, and a server without resource.k8s.io/v1."""
    monkeypatch.setattr("gpuplugin.daemon.dra.claimcare.CLEANUP_S", 0.05)
    monkeypatch.setattr("gpuplugin.daemon.dra.claimwork.RETRY_S", 0.05)
    page = partial(
        node.server.fail, 404, headers={"Content-Type": "text/plain"}, body=b"404 page not found\n"
    )
    with node.plugin(hardware.backend), node.connect() as kubelet:
        claim, new = (node.allocate(node.device(0)) for _ in range(2))
        kubelet.prepared(claim)
        page(times=2, path=claim.name)
        node.server.fail(404, 2, path=claim.name)
        node.server.fail(200, 2, path=claim.name, body=b"{}")
        eventually(lambda: not node.server.failures_left)
        assert node.spec_path(claim).exists()
        page(path=new.name)
        assert kubelet.prepared(new).cdi_device_ids, "a Prepare waits until it is over"
        node.delete(claim)
        eventually(lambda: not node.spec_path(claim).exists())
