"""Which devices an entry of the sharing configuration shares, and under which names."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.core.inventory import Plan, build_inventory, entries_without_effect
from gpuplugin.core.sharing import (
    GpuFilter,
    NamePattern,
    Selection,
    SharedResource,
    TimeSlicing,
    matches,
)
from tests.unit.builders import a_gpu, gpus, uuid_of_gpu

GPU = "nvidia.com/gpu"
ALL = Selection()


def listed(*ids: str) -> Selection:
    return Selection(ids=frozenset(ids))


def first(count: int) -> Selection:
    return Selection(count=count)


def advertised(count: int, *entries: SharedResource, rename: bool = False) -> dict[str, str]:
    """Resource names with the devices behind them, as `index*replicas`, in order."""
    plan = Plan(TimeSlicing(entries, rename_by_default=rename))
    found = {}
    for resource in build_inventory(gpus(count), plan).resources:
        runs = itertools.groupby(resource.devices, key=lambda device: device.index)
        found[resource.name] = " ".join(f"{index}*{len(list(run))}" for index, run in runs)
    return found


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        pytest.param([], {GPU: "0*1 1*1 2*1"}, id="nothing shared"),
        pytest.param([SharedResource(GPU, 4)], {GPU: "0*4 1*4 2*4"}, id="all"),
        pytest.param([SharedResource(GPU, 4, first(2))], {GPU: "0*4 1*4 2*1"}, id="the first two"),
        pytest.param([SharedResource(GPU, 4, first(9))], {GPU: "0*4 1*4 2*4"}, id="more than are"),
        pytest.param([SharedResource(GPU, 4, listed("1"))], {GPU: "0*1 1*4 2*1"}, id="by index"),
        pytest.param(
            [SharedResource(GPU, 4, listed(uuid_of_gpu(2)))], {GPU: "0*1 1*1 2*4"}, id="by UUID"
        ),
        pytest.param([SharedResource(GPU, 4, listed("7"))], {GPU: "0*1 1*1 2*1"}, id="nobody"),
        pytest.param(
            [
                SharedResource(GPU, 4, listed("1")),
                SharedResource(GPU, 10, listed("2"), "nvidia.com/small"),
            ],
            {GPU: "0*1 1*4", "nvidia.com/small": "2*10"},
            id="exclusive, by four, and by ten under another name",
        ),
        pytest.param(
            [SharedResource(GPU, 10), SharedResource(GPU, 4, listed("1"))],
            {GPU: "0*10 1*4 2*10"},
            id="a list wins over all",
        ),
        pytest.param(
            [SharedResource(GPU, 10), SharedResource(GPU, 4, first(1))],
            {GPU: "0*4 1*10 2*10"},
            id="a count wins over all",
        ),
        pytest.param(
            [SharedResource(GPU, 3, first(2)), SharedResource(GPU, 4, listed("0"))],
            {GPU: "0*4 1*3 2*3"},
            id="a list wins over a count, which takes the next ones",
        ),
        pytest.param(
            [SharedResource(GPU, 3, listed("0")), SharedResource(GPU, 5, listed("0", "1"))],
            {GPU: "0*5 1*5 2*1"},
            id="the later of two lists wins",
        ),
        pytest.param(
            [SharedResource(GPU, 1, listed("0"), "nvidia.com/alone")],
            {GPU: "1*1 2*1", "nvidia.com/alone": "0*1"},
            id="one replica under another name is a plain device",
        ),
        pytest.param(
            [SharedResource("nvidia.com/other", 4)], {GPU: "0*1 1*1 2*1"}, id="another resource"
        ),
        pytest.param(
            [SharedResource(GPU, 2, ALL, "nvidia.com/all")], {"nvidia.com/all": "0*2 1*2 2*2"},
            id="the plain name disappears",
        ),
    ],
)  # fmt: skip
def test_what_is_shared(entries: list[SharedResource], expected: dict[str, str]) -> None:
    assert advertised(3, *entries) == expected


def test_rename_by_default_is_for_what_is_shared() -> None:
    entries = [SharedResource(GPU, 2, listed("1")), SharedResource(GPU, 1, listed("2"))]
    assert advertised(3, *entries, rename=True) == {GPU: "0*1 2*1", f"{GPU}.shared": "1*2"}


def test_an_own_name_wins_over_rename_by_default() -> None:
    entry = SharedResource(GPU, 2, ALL, "nvidia.com/own")
    assert advertised(1, entry, rename=True) == {"nvidia.com/own": "0*2"}


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ([SharedResource(GPU, 4), SharedResource(GPU, 5)], ["0: entry [1] is for all"]),
        (
            [SharedResource(GPU, 4), SharedResource("nvidia.com/no", 2), SharedResource(GPU, 5)],
            ["0: entry [2] is for all", "1: no device is called nvidia.com/no"],
        ),
        (
            [SharedResource(GPU, 4, listed("1", "2")), SharedResource(GPU, 5, listed("2"))],
            ["0: does not get 2: entry [1] names it, too"],
        ),
        ([SharedResource(GPU, 4), SharedResource(GPU, 5, listed("2"))], []),
    ],
)
def test_entries_that_share_nothing_name_the_one_that_counts(
    entries: list[SharedResource], told: list[str]
) -> None:
    found = [*entries_without_effect(Plan(TimeSlicing(tuple(entries))))]
    assert len(found) == len(told)
    for (position, text), wanted in zip(found, told, strict=True):
        place, _, reason = wanted.partition(": ")
        assert position == int(place)
        assert reason in text


def test_an_entry_that_finds_no_device_leaves_a_note() -> None:
    plan = Plan(TimeSlicing((SharedResource(GPU, 4, listed("7", "9")),)))
    assert build_inventory(gpus(1), plan).notes == (
        "sharing of nvidia.com/gpu: no device is left for devices 7, 9",
    )


SELECTIONS = st.one_of(
    st.just(ALL),
    st.integers(1, 9).map(first),
    st.sets(st.integers(0, 8), min_size=1).map(lambda found: listed(*map(str, found))),
)
ENTRIES = st.lists(
    st.builds(
        SharedResource,
        st.sampled_from([GPU, "nvidia.com/x"]),
        st.integers(1, 5),
        SELECTIONS,
        st.sampled_from([None, GPU, "nvidia.com/y"]),
    ),
    max_size=5,
)


@given(st.integers(0, 8), ENTRIES, st.booleans())
def test_every_gpu_is_advertised_by_exactly_one_entry(
    count: int, entries: list[SharedResource], rename: bool
) -> None:
    inventory = build_inventory(gpus(count), Plan(TimeSlicing(tuple(entries), rename)))
    devices = [device for resource in inventory.resources for device in resource.devices]
    ids = [device.id for device in devices]
    assert len(set(ids)) == len(ids)
    allowed = {1} | {entry.replicas for entry in entries if entry.name == GPU}
    for index in range(count):
        mine = [device for device in devices if device.gpu_index == index]
        assert len(mine) in allowed
        assert len({device.replica is None for device in mine}) == 1
    for resource in inventory.resources:
        assert list(resource.devices) == sorted(resource.devices, key=lambda one: one.order)


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("*", "", True),
        ("*", "anything", True),
        ("NVIDIA H100*", "NVIDIA H100 PCIe", True),
        ("*H100*", "NVIDIA H100 PCIe", True),
        ("H100*", "NVIDIA H100 PCIe", False),
        ("nvidia*", "NVIDIA H100", False),
        ("1g.*", "1g.10gb", True),
        ("1g.*", "1gx10gb", False),
        ("a?c", "abc", False),
        ("a?c", "a?c", True),
        ("[ab]", "a", False),
        ("", "", True),
        ("", "x", False),
    ],
)
def test_patterns_are_anchored_and_have_one_wildcard(
    pattern: str, text: str, expected: bool
) -> None:
    assert matches(pattern, text) is expected


def test_products_get_names_by_the_first_pattern_that_matches() -> None:
    names = (NamePattern("Test*", "nvidia.com/test"), NamePattern("*", "nvidia.com/rest"))
    (resource,) = build_inventory(gpus(1), Plan(gpu_names=names)).resources
    assert resource.name == "nvidia.com/test"
    (resource,) = build_inventory(gpus(1), Plan(gpu_names=names[1:])).resources
    assert resource.name == "nvidia.com/rest"
    (resource,) = build_inventory(
        gpus(1), Plan(gpu_names=(NamePattern("Other", "nvidia.com/other"),))
    ).resources
    assert resource.name == GPU


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ([], [], [0, 1, 2]),
        (["1"], [], [1]),
        ([uuid_of_gpu(2)], [], [2]),
        (["00000000:02:00.0"], [], [1]),
        (["0000:02:00.0"], [], [1]),
        (["Test*"], [], [0, 1, 2]),
        (["Other*"], [], []),
        ([], ["0", uuid_of_gpu(1)], [2]),
        (["0", "1"], ["1"], [0]),
        ([], ["*"], []),
        (["9"], [], []),
    ],
)
def test_gpus_take_part_by_index_uuid_bus_and_product(
    include: list[str], exclude: list[str], expected: list[int]
) -> None:
    plan = Plan(gpu_filter=GpuFilter(tuple(include), tuple(exclude)))
    inventory = build_inventory((a_gpu(0), a_gpu(1), a_gpu(2)), plan)
    found = [device.gpu_index for one in inventory.resources for device in one.devices]
    assert found == expected


def test_a_gpu_that_is_on_no_bus_is_not_named_by_the_index_of_another() -> None:
    """As one that is part of the processor's chip, or whose address could not be read."""
    plan = Plan(gpu_filter=GpuFilter(exclude=("0",)))
    inventory = build_inventory((a_gpu(0), replace(a_gpu(1), pci_bus_id="")), plan)
    assert [one.gpu_index for one in inventory.resources[0].devices] == [1]


@pytest.mark.parametrize(
    ("include", "exclude", "notes"),
    [
        ([], [], []),
        (["0"], ["1"], []),
        (["0", "99"], [], ["gpus.include: 99 names no GPU of this node"]),
        (["Test*"], ["Other*"], ["gpus.exclude: Other* names no GPU of this node"]),
        ([], ["*"], ["gpus.include and gpus.exclude leave no GPU"]),
        (["0"], ["0"], ["gpus.include and gpus.exclude leave no GPU"]),
        (
            ["9"],
            [],
            [
                "gpus.include: 9 names no GPU of this node",
                "gpus.include and gpus.exclude leave no GPU",
            ],
        ),
    ],
)
def test_terms_that_name_no_gpu_are_noted(
    include: list[str], exclude: list[str], notes: list[str]
) -> None:
    plan = Plan(gpu_filter=GpuFilter(tuple(include), tuple(exclude)))

    assert build_inventory((a_gpu(0), a_gpu(1)), plan).notes == tuple(notes)
    assert build_inventory((), plan).notes == ()


@pytest.mark.parametrize(
    ("entry", "plan", "reason"),
    [
        (
            SharedResource("nvidia.com/mig-2g", 2),
            Plan(),
            "has no effect: nvidia.com/mig-2g is there with MIG strategy mixed, and it is none",
        ),
        (
            SharedResource("nvidia.com/one", 2),
            Plan(mig_strategy="single", mig_names=(NamePattern("1g.*", "nvidia.com/one"),)),
            "has no effect: nvidia.com/one is there with MIG strategy mixed, and it is single",
        ),
        (
            SharedResource("nvidia.com/no", 2),
            Plan(
                gpu_names=(NamePattern("A100", "nvidia.com/a100"),),
                mig_names=(NamePattern("1g.*", "nvidia.com/one"),),
            ),
            (
                "has no effect: no device is called nvidia.com/no; the configuration names "
                "nvidia.com/a100, nvidia.com/gpu, nvidia.com/one"
            ),
        ),
        (
            SharedResource(GPU, 2, listed("0:1", "MIG-4")),
            Plan(),
            "has no effect: it lists MIG devices only, and the MIG strategy is none",
        ),
        (SharedResource(GPU, 2, listed("0:1", "1")), Plan(), None),
        (SharedResource(GPU, 2, listed("0:1")), Plan(mig_strategy="single"), None),
        (SharedResource("nvidia.com/mig-1g.10gb", 2), Plan(mig_strategy="mixed"), None),
        (
            SharedResource("nvidia.com/a100", 2),
            Plan(gpu_names=(NamePattern("A100", "nvidia.com/a100"),)),
            None,
        ),
    ],
)
def test_entries_that_no_node_can_have_a_device_for(
    entry: SharedResource, plan: Plan, reason: str | None
) -> None:
    found = [*entries_without_effect(replace(plan, sharing=TimeSlicing((entry,))))]
    assert found == ([] if reason is None else [(0, reason)])


def test_without_a_configuration_nothing_is_shared_renamed_or_refused() -> None:
    plan = TimeSlicing()
    assert (plan.resources, plan.rename_by_default, plan.fail_requests_greater_than_one) == (
        (),
        False,
        False,
    )
    assert plan.interval is None
