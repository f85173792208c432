"""The chart's notes on a cluster: helm asks an API server for nodes and the namespace."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from tests.deploy.binaries import program
from tests.deploy.rendering import CHART, NAMESPACE, PLUGIN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

CORE = {"nodes": "Node", "namespaces": "Namespace", "configmaps": "ConfigMap"}
CORE |= {"services": "Service", "serviceaccounts": "ServiceAccount", "secrets": "Secret"}
DRA = "resource.k8s.io/v1"
GROUPS = {
    DRA: {"deviceclasses": "DeviceClass"},
    "rbac.authorization.k8s.io/v1": {
        "clusterroles": "ClusterRole",
        "clusterrolebindings": "ClusterRoleBinding",
    },
    "admissionregistration.k8s.io/v1": {
        "validatingadmissionpolicies": "ValidatingAdmissionPolicy",
        "validatingadmissionpolicybindings": "ValidatingAdmissionPolicyBinding",
    },
    "apps/v1": {"daemonsets": "DaemonSet"},
    "node.k8s.io/v1": {"runtimeclasses": "RuntimeClass"},
}
NAMESPACED = {"daemonsets", "configmaps", "services", "serviceaccounts", "secrets"}
PRIVILEGED = {"pod-security.kubernetes.io/enforce": "privileged"}
LABEL = f"kubectl label namespace {NAMESPACE} pod-security.kubernetes.io/enforce=privileged"


def _resources(version: str, kinds: Mapping[str, str]) -> dict[str, Any]:
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": version,
        "resources": [
            {
                "name": name,
                "singularName": "",
                "namespaced": name in NAMESPACED,
                "kind": kind,
                "verbs": ["get", "list"],
            }
            for name, kind in kinds.items()
        ],
    }


def _group(version: str) -> dict[str, Any]:
    one = {"groupVersion": version, "version": version.rpartition("/")[2]}
    return {"name": version.partition("/")[0], "versions": [one], "preferredVersion": one}


@contextmanager
def _cluster(
    nodes: list[dict[str, str]],
    namespace: dict[str, str],
    class_made_by: dict[str, str] | None = None,
    *,
    version: str = "1.37",
    counts: str = "0",
    device_class: str = "",
    config: dict[str, str] | None = None,
) -> Iterator[str]:
    """Address of an API server with nodes and a namespace of these labels.

    There is a RuntimeClass nvidia if `class_made_by` gives its annotations, and a DeviceClass of
    this name for nvidia.com/gpu. Nodes have `counts` of that resource by a device plugin. A
    ConfigMap `mine` has `config`.
    """
    made = [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": f"n{number}", "labels": labels},
            "status": {"allocatable": {"nvidia.com/gpu": counts}},
        }
        for number, labels in enumerate(nodes)
    ]
    classes = [
        {
            "apiVersion": DRA,
            "kind": "DeviceClass",
            "metadata": {"name": device_class},
            "spec": {"extendedResourceName": "nvidia.com/gpu"},
        }
    ]
    own = {"name": NAMESPACE, "labels": namespace}
    answers: dict[str, dict[str, Any]] = {
        "/version": {"major": "1", "minor": version[2:], "gitVersion": f"v{version}.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "groups": [_group(version) for version in GROUPS]},
        "/api/v1": _resources("v1", CORE),
        **{f"/apis/{version}": _resources(version, kinds) for version, kinds in GROUPS.items()},
        "/api/v1/nodes": {"apiVersion": "v1", "kind": "NodeList", "metadata": {}, "items": made},
        f"/api/v1/namespaces/{NAMESPACE}": {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": own,
        },
        f"/api/v1/namespaces/{NAMESPACE}/secrets": {
            "apiVersion": "v1",
            "kind": "SecretList",
            "metadata": {},
            "items": [],
        },
    }
    if class_made_by is not None:
        answers["/apis/node.k8s.io/v1/runtimeclasses/nvidia"] = {
            "apiVersion": "node.k8s.io/v1",
            "kind": "RuntimeClass",
            "metadata": {
                "name": "nvidia",
                "annotations": class_made_by,
                "labels": {"app.kubernetes.io/managed-by": "Helm"},
            },
            "handler": "nvidia",
        }
    answers[f"/apis/{DRA}/deviceclasses"] = {
        "apiVersion": DRA,
        "kind": "DeviceClassList",
        "metadata": {},
        "items": classes if device_class else [],
    }
    if config is not None:
        answers[f"/api/v1/namespaces/{NAMESPACE}/configmaps/mine"] = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "mine", "namespace": NAMESPACE},
            "data": config,
        }
    missing = {"kind": "Status", "apiVersion": "v1", "reason": "NotFound", "code": 404}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.partition("?")[0])
            body = json.dumps(missing if found is None else found).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *_arguments: object) -> None:  # noqa: A002 - its name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _notes(address: str, home: Path, *more: str) -> str:
    return _installed(address, home, *more).partition("\nNOTES:\n")[2]


def _installed(address: str, home: Path, *more: str) -> str:
    """What an installation would make, and the notes behind it."""
    words = ["install", PLUGIN, str(CHART), "--namespace", NAMESPACE, "--dry-run=server"]
    words += ["--disable-openapi-validation", "--kube-apiserver", address, *more]
    done = subprocess.run(
        [program("helm"), *words],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": os.devnull},
    )
    return done.stdout


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([{"a": "b"}, {"node-type": "gpu"}, {"nvidia.com/gpu.present": "true"}], "2 of 3 nodes"),
        ([{"feature.node.kubernetes.io/pci-0302_10de.present": "true"}], "1 of 1 nodes"),
        ([{"extensions.talos.dev/nvidia-container-toolkit-lts": "580.1-v1.19.1"}], "1 of 1 nodes"),
        ([{"nvidia.com/gpu.present": "false"}, {"node-type": "cpu"}], "0 of 2 nodes"),
    ],
)
def test_nodes_that_the_affinity_reaches_are_counted(
    nodes: list[dict[str, str]], said: str, tmp_path: Path
) -> None:
    with _cluster(nodes, PRIVILEGED) as address:
        notes = _notes(address, tmp_path)
    assert said in notes
    assert ("NO POD WILL RUN" in notes) == said.startswith("0")
    assert LABEL not in notes


@pytest.mark.parametrize("labels", [{}, {"pod-security.kubernetes.io/enforce": "baseline"}])
def test_a_namespace_that_refuses_the_pods_is_told(labels: dict[str, str], tmp_path: Path) -> None:
    with _cluster([{"node-type": "gpu"}], labels) as address:
        assert LABEL in _notes(address, tmp_path)


def test_without_affinity_nothing_is_counted(tmp_path: Path) -> None:
    with _cluster([{}], PRIVILEGED) as address:
        assert (
            "affinity wants"
            not in _notes(address, tmp_path, "--set", "affinity=null").split("Does it run?")[0]
        )


_IN = "{{matchExpressions: [{{key: pool, operator: In, values: [{}]}}]}}"


@pytest.mark.parametrize(
    ("terms", "count"),
    [
        (f"[{_IN.format('gpu, ml')}]", 2),
        ("[{matchExpressions: [{key: pool, operator: NotIn, values: [gpu]}]}]", 2),
        ("[{matchExpressions: [{key: size, operator: Exists}]}]", 1),
        ("[{matchExpressions: [{key: size, operator: DoesNotExist}]}]", 2),
        ("[{matchExpressions: [{key: size, operator: Gt, values: ['7']}]}]", 1),
        ("[{matchExpressions: [{key: size, operator: Lt, values: ['8']}]}]", 0),
        (
            "[{matchExpressions: [{key: pool, operator: Exists}, {key: size, operator: Exists}]}]",
            1,
        ),
        (f"[{_IN.format('gpu')}, {_IN.format('ml')}]", 2),
    ],
)
def test_an_affinity_of_ones_own_is_counted_by_its_own_labels(
    terms: str, count: int, tmp_path: Path
) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(
        "affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: "
        f"{{nodeSelectorTerms: {terms}}}}}}}"
    )
    nodes = [{"pool": "gpu", "size": "8"}, {"pool": "ml"}, {"node-type": "gpu"}]
    with _cluster(nodes, PRIVILEGED) as address:
        notes = _notes(address, tmp_path, "--values", str(values))
    assert f"{count} of 3 nodes" in notes
    assert ("NO POD WILL RUN" in notes) == (count == 0)
    assert "node-type=gpu" not in notes


BY_OTHERS = {"meta.helm.sh/release-name": "gpu-operator"}
BY_THIS = {"meta.helm.sh/release-name": PLUGIN, "meta.helm.sh/release-namespace": NAMESPACE}


@pytest.mark.parametrize(
    ("made_by", "create", "makes"),
    [
        (None, "null", True),
        ({}, "null", False),
        (BY_OTHERS, "null", False),
        (BY_THIS, "null", True),
        (None, "false", False),
    ],
)
def test_a_runtime_class_of_others_is_used_and_left_alone(
    made_by: dict[str, str] | None, create: str, makes: bool, tmp_path: Path
) -> None:
    """k3s, RKE2 and the GPU operator make one; an uninstall would take it from them."""
    with _cluster([{"node-type": "gpu"}], PRIVILEGED, made_by) as address:
        given = [] if create == "null" else ["--set", f"runtimeClass.create={create}"]
        manifest, _, notes = _installed(address, tmp_path, *given).partition("\nNOTES:\n")
    assert ("kind: RuntimeClass" in manifest) == makes
    assert "runtimeClassName: nvidia" in manifest
    assert ("stays after an uninstall" in notes) == makes
    assert ("of the cluster is used" in notes) != makes


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["a", "default"], "default"),
        (["a"], "a"),
        (["a", "b"], "config.yaml"),
        ([], "config.yaml"),
    ],
)
def test_the_file_of_a_config_map_that_exists_is_chosen_as_nvidias_chart_does(
    files: list[str], chosen: str, tmp_path: Path
) -> None:
    """By its fallback strategies, named and then single."""
    with _cluster([], PRIVILEGED, config=dict.fromkeys(files, "version: v1")) as address:
        manifest = _installed(address, tmp_path, "--set", "config.name=mine")
    assert f"--config-file=/etc/gpuplugin/{chosen}\n" in manifest


def test_notes_on_dra_tell_what_stands_in_its_way(tmp_path: Path) -> None:
    given = ("--set", "allocation=dra")
    nodes = [{"node-type": "gpu"}]
    with _cluster(nodes, PRIVILEGED) as address:
        sound = _notes(address, tmp_path, *given)
    assert "kubectl get resourceslices" in sound
    assert "Allocatable" not in sound
    for word in ("feature gates", "DeviceClass", "device plugin"):
        assert word not in sound
    with _cluster(
        nodes, PRIVILEGED, version="1.35", counts="10", device_class="gpu.nvidia.com"
    ) as address:
        notes = _notes(address, tmp_path, *given)
        assert "DeviceClass" not in _notes(address, tmp_path), "it is no concern of a device plugin"
    assert "Kubernetes v1.35.0 needs feature gates" in notes
    assert "The DeviceClass gpu.nvidia.com has the extended resource nvidia.com/gpu, too" in notes
    assert "Node n0 has nvidia.com/gpu: 10 of a device plugin" in notes
    with _cluster(nodes, PRIVILEGED, device_class="gpu.gpuplugin.dev") as address:
        assert "The DeviceClass" not in _notes(address, tmp_path, *given), "it is this release's"
