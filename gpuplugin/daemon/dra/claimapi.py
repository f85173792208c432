"""ResourceClaims at the API server, read in the thread of the kubelet's call.

Imported only where DRA is wanted.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import httpx2
from lightkube import ApiError
from lightkube.generic_resource import create_namespaced_resource

from gpuplugin.core.dra.claims import ClaimError
from gpuplugin.daemon.cluster.kubeapi import client_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightkube import Client, SingleConfig

    from gpuplugin.core.dra.claims import ClaimRef
    from gpuplugin.core.jsonobject import JsonObject

FIELD_MANAGER = "gpuplugin"
TIMEOUT_S = 5.0
"""Of one attempt; the keeper makes several within a call."""
READ_RIGHTS = "get on resourceclaims of resource.k8s.io"
STATUS_RIGHTS = (
    "update on resourceclaims/status of resource.k8s.io, and associated-node:update on "
    "resourceclaims/driver"
)
_PASSING = (
    httpx2.codes.TOO_MANY_REQUESTS, httpx2.codes.UNAUTHORIZED, httpx2.codes.CONFLICT,
    httpx2.codes.NOT_FOUND,
)  # fmt: skip
_T = TypeVar("_T")

ResourceClaim = create_namespaced_resource(
    "resource.k8s.io", "v1", "ResourceClaim", "resourceclaims"
)


class ClaimGone(ClaimError):
    """The API server has no claim of this name."""


@dataclass(slots=True)
class _Shared:
    """A client, closed by the last of its users once it is retired."""

    client: Client
    users: int = 0
    retired: bool = False

    def close_if_done(self) -> None:
        if self.retired and not self.users:
            self.client.close()


class ClaimApi:
    """One client for all threads; after a failure another one, which reads token and CA anew."""

    def __init__(self, config: SingleConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._shared: _Shared | None = None
        self._closed = False

    def open(self) -> None:
        with self._lock:
            self._closed = False

    def close(self) -> None:
        """No more requests; those that run end by themselves."""
        with self._lock:
            self._closed = True
            self._retire(self._shared)

    def read(self, ref: ClaimRef) -> JsonObject:
        """The claim of this name; raises `ClaimGone`, or `ClaimError` for any other failure."""
        problem = f"claim {ref.namespace}/{ref.name} cannot be read"
        claim: JsonObject = self._request(
            ref,
            problem,
            READ_RIGHTS,
            lambda client: dict(client.get(ResourceClaim, ref.name, namespace=ref.namespace)),
        )
        metadata = claim.get("metadata")
        if not isinstance(metadata, dict) or metadata.get("name") != ref.name:
            text = f"{problem}: the response is another object's, perhaps of another server"
            raise ClaimError(text, may_pass=True)
        return claim

    def replace_status(self, ref: ClaimRef, claim: JsonObject) -> None:
        """Write the status of a claim that was read; raises as `read`."""
        body = ResourceClaim.Status.from_dict(claim)
        self._request(
            ref,
            f"the status of claim {ref.namespace}/{ref.name} cannot be written",
            STATUS_RIGHTS,
            lambda client: client.replace(body, ref.name, namespace=ref.namespace),
        )

    def _request(
        self, ref: ClaimRef, problem: str, rights: str, function: Callable[[Client], _T]
    ) -> _T:
        shared = self._taken()
        try:
            return function(shared.client)
        except httpx2.HTTPStatusError as error:
            code = error.response.status_code
            if code == httpx2.codes.NOT_FOUND and _is_about(error, ref):
                raise ClaimGone(f"{problem}: it does not exist") from error
            text = f"{problem}: {code}: {error}"
            if code == httpx2.codes.FORBIDDEN:
                text += f"; the plugin's service account needs {rights}"
            passes = code >= httpx2.codes.INTERNAL_SERVER_ERROR or code in _PASSING
            raise ClaimError(text, may_pass=passes) from error
        except Exception as error:
            # No connection, an unreadable token, what is no JSON: it may be another server's.
            with self._lock:
                self._retire(shared)
            reason = str(error) or type(error).__name__
            text = f"{problem}: {self._config.cluster.server}: {reason}"
            raise ClaimError(text, may_pass=True) from error
        finally:
            with self._lock:
                shared.users -= 1
                shared.close_if_done()

    def _taken(self) -> _Shared:
        with self._lock:
            if self._closed:
                raise ClaimError("the plugin stops")
            if self._shared is None:
                try:
                    timeout = httpx2.Timeout(TIMEOUT_S)
                    client = client_of(self._config, timeout, field_manager=FIELD_MANAGER)
                except Exception as error:
                    text = f"no client for the API server: {error}"
                    raise ClaimError(text, may_pass=True) from error
                self._shared = _Shared(client)
            self._shared.users += 1
            return self._shared

    def _retire(self, shared: _Shared | None) -> None:
        if shared is not None:
            shared.retired = True
            shared.close_if_done()
        if self._shared is shared:
            self._shared = None


def _is_about(error: httpx2.HTTPStatusError, ref: ClaimRef) -> bool:
    """Whether a 404 says that this claim is not there.

    A proxy without a server behind it and a server that does not have resource.k8s.io respond with
    404, too, and name no object.
    """
    details = error.status.details if isinstance(error, ApiError) else None
    return details is not None and details.name == ref.name
