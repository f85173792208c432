"""What a claim's status tells of its devices: the condition Ready, with what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gpuplugin.core.dra.claims import Claim
    from gpuplugin.core.dra.devices import Offer
    from gpuplugin.core.jsonobject import JsonObject

CONDITION: Final = "Ready"


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """The condition of one device of a claim; `message` is for people."""

    pool: str
    device: str
    share_id: str
    ready: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""


def device_statuses(claim: Claim, offers: Mapping[str, Offer]) -> tuple[DeviceStatus, ...]:
    """The conditions of a prepared claim's devices; `offers` are those of the node by name."""
    return tuple(_statuses(claim, offers))


def _statuses(claim: Claim, offers: Mapping[str, Offer]) -> Iterator[DeviceStatus]:
    for held in claim.devices:
        result = held.result
        offer = offers.get(result.device)
        where = result.pool, result.device, result.share_id
        if offer is None or offer.uuid != held.uuid:
            yield DeviceStatus(*where, "Unknown", "NotListed", f"{held.uuid} is not listed")
        elif offer.taints:
            yield DeviceStatus(*where, "False", "Unhealthy", offer.trouble)
        else:
            yield DeviceStatus(*where, "True", "Prepared")


def with_statuses(
    claim: JsonObject, driver: str, statuses: Sequence[DeviceStatus], now: str
) -> JsonObject | None:
    """A claim as the API server has it, with these conditions; None if it has them.

    `now` is RFC 3339. What other drivers say of their devices stays, and so do other conditions.
    """
    status = claim.get("status")
    status = status if isinstance(status, dict) else {}
    known = status.get("devices")
    known = [one for one in known if isinstance(one, dict)] if isinstance(known, list) else []
    others = [one for one in known if one.get("driver") != driver]
    by_place = {_place(one): one for one in known if one.get("driver") == driver}
    mine = [_entry(driver, one, by_place, now) for one in statuses]
    if [by_place.get(_place(one)) for one in mine] == mine:
        return None
    return {**claim, "status": {**status, "devices": [*others, *mine]}}


def _entry(
    driver: str,
    status: DeviceStatus,
    known: Mapping[tuple[object, object, object], JsonObject],
    now: str,
) -> JsonObject:
    entry: JsonObject = {"driver": driver, "pool": status.pool, "device": status.device}
    if status.share_id:
        entry["shareID"] = status.share_id
    entry = {**known.get(_place(entry), {}), **entry}
    conditions = entry.get("conditions")
    conditions = conditions if isinstance(conditions, list) else []
    before: JsonObject = next((one for one in conditions if one.get("type") == CONDITION), {})
    since = before.get("lastTransitionTime") if before.get("status") == status.ready else None
    condition = {
        "type": CONDITION,
        "status": status.ready,
        "reason": status.reason,
        "message": status.message,
        "lastTransitionTime": since or now,
    }
    others = [one for one in conditions if one.get("type") != CONDITION]
    return {**entry, "conditions": [*others, condition]}


def _place(entry: JsonObject) -> tuple[object, object, object]:
    return entry.get("pool"), entry.get("device"), entry.get("shareID") or ""
