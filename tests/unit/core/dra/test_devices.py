"""What a node offers by DRA: names, attributes, capacities and taints, as the API wants them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.core.dra.devices import (
    Offer,
    Offering,
    Version,
    device_names,
    offers,
    quantity,
    semantic_version,
    whole_number,
)
from gpuplugin.core.health import HealthPolicy
from gpuplugin.core.healthboard import HealthBoard
from gpuplugin.core.inventory import GPU_RESOURCE, Plan, build_inventory
from gpuplugin.core.sharing import Selection, SharedResource, TimeSlicing
from hal import Gpu, GpuDisappeared, MigDevice, XidError
from tests.unit.builders import GIB, a_gpu, a_probe, gpus, sharing

DRIVER = "gpu.gpuplugin.dev"
OFFERING = Offering(DRIVER, driver_version="580.65.06")
POLICY = HealthPolicy()
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def board_of(found: tuple[Gpu, ...]) -> HealthBoard:
    return HealthBoard().with_gpus(found, 0.0, POLICY)


def offered(
    found: tuple[Gpu, ...],
    plan: Plan,
    board: HealthBoard | None = None,
    offering: Offering = OFFERING,
) -> tuple[Offer, ...]:
    return offers(build_inventory(found, plan), found, board or board_of(found), offering)


def test_a_shared_gpu_has_shares_of_which_a_pod_gets_one() -> None:
    (device,) = [one.as_json() for one in offered(gpus(1), sharing(10))]
    assert device["allowMultipleAllocations"] is True
    assert device["capacity"] == {
        "shares": {
            "value": "10",
            "requestPolicy": {
                "default": "1",
                "validRange": {"min": "1", "max": "10", "step": "1"},
            },
        },
        "memory": {
            "value": str(80 * GIB),
            "requestPolicy": {"default": "0", "validRange": {"min": "0", "step": "1Mi"}},
        },
    }


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (10, "10"), (999, "999"), (1000, "1k"), (1500, "1500"), (16_000, "16k"),
     (2_000_000, "2M"), (10**9, "1G"), (85_899_345_920, "85899345920"), (10**21, "1000E")],
)  # fmt: skip
def test_numbers_are_written_in_the_canonical_form(number: int, text: str) -> None:
    assert quantity(number) == text
    assert whole_number(text) == whole_number(str(number)) == number


@pytest.mark.parametrize("text", ["", "k", "1.5", "1Ki", "1500m", "None"])
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        whole_number(text)


def test_one_replica_is_an_exclusive_device_without_a_policy() -> None:
    """The API refuses a policy with a step for a capacity of 1."""
    (device,) = [one.as_json() for one in offered(gpus(1), sharing(1))]
    assert "allowMultipleAllocations" not in device
    assert device["capacity"] == {"memory": {"value": str(80 * GIB)}}


def test_where_requests_for_two_fail_a_claim_gets_one_share_at_most() -> None:
    (one,) = offered(gpus(1), sharing(4, fail=True))
    capacity = one.as_json()["capacity"]
    assert isinstance(capacity, dict)
    assert capacity["shares"]["requestPolicy"]["validRange"]["max"] == "1"


def test_each_gpu_has_its_own_number_and_resource() -> None:
    plan = Plan(
        TimeSlicing(
            (
                SharedResource(GPU_RESOURCE, 4, Selection(ids=frozenset({"0"})), "example.com/a"),
                SharedResource(GPU_RESOURCE, 10, Selection(ids=frozenset({"2"}))),
            )
        )
    )
    found = [(one.resource, one.replicas) for one in offered(gpus(3), plan)]
    assert found == [("example.com/a", 4), (GPU_RESOURCE, 1), (GPU_RESOURCE, 10)]


def test_attributes_have_the_names_and_types_that_others_use() -> None:
    gpu = replace(a_gpu(0, numa_node=1), product="NVIDIA L4", compute_capability=(8, 9))
    offering = replace(OFFERING, pcie_roots={"0000:01:00.0": "pci0000:64"})
    (device,) = [one.as_json() for one in offered((gpu,), sharing(2), offering=offering)]
    assert device["attributes"] == {
        "type": {"string": "gpu"},
        "uuid": {"string": gpu.uuid},
        "resource": {"string": GPU_RESOURCE},
        "productName": {"string": "NVIDIA L4"},
        "architecture": {"string": "Ada Lovelace"},
        "cudaComputeCapability": {"version": "8.9.0"},
        "driverVersion": {"version": "580.65.6"},
        "resource.kubernetes.io/pciBusID": {"string": "0000:01:00.0"},
        "resource.kubernetes.io/pcieRoot": {"string": "pci0000:64"},
        "resource.kubernetes.io/numaNode": {"int": 1},
        "shared": {"bool": True},
    }
    (whole,) = [one.as_json() for one in offered((gpu,), sharing(1), offering=offering)]
    assert whole["attributes"] == {**device["attributes"], "shared": {"bool": False}}


def test_a_mig_device_is_a_device_of_its_own() -> None:
    mig = MigDevice("MIG-0123456789ab-1", 0, 1, 0, "1g.10gb", 10 * GIB)
    gpu = replace(a_gpu(0), mig_enabled=True, mig_devices=(mig,))
    (one,) = offered((gpu,), Plan(mig_strategy="mixed"))
    assert (one.name, one.memory_bytes, one.uuid) == ("mig-0123456789ab", 10 * GIB, mig.uuid)
    assert one.attributes["profile"] == "1g.10gb"
    assert one.attributes["parentUUID"] == gpu.uuid
    assert one.attributes["type"] == "mig"


@given(st.sets(st.uuids(), max_size=8))
def test_names_are_labels_of_their_own_and_depend_on_nothing_else(uuids: set[object]) -> None:
    texts = [f"GPU-{uuid}" for uuid in uuids]
    names = device_names(texts)
    assert len(set(names.values())) == len(texts)
    for text, name in names.items():
        assert LABEL.fullmatch(name)
        assert len(name) <= 63
        assert device_names([text])[text] == name or len(texts) > 1


def test_two_that_begin_alike_have_longer_names() -> None:
    alike = ("GPU-0123456789ab-x", "GPU-0123456789ab-y")
    assert device_names(alike) == {
        alike[0]: "gpu-0123456789abx",
        alike[1]: "gpu-0123456789aby",
    }


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("580.65.06", "580.65.6"),
        ("580.126", "580.126.0"),
        ("570.00.0", "570.0.0"),
        ("5", "5.0.0"),
        ("", None),
        ("580.65.06.1", None),
        ("unknown", None),
        ("580.65.", None),
    ],
)
def test_versions_are_made_semantic_or_left_out(version: str, expected: str | None) -> None:
    assert semantic_version(version) == (None if expected is None else Version(expected))


def test_a_fault_taints_and_its_end_takes_the_taint_away() -> None:
    found = gpus(2)
    board = board_of(found).with_probe(found[0].uuid, a_probe(epoch="one"), 0.5, POLICY)
    board = board.with_event(XidError(found[0].uuid, 79), 1.0, POLICY)
    sick, well = offered(found, sharing(2), board)
    assert [taint.as_json() for taint in sick.taints] == [
        {"key": f"{DRIVER}/xid", "value": "79", "effect": "NoSchedule"}
    ]
    assert well.taints == ()
    assert "taints" not in well.as_json()
    reset = a_probe(epoch="two")
    for at_s in (2.0, 3.0, 100.0):
        board = board.with_probe(found[0].uuid, reset, at_s, POLICY)
    assert offered(found, sharing(2), board)[0].taints == ()


def test_a_gpu_that_recovers_is_not_given_out_yet() -> None:
    found = gpus(1)
    board = board_of(found).with_event(XidError(found[0].uuid, 74), 1.0, POLICY)
    board = board.with_probe(found[0].uuid, a_probe(epoch="two"), 2.0, POLICY)
    (one,) = offered(found, sharing(2), board)
    assert one.taints != ()


def test_kinds_of_faults_have_keys_of_their_own() -> None:
    found = gpus(1)
    board = board_of(found).with_event(XidError(found[0].uuid, 95), 1.0, POLICY)
    board = board.with_event(GpuDisappeared(found[0].uuid), 2.0, POLICY)
    (one,) = offered(found, sharing(2), board)
    keys = [taint.key for taint in one.taints]
    assert len(keys) == len(set(keys))
    assert f"{DRIVER}/lost" in keys


@pytest.mark.parametrize(("evict", "effect"), [(False, "NoSchedule"), (True, "NoExecute")])
def test_only_a_lost_gpu_takes_its_pods_with_it_and_only_if_told_so(
    evict: bool, effect: str
) -> None:
    found = gpus(2)
    board = board_of(found).with_event(GpuDisappeared(found[0].uuid), 1.0, POLICY)
    board = board.with_event(XidError(found[1].uuid, 95), 1.0, POLICY)
    lost, sick = offered(found, sharing(2), board, replace(OFFERING, evict_lost=evict))
    assert {taint.effect for taint in lost.taints} == {effect}
    assert {taint.effect for taint in sick.taints} == {"NoSchedule"}


def test_what_cannot_be_watched_is_not_given_out() -> None:
    found = gpus(2)
    for one in offered(found, sharing(2), board_of(found).blinded("the driver hangs")):
        assert [taint.key for taint in one.taints] == [f"{DRIVER}/unwatched"]


@pytest.mark.parametrize(("memory_bytes", "steps"), [(2**20, False), (2**20 + 1, True)])
def test_memory_of_no_more_than_a_step_has_no_step(memory_bytes: int, steps: bool) -> None:
    """The API server refuses a step that is no smaller than the value."""
    gpu = replace(a_gpu(0), memory_bytes=memory_bytes)
    (device,) = [one.as_json() for one in offered((gpu,), sharing(10))]
    capacity = device["capacity"]
    assert isinstance(capacity, dict)
    assert ("step" in capacity["memory"]["requestPolicy"]["validRange"]) is steps


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        *((capability, "Maxwell") for capability in ((5, 0), (5, 2), (5, 3))),
        *((capability, "Pascal") for capability in ((6, 0), (6, 1), (6, 2))),
        *((capability, "Volta") for capability in ((7, 0), (7, 2))),
        ((7, 5), "Turing"),
        *((capability, "Ampere") for capability in ((8, 0), (8, 6), (8, 7))),
        ((8, 9), "Ada Lovelace"),
        ((9, 0), "Hopper"),
        *(
            (capability, "Blackwell")
            for capability in ((10, 0), (10, 3), (11, 0), (12, 0), (12, 1))
        ),
    ],
)
def test_the_architecture_follows_the_compute_capability(
    capability: tuple[int, int], name: str
) -> None:
    """As in NVIDIA's table of compute capabilities; 11.0 is that of Thor."""
    (device,) = offered((replace(a_gpu(0), compute_capability=capability),), sharing(10))
    assert device.attributes["architecture"] == name


def test_what_pods_hold_otherwise_is_not_given_out() -> None:
    found = gpus(2)
    withheld = replace(OFFERING, withheld=frozenset({found[0].uuid}))
    first, second = offered(found, sharing(2), offering=withheld)
    assert [one.as_json() for one in first.taints] == [
        {"key": f"{DRIVER}/withheld", "value": "true", "effect": "NoSchedule"}
    ]
    assert (first.trouble, second.trouble, second.taints) == ("withheld", "", ())


def test_a_gpu_whose_health_is_not_known_yet_has_no_taint_of_a_fault() -> None:
    (one,) = offered(gpus(1), sharing(2), HealthBoard())
    assert one.trouble == "recovering"


def test_what_is_wrong_is_told_with_its_number() -> None:
    found = gpus(1)
    board = board_of(found).with_event(XidError(found[0].uuid, 79), 1.0, POLICY)
    board = board.with_probe(found[0].uuid, a_probe(reachable=False), 2.0, POLICY)
    (one,) = offered(found, sharing(2), board)
    assert one.trouble == "xid 79, unreachable"
