"""The label of a Node by lightkube. Imported only if the configuration is chosen by node.

Needs get, list and watch on nodes (deploy/kustomize/overlays/per-node-config).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2
from lightkube import Client
from lightkube.resources.core_v1 import Node

from gpuplugin.core.nodechoice import LABEL
from gpuplugin.daemon.cluster.kubeapi import cluster
from gpuplugin.daemon.cluster.nodelabel import LabelUnreadable

if TYPE_CHECKING:
    from collections.abc import Iterator

_TIMEOUT_S = 10.0
WATCH_S = 300
"""After this the server ends a watch; tokens and certificates are read anew for the next."""


class NodeLabel:
    """Reads and follows the label of one node."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._config = cluster()

    def read(self) -> str | None:
        """The label now."""
        try:
            with Client(self._config, timeout=httpx2.Timeout(_TIMEOUT_S)) as client:
                return _label(client.get(Node, self._node))
        except Exception as error:
            raise self._unreadable(error) from error

    def follow(self) -> Iterator[str | None]:
        """The label now and at each change."""
        timeout = httpx2.Timeout(_TIMEOUT_S, read=WATCH_S + _TIMEOUT_S)
        try:
            with Client(self._config, timeout=timeout) as client:
                for _operation, node in client.watch(
                    Node, fields={"metadata.name": self._node}, server_timeout=WATCH_S
                ):
                    yield _label(node)
        except Exception as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> LabelUnreadable:
        text = f"the label {LABEL} of node {self._node} cannot be read: {error}"
        if isinstance(error, httpx2.HTTPStatusError) and error.response.status_code == 403:
            text += "; the plugin's service account needs get, list and watch on nodes"
        return LabelUnreadable(text)


def _label(node: Node) -> str | None:
    labels = (node.metadata.labels if node.metadata else None) or {}
    return labels.get(LABEL) or None
