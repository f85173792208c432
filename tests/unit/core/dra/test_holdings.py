"""Claims as holdings: which replicas stand for which shares, and what the kubelet lists twice."""

from __future__ import annotations

from types import MappingProxyType

from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.core.dra.claims import Claim, ClaimRef, Claims, ClaimState, HeldDevice, Result
from gpuplugin.core.dra.devices import device_names
from gpuplugin.core.dra.holdings import holdings_of, uses_of
from gpuplugin.core.inventory import GPU_RESOURCE, Inventory, build_inventory
from gpuplugin.core.usage import ClaimUse, Holding, PodName
from tests.unit.builders import gpus, sharing

DRIVER = "gpu.gpuplugin.dev"
TWO = gpus(2)
NAMES = device_names(gpu.uuid for gpu in TWO)
SHARED, WHOLE = build_inventory(TWO, sharing(10)), build_inventory(TWO, sharing(1))


def claims_of(*held: tuple[str, int, int]) -> Claims:
    """Claims by name, each with the index of a GPU and its shares of it (0: all of it)."""
    made = {
        name: Claim(
            ClaimRef("default", name, name),
            ClaimState.PREPARED,
            (
                HeldDevice(
                    Result("gpu", "node", NAMES[TWO[gpu].uuid], f"share-{name}", shares),
                    TWO[gpu].uuid,
                ),
            ),
        )
        for name, gpu, shares in held
    }
    return Claims("boot", MappingProxyType(made))


def a_use(claims: Claims, name: str, pod: str = "", container: str = "main") -> ClaimUse:
    """A container of a pod has the claim of this name."""
    (held,) = claims.by_uid[name].devices
    return ClaimUse(
        PodName("default", pod or name),
        container,
        "default",
        name,
        DRIVER,
        held.result.device,
        held.result.share_id,
    )


def replicas(found: tuple[Holding, ...], inventory: Inventory = SHARED) -> list[str]:
    """All device ids, which the inventory must have."""
    ids = [one for holding in found for one in holding.device_ids]
    known = {device.id for resource in inventory.resources for device in resource.devices}
    assert set(ids) <= known
    return ids


@given(st.lists(st.integers(1, 4), min_size=1, max_size=10), st.data())
def test_shares_have_replicas_of_their_own(shares: list[int], data: st.DataObject) -> None:
    held = [(f"c{number}", 0, count) for number, count in enumerate(shares)]
    while sum(count for _, _, count in held) > 10:
        held.pop()
    claims = claims_of(*held)
    uses = data.draw(st.permutations([a_use(claims, name) for name, _, _ in held]))
    found = holdings_of(uses, DRIVER, claims, SHARED)
    ids = replicas(found)
    assert len(ids) == len(set(ids)) == sum(count for _, _, count in held)
    assert [holding.pod for holding in found] == [use.pod for use in uses]
    for holding in found:
        assert holding.resource == GPU_RESOURCE
        assert len(holding.device_ids) == {one[0]: one[2] for one in held}[holding.pod.name]
        assert all(one.startswith(f"{TWO[0].uuid}::") for one in holding.device_ids)


def test_a_share_that_others_do_not_collide_with_keeps_its_number() -> None:
    claims = claims_of(("a", 0, 1), ("b", 0, 1))
    both = holdings_of([a_use(claims, "a"), a_use(claims, "b")], DRIVER, claims, SHARED)
    alone = claims_of(("b", 0, 1))
    (again,) = holdings_of([a_use(alone, "b")], DRIVER, alone, SHARED)
    assert again == both[1]


def test_a_whole_gpu_is_held_by_its_uuid() -> None:
    claims = claims_of(("a", 1, 0))
    (holding,) = holdings_of([a_use(claims, "a")], DRIVER, claims, WHOLE)
    assert holding.device_ids == (TWO[1].uuid,)
    assert replicas((holding,), WHOLE) == [TWO[1].uuid]


def test_what_the_kubelet_lists_again_counts_once() -> None:
    claims = claims_of(("a", 0, 1))
    use = a_use(claims, "a")
    assert holdings_of([use] * 3, DRIVER, claims, SHARED) == holdings_of(
        [use], DRIVER, claims, SHARED
    )


def test_pods_that_have_a_claim_together_hold_the_same_replica() -> None:
    claims = claims_of(("a", 0, 1))
    uses = [a_use(claims, "a", "one"), a_use(claims, "a", "two"), a_use(claims, "a", "one", "side")]
    found = holdings_of(uses, DRIVER, claims, SHARED)
    assert len({holding.device_ids for holding in found}) == 1
    assert [(one.pod.name, one.container) for one in found] == [
        ("one", "main"),
        ("two", "main"),
        ("one", "side"),
    ]


def test_other_drivers_and_devices_that_nobody_knows_are_left_out() -> None:
    claims = claims_of(("a", 0, 1))
    theirs = ClaimUse(PodName("default", "x"), "main", "default", "x", "gpu.nvidia.com", "gpu-0")
    gone = ClaimUse(PodName("default", "y"), "main", "default", "y", DRIVER, "gpu-nowhere")
    assert holdings_of([theirs, gone], DRIVER, claims, SHARED) == ()


def test_a_claim_that_is_not_in_the_file_counts_as_one_share() -> None:
    claims = claims_of(("a", 0, 3))
    (holding,) = holdings_of([a_use(claims, "a")], DRIVER, Claims("boot"), SHARED)
    assert len(holding.device_ids) == 1


def test_a_gpu_that_is_not_advertised_any_more_is_held_all_the_same() -> None:
    claims = claims_of(("a", 0, 1))
    (holding,) = holdings_of(uses_of(claims, DRIVER), DRIVER, claims, Inventory())
    assert (holding.pod, holding.device_ids) == (PodName("default", "a"), (TWO[0].uuid,))


def test_shares_beyond_a_lowered_count_have_numbers_too() -> None:
    claims = claims_of(*((f"c{number}", 0, 1) for number in range(5)))
    few = build_inventory(TWO, sharing(3))
    found = holdings_of(uses_of(claims, DRIVER), DRIVER, claims, few)
    numbers = sorted(int(one.partition("::")[2]) for each in found for one in each.device_ids)
    assert numbers == [0, 1, 2, 3, 4]


def test_a_claim_of_a_whole_gpu_that_is_shared_by_now_counts_as_one_share() -> None:
    claims = claims_of(("a", 0, 0))
    (holding,) = holdings_of([a_use(claims, "a")], DRIVER, claims, SHARED)
    assert len(replicas((holding,))) == 1
