"""From Allocate to nvidia-smi inside the pod, with the part of a container runtime played here."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from sim.apiserver import PODS, ApiServer, Key
from sim.kubelet import Kubelet, simple_pod
from sim.nvml.library import CannotBuild, built_library, built_program
from sim.pods.podlist import LOAD
from sim.scheduler.claims import create_class
from tests.component.podsandbox import Container, busybox_root, require_bubblewrap
from tests.e2e.conftest import DEADLINE_S, RESOURCE, Node, Plugin, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sim.kubelet.pods import PodStatus

NODE = "gpu-node-7"
PROGRAM = ("nvidia-smi", "-L")


@pytest.fixture
def pod_files() -> Iterator[Path]:
    require_bubblewrap()
    try:
        built_library(), built_program()
    except CannotBuild as error:
        pytest.skip(str(error))
    folder = Path(tempfile.mkdtemp(prefix="gp"))
    folder.chmod(0o755)
    yield folder / "pods"
    shutil.rmtree(folder)


@dataclass
class Runtime:
    """The part of a container runtime that makes a container of what a pod was granted."""

    cdi_root: Path
    environment: dict[str, str] = field(default_factory=dict)
    mounts: dict[str, str] = field(default_factory=dict)

    def container(self, status: PodStatus) -> Container:
        for grant in status.grants:
            answer = pb.ContainerAllocateResponse.FromString(grant.raw)
            self.environment.update(answer.envs)
            self.mounts.update({one.container_path: one.host_path for one in answer.mounts})
            self._inject([one.name for one in answer.cdi_devices])
        for device in status.devices:
            self._inject(device.cdi_devices)
        return Container(busybox_root(), self.mounts, self.environment)

    def _inject(self, names: Sequence[str]) -> None:
        specs = [json.loads(path.read_text()) for path in sorted(self.cdi_root.glob("*.json"))]
        for name in names:
            kind, _, device = name.partition("=")
            (spec,) = [one for one in specs if one["kind"] == kind and _device(one, device)]
            self._edit(spec.get("containerEdits", {}))
            self._edit(_device(spec, device)[0]["containerEdits"])

    def _edit(self, edits: dict[str, Any]) -> None:
        self.environment.update(one.split("=", 1) for one in edits.get("env", ()))
        self.mounts.update(
            {one["containerPath"]: one["hostPath"] for one in edits.get("mounts", ())}
        )


def _device(spec: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [one for one in spec["devices"] if one["name"] == name]


@pytest.mark.parametrize(
    "strategies",
    [
        "envvar",
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("volume-mounts", "cdi-cri")),
    ],
)
def test_pods_see_their_gpu_and_its_fault(node: Node, pod_files: Path, strategies: str) -> None:
    flags = (
        *("--backend", "sim", "--scenario", "homelab", "--node-name", NODE, *node.at),
        *("--pod-files", str(pod_files), "--cdi-root", str(node.dir / "cdi")),
        *("--device-list-strategy", strategies),
    )
    with Kubelet(node.dir) as kubelet, Plugin(*flags):
        kubelet.wait_until(lambda view: view.allocatable(RESOURCE), DEADLINE_S)
        pods = [
            Runtime(node.dir / "cdi").container(
                kubelet.run_pod(simple_pod(f"pod-{number}", {RESOURCE: 1}))
            )
            for number in range(3)
        ]
        seen = [pod.run(*PROGRAM) for pod in pods]
        assert [one.returncode for one in seen] == [0, 0, 0], seen
        assert len({one.stdout for one in seen}) == 1
        assert seen[0].stdout.count("UUID: GPU-") == 1
        node.inject("--gpu", "0", "--xid", "79")
        kubelet.wait_until(lambda view: not view.allocatable(RESOURCE), DEADLINE_S)
        lost = pods[0].run("nvidia-smi")
        assert "GPU is lost" in lost.stdout
        assert lost.returncode == 15


@pytest.mark.slow
def test_pods_with_claims_see_what_they_were_given(node: Node, pod_files: Path) -> None:
    with ApiServer([NODE]) as server, Kubelet(node.dir, store=server.store, node=NODE) as kubelet:
        create_class(server.store, driver="gpu.gpuplugin.dev", resource=RESOURCE)
        environment = {
            **os.environ,
            "KUBECONFIG": str(server.kubeconfig(node.dir)),
            "NO_PROXY": "127.0.0.1",
        }
        flags = (
            *("--backend", "sim", "--scenario", "default", "--node-name", NODE, *node.at),
            *("--pod-files", str(pod_files), "--cdi-root", str(node.dir / "cdi")),
            *("--allocation", "dra"),
        )
        with Plugin(*flags, env=environment):
            kubelet.wait_until(lambda view: view.offered and view.drivers, DEADLINE_S)
            status = kubelet.run_pod(simple_pod("trainer", {RESOURCE: 1}))
            (device,) = status.devices
            done = Runtime(node.dir / "cdi").container(status).run(*PROGRAM)
            assert done.stdout.count("UUID: ") == 1
            assert f"UUID: {device.uuid}" in done.stdout


@pytest.mark.slow
def test_what_a_pod_declares_is_in_its_metrics_and_in_nvidia_smi(
    node: Node, pod_files: Path
) -> None:
    query = ("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits")
    with ApiServer([NODE]) as server, Kubelet(node.dir) as kubelet:
        environment = {
            **os.environ,
            "KUBECONFIG": str(server.kubeconfig(node.dir)),
            "NO_PROXY": "127.0.0.1",
        }
        flags = (
            *("--backend", "sim", "--scenario", "homelab", "--node-name", NODE, *node.at),
            *("--pod-files", str(pod_files), "--host-proc", str(node.dir / "host/proc")),
            *("--pod-logs", str(node.dir / "host/pod-logs"), "--metrics-interval", "100ms"),
        )
        with Plugin(*flags, env=environment) as plugin:
            kubelet.wait_until(lambda view: view.allocatable(RESOURCE), DEADLINE_S)
            status = kubelet.run_pod(simple_pod("train-1", {RESOURCE: 1}))
            pod = Runtime(node.dir / "cdi").container(status)
            assert pod.run(*query).stdout == "0\n"
            body: dict[str, object] = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": "train-1",
                    "namespace": "default",
                    "annotations": {LOAD: "trainer"},
                },
                "spec": {"nodeName": NODE, "containers": []},
            }
            key = Key(PODS, "train-1", "default")
            server.store.create(key, body)
            server.store.patch(key, {"status": {"phase": "Running"}}, status=True)
            series = 'gpuplugin_pod_memory_bytes{container="main",gpu="0",namespace="default",'
            eventually(
                lambda: f'{series}pod="train-1"' in plugin.get("/metrics")[1],
                "the pod's memory is in the metrics",
            )
            assert int(pod.run(*query).stdout) > 16384
            kubelet.delete_pod("train-1")
            eventually(lambda: pod.run(*query).stdout == "0\n", "its memory is free")


@pytest.mark.slow
def test_a_folder_that_cannot_be_filled_ends_the_start(node: Node, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Plugin("--backend", "sim", *node.at, "--pod-files", f"{tmp_path}/file/x") as plugin:
        eventually(lambda: not plugin.running, "the plugin ends")
        assert plugin.exit_status() == 1
        assert "is no place for what pods get" in plugin.output
