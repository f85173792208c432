"""Which file a node's label chooses."""

from __future__ import annotations

import pytest

from gpuplugin.core.nodechoice import UnknownName, choose

FILES = {"a100", "t4.yaml", "default"}


@pytest.mark.parametrize(
    ("label", "default", "names", "chosen"),
    [
        ("a100", "", FILES, "a100"),
        ("t4", "", FILES, "t4.yaml"),
        ("t4.yaml", "", FILES, "t4.yaml"),
        ("a100", "t4", FILES, "a100"),
        (None, "t4", FILES, "t4.yaml"),
        ("", "t4", FILES, "t4.yaml"),
        (None, "", FILES, "default"),
        (None, "", {"default.yaml", "x"}, "default.yaml"),
        (None, "", {"only"}, "only"),
        (None, "", {"one", "two"}, None),
        (None, "", set(), None),
    ],
)
def test_the_choice(label: str | None, default: str, names: set[str], chosen: str | None) -> None:
    assert choose(label, default, names) == chosen


@pytest.mark.parametrize(("label", "default"), [("b", ""), ("b", "a100"), (None, "b")])
def test_what_is_named_and_not_there_is_told(label: str | None, default: str) -> None:
    with pytest.raises(UnknownName, match=r"names 'b', and the files are: a100, default, t4.yaml"):
        choose(label, default, FILES)
