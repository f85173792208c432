"""The pods of a node at the API server, and what they declare."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightkube.resources.core_v1 import Pod

LOAD: Final = "gpuplugin.dev/load"
"""An annotation or a label of a pod; the annotation counts if there are both."""
_TIMEOUT_S: Final = 10.0
_FORBIDDEN: Final = 403
_CLIENT: Final = (
    *("httpx2", "lightkube", "lightkube.resources.core_v1", "gpuplugin.daemon.cluster.kubeapi"),
    # What the client would load when it connects first.
    *("httpcore2._backends.sync", "encodings.idna"),
)


@dataclass(frozen=True, slots=True)
class ClusterPod:
    """A pod as the API server has it; `load` is None where it declares none."""

    namespace: str
    name: str
    uid: str
    phase: str
    load: str | None

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


class PodsUnreadable(Exception):
    """The API server does not list the node's pods; the text says why and what to do."""


class PodList(Protocol):
    """Where the node's pods come from; calls block."""

    def follow(self) -> Iterator[tuple[ClusterPod, bool]]:
        """Each pod now and at each change, and whether it is still there, until the watch ends.

        Raises:
            PodsUnreadable: with the reason.
        """


class NodePods:
    """The pods of a node of the cluster.

    Its client is loaded here, if it is installed: `follow` runs in a thread of a process that
    serves, where nothing is imported first.
    """

    def __init__(self, node: str) -> None:
        self._node = node
        self._missing = ""
        try:
            for name in _CLIENT:
                import_module(name)
        except ImportError as error:
            self._missing = f"{error}: pip install 'gpuplugin[kubernetes]'"

    def follow(self) -> Iterator[tuple[ClusterPod, bool]]:
        if not self._node:
            raise PodsUnreadable("the node's name is not known: set NODE_NAME or --node-name")
        if self._missing:
            raise PodsUnreadable(self._missing)
        import httpx2
        from lightkube.resources.core_v1 import Pod

        from gpuplugin.daemon.cluster.kubeapi import (
            WATCH_S,
            NoCluster,
            client_of,
            cluster,
            described,
        )

        timeout = httpx2.Timeout(_TIMEOUT_S, read=WATCH_S + _TIMEOUT_S)
        try:
            with client_of(cluster(), timeout) as client:
                for operation, pod in client.watch(
                    Pod, namespace="*", fields={"spec.nodeName": self._node}, server_timeout=WATCH_S
                ):
                    yield _pod(pod), operation != "DELETED"
        except NoCluster as error:
            raise PodsUnreadable(str(error)) from error
        except Exception as error:  # whatever a server or a token does, pods are idle then
            text = f"the pods of node {self._node} cannot be listed: {described(error)}"
            response = error.response if isinstance(error, httpx2.HTTPStatusError) else None
            if response is not None and response.status_code == _FORBIDDEN:
                text += "; the plugin's service account needs list and watch on pods"
            raise PodsUnreadable(text) from error


def _pod(pod: Pod) -> ClusterPod:
    metadata, status = pod.metadata, pod.status
    if metadata is None:
        return ClusterPod("", "", "", "", None)
    sources = (metadata.annotations, metadata.labels)
    return ClusterPod(
        metadata.namespace or "",
        metadata.name or "",
        metadata.uid or "",
        (status.phase if status else None) or "",
        next((load for one in sources if one and (load := one.get(LOAD, "").strip())), None),
    )
