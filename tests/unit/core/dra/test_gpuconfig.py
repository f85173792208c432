"""Opaque configurations of claims: which one counts, what is refused, and who agrees with whom."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.core.dra.claims import ClaimError, ClaimRef
from gpuplugin.core.dra.gpuconfig import (
    time_slice_conflict,
    time_slices,
)
from hal import TimeSliceLevel

DRIVER = "gpu.gpuplugin.dev"
LONG, SHORT = TimeSliceLevel.LONG, TimeSliceLevel.SHORT
OTHER = "gpu.nvidia.com"


def gpu_config(**sharing: object) -> dict[str, object]:
    return {
        "apiVersion": "resource.nvidia.com/v1beta1",
        "kind": "GpuConfig",
        "sharing": {"strategy": "TimeSlicing", **sharing},
    }


def interval(word: str) -> dict[str, object]:
    return gpu_config(timeSlicingConfig={"interval": word})


def config(
    parameters: object, *requests: str, source: str = "FromClaim", driver: str = DRIVER
) -> dict[str, object]:
    found: dict[str, object] = {
        "source": source,
        "opaque": {"driver": driver, "parameters": parameters},
    }
    return {**found, "requests": list(requests)} if requests else found


def claim(results: dict[str, str], *configs: object, driver: str = DRIVER) -> dict[str, object]:
    """An allocated claim; `results` are devices by request."""
    allocated = [
        {"driver": driver, "pool": "node-1", "request": request, "device": device}
        for request, device in results.items()
    ]
    return {"status": {"allocation": {"devices": {"results": allocated, "config": list(configs)}}}}


@pytest.mark.parametrize(
    ("word", "level"), [(level.name.capitalize(), level) for level in TimeSliceLevel]
)
@pytest.mark.parametrize("group", ["resource.nvidia.com", "resource.gpuplugin.dev"])
def test_an_interval_is_read(word: str, level: TimeSliceLevel, group: str) -> None:
    parameters = {**interval(word), "apiVersion": f"{group}/v1beta1"}
    assert time_slices(claim({"gpu": "gpu-a"}, config(parameters)), DRIVER) == {
        ("gpu", "gpu-a"): level
    }


@pytest.mark.parametrize(
    "parameters",
    [
        gpu_config(),
        gpu_config(timeSlicingConfig={}),
        gpu_config(timeSlicingConfig=None),
        {"apiVersion": "resource.nvidia.com/v1beta1", "kind": "GpuConfig"},
        {"apiVersion": "resource.nvidia.com/v1beta1", "kind": "GpuConfig", "sharing": None},
    ],
)
def test_without_an_interval_nothing_is_asked_for(parameters: object) -> None:
    assert time_slices(claim({"gpu": "gpu-a"}, config(parameters)), DRIVER) == {
        ("gpu", "gpu-a"): None
    }


@pytest.mark.parametrize("status", [None, {}, {"allocation": None}, {"allocation": {}}])
def test_a_claim_without_results_asks_for_nothing(status: object) -> None:
    assert time_slices({"status": status}, DRIVER) == {}


def test_results_and_configurations_of_other_drivers_are_passed_over() -> None:
    theirs = config({"kind": "Whatever"}, driver=OTHER)
    assert time_slices(claim({"gpu": "gpu-a"}, theirs), DRIVER) == {("gpu", "gpu-a"): None}
    assert (
        time_slices(claim({"gpu": "gpu-a"}, config(interval("Long")), driver=OTHER), DRIVER) == {}
    )


def test_a_request_is_named_with_or_without_its_subrequest() -> None:
    results = {"gpu/first": "gpu-a", "other": "gpu-b"}
    whole = claim(results, config(interval("Long"), "gpu"))
    part = claim(results, config(interval("Long"), "gpu/first"))
    other = claim(results, config(interval("Long"), "gpu/second"))
    expected = {("gpu/first", "gpu-a"): LONG, ("other", "gpu-b"): None}
    assert time_slices(whole, DRIVER) == time_slices(part, DRIVER) == expected
    assert set(time_slices(other, DRIVER).values()) == {None}


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        (None, "parameters is no object"),
        ("GpuConfig", "parameters is no object"),
        ({**interval("Long"), "apiVersion": "resource.nvidia.com/v1alpha1"}, "apiVersion is"),
        ({**interval("Long"), "kind": "VfioDeviceConfig"}, "kind is 'VfioDeviceConfig'"),
        ({**interval("Long"), "extra": 1}, "unknown field 'extra'"),
        ({**interval("Long"), "sharing": []}, "sharing is no object"),
        ({**interval("Long"), "sharing": {}}, "sharing.strategy is None"),
        (gpu_config(strategy="MPS", mpsConfig={}), "sharing.strategy is 'MPS'"),
        (gpu_config(mpsConfig={}), "unknown field 'mpsConfig'"),
        (gpu_config(timeSlicingConfig={"interval": "long"}), "interval is 'long'"),
        (gpu_config(timeSlicingConfig={"interval": 3}), "interval is 3"),
        (gpu_config(timeSlicingConfig={"interval": ["Long"]}), "interval is"),
        (gpu_config(timeSlicingConfig={"intervall": "Long"}), "unknown field 'intervall'"),
        (gpu_config(timeSlicingConfig="Long"), "timeSlicingConfig is no object"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(parameters: object, reason: str) -> None:
    with pytest.raises(ClaimError, match=reason):
        time_slices(claim({"gpu": "gpu-a"}, config(parameters)), DRIVER)


def test_kinds_of_devices_have_kinds_of_configurations() -> None:
    mig = {**gpu_config(), "kind": "MigDeviceConfig"}
    both = {"gpu": "gpu-a", "mig": "mig-b"}
    everyone = claim(both, config(interval("Long")), config(mig))
    assert time_slices(everyone, DRIVER) == {("gpu", "gpu-a"): LONG, ("mig", "mig-b"): None}
    with pytest.raises(ClaimError, match="GpuConfig cannot be applied to mig-b of request mig"):
        time_slices(claim(both, config(interval("Long"), "mig")), DRIVER)
    with pytest.raises(ClaimError, match="MigDeviceConfig cannot be applied to gpu-a"):
        time_slices(claim(both, config(mig, "gpu")), DRIVER)
    timed = {**interval("Long"), "kind": "MigDeviceConfig"}
    with pytest.raises(ClaimError, match="unknown field 'timeSlicingConfig'"):
        time_slices(claim(both, config(timed, "mig")), DRIVER)


@dataclass(frozen=True)
class Entry:
    from_class: bool
    requests: tuple[str, ...]
    word: str | None
    mine: bool


ENTRIES = st.lists(
    st.builds(
        Entry,
        st.booleans(),
        st.lists(st.sampled_from(["a", "b", "c", "c/x"]), max_size=2).map(tuple),
        st.sampled_from([None, "Default", "Short", "Medium", "Long"]),
        st.booleans(),
    ),
    max_size=8,
)


@given(ENTRIES, st.permutations(["a", "b", "c/x", "c/y"]))
def test_of_several_configurations_the_right_one_counts(
    entries: list[Entry], requests: list[str]
) -> None:
    made = [
        config(
            interval(entry.word) if entry.word else gpu_config(),
            *entry.requests,
            source="FromClass" if entry.from_class else "FromClaim",
            driver=DRIVER if entry.mine else OTHER,
        )
        for entry in entries
    ]
    results = {request: f"gpu-{number}" for number, request in enumerate(requests)}
    found = time_slices(claim(results, *made), DRIVER)
    for request, device in results.items():
        fitting = [
            (not entry.from_class, position)
            for position, entry in enumerate(entries)
            if entry.mine
            and (not entry.requests or {request, request.split("/")[0]} & set(entry.requests))
        ]
        word = entries[max(fitting)[1]].word if fitting else None
        assert found[request, device] == (TimeSliceLevel[word.upper()] if word else None)


LEVELS = (None, *TimeSliceLevel)


@pytest.mark.parametrize(("asked", "held"), list(product(LEVELS, LEVELS)))
def test_two_shares_of_a_gpu_agree_or_the_later_is_refused(
    asked: TimeSliceLevel | None, held: TimeSliceLevel | None
) -> None:
    holders = [(ClaimRef("default", "quiet", "1"), None), (ClaimRef("default", "first", "2"), held)]
    reason = time_slice_conflict(asked, holders)
    if asked is None or held is None or asked == held:
        assert not reason
    else:
        assert "claim default/first" in reason
