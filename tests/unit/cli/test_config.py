"""`gpuplugin config`: standard input, the explanation of each GPU, the schema."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from gpuplugin.cli.main import main

SCENARIO = """\
seed: 3
gpus:
- {model: a100-sxm4-80gb, count: 3}
- {model: a100-sxm4-80gb, mig: [1g.10gb, 2g.20gb]}
- {model: t4, count: 2}
"""
MIXED = """\
version: v1
flags: {migStrategy: mixed}
resources:
  gpus:
  - {pattern: "*T4*", name: nvidia.com/t4}
sharing:
  timeSlicing:
    renameByDefault: true
    resources:
    - {name: nvidia.com/gpu, replicas: 4}
    - {name: nvidia.com/gpu, devices: [1], replicas: 2, rename: nvidia.com/gpu.big}
    - {name: nvidia.com/t4, devices: 1, replicas: 3}
gpus: {exclude: [2]}
"""
PUBLISHED = Path(__file__).parents[1] / "config/published"

Run = tuple[int, str, str]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Run:
    status = main(["config", *arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    file = tmp_path / "scenario.yaml"
    file.write_text(SCENARIO)
    return str(file)


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Any:
    def give(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    return give


def test_standard_input_is_checked(stdin: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stdin("version: v1\nsharing: {timeSlicing: {resources: [{name: gpu, replicas: 4}]}}\n")
    status, out, err = run(capsys, "check", "-")
    assert (status, err) == (0, "")
    assert yaml.safe_load(out)["sharing"]["timeSlicing"]["resources"][0]["replicas"] == 4

    stdin("version: v1\nflags: {migStrategy: some}\n")
    status, _, err = run(capsys, "check", "-")
    assert status == 1
    assert err.startswith(
        "standard input:2: flags.migStrategy: must be 'none', 'single' or 'mixed'"
    )


def test_each_gpu_is_explained_with_the_key_that_makes_it_so(
    stdin: Any, scenario: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(MIXED)
    status, out, _ = run(capsys, "check", "-", "--explain", "--scenario", scenario, "--json")
    gpus = json.loads(out)["gpus"]

    assert status == 0
    entry = "sharing.timeSlicing.resources"
    assert [
        (
            gpu["index"],
            gpu["resource"],
            gpu["replicas"],
            [(why["key"], why["where"], why["text"]) for why in gpu["reasons"]],
        )
        for gpu in gpus
    ] == [
        ("0", "nvidia.com/gpu.shared", 4, [
            ("", "", "a whole GPU is nvidia.com/gpu"),
            (f"{entry}[0]", "standard input:10",
             "takes all of nvidia.com/gpu: 4 replicas as nvidia.com/gpu.shared"),
        ]),
        ("1", "nvidia.com/gpu.big", 2, [
            ("", "", "a whole GPU is nvidia.com/gpu"),
            (f"{entry}[1]", "standard input:11", "lists 1: 2 replicas as nvidia.com/gpu.big"),
        ]),
        ("2", "", 0, [("gpus.exclude", "standard input:13", "2 excludes it")]),
        ("3:0", "nvidia.com/mig-1g.10gb", 1, [
            ("flags.migStrategy", "standard input:2",
             "mixed: a MIG device is nvidia.com/mig-1g.10gb"),
            (entry, "standard input:9", "no entry shares it"),
        ]),
        ("3:1", "nvidia.com/mig-2g.20gb", 1, [
            ("flags.migStrategy", "standard input:2",
             "mixed: a MIG device is nvidia.com/mig-2g.20gb"),
            (entry, "standard input:9", "no entry shares it"),
        ]),
        ("4", "nvidia.com/t4.shared", 3, [
            ("resources.gpus", "standard input:4", "its product Tesla T4 is nvidia.com/t4"),
            (f"{entry}[2]", "standard input:12",
             "takes the first 1 of nvidia.com/t4: 3 replicas as nvidia.com/t4.shared"),
        ]),
        ("5", "nvidia.com/t4", 1, [
            ("resources.gpus", "standard input:4", "its product Tesla T4 is nvidia.com/t4"),
            (entry, "standard input:9", "no entry shares it"),
        ]),
    ]  # fmt: skip


def test_the_explanation_as_text(
    stdin: Any, scenario: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(MIXED.replace("exclude: [2]", "include: [0]"))
    status, out, _ = run(capsys, "check", "-", "--explain", "--scenario", scenario)
    first, *_ = blocks = out.split("\nGPU ")

    assert status == 0
    assert first.splitlines()[0].endswith(": nvidia.com/gpu.shared, 4 replicas")
    assert "    sharing.timeSlicing.resources[0] (standard input:10): takes all of" in first
    assert "not advertised\n    gpus.include (standard input:13): does not name it" in blocks[1]


def test_a_plan_that_the_gpus_do_not_allow_is_status_1(
    stdin: Any, scenario: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin("flags: {migStrategy: single}\n")
    status, _, err = run(capsys, "check", "-", "--explain", "--scenario", scenario)

    assert status == 1
    assert "MIG strategy single: GPUs 0, 1, 2, 4, 5 are not in MIG mode" in err


def schema(capsys: pytest.CaptureFixture[str]) -> Any:
    status, out, _ = run(capsys, "schema")
    assert status == 0
    return json.loads(out)


def test_the_schema_accepts_what_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    schema_ = schema(capsys)
    jsonschema.Draft202012Validator.check_schema(schema_)
    for name in ("nvidia-time-slicing", "nvidia-all-flags", "anchors"):
        jsonschema.validate(yaml.safe_load((PUBLISHED / f"{name}.yaml").read_text()), schema_)
    assert "daemon" not in json.dumps(schema_).lower()


@pytest.mark.parametrize(
    "wrong",
    [
        {"sharing": {"timeSlicing": {"resources": [{"name": "gpu", "replica": 4}]}}},
        {"flags": {"migStrategy": "some"}},
        {"daemon": {}},
        {"sharing": {"timeSlicing": {"resources": [{"name": "gpu", "replicas": 0}]}}},
    ],
)
def test_the_schema_refuses_what_is_wrong(
    wrong: object, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema(capsys))
