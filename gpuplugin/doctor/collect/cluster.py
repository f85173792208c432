"""Collects what the API server has of a node that gives out GPUs by DRA.

As the user of KUBECONFIG, or as the plugin in its pod, which may read less. Nothing is stored: the
slice that shows dropped fields is a dry run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from gpuplugin.core.jsonobject import JsonObject, objects, part
from gpuplugin.doctor.facts import ClassFact, ClusterFacts, SliceFact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from lightkube import Client, SingleConfig

    from gpuplugin.core.dra.slices import Pool

_T = TypeVar("_T")
_TIMEOUT_S = 5.0
_GROUP = "resource.k8s.io"
RIGHTS = (
    ("get", "resourceclaims"),
    ("list", "resourceslices"),
    ("watch", "resourceslices"),
    ("create", "resourceslices"),
    ("update", "resourceslices"),
    ("delete", "resourceslices"),
)
"""What the plugin needs of the API group."""


def collect_cluster(driver: str, node: str) -> ClusterFacts:
    """What there is of this driver and node; what may not be read is None."""
    try:
        import httpx2

        from gpuplugin.core.dra.slices import Pool
        from gpuplugin.daemon.cluster.kubeapi import NoCluster, client_of, cluster
    except ImportError as error:
        return ClusterFacts(problem=f"no Kubernetes client is installed ({error})")
    try:
        config = cluster()
        with client_of(config, httpx2.Timeout(_TIMEOUT_S)) as client:
            return _Reader(client, config, Pool(driver, node)).facts()
    except NoCluster as error:
        return ClusterFacts(problem=str(error))
    except Exception as error:  # noqa: BLE001 - tokens, certificates, other servers: it is a fact
        return ClusterFacts(problem=f"{type(error).__name__}: {error}")


class _Reader:
    """Reads with one client; `denied` collects what it may not read."""

    def __init__(self, client: Client, config: SingleConfig, pool: Pool) -> None:
        self._client = client
        self._config = config
        self._pool = pool
        self._denied: list[str] = []

    def facts(self) -> ClusterFacts:
        from lightkube.resources.core_v1 import Node

        node = self._allowed("the node", lambda: self._client.get(Node, self._pool.node))
        status = node.status if node is not None else None
        info = status.nodeInfo if status is not None else None
        classes, served = self._classes()
        if not served:
            return ClusterFacts(server=self._config.cluster.server, served=False)
        return ClusterFacts(
            server=self._config.cluster.server,
            served=True,
            kubelet_version=info.kubeletVersion if info is not None else "",
            allocatable=None if status is None else dict(status.allocatable or {}),
            classes=classes,
            slices=self._slices(),
            gates_off=self._allowed("gates", self._gates_off),
            rights=self._allowed("rights", self._rights),
            denied=tuple(self._denied),
        )

    def _allowed(self, what: str, read: Callable[[], _T]) -> _T | None:
        """What was read, None if it is not there, or not for this user."""
        import httpx2

        try:
            return read()
        except httpx2.HTTPStatusError as error:
            self._denied.append(f"{what}: {error}")
            return None

    def _classes(self) -> tuple[tuple[ClassFact, ...] | None, bool]:
        """DeviceClasses, newest first, and whether the API group is served at all."""
        import httpx2
        from lightkube.generic_resource import create_global_resource

        kind = create_global_resource(_GROUP, "v1", "DeviceClass", "deviceclasses")
        try:
            found = [dict(one) for one in self._client.list(kind)]
        except httpx2.HTTPStatusError as error:
            if error.response.status_code == httpx2.codes.NOT_FOUND:
                return None, False
            self._denied.append(f"DeviceClasses: {error}")
            return None, True
        return tuple(sorted(map(_class, found), key=lambda one: one.created, reverse=True)), True

    def _slices(self) -> tuple[SliceFact, ...] | None:
        from lightkube.generic_resource import create_global_resource

        kind = create_global_resource(_GROUP, "v1", "ResourceSlice", "resourceslices")

        def read() -> tuple[SliceFact, ...]:
            mine = {"spec.nodeName": self._pool.node, "spec.driver": self._pool.driver}
            return tuple(_slice(dict(one)) for one in self._client.list(kind, fields={**mine}))

        return self._allowed("ResourceSlices", read)

    def _gates_off(self) -> frozenset[str]:
        import httpx2
        from lightkube.generic_resource import create_global_resource
        from lightkube.models.meta_v1 import ObjectMeta

        from gpuplugin.core.dra.slices import dropped_gates, trial_spec
        from gpuplugin.daemon.cluster.kubeapi import client_of

        kind = create_global_resource(_GROUP, "v1", "ResourceSlice", "resourceslices")
        spec = trial_spec(self._pool)
        metadata = ObjectMeta(generateName=f"{self._pool.slice_name(0)[:200]}-trial-")
        timeout = httpx2.Timeout(_TIMEOUT_S)
        with client_of(self._config, timeout, dry_run=True) as client:
            made = client.create(kind(metadata=metadata, spec=spec))
        return dropped_gates(spec, dict(made.get("spec") or {}))

    def _rights(self) -> Mapping[str, bool]:
        from lightkube.models.authorization_v1 import (
            ResourceAttributes,
            SelfSubjectAccessReviewSpec,
        )
        from lightkube.resources.authorization_v1 import SelfSubjectAccessReview

        found: dict[str, bool] = {}
        for verb, resource in RIGHTS:
            asked = ResourceAttributes(group=_GROUP, resource=resource, verb=verb)
            spec = SelfSubjectAccessReviewSpec(resourceAttributes=asked)
            made = self._client.create(SelfSubjectAccessReview(spec=spec))
            found[f"{verb} {resource}"] = made.status is not None and made.status.allowed
        return found


def _class(one: JsonObject) -> ClassFact:
    metadata, spec = part(one, "metadata"), part(one, "spec")
    return ClassFact(
        name=str(metadata.get("name")),
        created=str(metadata.get("creationTimestamp") or ""),
        extended_resource=str(spec.get("extendedResourceName") or ""),
        selectors=tuple(
            str(part(selector, "cel").get("expression") or "")
            for selector in objects(spec.get("selectors"))
        ),
    )


def _slice(one: JsonObject) -> SliceFact:
    spec = part(one, "spec")
    pool = part(spec, "pool")
    return SliceFact(
        name=str(part(one, "metadata").get("name")),
        generation=_number(pool.get("generation")),
        count=_number(pool.get("resourceSliceCount")),
        replicas=dict(_replicas(objects(spec.get("devices")))),
        tainted=frozenset(
            str(device.get("name"))
            for device in objects(spec.get("devices"))
            if device.get("taints")
        ),
    )


def _replicas(devices: Iterable[JsonObject]) -> Iterator[tuple[str, int]]:
    for device in devices:
        shares = part(part(device, "capacity"), "shares").get("value")
        shared = device.get("allowMultipleAllocations") and shares is not None
        yield str(device.get("name")), _number(shares) if shared else 1


def _number(value: object) -> int:
    from gpuplugin.core.dra.devices import whole_number

    try:
        return whole_number(str(value))
    except ValueError:
        return 0
