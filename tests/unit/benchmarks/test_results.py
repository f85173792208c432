"""A run goes to a file and back; a file that is no run says what is wrong where."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from benchmarks.results import CannotRead, as_json, read_run
from tests.unit.benchmarks.runs import a_figure, a_run, with_ratio, with_verdict

if TYPE_CHECKING:
    from pathlib import Path

FULL = with_verdict(with_ratio(a_figure(12.5, 12, None), 1.05, 1.01, 1.09), met=True)


def test_a_run_comes_back_as_it_was(tmp_path: Path) -> None:
    run = a_run(FULL, replace(FULL, p99=FULL.p50, family="8 x 10"), notes=("a note",))
    file = tmp_path / "run.json"
    file.write_text(as_json(run))
    assert read_run(file) == run


@pytest.mark.parametrize(
    ("break_it", "wrong"),
    [
        (lambda run: run["figures"][1]["p50"].pop("value"), "figures.1.p50.value: Field required"),
        (lambda run: run["machine"].update(cores="many"), "machine.cores: Input should be a valid"),
        (lambda run: run.update(figures=3), "figures: "),
        (lambda run: run.update(unheard_of=1), "unheard_of: "),
        (lambda run: run.update(schema=99), "has schema 99, this program reads 2"),
    ],
)
def test_a_broken_file_says_what_is_wrong_where(
    tmp_path: Path, break_it: object, wrong: str
) -> None:
    document = json.loads(as_json(a_run(FULL, FULL)))
    assert callable(break_it)
    break_it(document)
    file = tmp_path / "run.json"
    file.write_text(json.dumps(document))
    with pytest.raises(CannotRead) as caught:
        read_run(file)
    assert wrong in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_file_that_is_something_else(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "run.json"
    file.write_bytes(content)
    with pytest.raises(CannotRead, match=r"run\.json"):
        read_run(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CannotRead, match="cannot be read"):
        read_run(tmp_path / "none.json")
