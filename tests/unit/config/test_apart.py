"""The configuration that a child reads is the one that this process would read."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from gpuplugin.config import loaded
from gpuplugin.config.load import load_settings
from gpuplugin.config.loaded import ConfigError, Reading
from gpuplugin.config.options import OPTIONS
from gpuplugin.config.plans import sharing_plan
from tests.component.waiting import eventually

FLAGS = {option.flags[0]: option for option in OPTIONS}


@pytest.fixture(params=["fork", "program"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With threads the child is a program of its own, without them a fork."""
    chosen: str = request.param
    monkeypatch.setattr("threading.active_count", lambda: 1 if chosen == "fork" else 2)
    return chosen


FILE = """
version: v1
sharing:
  timeSlicing:
    resources:
    - {name: nvidia.com/gpu, replicas: 3, devices: ["0", GPU-a5e71bbb-cb5f-4e9a-8632-90c8f306cb20]}
resources:
  gpus: [{pattern: "*A100*", name: a100}]
healht: {}
"""


def reading(*arguments: str) -> Reading:
    return Reading("gpuplugin.cli.run", arguments)


def test_a_child_reads_what_this_process_would(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(FILE)
    monkeypatch.setenv("DEVICE_ID_STRATEGY", "index")
    flags = {"--mig-strategy": "mixed", "--health-quiet-period": "90s"}
    arguments = [word for pair in flags.items() for word in pair]
    read = reading(*arguments, "--config-file", str(file)).result()

    given = {FLAGS[flag]: text for flag, text in flags.items()}
    assert read == load_settings(given, os.environ, str(file))
    assert read.settings.flags.plugin.device_id_strategy == "index"
    assert sharing_plan(read.settings).resources[0].replicas == 3
    assert "healht" in str(read.warnings[0])


def test_a_child_reports_all_that_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("flags: {migStrategy: none at all}\nhealth: {quietPeriod: soon}\n")
    with pytest.raises(ConfigError) as read:
        reading("--config-file", str(file)).result()
    with pytest.raises(ConfigError) as expected:
        load_settings({}, {}, str(file))
    assert read.value.problems == expected.value.problems
    assert len(read.value.problems) == 2


def test_what_a_child_hands_over_does_not_change(tmp_path: Path) -> None:
    settings = reading().result().settings
    for part in (settings, settings.daemon):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(part, "log_level", "debug")  # noqa: B010 - no checker of types may see it
    assert settings.daemon.log_level == "info"


@pytest.mark.parametrize(
    ("arguments", "status", "printed"),
    [(("--help",), 0, "--mig-strategy none|single|mixed"), (("--no-such",), 2, "--no-such")],
)
def test_help_and_wrong_arguments_end_with_their_status(
    capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], status: int, printed: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        reading(*arguments).result()
    assert ended.value.code == status
    assert printed in "".join(capfd.readouterr())


def test_a_reader_that_dies_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr("gpuplugin.cli.run.read", lambda _answers: os._exit(3))
    with pytest.raises(ConfigError, match="could not be read: its reader ended without an answer"):
        reading().result()


def test_a_reader_that_fails_says_how(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
) -> None:
    if way == "fork":
        monkeypatch.setattr("gpuplugin.config.load.load_settings", lambda *_: 1 / 0)
        expected = "ZeroDivisionError"
    else:
        (tmp_path / "yaml.py").write_text("raise RuntimeError('this is no yaml')")
        monkeypatch.syspath_prepend(str(tmp_path))
        expected = "RuntimeError: this is no yaml"
    with pytest.raises(ConfigError, match=expected):
        reading().result()


def own_children() -> str:
    return Path("/proc/thread-self/children").read_text()


def test_no_child_and_no_pipe_is_left(tmp_path: Path) -> None:
    descriptors, children = len(list(Path("/proc/self/fd").iterdir())), own_children()
    for text in (FILE, "flags: 7"):
        (tmp_path / "config.yaml").write_text(text)
        with suppress(ConfigError):
            reading("--config-file", str(tmp_path / "config.yaml")).result()
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    assert own_children() == children


def large_file(folder: Path) -> Path:
    """A file that is read for seconds."""
    file = folder / "config.yaml"
    file.write_text("flags: {}\n" + "".join(f"k{number}: 1\n" for number in range(90_000)))
    return file


def test_a_reader_that_hangs_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(loaded, "TIMEOUT_S", 0.5)
    with pytest.raises(ConfigError, match=r"no answer within 0\.5 s"):
        reading("--config-file", str(large_file(tmp_path))).result()


def test_a_reader_ends_with_its_daemon(way: str, tmp_path: Path) -> None:
    script = (
        "import threading, time\nfrom gpuplugin.config.loaded import Reading\n"
        f"threading.active_count = lambda: {1 if way == 'fork' else 2}\n"
        f"read = Reading('gpuplugin.cli.run', ['--config-file', {str(large_file(tmp_path))!r}])\n"
        "print(read._pid, flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        reader = Path("/proc") / daemon.stdout.readline().decode().strip()
        # It reads: everything that it needs is loaded.
        eventually(lambda: "pydantic_core" in (reader / "maps").read_text())
        daemon.kill()
        daemon.wait()
        eventually(lambda: not reader.exists() or "State:\tZ" in (reader / "status").read_text(), 3)


def test_a_file_that_takes_too_much_memory_is_refused(way: str, tmp_path: Path) -> None:
    if way == "program":
        pytest.skip("only a fork has what this test changes")
    script = (
        "from gpuplugin.config import loaded\nloaded._MEMORY_BYTES = 16 * 1024 * 1024\n"
        f"arguments = ['--config-file', {str(large_file(tmp_path))!r}]\n"
        "loaded.Reading('gpuplugin.cli.run', arguments).result()"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "its reader needs more memory than it may take" in found.stderr


@pytest.mark.parametrize(
    ("limit", "now", "budget_mib"),
    [("max", "1", 40), (str(2**30), "1", 40), (str(2**26), str(2**25), 24), ("1", "1", 16)],
)
def test_a_reader_leaves_its_container_room(
    tmp_path: Path, limit: str, now: str, budget_mib: int
) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{now}\n")
    script = (
        "import resource\nfrom pathlib import Path\nfrom gpuplugin.config.loaded import *\n"
        f"limit_memory(Path({str(tmp_path)!r}))\n"
        "pages = int(Path('/proc/self/statm').read_text().split()[0])\n"
        "most = resource.getrlimit(resource.RLIMIT_AS)[0] - pages * resource.getpagesize()\n"
        "print(round(most / 2**20))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert abs(int(found.stdout) - budget_mib) <= 1


def test_a_limit_of_addresses_that_the_daemon_has_is_kept(tmp_path: Path) -> None:
    script = (
        "import resource\nfrom pathlib import Path\nfrom gpuplugin.config.loaded import *\n"
        "pages = int(Path('/proc/self/statm').read_text().split()[0])\n"
        "limit = pages * resource.getpagesize() + 2**23\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        f"limit_memory(Path({str(tmp_path)!r}))\n"
        "assert resource.getrlimit(resource.RLIMIT_AS) == (limit, limit)"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr


def test_modules_of_the_working_directory_are_not_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "yaml.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    assert reading().result() == load_settings({}, os.environ, None)


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        pytest.param(
            "gpuplugin.cli.main, gpuplugin.cli.run, gpuplugin.cli.rundaemon",
            {"argparse", "pydantic", "pydantic_core", "pydantic_settings", "yaml", "simpy", "rich",
             "sim"},
            id="daemon",
        ),
        pytest.param(
            "gpuplugin.cli.run, gpuplugin.cli.parser, gpuplugin.config.load",
            {"gpuplugin.daemon", "grpc", "google", "simpy", "rich", "sim"},
            id="reader",
        ),
    ],
)  # fmt: skip
def test_neither_the_daemon_nor_its_reader_loads_what_they_do_without(
    modules: str, unwanted: set[str]
) -> None:
    script = f"import sys, {modules}\nprint(*sorted({unwanted!r} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == []


def test_the_daemon_reads_its_settings_without_pydantic() -> None:
    script = (
        "import sys\nfrom gpuplugin.config.loaded import Reading\n"
        "print(Reading('gpuplugin.cli.run', []).result().settings.flags.mig_strategy)\n"
        "print(*sorted({'pydantic', 'pydantic_core', 'yaml'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["none"]
