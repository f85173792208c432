"""Values and configuration files that the chart refuses, and those that it must let pass."""

from __future__ import annotations

import re

import pytest
import yaml

from gpuplugin.config.load import load_settings
from gpuplugin.config.loaded import ConfigError
from tests.deploy.rendering import ROOT, Object, Refused, chart, lint, plugin_of, the
from tools.configuration import keys

PUBLISHED = sorted((ROOT / "tests/unit/config/published").iterdir())
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
        ("gfd: {enabled: true}", "gfd.enabled: the plugin writes these labels itself: delete it"),
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


def test_what_the_plugin_takes_without_a_word_passes() -> None:
    """Files as people publish them, with the plugin's verdict."""
    accepted = {}
    for path in PUBLISHED:
        try:
            warnings = load_settings({}, {}, str(path)).warnings
        except ConfigError:
            continue
        if not any("is not a known key" in str(one) for one in warnings):
            accepted[path.stem] = path.read_text()
    assert len(accepted) > 5
    assert chart(yaml.safe_dump({"config": {"default": next(iter(accepted)), "map": accepted}}))


@pytest.mark.parametrize("name", ["configmap", "cluster-policy", "deployment"])
def test_objects_of_the_cluster_are_no_configuration(name: str) -> None:
    (path,) = [one for one in PUBLISHED if one.stem == name]
    assert re.search(r"is a whole \w+: give the text", refusal(config(path.read_text())))


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
        ("config: {default: mine}", "there are no files to choose from"),
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
