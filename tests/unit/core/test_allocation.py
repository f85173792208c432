"""Which requests are granted, and the words of a refusal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.core.allocation import (
    SharedRequestTooLarge,
    UnknownDevice,
    check_request,
)
from gpuplugin.core.injection import inject_envvar
from tests.unit.builders import a_resource, ids, uuid_of_gpu

if TYPE_CHECKING:
    from gpuplugin.core.inventory import Resource

A, B, C = (uuid_of_gpu(index) for index in range(3))
SHARED = a_resource(3, 4)
STRICT = a_resource(3, 4, fail=True)
WHOLE = a_resource(3, 1, fail=True)


def test_two_replicas_are_refused_in_nvidias_words() -> None:
    with pytest.raises(SharedRequestTooLarge) as caught:
        check_request(STRICT, ids(STRICT), [f"{A}::0", f"{B}::1"])

    assert str(caught.value) == (
        'invalid allocation request for "nvidia.com/gpu": invalid request: '
        "maximum request size for shared resources is 1; found 2"
    )


def test_the_refusal_names_the_renamed_resource_and_the_real_number() -> None:
    resource = a_resource(1, 4, fail=True, rename=True)

    with pytest.raises(SharedRequestTooLarge) as caught:
        check_request(resource, ids(resource), ids(resource))

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
    with pytest.raises(UnknownDevice) as caught:
        check_request(resource, ids(resource), [ids(resource)[0], unknown])

    assert str(caught.value) == (
        'invalid allocation request for "nvidia.com/gpu": invalid request: '
        f"unknown device: {unknown}"
    )


def test_an_unknown_device_is_told_before_the_size() -> None:
    with pytest.raises(UnknownDevice, match="unknown device: GPU-x"):
        check_request(STRICT, ids(STRICT), [f"{A}::0", "GPU-x", "GPU-y"])


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
    assert check_request(SHARED, ids(SHARED), requested) == expected


def test_one_replica_passes_where_two_are_refused() -> None:
    assert check_request(STRICT, ids(STRICT), [f"{B}::3"]) == (B,)


def test_whole_gpus_may_be_several_even_if_shared_ones_may_not() -> None:
    assert check_request(WHOLE, ids(WHOLE), [C, A]) == (C, A)


@given(st.lists(st.sampled_from((*ids(SHARED), "GPU-x", "GPU-x::0", A)), max_size=6))
def test_a_request_is_granted_exactly_if_every_device_is_known(requested: list[str]) -> None:
    known = set(ids(SHARED))
    unknown = [one for one in requested if one not in known]
    if unknown:
        with pytest.raises(UnknownDevice) as caught:
            check_request(SHARED, known, requested)
        assert caught.value.device_id == unknown[0]
        return
    uuids = check_request(SHARED, known, requested)
    assert set(uuids) == {one.split("::")[0] for one in requested}
    assert len(uuids) == len(set(uuids))


@pytest.mark.parametrize(
    ("uuids", "text"), [((), ""), (("GPU-a",), "GPU-a"), (("GPU-b", "GPU-a"), "GPU-b,GPU-a")]
)
def test_the_container_sees_its_gpus_in_order(uuids: tuple[str, ...], text: str) -> None:
    assert inject_envvar(uuids).envs == (("NVIDIA_VISIBLE_DEVICES", text),)
