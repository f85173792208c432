"""A container without an engine: the image's root from its Containerfile, run under bubblewrap.

Instead of the base image there is this machine's Python, copied with the libraries that it needs
and nothing else: no shell, no package manager, no programs. Mounts, arguments, environment and user
are those of the DaemonSet.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.e2e.conftest import DEADLINE_S
from tests.e2e.containerfile import FILE, Stage, image_environment, stages
from tests.unit.deploy.manifests import (
    base_manifest,
    plugin_container,
    plugin_environment,
    pod_spec,
)
from tools.requirements import write

if TYPE_CHECKING:
    import signal
    from collections.abc import Sequence

USER = 65534
SOCKET_FOLDER = "/var/lib/kubelet/plugins_registry/gpuplugin"
BASE_PATH = "/usr/local/bin:/usr/bin:/bin"
STAGE_FOLDERS = ("app", "build", "src")
"""Where the stage `build` writes, at the top of its root."""

_LIBRARY = re.compile(r"(/\S+) \(0x")
_NOT_IN_BASE = (
    "__pycache__",
    "config-*",
    "site-packages",
    "dist-packages",
    "test",
    "idlelib",
    "*tkinter*",
)


def require_sandbox() -> None:
    """Skip the test where there can be no sandbox, and say why."""
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed (Debian: bubblewrap)")
    if os.getuid() != 0:
        pytest.skip("only root can hand a folder over to another user")
    tried = subprocess.run(
        [
            "bwrap",
            "--unshare-all",
            "--ro-bind",
            "/",
            "/",
            "--proc",
            "/proc",
            "--dev",
            "/dev",
            "true",
        ],
        **_as_user(),
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode:
        pytest.skip(f"no sandbox for an ordinary user here: {tried.stderr.strip()}")


def build_images(folder: Path, cache: Path) -> dict[str, Path]:
    """Do what the Containerfile says; returns the root of each image by its target.

    The wheels are those for the Python of this machine, so their hashes are, too.
    """
    base, stage = folder / "base", folder / "stage"
    _make_base(base)
    every = stages(FILE.read_text())
    for name in STAGE_FOLDERS:
        (stage / name).mkdir(parents=True)
    write(folder / "requirements", f"{sys.version_info.major}.{sys.version_info.minor}")
    building = Stage(
        stage, _host_with(base, stage), dict(os.environ) | {"PATH": BASE_PATH}, cache,
        instead={"deploy/requirements": folder / "requirements"},
    )  # fmt: skip
    Stage(base, _inside(base), {"PATH": BASE_PATH}, cache).build(every["base"])
    roots = {}
    for before, target in (("build", "plugin"), ("build-sim", "sim")):
        building.build(every[before])
        root = roots[target] = folder / target
        shutil.copytree(base, root, symlinks=True)
        Stage(root, _inside(root), {"PATH": BASE_PATH}, cache, {before: stage}).build(every[target])
        _complete(root)
    return roots


def _complete(root: Path) -> None:
    """What an engine would add: libraries of this machine's Python, and places to mount at."""
    _copy_libraries(sorted((root / "app").rglob("*.so*")), root)
    for mount in plugin_container()["volumeMounts"]:
        (root / mount["mountPath"].lstrip("/")).mkdir(parents=True)
    for name in ("dev", "proc"):
        (root / name).mkdir(exist_ok=True)


def _make_base(root: Path) -> None:
    """The Python that runs this, at the place where Python images have theirs."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    program, library = root / "usr/local/bin/python3", root / "usr/local/lib" / version
    program.parent.mkdir(parents=True)
    shutil.copy(Path(sys.base_prefix, "bin", version), program)
    shutil.copytree(
        sysconfig.get_path("stdlib"), library, ignore=shutil.ignore_patterns(*_NOT_IN_BASE)
    )
    _copy_libraries([program, *sorted(library.rglob("*.so"))], root)


def _copy_libraries(programs: Sequence[Path], root: Path) -> None:
    """What the loader would load for them, to the same places under `root`."""
    listed = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False).stdout
    for name in sorted(set(_LIBRARY.findall(listed))):
        goal = root / name.lstrip("/")
        if not goal.exists() and not name.startswith(str(root)):
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(name, goal)


def _host_with(base: Path, stage: Path) -> list[str]:
    """For the stage that needs tools: this machine read-only, but the base's Python."""
    words = ["bwrap"]
    for path in sorted(Path("/").iterdir()):
        if path.name not in {*STAGE_FOLDERS, "dev", "proc", "tmp"}:
            words += ["--ro-bind", str(path), str(path)]
    words += ["--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev"]
    words += ["--ro-bind", str(base / "usr/local"), "/usr/local"]
    for name in STAGE_FOLDERS:
        words += ["--bind", str(stage / name), f"/{name}"]
    return words


def _inside(root: Path) -> list[str]:
    return ["bwrap", "--unshare-all", "--bind", str(root), "/", "--proc", "/proc", "--dev", "/dev"]


def hand_over(folder: Path) -> None:
    """Run the init container's command on the folder, as root with CAP_CHOWN alone."""
    (init,) = pod_spec()["initContainers"]
    (mount,) = init["volumeMounts"]
    capabilities = init["securityContext"]["capabilities"]
    words = ["bwrap", "--unshare-pid", "--unshare-net", "--cap-drop", *capabilities["drop"]]
    for name in capabilities["add"]:
        words += ["--cap-add", f"CAP_{name}"]
    for name in ("/usr", "/bin", "/lib", "/lib64"):
        words += ["--ro-bind-try", name, name]
    words += ["--bind", str(folder), mount["mountPath"], "--", *init["command"]]
    subprocess.run(words, check=True, timeout=DEADLINE_S)


class Sandbox:
    """How the DaemonSet runs the image: a root, mounts, an environment."""

    def __init__(self, root: Path, config: Path, socket_folder: Path) -> None:
        self._root = root
        self._sources = {"config": config, "socket-folder": socket_folder}
        for name, text in base_manifest("ConfigMap")["data"].items():
            (config / name).write_text(text)

    def words(self, *command: str, more: Sequence[str] = ()) -> list[str]:
        """The command line that runs `command`; `more` are options of bubblewrap.

        A container has a /dev/shm to write to, which this one has not.
        """
        container = plugin_container()
        words = ["bwrap", "--unshare-all", "--die-with-parent", "--as-pid-1", "--cap-drop", "ALL"]
        words += ["--uid", str(USER), "--gid", str(USER), "--clearenv"]
        words += ["--ro-bind", str(self._root), "/", "--proc", "/proc"]
        words += ["--dev", "/dev", "--remount-ro", "/dev", *more]
        for mount in container["volumeMounts"]:
            option = "--ro-bind" if mount.get("readOnly") else "--bind"
            words += [option, str(self._sources[mount["name"]]), mount["mountPath"]]
        environment = image_environment(stages(FILE.read_text())["base"], {"PATH": BASE_PATH})
        environment |= plugin_environment()
        for name, value in environment.items():
            words += ["--setenv", name, value]
        return [*words, "--chdir", "/", "--", *command]

    def ask(self, script: str) -> dict[str, Any]:
        """What a Python script, run with the image's Python, prints as JSON."""
        done = subprocess.run(
            self.words("python3", "-c", script),
            **_as_user(),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S * 2,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


class Contained:
    """The plugin as the DaemonSet starts it, with simulated GPUs instead of a driver.

    The simulated node listens in the kubelet's folder for faults: a tmpfs there is
    the only thing that the manifest has not.
    """

    def __init__(self, sandbox: Sandbox, log: Path, *flags: str) -> None:
        container = plugin_container()
        command = [*container["command"], *container["args"], "--backend=sim", *flags]
        self._log = log
        reading, writing = os.pipe()
        with os.fdopen(reading) as info:
            with log.open("w") as output:
                self._process = subprocess.Popen(
                    sandbox.words(
                        *command,
                        more=["--tmpfs", "/var/lib/kubelet", "--info-fd", str(writing)],
                    ),
                    **_as_user(),
                    pass_fds=[writing],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            os.close(writing)
            told = info.read()
        assert told, self.output
        self.pid: int = json.loads(told)["child-pid"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(DEADLINE_S)

    @property
    def output(self) -> str:
        return self._log.read_text()

    def proc(self, name: str) -> str:
        """A file of /proc about the process, from outside."""
        return Path(f"/proc/{self.pid}/{name}").read_text()

    def status(self) -> dict[str, str]:
        """/proc/PID/status by key."""
        pairs = (line.partition(":") for line in self.proc("status").splitlines())
        return {key: value.strip() for key, _, value in pairs}

    def stop(self, number: signal.Signals) -> int:
        """Send the signal to the process itself; returns how it ended."""
        os.kill(self.pid, number)
        return self._process.wait(DEADLINE_S)

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of an answer, asked for from its own network."""
        script = (
            "import sys; from tests.e2e.conftest import get;"
            "print(*get(2112, sys.argv[1]), sep='\\n')"
        )
        done = subprocess.run(
            ["nsenter", "--target", str(self.pid), "--net", sys.executable, "-c", script, path],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        if done.returncode:
            return 0, done.stderr
        status, _, body = done.stdout.partition("\n")
        return int(status), body


def _as_user() -> dict[str, Any]:
    return {"user": USER, "group": USER, "extra_groups": []}
