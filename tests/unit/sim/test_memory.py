"""Memory under sharing: who holds what, who is refused, and what moving pages costs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.gpu.scheduler import ContextId
from sim.gpu.tenancy import Memory, OutOfMemory

A, B = ContextId(1), ContextId(2)


def test_the_one_who_asks_is_refused_whoever_holds_the_memory() -> None:
    memory = Memory(100, reserved_bytes=10)
    memory.allocate(A, 85)
    with pytest.raises(OutOfMemory) as caught:
        memory.allocate(B, 6)
    assert (caught.value.asked_bytes, caught.value.free_bytes) == (6, 5)
    assert caught.value.holders == {A: 85}
    assert memory.held_bytes == {A: 85}, "a refusal changes nothing"
    memory.allocate(B, 5)
    assert memory.free_bytes == 0


def test_what_ends_makes_room() -> None:
    memory = Memory(100)
    memory.allocate(A, 60)
    memory.allocate(A, 30)
    assert memory.held_bytes[A] == 90
    memory.release(A)
    assert memory.free_bytes == 100
    memory.allocate(A, 70)
    memory.release(A)
    memory.release(A)
    assert memory.free_bytes == 100


def test_managed_memory_overflows_and_slows_everybody_down() -> None:
    memory = Memory(100, oversubscribe=True)
    memory.allocate(A, 100)
    assert memory.speed == 1
    memory.allocate(B, 100)
    assert memory.speed == pytest.approx(1 / 12), "12 times as slow at twice the memory"
    memory.release(A)
    assert memory.speed == 1


@given(
    st.lists(
        st.tuples(st.sampled_from([A, B, ContextId(3)]), st.integers(0, 60), st.booleans()),
        max_size=40,
    )
)
def test_nobody_gets_more_than_there_is(steps: list[tuple[ContextId, int, bool]]) -> None:
    memory = Memory(100, reserved_bytes=7)
    held = {A: 0, B: 0, ContextId(3): 0}
    for context, size, gives_back in steps:
        if gives_back:
            memory.release(context)
            held[context] = 0
        elif sum(held.values()) + size + 7 <= 100:
            memory.allocate(context, size)
            held[context] += size
        else:
            with pytest.raises(OutOfMemory):
                memory.allocate(context, size)
        assert memory.used_bytes == 7 + sum(held.values()) <= 100
        assert memory.free_bytes == 100 - memory.used_bytes
