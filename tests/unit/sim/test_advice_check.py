"""A prediction beside what was seen: which GPUs and pods count, and by how much it was wrong."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from sim.advise.check import (
    Advised,
    AdvisedRow,
    AdvisedWorkload,
    GpuSeen,
    NoAdvice,
    NothingSeen,
    PodSeen,
    Seen,
    as_json,
    as_rows,
    check,
    read_advice,
    verdict,
)

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [
    AdvisedRow(
        replicas=replicas,
        sharing=replicas,
        p95=2.5,
        ooms_per_week=0.0,
        left_out=8 - replicas,
        utilization=0.15 * replicas,
        contending=replicas,
        memory_mean_gib=2.0 * replicas,
        memory_most_gib=3.0 * replicas,
        sm_shares={"api": 0.15},
    )
    for replicas in (1, 2, 4)
]
ADVISED = Advised(
    model="l4",
    replicas=4,
    gpus=1,
    mechanism="time-slicing",
    made_at=datetime(2026, 1, 1, tzinfo=UTC),
    workloads=[AdvisedWorkload(name="api", count=8)],
    rows=ROWS,
)


def pod(name: str = "api", uuid: str = "GPU-0", sm_share: float = 0.15) -> PodSeen:
    return PodSeen("ml", name, uuid, 100, sm_share)


def gpu(replicas: tuple[int, ...] = (4,), tenants: float = 4.0, use: float = 0.6) -> GpuSeen:
    return GpuSeen(replicas, use, tenants, 4.0, 8.0, 12.0, 0.0, 1.0)


def test_what_came_as_predicted_is_off_by_nothing() -> None:
    found = check(ADVISED, Seen(7200, {"GPU-0": gpu()}, [pod()], waiting=4.0))
    assert {one.off for one in found.comparisons} == {0.0, None}
    assert verdict(found) == (
        "In 120 minutes on 1 GPU with 4 replicas each 8 of 8 predictions were within 10 %."
    )
    assert not [note for note in found.notes if "kube-state-metrics" in note]


def test_the_prediction_that_is_furthest_off_is_named() -> None:
    seen = Seen(7200, {"GPU-0": gpu(use=0.3)}, [pod(sm_share=0.14)], waiting=4.0)
    found = check(ADVISED, seen)
    assert "7 of 8 predictions were within 10 %; furthest off is 'utilisation': 60 %" in (
        verdict(found)
    )
    row = {cells[0]: cells[1:] for cells in as_rows(found)}
    assert row["utilisation"] == ("60 %", "30 %", "+100 %")
    assert row["memory full, times a week"] == ("0", "0", "-")


def test_what_was_predicted_and_never_came_is_wrong() -> None:
    idle = GpuSeen((4,), 0.0, 4.0, 4.0, 8.0, 12.0, 0.0, 0.0)
    found = check(ADVISED, Seen(7200, {"GPU-0": idle}, [pod()], waiting=0.0))
    assert "5 of 8 predictions were within 10 %; furthest off is 'utilisation': 60 %" in (
        verdict(found)
    )
    row = {cells[0]: cells[1:] for cells in as_rows(found)}
    assert row["pods that wait"] == ("4", "0", "none seen")
    told = json.dumps(as_json(found, ADVISED.made_at), allow_nan=False)
    assert '"predicted": 4, "seen": 0.0, "off": null' in told


@pytest.mark.parametrize(("hours", "told"), [(2, "-"), (24, "-"), (48, "none seen")])
def test_what_comes_seldom_may_stay_away_for_a_while(hours: float, told: str) -> None:
    """14 times a week are 4 in two days, of which chance leaves none in 2 % of all cases."""
    full = ADVISED.model_copy(
        update={"rows": [one.model_copy(update={"ooms_per_week": 14.0}) for one in ROWS]}
    )
    found = check(full, Seen(3600 * hours, {"GPU-0": gpu()}, [pod()], waiting=4.0))
    row = {cells[0]: cells[1:] for cells in as_rows(found)}
    assert row["memory full, times a week"] == ("14", "0", told)


def test_only_gpus_with_pods_of_the_advice_count() -> None:
    gpus = {"GPU-0": gpu(), "GPU-1": gpu((10,), use=0.01)}
    found = check(ADVISED, Seen(7200, gpus, [pod(), pod("other", "GPU-1")]))
    assert (found.gpus, found.replicas) == (1, 4)


@pytest.mark.parametrize("name", ["api", "ml/api", "ml"])
def test_a_workload_is_found_by_owner_namespace_or_both(name: str) -> None:
    advised = ADVISED.model_copy(update={"workloads": [AdvisedWorkload(name=name, count=8)]})
    assert check(advised, Seen(7200, {"GPU-0": gpu()}, [pod()])).gpus == 1


def test_a_gpu_with_other_replicas_or_pods_is_compared_with_its_own_row_or_said() -> None:
    two = check(ADVISED, Seen(7200, {"GPU-0": gpu((4, 2), tenants=2, use=0.3)}, [pod()]))
    assert two.row == ROWS[1]
    assert any("There were 2 and 4 replicas of a GPU in this time" in note for note in two.notes)
    none = check(ADVISED, Seen(7200, {"GPU-0": gpu((5,))}, [pod()]))
    assert none.row is None
    assert "The advice has no such row: it has those of 1, 2 and 4 replicas." in none.notes
    assert "nothing can be compared" in verdict(none)
    fewer = check(ADVISED, Seen(7200, {"GPU-0": gpu(tenants=2.2)}, [pod()]))
    assert (
        "There were 2 pods on a GPU, not 4: for so many 30 % utilisation was predicted."
        in fewer.notes
    )


def test_pods_that_were_not_seen_are_named_or_nothing_is() -> None:
    more = [*ADVISED.workloads, AdvisedWorkload(name="train", count=1)]
    advised = ADVISED.model_copy(update={"workloads": more})
    found = check(advised, Seen(7200, {"GPU-0": gpu()}, [pod()]))
    assert "No pod of train was seen." in found.notes
    with pytest.raises(NothingSeen, match="no pod of api was seen on a GPU in 120 minutes"):
        check(ADVISED, Seen(7200, {"GPU-0": gpu()}, [pod("other")]))


def test_a_file_that_is_no_advice(tmp_path: Path) -> None:
    file = tmp_path / "advice.json"
    for text in ("", "{}", '{"model": 4}', "[1]"):
        file.write_text(text)
        with pytest.raises(NoAdvice, match="is no output of 'gpuplugin advise --json'"):
            read_advice(file)
    file.write_text(ADVISED.model_dump_json())
    assert read_advice(file) == ADVISED
