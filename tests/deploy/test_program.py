"""The program understands what the shipped files tell it, and the proof of sharing is one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from gpuplugin.cli.options import given_options
from gpuplugin.cli.parser import build_parser
from gpuplugin.config.load import load_settings
from gpuplugin.config.options import OPTIONS
from gpuplugin.config.values import DEFAULT_CDI_ROOT
from gpuplugin.daemon.serving.sockets import KubeletDirs
from sim.kubelet import Kubelet, Phase
from sim.kubelet.control import pods_from_yaml
from sim.node.scenario import load_scenario
from tests.deploy.choices import RENDERED
from tests.deploy.rendering import (
    DEPLOY,
    KUSTOMIZE,
    OVERLAYS,
    Object,
    built,
    built_with,
    names,
    plugin_of,
    pod_of,
    the,
    variables,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gpuplugin.config.settings import Settings

RESOURCE = "nvidia.com/gpu"
PARSER = build_parser("run")
RUNTIME = {"NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"}
"""Read by NVIDIA's runtime, not by the plugin."""

WORKLOADS = DEPLOY / "workloads"
PROOFS = [name for name in names(WORKLOADS) if name.startswith("time-slicing")]


def environment(found: Iterable[Object]) -> dict[str, str]:
    """Variables of the plugin; the node is called `one`."""
    given = variables(plugin_of(found))
    return {name: text if isinstance(text, str) else "one" for name, text in given.items()}


def settings_of(found: list[Object], folder: Path) -> Settings:
    """What the plugin makes of its command, variables and configuration."""
    container = plugin_of(found)
    (volume,) = [
        one["configMap"]["name"] for one in pod_of(found)["volumes"] if one["name"] == "config"
    ]
    for one in found:
        if one["kind"] == "ConfigMap" and one["metadata"]["name"] == volume:
            for name, text in one["data"].items():
                (folder / name).write_text(text)
    words = [word.replace("/etc/gpuplugin", str(folder)) for word in container["args"]]
    parsed = PARSER.parse_args([*container["command"][1:], *words])
    strict = {"GPUPLUGIN_STRICT_CONFIG": "true"}
    return load_settings(
        given_options(parsed), environment(found) | strict, parsed.config_file
    ).settings


@pytest.mark.parametrize("name", RENDERED)
def test_every_variable_is_one_and_the_settings_are_accepted(name: str, tmp_path: Path) -> None:
    found = RENDERED[name]()
    known = {variable for one in OPTIONS for variable in one.variables}
    assert environment(found).keys() <= known | RUNTIME
    settings_of(found, tmp_path)


def test_what_components_switch_on(tmp_path: Path) -> None:
    def made(*components: str) -> Settings:
        return settings_of(built_with(*components), tmp_path)

    assert made().daemon.way_of_registration == "watcher"
    assert made("classic-registration").daemon.way_of_registration == "classic"
    assert made("pod-metrics").daemon.pod_metrics is True
    assert made("node-labels").daemon.node_labels == "node"
    assert made("node-labels-nfd").daemon.node_labels == "node-feature"
    in_file = made("node-labels-file")
    assert in_file.daemon.node_labels == "file"
    folder = Path(in_file.flags.gfd.output_file).parent
    mounts = plugin_of(built_with("node-labels-file"))["volumeMounts"]
    assert str(folder) in [one["mountPath"] for one in mounts]
    assert made("node-labels").daemon.node_name == "one"
    assert made("node-reports").daemon.kubernetes_reports is True
    assert made("node-reports").daemon.node_name == "one"
    assert made("cdi").flags.plugin.device_list_strategy == ["cdi-cri"]
    assert made("simulated").daemon.backend == "sim"
    assert made("simulated").daemon.pod_files == "/var/lib/gpuplugin-sim"
    assert made("simulated", "simulated-loads").daemon.host_proc != Path("/proc")


@pytest.mark.parametrize("count", [4, 10, 20])
def test_replicas(count: int, tmp_path: Path) -> None:
    settings = settings_of(built(OVERLAYS / f"replicas-{count}"), tmp_path)
    sharing = settings.sharing.time_slicing
    assert sharing is not None
    (entry,) = sharing.resources
    assert (entry.name, entry.replicas) == (RESOURCE, count)
    assert sharing.fail_requests_greater_than_one is True
    assert sharing.rename_by_default is False


def test_mounts_are_where_the_program_looks(tmp_path: Path) -> None:
    found = built_with("pod-metrics", "cdi", "classic-registration")
    settings = settings_of(found, tmp_path)
    mounts = {one["name"]: one["mountPath"] for one in plugin_of(found)["volumeMounts"]}
    dirs = KubeletDirs(settings.daemon.kubelet_dir)
    assert mounts["socket-folder"] == str(dirs.plugin_watcher)
    assert mounts["device-plugins"] == str(settings.daemon.kubelet_dir / "device-plugins")
    assert mounts["pod-resources"] == str(settings.daemon.kubelet_dir / "pod-resources")
    assert mounts["pod-logs"] == str(settings.daemon.pod_logs)
    assert mounts["cdi"] == DEFAULT_CDI_ROOT
    assert mounts["driver-root"] == settings.flags.plugin.container_driver_root


def test_the_simulated_node_has_one_gpu_so_that_the_proof_is_one() -> None:
    scenario = environment(built(OVERLAYS / "simulated"))["GPUPLUGIN_SCENARIO"]
    assert load_scenario(scenario).gpu_count == 1


_LOCAL = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
"""The image has what is built for pods; here a compiler builds it."""


@pytest.mark.parametrize("way", ["watcher", "classic"])
def test_time_slicing_is_proven_on_the_simulated_node(way: str, tmp_path: Path) -> None:
    """The shipped pods, at the same time on one GPU, with the overlay's own command."""
    extra = ("classic-registration",) if way == "classic" else ()
    found = built_with("simulated", *extra)
    container = plugin_of(found)
    (tmp_path / "config.yaml").write_text(the(found, "ConfigMap")["data"]["config.yaml"])
    words = [word.replace("/etc/gpuplugin", str(tmp_path)) for word in container["args"]]
    words = [word.replace("0.0.0.0:2112", "127.0.0.1:0") for word in words]
    with tempfile.TemporaryDirectory() as short, Kubelet(Path(short)) as kubelet:
        plugin = subprocess.Popen(
            [sys.executable, "-m", *container["command"], *words, "--kubelet-dir", short],
            env=environment(found) | _LOCAL | {"GPUPLUGIN_POD_FILES": f"{short}/pods"},
            cwd=KUSTOMIZE.parents[1],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            kubelet.wait_until(lambda node: node.capacity(RESOURCE) == 10, 30)
            pods = pods_from_yaml(yaml.safe_dump_all(_pods("time-slicing-simulated")))
            granted = [kubelet.run_pod(pod) for pod in pods]
        finally:
            plugin.send_signal(signal.SIGTERM)
            assert plugin.wait(20) == 0
    assert len(granted) == 5
    assert {one.phase for one in granted} == {Phase.RUNNING}
    (uuid,) = {grant.envs["NVIDIA_VISIBLE_DEVICES"] for one in granted for grant in one.grants}
    assert uuid.startswith("GPU-")
    assert len({grant.device_ids for one in granted for grant in one.grants}) == 5


def _pods(workload: str) -> list[Object]:
    """The pods of a Deployment, as its controllers make them."""
    deployment = the(built(WORKLOADS / workload), "Deployment")
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"{deployment['metadata']['name']}-{number}"},
            "spec": deployment["spec"]["template"]["spec"],
        }
        for number in range(deployment["spec"]["replicas"])
    ]


@pytest.mark.parametrize("name", PROOFS)
def test_the_proof_prints_the_uuid_and_stays(name: str) -> None:
    pod = the(built(WORKLOADS / name), "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    script = container["command"][2]
    assert "uuid" in script or "$NVIDIA_VISIBLE_DEVICES" in script
    assert "exec sleep" in script, "a pod that ends proves nothing"
    (term,) = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    has_class = "runtimeClassName" in pod
    assert has_class == (name in {"time-slicing", "time-slicing-node-selector"})
    selector = {"nvidia.com/gpu.present": "true"} if name.endswith("node-selector") else None
    assert pod.get("nodeSelector") == selector


def test_workloads_tolerate_the_taint_and_use_the_class_that_is_made() -> None:
    made = the(built_with("runtime-class"), "RuntimeClass")["metadata"]["name"]
    (pod,) = built(WORKLOADS / "one-pod")
    deployment = the(built(WORKLOADS / "time-slicing"), "Deployment")
    for spec in (pod["spec"], deployment["spec"]["template"]["spec"]):
        assert spec["runtimeClassName"] == made
        assert {one["key"] for one in spec["tolerations"]} == {RESOURCE}
