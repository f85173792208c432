"""Conditions of a claim's devices: what is said of each, and when it is written anew."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gpuplugin.core.dra.claims import Claim, ClaimRef, Claims, Result
from gpuplugin.core.dra.conditions import DeviceStatus, device_statuses, with_statuses
from gpuplugin.core.dra.devices import Offer, Taint

if TYPE_CHECKING:
    from gpuplugin.core.jsonobject import JsonObject

DRIVER = "gpu.gpuplugin.dev"
FIRST, LATER = "2026-11-30T10:00:00Z", "2026-11-30T11:00:00Z"
OFFERS = {
    name: Offer(name, (f"GPU-{name}", None), "nvidia.com/gpu", 4, None) for name in ("a", "b")
}
SICK = (
    Taint(f"{DRIVER}/xid", "79", "NoSchedule"),
    Taint(f"{DRIVER}/unwatched", "true", "NoSchedule"),
)


def a_claim(*results: Result) -> Claim:
    claims = Claims("boot").started(ClaimRef("default", "claim", "uid"), results, OFFERS)
    return claims.by_uid["uid"]


def share(device: str, share_id: str = "") -> Result:
    return Result("gpu", "node-1", device, share_id, 1)


def a_status(**changes: str) -> DeviceStatus:
    known = DeviceStatus("node-1", "a", "", "True", "Prepared")
    return replace(known, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("offers", "expected"),
    [
        (OFFERS, ("True", "Prepared", "")),
        (
            {**OFFERS, "a": replace(OFFERS["a"], taints=SICK)},
            ("False", "Unhealthy", "xid 79, unwatched"),
        ),
        ({"b": OFFERS["b"]}, ("Unknown", "NotListed", "GPU-a is not listed")),
        (
            {**OFFERS, "a": replace(OFFERS["a"], unit=("GPU-other", None))},
            ("Unknown", "NotListed", "GPU-a is not listed"),
        ),
    ],
    ids=["healthy", "sick", "gone", "replaced"],
)
def test_each_device_has_its_own_condition(
    offers: dict[str, Offer], expected: tuple[str, str, str]
) -> None:
    first, other = device_statuses(a_claim(share("a", "share-1"), share("b")), offers)
    assert (first.pool, first.device, first.share_id) == ("node-1", "a", "share-1")
    assert (first.ready, first.reason, first.message) == expected
    assert other == DeviceStatus("node-1", "b", "", "True", "Prepared")


def conditions(claim: JsonObject | None) -> list[list[dict[str, object]]]:
    assert claim is not None
    status = claim["status"]
    assert isinstance(status, dict)
    return [one["conditions"] for one in status["devices"]]


@pytest.mark.parametrize("status", [{}, None, {"devices": None}, {"devices": []}])
def test_the_first_conditions_of_a_claim(status: object) -> None:
    claim: JsonObject = {"metadata": {"name": "claim"}}
    if status is not None:
        claim["status"] = status
    statuses = [a_status(), a_status(device="b", share_id="share-1", ready="False")]
    written = with_statuses(claim, DRIVER, statuses, FIRST)
    ready = {"type": "Ready", "reason": "Prepared", "message": "", "lastTransitionTime": FIRST}
    assert written == {
        "metadata": {"name": "claim"},
        "status": {
            "devices": [
                {
                    "driver": DRIVER,
                    "pool": "node-1",
                    "device": "a",
                    "conditions": [{**ready, "status": "True"}],
                },
                {
                    "driver": DRIVER,
                    "pool": "node-1",
                    "device": "b",
                    "shareID": "share-1",
                    "conditions": [{**ready, "status": "False"}],
                },
            ]
        },
    }
    assert with_statuses(written, DRIVER, statuses, LATER) is None


def test_what_others_say_stays() -> None:
    """Other drivers' devices, another type of condition, other fields, other parts of the status.

    A device of the same name that is another driver's, in another pool or another share, is not
    taken for this one.
    """
    theirs = {"driver": "other.dev", "pool": "node-1", "device": "a", "conditions": [1]}
    mine: JsonObject = {
        "driver": DRIVER,
        "pool": "node-1",
        "device": "a",
        "data": {"kept": 1},
        "conditions": [{"type": "Other", "status": "True"}],
    }
    claim: JsonObject = {
        "status": {"allocation": {"devices": 1}, "devices": [mine, theirs, "not an object"]}
    }
    before = copy.deepcopy(claim)
    written = with_statuses(claim, DRIVER, [a_status(), a_status(pool="node-2")], FIRST)
    assert claim == before
    assert written is not None
    status = written["status"]
    assert isinstance(status, dict)
    assert status["allocation"] == {"devices": 1}
    assert status["devices"][0] == theirs
    assert status["devices"][1] == {**mine, "conditions": conditions(written)[1]}
    assert [[one["type"] for one in found] for found in conditions(written)[1:]] == [
        ["Other", "Ready"],
        ["Ready"],
    ]
    assert "data" not in status["devices"][2]


@pytest.mark.parametrize(
    ("change", "since"),
    [
        ({"reason": "Recovering"}, FIRST),
        ({"message": "xid 79"}, FIRST),
        ({"ready": "False"}, LATER),
    ],
)
def test_the_time_is_that_of_the_last_change_of_status(change: dict[str, str], since: str) -> None:
    written = with_statuses({}, DRIVER, [a_status()], FIRST)
    assert written is not None
    again = with_statuses(written, DRIVER, [a_status(**change)], LATER)
    ((condition,),) = conditions(again)
    assert condition["lastTransitionTime"] == since
    assert len(condition) == 5


def test_a_time_that_is_missing_is_added() -> None:
    known = {"type": "Ready", "status": "True", "reason": "Prepared", "message": ""}
    entry = {"driver": DRIVER, "pool": "node-1", "device": "a", "conditions": [known]}
    claim: JsonObject = {"status": {"devices": [entry]}}
    assert conditions(with_statuses(claim, DRIVER, [a_status()], FIRST)) == [
        [{**known, "lastTransitionTime": FIRST}]
    ]


def test_a_device_that_the_claim_lost_has_no_condition() -> None:
    written = with_statuses({}, DRIVER, [a_status(), a_status(device="b")], FIRST)
    assert written is not None
    fewer = with_statuses(written, DRIVER, [a_status(ready="False")], LATER)
    assert len(conditions(fewer)) == 1
