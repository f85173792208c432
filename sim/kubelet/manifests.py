"""Pods from Kubernetes manifests and from short forms on a command line. No state, no sockets."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gpuplugin.config.document import YamlError, read_yaml_documents
from sim.kubelet.pods import Container, Pod

if TYPE_CHECKING:
    from collections.abc import Mapping

_DIGITS = re.compile(r"[0-9]{1,19}")
_MOST = 2**63 - 1
"""The largest amount that Kubernetes can write down."""


class ManifestError(Exception):
    """The text is not a pod; it says why."""


class _Loose(BaseModel):
    """Manifests hold much that a device manager never looks at."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _Resources(_Loose):
    limits: dict[str, object] = Field(default_factory=dict)


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
        ManifestError: not YAML, something else than Pods, or no whole number of devices.
    """
    try:
        documents = [one for one in read_yaml_documents(text) if one is not None]
        return tuple(_pod(_Manifest.model_validate(document)) for document in documents)
    except (YamlError, ValidationError) as error:
        raise ManifestError(f"not a Pod manifest: {error}") from error


def parse_limits(texts: list[str]) -> Mapping[str, int]:
    """`RESOURCE=N` for each text.

    Raises:
        ManifestError: another form.
    """
    limits: dict[str, int] = {}
    for text in texts:
        resource, _, amount = text.rpartition("=")
        count = _whole(amount)
        if not resource or count is None:
            raise ManifestError(f"a limit is RESOURCE=N, found {text!r}")
        limits[resource] = count
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


def _device_limits(limits: Mapping[str, object]) -> dict[str, int]:
    """Extended resources only: their names have a slash and their amounts are whole numbers."""
    counts: dict[str, int] = {}
    for name, amount in limits.items():
        if "/" in name:
            count = _whole(amount)
            if count is None:
                raise ManifestError(f"the limit of {name} must be a whole number, 0 or more")
            counts[name] = count
    return counts


def _whole(amount: object) -> int | None:
    """The count that `2` or `"2"` stands for; None for anything else."""
    if isinstance(amount, str) and _DIGITS.fullmatch(amount):
        amount = int(amount)
    if isinstance(amount, int) and not isinstance(amount, bool) and 0 <= amount <= _MOST:
        return amount
    return None
