"""Every line of the promise on rights, on what kustomize and the chart make."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.deploy.choices import CHOICES, RENDERED
from tests.deploy.policy import OWN_FOLDER, OWN_GROUP, Rights, rights_of
from tests.deploy.rendering import (
    COMPONENTS,
    DEPLOY,
    NAMESPACE,
    OVERLAYS,
    PLUGIN,
    ROOT,
    built,
    built_with,
    chart,
    names,
    of_kind,
    plugin_of,
    pod_of,
    the,
    variables,
)

NONE = Rights()
POD_METRICS = Rights(
    root=True,
    host_pid=True,
    readable=frozenset({"/var/lib/kubelet/pod-resources", "/var/log/pods"}),
)
ROOT_ALONE = Rights(root=True)
CDI = Rights(root=True, writable=frozenset({"/var/run/cdi"}), readable=frozenset({"/"}))
REPORTS = {"patch nodes/status", "create events in default", "patch events in default"}
LABELS = {"get nodes", "list nodes", "watch nodes"}
CLAIMS = {
    "get resourceclaims",
    "update resourceclaims/status",
    "associated-node:update resourceclaims/driver",
}
SLICES = {
    f"{verb} resourceslices" for verb in ("get", "list", "watch", "create", "update", "delete")
}
DRA = Rights(
    group=True,
    writable=frozenset({"/var/run/cdi", "/var/lib/kubelet/plugins/gpu.gpuplugin.dev"}),
    readable=frozenset({"/"}),
    token=True,
    api=frozenset({"get nodes", *CLAIMS, *SLICES}),
)
POD_FILES = frozenset({"/var/lib/gpuplugin-sim"})
LOADS = Rights(
    root=True,
    readable=frozenset({"/var/lib/kubelet/pod-resources"}),
    token=True,
    api=frozenset({"list pods", "watch pods"}),
)
COST = {
    "root-without-capabilities": ROOT_ALONE,
    "pod-metrics": POD_METRICS,
    "observability": POD_METRICS,
    "pod-metrics-k0s": replace(
        POD_METRICS, readable=frozenset({"/var/lib/k0s/kubelet/pod-resources", "/var/log/pods"})
    ),
    "pod-metrics-microk8s": replace(
        POD_METRICS,
        readable=frozenset(
            {"/var/snap/microk8s/common/var/lib/kubelet/pod-resources", "/var/log/pods"}
        ),
    ),
    "cdi": CDI,
    "classic-registration": Rights(
        root=True, writable=frozenset({"/var/lib/kubelet/device-plugins"})
    ),
    "privileged-driver": Rights(privileged=True),
    "set-time-slices": Rights(root=True, sys_admin=True),
    "selinux": Rights(selinux=True),
    "openshift": Rights(selinux=True),
    "node-reports": Rights(token=True, api=frozenset(REPORTS)),
    "node-labels": Rights(token=True, api=frozenset({"patch nodes"})),
    "node-labels-nfd": Rights(
        token=True,
        api=frozenset(f"{verb} nodefeatures in {NAMESPACE}" for verb in ("get", "create", "patch")),
    ),
    "node-labels-file": Rights(
        root=True, writable=frozenset({"/etc/kubernetes/node-feature-discovery/features.d"})
    ),
    "per-node-config": Rights(token=True, api=frozenset(LABELS)),
    "dra": DRA,
    "simulated": Rights(writable=POD_FILES),
    "simulated-loads": LOADS,
    "simulated-pools": Rights(token=True, api=frozenset({"get nodes"})),
}
"""What each component costs; the others cost nothing."""

OVERLAY_COST = {
    "classic": COST["classic-registration"],
    "dra": DRA,
    "per-node-config": COST["per-node-config"],
    "simulated": COST["simulated"],
    "simulated-pools": replace(LOADS, writable=POD_FILES, api=LOADS.api | {"get nodes"}),
    "talos-cdi": Rights(root=True, privileged=True, writable=CDI.writable, readable=CDI.readable),
}


@pytest.mark.parametrize("name", names(COMPONENTS))
def test_a_component_costs_what_is_said_and_no_more(name: str) -> None:
    assert rights_of(built_with(name)) == COST.get(name, NONE)


@pytest.mark.parametrize("name", names(OVERLAYS))
def test_an_overlay_costs_what_its_components_cost(name: str) -> None:
    assert rights_of(built(OVERLAYS / name)) == OVERLAY_COST.get(name, NONE)


@pytest.mark.parametrize("name", CHOICES)
def test_the_chart_costs_what_the_components_cost(name: str) -> None:
    choice = CHOICES[name]
    assert rights_of(chart(choice.values)) == rights_of(built_with(*choice.components))


def test_all_costs_are_in_the_page_on_security() -> None:
    page = (ROOT / "docs/security.md").read_text()
    for name, cost in COST.items():
        row = re.search(rf"^\| `{name}` \|.*$", page, re.MULTILINE)
        assert row is not None, f"{name} is not in docs/security.md"
        words = {
            "UID 0": cost.root,
            "privileged": cost.privileged,
            "CAP_SYS_ADMIN": cost.sys_admin,
            "spc_t": cost.selinux,
            "hostPID": cost.host_pid,
            "group": cost.group,
            "token": cost.token,
        }
        for word, expected in words.items():
            assert (word in row[0]) == expected, (name, word)
        for path in cost.writable | cost.readable:
            assert f"`{path}`" in row[0], (name, path)
        for right in cost.api:
            verb, resource = right.split()[:2]
            assert verb in row[0], (name, right)
            assert resource in row[0], (name, right)


@pytest.mark.parametrize("name", RENDERED)
def test_rules_without_exception(name: str) -> None:
    found = RENDERED[name]()
    pod, container = pod_of(found), plugin_of(found)
    security = container["securityContext"]
    privileged, sys_admin = rights_of(found).privileged, rights_of(found).sys_admin

    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is (privileged or sys_admin)
    added = {"add": ["SYS_ADMIN"]} if sys_admin else {}
    assert security.get("capabilities") == (None if privileged else {"drop": ["ALL"], **added})
    assert security["runAsUser"] == security["runAsGroup"]
    assert security["runAsUser"] in {0, 65534}
    assert security["runAsNonRoot"] is (security["runAsUser"] == 65534)
    own: dict[str, object] = {}
    if rights_of(found).selinux:
        own["seLinuxOptions"] = {"type": "spc_t"}
    if rights_of(found).group:
        own["supplementalGroups"] = [OWN_GROUP]
    assert pod["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}} | own
    assert not {"hostNetwork", "hostIPC", "shareProcessNamespace"} & pod.keys()
    assert pod["priorityClassName"] == "system-node-critical"
    assert pod["enableServiceLinks"] is False

    for one in (container, *pod["initContainers"]):
        assert one["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in one["resources"]["limits"]
        assert re.search(r":[^:/]*\d[^:/]*$", one["image"]), "an image of a version"

    strategy = the(found, "DaemonSet")["spec"]["updateStrategy"]
    rolling = {"maxUnavailable": 1, "maxSurge": 0}
    if variables(container).get("GPUPLUGIN_ALLOCATION") == "dra":
        rolling = {"maxUnavailable": 0, "maxSurge": 1}
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": rolling}
    assert the(found, "ServiceAccount")["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] == the(found, "ServiceAccount")["metadata"]["name"]


@pytest.mark.parametrize("name", RENDERED)
def test_the_init_container_hands_a_folder_over_and_can_do_nothing_else(name: str) -> None:
    found = RENDERED[name]()
    pod = pod_of(found)
    inits = {one["name"]: one for one in pod["initContainers"]}
    init = inits.pop("hand-over-socket-folder")
    rights = rights_of(found)
    assert set(inits) == {
        *({"hand-over-claim-folders"} if rights.group else ()),
        *({"hand-over-pod-files"} if rights.writable & POD_FILES else ()),
    }
    for one in (init, *inits.values()):
        assert one["securityContext"] == {
            "runAsUser": 0,
            "runAsGroup": 0,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["CHOWN"]},
        }
    (mount,) = init["volumeMounts"]
    (volume,) = [one for one in pod["volumes"] if one["name"] == mount["name"]]
    assert volume["hostPath"]["path"].endswith(OWN_FOLDER)
    assert volume["hostPath"]["type"] == "DirectoryOrCreate"
    assert mount["mountPath"].endswith(f"kubelet/{OWN_FOLDER}")
    script = " ".join(init["command"][2].split())
    steps = ['chown 0:0 "$D"', 'chmod 0750 "$D"']
    if not rights_of(found).root:
        steps.append('chown 65534:65534 "$D"')
    assert script == f"D={mount['mountPath']}; {' && '.join(steps)}"


@pytest.mark.parametrize("name", RENDERED)
def test_who_needs_no_right_to_the_api_gets_no_role(name: str) -> None:
    found = RENDERED[name]()
    rights = rights_of(found)
    assert rights.token == bool(rights.api)
    account = the(found, "ServiceAccount")["metadata"]
    for one in (*of_kind(found, "ClusterRoleBinding"), *of_kind(found, "RoleBinding")):
        (subject,) = one["subjects"]
        assert (subject["name"], subject["namespace"]) == (account["name"], account["namespace"])
        kind = one["roleRef"]["kind"]
        roles = {role["metadata"]["name"] for role in of_kind(found, kind)}
        assert one["roleRef"]["name"] in roles


@pytest.mark.parametrize("name", RENDERED)
def test_names_that_are_referred_to_exist(name: str) -> None:
    found = RENDERED[name]()
    pod = pod_of(found)
    maps = {one["metadata"]["name"] for one in of_kind(found, "ConfigMap")}
    assert {one["configMap"]["name"] for one in pod["volumes"] if "configMap" in one} <= maps
    volumes = {one["name"] for one in pod["volumes"]}
    mounted = {
        mount["name"]
        for one in (*pod["containers"], *pod["initContainers"])
        for mount in one["volumeMounts"]
    }
    assert mounted == volumes, "every volume is mounted, every mount has one"
    classes = [one["metadata"]["name"] for one in of_kind(found, "RuntimeClass")]
    made = name.endswith("runtime-class") or name == "overlay talos"
    assert classes == ([pod["runtimeClassName"]] if made else [])
    labels = the(found, "DaemonSet")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        the(found, "DaemonSet")["spec"]["selector"]["matchLabels"],
        *(one["spec"]["selector"] for one in of_kind(found, "Service")),
        *(one["spec"]["podSelector"]["matchLabels"] for one in of_kind(found, "NetworkPolicy")),
        *(one["spec"]["selector"]["matchLabels"] for one in of_kind(found, "PodMonitor")),
    ]
    for selector in selectors:
        assert selector.items() <= labels.items()
    for one in of_kind(found, "ServiceMonitor"):
        wanted = one["spec"]["selector"]["matchLabels"].items()
        assert wanted <= the(found, "Service")["metadata"]["labels"].items()


def test_registration_is_by_the_plugin_watcher_unless_asked_otherwise() -> None:
    for name in names(OVERLAYS):
        container = plugin_of(built(OVERLAYS / name))
        assert not [one for one in container["args"] if one.startswith("--registration")]
        way = variables(container).get("GPUPLUGIN_REGISTRATION")
        assert way == ("classic" if name == "classic" else None)


def test_the_service_serves_every_node() -> None:
    service = the(built(OVERLAYS / "talos"), "Service")
    assert service["metadata"]["name"] == "nvidia-device-plugin-metrics"
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["ports"] == [{"name": "metrics", "port": 2112, "targetPort": "metrics"}]


def test_a_network_policy_lets_prometheus_in_and_nothing_out() -> None:
    spec = the(built_with("network-policy"), "NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in spec or spec["egress"] == []
    (rule,) = spec["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": "metrics"}]
    assert rule["from"][0].keys() == {"namespaceSelector"}


def test_no_right_is_in_the_base_files_of_other_folders() -> None:
    """Workloads pass the restricted standard: they are what users copy."""
    for folder in names(DEPLOY / "workloads"):
        for one in built(DEPLOY / "workloads" / folder):
            if one["kind"] == "ResourceClaimTemplate":
                continue
            spec = one["spec"] if one["kind"] == "Pod" else one["spec"]["template"]["spec"]
            assert spec["securityContext"]["runAsNonRoot"] is True
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert spec["automountServiceAccountToken"] is False
            assert "volumes" not in spec
            (container,) = spec["containers"]
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            one_gpu = {"limits": {"nvidia.com/gpu": 1}}
            by_claim = {"claims": [{"name": "gpu"}]}
            assert container["resources"] == (by_claim if folder == "dra-claims" else one_gpu)


def test_labels_of_the_objects() -> None:
    for name in names(OVERLAYS):
        for one in built(OVERLAYS / name):
            if one["kind"] not in {"Namespace", "RuntimeClass"}:
                assert one["metadata"]["labels"]["app.kubernetes.io/name"] == PLUGIN
