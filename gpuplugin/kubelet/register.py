"""Classic registration: one Register call on the kubelet's own socket. When to call is not here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuplugin.kubelet.deviceplugin import API_VERSION, OPTIONS
from gpuplugin.kubelet.protowire import message, text
from gpuplugin.rpc.client import CallFailed, unary_call_async

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
    request = b"".join(
        (text(1, API_VERSION), text(2, endpoint), text(3, resource), message(4, OPTIONS))
    )
    try:
        await unary_call_async(kubelet_socket, METHOD, request, timeout_s)
    except CallFailed as error:
        raise RegistrationFailed(
            f"Register of {resource} on {kubelet_socket} failed: {error}"
        ) from error
