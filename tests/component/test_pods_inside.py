"""What is inside a pod with simulated GPUs: NVML and nvidia-smi of the devices that it got."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import pynvml
import pytest

from gpuplugin.config.load import load_settings
from gpuplugin.config.plans import pod_extras
from gpuplugin.linesocket import ask
from sim.gpu.faults import Hang, Recovery, XidFault
from sim.node.control import control_socket
from sim.node.node import SimulatedNode
from sim.node.realtime import RealTimeNode
from sim.node.scenario import parse_scenario
from sim.node.serve import served
from sim.nvml import server
from sim.nvml.dispatch import FUNCTIONS
from sim.nvml.library import (
    LIBRARY,
    PROGRAM,
    CannotBuild,
    abi_hash,
    built_library,
    built_program,
)
from sim.pods.door import pod_door, put_files
from tests.component.podsandbox import (
    PYTHON,
    Container,
    busybox_root,
    debian_root,
    require_bubblewrap,
)
from tests.component.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SCENARIO = """
gpus:
  - {model: h100-sxm5-80gb, count: 2}
  - {model: h100-sxm5-80gb, mig: [3g.40gb, 2g.20gb, 1g.10gb]}
tenants:
  - {name: trainer, gpu: 0, utilization: 0.5, memory_gib: 8}
"""
FOLDER_OF_NAMES = "/var/run/nvidia-container-devices"


@dataclass
class PodNode:
    """A simulated node that has a folder for its pods."""

    folder: Path
    node: RealTimeNode
    door: ExitStack = field(default_factory=ExitStack)

    def serve(self) -> None:
        self.door.enter_context(pod_door(self.node, self.folder))

    @property
    def socket(self) -> Path:
        return self.folder / "run/nvml.sock"

    def uuids(self) -> list[str]:
        with self.node.read() as model:
            return [gpu.identity.uuid for gpu in model.present]

    def migs(self) -> list[str]:
        with self.node.read() as model:
            return [mig.uuid for mig in model.present[2].identity.mig_devices]

    def pod(
        self,
        visible: str | None,
        root: Callable[[], tuple[str, ...]] = busybox_root,
        mounts: Mapping[str, str] = MappingProxyType({}),
    ) -> Container:
        """A container with what Allocate gives, and this NVIDIA_VISIBLE_DEVICES."""
        variables = {"GPUPLUGIN_BACKEND": "sim", "GPUPLUGIN_POD_FILES": str(self.folder)}
        extras = pod_extras(load_settings({}, variables, None).settings)
        environment = dict(extras.envs)
        if visible is not None:
            environment["NVIDIA_VISIBLE_DEVICES"] = visible
        mounted = {one.container_path: one.host_path for one in extras.mounts}
        return Container(root(), {**mounted, **mounts}, environment)


@pytest.fixture
def pods() -> Iterator[PodNode]:
    require_bubblewrap()
    try:
        built_library(), built_program()
    except CannotBuild as error:
        pytest.skip(str(error))
    node = RealTimeNode(SimulatedNode(parse_scenario(SCENARIO, "pods")))
    node.start()
    with tempfile.TemporaryDirectory(prefix="gp") as name, ExitStack() as door:
        folder = Path(name) / "pods"
        Path(name).chmod(0o755)
        made = PodNode(folder, node, door)
        made.serve()
        yield made
    node.stop()


def test_pods_see_the_devices_that_they_were_given(pods: PodNode) -> None:
    first, second, third = pods.uuids()
    mig = pods.migs()[1]
    for visible, seen in (
        ("all", [first, second, third, *pods.migs()]),
        (first, [first]),
        (f"{second}", [second]),
        ("1", [second]),
        (mig, [third, mig]),
        ("2:1", [third, mig]),
    ):
        done = pods.pod(visible).run("nvidia-smi", "-L")
        listed = [line.partition("UUID: ")[2].rstrip(")") for line in done.stdout.splitlines()]
        assert (done.returncode, listed) == (0, seen), done
    for nothing in ("none", "void", "", None):
        done = pods.pod(nothing).run("nvidia-smi", "-L")
        assert (done.returncode, done.stdout) == (6, "No devices were found\n")


def test_pods_of_one_gpu_see_the_same_and_all_see_it_fail(pods: PodNode) -> None:
    first, second, _ = pods.uuids()
    query = ("nvidia-smi", "--query-gpu=uuid,memory.used", "--format=csv,noheader,nounits")
    three = [pods.pod(first) for _ in range(3)]
    other = pods.pod(second)

    assert {pod.run(*query).stdout for pod in three} == {f"{first}, 8192\n"}
    assert "GPU-Util" in three[0].run("nvidia-smi").stdout
    with pods.node.update() as model:
        model.inject(model.present[0], XidFault(xid=79))

    for pod in three:
        done = pod.run(*query)
        assert done.returncode == pynvml.NVML_ERROR_GPU_IS_LOST
        assert "GPU is lost" in done.stdout
    assert other.run(*query).stdout == f"{second}, 0\n"


def test_a_pod_sees_no_process_of_others_and_changes_nothing(pods: PodNode) -> None:
    pod, partitioned = pods.pod(pods.uuids()[0]), pods.pod(pods.migs()[0])

    apps = pod.run("nvidia-smi", "--query-compute-apps=pid,name", "--format=csv,noheader")
    assert (apps.returncode, apps.stdout) == (0, "")
    for words in (
        ("-pl", "300"),
        ("-mig", "1"),
        ("-r",),
        ("compute-policy", "--set-timeslice", "1"),
        ("mig", "-lgi"),
        ("mig", "-cgi", "19"),
        ("mig", "-dgi"),
    ):
        done = (partitioned if words[0] == "mig" else pod).run("nvidia-smi", *words)
        assert done.returncode == pynvml.NVML_ERROR_NO_PERMISSION, done
        assert "Insufficient Permissions" in done.stdout
    assert sorted(path.name for path in (pods.folder / "run").iterdir()) == [
        "nvml.sock",
        "smi.sock",
    ]
    assert "unrecognized arguments: --no-such" in pod.run("nvidia-smi", "--no-such").stdout


def test_what_is_printed_may_go_to_a_file_of_the_container(pods: PodNode) -> None:
    pod = pods.pod(pods.uuids()[0])
    printed = pod.run("nvidia-smi", "-L").stdout
    script = "echo old > /out; nvidia-smi -L -f /out; echo $?; cat /out"
    assert pod.run("sh", "-c", script).stdout == f"0\n{printed}"
    again = ": > /out; nvidia-smi -L -lms 20 -f /out & "
    again += "until [ $(wc -l < /out) -ge 3 ]; do sleep 0.02; done; kill $!; head -n 3 /out"
    assert pod.run("sh", "-c", again).stdout == printed * 3
    refused = pod.run("nvidia-smi", "-L", "-f", "/no/such")
    assert (refused.returncode, refused.stdout) == (2, "/no/such: No such file or directory\n")


def test_names_of_devices_may_come_as_files(pods: PodNode) -> None:
    """As with the strategy volume-mounts and with CDI, which says `void`."""
    first, second, _ = pods.uuids()
    mounts = {f"{FOLDER_OF_NAMES}/{uuid}": "/dev/null" for uuid in (first, second)}
    for visible in (FOLDER_OF_NAMES, "void", None):
        done = pods.pod(visible, mounts=mounts).run("nvidia-smi", "-L")
        assert [uuid in done.stdout for uuid in pods.uuids()] == [True, True, False], done


def test_a_real_client_reads_the_node_with_the_library(pods: PodNode) -> None:
    pod = pods.pod(pods.uuids()[1], debian_root)
    code = """
import os, sys
sys.path.append("/nvml")
import pynvml
pynvml.nvmlInit()
assert pynvml.nvmlDeviceGetCount() == 1
gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
print(os.getuid(), pynvml.nvmlDeviceGetUUID(gpu), pynvml.nvmlDeviceGetName(gpu))
try:
    pynvml.nvmlDeviceSetPowerManagementLimit(gpu, 300000)
except pynvml.NVMLError_NoPermission:
    print("looks only")
"""
    done = pod.run(PYTHON, "-c", code)
    assert done.stdout.splitlines() == [
        f"65534 {pods.uuids()[1]} NVIDIA H100 80GB HBM3",
        "looks only",
    ], done.stderr


CHILD_WITH_THREADS = """
import os, sys, threading
sys.path.append("/nvml")
import pynvml
pynvml.nvmlInit()
pid = os.fork()
if pid:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
ready, made = threading.Barrier(8), []
def create():
    ready.wait()
    made.append(pynvml.nvmlEventSetCreate())
threads = [threading.Thread(target=create) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for one in made:
    pynvml.nvmlEventSetFree(one)
"""


def test_the_threads_of_the_child_of_a_fork_have_one_session(pods: PodNode) -> None:
    done = pods.pod("0", debian_root).run(PYTHON, "-c", CHILD_WITH_THREADS)
    assert (done.returncode, done.stderr) == (0, "")


MUSL_CLIENT = r"""
#include <dlfcn.h>
#include <stdio.h>
int main(void) {
    void *nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    if (!nvml) return puts(dlerror()), 1;
    int (*init)(void) = (int (*)(void))dlsym(nvml, "nvmlInit_v2");
    int (*count)(unsigned *) = (int (*)(unsigned *))dlsym(nvml, "nvmlDeviceGetCount_v2");
    unsigned found = 0;
    int code = init();
    if (!code) code = count(&found);
    printf("%d %u\n", code, found);
    return 0;
}
"""


def test_the_library_is_for_musl_too(pods: PodNode) -> None:
    loader = Path("/lib/ld-musl-x86_64.so.1")
    if shutil.which("musl-gcc") is None or not loader.exists():
        pytest.skip("no musl for this machine is installed (Debian: musl-tools)")
    client = pods.folder / "client"
    client.with_suffix(".c").write_text(MUSL_CLIENT)
    subprocess.run(["musl-gcc", "-o", client, client.with_suffix(".c")], check=True)
    mounts = {"/client": str(client), str(loader): str(loader.resolve())}

    done = pods.pod("0,1", mounts=mounts).run("/client")

    assert done.stdout == "0 2\n", done


def test_a_restart_of_the_plugin_is_outlived(pods: PodNode) -> None:
    pod = pods.pod("0")
    script = "nvidia-smi -L && echo next && read go && nvidia-smi -L"
    with pod.start("sh", "-c", script) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        first = running.stdout.readline()
        assert running.stdout.readline() == "next\n"
        pods.door.close()
        gone = pod.run("nvidia-smi")
        pods.serve()
        running.stdin.write("\n")
        running.stdin.flush()
        assert running.stdout.readline() == first
    assert gone.returncode == pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    assert "NVIDIA-SMI has failed because it couldn't communicate" in gone.stdout


def test_a_plugin_that_is_replaced_leaves_the_place_to_the_next_one(
    pods: PodNode, kubelet_dir: Path
) -> None:
    """As in a rollout with surge: the next one serves before the old one ends."""
    files = ("gpuplugin-sim-kernel/sys/module/nvidia/version", "gpuplugin-sim-nvml.sock")
    pods.door.enter_context(served(pods.node, kubelet_dir))
    with served(pods.node, kubelet_dir), pod_door(pods.node, pods.folder):
        pods.door.close()
        done = pods.pod("0").run("nvidia-smi", "-L")
        assert done.returncode == 0, done
        assert ask(control_socket(kubelet_dir), {"status": True}, 20)["gpus"]
        assert [name for name in files if not (kubelet_dir / name).exists()] == []
    assert not list((pods.folder / "run").iterdir())
    assert not list(kubelet_dir.iterdir())


def test_two_plugins_of_a_node_may_put_the_files_for_pods_at_once(tmp_path: Path) -> None:
    """In containers of their own, both are process 1."""
    library, program, folder = tmp_path / "library", tmp_path / "program", tmp_path / "pods"
    for name in (library, program):
        name.write_bytes(bytes(1 << 18))
    with ThreadPoolExecutor(2) as plugins:
        done = [plugins.submit(put_files, folder, library, program) for _ in range(40)]
        for one in done:
            one.result()
            assert (folder / "bin/nvidia-smi").stat().st_size == 1 << 18
    assert sorted(one.name for one in folder.rglob("*") if one.is_file()) == [LIBRARY, PROGRAM]


def test_what_cannot_be_printed_is_a_failure(pods: PodNode) -> None:
    environment = {"GPUPLUGIN_SIM_NVML": str(pods.socket), "NVIDIA_VISIBLE_DEVICES": "all"}
    program = shlex.quote(str(built_program()))
    for ending in ("-L >/dev/full", "-q >/dev/full", "-L >&-", "-q >&-", "-q -f /dev/full"):
        done = subprocess.run(["sh", "-c", f"{program} {ending}"], env=environment, check=False)
        assert done.returncode == 2, ending


def test_an_error_of_whoever_serves_pods_is_his_own(tmp_path: Path) -> None:
    node = RealTimeNode(SimulatedNode(parse_scenario(SCENARIO, "pods")))
    with (
        tempfile.TemporaryDirectory(prefix="gp") as name,
        pytest.raises(FileNotFoundError),
        pod_door(node, Path(name)),
    ):
        (tmp_path / "not-there").read_text()


def test_a_loop_prints_until_it_is_ended(pods: PodNode) -> None:
    pod = pods.pod("1")
    with pod.start("nvidia-smi", "-L", "-lms", "20") as running:
        assert running.stdout is not None
        lines = {running.stdout.readline() for _ in range(3)}
        running.kill()
    assert len(lines) == 1


def test_it_says_where_no_node_is(pods: PodNode) -> None:
    pods.door.close()
    done = pods.pod("all").run("nvidia-smi")
    assert done.returncode == pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    assert "/usr/local/nvidia/run/smi.sock" in done.stdout


@pytest.mark.slow
def test_a_gpu_that_hangs_holds_up_who_asks_about_it_and_nobody_else(pods: PodNode) -> None:
    with pods.node.update() as model:
        model.inject(model.present[0], Hang())
    with pods.pod("0").start("nvidia-smi", "-L") as waiting:
        assert pods.pod("1").run("nvidia-smi", "-L").returncode == 0
        assert waiting.poll() is None
        with pods.node.update() as model:
            model.inject(model.present[0], Recovery())
        text, _ = waiting.communicate(timeout=20)
    assert pods.uuids()[0] in text


def greeted(path: Path, visible: bytes = b"all", session: int = 0) -> tuple[socket.socket, int]:
    """A connection that has introduced itself, and the code that it was answered."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20.0)
    client.connect(str(path))
    body = struct.pack("=HHQQ", 0xFFFF, 0, abi_hash(), session) + visible
    client.sendall(struct.pack("=I", len(body)) + body)
    _, code = struct.unpack_from("=Ii", client.recv(4096))
    return client, code


def test_floods_are_bounded_and_others_are_served(
    pods: PodNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "GREETING_S", 0.2)
    monkeypatch.setattr(server, "MOST_POD_CONNECTIONS", 40)
    monkeypatch.setattr(server, "MOST_OF_ALIKE", 10)
    descriptors = Path(f"/proc/{os.getpid()}/fd")
    before = len(list(descriptors.iterdir()))
    with ExitStack() as flood:
        for _ in range(60):
            silent = flood.enter_context(socket.socket(socket.AF_UNIX))
            silent.connect(str(pods.socket))
        alike = [greeted(pods.socket, b"0") for _ in range(11)]
        assert [code for _, code in alike].count(pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES) == 1
        assert pods.pod("1").run("nvidia-smi", "-L").returncode == 0
        eventually(lambda: len(list(descriptors.iterdir())) < before + 60 + 11 + 20)
        for client, _ in alike:
            client.close()


def test_a_request_that_is_too_long_ends_its_connection(pods: PodNode) -> None:
    client, _ = greeted(pods.socket)
    with client:
        client.sendall(struct.pack("=IHH", server.MOST_POD_BYTES + 1, 0, 0))
        assert client.recv(4096) == b""
    with socket.socket(socket.AF_UNIX) as smi:
        smi.settimeout(20.0)
        smi.connect(str(pods.folder / "run/smi.sock"))
        smi.sendall(struct.pack("=I", 1 << 30))
        assert smi.recv(4096) == b""
    assert pods.pod("0").run("nvidia-smi", "-L").returncode == 0


def test_calls_of_pods_are_spread_over_time(pods: PodNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "POD_CALLS_PER_S", 200)
    number = [function.name for function in FUNCTIONS].index("nvmlDeviceGetCount_v2")
    body = struct.pack("=HHQ", number, 1, 4)
    client, _ = greeted(pods.socket)
    with client:
        began_s = time.monotonic()
        for _ in range(60):
            client.sendall(struct.pack("=I", len(body)) + body)
            assert client.recv(4096)
        # The first and the last period may be used up at once.
        assert time.monotonic() - began_s > (60 - 2 * 10) / 200


def test_a_session_of_another_cannot_be_joined(pods: PodNode) -> None:
    client, _ = greeted(pods.socket, b"0")
    with client:
        for session in (1, 2, 1 << 62):
            other, code = greeted(pods.socket, b"1", session)
            assert code == 0
            other.close()


def test_the_library_can_be_unloaded_before_a_fork() -> None:
    try:
        library = built_library()
    except CannotBuild as error:
        pytest.skip(str(error))
    code = (
        "import ctypes, _ctypes, os, sys\n"
        "_ctypes.dlclose(ctypes.CDLL(sys.argv[1])._handle)\n"
        "assert sys.argv[1] not in open('/proc/self/maps').read()\n"
        "pid = os.fork() or os._exit(0)\n"
        "sys.exit(os.waitpid(pid, 0)[1])\n"
    )
    python = shutil.which("python3") or "python3"
    assert subprocess.run([python, "-c", code, library], check=False).returncode == 0


@pytest.mark.slow
def test_both_files_are_made_for_another_machine(tmp_path: Path) -> None:
    compiler = "aarch64-linux-gnu-gcc"
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed (Debian: gcc-aarch64-linux-gnu)")
    environment = {"PATH": os.environ["PATH"], "CC": compiler, "XDG_CACHE_HOME": str(tmp_path)}
    aarch64 = 183
    for built in (built_library(environment), built_program(environment)):
        assert struct.unpack_from("=H", built.read_bytes(), 18) == (aarch64,)
