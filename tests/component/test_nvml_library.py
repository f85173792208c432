"""The library in processes of its own: what they share, and what the death of one does to others.

Clients are unmodified: the real binding, found by `LD_LIBRARY_PATH`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from gpuplugin.linesocket import ask
from sim.node.control import control_socket, inject
from sim.nvml.library import CannotBuild, built_library
from sim.nvml.server import nvml_socket
from tests.component.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

PRELUDE = """
import ctypes, json, os, sys, threading, time
import pynvml as nvml

def say(*what):
    # One write, so that lines of threads do not mix.
    os.write(1, json.dumps(what).encode() + b"\\n")

def code_of(call):
    try:
        call()
    except nvml.NVMLError as error:
        return error.value
    return 0

def event_set():
    events = nvml.nvmlEventSetCreate()
    for index in range(nvml.nvmlDeviceGetCount()):
        gpu = nvml.nvmlDeviceGetHandleByIndex(index)
        nvml.nvmlDeviceRegisterEvents(gpu, nvml.nvmlDeviceGetSupportedEventTypes(gpu), events)
    return events
"""
GPUS = 3
LOST, NOT_LOADED = 15, 9


class Process:
    """A program that prints lines; killed at the end of the block."""

    def __init__(self, *command: str, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.kill()
        self.process.communicate()

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def says(self) -> list[object]:
        """The next thing that a client says."""
        found: list[object] = json.loads(self.line())
        return found

    def go_on(self) -> None:
        """Let it read a line."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@dataclass(slots=True)
class Node:
    """A node that a process of its own owns."""

    dir: Path
    process: Process
    env: dict[str, str] = field(default_factory=dict)

    def client(self, program: str) -> Process:
        """A client that runs this program after the prelude, initialised."""
        text = PRELUDE + "nvml.nvmlInit()\n" + textwrap.dedent(program)
        return Process("-c", text, env=self.env)

    def let(self, gpu: int, **what: object) -> None:
        """Inject a fault into a GPU."""
        inject(control_socket(self.dir), str(gpu), what)

    def descriptors(self) -> int:
        """Open files of the node's process."""
        return len(list(Path(f"/proc/{self.process.process.pid}/fd").iterdir()))


@pytest.fixture(scope="session")
def library() -> Path:
    """The library's file."""
    try:
        return built_library()
    except CannotBuild as error:
        pytest.skip(str(error))


@pytest.fixture
def node(library: Path) -> Iterator[Node]:
    """A node with three H100, served by `gpuplugin sim node serve`."""
    with tempfile.TemporaryDirectory(prefix="gp") as name:
        folder = Path(name)
        scenario = folder / "scenario.yaml"
        scenario.write_text(
            f"gpus: [{{model: h100-sxm5-80gb, count: {GPUS}}}]\n"
            "tenants: [{name: trainer, gpu: 0, utilization: 0.5}]\n"
        )
        arguments = ("sim", "node", "serve", "--kubelet-dir", name, "--scenario", str(scenario))
        with Process("-m", "gpuplugin", *arguments) as process:
            assert f"{GPUS} GPUs" in process.line()
            env = {
                "LD_LIBRARY_PATH": str(library.parent),
                "GPUPLUGIN_SIM_NVML": str(nvml_socket(folder)),
            }
            yield Node(folder, process, env)


def test_two_processes_see_the_same_gpus_and_the_same_faults(node: Node) -> None:
    look = """
    gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    say([nvml.nvmlDeviceGetUUID(gpu) for gpu in gpus])
    for line in sys.stdin:
        errors = nvml.nvmlDeviceGetTotalEccErrors(gpus[1], 0, 0)
        say(errors, code_of(lambda: nvml.nvmlDeviceGetUUID(gpus[2])))
    """
    with node.client(look) as one, node.client(look) as other:
        uuids = one.says()
        assert other.says() == uuids
        node.let(1, kind="ecc", count=7)
        node.let(2, kind="lost")
        for client in (one, other):
            client.go_on()
            assert client.says() == [7, LOST]


def test_a_fault_ends_the_waits_of_all_other_processes(node: Node) -> None:
    wait = """
    events = event_set()
    say("waits")
    event = nvml.nvmlEventSetWait_v2(events, 3600000)
    say(event.eventType, event.eventData, nvml.nvmlDeviceGetIndex(event.device))
    """
    with node.client(wait) as one, node.client(wait) as other:
        assert one.says() == other.says() == ["waits"]
        node.let(1, kind="xid", xid=43)
        assert one.says() == other.says() == [8, 43, 1]


def test_the_tenant_of_the_scenario_is_seen_by_its_name(node: Node) -> None:
    program = """
    (process,) = nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByIndex(0))
    say(nvml.nvmlSystemGetProcessName(process.pid))
    """
    with node.client(program) as client:
        assert client.says() == ["trainer"]


def test_tenants_can_be_real_processes_which_end_with_the_node(node: Node) -> None:
    node.process.process.kill()
    node.process.process.wait(DEADLINE_S)
    program = """
    (process,) = nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByIndex(0))
    say(process.pid, nvml.nvmlSystemGetProcessName(process.pid))
    """
    scenario = str(node.dir / "scenario.yaml")
    arguments = ("sim", "node", "serve", "--kubelet-dir", str(node.dir), "--scenario", scenario)
    with Process("-m", "gpuplugin", *arguments, "--processes") as serving:
        assert f"{GPUS} GPUs" in serving.line()
        with node.client(program) as client:
            pid, name = client.says()
        command = Path(f"/proc/{pid}/cmdline")
        eventually(lambda: command.read_bytes() == f"{name}\0".encode())
        assert Path(f"/proc/{pid}/comm").read_text() == f"{name}\n"
    eventually(lambda: not command.exists())


LOOK = """
for line in sys.stdin:
    say(sum(code_of(lambda: nvml.nvmlDeviceGetMemoryInfo(
        nvml.nvmlDeviceGetHandleByIndex(index))) == 0 for index in range(3)))
"""
BUSY = """
events = event_set()
gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]

def wait():
    while code_of(lambda: nvml.nvmlEventSetWait_v2(events, 1000)) in (0, 10):
        pass
    say("wait", code_of(lambda: nvml.nvmlEventSetWait_v2(events, 3600000)))

def look(gpu):
    calls = 0
    while code_of(lambda: nvml.nvmlDeviceGetMemoryInfo(gpu)) == 0:
        calls += 1
        if calls == 5:
            say("busy")
    say("look", code_of(lambda: nvml.nvmlDeviceGetTemperature(gpu, 0)))

threads = [threading.Thread(target=wait)]
threads += [threading.Thread(target=look, args=(gpu,)) for gpu in gpus]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
say("count", code_of(nvml.nvmlDeviceGetCount))
say("shutdown", code_of(nvml.nvmlShutdown), code_of(nvml.nvmlInit))
"""


@pytest.mark.parametrize("seed", range(3))
def test_clients_that_are_killed_leave_nothing_behind(node: Node, seed: int) -> None:
    generator = random.Random(seed)
    with node.client("events = event_set()\nsay()\nsys.stdin.read()") as bystander:
        assert bystander.says() == []
        before = node.descriptors()
        for _ in range(4):
            with node.client(BUSY) as client:
                for _ in range(generator.randrange(1, GPUS + 1)):
                    assert client.says() == ["busy"]
                    node.let(generator.randrange(GPUS), kind="xid", xid=31)
                client.process.send_signal(signal.SIGKILL)
        eventually(lambda: node.descriptors() <= before)
    with node.client("say(nvml.nvmlDeviceGetCount())") as client:
        assert client.says() == [GPUS]


def test_a_client_that_is_killed_while_its_gpu_hangs_is_forgotten(node: Node) -> None:
    before = node.descriptors()
    node.let(0, kind="hang")
    program = """
    gpu = nvml.nvmlDeviceGetHandleByIndex(1)
    say("there")
    nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(0))
    """
    with node.client(program) as client:
        assert client.says() == ["there"]
        client.process.send_signal(signal.SIGKILL)
        client.process.wait(DEADLINE_S)
        eventually(lambda: node.descriptors() <= before + 1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_end_of_the_node_is_the_loss_of_its_gpus(node: Node, number: signal.Signals) -> None:
    with node.client(BUSY) as client:
        for _ in range(GPUS):
            assert client.says() == ["busy"]
        node.process.process.send_signal(number)
        ends = [client.says() for _ in range(GPUS + 1)]
        assert sorted(map(str, ends)) == sorted(
            map(str, [["wait", LOST], *([["look", LOST]] * GPUS)])
        )
        assert client.says() == ["count", NOT_LOADED]
        assert client.says() == ["shutdown", 0, NOT_LOADED]
        client.process.wait(DEADLINE_S)
        assert client.process.returncode == 0


def test_the_end_of_the_node_ends_a_call_that_hangs(node: Node) -> None:
    program = """
    gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(3)]
    say("there")
    sys.stdin.readline()
    say("calls")
    say([code_of(lambda: nvml.nvmlDeviceGetMemoryInfo(gpu)) for gpu in gpus])
    """
    with node.client(program) as client:
        assert client.says() == ["there"]
        node.let(0, kind="hang")
        client.go_on()
        assert client.says() == ["calls"]
        node.process.process.kill()
        assert client.says() == [[LOST] * GPUS]
        client.process.wait(DEADLINE_S)
        assert client.process.returncode == 0


def test_a_client_that_stands_still_holds_up_nobody(node: Node) -> None:
    with node.client(BUSY) as still, node.client("event_set()\n" + LOOK) as other:
        for _ in range(GPUS):
            assert still.says() == ["busy"]
        still.process.send_signal(signal.SIGSTOP)
        for code in (31, 43):
            node.let(0, kind="xid", xid=code)
            other.go_on()
            assert other.says() == [GPUS]


def test_a_node_that_is_back_is_seen_after_the_next_init(node: Node, library: Path) -> None:
    program = """
    gpu = nvml.nvmlDeviceGetHandleByIndex(0)
    say(nvml.nvmlDeviceGetUUID(gpu))
    sys.stdin.readline()
    say(code_of(lambda: nvml.nvmlDeviceGetUUID(gpu)))
    sys.stdin.readline()
    nvml.nvmlShutdown()
    nvml.nvmlInit()
    say(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(0)))
    """
    with node.client(program) as client:
        uuid = client.says()
        node.process.process.kill()
        node.process.process.wait(DEADLINE_S)
        client.go_on()
        assert client.says() == [LOST]
        arguments = ("sim", "node", "serve", "--kubelet-dir", str(node.dir), "--scenario")
        with Process("-m", "gpuplugin", *arguments, str(node.dir / "scenario.yaml")) as again:
            assert f"{GPUS} GPUs" in again.line()
            client.go_on()
            assert client.says() == uuid


def test_parent_and_child_of_a_fork_go_their_own_ways(node: Node) -> None:
    program = """
    gpu = nvml.nvmlDeviceGetHandleByIndex(0)
    name = nvml.nvmlDeviceGetName(gpu)
    stop = threading.Event()

    def call():
        while not stop.is_set():
            assert nvml.nvmlDeviceGetName(gpu) == name

    thread = threading.Thread(target=call)
    thread.start()
    for _ in range(20):
        child = os.fork()
        if child == 0:
            same = all(nvml.nvmlDeviceGetName(gpu) == name for _ in range(20))
            os._exit(0 if same and code_of(nvml.nvmlShutdown) == 0 else 1)
        assert nvml.nvmlDeviceGetName(gpu) == name
        say(os.waitpid(child, 0)[1])
    stop.set()
    thread.join()
    say(nvml.nvmlDeviceGetName(gpu) == name)
    """
    with node.client(program) as client:
        assert [client.says() for _ in range(20)] == [[0]] * 20
        assert client.says() == [True]


def test_the_child_of_a_fork_does_not_keep_a_connection_that_is_being_made(library: Path) -> None:
    program = """
    threading.Thread(target=nvml.nvmlInit, daemon=True).start()
    sys.stdin.readline()
    child = os.fork()
    if child == 0:
        sys.stdin.readline()
        os._exit(0)
    os._exit(0)
    """
    with tempfile.TemporaryDirectory(prefix="gp") as name, socket.socket(socket.AF_UNIX) as node:
        node.bind(f"{name}/nvml.sock")
        node.listen()
        node.settimeout(DEADLINE_S)
        env = {"LD_LIBRARY_PATH": str(library.parent), "GPUPLUGIN_SIM_NVML": f"{name}/nvml.sock"}
        text = PRELUDE + textwrap.dedent(program)
        with Process("-c", text, env=env) as client:
            connection, _ = node.accept()
            with connection:
                connection.settimeout(DEADLINE_S)
                assert connection.recv(4096)  # it introduces itself, and is not answered
                client.go_on()
                client.process.wait(DEADLINE_S)
                assert connection.recv(4096) == b""


def test_what_a_program_without_an_output_prints_is_not_sent_to_the_node(node: Node) -> None:
    program = """
    output = os.dup(1)
    nvml.nvmlShutdown()
    os.close(1)
    nvml.nvmlInit()
    code_of(lambda: nvml.nvmlDeviceGetCount())
    try:
        os.write(1, b"progress")
    except OSError:
        pass
    code = code_of(lambda: nvml.nvmlDeviceGetCount())
    os.dup2(output, 1)
    say(code)
    """
    with node.client(program) as client:
        assert client.says() == [0]


def test_no_more_is_read_than_can_be_the_callers(node: Node) -> None:
    program = """
    gpu = nvml.nvmlDeviceGetHandleByIndex(0)
    values = (nvml.c_nvmlFieldValue_t * 30000)()
    values[0].fieldId = nvml.NVML_FI_DEV_ECC_CURRENT
    get = nvml._nvmlGetFunctionPointer("nvmlDeviceGetFieldValues")
    say([get(gpu, count, values) for count in (-1, 2**31 - 1, -(2**31), 1)])
    """
    with node.client(program) as client:
        assert client.says() == [[2, 2, 2, 0]]


def test_many_threads_get_their_own_answers(node: Node) -> None:
    program = """
    gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    wrong = []

    def call(index):
        for _ in range(100):
            if nvml.nvmlDeviceGetIndex(gpus[index % 3]) != index % 3:
                wrong.append(index)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say(wrong, len(os.listdir("/proc/self/fd")) < 40)
    """
    with node.client(program) as client:
        assert client.says() == [[], True]


def test_a_second_node_does_not_take_the_place_of_the_first(node: Node) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gpuplugin", "sim", "node", "serve", "--kubelet-dir", node.dir],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 1
    assert "has a simulated node already" in done.stderr
    assert ask(control_socket(node.dir), {"status": True}, DEADLINE_S)["gpus"]


def test_what_sim_env_prints_lets_a_shell_see_the_node(node: Node) -> None:
    program = PRELUDE + "nvml.nvmlInit(); say(nvml.nvmlDeviceGetCount())"
    script = (
        f'eval "$({sys.executable} -m gpuplugin sim env --kubelet-dir {node.dir})" && exec "$@"'
    )
    done = subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    assert json.loads(done.stdout) == [GPUS]
