"""The configuration that a child reads is the one that this process would read."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from gpuplugin.config import apart
from gpuplugin.config.apart import Reading
from gpuplugin.config.load import load_settings
from gpuplugin.config.loaded import ConfigError
from gpuplugin.config.options import OPTIONS

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


def test_a_child_reads_what_this_process_would(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(FILE)
    given = (
        {FLAGS["--mig-strategy"]: "mixed", FLAGS["--health-quiet-period"]: "90s"},
        {"DEVICE_ID_STRATEGY": "index", "UNRELATED": "x" * 200_000},
        str(file),
    )
    read = Reading(*given).result()
    assert read == load_settings(*given)
    assert read.settings.sharing.plan().resources[0].replicas == 3
    assert "healht" in str(read.warnings[0])


def test_a_child_tells_all_that_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("flags: {migStrategy: none at all}\nhealth: {quietPeriod: soon}\n")
    with pytest.raises(ConfigError) as told:
        Reading({}, {}, str(file)).result()
    with pytest.raises(ConfigError) as expected:
        load_settings({}, {}, str(file))
    assert told.value.problems == expected.value.problems
    assert len(told.value.problems) == 2


def test_a_reader_that_dies_is_told_of(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr("gpuplugin.config.child.answer", lambda _request, _end: os._exit(3))
    with pytest.raises(ConfigError, match="could not be read: its reader ended without an answer"):
        Reading({}, {}, None).result()


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
        Reading({}, {}, None).result()


def own_children() -> str:
    return Path("/proc/thread-self/children").read_text()


def test_no_child_and_no_pipe_is_left(tmp_path: Path) -> None:
    descriptors, children = len(list(Path("/proc/self/fd").iterdir())), own_children()
    for text in (FILE, "flags: 7"):
        (tmp_path / "config.yaml").write_text(text)
        with suppress(ConfigError):
            Reading({}, {}, str(tmp_path / "config.yaml")).result()
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    assert own_children() == children


def test_a_reader_that_hangs_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pipe = tmp_path / "config.yaml"
    os.mkfifo(pipe)  # nobody ever writes to it
    monkeypatch.setattr(apart, "TIMEOUT_S", 0.5)
    with pytest.raises(ConfigError, match=r"no answer within 0\.5 s"):
        Reading({}, {}, str(pipe)).result()


def test_modules_of_the_working_directory_are_not_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "yaml.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    assert Reading({}, {}, None).result() == load_settings({}, {}, None)


def test_neither_the_daemon_nor_its_reader_loads_what_they_do_without() -> None:
    script = (
        "import sys, gpuplugin.cli.main, gpuplugin.cli.parser, gpuplugin.cli.rundaemon\n"
        "import gpuplugin.cli.run, gpuplugin.config.load\n"
        "print(*sorted({'pydantic', 'pydantic_core', 'simpy', 'rich', 'sim'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == []
