"""Claims as what pods hold: the kubelet's list of them, joined with the node's devices. Pure.

What follows from holdings (usage, GPUs that may be forgotten) is the same as with the device-plugin
API. A share has no number of its own: it gets one of the device's replicas, by its share id.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, TypeAlias

from gpuplugin.core.dra.devices import device_names
from gpuplugin.core.sharing import replica_id
from gpuplugin.core.usage import ClaimUse, Holding, PodName

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from gpuplugin.core.dra.claims import Claims
    from gpuplugin.core.inventory import Inventory

_Key: TypeAlias = tuple[str, str, str, str]
"""A share, or a whole device: namespace and name of the claim, device, share id."""


def uses_of(claims: Claims, driver: str) -> tuple[ClaimUse, ...]:
    """Claims as they are known without the kubelet: each counts as a pod of its name."""
    return tuple(
        ClaimUse(
            PodName(claim.ref.namespace, claim.ref.name),
            "",
            claim.ref.namespace,
            claim.ref.name,
            driver,
            held.result.device,
            held.result.share_id,
        )
        for claim in claims.by_uid.values()
        for held in claim.devices
    )


def holdings_of(
    uses: Iterable[ClaimUse], driver: str, claims: Claims, inventory: Inventory
) -> tuple[Holding, ...]:
    """What containers hold of this driver's devices, each once.

    `claims` says how many shares there are; a claim that is not there counts as one.
    """
    kept = tuple(dict.fromkeys(use for use in uses if use.driver == driver))
    uuids, shares = _known(claims, inventory)
    advertised: dict[str, tuple[str, list[int | None]]] = {}
    for resource in inventory.resources:
        for device in resource.devices:
            advertised.setdefault(device.uuid, (resource.name, []))[1].append(device.replica)
    numbers = _numbers(dict.fromkeys(use.key for use in kept), uuids, shares, advertised)
    return tuple(
        Holding(
            use.pod,
            use.container,
            advertised.get(uuids[use.device], ("",))[0],
            tuple(
                uuids[use.device] if one is None else replica_id(uuids[use.device], one)
                for one in numbers[use.key]
            ),
            by_claim=True,
        )
        for use in kept
        if use.device in uuids
    )


def _known(claims: Claims, inventory: Inventory) -> tuple[dict[str, str], dict[_Key, int]]:
    """UUIDs by the names of devices, and how many shares a claim has of one."""
    names = device_names({one.uuid for each in inventory.resources for one in each.devices})
    uuids, shares = {name: uuid for uuid, name in names.items()}, dict[_Key, int]()
    for claim in claims.by_uid.values():
        for held in claim.devices:
            result = held.result
            uuids[result.device] = held.uuid
            key = (claim.ref.namespace, claim.ref.name, result.device, result.share_id)
            shares[key] = max(1, result.shares)
    return uuids, shares


def _numbers(
    keys: Iterable[_Key],
    uuids: Mapping[str, str],
    shares: Mapping[_Key, int],
    advertised: Mapping[str, tuple[str, list[int | None]]],
) -> dict[_Key, tuple[int | None, ...]]:
    """Replicas that stand for each share: those that its id points at, or the next free ones.

    So a share mostly keeps its number while others come and go, and after a restart.
    """
    found: dict[_Key, tuple[int | None, ...]] = {}
    taken: defaultdict[str, set[int]] = defaultdict(set)
    for key in sorted(keys):
        uuid = uuids.get(key[2], "")
        replicas = [one for one in advertised.get(uuid, ("", []))[1] if one is not None]
        if not replicas:
            found[key] = (None,)
            continue
        free = _free(key, len(replicas), taken[uuid])
        mine = tuple(number for number, _ in zip(free, range(shares.get(key, 1)), strict=False))
        taken[uuid].update(mine)
        found[key] = mine
    return found


def _free(key: _Key, count: int, taken: set[int]) -> Iterator[int]:
    """Numbers that are not taken, from where the key points at; those above `count` after them."""
    start = sum(ord(letter) * place for place, letter in enumerate("/".join(key), 1)) % count
    around = [*range(start, count), *range(start)]
    yield from (number for number in around if number not in taken)
    number = count
    while True:
        if number not in taken:
            yield number
        number += 1
