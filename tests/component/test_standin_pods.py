"""The kubelet stand-in: scheduling, admission, the calls that it makes, and what it remembers."""

from __future__ import annotations

import base64
import json
import threading
from types import MappingProxyType
from typing import TYPE_CHECKING

import grpc
import pytest

from gpuplugin.kubelet.proto import deviceplugin_pb2 as dp
from gpuplugin.kubelet.proto import podresources_pb2 as pr
from sim.kubelet import Amount, Container, Kubelet, KubeletEvent, Phase, Pod, PodView, simple_pod
from tests.component.running import raw_call, status_of
from tests.component.tinyplugin import WIDGET, TinyPlugin
from tests.component.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UNEXPECTED = "UnexpectedAdmissionError"
UNSCHEDULABLE = "Unschedulable"


@pytest.fixture
def socket(kubelet_dir: Path) -> Path:
    """Where the plugin under these tests listens."""
    return kubelet_dir / "plugins_registry" / "w.sock"


@pytest.fixture
def plugin(kubelet: Kubelet, socket: Path) -> Iterator[TinyPlugin]:
    """A plugin of three widgets that the kubelet knows."""
    with TinyPlugin(socket) as plugin:
        wait_for(kubelet, 3, 3)
        yield plugin


def wait_for(kubelet: Kubelet, capacity: int, allocatable: int) -> None:
    amount = Amount(capacity, allocatable)
    kubelet.wait_until(lambda node: node.amounts.get(WIDGET) == amount, DEADLINE_S)


def wait_running(kubelet: Kubelet, name: str) -> PodView:
    key = f"default/{name}"
    running = Phase.RUNNING
    node = kubelet.wait_until(lambda node: node.pods[key].status.phase is running, DEADLINE_S)
    return node.pods[key]


def pod(name: str, count: int = 1, *, static: bool = False) -> Pod:
    return simple_pod(name, {WIDGET: count}, static=static)


def pod_resources(kubelet_dir: Path, method: str, request: bytes = b"") -> bytes:
    socket = kubelet_dir / "pod-resources" / "kubelet.sock"
    return raw_call(socket, f"/v1.PodResourcesLister/{method}", request)


def test_a_grant_is_what_the_plugin_answered(kubelet: Kubelet, plugin: TinyPlugin) -> None:
    status = kubelet.run_pod(pod("p", 2))
    (grant,) = status.grants
    assert status.phase is Phase.RUNNING
    assert (grant.container, grant.resource) == ("main", WIDGET)
    assert plugin.allocated == [grant.device_ids]
    assert len(set(grant.device_ids)) == 2
    assert grant.envs == {"WIDGETS": ",".join(grant.device_ids)}
    assert grant.mounts == ("/host/w:/w",)
    assert grant.devices == ("/dev/host-w",)
    assert grant.annotations == {"widget": "yes"}
    assert grant.cdi_devices == ("example.com/widget=all",)


def test_each_container_is_a_call_of_its_own(kubelet: Kubelet, plugin: TinyPlugin) -> None:
    limits = MappingProxyType({WIDGET: 1})
    containers = (Container("one", limits), Container("two", limits), Container("none", {}))
    status = kubelet.run_pod(Pod("p", containers))
    assert [grant.container for grant in status.grants] == ["one", "two"]
    assert [len(ids) for ids in plugin.allocated] == [1, 1]
    assert len({one for ids in plugin.allocated for one in ids}) == 2


def test_a_preference_is_asked_and_followed(kubelet: Kubelet, socket: Path) -> None:
    with TinyPlugin(socket, preference=True) as plugin:
        wait_for(kubelet, 3, 3)
        assert kubelet.run_pod(pod("p")).grants[0].device_ids == ("w2",)
        assert set(kubelet.run_pod(pod("q", 2)).grants[0].device_ids) == {"w0", "w1"}
        first, second = plugin.preferred
        assert set(first.available_deviceIDs) == {"w0", "w1", "w2"}
        assert (first.allocation_size, second.allocation_size) == (1, 2)


def test_without_the_option_no_preference_is_asked(kubelet: Kubelet, plugin: TinyPlugin) -> None:
    kubelet.run_pod(pod("p"))
    assert plugin.preferred == []


def test_ids_are_asked_for_in_an_order_that_the_seed_decides(kubelet_dir: Path) -> None:
    orders: list[tuple[str, ...]] = []
    for seed in (1, 1, 2):
        folder = kubelet_dir / f"{seed}-{len(orders)}"
        ids = [f"w{number:02}" for number in range(30)]
        socket = folder / "plugins_registry" / "w.sock"
        with Kubelet(folder, seed=seed) as kubelet, TinyPlugin(socket, ids) as plugin:
            wait_for(kubelet, 30, 30)
            kubelet.run_pod(pod("p", 30))
            orders.append(plugin.allocated[0])
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert list(orders[0]) != sorted(orders[0])


@pytest.mark.parametrize("method", ["Allocate", "GetPreferredAllocation"])
def test_the_plugins_error_is_the_pods_message(kubelet: Kubelet, socket: Path, method: str) -> None:
    with TinyPlugin(socket, preference=True) as plugin:
        wait_for(kubelet, 3, 3)
        plugin.fail[method] = "the widget is on fire"
        status = kubelet.run_pod(pod("p"))
        assert (status.phase, status.reason) == (Phase.FAILED, UNEXPECTED)
        assert status.message == (
            "Allocate failed due to rpc error: code = Internal desc = the widget is on fire, "
            "which is unexpected"
        )
        del plugin.fail[method]
        assert kubelet.run_pod(pod("q", 3)).phase is Phase.RUNNING, "nothing was kept"
        assert kubelet.view().pods["default/p"].status == status, "it is not tried again"


def test_an_empty_answer_fails_the_pod(kubelet: Kubelet, plugin: TinyPlugin) -> None:
    plugin.answer_empty = True
    status = kubelet.run_pod(pod("p"))
    assert (status.phase, status.reason) == (Phase.FAILED, UNEXPECTED)
    assert "no containers return in allocation response" in status.message


def test_a_pod_fails_whole_if_its_second_container_does(
    kubelet: Kubelet, plugin: TinyPlugin
) -> None:
    limits = MappingProxyType({WIDGET: 2})
    containers = (Container("one", limits), Container("two", limits))
    status = kubelet.run_pod(Pod("p", containers, static=True))
    assert (status.phase, status.reason) == (Phase.FAILED, UNEXPECTED)
    assert f"requested number of devices unavailable for {WIDGET}" in status.message
    assert "Requested: 2, Available: 1" in status.message
    assert kubelet.run_pod(pod("q", 3)).phase is Phase.RUNNING


def test_pre_start_is_called_where_it_is_required(kubelet: Kubelet, socket: Path) -> None:
    with TinyPlugin(socket, pre_start=True) as plugin:
        wait_for(kubelet, 3, 3)
        status = kubelet.run_pod(pod("p", 2))
        assert status.phase is Phase.RUNNING
        ((*device_ids,),) = plugin.pre_started
        assert set(device_ids) == set(status.grants[0].device_ids)


def test_pre_start_is_not_called_where_it_is_not_required(
    kubelet: Kubelet, plugin: TinyPlugin
) -> None:
    assert kubelet.run_pod(pod("p")).phase is Phase.RUNNING
    assert plugin.pre_started == []


def test_a_failed_pre_start_is_tried_again(kubelet: Kubelet, socket: Path) -> None:
    """The pod was admitted: only its container cannot be created yet."""
    with TinyPlugin(socket, pre_start=True) as plugin:
        wait_for(kubelet, 3, 3)
        plugin.fail["PreStartContainer"] = "not yet"
        status = kubelet.run_pod(pod("p"))
        assert (status.phase, status.reason) == (Phase.PENDING, "CreateContainerConfigError")
        assert "not yet" in status.message
        del plugin.fail["PreStartContainer"]
        wait_running(kubelet, "p")
        assert len(plugin.allocated) == 1


def test_a_hanging_allocate_holds_up_every_new_pod(kubelet_dir: Path, socket: Path) -> None:
    facts: list[KubeletEvent] = []
    with Kubelet(kubelet_dir, listener=facts.append) as kubelet, TinyPlugin(socket) as plugin:
        wait_for(kubelet, 3, 3)
        plugin.hold_allocate = threading.Event()
        kubelet.create_pod(pod("hanging"))
        assert plugin.in_allocate.wait(DEADLINE_S)
        kubelet.create_pod(simple_pod("unrelated", {}))
        for count in (4, 5, 6):  # lists go on arriving meanwhile
            plugin.send([f"w{number}" for number in range(count)])
            wait_for(kubelet, count, count)
        pods = kubelet.view().pods
        assert pods["default/unrelated"].status.phase is Phase.PENDING
        assert pods["default/hanging"].status.phase is Phase.PENDING
        plugin.hold_allocate.set()
        wait_running(kubelet, "hanging")
        wait_running(kubelet, "unrelated")
    told = [fact.text.split()[0] for fact in facts if fact.kind == "pod"]
    assert told == ["default/hanging", "default/unrelated"]


def test_a_plugin_that_dies_in_allocate_fails_the_pod(kubelet: Kubelet, socket: Path) -> None:
    plugin = TinyPlugin(socket)
    with plugin:
        wait_for(kubelet, 3, 3)
        plugin.hold_allocate = threading.Event()
        kubelet.create_pod(pod("p"))
        assert plugin.in_allocate.wait(DEADLINE_S)
        assert plugin._server is not None
        plugin._server.stop(0)
        node = kubelet.wait_until(
            lambda node: node.pods["default/p"].status.phase is Phase.FAILED, DEADLINE_S
        )
    assert node.pods["default/p"].status.reason == UNEXPECTED
    assert "rpc error: code = " in node.pods["default/p"].status.message


def test_a_scheduled_pod_waits_for_devices(kubelet: Kubelet, socket: Path) -> None:
    status = kubelet.run_pod(pod("p"))
    assert (status.phase, status.reason) == (Phase.PENDING, UNSCHEDULABLE)
    assert status.message == f"0/1 nodes are available: 1 Insufficient {WIDGET}."
    with TinyPlugin(socket):
        assert len(wait_running(kubelet, "p").status.grants) == 1


def test_a_scheduled_pod_never_gets_more_than_is_left(kubelet: Kubelet, plugin: TinyPlugin) -> None:
    assert kubelet.run_pod(pod("p", 2)).phase is Phase.RUNNING
    assert kubelet.run_pod(pod("q", 2)).reason == UNSCHEDULABLE
    kubelet.delete_pod("p")
    wait_running(kubelet, "q")


def test_a_static_pod_does_not_wait(kubelet: Kubelet, plugin: TinyPlugin) -> None:
    status = kubelet.run_pod(pod("p", 4, static=True))
    assert (status.phase, status.reason) == (Phase.FAILED, UNEXPECTED)
    assert "Requested: 4, Available: 3" in status.message


def test_a_static_pod_without_healthy_devices_is_refused(
    kubelet: Kubelet, plugin: TinyPlugin
) -> None:
    plugin.send([("w0", "Unhealthy")])
    wait_for(kubelet, 1, 0)
    status = kubelet.run_pod(pod("p", static=True))
    assert (status.phase, status.reason) == (Phase.FAILED, UNEXPECTED)
    assert "no healthy devices present; cannot allocate unhealthy devices" in status.message


def test_a_deleted_pod_frees_its_devices(kubelet: Kubelet, plugin: TinyPlugin) -> None:
    for number in range(6):
        status = kubelet.run_pod(pod(f"p{number}", 3))
        assert status.phase is Phase.RUNNING
        kubelet.delete_pod(f"default/p{number}")
    assert kubelet.view().pods == {}
    with pytest.raises(KeyError):
        kubelet.delete_pod("p0")


def test_a_pod_that_is_deleted_while_it_is_admitted_holds_nothing(
    kubelet: Kubelet, plugin: TinyPlugin
) -> None:
    plugin.hold_allocate = threading.Event()
    kubelet.create_pod(pod("p", 3))
    assert plugin.in_allocate.wait(DEADLINE_S)
    kubelet.delete_pod("p")
    plugin.hold_allocate.set()
    assert kubelet.run_pod(pod("q", 3)).phase is Phase.RUNNING


def test_two_pods_of_one_name_are_refused(kubelet: Kubelet, plugin: TinyPlugin) -> None:
    kubelet.run_pod(pod("p"))
    with pytest.raises(ValueError, match="default/p exists already"):
        kubelet.create_pod(pod("p"))


def test_an_unhealthy_device_in_use_costs_one_more(kubelet: Kubelet, plugin: TinyPlugin) -> None:
    """Three devices, one in use turns unhealthy: two are healthy and free, one can be had."""
    (grant,) = kubelet.run_pod(pod("p")).grants
    (bad,) = grant.device_ids
    ids = [f"w{number}" for number in range(3)]
    plugin.send([(one, "Unhealthy" if one == bad else "Healthy") for one in ids])
    wait_for(kubelet, 3, 2)
    assert kubelet.run_pod(pod("second")).phase is Phase.RUNNING
    assert kubelet.run_pod(pod("third")).reason == UNSCHEDULABLE
    plugin.send(ids)
    wait_running(kubelet, "third")


def test_unhealthy_devices_are_not_given_out(kubelet: Kubelet, plugin: TinyPlugin) -> None:
    plugin.send(["w0", ("w1", "Unhealthy"), ("w2", "Unhealthy")])
    wait_for(kubelet, 3, 1)
    assert kubelet.run_pod(pod("p")).grants[0].device_ids == ("w0",)


def test_a_restart_keeps_what_pods_hold(kubelet: Kubelet, plugin: TinyPlugin) -> None:
    (grant,) = kubelet.run_pod(pod("p", 2)).grants
    kubelet.restart()
    wait_for(kubelet, 3, 3)
    assert len(plugin.allocated) == 1, "no second Allocate"
    (late,) = kubelet.run_pod(pod("late")).grants
    assert not set(late.device_ids) & set(grant.device_ids)
    assert kubelet.run_pod(pod("more")).reason == UNSCHEDULABLE


def test_the_checkpoint_is_the_kubelets(
    kubelet: Kubelet, plugin: TinyPlugin, kubelet_dir: Path
) -> None:
    status = kubelet.run_pod(pod("p", 2))
    plugin.send(["w0", "w1", ("w2", "Unhealthy")])
    wait_for(kubelet, 3, 2)
    path = kubelet_dir / "device-plugins" / "kubelet_internal_checkpoint"
    content = json.loads(path.read_text())
    assert set(content) == {"Data", "Checksum"}
    assert content["Data"]["RegisteredDevices"] == {WIDGET: ["w0", "w1"]}
    (entry,) = content["Data"]["PodDeviceEntries"]
    assert entry["PodUID"] == kubelet.view().pods["default/p"].pod.uid
    assert (entry["ContainerName"], entry["ResourceName"]) == ("main", WIDGET)
    assert {node: set(ids) for node, ids in entry["DeviceIDs"].items()} == {
        "-1": set(status.grants[0].device_ids)
    }
    answer = dp.ContainerAllocateResponse.FromString(base64.b64decode(entry["AllocResp"]))
    assert dict(answer.envs) == dict(status.grants[0].envs)
    kubelet.delete_pod("p")
    assert json.loads(path.read_text())["Data"]["PodDeviceEntries"] == []


@pytest.mark.parametrize("damage", ["", "{}", "not json", '{"Data": {}, "Checksum": 1}'])
def test_a_damaged_checkpoint_is_told_and_left_behind(kubelet_dir: Path, damage: str) -> None:
    path = kubelet_dir / "device-plugins" / "kubelet_internal_checkpoint"
    path.parent.mkdir(parents=True)
    path.write_text(damage)
    facts: list[KubeletEvent] = []
    socket = kubelet_dir / "plugins_registry" / "w.sock"
    with Kubelet(kubelet_dir, listener=facts.append) as kubelet, TinyPlugin(socket):
        wait_for(kubelet, 3, 3)
    assert any("starting without it" in fact.text for fact in facts)


def test_pod_resources_list_and_get(
    kubelet: Kubelet, plugin: TinyPlugin, kubelet_dir: Path
) -> None:
    status = kubelet.run_pod(pod("p", 2))
    kubelet.run_pod(simple_pod("idle", {}))
    listed = pr.ListPodResourcesResponse.FromString(pod_resources(kubelet_dir, "List"))
    by_name = {one.name: one for one in listed.pod_resources}
    assert set(by_name) == {"p", "idle"}
    (container,) = by_name["p"].containers
    assert container.name == "main"
    assert {one.resource_name for one in container.devices} == {WIDGET}
    ids = {id_ for one in container.devices for id_ in one.device_ids}
    assert ids == set(status.grants[0].device_ids)
    assert list(by_name["idle"].containers[0].devices) == []
    request = pr.GetPodResourcesRequest(pod_name="p", pod_namespace="default")
    got = pr.GetPodResourcesResponse.FromString(
        pod_resources(kubelet_dir, "Get", request.SerializeToString())
    )
    assert got.pod_resources == by_name["p"]


def test_pod_resources_of_a_pod_that_is_not_there(kubelet: Kubelet, kubelet_dir: Path) -> None:
    request = pr.GetPodResourcesRequest(pod_name="nobody", pod_namespace="default")
    with pytest.raises(grpc.RpcError) as refused:
        pod_resources(kubelet_dir, "Get", request.SerializeToString())
    assert "pod default/nobody not found" in status_of(refused.value)[1]


def test_allocatable_resources_are_the_healthy_devices(
    kubelet: Kubelet, plugin: TinyPlugin, kubelet_dir: Path
) -> None:
    plugin.send(["w0", ("w1", "Unhealthy"), "w2"])
    wait_for(kubelet, 3, 2)
    answer = pr.AllocatableResourcesResponse.FromString(
        pod_resources(kubelet_dir, "GetAllocatableResources")
    )
    assert sorted(id_ for one in answer.devices for id_ in one.device_ids) == ["w0", "w2"]


def test_calls_are_recorded_with_their_errors(kubelet_dir: Path, socket: Path) -> None:
    facts: list[KubeletEvent] = []
    with Kubelet(kubelet_dir, listener=facts.append) as kubelet, TinyPlugin(socket) as plugin:
        wait_for(kubelet, 3, 3)
        kubelet.run_pod(pod("good"))
        plugin.fail["Allocate"] = "no"
        kubelet.run_pod(pod("bad"))
        calls = [fact.call for fact in facts if fact.call and fact.call.method == "Allocate"]
    assert [call.error for call in calls] == ["", "rpc error: code = Internal desc = no"]
    assert all(call.resource == WIDGET and call.duration_s > 0 for call in calls)


def test_a_wait_that_is_in_vain_shows_the_node(kubelet: Kubelet, plugin: TinyPlugin) -> None:
    with pytest.raises(TimeoutError, match=r"example\.com/widget 3/3"):
        kubelet.wait_until(lambda _node: False, 0.0)


def test_nothing_is_lost_when_many_pods_come_at_once(kubelet: Kubelet, socket: Path) -> None:
    ids = [f"w{number}" for number in range(40)]
    with TinyPlugin(socket, ids) as plugin:
        wait_for(kubelet, 40, 40)
        for number in range(40):
            kubelet.create_pod(pod(f"p{number}"))
        kubelet.wait_until(
            lambda node: all(view.status.phase is Phase.RUNNING for view in node.pods.values()),
            DEADLINE_S,
        )
        assert sorted(one for held in plugin.allocated for one in held) == sorted(ids)
    eventually(lambda: kubelet.view().allocatable(WIDGET) == 0)
