"""Which requests are granted, and the words of a refusal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.core.allocation import AllocationError, check_request
from gpuplugin.core.injection import InjectionPlan, inject
from tests.unit.builders import a_resource, by_id, ids, uuid_of_gpu

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuplugin.core.inventory import Device, Resource

A, B, C = (uuid_of_gpu(index) for index in range(3))
SHARED = a_resource(3, 4)
STRICT = a_resource(3, 4, fail=True)
WHOLE = a_resource(3, 1, fail=True)


def test_two_replicas_are_refused_in_nvidias_words() -> None:
    with pytest.raises(AllocationError) as caught:
        check_request(STRICT, by_id(STRICT), [f"{A}::0", f"{B}::1"])

    assert str(caught.value) == (
        'invalid allocation request for "nvidia.com/gpu": invalid request: '
        "maximum request size for shared resources is 1; found 2"
    )


def test_the_refusal_names_the_renamed_resource_and_the_real_number() -> None:
    resource = a_resource(1, 4, fail=True, rename=True)

    with pytest.raises(AllocationError) as caught:
        check_request(resource, by_id(resource), ids(resource))

    assert str(caught.value) == (
        'invalid allocation request for "nvidia.com/gpu.shared": invalid request: '
        "maximum request size for shared resources is 1; found 4"
    )


@pytest.mark.parametrize(
    ("resource", "unknown"),
    [
        pytest.param(SHARED, "GPU-none::0", id="another GPU"),
        pytest.param(SHARED, f"{A}::4", id="a replica too many"),
        pytest.param(SHARED, A, id="the GPU itself while it is shared"),
        pytest.param(WHOLE, f"{A}::0", id="a replica while it is not shared"),
        pytest.param(SHARED, "", id="nothing"),
    ],
)
def test_an_unknown_device_is_refused_in_nvidias_words(resource: Resource, unknown: str) -> None:
    with pytest.raises(AllocationError) as caught:
        check_request(resource, by_id(resource), [ids(resource)[0], unknown])

    assert str(caught.value) == (
        'invalid allocation request for "nvidia.com/gpu": invalid request: '
        f"unknown device: {unknown}"
    )


def test_an_unknown_device_is_told_before_the_size() -> None:
    with pytest.raises(AllocationError, match="unknown device: GPU-x"):
        check_request(STRICT, by_id(STRICT), [f"{A}::0", "GPU-x", "GPU-y"])


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        pytest.param([], (), id="nothing"),
        pytest.param([f"{C}::1"], (C,), id="one"),
        pytest.param([f"{C}::1", f"{A}::0", f"{B}::3"], (C, A, B), id="order of the request"),
        pytest.param([f"{B}::1", f"{A}::2", f"{B}::0"], (B, A), id="one GPU twice"),
        pytest.param([f"{A}::1", f"{A}::1"], (A,), id="one replica twice"),
    ],
)
def test_order_is_kept_and_repeats_are_removed(
    requested: list[str], expected: tuple[str, ...]
) -> None:
    granted = check_request(SHARED, by_id(SHARED), requested)
    assert [device.id for device in granted] == requested
    assert _visible(granted) == ",".join(expected)


def test_one_replica_passes_where_two_are_refused() -> None:
    assert _visible(check_request(STRICT, by_id(STRICT), [f"{B}::3"])) == B


def test_whole_gpus_may_be_several_even_if_shared_ones_may_not() -> None:
    assert _visible(check_request(WHOLE, by_id(WHOLE), [C, A])) == f"{C},{A}"


@given(st.lists(st.sampled_from((*ids(SHARED), "GPU-x", "GPU-x::0", A)), max_size=6))
def test_a_request_is_granted_exactly_if_every_device_is_known(requested: list[str]) -> None:
    known = by_id(SHARED)
    unknown = [one for one in requested if one not in known]
    if unknown:
        with pytest.raises(AllocationError) as caught:
            check_request(SHARED, known, requested)
        assert str(caught.value).endswith(f": unknown device: {unknown[0]}")
        return
    granted = check_request(SHARED, known, requested)
    assert [device.id for device in granted] == requested


def test_replicas_on_one_gpu_are_refused_where_they_must_be_distinct() -> None:
    with pytest.raises(AllocationError) as caught:
        check_request(SHARED, by_id(SHARED), [f"{A}::0", f"{B}::0", f"{A}::1"], distinct=True)

    assert str(caught.value) == (
        'invalid allocation request for "nvidia.com/gpu": invalid request: 3 replicas must be '
        f"on distinct GPUs (policy spread-strict); found 2 on {A}"
    )


def test_replicas_on_distinct_gpus_pass_where_they_must_be_distinct() -> None:
    requested = [f"{A}::0", f"{B}::0", f"{C}::3"]
    granted = check_request(SHARED, by_id(SHARED), requested, distinct=True)
    assert [device.id for device in granted] == requested


def _visible(granted: Sequence[Device]) -> str:
    """What the container sees of them."""
    return dict(inject("nvidia.com/gpu", granted, InjectionPlan()).envs)["NVIDIA_VISIBLE_DEVICES"]
