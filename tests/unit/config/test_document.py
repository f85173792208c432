"""Files with the line of every value."""

from __future__ import annotations

import contextlib
import json
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuplugin.config.document import parse_document
from gpuplugin.config.load import load_settings
from gpuplugin.config.loaded import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """\
version: v1
sharing:
  timeSlicing:
    resources:
    - name: nvidia.com/gpu
      replicas: 4
    -
      name: other
"""


@pytest.mark.parametrize(
    ("path", "where"),
    [
        (("version",), "f.yaml:1"),
        (("sharing", "timeSlicing", "resources", 0, "replicas"), "f.yaml:6"),
        (("sharing", "timeSlicing", "resources", 1), "f.yaml:8"),
        (("sharing", "timeSlicing", "resources", 1, "replicas"), "f.yaml:8"),
        (("sharing", "mps"), "f.yaml:2"),
        (("health",), "f.yaml"),
        ((), "f.yaml"),
    ],
)
def test_where_a_value_or_its_nearest_parent_stands(
    path: tuple[str | int, ...], where: str
) -> None:
    assert parse_document(TEXT, "f.yaml").where(path) == where


@pytest.mark.parametrize(
    "text",
    ["", "\n\n", "# a comment\n", "---\n", "~", "null", "--- \n...\n"],
)
def test_an_empty_document_has_no_keys(text: str) -> None:
    assert dict(parse_document(text, "f").data) == {}


def test_json_is_read_with_lines() -> None:
    text = json.dumps({"version": "v1", "flags": {"migStrategy": "none"}}, indent=1)
    document = parse_document(text, "f.json")

    assert document.data["version"] == "v1"
    assert document.where(("flags", "migStrategy")) == "f.json:4"


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"version": "v1", "flags": {"plugin": {"a": [1, 2]}}}, indent="\t"),
        "a: b\t\nc: d\t# said\n",
        "a:\tb\n",
        "a:\t\n  - b \t \n  - {c:\td}\n",
        'a: "b"\t\nc: d\n',
    ],
)
def test_tabs_that_indent_no_key_are_blanks(text: str) -> None:
    """As in libyaml, from which NVIDIA's reader of YAML was made."""
    assert parse_document(text, "f").data == yaml.load(text, yaml.CSafeLoader)


@pytest.mark.parametrize("text", ["a:\n\tb: c\n", "-\ta: b\n", "a: b\n\t\nc: d\n"])
def test_tabs_before_a_key_are_wrong(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        yaml.load(text, yaml.CSafeLoader)
    with pytest.raises(ConfigError, match="cannot start any token"):
        parse_document(text, "f")


def test_words_of_yaml_1_1_are_booleans() -> None:
    assert parse_document("a: on\nb: no\n", "f").data == {"a": True, "b": False}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("- a\n", "f:1: must be a mapping", id="list"),
        pytest.param("word", "f:1: must be a mapping", id="scalar"),
        pytest.param("a: 1\nb: [\n", "f:3: ", id="unclosed list"),
        pytest.param("a: 1\n\tb: 2\n", "f:2: ", id="tab"),
        pytest.param("a: 1\nb: 2\na: 3\n", "f:3: the key 'a' is given twice", id="repeated key"),
        pytest.param(
            "s:\n  x: 1\n  x: 2\n", "f:3: the key 'x' is given twice", id="repeated inner key"
        ),
        pytest.param("a: &x [*x]\n", "f:1: a value contains itself", id="loop"),
        pytest.param("a: 1\n---\nb: 2\n", "f:3: a second document begins here", id="two documents"),
        pytest.param("[1]: 2\n", "f:1: ", id="list as key"),
        pytest.param("a: !!python/name:os.system\n", "f:1: ", id="python tag"),
        pytest.param("a: 1\nb: \x00", "f:2: ", id="control character"),
        pytest.param("a: " + "[" * 1000, "f: ", id="too deep"),
        pytest.param("a: !!bool maybe", "f:1: ", id="no boolean behind a boolean tag"),
        pytest.param("a: !!timestamp soon", "f:1: ", id="no time behind a time tag"),
        pytest.param("a: 1\nb: {c: [!!int x]}", "f:2: ", id="no number behind a number tag"),
        pytest.param("a: !!int ''", "f:1: ", id="an empty number"),
        pytest.param("a: " + "{b: " * 120 + "1" + "}" * 120, "f:1: nested too deeply", id="deep"),
        pytest.param("a: !!timestamp {=: []}", "f:1: ", id="a mapping behind a time tag"),
    ],
)
@pytest.mark.usefixtures("usual_recursion_limit")
def test_what_is_no_document_says_where(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_document(text, "f")
    assert str(caught.value).startswith(said)


LEVELS = "abcdefghijkl"


def bomb(first: str, level: str) -> str:
    """Twelve levels, each of which names the one before nine times: 9^11 values."""
    lines = [f"a: &a {first}"]
    for before, name in pairwise(LEVELS):
        lines.append(f"{name}: &{name} {level.replace('X', ', '.join([f'*{before}'] * 9))}")
    return "\n".join(lines) + "\n"


BOMBS = {
    "lists": bomb("[x]", "[X]"),
    "mappings": bomb("{x: y}", "{z: [X]}"),
    "merged mappings": bomb("{x: y}", "{<<: [X]}"),
    "a key": bomb("[x]", "[X]") + "? *l\n: z\n",
    "nothing but a key": "? " + bomb("[x]", "[X]").replace("\n", "\n  ") + "\n: z\n",
    "depth": "a: &a x\n"
    + "".join(f"{b}: &{b} {'[' * 20}*{a}{']' * 20}\n" for a, b in pairwise(LEVELS)),
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_aliases_within_aliases_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(text)

    with pytest.raises(ConfigError, match=r"too many values|nested too deeply|must be a word"):
        load_settings({}, {}, str(path))


def test_aliases_as_people_use_them() -> None:
    document = parse_document("a: &a {x: [1, 2]}\nb: *a\nc: {<<: *a, y: 3}\n", "f")

    assert document.data["b"] == {"x": [1, 2]}
    assert document.data["c"] == {"x": [1, 2], "y": 3}


PIECES = (
    "a|version|v1|: |:\n|\n|  |- |[|]|{|}|, |&x |*x|<<: |? |!!set |!!bool |!!int |"
    "!!timestamp |!!binary |'|~|1|1.5|0x|2001-01-01|12:30|#|%|@|\t|\ufeff|.inf"
)
YAML_PIECES = st.lists(st.sampled_from(PIECES.split("|")), max_size=25).map("".join)


@settings(max_examples=300)
@given(st.one_of(st.text(max_size=40), YAML_PIECES))
def test_any_text_is_a_document_or_a_document_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        document = parse_document(text, "f")
        assert document.where(("sharing", 0)).startswith("f")
