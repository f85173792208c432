"""What is done for a claim: check it, remember it, write its CDI spec, and undo all that.

The order is: "started" and the settings of the GPU for a claim that asks for some, the CDI spec,
"prepared", the response. After a crash in between the kubelet calls again, and either call finishes
or undoes what was begun: a spec alone tells whose it is. After a crash of the machine nothing is
set up, so "started" is then as good as nothing: it is not waited for.
What will pass is waited for inside the call: a pod whose claim fails is tried again a minute later.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from gpuplugin.core.cdi import CdiDevice, claim_spec
from gpuplugin.core.dra.claims import (
    BrokenCheckpoint,
    ClaimError,
    Claims,
    ClaimState,
    decoded,
    encoded,
    results_of,
)
from gpuplugin.core.dra.gpuconfig import time_slice_conflict, time_slices
from gpuplugin.daemon.logs import log_fact
from gpuplugin.daemon.serving.cdi import SPEC_MODE
from gpuplugin.daemon.wholefiles import remove_unfinished, sync_folder, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from gpuplugin.core.cdi import CdiHost
    from gpuplugin.core.dra.claims import Claim, ClaimRef, HeldDevice, Result
    from gpuplugin.core.dra.devices import Offer
    from gpuplugin.core.injection import InjectionPlan
    from gpuplugin.core.jsonobject import JsonObject
    from gpuplugin.daemon.dra.claimstore import ClaimStore
    from gpuplugin.daemon.frontdoor import SetTimeSlices
    from hal import TimeSliceLevel

CDI_VENDOR = "gpuplugin.dev"
"""Not that of the device plugin, which removes the specs of its own that it does not want."""
CDI_KIND = f"{CDI_VENDOR}/claim"
DRIVER_NOTE, CLAIM_NOTE = f"{CDI_VENDOR}/driver", f"{CDI_VENDOR}/claim"
"""Annotations of a spec: whose it is, and its claim as the file of claims has it."""
RETRY_S = 0.5
SETTING_S = 30.0
"""How long a Prepare waits for the driver to set a time slice."""

_UID = re.compile(r"[0-9A-Za-z][-0-9A-Za-z]{0,63}")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Offered:
    """What claims may have at this moment, by device name, and what their containers get."""

    offers: Mapping[str, Offer]
    injection: InjectionPlan
    host: CdiHost


class ReadClaim(Protocol):
    def __call__(self, ref: ClaimRef) -> JsonObject:
        """The ResourceClaim of this name as the API server has it; raises `ClaimError`."""


class ClaimKeeper:
    """Prepares and unprepares claims; calls for different claims run at the same time.

    `offered` is asked for what there is; None as long as no GPU was listed.
    """

    def __init__(
        self,
        driver: str,
        store: ClaimStore,
        cdi_folder: Path,
        offered: Callable[[], Offered | None],
        read_claim: ReadClaim,
        set_time_slices: SetTimeSlices,
    ) -> None:
        self._driver = driver
        self._store = store
        self._cdi_folder = cdi_folder
        self._offered = offered
        self._read_claim = read_claim
        self._set_time_slices = set_time_slices
        self._locks: dict[str, tuple[threading.Lock, int]] = {}
        self._locks_lock = threading.Lock()
        self._turn = threading.Condition()
        self._stopped = False
        self._restored = False
        self._slices_lock = threading.Lock()

    def prepare(self, ref: ClaimRef, deadline_s: float) -> Sequence[HeldDevice]:
        """See `ClaimWork`; the same devices again for a claim that is prepared."""
        self._spec_path(ref.uid)  # raises for what is no UID
        while True:
            try:
                return self._prepare(ref)
            except ClaimError as error:
                if not error.may_pass or not self._wait(deadline_s):
                    raise

    def unprepare(self, ref: ClaimRef) -> None:
        """See `ClaimWork`."""
        with self._claim_lock(ref.uid):
            known = self._claims().by_uid.get(ref.uid)
            if known is not None or self._spec_path(ref.uid).exists():
                self._change(partial(self._undone, uid=ref.uid))
                if known is not None and any(held.time_slice is not None for held in known.devices):
                    self._set_all()
        self.retry()

    def restore(self) -> tuple[str, ...]:
        """Set up what is missing: no Prepare comes for pods that run. Returns what failed.

        Raises `ClaimError` if claims cannot be read.
        """
        claims = self._claims()
        if claims.time_slices() and not self._restored:
            self._set_all()
        self._restored = True
        problems = []
        for uid, claim in claims.by_uid.items():
            if claim.state is ClaimState.PREPARED and not self._spec_path(uid).exists():
                try:
                    with self._claim_lock(uid):
                        self._change(partial(self._restored_of, uid=uid))
                except ClaimError as error:
                    problems.append(f"claim {_named(claim.ref)} has no CDI spec: {error}")
        return tuple(problems)

    def _restored_of(self, now: Claims, uid: str) -> Claims:
        """With the file locked: no other instance may be undoing the claim meanwhile."""
        claim = now.by_uid.get(uid)
        if claim is None or claim.state is not ClaimState.PREPARED or not claim.devices:
            return now
        if not self._spec_path(uid).exists():
            self._write_spec(claim)
            text = f"the CDI spec of claim {_named(claim.ref)} was not there: written"
            log_fact(log, logging.WARNING, "claim-spec-restored", text)
        return now

    def _undone(self, now: Claims, uid: str) -> Claims:
        """With the file locked, so that no other instance writes the spec again."""
        self._remove_spec(uid)
        return now.without(uid)

    def retry(self) -> None:
        """Something has changed: who waits tries again."""
        with self._turn:
            self._turn.notify_all()

    def start(self) -> None:
        """Calls may wait from now on."""
        with self._turn:
            self._stopped = False

    def stop(self) -> None:
        """Nobody waits any more."""
        with self._turn:
            self._stopped = True
            self._turn.notify_all()

    def _wait(self, deadline_s: float) -> bool:
        """Wait for what may change, which others may bring about; False if it is too late."""
        with self._turn:
            left_s = deadline_s - time.monotonic()
            if left_s > 0 and not self._stopped:
                self._turn.wait(min(RETRY_S, left_s))
            return left_s > 0 and not self._stopped

    def _prepare(self, ref: ClaimRef) -> Sequence[HeldDevice]:
        with self._claim_lock(ref.uid):
            known = self._claims().by_uid.get(ref.uid)
            if known is not None and known.state is ClaimState.PREPARED:
                if not self._spec_path(ref.uid).exists():
                    self._write_spec(known)
                return known.devices
            claim = self._read_claim(ref)
            results = results_of(claim, ref.uid, self._driver)
            levels = time_slices(claim, self._driver)
            offers = self._offered_now().offers
            begun = partial(_started, ref=ref, results=results, offers=offers, levels=levels)
            if any(level is not None for level in levels.values()):
                self._set_for(self._change(begun, for_good=False), ref.uid)
                begun = partial(_still_started, ref=ref)
            claims = self._change(lambda now: self._with_spec(begun(now), ref.uid))
            return claims.by_uid[ref.uid].devices

    def _with_spec(self, now: Claims, uid: str) -> Claims:
        """A claim that was begun is prepared; with the file locked, see `_undone`."""
        return now.prepared(uid, self._write_spec(now.by_uid[uid]))

    def _set_for(self, claims: Claims, uid: str) -> None:
        """Set the time slices of a claim; it is undone if that cannot be."""
        mine = {held.uuid for held in claims.by_uid[uid].devices if held.time_slice is not None}
        if not mine:
            return
        failed = self._set_all(SETTING_S)
        reasons = [f"GPU {uuid}: {why}" for uuid, why in failed.items() if uuid in mine]
        if reasons:
            self._change(lambda now: now.without(uid))
            self._set_all()
            raise ClaimError(f"its time slice cannot be set: {'; '.join(reasons)}")

    def _set_all(self, wait_s: float = 0.0) -> Mapping[str, str]:
        """Set the time slices that claims ask for now; those of before become the usual ones."""
        with self._slices_lock:
            return self._set_time_slices(self._claims().time_slices(), wait_s)

    def _offered_now(self) -> Offered:
        offered = self._offered()
        if offered is None:
            raise ClaimError("the plugin has not listed this node's GPUs yet", may_pass=True)
        return offered

    def _claims(self) -> Claims:
        try:
            return self._store.claims
        except OSError as error:
            raise ClaimError(f"the file of claims cannot be read: {error}") from error

    def _change(self, made: Callable[[Claims], Claims], *, for_good: bool = True) -> Claims:
        try:
            return self._store.change(made, for_good=for_good)
        except OSError as error:
            raise ClaimError(f"the file of claims cannot be written: {error}") from error

    def _write_spec(self, claim: Claim) -> Mapping[str, tuple[str, ...]]:
        """Write the CDI spec of a claim; the ids of its devices by name."""
        offered = self._offered_now()
        uid = claim.ref.uid
        names = {held.result.device: f"{uid}-{held.result.device}" for held in claim.devices}
        ids = {device: (f"{CDI_KIND}={name}",) for device, name in names.items()}
        if not names:
            return ids
        devices = {
            names[held.result.device]: CdiDevice(held.uuid, _nodes_of(held, offered.offers))
            for held in claim.devices
        }
        record = Claims(self._store.boot_id, {uid: claim}).prepared(uid, ids)
        notes = {DRIVER_NOTE: self._driver, CLAIM_NOTE: encoded(record)}
        spec = claim_spec(CDI_KIND, devices, offered.injection, offered.host, notes)
        path = self._spec_path(uid)
        try:
            self._cdi_folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            remove_unfinished(path)
            write_whole(path, json.dumps(spec) + "\n", SPEC_MODE, synced=True)
        except OSError as error:
            raise ClaimError(f"the CDI spec {path} cannot be written: {error}") from error
        return ids

    def _remove_spec(self, uid: str) -> None:
        path = self._spec_path(uid)
        try:
            remove_unfinished(path)
            path.unlink()
            sync_folder(path.parent)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ClaimError(f"the CDI spec {path} cannot be removed: {error}") from error

    def _spec_path(self, uid: str) -> Path:
        """The kubelet's word for a name of a file: nothing else of the machine may be meant."""
        if not _UID.fullmatch(uid):
            raise ClaimError(f"{uid!r} is no UID of a claim")
        return self._cdi_folder / spec_name(uid)

    @contextmanager
    def _claim_lock(self, uid: str) -> Iterator[None]:
        """One call at a time for a claim; a lock lives for as long as somebody wants it."""
        with self._locks_lock:
            lock, users = self._locks.get(uid, (threading.Lock(), 0))
            self._locks[uid] = lock, users + 1
        try:
            with lock:
                yield
        finally:
            with self._locks_lock:
                lock, users = self._locks[uid]
                if users == 1:
                    del self._locks[uid]
                else:
                    self._locks[uid] = lock, users - 1


def spec_name(uid: str) -> str:
    return f"{CDI_VENDOR}-claim-{uid}.json"


def claims_of_specs(folder: Path, driver: str, boot_id: str) -> Claims:
    """The claims of a driver that the CDI specs in a folder are for: where their file is lost."""
    found: dict[str, Claim] = {}
    for path in sorted(folder.glob(spec_name("*"))):
        try:
            notes = json.loads(path.read_text("utf-8"))["annotations"]
            if notes[DRIVER_NOTE] == driver:
                found |= decoded(notes[CLAIM_NOTE]).rebooted(boot_id).by_uid
        except (
            OSError, ValueError, LookupError, TypeError, RecursionError, BrokenCheckpoint,
        ) as error:  # fmt: skip
            text = f"whose claim the CDI spec {path} is for cannot be told: {error}"
            log_fact(log, logging.WARNING, "claim-spec-unknown", text)
    if found:
        names = ", ".join(_named(claim.ref) for claim in found.values())
        log_fact(log, logging.WARNING, "claims-rebuilt", f"claims found by their specs: {names}")
    return Claims(boot_id, found)


def _started(
    now: Claims,
    ref: ClaimRef,
    results: Sequence[Result],
    offers: Mapping[str, Offer],
    levels: Mapping[tuple[str, str], TimeSliceLevel | None],
) -> Claims:
    after = now.started(ref, results, offers, levels)
    others = now.without(ref.uid)
    for held in after.by_uid[ref.uid].devices:
        if problem := time_slice_conflict(held.time_slice, others.time_slices_of(held.uuid)):
            text = f"device {held.result.device} ({held.uuid}): {problem}"
            raise ClaimError(text, may_pass=True)
    return after


def _still_started(now: Claims, ref: ClaimRef) -> Claims:
    """As it was left to set its time slice."""
    if ref.uid not in now.by_uid:
        raise ClaimError(f"claim {_named(ref)} was unprepared meanwhile")
    return now


def _nodes_of(held: HeldDevice, offers: Mapping[str, Offer]) -> tuple[str, ...]:
    offer = offers.get(held.result.device)
    if offer is None or offer.uuid != held.uuid or not offer.nodes:
        raise ClaimError(
            f"device {held.result.device} ({held.uuid}) has no device node on this node now",
            may_pass=True,
        )
    return offer.nodes


def _named(ref: ClaimRef) -> str:
    return f"{ref.namespace}/{ref.name}"
