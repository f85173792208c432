"""Claims: nothing is given out twice, and what was prepared is remembered."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.core.dra.claims import (
    BrokenCheckpoint,
    ClaimError,
    ClaimRef,
    Claims,
    ClaimState,
    Result,
    decoded,
    encoded,
    results_of,
)
from gpuplugin.core.dra.devices import Offer
from hal import TimeSliceLevel

DRIVER = "gpu.gpuplugin.dev"
OFFERS = {
    name: Offer(name, (f"GPU-{name}", None), "nvidia.com/gpu", replicas, None)
    for name, replicas in (("gpu-a", 4), ("gpu-b", 1))
}


def ref(number: int, uid: str = "") -> ClaimRef:
    return ClaimRef("default", f"claim-{number}", uid or f"uid-{number}")


def shares(count: int, device: str = "gpu-a") -> Result:
    return Result("gpu", "node-1", device, "share", count)


WHOLE = Result("gpu", "node-1", "gpu-b")


def test_a_claim_begins_is_done_and_ends() -> None:
    claims = Claims("boot").started(ref(1), [shares(2)], OFFERS)
    assert claims.by_uid["uid-1"].state is ClaimState.STARTED
    assert not claims.is_prepared("uid-1")
    claims = claims.prepared("uid-1", {"gpu-a": ("vendor/class=one",)})
    assert claims.is_prepared("uid-1")
    (held,) = claims.by_uid["uid-1"].devices
    assert (held.uuid, held.cdi_ids) == ("GPU-gpu-a", ("vendor/class=one",))
    assert claims.taken() == {"gpu-a": 2}
    assert claims.without("uid-1").without("uid-1").by_uid == {}


def test_an_exclusive_device_is_given_out_once() -> None:
    claims = Claims("boot").started(ref(1), [WHOLE], OFFERS)
    with pytest.raises(ClaimError, match="claim default/claim-1 has all of it"):
        claims.started(ref(2), [WHOLE], OFFERS)
    assert claims.started(ref(1), [WHOLE], OFFERS).by_uid == claims.by_uid
    claims.without("uid-1").started(ref(2), [WHOLE], OFFERS)


def test_a_gpu_whose_shares_are_out_is_not_given_out_whole() -> None:
    claims = Claims("boot").started(ref(1), [shares(1)], OFFERS)
    with pytest.raises(ClaimError, match="1 shares are out"):
        claims.started(ref(2), [Result("gpu", "node-1", "gpu-a")], OFFERS)


def test_who_has_admin_access_takes_nothing_and_is_not_in_the_way() -> None:
    watching = Result("watch", "node-1", "gpu-b", admin_access=True)
    claims = Claims("boot").started(ref(1), [WHOLE], OFFERS).started(ref(2), [watching], OFFERS)
    assert claims.taken() == {"gpu-b": 1}
    assert claims.shares_out() == {}
    claims = decoded(encoded(claims.without("uid-1")))
    assert claims.taken() == {}
    claims.started(ref(3), [WHOLE], OFFERS)


def test_a_claim_of_the_same_name_waits_for_the_old_one() -> None:
    claims = Claims("boot").started(ref(1), [shares(1)], OFFERS)
    with pytest.raises(ClaimError, match="still prepared under the UID uid-1"):
        claims.started(ref(1, "uid-new"), [shares(1)], OFFERS)


def test_a_device_that_is_not_here_is_told() -> None:
    with pytest.raises(ClaimError, match="no device gpu-z"):
        Claims("boot").started(ref(1), [shares(1, "gpu-z")], OFFERS)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.booleans(), st.lists(st.integers(1, 3), max_size=3)),
        max_size=20,
    )
)
def test_no_more_shares_are_out_than_there_are(
    steps: list[tuple[int, bool, list[int]]],
) -> None:
    """Against a plain count of what each claim holds."""
    claims, held = Claims("boot"), dict[int, int]()
    for number, begins, counts in steps:
        if not begins:
            claims = claims.without(f"uid-{number}")
            held.pop(number, None)
            continue
        others = sum(count for one, count in held.items() if one != number)
        try:
            claims = claims.started(ref(number), map(shares, counts), OFFERS)
        except ClaimError:
            assert others + sum(counts) > 4
        else:
            held[number] = sum(counts)
            assert others + sum(counts) <= 4
        assert claims.taken().get("gpu-a", 0) == sum(held.values())


def test_another_boot_leaves_names_and_nothing_that_is_set_up() -> None:
    claims = Claims("one").started(ref(1), [shares(1)], OFFERS).prepared("uid-1", {})
    assert claims.rebooted("one") is claims
    after = claims.rebooted("two")
    assert (after.boot_id, after.is_prepared("uid-1")) == ("two", False)
    assert after.taken() == {"gpu-a": 1}


def test_the_file_gives_back_what_was_written_and_passes_over_what_it_does_not_know() -> None:
    claims = Claims("boot").started(ref(1), [shares(2)], OFFERS).started(ref(2), [WHOLE], OFFERS)
    claims = claims.prepared("uid-1", {"gpu-a": ("vendor/class=one",)})
    assert decoded(encoded(claims)) == claims
    content = json.loads(encoded(claims))
    content["later"] = content["claims"][0]["later"] = {"new": [1]}
    assert decoded(json.dumps(content)) == claims


DEVICE = {"request": "r", "pool": "p", "device": "d", "uuid": "u"}


def with_claim(**changed: object) -> str:
    claim = {"namespace": "n", "name": "n", "uid": "u", "state": "started"} | changed
    return json.dumps({"version": 1, "claims": [claim]})


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", '{"version": 2}', "[" * 100_000),
        '{"version": 1, "claims": [{}]}',
        with_claim(state="odd"),
        with_claim(devices=[{"request": "r"}]),
        with_claim(devices=[DEVICE | {"shares": "x"}]),
    ],
)
def test_a_broken_file_is_told_in_one_way(text: str) -> None:
    with pytest.raises(BrokenCheckpoint):
        decoded(text)


def test_a_claim_without_devices_is_read() -> None:
    assert decoded(with_claim()).by_uid["u"].devices == ()
    assert len(decoded(with_claim(devices=[DEVICE])).by_uid["u"].devices) == 1


@given(st.text(max_size=200))
def test_nothing_else_is_raised_whatever_the_file_has(text: str) -> None:
    try:
        decoded(text)
    except BrokenCheckpoint:
        return


def claim_object(uid: str, results: list[dict[str, object]] | None) -> dict[str, object]:
    status = {} if results is None else {"allocation": {"devices": {"results": results}}}
    return {"metadata": {"namespace": "default", "name": "c", "uid": uid}, "status": status}


def test_the_results_of_this_driver_are_read() -> None:
    results: list[dict[str, object]] = [
        {
            "request": "gpu/small", "driver": DRIVER, "pool": "node-1", "device": "gpu-a",
            "shareID": "s-1", "consumedCapacity": {"shares": "3", "memory": "0"},
        },
        {"request": "nic", "driver": "other.example.com", "pool": "p", "device": "eth0"},
        {"request": "whole", "driver": DRIVER, "pool": "node-1", "device": "gpu-b"},
        {
            "request": "own", "driver": DRIVER, "pool": "node-1", "device": "gpu-c",
            "adminAccess": False,
        },
        {
            "request": "watch", "driver": DRIVER, "pool": "node-1", "device": "gpu-d",
            "adminAccess": True,
        },
        {
            "request": "many", "driver": DRIVER, "pool": "node-1", "device": "gpu-e",
            "shareID": "s-2", "consumedCapacity": {"shares": "1k"},
        },
    ]  # fmt: skip
    shared, whole, own, watching, many = results_of(claim_object("u", results), "u", DRIVER)
    assert shared == Result("gpu/small", "node-1", "gpu-a", "s-1", 3)
    assert shared.base_request == "gpu"
    assert whole == Result("whole", "node-1", "gpu-b")
    assert own == Result("own", "node-1", "gpu-c", admin_access=False)
    assert watching == Result("watch", "node-1", "gpu-d", admin_access=True)
    assert many == Result("many", "node-1", "gpu-e", "s-2", 1000)


@pytest.mark.parametrize(
    ("claim", "error"),
    [
        (claim_object("other", []), "has the UID other now, u is gone"),
        (claim_object("u", None), "is not allocated"),
        ({}, "u is gone"),
    ],
)
def test_a_claim_that_cannot_be_meant_is_refused(claim: dict[str, object], error: str) -> None:
    with pytest.raises(ClaimError, match=error):
        results_of(claim, "u", DRIVER)


def test_time_slices_that_claims_ask_for() -> None:
    long, short = TimeSliceLevel.LONG, TimeSliceLevel.SHORT
    claims = (
        Claims("boot")
        .started(ref(1), [shares(1)], OFFERS, {("gpu", "gpu-a"): long, ("gpu", "gpu-b"): short})
        .started(ref(2), [shares(2)], OFFERS, {("other", "gpu-a"): short})
        .started(ref(3), [WHOLE], OFFERS, {("gpu", "gpu-b"): short})
    )
    assert [*claims.time_slices_of("GPU-gpu-a")] == [(ref(1), long), (ref(2), None)]
    assert [*claims.time_slices_of("GPU-none")] == []
    assert claims.time_slices() == {"GPU-gpu-a": long, "GPU-gpu-b": short}
    assert claims.without("uid-1").time_slices() == {"GPU-gpu-b": short}
    assert decoded(encoded(claims)).time_slices() == claims.time_slices()


@pytest.mark.parametrize("level", [None, *TimeSliceLevel])
def test_what_a_claim_asks_for_is_remembered(level: TimeSliceLevel | None) -> None:
    claims = Claims("boot").started(ref(1), [shares(1)], OFFERS, {("gpu", "gpu-a"): level})
    assert decoded(encoded(claims)) == claims


def test_what_is_out_is_counted_over_claims() -> None:
    claims = (
        Claims("boot").started(ref(1), [shares(1)], OFFERS).started(ref(2), [shares(2)], OFFERS)
    )
    claims = claims.started(ref(3), [WHOLE], OFFERS)
    assert claims.taken() == {"gpu-a": 3, "gpu-b": 1}
    assert claims.shares_out() == {"gpu-a": 3}


@pytest.mark.parametrize(
    ("held", "asked", "text", "may_pass"),
    [
        ([], [shares(5)], "5 shares of 4", False),
        ([], [shares(2), shares(3)], "5 shares of 4", False),
        ([], [shares(4)], None, None),
        ([shares(3)], [shares(2)], "3 of 4 shares are out, 2 more are too many", True),
        ([shares(3)], [shares(1), shares(1)], "3 of 4 shares are out, 2 more", True),
        ([shares(1)], [shares(5)], "1 of 4 shares are out, 5 more", False),
        ([shares(3)], [shares(1)], None, None),
        ([WHOLE], [WHOLE], "claim default/claim-1 has all of it", True),
        ([], [Result("gpu", "node-1", "gpu-b", "share", 2)], "2 shares of 1", False),
        ([], [WHOLE], None, None),
    ],
)
def test_what_is_worth_waiting_for(
    held: list[Result], asked: list[Result], text: str | None, may_pass: bool | None
) -> None:
    """What others will give back, and not what the device will never have."""
    claims = Claims("boot").started(ref(1), held, OFFERS) if held else Claims("boot")
    if text is None:
        admitted = claims.started(ref(2), asked, OFFERS).by_uid["uid-2"]
        assert [held.result for held in admitted.devices] == asked
        return
    with pytest.raises(ClaimError, match=text) as caught:
        claims.started(ref(2), asked, OFFERS)
    assert caught.value.may_pass is may_pass
