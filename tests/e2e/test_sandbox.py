"""The image as the DaemonSet runs it: non-root, no capabilities, a root that nobody can write to.

There is no engine: the Containerfile's own steps run under bubblewrap, and so does what they made.
"""

from __future__ import annotations

import json
import platform
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import DEADLINE_S, Node, eventually
from tests.e2e.sandbox import (
    SOCKET_FOLDER,
    USER,
    Contained,
    Sandbox,
    build_images,
    hand_over,
    require_sandbox,
)
from tests.unit.deploy.manifests import plugin_container

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROBE = Path(__file__).with_name("probe.py")
LAYER = "gpuplugin:layer"
SIMULATOR_FOLDER = "/var/lib/kubelet"


@pytest.fixture(scope="module")
def images() -> Iterator[dict[str, Path]]:
    """Roots of the images by target, where any user may look."""
    require_sandbox()
    found = subprocess.run(
        [sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True, check=True
    )
    cache = Path(found.stdout.strip())
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpimage") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield build_images(folder, cache)


@pytest.fixture
def sandbox(images: dict[str, Path], node: Node) -> Sandbox:
    """The image with the simulator in the node's folders, as kubelet and init container leave them.

    It is the other image and more: there is no driver here that the other one could use.
    """
    registry = node.dir / "plugins_registry"
    own = registry / "gpuplugin"
    config = node.dir / "config"
    for folder in (registry, own, config):
        folder.mkdir()
    # The runtime mounts as root. Here the user does, who must get to what he mounts.
    for folder in (node.dir, registry):
        folder.chmod(0o711)
    for _again in range(2):
        hand_over(own)
        state = own.stat()
        assert (state.st_uid, state.st_gid, state.st_mode & 0o777) == (USER, USER, 0o750)
    return Sandbox(images["sim"], config, own)


@pytest.fixture
def plugin(sandbox: Sandbox, node: Node) -> Iterator[Contained]:
    with node.start_kubelet(), Contained(sandbox, node.dir / "log") as contained:
        yield contained


def test_it_serves_a_pod_and_answers_probes(plugin: Contained, node: Node) -> None:
    assert node.wait_allocatable(80)["capacity"] == 80, plugin.output
    (grant,) = node.create("pod")["grants"]
    assert grant["envs"]["NVIDIA_VISIBLE_DEVICES"].startswith("GPU-")
    eventually(lambda: plugin.get("/ready")[0] == 200, "the plugin is ready")
    status, body = plugin.get("/health")
    assert (status, json.loads(body)["ok"]) == (200, True)


def test_it_has_the_user_the_mounts_and_no_more(plugin: Contained, node: Node) -> None:
    node.wait_allocatable(80)
    status = plugin.status()
    assert status["Name"] == "gpuplugin"
    assert status["NSpid"].split()[-1] == "1"
    assert status["Uid"].split() == status["Gid"].split() == [str(USER)] * 4
    assert status["Groups"] in {"", str(USER)}
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"] == "1"
    writable: set[str] = set()
    others: set[str] = set()
    for line in plugin.proc("mountinfo").splitlines():
        point, options = line.split()[4:6]
        (writable if "rw" in options.split(",") else others).add(point)
    of_the_kernel = {one for one in writable if re.match("/(dev|proc)(/|$)", one)}
    assert writable - of_the_kernel == {SOCKET_FOLDER, SIMULATOR_FOLDER}
    assert others == {"/", "/dev", "/etc/gpuplugin"}


def test_it_ends_as_process_1_when_asked(plugin: Contained, node: Node) -> None:
    node.wait_allocatable(80)
    assert plugin.stop(signal.SIGTERM) == 0, plugin.output
    node.wait_allocatable(0)
    assert list((node.dir / "plugins_registry/gpuplugin").iterdir()) == []


def test_its_memory_is_within_what_the_manifest_asks_for(
    plugin: Contained, node: Node, record_property: Callable[[str, object], None]
) -> None:
    node.wait_allocatable(80)
    eventually(lambda: plugin.get("/ready")[0] == 200, "the plugin is ready")
    status = plugin.status()
    kib = {name: int(status[name].split()[0]) for name in ("VmRSS", "VmHWM", "RssAnon")}
    record_property("idle in the sandbox, with the simulator, KiB", kib)
    limit = plugin_container()["resources"]["limits"]["memory"]
    assert kib["VmHWM"] < int(limit.removesuffix("Mi")) * 1024


def test_it_has_what_pods_with_simulated_gpus_get(sandbox: Sandbox, node: Node) -> None:
    """There is no compiler: what was built with the image is put where pods mount it."""
    flag = f"--pod-files={SIMULATOR_FOLDER}/pods"
    with node.start_kubelet(), Contained(sandbox, node.dir / "log", flag) as contained:
        eventually(lambda: contained.get("/ready")[0] == 200, "the plugin is ready")
        files = Path(f"/proc/{contained.pid}/root{SIMULATOR_FOLDER}/pods")
        done = subprocess.run(
            [files / "bin/nvidia-smi", "-L"],
            env={"GPUPLUGIN_SIM_NVML": f"{files}/run/nvml.sock", "NVIDIA_VISIBLE_DEVICES": "all"},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.stdout.count("UUID: GPU-") == 8, done.stdout + contained.output
        assert (files / "lib64/libnvidia-ml.so.1").is_file()


def test_nothing_else_can_be_written_and_there_is_no_shell(sandbox: Sandbox) -> None:
    report = sandbox.ask(PROBE.read_text())
    assert report["ids"][:6] == [USER] * 6
    attempts = report["attempts"]
    assert [one for one, came in attempts.items() if came == "written"] == [SOCKET_FOLDER]
    assert set(attempts.values()) <= {"written", "EROFS", "EACCES"}
    assert {"/", "/app", "/dev", "/etc/gpuplugin", "/var/lib/kubelet"} <= attempts.keys()
    assert set(report["changes"].values()) <= {"EROFS", "EACCES"}
    assert report["shell"] == "ENOENT"


def test_what_it_imports_is_installed_and_compiled(
    sandbox: Sandbox, images: dict[str, Path]
) -> None:
    image = images["sim"]
    modules = sandbox.ask(PROBE.read_text())["modules"]
    for name, file in modules.items():
        assert re.match(r"/app/lib/python3\.\d+/site-packages/", file), name
    sources = [*image.glob("app/lib/*/site-packages/gpuplugin/**/*.py")]
    assert len(sources) > 50
    for source in sources:
        (compiled,) = (source.parent / "__pycache__").glob(f"{source.stem}.*.pyc")
        flags = int.from_bytes(compiled.read_bytes()[4:8], "little")
        assert flags == 0b01, "by hash, and never checked"
    assert not [one for one in image.rglob("*") if one.name in {"sh", "bash", "dash", "busybox"}]


@pytest.mark.parametrize("target", ["plugin", "sim"])
def test_the_bill_of_materials_has_what_is_installed(target: str, images: dict[str, Path]) -> None:
    image = images[target]
    bill = json.loads((image / "app/sbom.cdx.json").read_text())
    layers: dict[str, dict[str, str]] = {"app": {}, "base": {}}
    for one in bill["components"]:
        (layer,) = [each["value"] for each in one["properties"] if each["name"] == LAYER]
        kind = one.get("purl", "pkg:pypi/").split("/")[0]
        name = one["name"] if kind != "pkg:pypi" else _normal(one["name"])
        layers[layer][f"{kind}/{name}"] = one["version"]
    folders = image.glob("app/lib/*/site-packages/*.dist-info")
    installed = [one.name.removesuffix(".dist-info").split("-") for one in folders]
    assert layers["app"] == {f"pkg:pypi/{_normal(name)}": version for name, version in installed}
    assert {"pkg:pypi/gpuplugin", "pkg:pypi/grpcio", "pkg:pypi/lightkube"} <= layers["app"].keys()
    assert ("pkg:pypi/simpy" in layers["app"]) == (target == "sim")
    assert not {"pkg:pypi/hatchling", "pkg:pypi/pip"} & layers["app"].keys()
    # Of the base: its Python, and the packages of dpkg, which are this machine's here.
    assert layers["base"]["pkg:generic/python"] == platform.python_version()
    if Path("/var/lib/dpkg/status").is_file():
        assert {"pkg:deb/bash", "pkg:deb/libc6"} <= layers["base"].keys()
    name = "gpuplugin" if target == "plugin" else "gpuplugin-sim"
    assert bill["metadata"]["component"]["name"] == name


def test_the_image_for_production_is_without_the_simulator(
    images: dict[str, Path], node: Node, tmp_path: Path
) -> None:
    (packages,) = images["plugin"].glob("app/lib/*/site-packages")
    assert not {"benchmarks", "sim", "simpy"} & {one.name for one in packages.iterdir()}
    assert {"gpuplugin", "hal", "lightkube"} <= {one.name for one in packages.iterdir()}
    config, own = tmp_path / "config", tmp_path / "own"
    config.mkdir()
    own.mkdir()
    words = Sandbox(images["plugin"], config, own).words("gpuplugin", "sim", "scenario", "list")
    refused = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "use the image whose tag ends in -sim" in refused.stderr


def _normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()
