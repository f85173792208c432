"""The services of a DRA driver, as bytes -> bytes handlers: DRAPlugin v1 and v1beta1, and health.

The kubelet calls for different pods at the same time and waits up to 45 s; a claim that fails is
tried again only a minute later.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

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
WAIT_S = 40.0
"""How long a call may take; the kubelet waits for 45 s."""
HEALTH_VERSIONS = ("v1.DRAResourceHealth", "v1alpha1.DRAResourceHealth")
"""Of Kubernetes 1.37, and of 1.34 to 1.36; their messages are the same."""
RECENT_CLAIMS = 20
HEALTH_TIMEOUT_S = 30
"""A device of which nothing was heard for so long is Unknown to the kubelet."""

_PACKAGE = "k8s.io.kubelet.pkg.apis.dra"
_MAX_MESSAGE = 1024
_M = TypeVar("_M", bound=Message)
_R = TypeVar("_R")
Operation: TypeAlias = Literal["prepare", "unprepare"]
Outcome: TypeAlias = Literal["ok", "failed"]

log = logging.getLogger(__name__)


class RecentClaim(NamedTuple):
    """What was done for a claim: when (seconds since the epoch), and "" or the error."""

    at_s: float
    operation: Operation
    ref: ClaimRef
    error: str


class ClaimWork(Protocol):
    """What is done for a claim; called in any thread, several at a time."""

    def prepare(self, ref: ClaimRef, deadline_s: float) -> Sequence[HeldDevice]:
        """The devices of a claim, ready for containers; raises `ClaimError`.

        What will pass may be waited for until the deadline (monotonic).
        """

    def unprepare(self, ref: ClaimRef) -> None:
        """Undo it; nothing for a claim that is not known. Raises `ClaimError`."""


class DraPlugin:
    """Handlers of one driver; `health` is what the health stream sends.

    `done` is called in any thread with the operation and its result, for each claim.
    """

    def __init__(
        self, work: ClaimWork, done: Callable[[Operation, Outcome], None] = lambda _what, _how: None
    ) -> None:
        self._work = work
        self._done = done
        self._recent: deque[RecentClaim] = deque(maxlen=RECENT_CLAIMS)
        self.health = Publication()

    @property
    def recent(self) -> list[RecentClaim]:
        """The last claims that were prepared, or could not be prepared or undone."""
        return list(self._recent)

    def services(self) -> list[Service]:
        calls = {"NodePrepareResources": self.prepare, "NodeUnprepareResources": self.unprepare}
        return [
            *(
                Service(f"{_PACKAGE}.{version}", calls, {}, frozenset(calls))
                for version in VERSIONS
            ),
            *(Service(one, {}, {"NodeWatchResources": self.watch}) for one in HEALTH_VERSIONS),
        ]

    def prepare(self, request: bytes) -> bytes:
        """Every claim has an entry in the response, with its devices or its error."""
        response = pb.NodePrepareResourcesResponse()
        deadline_s = time.monotonic() + WAIT_S
        for claim in _parsed(pb.NodePrepareResourcesRequest, request).claims:
            result = response.claims[claim.uid]
            work = partial(self._work.prepare, deadline_s=deadline_s)
            held, result.error = self._attempt("prepare", work, claim)
            result.devices.extend(map(_device, held or ()))
        return response.SerializeToString()

    def unprepare(self, request: bytes) -> bytes:
        """As `prepare`; an entry without an error says that nothing is left of the claim."""
        response = pb.NodeUnprepareResourcesResponse()
        for claim in _parsed(pb.NodeUnprepareResourcesRequest, request).claims:
            _, response.claims[claim.uid].error = self._attempt(
                "unprepare", self._work.unprepare, claim
            )
        return response.SerializeToString()

    def _attempt(
        self, operation: Operation, work: Callable[[ClaimRef], _R], claim: pb.Claim
    ) -> tuple[_R | None, str]:
        """What comes of the work for a claim, and its error; others of the call go on."""
        ref = ClaimRef(claim.namespace, claim.name, claim.uid)
        try:
            result, error = work(ref), ""
        except ClaimError as failure:
            result, error = None, str(failure)
            log.warning(
                "cannot %s claim %s/%s: %s",
                operation,
                ref.namespace,
                ref.name,
                error,
                extra={"event": f"claim-{operation}-failed", "uid": ref.uid},
            )
        except Exception as failure:
            log.exception("cannot %s claim %s/%s", operation, ref.namespace, ref.name)
            result, error = None, f"{type(failure).__name__}: {failure}"
        self._done(operation, "failed" if error else "ok")
        if error or operation == "prepare":
            self._recent.append(RecentClaim(time.time(), operation, ref, error))
        return result, error

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
            message=offer.trouble[:_MAX_MESSAGE],
        )
        one.device.pool_name, one.device.device_name = pool, offer.name
    return message.SerializeToString()


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
