"""Registration, both ways, and what the kubelet's calls are answered."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import grpc
import pytest

from gpuplugin.kubelet.deviceplugin import MAX_STREAMS
from gpuplugin.kubelet.proto import deviceplugin_pb2 as dp
from gpuplugin.kubelet.proto import pluginregistration_pb2 as pr
from sim.kubelet import Amount, Phase, simple_pod
from tests.component.running import RESOURCE, allocate_request, raw_call, status_of
from tests.component.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sim.kubelet import Kubelet
    from tests.component.conftest import MakeHardware, StartPlugin
    from tests.component.running import Hardware, PluginProcess

GARBAGE = b"\xff\xff\xff\xff"


def refusal(plugin: PluginProcess, method: str, request: bytes) -> tuple[grpc.StatusCode, str]:
    """The status with which a call is refused."""
    with pytest.raises(grpc.RpcError) as refused:
        plugin.call(method, request)
    return status_of(refused.value)


def preferred(
    plugin: PluginProcess, *requests: dp.ContainerPreferredAllocationRequest
) -> list[list[str]]:
    """What GetPreferredAllocation answers, per container."""
    request = dp.PreferredAllocationRequest(container_requests=requests)
    answer = dp.PreferredAllocationResponse.FromString(
        plugin.call("GetPreferredAllocation", request.SerializeToString())
    )
    return [list(one.deviceIDs) for one in answer.container_responses]


def ask(
    available: Sequence[str], size: int, must: Sequence[str] = ()
) -> dp.ContainerPreferredAllocationRequest:
    return dp.ContainerPreferredAllocationRequest(
        available_deviceIDs=available, must_include_deviceIDs=must, allocation_size=size
    )


def test_eighty_replicas_are_advertised(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin, registration: str
) -> None:
    start_plugin(hardware.backend, registration)
    node = kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 80, DEADLINE_S)
    assert node.amounts == {RESOURCE: Amount(80, 80)}
    expected = {one for gpu in range(8) for one in hardware.replicas(gpu)}
    assert set(node.devices[RESOURCE]) == expected


def test_replicas_carry_the_numa_node_of_their_gpu(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin
) -> None:
    start_plugin(hardware.backend)
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 80, DEADLINE_S)
    nodes = {gpu.uuid: gpu.numa_node for gpu in hardware.backend.gpus()}
    assert set(nodes.values()) == {0, 1}
    # The stand-in tells the NUMA nodes of what a pod holds in its checkpoint and pod resources.
    status = kubelet.run_pod(simple_pod("one", {RESOURCE: 1}))
    (grant,) = status.grants
    (device_id,) = grant.device_ids
    ((holder, held, _),) = kubelet._held()
    assert holder.name == "one"
    assert held[0].numa[device_id] == (nodes[device_id.partition("::")[0]],)


def test_ten_pods_are_spread_over_eight_gpus(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin, registration: str
) -> None:
    start_plugin(hardware.backend, registration)
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 80, DEADLINE_S)
    visible: Counter[str] = Counter()
    for number in range(10):
        status = kubelet.run_pod(simple_pod(f"pod-{number}", {RESOURCE: 1}))
        assert status.phase is Phase.RUNNING, status
        (grant,) = status.grants
        (device_id,) = grant.device_ids
        assert grant.envs["NVIDIA_VISIBLE_DEVICES"] == device_id.partition("::")[0]
        visible[grant.envs["NVIDIA_VISIBLE_DEVICES"]] += 1
    assert set(visible) == set(hardware.uuids)
    assert sorted(visible.values()) == [1] * 6 + [2] * 2


def test_all_eighty_replicas_can_be_used_and_no_more(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin
) -> None:
    start_plugin(hardware.backend)
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 80, DEADLINE_S)
    used = Counter[str]()
    for number in range(80):
        status = kubelet.run_pod(simple_pod(f"pod-{number}", {RESOURCE: 1}))
        used.update(status.grants[0].device_ids)
    assert len(used) == 80
    assert set(Counter(one.partition("::")[0] for one in used).values()) == {10}
    status = kubelet.run_pod(simple_pod("one-too-many", {RESOURCE: 1}))
    assert (status.phase, status.reason) == (Phase.PENDING, "Unschedulable")


def test_a_pod_with_two_shared_devices_is_refused_in_nvidias_words(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin, registration: str
) -> None:
    start_plugin(hardware.backend, registration)
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 80, DEADLINE_S)
    status = kubelet.run_pod(simple_pod("greedy", {RESOURCE: 2}))
    assert (status.phase, status.reason) == (Phase.FAILED, "UnexpectedAdmissionError")
    assert "maximum request size for shared resources is 1; found 2" in status.message
    assert f'invalid allocation request for "{RESOURCE}": invalid request: ' in status.message
    # A refused pod holds nothing, and the next one is served.
    assert kubelet.run_pod(simple_pod("modest", {RESOURCE: 1})).phase is Phase.RUNNING


def test_two_shared_devices_are_granted_where_the_configuration_allows_it(
    kubelet: Kubelet, kubelet_dir: Path, make_hardware: MakeHardware, start_plugin: StartPlugin
) -> None:
    config = kubelet_dir / "config.yaml"
    config.write_text(
        "version: v1\nsharing:\n  timeSlicing:\n    failRequestsGreaterThanOne: false\n"
        "    resources: [{name: nvidia.com/gpu, replicas: 3}]\n"
    )
    start_plugin(make_hardware(2).backend, config_file=config)
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 6, DEADLINE_S)
    status = kubelet.run_pod(simple_pod("two", {RESOURCE: 2}))
    assert status.phase is Phase.RUNNING
    visible = status.grants[0].envs["NVIDIA_VISIBLE_DEVICES"].split(",")
    assert len(set(visible)) == 2


def test_a_renamed_resource_replaces_the_plain_name(
    kubelet: Kubelet, kubelet_dir: Path, make_hardware: MakeHardware, start_plugin: StartPlugin
) -> None:
    config = kubelet_dir / "config.yaml"
    config.write_text(
        "version: v1\nsharing:\n  timeSlicing:\n    renameByDefault: true\n"
        "    resources: [{name: gpu, replicas: 4}]\n"
    )
    start_plugin(make_hardware(1).backend, config_file=config)
    node = kubelet.wait_until(lambda node: node.allocatable(f"{RESOURCE}.shared") == 4, DEADLINE_S)
    assert RESOURCE not in node.amounts


def test_without_sharing_a_device_is_a_gpu(
    kubelet: Kubelet, kubelet_dir: Path, hardware: Hardware, start_plugin: StartPlugin
) -> None:
    config = kubelet_dir / "config.yaml"
    config.write_text("version: v1\n")
    start_plugin(hardware.backend, config_file=config)
    node = kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 8, DEADLINE_S)
    assert set(node.devices[RESOURCE]) == set(hardware.uuids)
    status = kubelet.run_pod(simple_pod("three", {RESOURCE: 3}))
    visible = status.grants[0].envs["NVIDIA_VISIBLE_DEVICES"].split(",")
    assert set(visible) == set(status.grants[0].device_ids)
    assert len(visible) == 3


def test_a_list_above_four_mebibytes_is_not_served_and_the_largest_count_is_named(
    kubelet_dir: Path, make_hardware: MakeHardware, start_plugin: StartPlugin
) -> None:
    config = kubelet_dir / "config.yaml"
    config.write_text(
        "version: v1\nsharing:\n  timeSlicing:\n    resources: [{name: gpu, replicas: 70000}]\n"
    )
    plugin = start_plugin(make_hardware(1).backend, config_file=config)
    wanted = "set sharing.timeSlicing.resources[].replicas to at most "
    eventually(lambda: wanted in str(plugin.get("/ready").parts["inventory"]["text"]))
    assert plugin.get("/ready").status == 503
    assert plugin.sockets() == ()


def test_unknown_devices_are_refused_by_name(lone_plugin: PluginProcess) -> None:
    code, text = refusal(lone_plugin, "Allocate", allocate_request(("GPU-none::0",)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text == (
        f'invalid allocation request for "{RESOURCE}": invalid request: unknown device: GPU-none::0'
    )


def test_a_whole_gpu_is_no_device_of_a_shared_resource(
    lone_plugin: PluginProcess, lone_hardware: Hardware
) -> None:
    uuid = lone_hardware.uuids[0]
    _, text = refusal(lone_plugin, "Allocate", allocate_request((uuid,)))
    assert text.endswith(f"unknown device: {uuid}")


def test_one_bad_container_fails_the_whole_request(
    lone_plugin: PluginProcess, lone_hardware: Hardware
) -> None:
    good = lone_hardware.replicas(0)[:1]
    _, text = refusal(lone_plugin, "Allocate", allocate_request(good, ("GPU-none::1",)))
    assert text.endswith("unknown device: GPU-none::1")


def test_each_container_gets_its_own_answer_in_order(
    lone_plugin: PluginProcess, lone_hardware: Hardware
) -> None:
    request = allocate_request(lone_hardware.replicas(3)[:1], lone_hardware.replicas(1)[4:5], ())
    answer = dp.AllocateResponse.FromString(lone_plugin.call("Allocate", request))
    first, second, third = answer.container_responses
    assert first.envs["NVIDIA_VISIBLE_DEVICES"] == lone_hardware.uuids[3]
    assert second.envs["NVIDIA_VISIBLE_DEVICES"] == lone_hardware.uuids[1]
    assert third.envs.get("NVIDIA_VISIBLE_DEVICES", "") not in lone_hardware.uuids


def test_an_empty_request_gets_an_empty_answer(lone_plugin: PluginProcess) -> None:
    assert lone_plugin.call("Allocate", b"") == b""
    assert lone_plugin.call("GetPreferredAllocation", b"") == b""


def test_options_ask_for_preferences_and_not_for_pre_start(lone_plugin: PluginProcess) -> None:
    options = dp.DevicePluginOptions.FromString(lone_plugin.call("GetDevicePluginOptions", b""))
    assert options.get_preferred_allocation_available
    assert not options.pre_start_required


def test_pre_start_answers_all_the_same(
    lone_plugin: PluginProcess, lone_hardware: Hardware
) -> None:
    request = dp.PreStartContainerRequest(devices_ids=lone_hardware.replicas(0)[:1])
    assert lone_plugin.call("PreStartContainer", request.SerializeToString()) == b""


@pytest.mark.parametrize("method", ["Allocate", "GetPreferredAllocation"])
def test_bytes_that_are_no_request_are_an_invalid_argument(
    lone_plugin: PluginProcess, method: str
) -> None:
    code, text = refusal(lone_plugin, method, GARBAGE)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "the request is not a v1beta1." in text


def test_methods_that_do_not_exist_are_unimplemented(lone_plugin: PluginProcess) -> None:
    code, _ = refusal(lone_plugin, "Deallocate", b"")
    assert code is grpc.StatusCode.UNIMPLEMENTED


def test_preference_takes_from_the_gpu_with_most_left(
    lone_plugin: PluginProcess, lone_hardware: Hardware
) -> None:
    available = [
        *lone_hardware.replicas(0)[5:],
        *lone_hardware.replicas(1)[1:],
        *lone_hardware.replicas(2),
    ]
    (choice,) = preferred(lone_plugin, ask(available, 2))
    assert {one.partition("::")[0] for one in choice} == {
        lone_hardware.uuids[1],
        lone_hardware.uuids[2],
    }


@pytest.mark.parametrize("size", [0, -1, -(2**31)])
def test_preference_of_nothing_is_nothing(
    lone_plugin: PluginProcess, lone_hardware: Hardware, size: int
) -> None:
    assert preferred(lone_plugin, ask(lone_hardware.replicas(0), size)) == [[]]


@pytest.mark.parametrize("size", [11, 2**31 - 1])
def test_preference_of_more_than_there_is_gives_what_there_is(
    lone_plugin: PluginProcess, lone_hardware: Hardware, size: int
) -> None:
    (choice,) = preferred(lone_plugin, ask(lone_hardware.replicas(0), size))
    assert sorted(choice) == sorted(lone_hardware.replicas(0))


def test_preference_keeps_what_must_be_included_and_passes_over_the_unknown(
    lone_plugin: PluginProcess, lone_hardware: Hardware
) -> None:
    known = lone_hardware.replicas(5)[0]
    must = lone_hardware.replicas(6)[3]
    requests = (
        ask(["GPU-none::0", "", "::", known, known], 2),
        ask([known, must], 2, must=[must]),
        ask([known, must], 1, must=[must]),
        ask([], 1, must=["GPU-none::9"]),
        ask([], 3),
    )
    assert preferred(lone_plugin, *requests) == [
        [known],
        [must, known],
        [must],
        ["GPU-none::9"],
        [],
    ]


def test_ninety_clients_may_watch_one_after_the_other_and_none_is_locked_out(
    lone_plugin: PluginProcess,
) -> None:
    (socket,) = lone_plugin.sockets()
    with ExitStack() as stack:
        streams = []
        for number in range(90):
            options = [("grpc.use_local_subchannel_pool", 1), ("a connection of its own", number)]
            channel = grpc.insecure_channel(f"unix://{socket}", options=options)
            streams.append(open_stream(stack.enter_context(channel)))
            assert len(dp.ListAndWatchResponse.FromString(next(streams[-1])).devices) == 80
        assert streams[0].is_active(), "the one that has watched for longest is the kubelet"
        eventually(lambda: sum(stream.is_active() for stream in streams) <= MAX_STREAMS)
        # Streams do not keep calls from being answered.
        assert lone_plugin.call("Allocate", b"") == b""
        assert first_of_a_new_stream(socket) is None


def open_stream(channel: grpc.Channel) -> Any:
    call: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(
        "/v1beta1.DevicePlugin/ListAndWatch"
    )
    return call(b"", timeout=2 * DEADLINE_S)


def first_of_a_new_stream(socket: Path) -> grpc.StatusCode | None:
    """None if a new stream gets a list, else the status that it ends with."""
    with grpc.insecure_channel(f"unix://{socket}") as channel:
        stream = open_stream(channel)
        try:
            next(stream)
        except grpc.RpcError as error:
            return status_of(error)[0]
        stream.cancel()
        return None


def test_the_registration_socket_says_what_it_is(
    hardware: Hardware, start_plugin: StartPlugin
) -> None:
    plugin = start_plugin(hardware.backend, "watcher")
    (socket,) = eventually(plugin.sockets)
    info = pr.PluginInfo.FromString(
        raw_call(socket, "/pluginregistration.Registration/GetInfo", b"")
    )
    assert (info.type, info.name, info.endpoint) == ("DevicePlugin", RESOURCE, "")
    assert list(info.supported_versions) == ["v1beta1"]


def test_a_kubelet_that_never_connects_makes_no_ready_plugin(
    kubelet_dir: Path, hardware: Hardware, start_plugin: StartPlugin
) -> None:
    """Register is accepted and nothing follows: only an open stream shows that devices arrive."""
    with RegistrationOnly(kubelet_dir) as kubelet:
        plugin = start_plugin(hardware.backend, "classic")
        assert kubelet.registered.wait(DEADLINE_S)
        accepted = {"result": "accepted", "mode": "classic"}
        eventually(lambda: plugin.metric("gpuplugin_registrations_total", **accepted) >= 1)
        eventually(lambda: plugin.metric("gpuplugin_devices", health="Healthy") == 80)
        assert plugin.get("/ready").status == 503


def test_a_plugin_stops_though_the_kubelet_never_answers_its_register(
    kubelet_dir: Path, hardware: Hardware, start_plugin: StartPlugin
) -> None:
    """As a kubelet does that still dials the plugin, which is gone."""
    with RegistrationOnly(kubelet_dir, answers=False) as kubelet:
        plugin = start_plugin(hardware.backend, "classic")
        assert kubelet.registered.wait(DEADLINE_S)
        plugin.stop()
        assert kubelet.hung_up.wait(DEADLINE_S)
    assert plugin.failure is None


class RegistrationOnly:
    """A kubelet that accepts Register, or never answers it, and never comes."""

    def __init__(self, kubelet_dir: Path, *, answers: bool = True) -> None:
        self.registered = threading.Event()
        self.hung_up = threading.Event()
        self._answers = answers
        self._socket = kubelet_dir / "device-plugins" / "kubelet.sock"
        self._server = grpc.server(ThreadPoolExecutor(2))

    def __enter__(self) -> Self:
        def register(_request: bytes, context: grpc.ServicerContext) -> bytes:
            context.add_callback(self.hung_up.set)
            self.registered.set()
            if not self._answers:
                self.hung_up.wait(DEADLINE_S)
            return b""

        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Register": grpc.unary_unary_rpc_method_handler(register)
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("v1beta1.Registration", handlers),)
        )
        self._socket.parent.mkdir(parents=True)
        self._server.add_insecure_port(f"unix://{self._socket}")
        self._server.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.stop(0).wait(DEADLINE_S)


def test_a_refusal_by_the_kubelet_shows_with_its_words(
    hardware: Hardware, start_plugin: StartPlugin
) -> None:
    plugin = start_plugin(hardware.backend, "watcher")
    (socket,) = eventually(plugin.sockets)
    method = "/pluginregistration.Registration/NotifyRegistrationStatus"
    with pytest.raises(grpc.RpcError) as refused:
        raw_call(socket, method, GARBAGE)
    assert status_of(refused.value)[0] is grpc.StatusCode.INVALID_ARGUMENT
    status = pr.RegistrationStatus(plugin_registered=False, error="no such luck")
    raw_call(socket, method, status.SerializeToString())
    part = eventually(
        lambda: "no such luck" in str(plugin.get("/ready").parts[f"kubelet:{RESOURCE}"]["text"])
    )
    assert part
    assert plugin.get("/ready").status == 503
    assert plugin.metric("gpuplugin_registrations_total", result="refused", mode="watcher") == 1


def test_registration_shows_in_readiness_and_metrics(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin, registration: str
) -> None:
    plugin = start_plugin(hardware.backend, registration)
    kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 80, DEADLINE_S)
    eventually(lambda: plugin.ready)
    eventually(lambda: plugin.metric("gpuplugin_open_streams", resource=RESOURCE) == 1)
    assert plugin.metric("gpuplugin_devices", health="Healthy") == 80
    accepted = {"result": "accepted", "mode": registration}
    eventually(lambda: plugin.metric("gpuplugin_registrations_total", **accepted) == 1)


def test_without_registration_there_is_only_a_socket(
    kubelet: Kubelet, hardware: Hardware, start_plugin: StartPlugin
) -> None:
    plugin = start_plugin(hardware.backend, "none")
    eventually(lambda: plugin.ready and plugin.sockets())
    (socket,) = plugin.sockets()
    with pytest.raises(grpc.RpcError) as refused:
        raw_call(socket, "/pluginregistration.Registration/GetInfo", b"")
    assert status_of(refused.value)[0] is grpc.StatusCode.UNIMPLEMENTED
    answer = dp.AllocateResponse.FromString(
        plugin.call("Allocate", allocate_request(hardware.replicas(7)[:1]))
    )
    assert answer.container_responses[0].envs["NVIDIA_VISIBLE_DEVICES"] == hardware.uuids[7]
    assert kubelet.view().amounts == {}
