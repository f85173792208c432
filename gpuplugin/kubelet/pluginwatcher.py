"""The plugin watcher's registration service (pluginregistration.v1), as bytes -> bytes handlers.

The kubelet finds the socket in `plugins_registry`, asks GetInfo, and says what came of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuplugin.kubelet.deviceplugin import API_VERSION
from gpuplugin.kubelet.protowire import message, number, text
from gpuplugin.rpc.services import Service

if TYPE_CHECKING:
    from collections.abc import Callable

SERVICE_NAME = "pluginregistration.Registration"
PLUGIN_TYPE = "DevicePlugin"

_REGISTERED = number(1, 1)
"""What a kubelet says of a plugin that it likes."""


def registration_service(
    resource: str, on_asked: Callable[[], None], on_status: Callable[[bool, str], None]
) -> Service:
    """The service for one resource; both callables are called in any thread.

    `on_asked` is told of each GetInfo: one that is answered too late for the kubelet is all that
    there is to see of it. `on_status` gets (registered, error text). Registered is no proof of a
    working list: the kubelet says so even when ListAndWatch breaks right after.
    """
    # An empty endpoint means "this socket": in a container the path differs from the host's.
    info = text(1, PLUGIN_TYPE) + text(2, resource) + message(4, API_VERSION.encode())

    def get_info(_request: bytes) -> bytes:
        on_asked()
        return info

    def notify(request: bytes) -> bytes:
        if request == _REGISTERED:
            on_status(True, "")
            return b""
        from gpuplugin.kubelet.requests import registration_status

        on_status(*registration_status(request))
        return b""

    return Service(
        name=SERVICE_NAME,
        unary={"GetInfo": get_info, "NotifyRegistrationStatus": notify},
        streams={},
    )
