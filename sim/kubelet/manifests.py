"""Pods from Kubernetes manifests and from short forms on a command line. No state, no sockets."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sim.kubelet.pods import Container, Pod

if TYPE_CHECKING:
    from collections.abc import Mapping


class ManifestError(Exception):
    """The text is not a pod; it says why."""


class _Loose(BaseModel):
    """Manifests hold much that a device manager never looks at."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _Resources(_Loose):
    limits: dict[str, int | str] = Field(default_factory=dict)


class _Container(_Loose):
    name: str
    resources: _Resources = _Resources()


class _Metadata(_Loose):
    name: str
    namespace: str = "default"


class _Spec(_Loose):
    containers: list[_Container]


class _Manifest(_Loose):
    kind: str
    metadata: _Metadata
    spec: _Spec


def pods_from_yaml(text: str) -> tuple[Pod, ...]:
    """The pods of a (multi-document) YAML text; other kinds are refused.

    Raises:
        ManifestError: not YAML, or something else than Pods.
    """
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
        return tuple(_pod(_Manifest.model_validate(document)) for document in documents)
    except (yaml.YAMLError, ValidationError) as error:
        raise ManifestError(f"not a Pod manifest: {error}") from error


def parse_limits(texts: list[str]) -> Mapping[str, int]:
    """`RESOURCE=N` for each text.

    Raises:
        ManifestError: another form.
    """
    limits: dict[str, int] = {}
    for text in texts:
        resource, _, count = text.rpartition("=")
        if not resource or not count.isdecimal():
            raise ManifestError(f"a limit is RESOURCE=N, found {text!r}")
        limits[resource] = int(count)
    return MappingProxyType(limits)


def _pod(manifest: _Manifest) -> Pod:
    if manifest.kind != "Pod":
        raise ManifestError(f"only Pods can be run, found kind {manifest.kind!r}")
    return Pod(
        name=manifest.metadata.name,
        namespace=manifest.metadata.namespace,
        containers=tuple(
            Container(container.name, MappingProxyType(_device_limits(container.resources.limits)))
            for container in manifest.spec.containers
        ),
    )


def _device_limits(limits: Mapping[str, int | str]) -> dict[str, int]:
    """Extended resources only: their names have a slash and their amounts are whole numbers."""
    return {name: int(amount) for name, amount in limits.items() if "/" in name}
