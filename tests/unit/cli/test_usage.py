"""How the command line helps: usage, the nearest word, examples, completion, the man page."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gpuplugin.cli.main import main
from gpuplugin.cli.parser import build_parser
from gpuplugin.cli.usage import examples
from tools.man import page

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]


def parsers(
    parser: argparse.ArgumentParser, path: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield path, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from parsers(inner, f"{path} {name}".strip())


ALL = dict(parsers(build_parser()))


@pytest.mark.parametrize("path", ALL)
def test_every_command_has_pages_that_are_there(path: str) -> None:
    pages = (ALL[path].epilog or "").partition("more: ")[2].split(", ")
    assert all((ROOT / name).is_file() for name in pages), pages


@pytest.mark.parametrize("example", examples())
def test_examples_are_commands(example: str) -> None:
    assert build_parser().parse_args(shlex.split(example)).function


def test_the_help_lists_every_command_in_a_group() -> None:
    text = build_parser().format_help()
    assert "Simulation, without a GPU:\n  demo " in text
    for name in (path for path in ALL if path and " " not in path):
        assert f"\n  {name} " in text, name
    assert "Others:" not in text


def test_options_tell_their_defaults_and_are_grouped() -> None:
    text = " ".join(ALL["run"].format_help().split())
    assert "health of GPUs:" in text
    for default in ("default /var/lib/kubelet", "default 30s", "default false", "default uuid"):
        assert f"({default})" in text


def test_the_help_fits_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for path, parser in ALL.items():
        longest = max(parser.format_help().splitlines(), key=len)
        assert len(longest) <= 80 or "  gpuplugin " in longest or "|" in longest, (path, longest)


@pytest.mark.parametrize(
    ("arguments", "usage", "said"),
    [
        (("run", "--listen-adress", "x"), "usage: gpuplugin run", "did you mean --listen-address?"),
        (("helth",), "usage: gpuplugin [-h]", "did you mean health?"),
        (("sim", "kubelt"), "usage: gpuplugin sim", "did you mean kubelet?"),
        (("config", "check", "a", "--jsn"), "usage: gpuplugin config check", "mean --json?"),
        (("sim", "node", "show", "--wat"), "usage: gpuplugin sim node show", "--kubelet-dir"),
        (("sim", "up", "--kubelet-dr", "x"), "usage: gpuplugin sim up", "mean --kubelet-dir?"),
        (("health", "--colour"), "usage: gpuplugin health", "unrecognized arguments: --colour"),
    ],
)
def test_a_wrong_word_is_told_with_the_commands_own_usage(
    arguments: tuple[str, ...], usage: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith(usage)
    assert said in text


@pytest.mark.parametrize("given", ["doctor --timeout", "top --interval", "demo --pace"])
@pytest.mark.parametrize("number", ["0", "nan", "inf", "1e300", "soon"])
def test_a_time_that_cannot_be_is_wrong_usage(
    given: str, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args([*given.split(), number])
    assert caught.value.code == 2
    assert "must be a number above 0" in capsys.readouterr().err
    assert build_parser().parse_args([*given.split(), "0.5"]).function


NO_JSON = {
    "run": "logs, with --log-format json",
    "config schema": "is JSON",
    "cdi show": "is JSON",
    "record": "writes a scenario",
    "manifests": "YAML for kubectl",
    "demo": "a screen",
    "completion": "for shells",
    "sim up": "logs, with --log-format json",
    "sim fleet": "logs, with --log-format json",
    "sim scenario schema": "is JSON",
    "sim node serve": "reports nothing",
    "sim env": "for shells",
    "sim smi": "has the options of nvidia-smi",
    "sim run": "--report writes JSON",
}


def test_every_command_that_reports_does_so_in_json_too() -> None:
    groups = {path for path in ALL if any(other.startswith(f"{path} ") for other in ALL)}
    without = {
        path
        for path, parser in ALL.items()
        if path and path not in groups and "--json" not in parser._option_string_actions
    }
    assert without == set(NO_JSON)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_shells(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "gpuplugin" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("gpuplugin hea", {"health"}),
        ("gpuplugin config check --exp", {"--explain"}),
        ("gpuplugin sim inj", {"inject"}),
    ],
)
def test_a_shell_gets_what_may_come_next(line: str, words: set[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(out),
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    subprocess.run([sys.executable, "-m", "gpuplugin"], env=environment, timeout=30, check=False)
    assert set(out.read_text().split("\013")) == words


def test_the_man_page_has_every_command_and_option() -> None:
    text = page().replace("\\", "")
    for path in ALL:
        assert path in text
    assert "--listen-address" in text
    assert "examples:" in text


def test_make_alone_lists_the_targets() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "make demo         Watch a simulated GPU node" in shown
    targets = [
        line.partition(":")[0]
        for line in (ROOT / "Makefile").read_text().splitlines()
        if ": " in line and "##" in line
    ]
    assert all(f"make {target} " in shown for target in targets)
