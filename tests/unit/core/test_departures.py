"""When GPUs that are gone leave the list, and which cannot be made to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gpuplugin.core.departures import CannotForget, Departures
from gpuplugin.core.usage import Holding, PodName
from tests.unit.builders import a_gpu

if TYPE_CHECKING:
    from hal import Gpu

HOUR_S = 3600.0
MAX_GONE = 64
WEEK_S = 7 * 24 * HOUR_S
BEGAN_S = 500.0
GONE = a_gpu(0, lost=True)
SUCCESSOR = replace(a_gpu(1), pci_bus_id=GONE.pci_bus_id)
HELD = Holding(PodName("ml", "trainer"), "main", "nvidia.com/gpu", (GONE.uuid,))


@pytest.mark.parametrize(
    ("others", "after_s", "reason"),
    [
        ((a_gpu(1),), WEEK_S, "it is gone for 168 h, and nothing has its place"),
        ((SUCCESSOR,), HOUR_S, "it is gone for 1 h, and another GPU has its place"),
        ((SUCCESSOR,), 3 * HOUR_S, "it is gone for 3 h, and another GPU has its place"),
    ],
    ids=["nothing", "successor", "successor-later"],
)
def test_a_gpu_leaves_the_list_after_long(
    others: tuple[Gpu, ...], after_s: float, reason: str
) -> None:
    gpus = {gpu.uuid: gpu for gpu in (GONE, *others)}
    departures = Departures()
    assert list(departures.due(gpus, (), BEGAN_S)) == []
    if after_s in (HOUR_S, WEEK_S):
        assert list(departures.due(gpus, (), BEGAN_S + after_s - 1)) == []
    now_s = BEGAN_S + after_s
    assert list(departures.due(gpus, None, now_s)) == []
    assert list(departures.due(gpus, (HELD,), now_s)) == []
    assert list(departures.due(gpus, (), now_s)) == [(GONE.uuid, reason)]


def test_the_time_begins_anew_when_a_gpu_was_there_between() -> None:
    departures = Departures()
    for gpu, after_s in ((GONE, 0.0), (a_gpu(0), WEEK_S - 1), (GONE, WEEK_S), (GONE, WEEK_S + 9)):
        assert list(departures.due({gpu.uuid: gpu}, (), BEGAN_S + after_s)) == []


@pytest.mark.parametrize("holdings", [(), None], ids=["none-held", "unknown"])
def test_of_too_many_the_oldest_leave(holdings: tuple[Holding, ...] | None) -> None:
    gone = {gpu.uuid: gpu for gpu in (a_gpu(index, lost=True) for index in range(MAX_GONE + 2))}
    first, second, *_, last = gone
    departures = Departures()
    assert list(departures.due({last: gone[last]}, holdings, BEGAN_S)) == []
    most = {uuid: gpu for uuid, gpu in gone.items() if uuid not in (first, second)}
    assert list(departures.due(most, holdings, BEGAN_S + 1)) == []
    reason = f"{MAX_GONE + 2} GPUs are gone, of which {MAX_GONE} stay listed"
    found = list(departures.due(gone, holdings, BEGAN_S + 2))
    assert [uuid for uuid, _ in found] == [last, next(iter(most))]
    assert found[0][1] == reason


def test_of_too_many_one_that_is_held_stays() -> None:
    gone = {gpu.uuid: gpu for gpu in (a_gpu(index, lost=True) for index in range(MAX_GONE + 1))}
    assert list(Departures().due(gone, (HELD,), BEGAN_S)) == []


def test_of_a_few_none_leaves_at_once() -> None:
    gone = {gpu.uuid: gpu for gpu in (a_gpu(0, lost=True), a_gpu(1, lost=True))}
    assert list(Departures().due(gone, (), BEGAN_S)) == []


def test_of_too_many_each_leaves_once() -> None:
    gone = {gpu.uuid: gpu for gpu in (a_gpu(index, lost=True) for index in range(MAX_GONE + 1))}
    departures = Departures()
    assert len(list(departures.due(gone, (HELD,), BEGAN_S))) == 0
    found = [uuid for uuid, _ in departures.due(gone, (), BEGAN_S + WEEK_S)]
    assert sorted(found) == sorted(gone)


def test_a_forgotten_gpu_is_listed_again_once_it_responds() -> None:
    departures = Departures()
    departures.forget(GONE, ())
    assert departures.listed([GONE, a_gpu(1)]) == {a_gpu(1).uuid: a_gpu(1)}
    assert departures.listed([a_gpu(0)]) == {GONE.uuid: a_gpu(0)}
    assert departures.listed([GONE]) == {GONE.uuid: GONE}


def test_what_cannot_be_forgotten() -> None:
    departures = Departures()
    with pytest.raises(CannotForget, match="responds"):
        departures.forget(a_gpu(0), ())
    with pytest.raises(CannotForget, match="held by ml/trainer; delete"):
        departures.forget(GONE, (HELD,))
    assert departures.listed([GONE]) == {GONE.uuid: GONE}
