"""Requests to the Kubernetes API server, with lightkube. Imported only where they are wanted."""

from __future__ import annotations

import logging
import ssl
from datetime import UTC, datetime
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2
from lightkube import ApiError, AsyncClient, Client, KubeConfig
from lightkube.config.client_adapter import verify_cluster
from lightkube.models.core_v1 import EventSource, ObjectReference
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Event, Node, NodeStatus

from gpuplugin.core.nodechoice import LABEL, LabelUnreadable
from gpuplugin.daemon.cluster.eventqueue import NodeCondition, ReportFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lightkube import SingleConfig

    from gpuplugin.daemon.cluster.eventqueue import NodeEvent

COMPONENT = "gpuplugin"
CONDITION = "GPUHealthy"
NAMESPACE = "default"
"""Events on what has no namespace stand here."""
TIMEOUT_S = 5.0

_EVENT_RIGHTS = f"create and patch on events in the namespace {NAMESPACE} (docs/operations.md)"
_NODE_RIGHTS = "patch on nodes/status (docs/operations.md)"
_LONGEST_WAIT_S = 300.0

_T = TypeVar("_T")

for _name in ("httpcore2._backends.sync", "encodings.idna"):
    import_module(_name)  # the client would, in the thread that asks first


class NoCluster(Exception):
    """The API server or the plugin's user is not known; the text names the remedy."""


class KubeApi:
    """The requests for one node, with a client of its own each.

    Reports are rare: a connection kept open would be of no use, and a new client reads the token
    and the CA's certificate again, which change while the plugin runs.
    """

    def __init__(self, node: str, timeout_s: float = TIMEOUT_S) -> None:
        self._node = node
        self._timeout_s = timeout_s
        self._config = cluster()

    def post_event(self, event: NodeEvent) -> None:
        """Create or count up an Event on the node; raises `ReportFailed` if it is not accepted."""
        self._request(_EVENT_RIGHTS, lambda client: self._post_event(client, event))

    def patch_condition(self, condition: NodeCondition | None) -> NodeCondition | None:
        """Set the node's condition unless None, return the stored one; raises `ReportFailed`."""
        # The response to an empty patch is the node: no right to read nodes is needed.
        body = {} if condition is None else {"status": {"conditions": [_condition_body(condition)]}}
        node = self._request(
            _NODE_RIGHTS, lambda client: client.patch(NodeStatus, self._node, body)
        )
        return _condition_of(node)

    def _post_event(self, client: Client, event: NodeEvent) -> None:
        if event.known:
            counted = {"count": event.count, "lastTimestamp": _seconds(event.last)}
            try:
                client.patch(Event, event.name, counted, namespace=NAMESPACE)
            except ApiError as error:
                if error.response.status_code != httpx2.codes.NOT_FOUND:
                    raise
            else:
                return
        try:
            client.create(_event_body(event, self._node))
        except ApiError as error:
            # An earlier attempt succeeded, though its response was lost.
            if error.response.status_code != httpx2.codes.CONFLICT:
                raise

    def _request(self, rights: str, function: Callable[[Client], _T]) -> _T:
        return requested(self._config, self._timeout_s, rights, function)


def requested(
    config: SingleConfig, timeout_s: float, rights: str, function: Callable[[Client], _T]
) -> _T:
    """What the function does with a new client; raises `ReportFailed`, and nothing else.

    `rights` are what it needs, for whom it is forbidden.
    """
    timeout = httpx2.Timeout(timeout_s)
    try:
        with client_of(config, timeout, field_manager=COMPONENT) as client:
            return function(client)
    except httpx2.HTTPStatusError as error:
        raise _refusal(error, rights) from error
    except httpx2.HTTPError as error:
        server = config.cluster.server
        text = f"the API server at {server} cannot be reached: {described(error)}"
        raise ReportFailed(text, retryable=True) from error
    except Exception as error:
        # Responses of other servers, unreadable tokens: nothing may stop who asks.
        text = f"a request to the API server failed: {described(error)}"
        raise ReportFailed(text, retryable=True) from error


def cluster() -> SingleConfig:
    """The cluster of this pod, else of KUBECONFIG or ~/.kube/config; or raises `NoCluster`."""
    try:
        config = KubeConfig.from_env().get()
    except Exception as error:
        raise NoCluster(
            f"no cluster is configured ({described(error)}): in a pod, mount the service "
            "account's token (automountServiceAccountToken: true); elsewhere, set KUBECONFIG"
        ) from error
    if config is None or config.user is None:
        raise NoCluster("the current context of the kubeconfig names no user")
    for name in ("httpx2", "httpcore2"):
        # They log each request; who makes them logs the results.
        logging.getLogger(name).setLevel(logging.WARNING)
    return config


def client_of(
    config: SingleConfig,
    timeout: httpx2.Timeout,
    *,
    field_manager: str | None = None,
    dry_run: bool = False,
) -> Client:
    """A client that connects when it is asked first; its timeout is one of watches, too."""
    transport = _Transport(config, timeout.read)
    return Client(
        config, timeout=timeout, transport=transport, field_manager=field_manager, dry_run=dry_run
    )


class _Transport(httpx2.HTTPTransport):
    """Gives watches a timeout: lightkube has none for them.

    A connection that a proxy or a firewall has forgotten says nothing for ever.
    """

    def __init__(self, config: SingleConfig, read_s: float | None) -> None:
        server, context = config.cluster.server, tls_context(config)
        super().__init__(verify=context, proxy=proxy_of(server))
        self._read_s = read_s

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        request.extensions["timeout"]["read"] = self._read_s
        return super().handle_request(request)


def async_client_of(
    config: SingleConfig,
    timeout: httpx2.Timeout,
    *,
    field_manager: str | None = None,
    dry_run: bool = False,
) -> AsyncClient:
    """As `client_of`."""
    return AsyncClient(
        config,
        timeout=timeout,
        transport=async_transport(config),
        field_manager=field_manager,
        dry_run=dry_run,
    )


def async_transport(config: SingleConfig) -> httpx2.AsyncHTTPTransport:
    server, context = config.cluster.server, tls_context(config)
    return httpx2.AsyncHTTPTransport(verify=context, proxy=proxy_of(server))


def tls_context(config: SingleConfig) -> ssl.SSLContext:
    """Checks certificates as clients in Go do.

    Python 3.13 and later refuse authorities without the extensions that RFC 5280 wants, which
    those of EKS, GKE and MicroK8s were made without.
    """
    assert config.user is not None  # noqa: S101 - `cluster` has seen to it
    context = verify_cluster(config.cluster, config.user, config.abs_file)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def proxy_of(server: str) -> str | None:
    """The proxy of the environment for it: a client with a transport of its own asks for none."""
    address, proxies = urlsplit(server), getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(address.netloc):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _refusal(error: httpx2.HTTPStatusError, rights: str) -> ReportFailed:
    code = error.response.status_code
    text = f"{code} from the API server: {described(error)}"
    if code == httpx2.codes.FORBIDDEN:
        text = f"{text}; the plugin's service account needs {rights}"
    # A server that has just started forbids everything for a moment; and rights may be granted.
    retryable = code in (httpx2.codes.FORBIDDEN, httpx2.codes.TOO_MANY_REQUESTS)
    retryable = retryable or code >= httpx2.codes.INTERNAL_SERVER_ERROR
    # In seconds: the API server uses no other form.
    after = error.response.headers.get("Retry-After", "")
    wait_s = float(after) if after.isascii() and after.isdecimal() else 0.0
    return ReportFailed(text, retryable=retryable, wait_s=min(wait_s, _LONGEST_WAIT_S))


def described(error: Exception) -> str:
    """In one line: the client adds where statuses of HTTP are explained."""
    return str(error).partition("\n")[0] or type(error).__name__


def _event_body(event: NodeEvent, node: str) -> Event:
    return Event(
        metadata=ObjectMeta(name=event.name, namespace=NAMESPACE),
        # kubelet's convention, by which kubectl describe node finds it: the name for a UID.
        involvedObject=ObjectReference(kind="Node", name=node, uid=node),
        reason=event.reason,
        message=event.message,
        type=event.type,
        count=event.count,
        firstTimestamp=_seconds(event.first),
        lastTimestamp=_seconds(event.last),
        source=EventSource(component=COMPONENT, host=node),
        reportingComponent=COMPONENT,
        reportingInstance=node,
    )


def _condition_body(condition: NodeCondition) -> dict[str, object]:
    return {
        "type": CONDITION,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message,
        "lastTransitionTime": _seconds(condition.since),
        "lastHeartbeatTime": _seconds(condition.seen),
    }


def _condition_of(node: NodeStatus) -> NodeCondition | None:
    conditions = (node.status and node.status.conditions) or []
    for one in conditions:
        if one.type == CONDITION and one.lastTransitionTime and one.lastHeartbeatTime:
            since, seen = one.lastTransitionTime, one.lastHeartbeatTime
            return NodeCondition(one.status, one.reason or "", one.message or "", since, seen)
    return None


def _seconds(when: datetime) -> datetime:
    """The API's times are whole seconds of UTC."""
    return when.astimezone(UTC).replace(microsecond=0)


_TIMEOUT_S = 10.0
WATCH_S = 300
"""After this the server ends a watch; the client goes on with another one."""


def watch_broke(error: Exception) -> bool:
    """True for the end of a watch that is nothing to tell: who looks again finds out why."""
    if isinstance(error, ApiError):
        return error.status.code == httpx2.codes.GONE
    return isinstance(error, httpx2.TransportError)


class NodeLabel:
    def __init__(self, node: str, label: str = LABEL) -> None:
        self._node = node
        self._name = label
        self._config = cluster()

    def read(self) -> str | None:
        try:
            with client_of(self._config, httpx2.Timeout(_TIMEOUT_S)) as client:
                return self._label(client.get(Node, self._node))
        except Exception as error:
            raise self._unreadable(error) from error

    def follow(self) -> Iterator[str | None]:
        timeout = httpx2.Timeout(_TIMEOUT_S, read=WATCH_S + _TIMEOUT_S)
        begun = False
        try:
            with client_of(self._config, timeout) as client:
                for _operation, node in client.watch(
                    Node, fields={"metadata.name": self._node}, server_timeout=WATCH_S
                ):
                    begun = True
                    yield self._label(node)
        except Exception as error:
            if not (begun and watch_broke(error)):
                raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> LabelUnreadable:
        text = f"the label {self._name} of node {self._node} cannot be read: {described(error)}"
        # An error that a watch reports has come without a response of its own.
        response = error.response if isinstance(error, httpx2.HTTPStatusError) else None
        if response is not None and response.status_code == httpx2.codes.FORBIDDEN:
            text += "; the plugin's service account needs get, list and watch on nodes"
        return LabelUnreadable(text)

    def _label(self, node: Node) -> str | None:
        labels = (node.metadata.labels if node.metadata else None) or {}
        return labels.get(self._name) or None
