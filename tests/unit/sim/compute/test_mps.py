"""MPS: work that is slowed down ends when it was said to end."""

from __future__ import annotations

from sim.gpu.scheduler import ContextId, Ended
from sim.gpu.schedulers import Mps


def test_looking_at_work_just_before_its_end_does_not_end_it() -> None:
    """At a third of the speed, half a thousandth of work takes more than a thousandth of 1 ns."""
    scheduler = Mps()
    scheduler.set_speed(333_333)
    scheduler.submit(ContextId(0), 500, 1.0)
    assert scheduler.next_end_ns() == 1501
    assert scheduler.advance(1500) == []
    assert scheduler.next_end_ns() == 1501
    assert scheduler.advance(1501) == [Ended(ContextId(0), 1501)]


def test_a_heavy_neighbour_slows_a_light_one_more_than_it_is_slowed() -> None:
    """Each context takes 1 + the shares of the others: 1.8 and 1.1 times as long here."""
    scheduler = Mps()
    scheduler.submit(ContextId(0), 1000, 1.0, 0.1)
    scheduler.submit(ContextId(1), 1000, 1.0, 0.8)
    assert scheduler.advance(10_000) == [
        Ended(ContextId(1), 1100),
        # 1100 / 1.8 of its work was done then; the rest goes at full speed.
        Ended(ContextId(0), 1489),
    ]
