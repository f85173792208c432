"""Which time slices are set when, against hardware that forgets, refuses and goes away."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.core.inventory import Plan, build_inventory
from gpuplugin.core.sharing import Selection, SharedResource, TimeSlicing
from gpuplugin.core.timeslices import TimeSlices, shared_gpus, usual_time_slices
from hal import TimeSliceLevel
from tests.unit.builders import gpus, uuid_of_gpu

DEFAULT, SHORT, LONG = TimeSliceLevel.DEFAULT, TimeSliceLevel.SHORT, TimeSliceLevel.LONG


def test_only_gpus_with_replicas_are_shared() -> None:
    entries = (
        SharedResource("nvidia.com/gpu", 4, Selection(ids=frozenset({"1"}))),
        SharedResource("nvidia.com/gpu", 1, Selection(ids=frozenset({"2"}))),
    )
    inventory = build_inventory(gpus(3), Plan(TimeSlicing(entries)))
    assert shared_gpus(inventory) == {uuid_of_gpu(1)}


NAMES = ("a", "b", "c")
WANTED = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(TimeSliceLevel))
SETS = st.sets(st.sampled_from(NAMES))


class Node:
    """GPUs with levels; `foreign` is what somebody else has set before."""

    def __init__(self, foreign: dict[str, TimeSliceLevel]) -> None:
        self.levels = {name: foreign.get(name, DEFAULT) for name in NAMES}
        self.touched: set[str] = set()
        self.slices = TimeSlices()

    def settle(
        self, wanted: dict[str, TimeSliceLevel], usable: set[str], refusing: set[str]
    ) -> list[str]:
        """One turn; returns what was tried."""
        self.slices = self.slices.of_interest(wanted, NAMES)
        due = self.slices.due(wanted, usable)
        for name, level in due.items():
            if name in refusing:
                self.slices = self.slices.after_refusal(name, level, "no")
            else:
                self.levels[name] = level
                self.touched.add(name)
                self.slices = self.slices.after_setting(name, level, wanted=name in wanted)
        return list(due)


@given(WANTED, st.lists(st.tuples(WANTED, SETS, SETS, SETS), min_size=1, max_size=8))
def test_after_any_history_gpus_have_what_is_wanted(
    foreign: dict[str, TimeSliceLevel],
    steps: list[tuple[dict[str, TimeSliceLevel], set[str], set[str], set[str]]],
) -> None:
    node = Node(foreign)
    untouched = dict(node.levels)
    ever_wanted: set[str] = set()
    for wanted, usable, refusing, reset in steps:
        ever_wanted |= wanted.keys()
        for name in reset:
            node.levels[name] = DEFAULT
            untouched[name] = DEFAULT
        node.slices = node.slices.uncertain(reset)
        tried = node.settle(wanted, usable, refusing)
        assert set(tried) <= usable
        assert set(tried) <= ever_wanted, "a GPU that was never wanted was touched"
        assert not node.settle(wanted, usable, refusing), "the second turn has something to do"
        for name in wanted.keys() & usable - refusing:
            refused = node.slices.refused.get(name)
            assert node.levels[name] is wanted[name] or refused
    # In the end everything works, after one reset of all, which makes every refusal be tried again.
    wanted = steps[-1][0]
    node.slices = node.slices.uncertain(NAMES)
    node.settle(wanted, set(NAMES), set())
    for name in NAMES:
        if name in wanted:
            assert node.levels[name] is wanted[name]
        elif name in node.touched:
            assert node.levels[name] is DEFAULT
        else:
            assert node.levels[name] is untouched[name]


def test_a_refusal_is_tried_again_when_something_has_changed() -> None:
    slices = TimeSlices().after_refusal("a", LONG, "no root")
    assert slices.due({"a": LONG}, {"a"}) == {}
    assert slices.due({"a": SHORT}, {"a"}) == {"a": SHORT}
    assert slices.uncertain({"a"}).due({"a": LONG}, {"a"}) == {"a": LONG}
    assert slices.of_interest({}, NAMES).due({"a": LONG}, {"a"}) == {"a": LONG}


def test_what_was_begun_and_is_not_known_is_put_back() -> None:
    assert TimeSlices().begun("a").due({}, {"a"}) == {"a": DEFAULT}


@pytest.mark.parametrize("listed", [(), ("b",)])
def test_a_gpu_that_is_gone_is_forgotten(listed: tuple[str, ...]) -> None:
    slices = TimeSlices().after_setting("a", LONG, wanted=True).after_refusal("a", SHORT, "no")
    assert slices.of_interest({}, listed) == TimeSlices()


def test_people_are_told_which_gpus_have_what() -> None:
    slices = TimeSlices().after_setting("a", LONG, wanted=True)
    slices = slices.after_refusal("b", LONG, "no root").after_refusal("c", LONG, "no root")
    index = {"a": "0", "b": "1", "c": "10"}.__getitem__
    assert slices.text(dict.fromkeys(NAMES, LONG), index) == (
        "Long on GPU 0; not set on GPUs 1, 10 to Long: no root"
    )
    assert TimeSlices().text({"a": LONG}, index) == "none is set yet"


def test_the_level_of_the_configuration_is_for_gpus_that_are_shared() -> None:
    entries = (SharedResource("nvidia.com/gpu", 4, Selection(count=2)),)
    inventory = build_inventory(gpus(3), Plan(TimeSlicing(entries)))
    wanted = {uuid_of_gpu(0): LONG, uuid_of_gpu(1): LONG}
    assert usual_time_slices(inventory, LONG) == wanted
    assert usual_time_slices(inventory, None) == {}
