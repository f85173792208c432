"""Simulated GPUs on a cluster of kind, from nothing to a lost GPU: `make kind`.

Uses no package: it needs Python, docker, kind and kubectl alone. Everything that it made is removed
at the end, unless `--keep` is given.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tools.image import tag

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[1]
NAMESPACE = "gpu-device-plugin"
PLUGIN = "daemonset/nvidia-device-plugin"
WORKLOAD = "time-slicing"
WAIT = "--timeout=180s"
NEEDED = {
    "docker": "https://docs.docker.com/engine/install",
    "kind": "https://kind.sigs.k8s.io/docs/user/quick-start",
    "kubectl": "https://kubernetes.io/docs/tasks/tools",
}
"""Programs, and where they come from."""


class Failed(Exception):
    """A step failed; the text says which."""


def missing() -> list[str]:
    """What is not on the PATH, each with where it comes from."""
    found = [f"{name} ({where})" for name, where in NEEDED.items() if shutil.which(name) is None]
    if (
        not found
        and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        found = ["a docker daemon that answers ('docker info' fails)"]
    return found


def run(*command: str) -> None:
    print(f"$ {' '.join(command)}", flush=True)
    if status := subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise Failed(f"'{' '.join(command)}' failed with {status}")


class Cluster:
    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def exists(self) -> bool:
        listed = subprocess.run(
            ["kind", "get", "clusters"], capture_output=True, text=True, check=False
        )
        if listed.returncode:
            raise Failed(f"'kind get clusters' failed: {listed.stderr.strip()}")
        return self._name in listed.stdout.split()

    def create(self, image: str) -> None:
        if not self.exists:
            run("kind", "create", "cluster", "--name", self._name, "--wait", "120s")
        run("kind", "load", "docker-image", image, "--name", self._name)

    def delete(self) -> None:
        run("kind", "delete", "cluster", "--name", self._name)

    def kubectl(self, *words: str) -> None:
        run("kubectl", "--context", f"kind-{self._name}", *words)

    def show_gpus(self) -> None:
        columns = r"NODE:.metadata.name,GPUS:.status.allocatable.nvidia\.com/gpu"
        self.kubectl("get", "nodes", "-o", f"custom-columns={columns}")

    def inject(self, *words: str) -> None:
        inside = ("gpuplugin", "sim", "inject", "--kubelet-dir", "/var/lib/kubelet")
        self.kubectl("exec", "-n", NAMESPACE, PLUGIN, "--", *inside, "--gpu", "0", *words)

    def deploy(self) -> None:
        self.kubectl("apply", "-k", "deploy/kustomize/overlays/simulated")
        self.kubectl("rollout", "status", PLUGIN, "-n", NAMESPACE, WAIT)

    def run_pods(self) -> None:
        """Pods that share a GPU, and what each of them sees."""
        self.kubectl("apply", "-k", f"deploy/workloads/{WORKLOAD}-simulated")
        self.kubectl("rollout", "status", f"deployment/{WORKLOAD}", WAIT)
        self.show_gpus()
        self.kubectl("logs", "-l", f"app.kubernetes.io/name={WORKLOAD}", "--prefix", "--tail=3")

    def lose_a_gpu(self) -> None:
        """The kubelet takes the GPU's replicas from the node's resources, and pods keep running."""
        self.inject("--xid", "79")
        gpus = r"{.status.allocatable.nvidia\.com/gpu}"
        self.kubectl("wait", "nodes", "--all", f"--for=jsonpath={gpus}=0", WAIT)
        self.show_gpus()
        # It fails in the pods, too, as on a real GPU that fell off its bus.
        look = "nvidia-smi -L || echo it ended with status $?"
        self.kubectl("exec", f"deployment/{WORKLOAD}", "--", "sh", "-c", look)
        self.inject("--recover")

    def tell_what_there_is(self) -> None:
        """For whoever looks for the cause of a failure."""
        for words in (
            ("get", "pods", "-A", "-o", "wide"),
            ("describe", "pods", "-n", NAMESPACE),
            ("logs", "-n", NAMESPACE, PLUGIN, "--tail=50"),
        ):
            with suppress(Failed):
                self.kubectl(*words)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.kind", description=__doc__)
    parser.add_argument("--name", default="gpuplugin", help="of the cluster (default gpuplugin)")
    parser.add_argument("--keep", action="store_true", help="leave the cluster as it is at the end")
    parser.add_argument("--image", help="use this image, which docker has, and build none")
    given = parser.parse_args(arguments)
    if lacking := missing():
        print(f"make kind needs {', '.join(lacking)}", file=sys.stderr)
        return 1
    cluster = Cluster(given.name)
    try:
        keep = given.keep or cluster.exists  # what was there before is not ours to remove
        with tempfile.TemporaryDirectory() as folder:
            if not keep:
                # kind makes its context the current one, and with the cluster takes it away.
                os.environ["KUBECONFIG"] = f"{folder}/kubeconfig"
            _try(cluster, given.image, keep=keep)
    except Failed as error:
        print(f"make kind: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make kind: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    print("it works" + (f"; 'kind delete cluster --name {given.name}' removes it" if keep else ""))
    return 0


def _try(cluster: Cluster, built: str | None, *, keep: bool) -> None:
    """From an image, the one that was built or a new one, to a lost GPU; raises `Failed`."""
    image = f"gpuplugin:{tag('sim')}"  # as the overlay names it
    if built is not None:
        run("docker", "tag", built, image)
    else:
        run("docker", "build", "-f", "deploy/Containerfile", "--target", "sim", "-t", image, ".")
    try:
        cluster.create(image)
        try:
            cluster.deploy()
            cluster.run_pods()
            cluster.lose_a_gpu()
        except Failed:
            cluster.tell_what_there_is()
            raise
    finally:
        if not keep:
            cluster.delete()


if __name__ == "__main__":
    sys.exit(main())
