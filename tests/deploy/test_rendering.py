"""Everything builds, is valid for Kubernetes, and comes out alike from kustomize and the chart."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from gpuplugin.version import VERSION
from tests.deploy.choices import CHOICES
from tests.deploy.rendering import (
    CHART,
    COMPONENTS,
    DEPLOY,
    NAMESPACE,
    OVERLAYS,
    PLUGIN,
    Object,
    Refused,
    built,
    built_with,
    chart,
    lint,
    names,
    of_kind,
    plugin_of,
    pod_of,
    the,
    variables,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

VERSION_LABEL = "app.kubernetes.io/version"
NOT_COMPARED = {
    "helm.sh/chart", "app.kubernetes.io/managed-by", "app.kubernetes.io/instance",
    "helm.sh/resource-policy",
    # Of kustomize in any namespace, of the chart in its own: `test_dra` asks both.
    "matchConditions",
    # The chart has it on every object, kustomize on those of the base.
    VERSION_LABEL,
}  # fmt: skip
DOCUMENTS = (".yaml", ".json", "exclusive", "development", "ci")
LISTS_BY_NAME = ("env", "volumes", "volumeMounts", "initContainers")


@pytest.mark.parametrize("name", names(OVERLAYS))
def test_every_overlay_builds(name: str) -> None:
    found = built(OVERLAYS / name)
    assert the(found, "DaemonSet")["metadata"] == {
        "name": PLUGIN,
        "namespace": NAMESPACE,
        "labels": {"app.kubernetes.io/name": PLUGIN, VERSION_LABEL: VERSION},
    }


@pytest.mark.parametrize("name", names(COMPONENTS))
def test_every_component_does_something_to_the_base(name: str) -> None:
    before = ("monitoring",) if name == "kube-prometheus-stack" else ()
    assert built_with(*before, name) != built_with(*before) or name == "replicas-10"


def test_the_overlays_that_are_promised() -> None:
    promised = {"talos", "simulated", "classic", "per-node-config"}
    assert promised | {f"replicas-{count}" for count in (4, 10, 20)} <= set(names(OVERLAYS))


def test_every_file_of_a_component_or_overlay_is_used() -> None:
    for folder in (*COMPONENTS.iterdir(), *(OVERLAYS / name for name in names(OVERLAYS))):
        text = (folder / "kustomization.yaml").read_text()
        unused = [path.name for path in folder.iterdir() if path.name not in text]
        assert set(unused) <= {"kustomization.yaml"}, folder


def test_every_component_is_compared_with_the_chart() -> None:
    compared = {name for one in CHOICES.values() for name in one.components}
    included = {"alerts", "dashboard", "pod-monitor", "root-without-capabilities"}
    without_a_value = {"network-policy-api", "pod-security-quiet"}
    assert compared | included | without_a_value == set(names(COMPONENTS))


@pytest.mark.parametrize("name", CHOICES)
def test_chart_and_kustomize_make_the_same_objects(name: str) -> None:
    choice = CHOICES[name]
    ours, theirs = comparable(built_with(*choice.components)), comparable(chart(choice.values))
    assert theirs.keys() == ours.keys()
    for key, one in ours.items():
        assert theirs[key] == one, key


def test_network_policies_with_the_api_server_allow_the_same() -> None:
    made = built_with("node-reports", "network-policy", "network-policy-api")
    ports = [rule for one in of_kind(made, "NetworkPolicy") for rule in one["spec"]["egress"]]
    values = "networkPolicy: {enabled: true}\nnodeReports: {enabled: true}\n"
    assert the(chart(values), "NetworkPolicy")["spec"]["egress"] == ports


def comparable(found: Iterable[Object]) -> dict[tuple[str, str, str], Object]:
    """Objects by kind, namespace and name, without what tells nothing.

    That is: labels of helm's own and of versions, the order of lists whose items have names, the
    layout of the configuration, and the Namespace, which `helm --create-namespace` makes.
    """
    kept = [_stripped(one) for one in found if one["kind"] != "Namespace"]
    return {
        (one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]): one
        for one in kept
    }


def _stripped(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        found = {
            one: _stripped(inner, one) for one, inner in value.items() if one not in NOT_COMPARED
        }
        # Empty and none at all are the same.
        empty: tuple[tuple[str, Any], ...] = (("env", []), ("labels", {}), ("annotations", {}))
        return {one: inner for one, inner in found.items() if (one, inner) not in empty}
    if isinstance(value, list):
        items = [_stripped(one) for one in value]
        named = key in LISTS_BY_NAME and all(isinstance(one, dict) for one in items)
        return sorted(items, key=lambda one: one["name"]) if named else items
    if isinstance(value, str) and key.endswith(
        (".yaml", ".json", "exclusive", "ci", "development")
    ):
        return yaml.load(value, yaml.CSafeLoader)
    # The shell does not care where a line is folded.
    return " ".join(value.split()) if isinstance(value, str) else value


@pytest.mark.parametrize("name", CHOICES)
def test_the_chart_lints_strictly(name: str) -> None:
    lint(CHOICES[name].values)


def test_the_chart_lints_with_every_value_that_has_a_choice() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]
    for key in ("migStrategy", "deviceIDStrategy", "policy", "logLevel"):
        for value in schema[key]["enum"]:
            assert chart(yaml.safe_dump({key: value}))


def test_every_value_is_in_the_schema_and_the_other_way_round() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["properties"].keys() - values.keys() == {"global"}
    assert values.keys() <= schema["properties"].keys()
    for key, one in schema["properties"].items():
        if one.get("properties") and key != "updateStrategy":
            assert one["properties"].keys() == values[key].keys(), key


# --- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "variable", "text"),
    [
        ("migStrategy: mixed", "MIG_STRATEGY", "mixed"),
        ("failOnInitError: false", "FAIL_ON_INIT_ERROR", "false"),
        ("deviceListStrategy: envvar", "DEVICE_LIST_STRATEGY", "envvar"),
        ("deviceListStrategy: [envvar, cdi-cri]", "DEVICE_LIST_STRATEGY", "envvar,cdi-cri"),
        ("deviceIDStrategy: index", "DEVICE_ID_STRATEGY", "index"),
        ("nvidiaDriverRoot: /run/nvidia/driver", "NVIDIA_DRIVER_ROOT", "/run/nvidia/driver"),
        ("nvidiaDevRoot: /", "NVIDIA_DEV_ROOT", "/"),
        ("gdrcopyEnabled: true", "GDRCOPY_ENABLED", "true"),
        ("gdsEnabled: true", "GDS_ENABLED", "true"),
        ("mofedEnabled: true", "MOFED_ENABLED", "true"),
        ("deviceDiscoveryStrategy: nvml", "DEVICE_DISCOVERY_STRATEGY", "nvml"),
        ("compatWithCPUManager: true", "PASS_DEVICE_SPECS", "true"),
        ("cdi: {nvidiaHookPath: /a}", "NVIDIA_CDI_HOOK_PATH", "/a"),
        ("cdi: {disableHooks: [all]}", "CDI_DISABLE_HOOKS", "all"),
        ("cdi: {featureFlags: [a, b]}", "CDI_FEATURE_FLAGS", "a,b"),
        ("policy: spread-strict", "SHARED_DEVICES_ALLOCATION_POLICY", "spread-strict"),
        ("includeGpus: [0, GPU-1]", "GPUPLUGIN_INCLUDE_GPUS", "0,GPU-1"),
        ("excludeGpus: ['*T4*']", "GPUPLUGIN_EXCLUDE_GPUS", "*T4*"),
        ("ignoreXids: [13, 31]", "DP_DISABLE_HEALTHCHECKS", "13,31"),
        ("fatalXids: 79", "DP_ENABLE_HEALTHCHECKS", "79"),
        ("logLevel: debug", "GPUPLUGIN_LOG_LEVEL", "debug"),
        ("metrics: {interval: 10s}", "GPUPLUGIN_METRICS_INTERVAL", "10s"),
        ("extraEnv: [{name: A, value: b}]", "A", "b"),
    ],
)
def test_a_value_becomes_a_variable(values: str, variable: str, text: str) -> None:
    assert variable not in variables(plugin_of(chart()))
    assert variables(plugin_of(chart(values)))[variable] == text


def test_values_of_the_pod() -> None:
    found = chart(
        """\
image: {repository: registry.example/gpuplugin, tag: edge, pullPolicy: Always}
imagePullSecrets: [{name: pull}]
priorityClassName: high
runtimeClassName: other
nodeSelector: {pool: gpu}
tolerations: [{operator: Exists}]
updateStrategy: {type: OnDelete, rollingUpdate: null}
resources: {limits: {memory: 1Gi}}
podAnnotations: {a: b}
podLabels: {c: d}
extraArgs: [--strict-config]
probes: {liveness: {periodSeconds: 30}}
securityContext: {runAsUser: 1000}
kubeletDir: /data/kubelet
metrics: {port: 9400}
"""
    )
    pod, container = pod_of(found), plugin_of(found)
    template = the(found, "DaemonSet")["spec"]["template"]["metadata"]
    assert container["image"] == "registry.example/gpuplugin:edge"
    assert {one["imagePullPolicy"] for one in (container, *pod["initContainers"])} == {"Always"}
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert pod["priorityClassName"] == "high"
    assert pod["runtimeClassName"] == "other" == the(found, "RuntimeClass")["metadata"]["name"]
    assert pod["nodeSelector"] == {"pool": "gpu"}
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert the(found, "DaemonSet")["spec"]["updateStrategy"] == {"type": "OnDelete"}
    assert container["resources"]["limits"]["memory"] == "1Gi"
    assert template["annotations"] == {"a": "b"}
    assert template["labels"]["c"] == "d"
    assert container["args"][-1] == "--strict-config"
    assert container["livenessProbe"]["periodSeconds"] == 30
    assert container["securityContext"]["runAsUser"] == 1000
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    paths = [one["hostPath"]["path"] for one in pod["volumes"] if "hostPath" in one]
    assert paths == ["/data/kubelet/plugins_registry/gpuplugin"]
    assert "--listen-address=0.0.0.0:9400" in container["args"]
    assert the(found, "Service")["spec"]["ports"][0]["port"] == 9400


def test_names() -> None:
    assert the(chart(release="gpu"), "DaemonSet")["metadata"]["name"] == f"gpu-{PLUGIN}"
    assert the(chart("fullnameOverride: x"), "DaemonSet")["metadata"]["name"] == "x"
    found = chart("nameOverride: other\nnamespaceOverride: elsewhere")
    assert {one["metadata"].get("namespace") for one in found} == {"elsewhere", None}
    assert the(found, "DaemonSet")["metadata"]["name"] == f"{PLUGIN}-other"
    selector = the(chart("selectorLabelsOverride: {a: b}"), "DaemonSet")["spec"]["selector"]
    assert selector == {"matchLabels": {"a": "b"}}


def test_the_drivers_root_is_mounted_where_it_is_another_one() -> None:
    found = chart("nvidiaDriverRoot: /run/nvidia/driver")
    paths = [one["hostPath"]["path"] for one in pod_of(found)["volumes"] if "hostPath" in one]
    assert "/run/nvidia/driver" in paths
    assert plugin_of(found)["securityContext"]["runAsUser"] == 65534, "it is only read"


@pytest.mark.parametrize(
    ("values", "file"),
    [
        ("", "config.yaml"),
        ("config: {map: {mine: 'version: v1'}}", "mine"),
        ("config: {map: {a: 'version: v1', default: 'version: v1'}}", "default"),
        ("config: {default: b, map: {a: 'version: v1', b: 'version: v1'}}", "b"),
        ("config: {name: own}", "config.yaml"),
        ("config: {name: own, default: big}", "big"),
    ],
)
def test_the_file_for_nodes_that_do_not_choose(values: str, file: str) -> None:
    found = chart(values)
    assert f"--config-file=/etc/gpuplugin/{file}" in plugin_of(found)["args"]
    (name,) = [one["configMap"]["name"] for one in pod_of(found)["volumes"] if "configMap" in one]
    made = [one["metadata"]["name"] for one in of_kind(found, "ConfigMap")]
    assert made == ([] if name == "own" else [name])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("polciy: packed", "polciy"),
        ("policy: random", "policy"),
        ("migStrategy: both", "migStrategy"),
        ("gfd: {enabled: true}", "gfd"),
        ("mps: {enabled: true}", "mps"),
        ("config: {name: a, map: {b: ''}}", "give one of them"),
        ("config: {map: {a: '', b: ''}}", "config.default"),
        ("config: {default: c, map: {a: ''}}", "not in config.map"),
        ("updateStrategy: {rollingUpdate: {maxSurge: 1}}", "maxSurge"),
        ("allocation: both", "allocation"),
        ("allocation: dra\ndra: {driverName: GPU}", "driverName"),
        ("allocation: dra\ndeviceListStrategy: envvar", "by CDI alone"),
        ("allocation: dra\nregistration: classic", "plugin watcher alone"),
        ("allocation: dra\nextraArgs: [--cdi-root=/x]", "--cdi-root"),
        ("extraArgs: [--allocation=dra]", "set allocation: dra"),
        ("runtimeClassName: null", "cdi-"),
        ("metrics: {podMonitor: true, serviceMonitor: true}", "scrape twice"),
        ("metrics: {port: 80}", "port"),
        ("kubeletDir: relative", "kubeletDir"),
    ],
)
def test_values_that_cannot_work_are_refused(values: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        chart(values)


def test_the_default_namespace_is_refused_unless_allowed() -> None:
    with pytest.raises(Refused, match="namespace of its own"):
        chart(namespace="default")
    assert chart("allowDefaultNamespace: true", namespace="default")


def test_rules_and_dashboard_are_those_of_the_repository() -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus/rules.yaml").read_text())
    dashboard = json.loads((DEPLOY / "grafana/gpuplugin.json").read_text())
    choice = CHOICES["monitoring"]
    for found in (built_with(*choice.components), chart(choice.values)):
        assert the(found, "PrometheusRule")["spec"] == rules["spec"]
        (made,) = [one for one in of_kind(found, "ConfigMap") if "gpuplugin.json" in one["data"]]
        assert json.loads(made["data"]["gpuplugin.json"]) == dashboard
