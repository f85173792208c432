"""The siege in its short form: every attack, on a plugin with a hard limit of memory."""

from __future__ import annotations

import pytest

from benchmarks.siege import ROUNDS, siege


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("engine", ["fast", "grpcio"])
def test_the_kubelet_is_served_throughout_every_attack(engine: str) -> None:
    verdicts = list(siege(ROUNDS, 1.5, engine))
    assert [one.attack for one in verdicts] == list(ROUNDS)
    assert [f"{one.attack}: {one.problem}" for one in verdicts if one.problem] == []
    assert all(one.calls >= 10 for one in verdicts)
