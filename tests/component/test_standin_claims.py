"""The kubelet stand-in with DRA: when it calls a driver, what it makes of the answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from gpuplugin.kubelet.proto import podresources_pb2 as pr
from sim.apiserver import CLAIMS, CLASSES, PODS, SLICES, Key, Selection, Store
from sim.apiserver.store import TEMPLATES
from sim.kubelet import Container, Kubelet, Phase, Pod, PodClaim, simple_pod
from sim.kubelet.claims import CLAIMS_FILE, ClaimTiming
from tests.component.running import raw_call
from tests.component.tinydriver import DRIVER, TinyDriver
from tests.component.tinyplugin import TinyPlugin
from tests.component.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from gpuplugin.core.jsonobject import JsonObject

NODE, GPU = "n1", "nvidia.com/gpu"
TIMING = ClaimTiming(
    wipe_at_start_s=0.2, wipe_after_loss_s=0.6, prepare_retry_s=0.5, unprepare_retry_s=0.3,
    reconcile_s=0.5, forced_cleanup_s=0.2, call_deadline_s=DEADLINE_S,
)  # fmt: skip


def gpu(number: int, shares: int = 10) -> dict[str, Any]:
    return {
        "name": f"gpu-{number}",
        "allowMultipleAllocations": True,
        "attributes": {"uuid": {"string": f"GPU-{number}"}},
        "capacity": {"shares": {"value": str(shares), "requestPolicy": {"default": "1"}}},
    }


def publish(store: Store, *devices: dict[str, Any], name: str = "n1-gpu") -> None:
    """Put a slice with these devices in the place of the one that is there."""
    key = Key(SLICES, name)
    spec = {
        "driver": DRIVER,
        "nodeName": NODE,
        "pool": {"name": NODE, "generation": 1, "resourceSliceCount": 1},
        "devices": list(devices),
    }
    if store.select(Selection(SLICES))[1]:
        store.replace(key, {"spec": spec})
    else:
        store.create(key, {"spec": spec})


@pytest.fixture
def store() -> Store:
    store = Store(seed=1)
    with_a_class(store)
    publish(store, gpu(0))
    return store


def with_a_class(store: Store) -> None:
    selector = {"cel": {"expression": f"device.driver == '{DRIVER}'"}}
    spec: dict[str, Any] = {"extendedResourceName": GPU, "selectors": [selector]}
    store.create(Key(CLASSES, "gpu.example.com"), {"spec": spec})


@pytest.fixture
def kubelet(kubelet_dir: Path, store: Store) -> Iterator[Kubelet]:
    with Kubelet(kubelet_dir, store=store, node=NODE, timing=TIMING) as kubelet:
        eventually(lambda: not store.select(Selection(SLICES))[1])
        publish(store, gpu(0))
        yield kubelet


@pytest.fixture
def driver(kubelet: Kubelet, store: Store) -> Iterator[TinyDriver]:
    with TinyDriver(kubelet.dir, store) as driver:
        kubelet.wait_until(lambda node: node.drivers.get(DRIVER), DEADLINE_S)
        yield driver


def phase(kubelet: Kubelet, name: str) -> Phase | None:
    view = kubelet.view().pods.get(f"default/{name}")
    return view.status.phase if view else None


def running(kubelet: Kubelet, name: str = "a") -> None:
    """Create a pod that asks for one GPU, and wait until it runs."""
    status = kubelet.run_pod(simple_pod(name, {GPU: 1}), DEADLINE_S)
    assert status.phase is Phase.RUNNING, status


def gone(kubelet: Kubelet, name: str = "a", *, force: bool = False) -> None:
    kubelet.delete_pod(name, force=force)
    kubelet.wait_until(lambda node: f"default/{name}" not in node.pods, DEADLINE_S)


def claims(store: Store) -> list[dict[str, Any]]:
    return store.select(Selection(CLAIMS))[1]


def explicit(store: Store, name: str, **request: Any) -> None:
    """A ResourceClaim for one GPU."""
    exactly = {"deviceClassName": "gpu.example.com", **request}
    body: dict[str, Any] = {
        "spec": {"devices": {"requests": [{"name": "gpu", "exactly": exactly}]}}
    }
    store.create(Key(CLAIMS, name, "default"), body)


def user_of(claim: str, name: str) -> Pod:
    return Pod(name, (Container("main", {}, ("mine",)),), claims=(PodClaim("mine", claim),))


class Meanwhile(Store):
    """A store to which something happens right after a claim was read."""

    def __init__(self) -> None:
        super().__init__(seed=1)
        self.meanwhile: Callable[[], object] = lambda: None

    def get(self, key: Key) -> Any:
        found = super().get(key)
        if key.resource is CLAIMS:
            self.meanwhile()
        return found


# Extended resources


def test_an_unmodified_pod_gets_a_share_by_a_claim_of_its_own(
    kubelet: Kubelet, driver: TinyDriver, store: Store
) -> None:
    running(kubelet)
    (claim,) = claims(store)
    metadata, (result,) = claim["metadata"], claim["status"]["allocation"]["devices"]["results"]
    pod = kubelet.view().pods["default/a"]
    assert metadata["name"].startswith("a-extended-resources-")
    assert metadata["annotations"] == {"resource.kubernetes.io/extended-resource-claim": "true"}
    assert (metadata["ownerReferences"][0]["kind"], metadata["ownerReferences"][0]["uid"]) == (
        "Pod",
        pod.pod.uid,
    )
    assert (result["request"], result["device"]) == ("container-0-request-0", "gpu-0")
    assert result["consumedCapacity"] == {"shares": "1"}
    assert driver.prepared == [[metadata["name"]]]
    (device,) = pod.status.devices
    assert (device.uuid, device.share_id) == ("GPU-0", result["shareID"])
    assert device.cdi_devices == (f"example.com/claim={metadata['uid']}-gpu-0",)
    gone(kubelet)
    assert driver.unprepared == driver.prepared
    assert claims(store) == []


def test_shares_are_counted_and_come_back(
    kubelet: Kubelet, driver: TinyDriver, store: Store
) -> None:
    publish(store, gpu(0, 2))
    running(kubelet, "a")
    running(kubelet, "b")
    status = kubelet.run_pod(simple_pod("c", {GPU: 1}), DEADLINE_S)
    assert (status.phase, status.reason) == (Phase.PENDING, "Unschedulable")
    assert "1 cannot allocate all claims" in status.message
    gone(kubelet, "a")
    eventually(lambda: phase(kubelet, "c") is Phase.RUNNING)


def test_a_pod_that_waits_gets_a_gpu_once_one_is_published(
    kubelet: Kubelet, driver: TinyDriver, store: Store
) -> None:
    status = kubelet.run_pod(simple_pod("a", {GPU: 2}), DEADLINE_S)
    assert status.reason == "Unschedulable"
    publish(store, gpu(0), gpu(1))
    eventually(lambda: phase(kubelet, "a") is Phase.RUNNING)
    assert kubelet.view().pods["default/a"].status.uuids == ("GPU-0", "GPU-1")


def test_a_resource_without_a_class_is_lacking(kubelet: Kubelet, driver: TinyDriver) -> None:
    status = kubelet.run_pod(simple_pod("a", {"example.com/other": 1}), DEADLINE_S)
    assert status.message == "0/1 nodes are available: 1 Insufficient example.com/other."


# Claims that pods name


def test_pods_that_share_a_claim(kubelet: Kubelet, driver: TinyDriver, store: Store) -> None:
    explicit(store, "shared")
    for name in ("a", "b"):
        assert kubelet.run_pod(user_of("shared", name), DEADLINE_S).phase is Phase.RUNNING
    assert driver.prepared == [["shared"]], "prepared once"
    gone(kubelet, "a")
    assert driver.unprepared == []
    gone(kubelet, "b")
    assert driver.unprepared == [["shared"]], "once the last pod is gone"
    (claim,) = claims(store)
    assert claim["status"] == {}, "free for others"


def test_what_a_driver_writes_while_pods_come_and_go_stays(kubelet_dir: Path) -> None:
    store = Meanwhile()
    with_a_class(store)
    publish(store, gpu(0))
    explicit(store, "shared")
    with Kubelet(kubelet_dir, store=store, node=NODE, timing=TIMING) as kubelet:
        eventually(lambda: not store.select(Selection(SLICES))[1])
        publish(store, gpu(0))
        with TinyDriver(kubelet.dir, store):
            kubelet.wait_until(lambda node: node.drivers.get(DRIVER), DEADLINE_S)
            assert kubelet.run_pod(user_of("shared", "a")).phase is Phase.RUNNING

            key, (claim,) = Key(CLAIMS, "shared", "default"), claims(store)
            (result,) = claim["status"]["allocation"]["devices"]["results"]
            told = {name: result[name] for name in ("driver", "pool", "device", "shareID")}
            written: JsonObject = {"status": {"devices": [told]}}
            store.meanwhile = lambda: store.patch(key, written, status=True)
            assert kubelet.run_pod(user_of("shared", "b")).phase is Phase.RUNNING
            store.meanwhile = lambda: None
            (claim,) = claims(store)
            assert claim["status"].get("devices")

            store.patch(key, {"status": {"devices": None}}, status=True)
            store.meanwhile = lambda: store.patch(key, written, status=True)
            gone(kubelet, "a")
            store.meanwhile = lambda: None
            (claim,) = claims(store)
            assert [user["name"] for user in claim["status"]["reservedFor"]] == ["b"]
            assert claim["status"].get("devices")
            gone(kubelet, "b")
            (claim,) = claims(store)
            assert not claim.get("status")


def test_a_pod_whose_object_somebody_deletes_holds_up_no_other(
    kubelet: Kubelet, driver: TinyDriver, store: Store
) -> None:
    publish(store, gpu(0, shares=1))
    running(kubelet, "first")
    assert kubelet.run_pod(simple_pod("late", {GPU: 1}), DEADLINE_S).phase is Phase.PENDING
    store.delete(Key(PODS, "late", "default"))
    gone(kubelet, "first")
    late = "default/late"
    kubelet.wait_until(lambda node: "not found" in node.pods[late].status.message, DEADLINE_S)
    running(kubelet, "other")


def test_a_pod_can_be_created_once_its_template_is_there(
    kubelet: Kubelet, driver: TinyDriver, store: Store
) -> None:
    pod = Pod("a", (Container("main", {}, ("mine",)),), claims=(PodClaim("mine", "", "gpus"),))
    with pytest.raises(ValueError, match='"gpus" not found'):
        kubelet.create_pod(pod)
    exactly = {"deviceClassName": "gpu.example.com"}
    inner = {"spec": {"devices": {"requests": [{"name": "gpu", "exactly": exactly}]}}}
    body: JsonObject = {"spec": inner}
    store.create(Key(TEMPLATES, "gpus", "default"), body)
    assert kubelet.run_pod(pod).phase is Phase.RUNNING


def test_the_health_of_a_device_is_in_the_pods_status(
    kubelet: Kubelet, driver: TinyDriver, store: Store
) -> None:
    explicit(store, "mine")
    kubelet.run_pod(user_of("mine", "a"), DEADLINE_S)
    running(kubelet, "b")

    def told(name: str = "a") -> list[tuple[str, str, str]]:
        health = kubelet.view().health.get(f"default/{name}", ())
        return [(one.name, one.health, one.message) for one in health]

    assert told() == [("claim:mine", "Unknown", "")]
    driver.tell_health((NODE, "gpu-0", 30, ""))
    eventually(lambda: told() == [("claim:mine", "Healthy", "")])
    driver.tell_health((NODE, "gpu-0", 1, "Xid 79"))
    eventually(lambda: told() == [("claim:mine", "Unhealthy", "Xid 79")])
    assert told("b") == [], "a pod that names no claim shows nothing"
    eventually(lambda: told() == [("claim:mine", "Unknown", "")]), "nothing was heard for a second"


# Failures


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"error": "no"}, "NodePrepareResources failed for ResourceClaim"),
        ({"rpc_error": "broken"}, "rpc error: code = Internal desc = broken"),
        ({"skip": True}, "NodePrepareResources skipped 1 ResourceClaims"),
    ],
)
def test_a_prepare_that_fails_is_tried_again(
    kubelet: Kubelet, driver: TinyDriver, what: dict[str, object], message: str
) -> None:
    vars(driver).update(what)
    status = kubelet.run_pod(simple_pod("a", {GPU: 1}), DEADLINE_S)
    assert (status.phase, status.reason) == (Phase.PENDING, "FailedPrepareDynamicResources")
    assert message in status.message
    vars(driver).update({"error": "", "rpc_error": "", "skip": False})
    eventually(lambda: phase(kubelet, "a") is Phase.RUNNING)


def test_a_pod_that_was_never_prepared_is_unprepared(kubelet: Kubelet, driver: TinyDriver) -> None:
    driver.error = "no"
    kubelet.run_pod(simple_pod("a", {GPU: 1}), DEADLINE_S)
    kubelet.delete_pod("a")
    eventually(lambda: len(driver.unprepared) > 1)
    assert phase(kubelet, "a") is Phase.TERMINATING, "for as long as it fails"
    driver.error = ""
    kubelet.wait_until(lambda node: not node.pods, DEADLINE_S)


def test_a_prepare_that_hangs_holds_up_its_own_pod_alone(
    kubelet: Kubelet, driver: TinyDriver, store: Store
) -> None:
    explicit(store, "slow")
    driver.hold = {"slow"}
    kubelet.create_pod(user_of("slow", "a"))
    eventually(lambda: driver.prepared)
    running(kubelet, "b")
    kubelet.delete_pod("a")
    eventually(lambda: phase(kubelet, "a") is Phase.TERMINATING)
    assert driver.unprepared == []
    driver.release()
    eventually(lambda: phase(kubelet, "a") is None)
    assert driver.unprepared == [["slow"]]


def test_a_call_has_a_deadline(kubelet_dir: Path, store: Store) -> None:
    timing = ClaimTiming(call_deadline_s=0.3, wipe_at_start_s=60)
    explicit(store, "slow")
    with (
        Kubelet(kubelet_dir, store=store, node=NODE, timing=timing) as kubelet,
        TinyDriver(kubelet_dir, store) as driver,
    ):
        kubelet.wait_until(lambda node: node.drivers.get(DRIVER), DEADLINE_S)
        driver.hold = {"slow"}
        status = kubelet.run_pod(user_of("slow", "a"), DEADLINE_S)
        assert "code = DeadlineExceeded" in status.message


def test_a_pod_waits_for_its_driver_and_not_for_its_turn(kubelet_dir: Path, store: Store) -> None:
    timing = ClaimTiming(wipe_at_start_s=60)
    with Kubelet(kubelet_dir, store=store, node=NODE, timing=timing) as kubelet:
        status = kubelet.run_pod(simple_pod("a", {GPU: 1}), DEADLINE_S)
        assert status.message == f"DRA driver {DRIVER} is not registered"
        with TinyDriver(kubelet.dir, store):
            eventually(lambda: phase(kubelet, "a") is Phase.RUNNING)


# Registration and upgrades


def test_the_newest_instance_gets_the_calls(
    kubelet: Kubelet, driver: TinyDriver, store: Store
) -> None:
    running(kubelet, "a")
    with TinyDriver(kubelet.dir, store, "b") as newer:
        kubelet.wait_until(lambda node: len(node.drivers[DRIVER]) == 2, DEADLINE_S)
        running(kubelet, "b")
        assert (len(driver.prepared), len(newer.prepared)) == (1, 1)
        driver.stop()
        kubelet.wait_until(lambda node: len(node.drivers[DRIVER]) == 1, DEADLINE_S)
        gone(kubelet, "a")
        assert len(newer.unprepared) == 1
        assert store.select(Selection(SLICES))[1], "slices stay while there is an instance"
    kubelet.wait_until(lambda node: DRIVER not in node.drivers, DEADLINE_S)
    eventually(lambda: not store.select(Selection(SLICES))[1])


@pytest.mark.parametrize(
    ("versions", "used"),
    [
        (("v1.DRAPlugin", "v1beta1.DRAPlugin"), "v1"),
        (("v2.DRAPlugin", "v1beta1.DRAPlugin", "v1.DRAPlugin"), "v1beta1"),
    ],
)
def test_the_first_version_that_is_known_is_used(
    kubelet: Kubelet, store: Store, versions: tuple[str, ...], used: str
) -> None:
    with TinyDriver(kubelet.dir, store, versions=versions) as driver:
        kubelet.wait_until(lambda node: node.drivers.get(DRIVER), DEADLINE_S)
        running(kubelet)
        assert driver.used == [used]


def test_a_driver_of_unknown_versions_is_refused(kubelet: Kubelet, store: Store) -> None:
    with TinyDriver(kubelet.dir, store, versions=["v2.DRAPlugin"]) as driver:
        ok, error = eventually(lambda: driver.statuses)[0]
        assert not ok
        assert "none of services supported by the plugin" in error
        assert DRIVER not in kubelet.view().drivers


# The kubelet's restart


def test_a_restart_wipes_the_slices_and_prepares_nothing_again(
    kubelet: Kubelet, driver: TinyDriver, store: Store
) -> None:
    running(kubelet)
    kubelet.restart()
    eventually(lambda: not store.select(Selection(SLICES))[1])
    kubelet.wait_until(lambda node: node.drivers.get(DRIVER), DEADLINE_S)
    assert phase(kubelet, "a") is Phase.RUNNING
    assert len(driver.prepared) == 1
    gone(kubelet)
    assert len(driver.unprepared) == 1, "known by the checkpoint"


def test_a_sandbox_made_anew_after_a_restart_is_prepared_again_and_listed_twice(
    kubelet: Kubelet, driver: TinyDriver, store: Store
) -> None:
    def prepared() -> int:
        return sum(name.startswith("a-") for (name,) in driver.prepared)

    running(kubelet)
    assert len(listed(kubelet)) == 1
    kubelet.renew_sandbox("a")
    running(kubelet, "b")  # the sync loop has looked at both by then
    kubelet.restart()
    kubelet.wait_until(lambda node: node.drivers.get(DRIVER), DEADLINE_S)
    assert prepared() == 1, "it was known to be prepared"
    for times in (2, 3):
        kubelet.renew_sandbox("a")
        eventually(lambda: prepared() == times)  # noqa: B023
        eventually(lambda: len(listed(kubelet)) == times)  # noqa: B023
        kubelet.restart()
        kubelet.wait_until(lambda node: node.drivers.get(DRIVER), DEADLINE_S)
    first, *others = listed(kubelet)
    assert all(one.device_name == "gpu-0" for one in others)
    assert [len(one.cdi_devices) for one in (first, *others)] == [1, 2, 3]
    (device,) = kubelet.view().pods["default/a"].status.devices
    assert len(device.cdi_devices) == 1, "what a container gets is not repeated"


def listed(kubelet: Kubelet) -> list[pr.ClaimResource]:
    """What pod-resources says of the claims of pod a."""
    socket = kubelet.dir / "pod-resources" / "kubelet.sock"
    answer = raw_call(socket, "/v1.PodResourcesLister/List", b"")
    pods = pr.ListPodResourcesResponse.FromString(answer).pod_resources
    (pod,) = [one for one in pods if one.name == "a"]
    (claim,) = pod.containers[0].dynamic_resources
    assert claim.claim_name.startswith("a-extended-resources-")
    assert claim.claim_namespace == "default"
    return list(claim.claim_resources)


def test_pods_that_went_while_the_kubelet_was_down_are_found_by_the_next_one(
    kubelet: Kubelet, driver: TinyDriver
) -> None:
    running(kubelet)
    kubelet.stop()
    kubelet.delete_pod("a")
    assert kubelet.view().pods == {}
    kubelet.start()
    eventually(lambda: len(driver.unprepared) == 1)


def test_what_the_checkpoint_has(kubelet: Kubelet, driver: TinyDriver) -> None:
    running(kubelet)
    path = kubelet.dir / CLAIMS_FILE
    (entry,) = json.loads(path.read_text())["Data"]["Entries"]
    pod = kubelet.view().pods["default/a"]
    assert list(entry["PodUIDs"]) == [pod.pod.uid]
    (device,) = entry["DriverState"][DRIVER]["Devices"]
    assert (device["PoolName"], device["DeviceName"]) == (NODE, "gpu-0")
    assert device["ShareID"] == pod.status.devices[0].share_id
    path.write_text("{")
    kubelet.restart()
    kubelet.wait_until(lambda node: node.drivers.get(DRIVER), DEADLINE_S)
    assert phase(kubelet, "a") is Phase.RUNNING


def test_a_pod_deleted_by_force_frees_its_gpu_before_it_is_unprepared(
    kubelet: Kubelet, driver: TinyDriver, store: Store
) -> None:
    publish(store, gpu(0, 1))
    running(kubelet, "a")
    gone(kubelet, "a", force=True)
    running(kubelet, "b")
    eventually(lambda: len(driver.unprepared) == 1)
    assert phase(kubelet, "b") is Phase.RUNNING


def test_a_device_plugin_and_a_class_of_one_resource(kubelet: Kubelet, driver: TinyDriver) -> None:
    """Where a device plugin has devices it is asked, without any the class is."""
    socket = kubelet.dir / "plugins_registry" / "plugin.sock"
    with TinyPlugin(socket, ["w0"], resource=GPU) as plugin:
        kubelet.wait_until(lambda node: node.allocatable(GPU) == 1, DEADLINE_S)
        assert kubelet.run_pod(simple_pod("a", {GPU: 1}), DEADLINE_S).grants
        status = kubelet.run_pod(simple_pod("b", {GPU: 1}), DEADLINE_S)
        assert "Insufficient nvidia.com/gpu" in status.message
        assert len(plugin.allocated) == 1
    eventually(lambda: phase(kubelet, "b") is Phase.RUNNING)
    assert len(driver.prepared) == 1
