"""Labels of the node: a whole plugin, a simulated API server, and a folder of NFD's worker."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from gpuplugin.core.pacing import Backoff
from gpuplugin.daemon.cluster import gpulabels
from gpuplugin.daemon.cluster.labelstores import NODE_OF_FEATURES, FeatureStore, NodeStore
from sim.apiserver import FEATURES, NODES, ApiProblem, ApiServer, Key
from tests.component.cluster import body_of
from tests.component.cluster import node as node_of
from tests.component.fakedriver import FakeDriver, made_up_gpu
from tests.component.running import run_as_loaded, settings_for
from tests.component.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sim.apiserver import Request
    from tests.component.conftest import MakeHardware, StartPlugin
    from tests.component.following import Follow

NODE = "gpu-node-1"
ON_NODE = {"--node-labels": "node", "--node-name": NODE}
IN_FEATURE = {"--node-labels": "node-feature", "--node-name": NODE}
COUNT, PRODUCT, REPLICAS = (f"nvidia.com/gpu.{name}" for name in ("count", "product", "replicas"))
OTHERS = {
    "kubernetes.io/hostname": NODE,
    "nvidia.com/mig.config": "all-disabled",
    "nvidia.com/vgpu.present": "false",
}
STALE = "nvidia.com/mig-1g.5gb.count"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ApiServer([NODE]) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
        server.store.patch(Key(NODES, NODE), {"metadata": {"labels": {**OTHERS, STALE: "7"}}})
        yield server


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpulabels, "SETTLE_S", 0.01)
    monkeypatch.setattr(gpulabels, "Backoff", lambda _first_s, _last_s: Backoff(0.02, 0.1))


def labels(server: ApiServer) -> dict[str, str]:
    found: dict[str, str] = node_of(server, NODE)["metadata"]["labels"]
    return found


def feature(server: ApiServer, namespace: str = "default") -> dict[str, Any]:
    """The node's NodeFeature, empty as long as there is none."""
    try:
        return server.store.get(Key(FEATURES, f"nvidia-features-for-{NODE}", namespace))
    except ApiProblem:
        return {}


def written(server: ApiServer) -> list[dict[str, Any]]:
    """The labels of each request that wrote some, in order."""
    bodies = (body_of(one) for one in patches(server) if one.body)
    return [(body.get("spec") or body["metadata"])["labels"] for body in bodies]


def patches(server: ApiServer) -> list[Request]:
    return [one for one in server.requests if one.method == "PATCH"]


def test_labels_of_the_node_come_and_those_of_others_stay(
    server: ApiServer, start_plugin: StartPlugin, make_hardware: MakeHardware
) -> None:
    start_plugin(make_hardware(2).backend, "none", ON_NODE)
    eventually(lambda: COUNT in labels(server))

    found = labels(server)
    assert OTHERS.items() <= found.items()
    assert STALE not in found
    assert (found[PRODUCT], found[COUNT]) == ("NVIDIA-H100-80GB-HBM3-SHARED", "2")
    assert found[REPLICAS] == "10"
    assert found["nvidia.com/cuda.driver-version.full"] == "580.105.08"
    assert found["nvidia.com/cuda.runtime-version.full"] == "13.0"
    assert server.rights() == {("patch", "nodes", "")}


def test_only_labels_that_changed_are_written(
    server: ApiServer, follow: Follow, make_hardware: MakeHardware
) -> None:
    flags = "flags: {migStrategy: mixed, gfd: {noTimestamp: true}}\n"
    hardware = make_hardware(2)
    plugin = follow(hardware.backend, flags, "none", ON_NODE)
    eventually(lambda: COUNT in labels(server))
    hardware.repartition(1, ["3g.40gb"])
    eventually(lambda: "nvidia.com/mig-3g.40gb.count" in labels(server))
    assert {key for key in written(server)[-1] if not key.startswith("nvidia.com/mig-")} == set()
    hardware.repartition(1, None)
    eventually(lambda: "nvidia.com/mig-3g.40gb.count" not in labels(server))
    assert set(written(server)[-1].values()) == {None}

    shared = "sharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 4}]}}\n"
    plugin.rewrite(flags + shared)
    eventually(lambda: labels(server)[REPLICAS] == "4")
    assert written(server)[-1] == {
        PRODUCT: "NVIDIA-H100-80GB-HBM3-SHARED",
        REPLICAS: "4",
        "nvidia.com/gpu.sharing-strategy": "time-slicing",
    }
    plugin.stop()
    count = len(written(server))
    before = labels(server)
    asked = len(patches(server))
    follow(hardware.backend, flags + shared, "none", ON_NODE)
    eventually(lambda: len(patches(server)) > asked)
    assert (len(written(server)), labels(server)) == (count, before)


def test_labels_stay_while_the_driver_is_away_and_when_the_plugin_stops(
    server: ApiServer,
    start_plugin: StartPlugin,
    make_hardware: MakeHardware,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpulabels, "GONE_S", 0.01)
    hardware = make_hardware(2)
    plugin = start_plugin(hardware.backend, "none", ON_NODE)
    eventually(lambda: COUNT in labels(server))
    before, asked = labels(server), len(server.requests)
    hardware.driver_down()
    eventually(lambda: not plugin.ready)
    hardware.driver_up()
    eventually(lambda: plugin.ready)
    hardware.lose(1)
    eventually(lambda: plugin.metric("gpuplugin_devices", health="Unhealthy") > 0)
    plugin.stop()
    hardware.driver_down()
    plugin = start_plugin(hardware.backend, "none", ON_NODE)
    for times in (1, 2, 3):  # each of them shows what is known of the node: nothing
        plugin.reload()
        eventually(
            lambda times=times: plugin.metric("gpuplugin_config_reloads_total") >= times  # type: ignore[misc]
        )
    plugin.stop()
    assert labels(server) == before
    assert len(server.requests) == asked


def test_without_a_gpu_labels_go_late(
    server: ApiServer, start_plugin: StartPlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FakeDriver(0)
    start_plugin(driver, "none", ON_NODE)
    eventually(lambda: driver.listings > 3)
    driver.listed = (made_up_gpu(0),)  # long before GONE_S is over
    eventually(lambda: labels(server).get(COUNT) == "1")
    assert len(written(server)) == 1

    monkeypatch.setattr(gpulabels, "GONE_S", 0.01)
    start_plugin(FakeDriver(0), "none", ON_NODE)
    eventually(lambda: COUNT not in labels(server))
    assert labels(server).keys() - OTHERS.keys() == {"nvidia.com/gfd.timestamp"}


def test_a_node_feature_is_made_and_then_kept(
    server: ApiServer, follow: Follow, make_hardware: MakeHardware
) -> None:
    hardware = make_hardware(1)
    plugin = follow(hardware.backend, "{}", "none", IN_FEATURE)
    made = eventually(lambda: feature(server))
    assert made["apiVersion"] == "nfd.k8s-sigs.io/v1alpha1"
    assert made["metadata"]["labels"] == {NODE_OF_FEATURES: NODE}
    assert made["spec"]["features"] == {"flags": {}, "attributes": {}, "instances": {}}
    assert made["spec"]["labels"][COUNT] == "1"
    assert labels(server) == {**OTHERS, STALE: "7"}

    plugin.rewrite("sharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 4}]}}\n")
    eventually(lambda: feature(server)["spec"]["labels"][REPLICAS] == "4")
    assert written(server)[-1].keys() == {PRODUCT, REPLICAS, "nvidia.com/gpu.sharing-strategy"}
    assert server.rights() == {
        (verb, "nodefeatures", "default") for verb in ("get", "create", "patch")
    }


def test_a_file_is_written_whole_and_only_if_it_changes(
    follow: Follow, make_hardware: MakeHardware, tmp_path: Path
) -> None:
    path, machine = tmp_path / "gfd", tmp_path / "product_name"
    machine.write_text("PowerEdge XE9680\n")
    gfd = {"outputFile": str(path), "machineTypeFile": str(machine), "noTimestamp": True}
    config = {"flags": {"gfd": gfd}}
    hardware = make_hardware(2)
    plugin = follow(hardware.backend, json.dumps(config), "none", {"--node-labels": "file"})
    eventually(path.exists)
    lines = path.read_text().splitlines()
    assert lines == sorted(lines)
    assert {f"{COUNT}=2", "nvidia.com/gpu.machine=PowerEdge-XE9680"} <= set(lines)
    assert path.stat().st_mode & 0o777 == 0o644
    inode = path.stat().st_ino
    plugin.stop()
    assert path.stat().st_ino == inode

    again = follow(hardware.backend, json.dumps(config), "none", {"--node-labels": "file"})
    eventually(lambda: "gpu-labels" in again.get("/ready").parts)
    assert path.stat().st_ino == inode
    again.rewrite(json.dumps(config | {"gpus": {"exclude": ["0"]}}))
    eventually(lambda: f"{COUNT}=1\n" in path.read_text())


@pytest.mark.parametrize("store", [NodeStore, FeatureStore])
def test_a_conflict_is_tried_again(
    server: ApiServer, start_plugin: StartPlugin, store: type[NodeStore | FeatureStore]
) -> None:
    flags = ON_NODE if store is NodeStore else IN_FEATURE
    server.fail(409, 2, path="node")
    start_plugin(FakeDriver(1), "none", flags)
    eventually(lambda: labels(server).get(COUNT) or feature(server))
    assert server.failures_left == 0


def test_what_was_changed_by_others_is_put_right(server: ApiServer) -> None:
    store = NodeStore(NODE)
    wanted = {COUNT: "1", PRODUCT: "A"}
    assert store.sync(wanted) == 3  # the stale one, too
    server.store.patch(Key(NODES, NODE), {"metadata": {"labels": {COUNT: "9"}}})
    assert store.sync(wanted) == 1
    assert store.sync(wanted) == 0
    assert labels(server) == {**OTHERS, **wanted}


def test_without_the_right_the_plugin_serves_and_says_which_is_missing(
    server: ApiServer, start_plugin: StartPlugin, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    server.denied.add(("patch", "nodes"))
    plugin = start_plugin(FakeDriver(1), "none", ON_NODE)
    eventually(lambda: len(server.requests) > 3)
    assert plugin.ready
    text = str(plugin.get("/ready").parts["gpu-labels"]["text"])
    assert "needs patch on nodes (docs/node-labels.md)" in text
    told = [one for one in caplog.records if getattr(one, "event", "") == "gpu-labels-failed"]
    assert len(told) == 1

    server.denied.clear()
    eventually(lambda: labels(server).get(COUNT) == "1")
    eventually(lambda: "are written" in str(plugin.get("/ready").parts["gpu-labels"]["text"]))


def test_a_folder_that_is_not_there_is_named(start_plugin: StartPlugin, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"flags": {"gfd": {"outputFile": f"{tmp_path}/none/gfd"}}}))
    plugin = start_plugin(FakeDriver(1), "none", {"--node-labels": "file"}, config_file=config)
    eventually(lambda: "gpu-labels" in plugin.get("/ready").parts)
    text = str(plugin.get("/ready").parts["gpu-labels"]["text"])
    assert f"mount the host's folder {tmp_path}/none" in text
    assert plugin.ready


def test_a_cluster_that_is_not_configured_ends_the_start(
    kubelet_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubelet_dir / "none"))
    assert asyncio.run(run_as_loaded(settings_for(kubelet_dir, ON_NODE), FakeDriver())) == 1
    (record,) = [one for one in caplog.records if one.levelname == "ERROR"]
    assert record.getMessage().startswith("--node-labels node: ")
    assert "automountServiceAccountToken" in record.getMessage()
