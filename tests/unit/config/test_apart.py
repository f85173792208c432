"""The configuration that a child reads is the one that this process would read."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from gpuplugin.config import apart
from gpuplugin.config.apart import Reading
from gpuplugin.config.load import load_settings
from gpuplugin.config.loaded import ConfigError
from gpuplugin.config.options import OPTIONS
from gpuplugin.config.plain import PLAIN

if TYPE_CHECKING:
    from pathlib import Path

FLAGS = {option.flags[0]: option for option in OPTIONS}

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


def test_a_reader_that_dies_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ConfigError, match="could not be read: it ended with status 1"):
        Reading({}, {}, None).result()


def test_a_reader_that_fails_says_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("raise RuntimeError('this is no yaml')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="RuntimeError: this is no yaml"):
        Reading({}, {}, None).result()


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


@pytest.mark.parametrize(("section", "plain"), PLAIN.items(), ids=lambda one: one.__name__)
def test_a_plain_class_has_the_fields_of_its_section(section: type, plain: type) -> None:
    fields = {field.name for field in dataclasses.fields(plain)}
    assert fields == section.model_fields.keys() - {"mps"}  # type: ignore[attr-defined]


def test_the_daemon_does_without_the_checker() -> None:
    script = (
        "import sys, gpuplugin.cli.main, gpuplugin.cli.run, gpuplugin.cli.rundaemon\n"
        "print(*sorted({'pydantic', 'pydantic_core', 'simpy', 'rich', 'sim'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == []
