"""The services that the kubelet stand-in offers: classic registration and pod resources."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc

from gpuplugin.kubelet.proto import deviceplugin_pb2 as dp
from gpuplugin.kubelet.proto import podresources_pb2 as pr
from gpuplugin.rpc.services import grpc_target
from sim.kubelet.admission import CallFailed
from sim.kubelet.registration import API_VERSION, is_extended_resource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path
    from typing import TypeAlias

    from sim.kubelet.claims import HeldClaim
    from sim.kubelet.devices import Holding
    from sim.kubelet.pods import Pod

    Connect = Callable[[dp.RegisterRequest], None]
    Held: TypeAlias = tuple[Pod, tuple[Holding, ...], tuple[HeldClaim, ...]]

STOP_GRACE_S = 0.2


class Services:
    def __init__(self, kubelet_socket: Path, pod_resources_socket: Path) -> None:
        self._kubelet_socket = kubelet_socket
        self._pod_resources_socket = pod_resources_socket
        self._servers: list[grpc.Server] = []

    def start(self, connect: Connect, pods: PodResources) -> None:
        """Listen; `connect` raises `CallFailed` for a plugin that cannot be reached."""
        self._serve(self._kubelet_socket, "v1beta1.Registration", {"Register": _register(connect)})
        self._serve(self._pod_resources_socket, "v1.PodResourcesLister", pods.handlers())

    def stop(self) -> None:
        for server in self._servers:
            server.stop(STOP_GRACE_S).wait()
        self._servers.clear()

    def _serve(
        self,
        socket: Path,
        service: str,
        handlers: Mapping[str, grpc.RpcMethodHandler[bytes, bytes]],
    ) -> None:
        socket.unlink(missing_ok=True)
        # The pod-resources answer repeats names per device and may pass 4 MiB on the way out.
        server = grpc.server(
            ThreadPoolExecutor(4, thread_name_prefix="kubelet"),
            options=(("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)),
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, dict(handlers)),)
        )
        server.add_insecure_port(grpc_target(socket))
        server.start()
        self._servers.append(server)


def _register(connect: Connect) -> grpc.RpcMethodHandler[bytes, bytes]:
    def register(data: bytes, context: grpc.ServicerContext) -> bytes:
        request = dp.RegisterRequest.FromString(data)
        if request.version != API_VERSION:
            context.abort(
                grpc.StatusCode.UNKNOWN,
                f'requested API version "{request.version}" is not supported by kubelet. '
                f'Supported version is ["{API_VERSION}"]',
            )
        if not is_extended_resource(request.resource_name):
            context.abort(
                grpc.StatusCode.UNKNOWN, f'the ResourceName "{request.resource_name}" is invalid'
            )
        try:
            connect(request)
        except CallFailed as error:
            context.abort(grpc.StatusCode.UNKNOWN, str(error))
        return b""

    return grpc.unary_unary_rpc_method_handler(register)


class PodResources:
    """The pod-resources service, version v1; `read` gives its content, at each call."""

    def __init__(
        self,
        read_pods: Callable[[], Iterable[Held]],
        read_devices: Callable[[], Mapping[str, Mapping[str, tuple[int, ...]]]],
    ) -> None:
        self._read_pods = read_pods
        self._read_devices = read_devices

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[bytes, bytes]]:
        return {
            "List": grpc.unary_unary_rpc_method_handler(self._list),
            "Get": grpc.unary_unary_rpc_method_handler(self._get),
            "GetAllocatableResources": grpc.unary_unary_rpc_method_handler(self._allocatable),
        }

    def _list(self, _data: bytes, _context: grpc.ServicerContext) -> bytes:
        return pr.ListPodResourcesResponse(
            pod_resources=[_pod(*held) for held in self._read_pods()]
        ).SerializeToString()

    def _get(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        request = pr.GetPodResourcesRequest.FromString(data)
        key = f"{request.pod_namespace}/{request.pod_name}"
        found = next((_pod(*held) for held in self._read_pods() if held[0].key == key), None)
        if found is None:
            context.abort(grpc.StatusCode.UNKNOWN, f"pod {key} not found")
        return pr.GetPodResourcesResponse(pod_resources=found).SerializeToString()

    def _allocatable(self, _data: bytes, _context: grpc.ServicerContext) -> bytes:
        return pr.AllocatableResourcesResponse(
            devices=[
                _device(resource, device_id, nodes)
                for resource, devices in self._read_devices().items()
                for device_id, nodes in devices.items()
            ]
        ).SerializeToString()


def _pod(pod: Pod, held: tuple[Holding, ...], claims: tuple[HeldClaim, ...]) -> pr.PodResources:
    return pr.PodResources(
        name=pod.name,
        namespace=pod.namespace,
        containers=[
            pr.ContainerResources(
                name=container.name,
                devices=[
                    _device(holding.resource, device_id, holding.numa.get(device_id, ()))
                    for holding in held
                    if holding.container == container.name
                    for device_id in holding.device_ids
                ],
                dynamic_resources=[
                    _claim(claim) for claim in claims if container.name in claim.containers
                ],
            )
            for container in pod.containers
        ],
    )


def _device(resource: str, device_id: str, nodes: tuple[int, ...]) -> pr.ContainerDevices:
    topology = pr.TopologyInfo(nodes=[pr.NUMANode(ID=node) for node in nodes]) if nodes else None
    return pr.ContainerDevices(resource_name=resource, device_ids=[device_id], topology=topology)


def _claim(claim: HeldClaim) -> pr.DynamicResource:
    """All devices of a claim: they are not filtered by request, and pile up (kubelet 1.36)."""
    resources = []
    for driver, devices in claim.info.devices.items():
        cdi_devices: list[pr.CDIDevice] = []
        for one in devices:
            cdi_devices += (pr.CDIDevice(name=name) for name in one.cdi_devices)
            resource = pr.ClaimResource(
                cdi_devices=cdi_devices,
                driver_name=driver,
                pool_name=one.pool,
                device_name=one.device,
            )
            if one.share_id:
                resource.share_id = one.share_id
            resources.append(resource)
    ref = claim.info.ref
    return pr.DynamicResource(
        claim_name=ref.name, claim_namespace=ref.namespace, claim_resources=resources
    )
