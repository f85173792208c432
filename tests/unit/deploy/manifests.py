"""What the shipped manifests say, and how Kubernetes reads it: for tests of several kinds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gpuplugin.cli.options import given_options
from gpuplugin.cli.parser import build_parser
from gpuplugin.config.load import load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuplugin.config.settings import Settings

BASE = Path(__file__).parents[3] / "deploy" / "kustomize" / "base"
PLUGIN = "nvidia-device-plugin"
NODE = "one"
"""The node on which the pods of the tests are, for variables that ask for it."""


def base_manifests() -> list[dict[str, Any]]:
    """Everything that the base makes, as its files have it."""
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    return [yaml.safe_load((BASE / name).read_text()) for name in kustomization["resources"]]


def base_manifest(kind: str) -> dict[str, Any]:
    """The base's only manifest of this kind."""
    (found,) = [manifest for manifest in base_manifests() if manifest["kind"] == kind]
    return found


def pod_spec() -> dict[str, Any]:
    """The spec of the plugin's pods."""
    spec: dict[str, Any] = base_manifest("DaemonSet")["spec"]["template"]["spec"]
    return spec


def plugin_container() -> dict[str, Any]:
    """The container that runs the plugin."""
    (container,) = pod_spec()["containers"]
    found: dict[str, Any] = container
    return found


def plugin_environment() -> dict[str, str]:
    """Variables of the plugin, on the node of the tests."""
    nodes = {"spec.nodeName": NODE}
    return {
        one["name"]: one["value"]
        if "value" in one
        else nodes[one["valueFrom"]["fieldRef"]["fieldPath"]]
        for one in plugin_container()["env"]
    }


def shipped_settings(folder: Path) -> Settings:
    """Settings of the plugin under the shipped command, environment and configuration.

    `folder` takes the place of the folder where the ConfigMap is mounted.
    """
    container = plugin_container()
    (mount,) = [one for one in container["volumeMounts"] if one["name"] == "config"]
    for name, text in base_manifest("ConfigMap")["data"].items():
        (folder / name).write_text(text)
    words = [word.replace(mount["mountPath"], str(folder)) for word in container["args"]]
    parsed = build_parser("run").parse_args([*container["command"][1:], *words])
    return load_settings(given_options(parsed), plugin_environment(), parsed.config_file).settings


def can_be_scheduled(labels: Mapping[str, str]) -> bool:
    """True if the required node affinity lets the plugin on a node with these labels."""
    affinity = pod_spec()["affinity"]["nodeAffinity"]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return any(_matches(term, labels) for term in terms)


def _matches(term: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """A term needs all of its expressions; one without any matches nothing."""
    assert term.keys() == {"matchExpressions"}
    expressions = term["matchExpressions"]
    return bool(expressions) and all(_holds(one, labels) for one in expressions)


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value = labels.get(expression["key"])
    match expression["operator"]:
        case "In":
            assert all(isinstance(one, str) for one in expression["values"]), "labels are text"
            return value in expression["values"]
        case "NotIn":
            return value not in expression["values"]
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    raise AssertionError(f"no such operator: {expression['operator']}")
