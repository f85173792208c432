"""What the chart has beyond kustomize: values that are checked, images, tests of a release."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import yaml

from gpuplugin.version import VERSION
from sim.node.scenario import scenario_names
from tests.deploy.choices import CHOICES, RENDERED
from tests.deploy.rendering import (
    CHART,
    KUSTOMIZE,
    NAMESPACE,
    PLUGIN,
    built,
    chart,
    chart_tests,
    of_kind,
    plugin_of,
    pod_of,
    the,
    variables,
)

DIGEST = "sha256:" + "5" * 64


# --- images, labels, volumes --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ("", f"gpuplugin:{VERSION}"),
        ("simulated: {enabled: true}", f"gpuplugin:{VERSION}-sim"),
        ("image: {repository: r/g, tag: edge}\nsimulated: {enabled: true}", "r/g:edge"),
        (f"image: {{repository: r/g, digest: '{DIGEST}'}}", f"r/g@{DIGEST}"),
        (f"image: {{tag: '1', digest: '{DIGEST}'}}", f"gpuplugin:1@{DIGEST}"),
    ],
)
def test_the_image(values: str, image: str) -> None:
    found = chart(values)
    images = {one["image"] for one in (plugin_of(found), *pod_of(found)["initContainers"])}
    (test,) = chart_tests(values)
    assert images == {image} == {one["image"] for one in test["spec"]["containers"]}


def test_simulated_gpus_come_with_the_image_that_has_them() -> None:
    found = built(KUSTOMIZE / "overlays/simulated")
    images = {one["image"] for one in (plugin_of(found), *pod_of(found)["initContainers"])}
    assert images == {f"gpuplugin:{VERSION}-sim"}


@pytest.mark.parametrize("scenario", [*scenario_names(), "/etc/scenarios/mine.yaml"])
def test_scenarios_that_are_shipped_or_files_pass(scenario: str) -> None:
    assert chart(f"simulated: {{enabled: true, scenario: {scenario}}}")


def test_volumes_of_ones_own() -> None:
    found = chart(
        "extraVolumes: [{name: scenarios, configMap: {name: mine}}]\n"
        "extraVolumeMounts: [{name: scenarios, mountPath: /etc/scenarios, readOnly: true}]\n"
    )
    assert pod_of(found)["volumes"][-1] == {"name": "scenarios", "configMap": {"name": "mine"}}
    assert plugin_of(found)["volumeMounts"][-1]["mountPath"] == "/etc/scenarios"


@pytest.mark.parametrize("name", [one for one in RENDERED if not one.startswith("component")])
def test_objects_say_their_version(name: str) -> None:
    found = RENDERED[name]()
    template = the(found, "DaemonSet")["spec"]["template"]["metadata"]["labels"]
    assert template["app.kubernetes.io/version"] == VERSION
    base = {"ConfigMap", "DaemonSet", "ServiceAccount"}
    for one in found:
        is_of_base = one["kind"] in base and one["metadata"]["name"] != f"{PLUGIN}-scenarios"
        if name.startswith("chart ") or is_of_base:
            assert one["metadata"]["labels"]["app.kubernetes.io/version"] == VERSION
    selector = the(found, "DaemonSet")["spec"]["selector"]["matchLabels"]
    assert "app.kubernetes.io/version" not in selector, "a selector never changes"


def test_labels_and_selectors_of_ones_own_beside_the_charts() -> None:
    found = chart("podLabels: {app.kubernetes.io/version: mine, app.kubernetes.io/name: other}")
    spec = the(found, "DaemonSet")["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/version"] == "mine"
    assert spec["selector"]["matchLabels"].items() <= labels.items(), "or no pod would be its own"
    for values in ("affinity: null", "simulated: {enabled: true}"):
        for os, given in (("linux", "a: b"), ("linux", "kubernetes.io/os: linux, a: b")):
            pod = pod_of(chart(f"{values}\nnodeSelector: {{{given}}}"))
            assert pod["nodeSelector"] == {"kubernetes.io/os": os, "a": "b"}


def test_a_variable_of_ones_own_replaces_the_charts() -> None:
    """Helm 4 and Argo CD apply on the server's side, which refuses a name that is there twice."""
    found = chart(
        "migStrategy: mixed\nextraEnv:\n"
        "  - {name: NVIDIA_DRIVER_CAPABILITIES, value: all}\n"
        "  - {name: MIG_STRATEGY, value: single}\n"
        "  - {name: NODE_NAME, value: mine}\n"
    )
    names = [one["name"] for one in plugin_of(found)["env"]]
    assert len(set(names)) == len(names)
    given = variables(plugin_of(found))
    assert (given["NVIDIA_DRIVER_CAPABILITIES"], given["MIG_STRATEGY"]) == ("all", "single")
    assert (given["NODE_NAME"], given["NVIDIA_VISIBLE_DEVICES"]) == ("mine", "all")


@pytest.mark.parametrize(
    ("config", "default"),
    [
        ("{map: {default: 'version: v1', a: 'version: v1'}, default: a}", "a"),
        ("{map: {default: 'version: v1', a: 'version: v1'}}", "default"),
        ("{map: {a: 'version: v1'}}", "a"),
        ("{name: own, default: a}", "a"),
        ("{name: own}", None),
        ("{}", "config.yaml"),
    ],
)
def test_nodes_that_do_not_choose_have_the_default_that_is_named(
    config: str, default: str | None
) -> None:
    """Otherwise the plugin takes the file named default, or the only one, of those it finds."""
    choosing = plugin_of(chart(f"config: {config}\nperNodeConfig: {{enabled: true}}"))
    assert variables(choosing).get("DEFAULT_CONFIG") == default
    file = f"--config-file=/etc/gpuplugin/{default or 'config.yaml'}"
    assert choosing["args"][0] == file
    fixed = plugin_of(chart(f"config: {config}"))
    assert (fixed["args"][0], variables(fixed).get("DEFAULT_CONFIG")) == (file, None)


def test_two_releases_in_one_namespace_share_no_object() -> None:
    """As for two kinds of nodes. Those of the cluster that others use, too, are made by one."""
    choice = (
        "observability: {enabled: true}\nnodeReports: {enabled: true}\n"
        "nodeLabels: {enabled: true}\nperNodeConfig: {enabled: true}\n"
        "networkPolicy: {enabled: true}\nopenshift: {enabled: true}\n"
        "priorityQuota: {create: true}\nruntimeClass: {create: false}\n"
    )
    one, other = (
        {(found["kind"], found["metadata"]["name"]) for found in chart(choice, release=release)}
        for release in ("nvidia-device-plugin", "nvidia-device-plugin-training")
    )
    assert one.isdisjoint(other)


def test_labels_for_the_operator_are_on_its_objects_alone() -> None:
    choice = CHOICES["kube-prometheus-stack"]
    with_label = {
        one["kind"] for one in chart(choice.values) if "release" in one["metadata"]["labels"]
    }
    assert with_label == {"PodMonitor", "PrometheusRule"}
    found = chart("metrics: {serviceMonitor: true, labels: {release: a, team: b}}")
    labels = the(found, "ServiceMonitor")["metadata"]["labels"]
    assert (labels["release"], labels["team"]) == ("a", "b")


def test_observability_is_what_its_parts_are() -> None:
    parts = "metrics: {podMonitor: true, alerts: true, dashboard: true, pods: true}"
    assert chart("observability: {enabled: true}") == chart(parts)
    by_service = chart("observability: {enabled: true}\nmetrics: {serviceMonitor: true}")
    assert [one["kind"] for one in by_service if one["kind"].endswith("Monitor")] == [
        "ServiceMonitor"
    ]


def test_alerts_lead_to_a_runbook_of_ones_own() -> None:
    choice = "metrics: {alerts: true, runbookUrl: https://wiki.example.com/gpus}"
    rules = the(chart(choice), "PrometheusRule")["spec"]["groups"]
    addresses = [
        rule["annotations"]["runbook_url"]
        for group in rules
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert "https://wiki.example.com/gpus#gpuunhealthy" in addresses
    assert all(one.startswith("https://wiki.example.com/gpus#") for one in addresses)


@pytest.mark.parametrize("name", ["nvidia-device-plugin", "gpus"])
@pytest.mark.parametrize("kind", ["podMonitor", "serviceMonitor"])
def test_a_plugin_that_is_down_is_seen_whatever_its_name(name: str, kind: str) -> None:
    found = chart(f"fullnameOverride: {name}\nmetrics: {{alerts: true, {kind}: true}}")
    # As the operator calls the targets of a PodMonitor, and of a ServiceMonitor.
    job = f"{NAMESPACE}/{name}" if kind == "podMonitor" else f"{name}-metrics"
    alerts = {
        rule["alert"]: rule["expr"]
        for group in the(found, "PrometheusRule")["spec"]["groups"]
        for rule in group["rules"]
    }
    wanted = re.fullmatch(r'up\{job=~"(.*)"\} == 0', alerts["GpuPluginDown"])
    assert wanted is not None
    assert re.fullmatch(wanted[1], job)
    assert not re.fullmatch(wanted[1], f"{NAMESPACE}/node-exporter")


def test_large_fleets_roll_out_by_percentage() -> None:
    found = chart("updateStrategy: {rollingUpdate: {maxUnavailable: 10%}}")
    strategy = the(found, "DaemonSet")["spec"]["updateStrategy"]
    assert strategy["rollingUpdate"] == {"maxUnavailable": "10%", "maxSurge": 0}


# --- OpenShift ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        "",
        "metrics: {pods: true}",
        "deviceListStrategy: cdi-cri\nruntimeClassName: null",
        "registration: classic\nnodeReports: {enabled: true}",
        "simulated: {enabled: true}",
        "setTimeSlices: {enabled: true}",
        "allocation: dra",
    ],
)
def test_the_constraints_let_the_pods_in_and_nothing_more(values: str) -> None:
    found = chart(f"openshift: {{enabled: true}}\n{values}")
    allowed, pod = the(found, "SecurityContextConstraints"), pod_of(found)
    account = f"system:serviceaccount:gpu-device-plugin:{pod['serviceAccountName']}"
    assert allowed["users"] == [account]
    assert allowed["groups"] == []
    assert allowed["allowHostPID"] == pod.get("hostPID", False)
    privileged = plugin_of(found)["securityContext"].get("privileged", False)
    assert allowed["allowPrivilegedContainer"] == privileged
    escalates = plugin_of(found)["securityContext"]["allowPrivilegeEscalation"]
    assert allowed["allowPrivilegeEscalation"] == escalates
    kinds = {key for one in pod["volumes"] for key in one if key != "name"}
    assert kinds <= set(allowed["volumes"])
    added = {
        name
        for one in (*pod["containers"], *pod["initContainers"])
        for name in one["securityContext"].get("capabilities", {}).get("add", [])
    }
    assert added == set(allowed["allowedCapabilities"])
    assert not allowed["allowHostNetwork"]
    assert pod["securityContext"]["seLinuxOptions"] == {"type": "spc_t"}


# --- helm test ----------------------------------------------------------------------------------


def test_the_test_of_a_release_takes_a_device_and_has_no_right() -> None:
    (pod,) = chart_tests()
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (container,) = pod["spec"]["containers"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 1}}
    service = the(chart(), "Service")
    assert container["command"][3:] == [service["metadata"]["name"], "2112"]
    assert "volumes" not in pod["spec"]
    selector = the(chart(), "DaemonSet")["spec"]["selector"]["matchLabels"]
    assert not selector.items() <= pod["metadata"]["labels"].items(), "it is no plugin"
    for name in ("example.com/gpu", ""):
        classes = f"dra: {{deviceClasses: {{extendedResourceName: '{name}'}}}}"
        (dra,) = chart_tests(f"allocation: dra\n{classes}")
        limits = {"limits": {name: 1}} if name else None
        assert dra["spec"]["containers"][0].get("resources") == limits, "nothing else is offered"
    (other,) = chart_tests("test: {resource: null}\nmetrics: {service: false}")
    assert "resources" not in other["spec"]["containers"][0]
    assert other["spec"]["containers"][0]["command"] == ["gpuplugin", "--version"]


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [(200, 0, "1 of 1 plugins are ready"), (503, 1, "is not ready: no driver"), (0, 1, "answer")],
)
def test_the_test_asks_every_plugin(status: int, code: int, said: str) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/ready" else 404)
            self.end_headers()
            self.wfile.write(b"no driver")

        def log_message(self, format: str, *_arguments: object) -> None:  # noqa: A002 - its name
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        port = server.server_port
        thread = threading.Thread(target=server.handle_request if status else server.server_close)
        thread.start()
        if not status:
            thread.join()
        (pod,) = chart_tests()
        program, option, script, *_ = pod["spec"]["containers"][0]["command"]
        done = subprocess.run(
            [sys.executable, option, script, "127.0.0.1", str(port)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        thread.join()
    assert (program, done.returncode) == ("python3", code), done.stderr
    assert said in done.stdout


# --- the chart itself ---------------------------------------------------------------------------


def test_the_page_of_the_chart_has_every_value() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    page = (CHART / "README.md").read_text()
    named = set(re.findall(r"`(\w+)[\w.]*`", page))
    assert values.keys() <= named, values.keys() - named


def test_the_icon_is_the_file_beside_it() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    kind, _, data = about["icon"].partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(data).decode() == (CHART / "icon.svg").read_text().strip()
    assert about["version"] == about["appVersion"] == VERSION


def test_nothing_of_the_class_is_made_twice() -> None:
    assert len(of_kind(chart("runtimeClass: {create: true}"), "RuntimeClass")) == 1
    kept = the(chart(), "RuntimeClass")["metadata"]["annotations"]
    assert kept == {"helm.sh/resource-policy": "keep"}
    assert of_kind(chart("runtimeClass: {create: false}"), "RuntimeClass") == []
