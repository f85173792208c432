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


def test_a_reader_that_hangs_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pipe = tmp_path / "config.yaml"
    os.mkfifo(pipe)  # nothing ever writes to it
    monkeypatch.setattr(loaded, "TIMEOUT_S", 0.5)
    with pytest.raises(ConfigError, match=r"no answer within 0\.5 s"):
        reading("--config-file", str(pipe)).result()


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
