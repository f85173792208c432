"""What production installs works without the packages sim and benchmarks, and without simpy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from gpuplugin.version import VERSION

if TYPE_CHECKING:
    from pathlib import Path

ABSENT = """\
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {"benchmarks", "plotly", "sim", "simpy"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""
EVERY_MODULE = """\
import importlib, pkgutil
import gpuplugin, hal

for package in (gpuplugin, hal):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
        print(found.name)
"""
COMMAND = """\
from gpuplugin.cli.main import main
sys.exit(main())
"""
COMMANDS = """\
import json
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from gpuplugin.cli.main import main

answers = []
for words in json.loads(sys.argv[1]):
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        status = main(words)
    answers.append((status, out.getvalue(), err.getvalue()))
print(json.dumps(answers))
"""
REFUSED = [
    ("gpuplugin sim", ["sim", "up", "homelab", "--kubelet-dir", "/tmp/x"]),
    ("gpuplugin sim", ["sim", "--help"]),
    ("gpuplugin demo", ["demo"]),
    ("gpuplugin record", ["record"]),
    ("gpuplugin calibrate", ["calibrate"]),
    ("gpuplugin bench", ["bench", "--quick"]),
    ("the backend sim", ["devices", "--backend", "sim"]),
]


def without_simulator(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ABSENT + script, *words],
        env=os.environ | {"COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_every_module_can_be_imported() -> None:
    done = without_simulator(EVERY_MODULE)
    assert done.returncode == 0, done.stderr
    assert {"gpuplugin.cli.parser", "gpuplugin.daemon.app", "hal.nvml"} <= {*done.stdout.split()}


def test_a_command_of_the_simulator_says_how_to_get_it() -> None:
    """One after another in a process, since each start of Python takes its time."""
    done = without_simulator(COMMANDS, json.dumps([words for _what, words in REFUSED]))
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    for (what, words), (status, out, err) in zip(REFUSED, answers, strict=True):
        assert (status, out) == (1, ""), words
        assert err == (
            f"gpuplugin: {what} needs the simulator, which is not installed: pip install "
            f"gpuplugin-sim=={VERSION}, or use the image whose tag ends in -sim\n"
        )


def test_the_daemon_ends_rather_than_wait_for_a_simulator(tmp_path: Path) -> None:
    words = ("run", "--backend", "sim", "--kubelet-dir", str(tmp_path))
    done = without_simulator(COMMAND, *words, "--listen-address", "127.0.0.1:0")
    assert done.returncode == 1
    assert "the backend sim needs the simulator, which is not installed" in done.stderr


def test_the_help_lists_all_commands_and_the_doctor_goes_on(tmp_path: Path) -> None:
    shown = without_simulator(COMMAND, "--help")
    assert shown.returncode == 0
    assert {"run", "sim", "bench", "demo"} <= {*shown.stdout.split()}
    words = ("doctor", "--backend", "sim", "--root", str(tmp_path), "--kubelet-dir", str(tmp_path))
    done = without_simulator(COMMAND, *words)
    assert "needs the simulator" in " ".join(done.stdout.split())
    assert done.returncode == 3, done.stderr
