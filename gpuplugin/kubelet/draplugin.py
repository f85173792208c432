"""The services of a DRA driver, as bytes -> bytes handlers: DRAPlugin v1 and v1beta1, and health.

The kubelet calls for different pods at the same time and waits up to 45 s; a claim that fails is
tried again only a minute later.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message

from gpuplugin.core.dra.claims import ClaimError, ClaimRef
from gpuplugin.kubelet.proto import dra_pb2 as pb
from gpuplugin.rpc import RpcCode, RpcError, Service
from gpuplugin.rpc.publication import Publication

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gpuplugin.core.dra.claims import HeldDevice
    from gpuplugin.core.dra.devices import Offer
    from gpuplugin.rpc import Subscription

PLUGIN_TYPE = "DRAPlugin"
VERSIONS = ("v1.DRAPlugin", "v1beta1.DRAPlugin")
"""As a plugin names them when it registers: the kubelet takes the first that it knows."""
HEALTH_VERSION = "v1alpha1.DRAResourceHealth"
HEALTH_TIMEOUT_S = 30
"""A device of which nothing was heard for so long is Unknown to the kubelet."""

_PACKAGE = "k8s.io.kubelet.pkg.apis.dra"
_MAX_MESSAGE = 1024
_M = TypeVar("_M", bound=Message)

log = logging.getLogger(__name__)


class ClaimWork(Protocol):
    """What is done for a claim; called in any thread, several at a time."""

    def prepare(self, ref: ClaimRef) -> Sequence[HeldDevice]:
        """The devices of a claim, ready for containers; raises `ClaimError`."""

    def unprepare(self, ref: ClaimRef) -> None:
        """Undo it; nothing for a claim that is not known. Raises `ClaimError`."""


class DraPlugin:
    """Handlers of one driver; `health` is what the health stream sends."""

    def __init__(self, work: ClaimWork) -> None:
        self._work = work
        self.health = Publication()

    def services(self) -> list[Service]:
        calls = {"NodePrepareResources": self.prepare, "NodeUnprepareResources": self.unprepare}
        return [
            *(Service(f"{_PACKAGE}.{version}", calls, {}) for version in VERSIONS),
            Service(HEALTH_VERSION, {}, {"NodeWatchResources": self.watch}),
        ]

    def prepare(self, request: bytes) -> bytes:
        """Every claim has an entry in the response, with its devices or its error."""
        response = pb.NodePrepareResourcesResponse()
        for claim in _parsed(pb.NodePrepareResourcesRequest, request).claims:
            result = response.claims[claim.uid]
            try:
                result.devices.extend(map(_device, self._work.prepare(_ref(claim))))
            except ClaimError as error:
                result.error = str(error)
            except Exception as error:
                # The other claims of the call are still to be answered.
                log.exception("claim %s/%s cannot be prepared", claim.namespace, claim.name)
                result.error = f"{type(error).__name__}: {error}"
        return response.SerializeToString()

    def unprepare(self, request: bytes) -> bytes:
        """As `prepare`; an entry without an error says that nothing is left of the claim."""
        response = pb.NodeUnprepareResourcesResponse()
        for claim in _parsed(pb.NodeUnprepareResourcesRequest, request).claims:
            result = response.claims[claim.uid]
            try:
                self._work.unprepare(_ref(claim))
            except ClaimError as error:
                result.error = str(error)
            except Exception as error:
                log.exception("claim %s/%s cannot be unprepared", claim.namespace, claim.name)
                result.error = f"{type(error).__name__}: {error}"
        return response.SerializeToString()

    def watch(self, wake: Callable[[], None]) -> Subscription:
        return self.health.subscribe(wake)


def health_message(offers: Iterable[Offer], pool: str, now_s: int) -> bytes:
    """The health of all devices; `now_s` is in seconds since the epoch.

    It has to be sent again well before `HEALTH_TIMEOUT_S`.
    """
    message = pb.NodeWatchResourcesResponse()
    for offer in offers:
        one = message.devices.add(
            health=pb.UNHEALTHY if offer.taints else pb.HEALTHY,
            last_updated_time=now_s,
            health_check_timeout_seconds=HEALTH_TIMEOUT_S,
            message=", ".join(_told(taint.key, taint.value) for taint in offer.taints)[
                :_MAX_MESSAGE
            ],
        )
        one.device.pool_name, one.device.device_name = pool, offer.name
    return message.SerializeToString()


def _told(key: str, value: str) -> str:
    what = key.rpartition("/")[2]
    return what if value == "true" else f"{what} {value}"


def _ref(claim: pb.Claim) -> ClaimRef:
    return ClaimRef(claim.namespace, claim.name, claim.uid)


def _device(held: HeldDevice) -> pb.Device:
    result = held.result
    device = pb.Device(
        request_names=[result.base_request],
        pool_name=result.pool,
        device_name=result.device,
        cdi_device_ids=held.cdi_ids,
    )
    if result.share_id:
        device.share_id = result.share_id
    return device


def _parsed(kind: type[_M], data: bytes) -> _M:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        text = f"not a {kind.DESCRIPTOR.name}: {error}"
        raise RpcError(RpcCode.INVALID_ARGUMENT, text) from error
