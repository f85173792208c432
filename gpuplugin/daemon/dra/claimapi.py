"""ResourceClaims at the API server, read in the thread of the kubelet's call.

Imported only where DRA is wanted.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

import httpx2
from lightkube import Client
from lightkube.generic_resource import create_namespaced_resource

from gpuplugin.core.dra.claims import ClaimError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightkube import SingleConfig

    from gpuplugin.core.dra.claims import ClaimRef
    from gpuplugin.core.dra.devices import JsonObject

TIMEOUT_S = 5.0
"""Of one attempt; the keeper makes several within a call."""
READ_RIGHTS = "get on resourceclaims of resource.k8s.io"
STATUS_RIGHTS = (
    "update on resourceclaims/status of resource.k8s.io, and associated-node:update on "
    "resourceclaims/driver"
)
_PASSING = (
    httpx2.codes.TOO_MANY_REQUESTS, httpx2.codes.UNAUTHORIZED, httpx2.codes.CONFLICT,
)  # fmt: skip
_T = TypeVar("_T")

ResourceClaim = create_namespaced_resource(
    "resource.k8s.io", "v1", "ResourceClaim", "resourceclaims"
)


class ClaimGone(ClaimError):
    """The API server has no claim of this name."""


class ClaimApi:
    """One client for all threads; after a failure another one, which reads token and CA anew."""

    def __init__(self, config: SingleConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._client: Client | None = None

    def read(self, ref: ClaimRef) -> JsonObject:
        """The claim of this name; raises `ClaimGone`, or `ClaimError` for any other failure."""
        return self._request(
            f"claim {ref.namespace}/{ref.name} cannot be read",
            READ_RIGHTS,
            lambda client: dict(client.get(ResourceClaim, ref.name, namespace=ref.namespace)),
        )

    def replace_status(self, ref: ClaimRef, claim: JsonObject) -> None:
        """Write the status of a claim that was read; raises as `read`."""
        body = ResourceClaim.Status.from_dict(claim)
        self._request(
            f"the status of claim {ref.namespace}/{ref.name} cannot be written",
            STATUS_RIGHTS,
            lambda client: client.replace(body, ref.name, namespace=ref.namespace),
        )

    def _request(self, problem: str, rights: str, function: Callable[[Client], _T]) -> _T:
        client = self._usable()
        try:
            return function(client)
        except httpx2.HTTPStatusError as error:
            code = error.response.status_code
            if code == httpx2.codes.NOT_FOUND:
                raise ClaimGone(f"{problem}: it does not exist") from error
            self._forget(client)
            text = f"{problem}: {code}: {error}"
            if code == httpx2.codes.FORBIDDEN:
                text += f"; the plugin's service account needs {rights}"
            passes = code >= httpx2.codes.INTERNAL_SERVER_ERROR or code in _PASSING
            raise ClaimError(text, may_pass=passes) from error
        except Exception as error:
            # No connection, an unreadable token, what is no JSON: it may be another server's.
            self._forget(client)
            text = f"{problem}: {self._config.cluster.server}: {str(error) or type(error).__name__}"
            raise ClaimError(text, may_pass=True) from error

    def close(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client = None

    def _usable(self) -> Client:
        with self._lock:
            if self._client is None:
                try:
                    self._client = Client(self._config, timeout=httpx2.Timeout(TIMEOUT_S))
                except Exception as error:
                    text = f"no client for the API server: {error}"
                    raise ClaimError(text, may_pass=True) from error
            return self._client

    def _forget(self, client: Client) -> None:
        """Others may still use it; its connections are closed when they have ended."""
        with self._lock:
            if self._client is client:
                self._client = None
