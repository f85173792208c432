"""Both ways of registration: Register on the kubelet's socket, or the plugin watcher's service.

Classic: the plugin calls Register on `kubelet.sock`. Watcher (pluginregistration.v1): the kubelet
finds the plugin's socket in `plugins_registry`, calls GetInfo, and reports the outcome. When to
register is decided in the daemon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuplugin.kubelet.deviceplugin import API_VERSION, OPTIONS
from gpuplugin.kubelet.protowire import message, number, text
from gpuplugin.kubelet.requests import registration_status
from gpuplugin.rpc import Service
from gpuplugin.rpc.client import CallFailed, unary_call_async

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

REGISTER = "/v1beta1.Registration/Register"
WATCHER_SERVICE = "pluginregistration.Registration"
PLUGIN_TYPE = "DevicePlugin"

_REGISTERED = number(1, 1)


class RegistrationFailed(Exception):
    """The kubelet did not accept the plugin, or could not be reached."""


async def register(kubelet_socket: Path, endpoint: str, resource: str, timeout_s: float) -> None:
    """Register `endpoint`, a socket in the kubelet's folder, for `resource`.

    The kubelet responds once it has called the endpoint. A cancellation ends the call at once.
    Raises RegistrationFailed with the kubelet's error, or why the socket could not be used.
    """
    request = b"".join(
        (text(1, API_VERSION), text(2, endpoint), text(3, resource), message(4, OPTIONS))
    )
    try:
        await unary_call_async(kubelet_socket, REGISTER, request, timeout_s)
    except CallFailed as error:
        raise RegistrationFailed(
            f"Register of {resource} on {kubelet_socket} failed: {error}"
        ) from error


def registration_service(
    resource: str, on_get_info: Callable[[], None], on_status: Callable[[bool, str], None]
) -> Service:
    """The service for one resource; both callables are called in any thread.

    `on_get_info` is called at each GetInfo, the only sign of a kubelet that got the response too
    late. `on_status` gets (registered, error text). Registered is no proof of a
    working list: the kubelet reports it even when ListAndWatch breaks right after.
    """
    # An empty endpoint means "this socket": in a container the path differs from the host's.
    info = plugin_info(PLUGIN_TYPE, resource, "", (API_VERSION,))
    return watched_service(info, on_get_info, on_status)


def plugin_info(kind: str, name: str, endpoint: str, versions: Iterable[str]) -> bytes:
    """A PluginInfo: what the kubelet's watcher learns of a plugin behind a socket."""
    return b"".join(
        (
            text(1, kind),
            text(2, name),
            text(3, endpoint),
            *(message(4, version.encode()) for version in versions),
        )
    )


def watched_service(
    info: bytes, on_get_info: Callable[[], None], on_status: Callable[[bool, str], None]
) -> Service:
    """The service that the kubelet's watcher calls at a socket, whatever kind of plugin it is."""

    def get_info(_request: bytes) -> bytes:
        on_get_info()
        return info

    def notify(request: bytes) -> bytes:
        if request == _REGISTERED:
            on_status(True, "")
            return b""
        on_status(*registration_status(request))
        return b""

    return Service(
        name=WATCHER_SERVICE,
        unary={"GetInfo": get_info, "NotifyRegistrationStatus": notify},
        streams={},
    )
