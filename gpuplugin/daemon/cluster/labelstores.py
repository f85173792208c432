"""Where the node's labels are kept in Kubernetes. Imported only where that is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2
from lightkube import ApiError
from lightkube.generic_resource import GenericNamespacedResource, create_namespaced_resource
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Node
from lightkube.types import PatchType

from gpuplugin.core.gpulabels import differences, is_own
from gpuplugin.daemon.cluster.kubeapi import TIMEOUT_S, cluster, requested

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightkube import Client

_PAGE = "docs/node-labels.md"
_NODE_RIGHTS = f"patch on nodes ({_PAGE})"
NODE_OF_FEATURES = "nfd.node.kubernetes.io/node-name"
"""By this label NFD knows whose features they are."""

NodeFeature = create_namespaced_resource(
    "nfd.k8s-sigs.io", "v1alpha1", "NodeFeature", "nodefeatures"
)


class NodeStore:
    """The labels of the Node itself; those of others stay."""

    def __init__(self, node: str, timeout_s: float = TIMEOUT_S) -> None:
        """Raises `NoCluster`."""
        self._node = node
        self._timeout_s = timeout_s
        self._config = cluster()

    def sync(self, labels: Mapping[str, str]) -> int:
        """See `gpulabels.LabelStore`."""
        return requested(
            self._config, self._timeout_s, _NODE_RIGHTS, lambda client: self._sync(client, labels)
        )

    def _sync(self, client: Client, labels: Mapping[str, str]) -> int:
        # The response to an empty patch is the node: no right to read nodes is needed.
        node = client.patch(Node, self._node, {}, patch_type=PatchType.MERGE)
        stored = (node.metadata.labels if node.metadata else None) or {}
        own = {key: value for key, value in stored.items() if is_own(key)}
        changes = differences(own, labels)
        if changes:
            body = {"metadata": {"labels": changes}}
            client.patch(Node, self._node, body, patch_type=PatchType.MERGE)
        return len(changes)


class FeatureStore:
    """A NodeFeature in the plugin's namespace, from which NFD labels the node."""

    def __init__(self, node: str, timeout_s: float = TIMEOUT_S) -> None:
        """Raises `NoCluster`."""
        self._node = node
        self._name = f"nvidia-features-for-{node}"
        self._timeout_s = timeout_s
        self._config = cluster()

    def sync(self, labels: Mapping[str, str]) -> int:
        """See `gpulabels.LabelStore`."""
        rights = f"get, create and patch on nodefeatures.nfd.k8s-sigs.io in its namespace ({_PAGE})"
        return requested(
            self._config, self._timeout_s, rights, lambda client: self._sync(client, labels)
        )

    def _sync(self, client: Client, labels: Mapping[str, str]) -> int:
        try:
            found = client.get(NodeFeature, self._name)
        except ApiError as error:
            if error.response.status_code != httpx2.codes.NOT_FOUND:
                raise
            client.create(self._made(labels))
            return len(labels)
        spec = found.get("spec") or {}
        metadata = found.metadata
        named = ((metadata.labels if metadata else None) or {}).get(NODE_OF_FEATURES)
        changes = differences(spec.get("labels") or {}, labels)
        if changes or named != self._node:
            body = {
                "metadata": {"labels": {NODE_OF_FEATURES: self._node}},
                "spec": {"labels": changes},
            }
            client.patch(NodeFeature, self._name, body, patch_type=PatchType.MERGE)
        return len(changes)

    def _made(self, labels: Mapping[str, str]) -> GenericNamespacedResource:
        features: dict[str, object] = {"flags": {}, "attributes": {}, "instances": {}}
        return NodeFeature(
            metadata=ObjectMeta(name=self._name, labels={NODE_OF_FEATURES: self._node}),
            spec={"features": features, "labels": dict(labels)},
        )
