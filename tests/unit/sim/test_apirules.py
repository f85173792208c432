"""What the simulated API server allows, by what Kubernetes 1.36 was seen to allow and refuse."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from sim.apiserver.rules import gates_off, invalid, invalid_update, quantity, without_gated

SHARES = {"min": "1", "max": "10", "step": "1"}


def device(**changes: Any) -> dict[str, Any]:
    return {"name": "gpu-0", **changes}


def shared(value: str = "10", **policy: Any) -> dict[str, Any]:
    capacity = {"shares": {"value": value, "requestPolicy": policy}}
    return device(allowMultipleAllocations=True, capacity=capacity)


def slice_of(*devices: dict[str, Any], **changes: Any) -> dict[str, Any]:
    spec = {
        "driver": "gpu.example.com",
        "nodeName": "n1",
        "pool": {"name": "n1", "generation": 1, "resourceSliceCount": 1},
        "devices": list(devices),
    }
    return {"spec": {**spec, **changes}}


def many(count: int, **changes: Any) -> list[dict[str, Any]]:
    return [device(**{"name": f"gpu-{number}", **changes}) for number in range(count)]


TAINT = {"key": "gpu.example.com/xid", "value": "79", "effect": "NoSchedule"}

ALLOWED = {
    "no devices": slice_of(),
    "128 devices": slice_of(*many(128)),
    "64 with taints": slice_of(*many(64, taints=[TAINT])),
    "ten shares": slice_of(shared(default="1", validRange=SHARES)),
    "one share, no step": slice_of(shared("1", default="1", validRange={"min": "1", "max": "1"})),
    "one share, a list": slice_of(shared("1", default="1", validValues=["1"])),
    "a default alone": slice_of(shared(default="1")),
    "a minimum alone": slice_of(shared(default="1", validRange={"min": "1"})),
    "nothing by default": slice_of(shared("24Gi", default="0", validRange={"min": "0"})),
    "memory in steps": slice_of(
        shared("24Gi", default="0", validRange={"min": "0", "step": "1Mi"})
    ),
    "a pool with a slash": slice_of(pool={"name": "a/b", "generation": 0, "resourceSliceCount": 1}),
    "32 attributes": slice_of(device(attributes={f"a{n}": {"int": n} for n in range(32)})),
    "attributes of all types": slice_of(
        device(
            attributes={
                "a": {"string": "x" * 64}, "b": {"version": "580.65.6"}, "c": {"bool": False},
                "resource.kubernetes.io/numaNode": {"int": 0},
            }
        )
    ),
    "16 taints": slice_of(
        device(taints=[{**TAINT, "key": f"example.com/t{number}"} for number in range(16)])
    ),
}  # fmt: skip

REFUSED = {
    "129 devices": slice_of(*many(129)),
    "65, one with a taint": slice_of(*many(64), device(name="sick", taints=[TAINT])),
    "a capital letter": slice_of(device(name="GPU-0")),
    "a name of 64": slice_of(device(name="g" * 64)),
    "one name twice": slice_of(device(), device()),
    "33 attributes": slice_of(device(attributes={f"a{n}": {"int": n} for n in range(33)})),
    "an attribute of 33 letters": slice_of(device(attributes={"a" * 33: {"int": 1}})),
    "a dash in an attribute": slice_of(device(attributes={"a-b": {"int": 1}})),
    "65 bytes": slice_of(device(attributes={"a": {"string": "x" * 65}})),
    "two values": slice_of(device(attributes={"a": {"string": "x", "int": 1}})),
    "no value": slice_of(device(attributes={"a": {}})),
    "two parts": slice_of(device(attributes={"a": {"version": "580.126"}})),
    "a leading zero": slice_of(device(attributes={"a": {"version": "580.065.06"}})),
    "another digit": slice_of(device(attributes={"a": {"version": "580.٣.1"}})),
    "one share with a step": slice_of(shared("1", default="1", validRange={**SHARES, "max": "1"})),
    "no default": slice_of(shared(validRange=SHARES)),
    "a policy of an exclusive one": slice_of(
        {**shared(default="1"), "allowMultipleAllocations": False}
    ),
    "a default between steps": slice_of(
        shared(default="2", validRange={"min": "1", "max": "9", "step": "2"})
    ),
    "a maximum between steps": slice_of(
        shared(default="1", validRange={"min": "1", "max": "10", "step": "2"})
    ),
    "values that descend": slice_of(shared(default="1", validValues=["2", "1"])),
    "eleven values": slice_of(shared(default="1", validValues=[str(n) for n in range(1, 12)])),
    "17 taints": slice_of(
        device(taints=[{**TAINT, "key": f"example.com/t{number}"} for number in range(17)])
    ),
    "a taint with a blank": slice_of(device(taints=[{**TAINT, "value": "Xid 79"}])),
    "an unknown effect": slice_of(device(taints=[{**TAINT, "effect": "PreferNoSchedule"}])),
    "a driver in capitals": slice_of(driver="GPU.example.com"),
    "a driver of 64": slice_of(driver="g" * 64),
    "no slices": slice_of(pool={"name": "n1", "generation": 1, "resourceSliceCount": 0}),
    "a generation below 0": slice_of(pool={"name": "n", "generation": -1, "resourceSliceCount": 1}),
    "no node": slice_of(nodeName=None),
    "a node and all": slice_of(allNodes=True),
    "counters and devices": slice_of(device(), sharedCounters=[{"name": "a"}]),
}  # fmt: skip


@pytest.mark.parametrize("body", ALLOWED.values(), ids=ALLOWED)
def test_slices_that_are_allowed(body: dict[str, Any]) -> None:
    assert invalid("ResourceSlice", body) == []


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED)
def test_slices_that_are_refused(body: dict[str, Any]) -> None:
    (problem,) = invalid("ResourceSlice", body)
    assert problem.startswith("spec")


def test_the_text_about_one_share_with_a_step_is_that_of_kubernetes() -> None:
    (problem,) = invalid("ResourceSlice", REFUSED["one share with a step"])
    assert "one step 2 is larger than capacity value: 1" in problem


def result(**changes: Any) -> dict[str, Any]:
    return {
        "request": "gpu",
        "driver": "gpu.example.com",
        "pool": "n1",
        "device": "gpu-0",
    } | changes


def claim(*results: dict[str, Any], **status: Any) -> dict[str, Any]:
    request = {"name": "gpu", "exactly": {"deviceClassName": "gpu.example.com"}}
    return {
        "spec": {"devices": {"requests": [request]}},
        "status": {"allocation": {"devices": {"results": list(results)}}, **status},
    }


def test_claims() -> None:
    user = {"resource": "pods", "name": "a", "uid": "1"}
    told = {"driver": "gpu.example.com", "pool": "n1", "device": "gpu-0"}
    assert invalid("ResourceClaim", claim(result(), reservedFor=[user], devices=[told])) == []
    without: dict[str, Any] = {"spec": {"devices": {"requests": [{"name": "gpu"}]}}}
    for wrong in (
        claim(*[result()] * 33),
        claim(result(), reservedFor=[user] * 257),
        claim(result(), devices=[{**told, "device": "gpu-1"}]),
        {**claim(), "status": {"reservedFor": [user]}},
        without,
    ):
        assert len(invalid("ResourceClaim", wrong)) == 1


def test_what_may_not_be_changed() -> None:
    before = claim(result())
    assert invalid_update("ResourceClaim", before, claim(result(device="gpu-1")))
    assert invalid_update("ResourceClaim", before, {**before, "spec": {}})
    assert not invalid_update("ResourceClaim", before, {**before, "status": {}})
    assert invalid_update("ResourceSlice", slice_of(), slice_of(nodeName="n2"))
    assert invalid_update("ResourceSlice", slice_of(), slice_of(driver="other.example.com"))
    assert not invalid_update("ResourceSlice", slice_of(), slice_of(device()))


def stored(body: dict[str, Any], *off: str) -> dict[str, Any]:
    return without_gated(body, off)


def test_gates_that_are_off_drop_their_fields() -> None:
    body = slice_of({**shared(default="1"), "taints": [TAINT]})
    (kept,) = stored(body, "DRAConsumableCapacity")["spec"]["devices"]
    assert kept == device(capacity={"shares": {"value": "10"}}, taints=[TAINT])
    (kept,) = stored(body, "DRADeviceTaints")["spec"]["devices"]
    assert kept == shared(default="1")
    named: dict[str, Any] = {"spec": {"extendedResourceName": "nvidia.com/gpu", "selectors": []}}
    assert stored(named, "DRAExtendedResource") == {"spec": {"selectors": []}}
    assert stored(body) == body


def test_gates_by_version() -> None:
    assert gates_off(36) == frozenset()
    assert {"DRAConsumableCapacity", "DRADeviceTaints", "DRAExtendedResource"} == gates_off(35)


@pytest.mark.parametrize(
    ("text", "number"),
    [("10", "10"), ("1500m", "1.5"), ("24Gi", str(24 * 2**30)), ("1k", "1000"), ("2e3", "2000"),
     ("1E", str(10**18)), ("1Ei", str(2**60)), (".5", "0.5"), ("1.", "1")],
)  # fmt: skip
def test_quantities(text: str, number: str) -> None:
    assert quantity(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "x", "1x", "1 Gi", "Gi", "1e", "--1", "1_0", "٣"])
def test_texts_that_are_no_quantities(text: str) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        quantity(text)
