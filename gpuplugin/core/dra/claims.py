"""Claims that are prepared on this node: what they hold, and the file that remembers them.

The plugin is the last guard: the scheduler may give a GPU out again before the kubelet has taken it
back from a pod. So every claim is checked against what others hold. The file is written before and
after the work of a claim, so that after a crash it is known what may be half done.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

from gpuplugin.core.dra.devices import whole_number
from gpuplugin.core.jsonobject import JsonObject, objects, part
from hal import TimeSliceLevel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from gpuplugin.core.dra.devices import Offer

SHARES = "shares"
_NONE: Mapping[tuple[str, str], TimeSliceLevel | None] = MappingProxyType({})


class ClaimError(Exception):
    """A claim cannot be prepared; the text is for the pod's event.

    `may_pass` if it is worth waiting for: who fails is asked again only a minute later.
    """

    def __init__(self, text: str, *, may_pass: bool = False) -> None:
        super().__init__(text)
        self.may_pass = may_pass


class BrokenCheckpoint(Exception):
    """The file of claims cannot be read; the text says why."""


class ClaimState(Enum):
    STARTED = "started"
    """Its work may be half done: it is done again, or undone."""
    PREPARED = "prepared"


@dataclass(frozen=True, slots=True)
class ClaimRef:
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Result:
    """A device that the scheduler allocated to a request; `shares` is 0 for all of the device.

    With `admin_access` it is looked at beside whoever holds it, and nothing of it is taken.
    """

    request: str
    pool: str
    device: str
    share_id: str = ""
    shares: int = 0
    admin_access: bool = False

    @property
    def base_request(self) -> str:
        """The request's name as containers use it, without that of a sub-request."""
        return self.request.partition("/")[0]


@dataclass(frozen=True, slots=True)
class HeldDevice:
    """A device that a claim holds: what was allocated, and which GPU or MIG device that is.

    `cdi_ids` are those that containers get; `time_slice` is what the claim asks for, if it does.
    """

    result: Result
    uuid: str
    cdi_ids: tuple[str, ...] = ()
    time_slice: TimeSliceLevel | None = None


@dataclass(frozen=True)
class Claim:
    ref: ClaimRef
    state: ClaimState
    devices: tuple[HeldDevice, ...]

    @cached_property
    def line(self) -> str:
        """It as JSON: made once, though the file is written for every change of any claim."""
        return json.dumps(_claim_as_json(self))


@dataclass(frozen=True, slots=True)
class Claims:
    """All claims of the node, by UID. Immutable: each step returns the next one.

    `boot_id` is that of the boot in which they were prepared: after another one nothing that was
    set up is there any more, and Prepare comes again.
    """

    boot_id: str
    by_uid: Mapping[str, Claim] = field(default_factory=lambda: MappingProxyType({}))

    def started(
        self,
        ref: ClaimRef,
        results: Iterable[Result],
        offers: Mapping[str, Offer],
        time_slices: Mapping[tuple[str, str], TimeSliceLevel | None] = _NONE,
    ) -> Claims:
        """A claim whose work begins; `offers` are the node's devices by name.

        `time_slices` are what it asks for, by request and device.

        Raises:
            ClaimError: a device is not there, or others hold what was allocated.
        """
        devices = tuple(
            replace(one, time_slice=time_slices.get((one.result.request, one.result.device)))
            for one in self._admitted(ref, results, offers)
        )
        return self._with(Claim(ref, ClaimState.STARTED, devices))

    def time_slices_of(self, uuid: str) -> Iterator[tuple[ClaimRef, TimeSliceLevel | None]]:
        """What the claims that hold a device ask for."""
        for claim in self.by_uid.values():
            for held in claim.devices:
                if held.uuid == uuid:
                    yield claim.ref, held.time_slice

    def time_slices(self) -> dict[str, TimeSliceLevel]:
        """The time slices that claims ask for, by the UUID of the GPU."""
        return {
            held.uuid: held.time_slice
            for claim in self.by_uid.values()
            for held in claim.devices
            if held.time_slice is not None
        }

    def prepared(self, uid: str, cdi_ids: Mapping[str, tuple[str, ...]]) -> Claims:
        """The work of a claim is done; `cdi_ids` are those of its devices by name."""
        claim = self.by_uid[uid]
        devices = tuple(
            replace(one, cdi_ids=cdi_ids.get(one.result.device, ())) for one in claim.devices
        )
        return self._with(replace(claim, state=ClaimState.PREPARED, devices=devices))

    def without(self, uid: str) -> Claims:
        """A claim was undone; one that is not known is no mistake."""
        return replace(
            self,
            by_uid=MappingProxyType({key: one for key, one in self.by_uid.items() if key != uid}),
        )

    def is_prepared(self, uid: str) -> bool:
        claim = self.by_uid.get(uid)
        return claim is not None and claim.state is ClaimState.PREPARED

    def taken(self) -> dict[str, int]:
        """Shares that are out, by device name; an exclusive device counts as one."""
        found: dict[str, int] = {}
        for claim in self.by_uid.values():
            for held in claim.devices:
                if not held.result.admin_access:
                    name = held.result.device
                    found[name] = found.get(name, 0) + max(1, held.result.shares)
        return found

    def shares_out(self) -> dict[str, int]:
        """Shares that are out, by device name, without devices that are held as a whole."""
        found: dict[str, int] = {}
        for claim in self.by_uid.values():
            for held in claim.devices:
                if held.result.shares and not held.result.admin_access:
                    name = held.result.device
                    found[name] = found.get(name, 0) + held.result.shares
        return found

    def rebooted(self, boot_id: str) -> Claims:
        """After another boot nothing is set up: what was prepared has to be done again."""
        if boot_id == self.boot_id:
            return self
        started = {
            uid: replace(claim, state=ClaimState.STARTED) for uid, claim in self.by_uid.items()
        }
        return Claims(boot_id, MappingProxyType(started))

    def _with(self, claim: Claim) -> Claims:
        return replace(self, by_uid=MappingProxyType({**self.by_uid, claim.ref.uid: claim}))

    def _admitted(
        self, ref: ClaimRef, results: Iterable[Result], offers: Mapping[str, Offer]
    ) -> Iterator[HeldDevice]:
        others = self.without(ref.uid)
        same = next(
            (
                one.ref
                for one in others.by_uid.values()
                if (one.ref.namespace, one.ref.name) == (ref.namespace, ref.name)
            ),
            None,
        )
        if same is not None:
            raise ClaimError(
                f"claim {ref.namespace}/{ref.name} is still prepared under the UID {same.uid}: "
                "its pod was probably deleted by force; this one is tried again",
                may_pass=True,
            )
        asked: dict[str, int] = {}
        for result in results:
            offer = offers.get(result.device)
            if offer is None:
                raise ClaimError(f"this node has no device {result.device}")
            yield HeldDevice(result, offer.uuid)
            if result.admin_access:
                continue
            asked[result.device] = asked.get(result.device, 0) + result.shares
            problem = others.conflict(offer, result, asked[result.device])
            if problem:
                text = f"device {result.device} ({offer.uuid}): {problem}"
                raise ClaimError(text, may_pass=asked[result.device] <= max(offer.replicas, 1))

    def conflict(self, offer: Offer, result: Result, asked: int) -> str:
        """Why the device cannot be given out, "" if it can."""
        holders = [
            (claim.ref, held.result)
            for claim in self.by_uid.values()
            for held in claim.devices
            if held.uuid == offer.uuid and not held.result.admin_access
        ]
        if not holders:
            over = result.shares and asked > max(offer.replicas, 1)
            return f"{asked} shares of {offer.replicas}" if over else ""
        exclusive = next((ref for ref, held in holders if not held.shares), None)
        if exclusive is not None:
            return (
                f"claim {exclusive.namespace}/{exclusive.name} has all of it until it is unprepared"
            )
        out = sum(held.shares for _, held in holders)
        if not result.shares:
            return f"{out} shares are out: it cannot be given out as a whole"
        if out + asked > offer.replicas:
            return f"{out} of {offer.replicas} shares are out, {asked} more are too many"
        return ""


def results_of(claim: JsonObject, uid: str, driver: str) -> tuple[Result, ...]:
    """What the scheduler allocated of a driver's devices to a claim, as the API server has it.

    Raises:
        ClaimError: it is another claim of that name, or none is allocated.
    """
    metadata = part(claim, "metadata")
    if metadata.get("uid") != uid:
        raise ClaimError(
            f"claim {metadata.get('namespace')}/{metadata.get('name')} has the UID "
            f"{metadata.get('uid')} now, {uid} is gone"
        )
    allocation = part(part(claim, "status"), "allocation")
    if not allocation:
        raise ClaimError(
            f"claim {metadata.get('namespace')}/{metadata.get('name')} is not allocated"
        )
    return tuple(
        Result(
            request=str(one["request"]),
            pool=str(one["pool"]),
            device=str(one["device"]),
            share_id=str(one.get("shareID") or ""),
            shares=_count(part(one, "consumedCapacity").get(SHARES)),
            admin_access=one.get("adminAccess") is True,
        )
        for one in objects(part(allocation, "devices").get("results"))
        if one.get("driver") == driver
    )


def encoded(claims: Claims) -> str:
    """The claims as the text of a file: JSON with a line for each."""
    lines = ",\n".join(claim.line for claim in claims.by_uid.values())
    boot_id = json.dumps(claims.boot_id)
    return f'{{"version": 1, "bootID": {boot_id}, "claims": [\n{lines}\n]}}\n'


def decoded(text: str) -> Claims:
    """The claims of such a text; fields that are not known are passed over.

    Raises:
        BrokenCheckpoint: it is no such text.
    """
    try:
        content: object = json.loads(text)
        if not isinstance(content, dict) or content.get("version") != 1:
            raise BrokenCheckpoint("it is not a file of claims of version 1")
        claims = [_claim_from_json(one) for one in objects(content.get("claims"))]
    except KeyError as error:
        raise BrokenCheckpoint(f"a claim lacks {error}") from error
    except (ValueError, RecursionError) as error:
        raise BrokenCheckpoint(str(error)) from error
    by_uid = MappingProxyType({claim.ref.uid: claim for claim in claims})
    return Claims(str(content.get("bootID") or ""), by_uid)


def _claim_as_json(claim: Claim) -> JsonObject:
    return {
        "namespace": claim.ref.namespace,
        "name": claim.ref.name,
        "uid": claim.ref.uid,
        "state": claim.state.value,
        "devices": [
            {
                "request": held.result.request,
                "pool": held.result.pool,
                "device": held.result.device,
                "shareID": held.result.share_id,
                "shares": held.result.shares,
                "adminAccess": held.result.admin_access,
                "uuid": held.uuid,
                "cdiIDs": list(held.cdi_ids),
                "timeSlice": None if held.time_slice is None else held.time_slice.name,
            }
            for held in claim.devices
        ],
    }


def _claim_from_json(one: JsonObject) -> Claim:
    return Claim(
        ClaimRef(str(one["namespace"]), str(one["name"]), str(one["uid"])),
        ClaimState(one["state"]),
        tuple(map(_held_from_json, objects(one.get("devices")))),
    )


def _held_from_json(held: JsonObject) -> HeldDevice:
    result = Result(
        request=str(held["request"]),
        pool=str(held["pool"]),
        device=str(held["device"]),
        share_id=str(held.get("shareID") or ""),
        shares=_count(held.get("shares")),
        admin_access=held.get("adminAccess") is True,
    )
    cdi_ids = tuple(str(cdi_id) for cdi_id in _list(held.get("cdiIDs")))
    level = held.get("timeSlice")
    time_slice = None if level is None else TimeSliceLevel[str(level)]
    return HeldDevice(result, str(held["uuid"]), cdi_ids, time_slice)


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _count(value: object) -> int:
    """A count of shares: a number, or a quantity; 0 for none.

    Raises:
        ValueError: it is none.
    """
    return 0 if value is None else whole_number(str(value))
