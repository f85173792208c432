"""Classic registration: one Register call on the kubelet's own socket. When to call is not here."""

from __future__ import annotations

import asyncio
from contextlib import suppress
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


async def register(kubelet_socket: Path, endpoint: str, resource: str, timeout_s: float) -> None:
    """Tell the kubelet that `endpoint`, a socket name in its folder, serves `resource`.

    The kubelet answers only after it has called the endpoint. A cancellation ends the call at once.

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
        answer = call.future(request, timeout=timeout_s)
        await _done(answer)
        if (error := answer.exception()) is not None:
            text = f"Register of {resource} on {kubelet_socket} failed: {call_reason(error)}"
            raise RegistrationFailed(text) from error


async def _done(answer: grpc.Future[pb.Empty]) -> None:
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def tell(_answer: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(done.set)

    answer.add_done_callback(tell)
    await done.wait()


def call_reason(error: BaseException) -> str:
    """The status of a failed call: grpcio raises errors that are calls at the same time."""
    if isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"
    return str(error)
