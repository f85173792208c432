"""`gpuplugin advise` as a process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import gpuplugin

if TYPE_CHECKING:
    from pathlib import Path

API = ("advise", "--workload", "api:15/100/2:8", "--model", "l4")


def test_the_answer_comes_first_and_the_configuration_last() -> None:
    result = gpuplugin(*API, "--slowdown-p95", "4")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Make 4 replicas of the NVIDIA L4: with 6, 95 of 100 requests")
    assert lines[-1] == "      replicas: 4"
    (chosen,) = (line.split() for line in lines if line.startswith("4 <"))
    assert chosen[-1] == "kept"


def test_the_page_and_the_json_say_the_same(tmp_path: Path) -> None:
    page = tmp_path / "advice.html"
    result = gpuplugin(*API, "--slowdown-p95", "4", "--json", "--html", str(page))
    assert result.returncode == 0, result.stderr
    advice = json.loads(result.stdout)
    assert advice["replicas"] == 4
    assert [row["replicas"] for row in advice["rows"]] == [1, 2, 3, 4, 6, 8, 10, 16, 20]
    assert set(advice["others"]) == {"mps"}
    text = page.read_text()
    assert advice["sentence"] in text
    assert "replicas: 4" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--workload", "api", "--model", "l4"), "write NAME:BUSY-MS/PERIOD-MS/GIB"),
        (("--workload", "notebook", "--model", "nope"), "no GPU model is called 'nope'"),
        (("--workload", "notebook", "--model", "l4", "--gpus", "0"), "--gpus is 0"),
        (("--workload", "notebook", "--model", "l4", "--mechanism", "mig"), "l4 has no MIG"),
        (("--workload", "notebook", "--model", "l4", "--slowdown-p95", "nan"), "--slowdown-p95"),
        (("--workload", "notebook", "--model", "l4", "--html", "/"), "/ cannot be written"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: tuple[str, ...], said: str) -> None:
    result = gpuplugin("advise", *arguments)
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert said in line
