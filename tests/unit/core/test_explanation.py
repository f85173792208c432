"""Why a GPU is advertised as it is: the entry of the configuration, and what it says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gpuplugin.core.explanation import explain
from gpuplugin.core.inventory import GPU_RESOURCE, Plan
from gpuplugin.core.sharing import (
    GpuFilter,
    NamePattern,
    Selection,
    SharedResource,
    TimeSlicing,
)
from tests.unit.builders import a_gpu, gpus, uuid_of_gpu
from tests.unit.core.test_mig_strategies import mig_gpu

if TYPE_CHECKING:
    from hal import Gpu


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


A, B = uuid_of_gpu(0), uuid_of_gpu(1)
SHARING = ("sharing", "timeSlicing", "resources")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (SharedResource(GPU_RESOURCE, 1), "takes all of nvidia.com/gpu: not shared"),
        (
            SharedResource(GPU_RESOURCE, 4, Selection(count=2)),
            "takes the first 2 of nvidia.com/gpu: 4 replicas",
        ),
        (
            SharedResource(GPU_RESOURCE, 2, Selection(ids=frozenset({"9", A, "0"}))),
            f"lists 0, {A}: 2 replicas",
        ),
    ],
)
def test_how_an_entry_selects_is_told(entry: SharedResource, said: str) -> None:
    first, _ = explain(gpus(2), Plan(TimeSlicing((SharedResource("nvidia.com/other", 3), entry))))
    assert [(one.key, one.text) for one in first.reasons] == [
        ((), "a whole GPU is nvidia.com/gpu"),
        ((*SHARING, 1), said),
    ]
    assert (first.index, first.uuid, first.product) == ("0", A, "Test GPU")
    assert (first.resource, first.replicas) == (GPU_RESOURCE, entry.replicas)


def test_a_product_and_a_gpu_that_no_entry_shares() -> None:
    plan = Plan(gpu_names=(NamePattern("Test*", "nvidia.com/test"),))
    (one,) = explain(gpus(1), plan)
    assert [(reason.key, reason.text) for reason in one.reasons] == [
        (("resources", "gpus"), "its product Test GPU is nvidia.com/test"),
        (SHARING, "no entry shares it"),
    ]


@pytest.mark.parametrize(
    ("plan", "resource", "key", "said"),
    [
        (
            Plan(mig_strategy="single"),
            GPU_RESOURCE,
            ("flags", "migStrategy"),
            "single: a MIG device is nvidia.com/gpu",
        ),
        (
            Plan(mig_strategy="mixed"),
            "nvidia.com/mig-1g.10gb.me",
            ("flags", "migStrategy"),
            "mixed: a MIG device is nvidia.com/mig-1g.10gb.me",
        ),
        (
            Plan(mig_strategy="mixed", mig_names=(NamePattern("1g.*", "nvidia.com/one"),)),
            "nvidia.com/one",
            ("resources", "mig"),
            "its profile 1g.10gb+me is nvidia.com/one",
        ),
    ],
    ids=["single", "mixed", "named"],
)
def test_mig_devices(plan: Plan, resource: str, key: tuple[str, ...], said: str) -> None:
    found = explain([mig_gpu(0, "1g.10gb+me", "1g.10gb+me")], plan)
    assert [(one.index, one.product, one.resource, one.replicas) for one in found] == [
        ("0:0", "MIG 1g.10gb+me", resource, 1),
        ("0:1", "MIG 1g.10gb+me", resource, 1),
    ]
    assert {(one.reasons[0].key, one.reasons[0].text) for one in found} == {(key, said)}


@pytest.mark.parametrize(
    ("left_out", "plan", "key", "said"),
    [
        (
            a_gpu(0),
            Plan(gpu_filter=GpuFilter(include=("1",))),
            ("gpus", "include"),
            "does not name it",
        ),
        (
            replace(a_gpu(0), mig_enabled=True),
            Plan(mig_strategy="mixed"),
            ("flags", "migStrategy"),
            "it is in MIG mode without a MIG device to advertise",
        ),
    ],
    ids=["not included", "MIG without devices"],
)
def test_why_a_gpu_is_not_advertised(
    left_out: Gpu, plan: Plan, key: tuple[str, ...], said: str
) -> None:
    first, second = explain([a_gpu(1), left_out], plan)
    assert (first.index, first.uuid, first.resource, first.replicas) == ("0", A, "", 0)
    assert [(one.key, one.text) for one in first.reasons] == [(key, said)]
    assert (second.index, second.uuid, second.resource) == ("1", B, GPU_RESOURCE)


def test_a_gpu_that_was_lost_before_its_mode_was_read() -> None:
    gpus = [mig_gpu(0, "1g.10gb"), a_gpu(1, lost=True)]
    _, lost = explain(gpus, Plan(mig_strategy="single"))
    assert (lost.index, lost.resource) == ("1", "")
    assert [(one.key, one.text) for one in lost.reasons] == [
        (("flags", "migStrategy"), "its state is not known yet")
    ]
