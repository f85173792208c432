"""Classic registration: one Register call on the kubelet's own socket. When to call is not here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from gpuplugin.kubelet.deviceplugin import API_VERSION, OPTIONS
from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from gpuplugin.kubelet.rpc import grpc_target

if TYPE_CHECKING:
    from pathlib import Path

METHOD = "/v1beta1.Registration/Register"


class RegistrationFailed(Exception):
    """The kubelet did not accept the plugin, or could not be reached."""


def register(kubelet_socket: Path, endpoint: str, resource: str, timeout_s: float) -> None:
    """Tell the kubelet that `endpoint`, a socket name in its folder, serves `resource`. Blocks.

    Raises:
        RegistrationFailed: with the kubelet's words, or why the socket could not be used.
    """
    request = pb.RegisterRequest(
        version=API_VERSION, endpoint=endpoint, resource_name=resource, options=OPTIONS
    )
    with grpc.insecure_channel(grpc_target(kubelet_socket)) as channel:
        call = channel.unary_unary(
            METHOD, pb.RegisterRequest.SerializeToString, pb.Empty.FromString
        )
        try:
            call(request, timeout=timeout_s)
        except grpc.RpcError as error:
            reason = _reason(error)
            text = f"Register of {resource} on {kubelet_socket} failed: {reason}"
            raise RegistrationFailed(text) from error


def _reason(error: Exception) -> str:
    """The status of a call: grpcio raises errors that are calls at the same time."""
    if isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"
    return str(error)
