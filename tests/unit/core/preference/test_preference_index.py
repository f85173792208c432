"""What is computed of a resource and its links."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpuplugin.core.inventory import Resource
from gpuplugin.core.preference import PreferenceIndex
from hal import Link, LinkKind, MigDevice
from tests.unit.builders import a_resource, ids, uneven_resource, uuid_of_gpu

A, B, C = (uuid_of_gpu(index) for index in range(3))


def test_ranks_follow_the_resource() -> None:
    resource = uneven_resource([2, 1, 3])

    index = PreferenceIndex.of(resource)

    assert tuple(index.ids) == ids(resource)
    assert [index.rank[device_id] for device_id in ids(resource)] == [0, 1, 2, 3, 4, 5]
    assert tuple(index.gpu_of) == (0, 0, 1, 2, 2, 2)
    assert tuple(index.gpu_size) == (2, 1, 3)
    assert tuple(index.gpu_start) == (0, 2, 3, 6)


def test_devices_of_a_gpu_have_consecutive_ranks_in_any_resource() -> None:
    resource = a_resource(2, 2)
    mixed = replace(resource, devices=tuple(resource.devices[place] for place in (0, 2, 1, 3)))

    index = PreferenceIndex.of(mixed)

    assert tuple(index.gpu_of) == (0, 0, 1, 1)
    assert [index.rank[device.id] for device in resource.devices] == [0, 1, 2, 3]


def test_an_empty_resource_has_an_index() -> None:
    index = PreferenceIndex.of(Resource("nvidia.com/gpu", ()))

    assert tuple(index.ids) == ()
    assert tuple(index.pair_scores) == ()


def test_mig_devices_are_not_whole_gpus() -> None:
    mig = MigDevice("MIG-a", 0, 1, 0, "1g.10gb", 10)
    whole = a_resource(2, 1)
    resource = replace(whole, devices=tuple(replace(one, mig=mig) for one in whole.devices))

    assert PreferenceIndex.of(whole).whole_gpus
    assert not PreferenceIndex.of(resource).whole_gpus


@pytest.mark.parametrize(
    ("link", "score"),
    [
        (Link(LinkKind.CROSS_CPU), 10),
        (Link(LinkKind.SAME_CPU), 20),
        (Link(LinkKind.HOST_BRIDGE), 30),
        (Link(LinkKind.MULTI_SWITCH), 40),
        (Link(LinkKind.SINGLE_SWITCH), 50),
        (Link(LinkKind.SAME_BOARD), 60),
        (Link(LinkKind.SAME_BOARD, 1), 160),
        (Link(LinkKind.CROSS_CPU, 18), 1810),
        pytest.param(Link(LinkKind.CROSS_CPU, 99), 1810, id="more NVLinks than there can be"),
        pytest.param(Link(LinkKind.CROSS_CPU, -1), 10, id="fewer NVLinks than there can be"),
    ],
)
def test_links_score_as_with_nvidia(link: Link, score: int) -> None:
    index = PreferenceIndex.of(a_resource(2, 1), {(A, B): link, (B, A): link})

    assert index.pair_scores == ((0, score), (score, 0))


def test_pairs_that_are_not_known_or_lopsided_have_a_score() -> None:
    links = {
        (A, B): Link(LinkKind.SAME_CPU, 2),
        (B, A): Link(LinkKind.SAME_CPU),
        (C, A): Link(LinkKind.SAME_BOARD),
        (A, A): Link(LinkKind.SAME_BOARD, 18),
        (A, "GPU-gone"): Link(LinkKind.SAME_BOARD),
    }

    index = PreferenceIndex.of(a_resource(3, 1), links)

    assert index.pair_scores == ((0, 20, 60), (20, 0, 10), (60, 10, 0))
