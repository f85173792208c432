"""The shipped manifests: where they run, with which rights, and in words that the program knows."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpuplugin.config.options import CONFIG_FILE_FLAG, OPTIONS
from gpuplugin.daemon.serving.sockets import KubeletDirs
from tests.unit.deploy.manifests import (
    BASE,
    NODE,
    PLUGIN,
    base_manifest,
    base_manifests,
    can_be_scheduled,
    plugin_container,
    pod_spec,
    shipped_settings,
)

DEFAULT = Path(__file__).parents[3] / "gpuplugin" / "config" / "default.yaml"
RUNTIME_VARIABLES = {"NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"}
"""Read by the NVIDIA container runtime, not by the plugin."""

ORDINARY = {"kubernetes.io/os": "linux", "kubernetes.io/hostname": "one"}
TALOS = "extensions.talos.dev/nvidia-container-toolkit"
NFD = "feature.node.kubernetes.io/pci-"


def containers() -> list[dict[str, Any]]:
    spec = pod_spec()
    return [*spec["initContainers"], *spec["containers"]]


def test_every_file_of_the_base_is_used() -> None:
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    used = {*kustomization["resources"], "kustomization.yaml"}
    assert {path.name for path in BASE.iterdir()} == used
    assert kustomization["namespace"] == base_manifest("Namespace")["metadata"]["name"]


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param({f"{NFD}10de.present": "true"}, id="NFD by vendor"),
        pytest.param({f"{NFD}0300_10de.present": "true"}, id="NFD, VGA controller"),
        pytest.param({f"{NFD}0302_10de.present": "true"}, id="NFD, 3D controller"),
        pytest.param({"nvidia.com/gpu.present": "true"}, id="GPU feature discovery"),
        pytest.param({f"{TALOS}-lts": "580.178.04-v1.19.1"}, id="Talos, LTS"),
        pytest.param({f"{TALOS}-production": "595.91.07"}, id="Talos, production"),
        pytest.param({"node-type": "gpu"}, id="by hand"),
    ],
)
def test_one_label_is_enough_for_a_node(labels: dict[str, str]) -> None:
    assert can_be_scheduled(ORDINARY | labels)


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param({}, id="none"),
        pytest.param({f"{NFD}0300_1002.present": "true"}, id="another vendor"),
        pytest.param({f"{NFD}0200_15b3.present": "true"}, id="a network card"),
        pytest.param({"nvidia.com/gpu.present": "false"}, id="told that there is none"),
        pytest.param({"node-type": "cpu"}, id="another type"),
        pytest.param({"nvidia.com/gpu.count": "8"}, id="another label"),
    ],
)
def test_a_node_without_such_a_label_is_left_alone(labels: dict[str, str]) -> None:
    assert not can_be_scheduled(ORDINARY | labels)


def test_taints_of_gpu_nodes_are_tolerated() -> None:
    assert pod_spec()["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "CriticalAddonsOnly", "operator": "Exists"},
    ]
    assert pod_spec()["priorityClassName"] == "system-node-critical"


def test_the_plugin_has_no_rights() -> None:
    container = plugin_container()
    assert container["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65534,
        "runAsGroup": 65534,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod_spec()["automountServiceAccountToken"] is False
    assert base_manifest("ServiceAccount")["automountServiceAccountToken"] is False
    assert pod_spec()["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod_spec().keys()


def test_the_init_container_may_only_hand_a_folder_over() -> None:
    (init,) = pod_spec()["initContainers"]
    security = init["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN"]}
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert [mount["name"] for mount in init["volumeMounts"]] == ["socket-folder"]


def test_of_the_host_only_the_plugins_own_folder_is_mounted() -> None:
    own = str(KubeletDirs(Path("/var/lib/kubelet")).plugin_watcher)
    (volume,) = [one for one in pod_spec()["volumes"] if "hostPath" in one]
    assert volume["hostPath"] == {"path": own, "type": "DirectoryOrCreate"}
    for container in containers():
        mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
        assert mounts[volume["name"]] == own, "the program looks for it there"


def test_pod_security_lets_the_host_path_pass() -> None:
    labels = base_manifest("Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "privileged"


def test_the_driver_comes_with_the_runtime_class() -> None:
    text = (BASE.parent / "components/runtime-class/runtimeclass.yaml").read_text()
    runtime_class = yaml.safe_load(text)
    assert runtime_class["metadata"]["name"] == pod_spec()["runtimeClassName"]
    assert runtime_class["handler"] == "nvidia"
    given = {one["name"]: one.get("value", "") for one in plugin_container()["env"]}
    assert given["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert "utility" in given["NVIDIA_DRIVER_CAPABILITIES"]


def test_the_program_knows_every_flag_and_variable() -> None:
    container = plugin_container()
    flags = {word.partition("=")[0] for word in container["args"]}
    assert flags <= {CONFIG_FILE_FLAG, *(flag for one in OPTIONS for flag in one.flags)}
    variables = {one["name"] for one in container["env"]}
    assert variables <= {*RUNTIME_VARIABLES, *(name for one in OPTIONS for name in one.variables)}


def test_what_the_settings_come_to(tmp_path: Path) -> None:
    settings = shipped_settings(tmp_path)
    assert settings.daemon.node_name == NODE
    assert settings.daemon.backend == "nvml"
    assert settings.daemon.way_of_registration == "watcher"
    assert settings.daemon.log_format == "json"
    assert settings.flags.fail_on_init_error is False, "a node without a driver waits for one"


def test_the_shipped_configuration_is_the_default() -> None:
    (text,) = base_manifest("ConfigMap")["data"].values()
    assert yaml.safe_load(text) == yaml.safe_load(DEFAULT.read_text())


def test_the_ports_are_one(tmp_path: Path) -> None:
    container = plugin_container()
    (port,) = container["ports"]
    assert shipped_settings(tmp_path).daemon.listen_address == f"0.0.0.0:{port['containerPort']}"
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[name]["httpGet"]["port"] == port["name"]
    (served,) = base_manifest("Service")["spec"]["ports"]
    assert (served["port"], served["targetPort"]) == (port["containerPort"], port["name"])


def test_the_selectors_find_the_pods() -> None:
    daemon_set = base_manifest("DaemonSet")["spec"]
    labels = daemon_set["template"]["metadata"]["labels"]
    assert labels == {"app.kubernetes.io/name": PLUGIN}
    assert daemon_set["selector"]["matchLabels"] == labels
    assert base_manifest("Service")["spec"]["selector"] == labels


def test_names_that_are_referred_to_exist() -> None:
    spec = pod_spec()
    names = {(one["kind"], one["metadata"]["name"]) for one in base_manifests()}
    (config,) = [one["configMap"]["name"] for one in spec["volumes"] if "configMap" in one]
    assert ("ConfigMap", config) in names
    assert ("ServiceAccount", spec["serviceAccountName"]) in names
    assert ("Service", "nvidia-device-plugin-metrics") in names
    volumes = {one["name"] for one in spec["volumes"]}
    assert volumes == {mount["name"] for one in containers() for mount in one["volumeMounts"]}


def test_never_two_plugins_on_a_node() -> None:
    strategy = base_manifest("DaemonSet")["spec"]["updateStrategy"]
    assert strategy["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}


@pytest.mark.parametrize("container", containers(), ids=lambda one: one["name"])
def test_every_container_has_an_image_of_a_version_and_limits(container: dict[str, Any]) -> None:
    assert container["image"] == "gpuplugin:0.1.0"
    assert container["imagePullPolicy"] == "IfNotPresent"
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert "memory" in container["resources"]["limits"]


@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv"
)
def test_the_folder_is_handed_over_every_time(tmp_path: Path) -> None:
    """With CAP_CHOWN alone, as in the pod: at the first start, and when it is the plugin's."""
    (init,) = pod_spec()["initContainers"]
    own = str(KubeletDirs(Path("/var/lib/kubelet")).plugin_watcher)
    folder = tmp_path / "gpuplugin"
    folder.mkdir(mode=0o755)
    command = [word.replace(own, str(folder)) for word in init["command"]]
    for _ in range(2):
        subprocess.run(
            ["setpriv", "--bounding-set=-all,+chown", "--no-new-privs", *command],
            check=True,
            timeout=20,
        )
        status = folder.stat()
        assert (status.st_uid, status.st_gid) == (65534, 65534)
        assert stat.S_IMODE(status.st_mode) == 0o750
        folder.chmod(0o700)
