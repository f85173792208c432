"""Everything that is rendered is valid for the oldest and the newest Kubernetes that we name."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

import jsonschema
import kubernetes_validate
import pytest
from kubernetes_validate import utils

from tests.deploy.choices import RENDERED
from tests.deploy.rendering import DEPLOY, built, names

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSIONS = ("1.31", "1.37")
DRA, DRA_SINCE = "resource.k8s.io/v1", "1.34"
OPERATOR = "monitoring.coreos.com/v1"
OPENSHIFT = "security.openshift.io/v1"
WORKLOADS = DEPLOY / "workloads"
EVERYTHING = RENDERED | {
    f"workload {name}": partial(built, WORKLOADS / name) for name in names(WORKLOADS)
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", EVERYTHING)
def test_every_object_is_valid(name: str, version: str) -> None:
    for one in EVERYTHING[name]():
        if one["apiVersion"] in {OPERATOR, OPENSHIFT}:
            jsonschema.validate(one, OTHERS[one["kind"]])
        elif one["apiVersion"] == DRA:
            _validate(_frozen(one), max(version, DRA_SINCE))
        else:
            _validate(_frozen(one), version)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_misspelt_key_is_noticed(version: str) -> None:
    (pod,) = built(DEPLOY / "workloads" / "one-pod")
    pod["spec"]["runtimeClass"] = pod["spec"].pop("runtimeClassName")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, version, strict=True)


@pytest.fixture(autouse=True, scope="module")
def files_read_once() -> Iterator[None]:
    """The library reads megabytes of definitions for every object."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "schema_contents", cache(utils.schema_contents))
        yield


@cache
def _validate(frozen: Any, version: str) -> None:
    # Most objects are in many renderings; each is looked at once.
    kubernetes_validate.validate(_thawed(frozen), version, strict=True)


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return ("dict", tuple((key, _frozen(one)) for key, one in value.items()))
    if isinstance(value, list):
        return ("list", tuple(_frozen(one) for one in value))
    return ("value", value, type(value))


def _thawed(frozen: Any) -> Any:
    kind, content = frozen[:2]
    if kind == "dict":
        return {key: _thawed(one) for key, one in content}
    return [_thawed(one) for one in content] if kind == "list" else content


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": required | optional,
        "required": list(required),
        "additionalProperties": False,
    }


_TEXT = {"type": "string"}
_LABELS = {"type": "object", "additionalProperties": _TEXT}
_META = _object({"name": _TEXT, "namespace": _TEXT, "labels": _LABELS})
_ENDPOINTS = {
    "type": "array",
    "items": _object(
        {
            "port": _TEXT,
            "interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
            "honorLabels": {"type": "boolean"},
            "relabelings": {
                "type": "array",
                "items": _object(
                    {"sourceLabels": {"type": "array", "items": _TEXT}, "targetLabel": _TEXT}
                ),
            },
        }
    ),
}


def _monitor(kind: str, endpoints: str) -> dict[str, Any]:
    spec = _object({"selector": _object({"matchLabels": _LABELS}), endpoints: _ENDPOINTS})
    return _whole(kind, spec)


def _whole(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return _object(
        {
            "apiVersion": {"const": OPERATOR},
            "kind": {"const": kind},
            "metadata": _META,
            "spec": spec,
        }
    )


_RULE = _object(
    {"expr": _TEXT},
    **{"alert": _TEXT, "record": _TEXT, "for": _TEXT, "labels": _LABELS, "annotations": _LABELS},
)
_FLAG = {"type": "boolean"}
_WORDS = {"type": "array", "items": _TEXT}
_WHO = _object({"type": {"enum": ["RunAsAny"]}})
_SCC_FLAGS = (
    "allowHostDirVolumePlugin", "allowHostIPC", "allowHostNetwork", "allowHostPID",
    "allowHostPorts", "allowPrivilegedContainer", "allowPrivilegeEscalation",
)  # fmt: skip
_SCC_LISTS = (
    "allowedCapabilities", "defaultAddCapabilities", "requiredDropCapabilities",
    "seccompProfiles", "volumes",
)  # fmt: skip
_SCC_WHO = ("runAsUser", "seLinuxContext", "fsGroup", "supplementalGroups")
OTHERS = {
    "SecurityContextConstraints": _object(
        {
            "apiVersion": {"const": OPENSHIFT},
            "kind": {"const": "SecurityContextConstraints"},
            "metadata": _object({"name": _TEXT, "labels": _LABELS}),
            "users": _WORDS,
            "groups": _WORDS,
            "priority": {"type": ["integer", "null"]},
            "readOnlyRootFilesystem": _FLAG,
            **dict.fromkeys(_SCC_FLAGS, _FLAG),
            **dict.fromkeys(_SCC_LISTS, _WORDS),
            **dict.fromkeys(_SCC_WHO, _WHO),
        }
    ),
    "PodMonitor": _monitor("PodMonitor", "podMetricsEndpoints"),
    "ServiceMonitor": _monitor("ServiceMonitor", "endpoints"),
    "PrometheusRule": _whole(
        "PrometheusRule",
        _object(
            {
                "groups": {
                    "type": "array",
                    "items": _object(
                        {"name": _TEXT, "rules": {"type": "array", "items": _RULE}},
                        interval=_TEXT,
                    ),
                }
            }
        ),
    ),
}
"""The part of the objects of the Prometheus operator and of OpenShift that is used here, by their
documentation: the schemas of Kubernetes do not have them."""
