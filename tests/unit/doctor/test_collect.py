"""How facts are collected: from a host's files below any root, and from sockets."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from gpuplugin.doctor.collect.driver import collect_driver
from gpuplugin.doctor.collect.host import HostRoot, collect_socket
from gpuplugin.doctor.collect.kubelet import collect_kubelet
from gpuplugin.doctor.collect.plugin import collect_plugin
from gpuplugin.doctor.collect.runtime import collect_runtime
from gpuplugin.doctor.facts import PciGpu, SocketState

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = "/var/lib/kubelet"
LIBRARY = "libnvidia-ml.so.1"


class Host:
    """A folder that plays a host's root."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = HostRoot(folder)

    def write(self, path: str, text: str = "x") -> Path:
        here = self.folder / path.lstrip("/")
        here.parent.mkdir(parents=True, exist_ok=True)
        here.write_text(text)
        return here

    def make_folder(self, path: str) -> Path:
        here = self.folder / path.lstrip("/")
        here.mkdir(parents=True, exist_ok=True)
        return here

    def link(self, path: str, target: str) -> None:
        here = self.folder / path.lstrip("/")
        here.parent.mkdir(parents=True, exist_ok=True)
        here.symlink_to(target)

    def add_gpu(self, address: str, pci_class: str = "0x030200", driver: str = "nvidia") -> None:
        device = f"/sys/bus/pci/devices/{address}"
        self.write(f"{device}/vendor", "0x10de\n")
        self.write(f"{device}/class", f"{pci_class}\n")
        if driver:
            self.link(f"{device}/driver", f"../../../bus/pci/drivers/{driver}")


@pytest.fixture
def host() -> Iterator[Host]:
    """A short path, as unix sockets need."""
    folder = Path(tempfile.mkdtemp(prefix="gp"))
    yield Host(folder)
    shutil.rmtree(folder)


def listen(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    return server


def leave(path: Path) -> None:
    """A socket whose owner is gone."""
    listen(path).close()


@pytest.mark.parametrize("target", ["/run", "../run", "/../run", "../../../../../run"])
def test_links_of_the_host_stay_on_the_host(host: Host, target: str) -> None:
    host.write("/run/cdi/a.json", "{}")
    host.link("/var/run", target)
    assert host.root.text("/var/run/cdi/a.json") == "{}"
    assert host.root.names("/var/run/cdi") == ("/var/run/cdi/a.json",)


def test_links_in_a_circle_end(host: Host) -> None:
    host.link("/a", "/b")
    host.link("/b", "/a")
    assert host.root.text("/a") is None
    assert host.root.fact("/a") is None


def test_a_pipe_is_not_read(host: Host) -> None:
    os.mkfifo(host.folder / "pipe")
    assert host.root.text("/pipe") is None


def test_the_bus_the_modules_and_their_version(host: Host) -> None:
    host.add_gpu("0000:07:00.0")
    host.add_gpu("0000:08:00.0", pci_class="0x030000", driver="nouveau")
    host.add_gpu("0000:09:00.0", pci_class="0x040300")  # its sound, which is no GPU
    host.add_gpu("0000:0a:00.0", driver="")
    host.write("/proc/modules", "nvidia_uvm 1 0 - Live 0x0\nnvidia 2 1 nvidia_uvm, Live 0x0\nfat 1")
    host.write(
        "/proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.105.08  Release Build\n"
        "GCC version:  gcc version 12.2.0\n",
    )
    facts = collect_driver(host.root, "/")
    assert facts.pci == (
        PciGpu("0000:07:00.0", "0302", "nvidia"),
        PciGpu("0000:08:00.0", "0300", "nouveau"),
        PciGpu("0000:0a:00.0", "0302", ""),
    )
    assert facts.modules == frozenset({"nvidia", "nvidia_uvm"})
    assert facts.module_version == "580.105.08"


def test_a_host_that_shows_nothing_is_looked_at_all_the_same(host: Host) -> None:
    facts = collect_driver(host.root, "/")
    assert (facts.pci, facts.modules, facts.libraries) == (None, None, ())
    assert collect_kubelet(host.root, ROOT, None).socket.state is SocketState.MISSING
    assert collect_runtime(host.root, "/var/run/cdi").configs == ()


def test_libraries_with_their_version_and_what_is_wrong_with_them(host: Host) -> None:
    host.write("/usr/lib64/libnvidia-ml.so.580.105.08")
    host.link(f"/usr/lib64/{LIBRARY}", "libnvidia-ml.so.580.105.08")
    host.link(f"/lib64/{LIBRARY}", "/usr/lib64/gone.so")
    host.write(f"/opt/nvidia/lib64/{LIBRARY}", "")
    host.write(f"/run/nvidia/driver/usr/lib64/{LIBRARY}")
    facts = collect_driver(host.root, "/")
    by_path = {library.path: library for library in facts.libraries}
    assert by_path[f"/usr/lib64/{LIBRARY}"].version == "580.105.08"
    assert "gone.so, which is missing" in by_path[f"/lib64/{LIBRARY}"].problem
    assert by_path[f"/opt/nvidia/lib64/{LIBRARY}"].problem == "it is empty"
    assert [one.path for one in facts.elsewhere] == [f"/run/nvidia/driver/usr/lib64/{LIBRARY}"]
    assert not collect_driver(host.root, "/run/nvidia/driver").elsewhere[0].path.startswith("/run")


def test_mps_is_seen_among_the_processes(host: Host) -> None:
    host.write("/proc/7/comm", "nvidia-cuda-mps\n")
    assert collect_driver(host.root, "/").mps_processes == ("an MPS daemon",)


def test_a_kubelet_and_the_sockets_beside_it(host: Host) -> None:
    plugins = host.make_folder(f"{ROOT}/device-plugins")
    own = host.make_folder(f"{ROOT}/plugins_registry/gpuplugin")
    host.write(
        f"{ROOT}/device-plugins/kubelet_internal_checkpoint",
        json.dumps({"Data": {"RegisteredDevices": {"nvidia.com/gpu": ["a", "b"], "x": None}}}),
    )
    host.write(f"{ROOT}/config.yaml", "cgroupDriver: systemd\n")
    leave(own / "gpuplugin-nvidia.com-gpu-01234567.sock")
    leave(plugins / "kubelet.sock")
    with closing(listen(plugins / "nvidia-gpu.sock")):
        facts = collect_kubelet(host.root, ROOT, None)
    assert [one.state for one in facts.own_sockets] == [SocketState.REFUSED]
    assert [(one.path, one.live) for one in facts.others] == [
        (f"{ROOT}/device-plugins/nvidia-gpu.sock", True)
    ]
    assert facts.socket.state is SocketState.REFUSED
    assert facts.registered == {"nvidia.com/gpu": 2, "x": 0}
    assert facts.cgroup_driver == "systemd"
    assert (facts.folder is not None, facts.registry is not None) == (True, True)


@pytest.mark.parametrize("root", ["/var/lib/k0s/kubelet", "/var/snap/microk8s/common" + ROOT])
def test_other_kubelet_folders_are_found(host: Host, root: str) -> None:
    leave(host.make_folder(f"{root}/device-plugins") / "kubelet.sock")
    assert collect_kubelet(host.root, ROOT, None).elsewhere == (root,)
    assert collect_kubelet(host.root, root, None).elsewhere == ()


def test_a_link_to_the_kubelets_folder_is_no_other_folder(host: Host) -> None:
    leave(host.make_folder("/var/lib/k0s/kubelet/device-plugins") / "kubelet.sock")
    host.link(ROOT, "/var/lib/k0s/kubelet")
    assert collect_kubelet(host.root, ROOT, None).elsewhere == ()


@pytest.mark.parametrize("words", [("--root-dir=/data/k/",), ("--root-dir", "/data/k"), ()])
def test_what_a_running_kubelet_was_told(host: Host, words: tuple[str, ...]) -> None:
    host.write("/proc/6/cmdline", "sleep\0--root-dir=/nonsense")
    host.write("/proc/7/cmdline", "\0".join(["/usr/bin/kubelet", "--v=2", *words]))
    assert collect_kubelet(host.root, ROOT, None).configured_root == ("/data/k" if words else "")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"Data": 3}', '{"Data": {}}'])
def test_a_checkpoint_that_cannot_be_read_is_not_known(host: Host, text: str) -> None:
    host.write(f"{ROOT}/device-plugins/kubelet_internal_checkpoint", text)
    assert collect_kubelet(host.root, ROOT, None).registered is None


def test_a_socket_that_does_not_greet_is_silent(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuplugin.doctor.collect.host._TIMEOUT_S", 0.05)
    with closing(listen(host.folder / "a.sock")):
        assert collect_socket(host.root, "/a.sock", grpc=True).state is SocketState.SILENT
        assert collect_socket(host.root, "/a.sock", grpc=False).state is SocketState.ANSWERS


def test_what_is_no_socket(host: Host) -> None:
    host.write("/a.sock")
    assert collect_socket(host.root, "/a.sock", grpc=True).state is SocketState.NO_SOCKET


CONTAINERD_1 = """
version = 2
[plugins."io.containerd.grpc.v1.cri"]
cdi_spec_dirs = ["/etc/cdi", "/var/run/cdi"]
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia.options]
BinaryName = "/usr/bin/nvidia-container-runtime"
SystemdCgroup = true
"""
CONTAINERD_2 = """
version = 3
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
SystemdCgroup = false
"""


def test_what_containerd_is_told_of_cdi_and_in_which_format(host: Host) -> None:
    host.write("/etc/containerd/config.toml", CONTAINERD_1)
    (config,) = collect_runtime(host.root, "/var/run/cdi").configs
    assert config.handlers == {"nvidia": "/usr/bin/nvidia-container-runtime"}
    assert (config.default_handler, config.cdi, config.systemd_cgroup) == ("runc", None, True)
    assert config.version == 2
    assert config.cdi_folders == ("/etc/cdi", "/var/run/cdi")
    on = CONTAINERD_1.replace("cdi_spec_dirs", "enable_cdi = true\ncdi_spec_dirs")
    host.write("/etc/containerd/config.toml", on)
    assert collect_runtime(host.root, "/var/run/cdi").configs[0].cdi is True


def test_containerd_from_2_on_and_the_files_beside_it(host: Host) -> None:
    host.write("/etc/containerd/config.toml", CONTAINERD_2)
    host.write(
        "/etc/containerd/conf.d/99-nvidia.toml",
        'version = 3\n[plugins."io.containerd.cri.v1.runtime".containerd]\n'
        'default_runtime_name = "nvidia"\n'
        '[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.nvidia.options]\n'
        'BinaryName = "/usr/bin/nvidia-container-runtime"\n',
    )
    (config,) = collect_runtime(host.root, "/var/run/cdi").configs
    assert (config.default_handler, config.cdi, config.systemd_cgroup) == ("nvidia", None, False)
    assert config.handlers["nvidia"] == "/usr/bin/nvidia-container-runtime"


def test_crio(host: Host) -> None:
    host.write(
        "/etc/crio/crio.conf.d/99-nvidia.conf",
        '[crio.runtime]\ndefault_runtime = "nvidia"\ncgroup_manager = "systemd"\n'
        '[crio.runtime.runtimes.nvidia]\nruntime_path = "/usr/bin/nvidia-container-runtime"\n',
    )
    (config,) = collect_runtime(host.root, "/var/run/cdi").configs
    assert (config.program, config.default_handler) == ("crio", "nvidia")
    assert (config.cdi, config.systemd_cgroup) == (True, True)


def test_a_runtime_configuration_with_a_mistake_is_told(host: Host) -> None:
    host.write("/etc/containerd/config.toml", "version = \n")
    (config,) = collect_runtime(host.root, "/var/run/cdi").configs
    assert config.problem.startswith("/etc/containerd/config.toml: ")


def test_the_toolkits_configuration(host: Host) -> None:
    assert collect_runtime(host.root, "/var/run/cdi").toolkit is None
    path = "/etc/nvidia-container-runtime/config.toml"
    host.write(path, "accept-nvidia-visible-devices-envvar-when-unprivileged = false\n")
    toolkit = collect_runtime(host.root, "/var/run/cdi").toolkit
    assert toolkit is not None
    assert (toolkit.unprivileged_variable, toolkit.mounts) == (False, False)


def test_cdi_specs_with_what_they_name_and_is_not_there(host: Host) -> None:
    host.link("/var/run", "/run")
    host.write("/dev/nvidia0")
    spec = {
        "kind": "k8s.device-plugin.nvidia.com/gpu",
        "devices": [
            {"name": "a", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0"}]}},
            {"name": "b", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia1"}]}},
        ],
        "containerEdits": {"mounts": [{"hostPath": "/usr/lib/gone.so", "containerPath": "/x"}]},
    }
    host.write("/run/cdi/a.json", json.dumps(spec))
    host.write("/run/cdi/b.json", "{")
    host.write("/etc/cdi/c.yaml", "kind: a.com/b\ndevices: []\n")
    facts = collect_runtime(host.root, "/run/cdi")
    by_name = {Path(one.path).name: one for one in facts.specs}
    assert by_name["a.json"].devices == ("a", "b")
    assert set(by_name["a.json"].missing) == {"/usr/lib/gone.so", "/dev/nvidia1"}
    assert by_name["b.json"].problem
    assert by_name["c.yaml"].problem == "it has no kind, or no devices"
    assert len(facts.specs) == 3


def test_a_containerd_that_serves_no_kubelet_does_not_count(host: Host) -> None:
    host.write("/etc/containerd/config.toml", 'disabled_plugins = ["cri"]\n')
    assert collect_runtime(host.root, "/var/run/cdi").configs == ()


def test_a_root_dir_moves_the_registry_and_not_the_device_plugins(host: Host) -> None:
    host.write("/proc/7/cmdline", "/usr/bin/kubelet\0--root-dir=/data/k\0")
    host.make_folder("/data/k/plugins_registry")
    host.write(
        f"{ROOT}/device-plugins/kubelet_internal_checkpoint",
        '{"Data": {"RegisteredDevices": {"nvidia.com/gpu": ["a"]}}}',
    )
    facts = collect_kubelet(host.root, "/data/k", None)
    assert facts.socket.path == f"{ROOT}/device-plugins/kubelet.sock"
    assert facts.registry is not None
    assert facts.registered == {"nvidia.com/gpu": 1}


def test_what_answers_on_the_port_is_not_asked_about_another_folder(host: Host) -> None:
    host.make_folder(f"{ROOT}/plugins_registry")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        facts = collect_plugin(host.root, ROOT, f"127.0.0.1:{server.server_port}")
        server.shutdown()
    assert facts.source == ""
    assert facts.problem == f"no control socket below {ROOT}"


class _Answers(BaseHTTPRequestHandler):
    """A plugin's /health."""

    def do_GET(self) -> None:
        body = b'{"parts": {"monitor": {"ok": true, "text": "", "for_s": 1, "ok_ago_s": 0}}}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_a_folder_that_only_others_may_look_into_is_hidden(host: Host) -> None:
    folder = host.make_folder(ROOT)
    folder.chmod(0)
    facts = collect_kubelet(host.root, ROOT, None)
    folder.chmod(0o700)
    assert facts.hidden
    assert facts.folder is not None
