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
    Object,
    Refused,
    built,
    chart,
    chart_tests,
    lint,
    of_kind,
    plugin_of,
    pod_of,
    the,
)
from tools.configuration import keys

DIGEST = "sha256:" + "5" * 64
NVIDIA_DEFAULTS = """\
config: {name: "", map: {}, default: "", fallbackStrategies: [named, single]}
compatWithCPUManager: null
migStrategy: null
failOnInitError: null
deviceListStrategy: null
deviceIDStrategy: null
nvidiaDriverRoot: null
gdrcopyEnabled: null
gdsEnabled: null
mofedEnabled: null
deviceDiscoveryStrategy: null
nameOverride: ""
fullnameOverride: ""
namespaceOverride: ""
selectorLabelsOverride: {}
componentSelectorLabels: {enabled: false}
allowDefaultNamespace: false
imagePullSecrets: []
updateStrategy: {type: RollingUpdate}
podAnnotations: {}
podSecurityContext: {}
securityContext: {}
resources: {}
nodeSelector: {}
tolerations: [{key: CriticalAddonsOnly, operator: Exists}]
priorityClassName: system-node-critical
devicePlugin:
  enabled: true
  containers:
    main:
      env:
        - {name: NVIDIA_VISIBLE_DEVICES, value: all}
        - {name: NVIDIA_DRIVER_CAPABILITIES, value: "compute,utility"}
gfd:
  enabled: false
  nameOverride: gpu-feature-discovery
  namespaceOverride: ""
  noTimestamp: null
  sleepInterval: null
  securityContext: {privileged: true}
nfd:
  nameOverride: node-feature-discovery
  master: {serviceAccount: {name: node-feature-discovery, create: true}}
  worker: {config: {sources: {pci: {deviceLabelFields: [vendor]}}}}
mps: {root: /run/nvidia/mps, enableHostPID: true}
cdi: {nvidiaHookPath: null, featureFlags: null}
"""
"""Names and defaults of the values of NVIDIA's chart (k8s-device-plugin, after 0.18), without the
two that cannot be had: `NVIDIA_ONLY`."""

NVIDIA_ONLY = """\
image: {repository: nvcr.io/nvidia/k8s-device-plugin, pullPolicy: IfNotPresent, tag: ""}
runtimeClassName: null
"""


def refusal(values: str) -> str:
    with pytest.raises(Refused) as caught:
        chart(values)
    return str(caught.value)


# --- values of NVIDIA's chart -------------------------------------------------------------------


def test_nvidias_own_defaults_change_nothing() -> None:
    assert plugin_of(chart(NVIDIA_DEFAULTS)) == plugin_of(chart())
    lint(NVIDIA_DEFAULTS)


def test_what_cannot_be_taken_over_is_refused_all_at_once_with_what_to_delete() -> None:
    said = refusal(NVIDIA_DEFAULTS + NVIDIA_ONLY)
    assert "delete image.repository and image.tag" in said
    assert "delete runtimeClassName (null in NVIDIA's values)" in said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("gfd: {enabled: true}", "gfd.enabled: this chart makes no labels: delete it"),
        ("nfd: {enabled: true}", "nfd.enabled: .*: delete it"),
        ("mps: {enabled: true}", "mps.enabled: there is no MPS here: delete it"),
        ("componentSelectorLabels: {enabled: true}", "componentSelectorLabels.enabled: .*delete"),
        ("devicePlugin: {enabled: false}", "devicePlugin.enabled: .*delete it"),
        ("devicePlugin: {enableHostNetwork: true}", "enableHostNetwork: .*delete it"),
        (
            "devicePlugin: {containers: {main: {env: [{name: A, value: b}]}}}",
            "devicePlugin.containers.main.env: move A to extraEnv",
        ),
        ("config: {fallbackStrategies: [single]}", "fallbackStrategies .*: delete it"),
    ],
)
def test_a_part_that_is_not_here_is_named(values: str, said: str) -> None:
    assert re.search(said, refusal(values))


# --- configuration files ------------------------------------------------------------------------


def config(text: str) -> str:
    return yaml.safe_dump({"config": {"map": {"mine": text}}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "flags: {migStrateg: none}",
            "config.map.mine: flags.migStrateg is no key .* are mi",
        ),
        ("sharing: {timeSlicing: {resource: []}}", "sharing.timeSlicing.resource is no key"),
        (
            "sharing: {timeSlicing: {resources: [{name: a, replica: 4}]}}",
            "resources.replica is no key of the configuration; there are name, rename, devices",
        ),
        ("sharin: {}", "sharin is no key of the configuration; there are version, flags"),
        ("a: b\n c: d", "config.map.mine: is not YAML with keys at the top"),
        ("- a", "is not YAML with keys at the top"),
        ("version: v2", "version is v2, and only v1 is known"),
        (
            "apiVersion: v1\nkind: ConfigMap\ndata: {config.yaml: 'version: v1'}",
            "config.map.mine: is a whole ConfigMap: give the text under its `data`",
        ),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(text: str, said: str) -> None:
    assert re.search(said, refusal(config(text)))


def test_every_key_passes_and_so_do_anchors() -> None:
    data: Object = {"x-mine": {"any": 1}}
    for key in keys():
        if key.path.startswith("daemon."):
            continue
        here: Object = data
        *above, last = key.path.split(".")
        for name in above:
            inner = here.setdefault(name.removesuffix("[]"), [{}] if name.endswith("[]") else {})
            here = inner[0] if name.endswith("[]") else inner
        here[last] = "v1" if last == "version" else 2
    assert data["sharing"]["timeSlicing"]["resources"] == [
        {"name": 2, "rename": 2, "devices": 2, "replicas": 2}
    ]
    assert chart(config(yaml.safe_dump(data)))
    assert chart(config("VERSION: v1\nFlags: {MigStrategy: none}")), "in any case, as NVIDIA's"


def test_a_key_that_the_chart_does_not_know_can_be_let_through() -> None:
    values = {"config": {"allowUnknownKeys": True, "map": {"a": "version: v1\nlater: {}\n"}}}
    assert "later" in the(chart(yaml.safe_dump(values)), "ConfigMap")["data"]["a"]


@pytest.mark.parametrize(("count", "sharing"), [(1, False), (2, True), (100_000, True)])
def test_replicas_are_a_plain_value(count: int, sharing: bool) -> None:
    made = yaml.safe_load(the(chart(f"replicas: {count}"), "ConfigMap")["data"]["config.yaml"])
    assert ("sharing" in made) == sharing
    if sharing:
        (entry,) = made["sharing"]["timeSlicing"]["resources"]
        assert entry == {"name": "nvidia.com/gpu", "replicas": count}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("replicas: 0", "replicas"),
        ("replicas: 100001", "replicas"),
        ("replicas: '4'", "replicas"),
        ("replicas: 4\nconfig: {map: {a: 'version: v1'}}", "replicas and config: give one"),
        ("replicas: 4\nconfig: {name: own}", "replicas and config: give one"),
        ("simulated: {enabled: true, scenario: homlab}", "homelab"),
        ("simulated: {enabled: true, scenario: relative/file.yaml}", "scenario"),
        ("image: {digest: 'sha256:0'}", "digest"),
        ("image: {repository: nvidia/k8s-device-plugin}", "image.repository is that of NVIDIA's"),
        ("updateStrategy: {rollingUpdate: {maxUnavailable: ten}}", "maxUnavailable"),
        ("updateStrategy: {rollingUpdate: {maxUnavailable: 0}}", "maxUnavailable"),
        ("extraVolumes: [{emptyDir: {}}]", "name"),
    ],
)
def test_values_that_cannot_work_are_refused(values: str, said: str) -> None:
    assert said in refusal(values)


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
        if name.startswith("chart ") or one["kind"] in base:
            assert one["metadata"]["labels"]["app.kubernetes.io/version"] == VERSION
    selector = the(found, "DaemonSet")["spec"]["selector"]["matchLabels"]
    assert "app.kubernetes.io/version" not in selector, "a selector never changes"


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
    assert allowed["allowPrivilegeEscalation"] == privileged
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
