"""The siege in its short form: every attack, on a plugin with a hard limit of memory."""

from __future__ import annotations

import pytest

from benchmarks.attacks import ATTACKS
from benchmarks.siege import siege


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_kubelet_is_served_throughout_every_attack() -> None:
    verdicts = list(siege(list(ATTACKS), 1.5, "fast"))
    assert [one.attack for one in verdicts] == list(ATTACKS)
    assert [f"{one.attack}: {one.problem}" for one in verdicts if one.problem] == []
    assert all(one.calls >= 10 for one in verdicts)
