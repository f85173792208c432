"""Why a GPU is advertised as it is: the entry of the configuration, and what it says."""

from __future__ import annotations

import pytest

from gpuplugin.core.explanation import explain
from gpuplugin.core.inventory import GPU_RESOURCE, Plan
from gpuplugin.core.sharing import GpuFilter, SharedResource, TimeSlicing
from tests.unit.builders import gpus


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        (None, "takes all of nvidia.com/gpu: 4 replicas"),
        ("nvidia.com/small", " as nvidia.com/small"),
    ],
)
def test_a_name_is_told_where_it_is_another_one(rename: str | None, said: str) -> None:
    shared = SharedResource(GPU_RESOURCE, 4, rename=rename)
    (one,) = explain(gpus(1), Plan(TimeSlicing((shared,))))
    text = one.reasons[-1].text
    assert said in text
    assert (" as " in text) is bool(rename)


def test_a_gpu_that_is_left_out_is_told_with_what_leaves_it_out() -> None:
    left_out, taken = explain(gpus(2), Plan(gpu_filter=GpuFilter(exclude=("0",))))
    assert (left_out.index, left_out.resource, left_out.replicas) == ("0", "", 0)
    assert [one.text for one in left_out.reasons] == ["0 excludes it"]
    assert (taken.index, taken.resource, taken.replicas) == ("1", GPU_RESOURCE, 1)
