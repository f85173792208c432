"""The siege in its short form: every attack, on a plugin with a hard limit of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.siege import ROUNDS, siege

if TYPE_CHECKING:
    from collections.abc import Sequence


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("engine", "rounds"),
    [("fast", ROUNDS), ("grpcio", [one for one in ROUNDS if one.startswith("RPC")])],
)
def test_the_kubelet_is_served_throughout_every_attack(engine: str, rounds: Sequence[str]) -> None:
    verdicts = list(siege(rounds, 1.0, engine))
    assert [one.attack for one in verdicts] == list(rounds)
    assert [f"{one.attack}: {one.problem}" for one in verdicts if one.problem] == []
    assert all(one.calls >= 10 for one in verdicts)
