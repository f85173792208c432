"""Starts device plugins by their command lines, our own and others, and the node that they see."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml

from benchmarks.kubelet import MeasuringKubelet, NeverCame, Registered
from benchmarks.machine import processes_of
from benchmarks.servers import DidNotStart
from gpuplugin.linesocket import ControlError
from sim.node.control import control_socket, status
from sim.node.kernel import kernel_folder
from sim.nvml.library import CannotBuild, built_library
from sim.nvml.server import nvml_socket

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gpuplugin.rpc import EngineName

GPUS = 8
START_TIMEOUT_S = 30.0
_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Node:
    """GPUs for plugins: which backend of ours sees them, and what is in its environment for that.

    `folder` is where the node listens; None if each plugin has a node of its own.
    """

    backend: Literal["nvml", "sim"]
    environment: dict[str, str]
    folder: Path | None

    @property
    def kernel(self) -> Path | None:
        """The files of its kernel."""
        return None if self.folder is None else kernel_folder(self.folder).absolute()

    def control(self, kubelet_dir: Path) -> Path:
        """Where faults are injected for the plugin of this kubelet folder."""
        return control_socket(self.folder or kubelet_dir)


@contextmanager
def simulated_node(folder: Path, scenario: str = "default") -> Iterator[Node]:
    """A node that serves `folder` until the block ends; `scenario` is a file or a shipped one.

    Without a C compiler other processes cannot see it: then it is the `sim` backend for our own
    plugin, and nothing for others.

    Raises:
        DidNotStart: it did not come up.
    """
    folder.mkdir(exist_ok=True)
    try:
        library = built_library()
    except CannotBuild:
        yield Node("sim", {}, None)
        return
    command = [sys.executable, "-m", "gpuplugin", "sim", "node", "serve"]
    process = subprocess.Popen(
        [*command, "--kubelet-dir", str(folder), "--scenario", scenario],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_for(folder, process)
        yield Node("nvml", nvml_environment(library, folder), folder)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(folder: Path, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            status(control_socket(folder))
        except ControlError as error:
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise DidNotStart(f"the simulated node did not come up: {error}") from error
            time.sleep(_POLL_S)
        else:
            return


def nvml_environment(library: Path, folder: Path) -> dict[str, str]:
    """What `gpuplugin sim env` prints."""
    kernel = kernel_folder(folder).absolute()
    others = os.environ.get("LD_LIBRARY_PATH")
    return {
        "LD_LIBRARY_PATH": f"{library.parent}:{others}" if others else str(library.parent),
        "GPUPLUGIN_SIM_NVML": str(nvml_socket(folder).absolute()),
        "GPUPLUGIN_SYSFS_ROOT": str(kernel / "sys"),
        "GPUPLUGIN_PROCFS_ROOT": str(kernel / "proc"),
    }


STOP_TIMEOUT_S = 10.0
LOG_LINES = 15

_HTTP_PORT = re.compile(rb"\bevent=http port=(\d+)")

KUBELET_DIR, CONFIG = "{kubelet_dir}", "{config}"
"""What a command line says for the kubelet's folder, and for a file in NVIDIA's format (v1)."""


@dataclass(frozen=True, slots=True)
class PluginSpec:
    """A plugin: its name in tables, and its command line with placeholders.

    `private` is one whose kubelet folder cannot be chosen. `engine` is that of this project's own.
    `floor` is a plugin in the same language whose handlers are empty.
    """

    name: str
    command: tuple[str, ...]
    private: bool = False
    engine: EngineName | None = None
    floor: PluginSpec | None = None


@dataclass(frozen=True, slots=True)
class RunningPlugin:
    """A plugin that was started; `started_ns` is from right before that."""

    spec: PluginSpec
    kubelet: MeasuringKubelet
    process: subprocess.Popen[bytes]
    started_ns: int
    log: Path

    @property
    def pids(self) -> list[int]:
        return processes_of(self.process.pid)

    def first(self) -> Registered:
        """The plugin's first resource, once it is registered and its list is there.

        Raises:
            DidNotStart: it ended, or that did not happen in time; with the end of its log.
        """
        try:
            self.kubelet.wait_until(
                lambda kubelet: any(plugin.lists for plugin in kubelet.plugins),
                START_TIMEOUT_S,
                self.alive,
            )
        except NeverCame as error:
            raise DidNotStart(self.failure(f"has no device list: {error}")) from error
        return next(plugin for plugin in self.kubelet.plugins if plugin.lists)

    @property
    def http_port(self) -> int | None:
        """Where its metrics are, if its log has a port as ours does before it registers."""
        found = _HTTP_PORT.search(self.log.read_bytes())
        return int(found[1]) if found else None

    def alive(self) -> bool:
        return self.process.poll() is None

    def failure(self, what: str) -> str:
        """What to say of a failure, with the exit status and the end of the log."""
        status = self.process.poll()
        ended = "" if status is None else f", it ended with {status}"
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return "\n  ".join([f"plugin {self.spec.name} {what}{ended}; its log ends:", *lines])


def spec_from(text: str, private: frozenset[str] = frozenset()) -> PluginSpec:
    """`NAME=COMMAND` as the command line has it.

    Raises:
        ValueError: no name, no command, quotes that do not close, or a plugin that would be free
            to find the kubelet of this machine.
    """
    name, equals, command = text.partition("=")
    words = tuple(shlex.split(command))
    if not (name and equals and words):
        raise ValueError(f"a plugin is NAME=COMMAND, found {text!r}")
    if name not in private and not any(KUBELET_DIR in word for word in words):
        raise ValueError(
            f"{name} would register with the kubelet of this machine: put {KUBELET_DIR} where its "
            f"command names the kubelet's folder, or give --private-kubelet-dir {name}"
        )
    return PluginSpec(name, words, private=name in private)


def own_plugin(engine: EngineName, backend: str) -> PluginSpec:
    """This project's daemon as it runs in production, on an engine."""
    command = (
        sys.executable, "-m", "gpuplugin", "run", "--backend", backend,
        "--kubelet-dir", KUBELET_DIR, "--config-file", CONFIG,
        "--listen-address", "127.0.0.1:0", "--rpc-engine", engine,
    )  # fmt: skip
    name = "gpuplugin" if engine == "fast" else f"gpuplugin/{engine}"
    return PluginSpec(name, command, engine=engine)


@contextmanager
def started(spec: PluginSpec, node: Node, replicas: int) -> Iterator[RunningPlugin]:
    """The plugin in a new process group, with a kubelet of its own, until the block ends.

    Raises:
        DidNotStart: there is no such program.
    """
    with tempfile.TemporaryDirectory(prefix="gp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        kubelet_dir = folder / "k"
        kubelet_dir.mkdir()
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(_config(replicas)), "utf-8")
        hold = folder / "hold"
        command = _command(spec, node, kubelet_dir, config, hold)
        log = folder / "log"
        with MeasuringKubelet(kubelet_dir) as kubelet, log.open("wb") as stream:
            started_ns = time.perf_counter_ns()
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE if hold.exists() else subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    env={**_environment(), **node.environment},
                    start_new_session=True,
                )
            except OSError as error:
                raise DidNotStart(f"plugin {spec.name} cannot be started: {error}") from error
            try:
                if process.stdin is not None:
                    started_ns = _let_go(process, hold)
                yield RunningPlugin(spec, kubelet, process, started_ns, log)
            finally:
                _end(process)


def _let_go(process: subprocess.Popen[bytes], hold: Path) -> int:
    """Let a program begin whose namespace is ready, which is no part of its start; when."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not hold.with_name(_READY).exists() and process.poll() is None:
        if time.monotonic() > deadline_s:
            raise DidNotStart("the mount namespace of a plugin was not ready in time")
        time.sleep(_POLL_S)
    started_ns = time.perf_counter_ns()
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.close()
    return started_ns


def _environment() -> dict[str, str]:
    """Ours, but that Python keeps what it compiled: as in an image, nothing is compiled twice."""
    return {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _command(
    spec: PluginSpec, node: Node, kubelet_dir: Path, config: Path, hold: Path
) -> list[str]:
    """Others than our own are in a mount namespace wherever there can be one."""
    seen = DEFAULT_KUBELET_DIR if spec.private else kubelet_dir
    words = [
        word.replace(KUBELET_DIR, str(seen)).replace(CONFIG, str(config)) for word in spec.command
    ]
    if not spec.private and (spec.engine is not None or not isolates()):
        return words
    if shutil.which(words[0]) is None:  # in the namespace its shell would find that out
        text = f"plugin {spec.name} cannot be started: there is no program {words[0]}"
        raise DidNotStart(text)
    hold.mkdir()
    return with_private_kubelet_dir(words, kubelet_dir, hold, kernel=node.kernel)


def _config(replicas: int) -> dict[str, object]:
    config: dict[str, object] = {"version": "v1"}
    if replicas > 1:
        resources = [{"name": "nvidia.com/gpu", "replicas": replicas}]
        config["sharing"] = {
            "timeSlicing": {"failRequestsGreaterThanOne": False, "resources": resources}
        }
    return config


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and after a while SIGKILL for whatever is left of the group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


DEFAULT_KUBELET_DIR = Path("/var/lib/kubelet")
_UNSHARE = ("unshare", "--mount", "--propagation", "private")

_READY = "ready"
_SCRIPT = """
set -eu
dir=$1 target=$2 hold=$3 kernel=$4 ready=$5
shift 5
if [ ! -d "$target" ]; then
    base=$target
    while [ ! -d "$base" ]; do base=$(dirname "$base"); done
    mount --rbind "$base" "$hold"
    mount -t tmpfs none "$base"
    for entry in "$hold"/* "$hold"/.[!.]*; do
        name=$base/${entry##*/}
        if [ -L "$entry" ]; then
            cp -P "$entry" "$name"
        elif [ -d "$entry" ]; then
            mkdir "$name"
            mount --rbind "$entry" "$name"
        elif [ -e "$entry" ]; then
            : >"$name"
            mount --bind "$entry" "$name"
        fi
    done
    mkdir -p "$target"
fi
mount --bind "$dir" "$target"
if [ -n "$kernel" ]; then
    for place in proc/driver sys/bus/pci/devices sys/bus/pci/drivers sys/module; do
        if [ -e "$kernel/$place" ] && [ -e "/$place" ]; then
            mount --rbind "$kernel/$place" "/$place" || echo "/$place stays the host's" >&2
        fi
    done
fi
: >"$ready"
read -r _ || true
exec "$@" </dev/null
"""
"""A target that the host lacks is made on a tmpfs over its nearest folder, whose other entries are
mounted back into it."""


@cache
def isolates() -> bool:
    """Whether other plugins are run in a private mount namespace here."""
    try:
        check_namespaces()
    except NoNamespace:
        return False
    return True


class NoNamespace(Exception):
    """A private mount namespace cannot be had; the text says why."""


def check_namespaces() -> None:
    """See that private mount namespaces can be had here.

    Raises:
        NoNamespace: not root, no util-linux, or forbidden as in most containers.
    """
    if os.geteuid() != 0:
        raise NoNamespace("a private mount namespace needs root: run this as root")
    command = [*_UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoNamespace(f"a private mount namespace needs unshare and mount: {error}") from error
    if done.returncode:
        reason = done.stderr.strip() or f"exit status {done.returncode}"
        raise NoNamespace(f"private mount namespaces are not allowed here: {reason}")


def with_private_kubelet_dir(
    command: Sequence[str],
    folder: Path,
    hold: Path,
    target: Path = DEFAULT_KUBELET_DIR,
    kernel: Path | None = None,
) -> list[str]:
    """The command in a mount namespace of its own, where `folder` is at `target`.

    So are the files of a node's kernel, if given, in their real places. Mounts there end with the
    last process in it, so the host does not change. `hold` is an empty folder for the script. It
    makes a file `ready` beside it, and begins the command when its standard input ends. Needs root,
    and `unshare` and `mount` of util-linux.
    """
    places = (folder, target, hold, kernel or "", hold.with_name(_READY))
    return [*_UNSHARE, "sh", "-c", _SCRIPT, "sh", *map(str, places), *command]
