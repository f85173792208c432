"""A node with the daemon in DRA mode: the kubelet's side of its sockets, and claims for it."""

from __future__ import annotations

import json
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import grpc

from gpuplugin.daemon.dra.claimstore import FILE
from gpuplugin.daemon.serving.sockets import identity
from gpuplugin.kubelet.proto import dra_pb2 as pb
from gpuplugin.kubelet.proto import pluginregistration_pb2 as registration
from gpuplugin.rpc.client import CallFailed, Connection, Method
from sim.apiserver import CLAIMS, Key
from tests.component.cluster import devices
from tests.component.running import PluginProcess, settings_for
from tests.component.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hal import Backend
    from sim.apiserver import ApiServer

DRIVER, NODE = "gpu.gpuplugin.dev", "node-1"
_PLUGIN = "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin"
PREPARE = f"{_PLUGIN}/NodePrepareResources"
UNPREPARE = f"{_PLUGIN}/NodeUnprepareResources"
HEALTH = Method.of("/v1alpha1.DRAResourceHealth/NodeWatchResources")
GET_INFO = Method.of("/pluginregistration.Registration/GetInfo")
NOTIFY = Method.of("/pluginregistration.Registration/NotifyRegistrationStatus")
CALL_S = 45.0


def dra_flags(folder: Path, **more: str) -> dict[str, str]:
    """Flags of a daemon in DRA mode, whose CDI specs are below `folder`."""
    return {
        "--allocation": "dra",
        "--node-name": NODE,
        "--cdi-root": str(folder / "cdi"),
        **{f"--{name.replace('_', '-')}": value for name, value in more.items()},
    }


class DraNode:
    """The node: its kubelet's folder, its API server, and what a kubelet and a scheduler do."""

    def __init__(self, folder: Path, server: ApiServer) -> None:
        self.folder = folder
        self.server = server
        self.specs = folder / "cdi"

    def plugin(
        self, backend: Backend, config_file: Path | None = None, **flags: str
    ) -> PluginProcess:
        """The daemon in DRA mode, not started; it reads the file anew at `reload`."""
        given = dra_flags(self.folder, **flags)
        return PluginProcess(
            settings_for(self.folder, given, config_file=config_file),
            backend,
            lambda: settings_for(self.folder, given, config_file=config_file),
        )

    def registrations(self) -> list[Path]:
        """Registration sockets, the newest last."""
        found = (self.folder / "plugins_registry").rglob(f"{DRIVER}-*-reg.sock")
        made = [(stamp[2], path) for path in found if (stamp := identity(path)) is not None]
        return [path for _, path in sorted(made)]

    def connect(self) -> Kubelet:
        """Find the newest instance as the plugin watcher does, and register it."""
        return Kubelet(eventually(self._found))

    def _found(self) -> str:
        """The endpoint of the newest instance; "" if there is none that answers."""
        for socket in reversed(self.registrations()):
            try:
                with Connection(socket, DEADLINE_S) as found:
                    info = registration.PluginInfo.FromString(found.call(GET_INFO, b""))
                    assert (info.type, info.name) == ("DRAPlugin", DRIVER)
                    done = registration.RegistrationStatus(plugin_registered=True)
                    found.call(NOTIFY, done.SerializeToString())
            except CallFailed:
                continue  # it does not listen yet, or no longer
            return info.endpoint
        return ""

    def devices(self) -> list[dict[str, Any]]:
        return devices(self.server)

    def device(self, number: int) -> dict[str, Any]:
        """A published device by its number in the order of the slice."""
        return eventually(self.devices)[number]

    def allocate(self, device: Mapping[str, Any], shares: int = 1, **config: Any) -> pb.Claim:
        """A claim that the scheduler has allocated; `shares` as of a device that is shared."""
        name = f"claim-{uuid.uuid4().hex[:8]}"
        result: dict[str, Any] = {
            "request": "container-0-request-0", "driver": DRIVER, "pool": NODE,
            "device": device["name"],
        }  # fmt: skip
        if device.get("allowMultipleAllocations"):
            capacity = {"shares": str(shares), "memory": "0"}
            result |= {"shareID": str(uuid.uuid4()), "consumedCapacity": capacity}
        key = Key(CLAIMS, name, "default")
        made: dict[str, Any] = self.server.store.create(
            key, {"spec": {"devices": {"requests": []}}}
        )
        allocation = {"devices": {"results": [result], "config": config.get("config", [])}}
        self.server.store.patch(key, {"status": {"allocation": allocation}}, status=True)
        return pb.Claim(namespace="default", name=name, uid=made["metadata"]["uid"])

    def claim(self, claim: pb.Claim) -> dict[str, Any]:
        """A claim as the API server has it."""
        return self.server.store.get(Key(CLAIMS, claim.name, claim.namespace))

    def delete(self, claim: pb.Claim) -> None:
        self.server.store.delete(Key(CLAIMS, claim.name, claim.namespace))

    def spec(self, claim: pb.Claim) -> dict[str, Any]:
        """The CDI spec of a prepared claim."""
        content: dict[str, Any] = json.loads(self.spec_path(claim).read_text())
        return content

    def spec_path(self, claim: pb.Claim) -> Path:
        return self.specs / f"gpuplugin.dev-claim-{claim.uid}.json"

    @property
    def claims_file(self) -> Path:
        return self.folder / "plugins" / DRIVER / FILE


class Kubelet:
    """The kubelet's one connection to an instance of the driver, for all calls at a time."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._channel = grpc.insecure_channel(f"unix://{endpoint}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._channel.close()

    def _call(self, method: str, request: bytes) -> bytes:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(method)
        return call(request, timeout=CALL_S)

    def prepare(self, *claims: pb.Claim) -> dict[str, pb.NodePrepareResourceResponse]:
        request = pb.NodePrepareResourcesRequest(claims=claims).SerializeToString()
        response = self._call(PREPARE, request)
        return dict(pb.NodePrepareResourcesResponse.FromString(response).claims)

    def prepared(self, claim: pb.Claim) -> pb.Device:
        """The only device of a claim, which must be prepared without an error."""
        response = self.prepare(claim)[claim.uid]
        assert not response.error, response.error
        (device,) = response.devices
        return device

    def unprepare(self, *claims: pb.Claim) -> dict[str, str]:
        """The error of each claim, "" if it was undone."""
        request = pb.NodeUnprepareResourcesRequest(claims=claims).SerializeToString()
        response = self._call(UNPREPARE, request)
        answer = pb.NodeUnprepareResourcesResponse.FromString(response)
        return {uid: one.error for uid, one in answer.claims.items()}

    @contextmanager
    def health(self) -> Iterator[HealthStream]:
        with Connection(Path(self.endpoint), CALL_S) as connection:
            yield HealthStream(connection)


class HealthStream:
    """The stream of devices' health, as a kubelet follows it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._call = connection.start(HEALTH, b"", streaming=True)

    def next(self) -> dict[str, pb.DeviceHealth]:
        """The devices of the next message, by name."""
        message = self._connection.next_response(self._call)
        assert message is not None
        response = pb.NodeWatchResourcesResponse.FromString(message)
        return {one.device.device_name: one for one in response.devices}
