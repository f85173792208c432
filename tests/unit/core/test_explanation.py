"""Why a GPU is advertised as it is: the entry of the configuration, and what it says."""

from __future__ import annotations

import pytest

from gpuplugin.core.explanation import explain
from gpuplugin.core.inventory import GPU_RESOURCE, Plan
from gpuplugin.core.sharing import SharedResource, TimeSlicing
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
