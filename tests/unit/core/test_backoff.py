"""How long to wait before trying again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.core.pacing import Backoff


@pytest.mark.parametrize(
    ("first_s", "cap_s", "delays"),
    [
        (1.0, 8.0, [1, 2, 4, 8, 8, 8]),
        (0.2, 1.0, [0.2, 0.4, 0.8, 1.0, 1.0]),
        (5.0, 5.0, [5, 5, 5]),
    ],
)
def test_delays_double_up_to_the_cap(first_s: float, cap_s: float, delays: list[float]) -> None:
    backoff = Backoff(first_s, cap_s)

    assert [backoff.next_s() for _ in delays] == pytest.approx(delays)


def test_a_reset_starts_again() -> None:
    backoff = Backoff(1.0, 30.0)
    for _ in range(4):
        backoff.next_s()
    backoff.reset()

    assert [backoff.next_s(), backoff.next_s()] == [1.0, 2.0]


@given(st.floats(0.001, 10), st.floats(1, 100), st.integers(1, 2000))
def test_delays_never_fall_and_never_pass_the_cap(first_s: float, times: float, count: int) -> None:
    cap_s = first_s * times
    backoff = Backoff(first_s, cap_s)
    delays = [backoff.next_s() for _ in range(count)]

    assert delays == sorted(delays)
    assert first_s <= delays[-1] <= cap_s
