"""What is done for a claim: check it, remember it, write its CDI spec, and undo all that.

The order is: "started" on the disk, the spec on the disk, "prepared" on the disk, the response.
After a crash in between the kubelet calls again, and either call finishes or undoes what was begun.
"""

from __future__ import annotations

import json
import re
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from gpuplugin.core.cdi import CDI_VERSION
from gpuplugin.core.dra.claims import ClaimError, ClaimState, results_of
from gpuplugin.daemon.dra.claimstore import sync_folder, write_durably

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from gpuplugin.core.dra.claims import Claim, ClaimRef, Claims, HeldDevice
    from gpuplugin.core.dra.devices import JsonObject, Offer
    from gpuplugin.daemon.dra.claimstore import ClaimStore

CDI_VENDOR = "gpuplugin.dev"
"""Not that of the device plugin, which removes the specs of its own that it does not want."""
CDI_KIND = f"{CDI_VENDOR}/claim"
_MODE = 0o644
_UID = re.compile(r"[0-9A-Za-z][-0-9A-Za-z]{0,63}")


class ReadClaim(Protocol):
    def __call__(self, ref: ClaimRef) -> JsonObject:
        """The ResourceClaim of this name as the API server has it; raises `ClaimError`."""


class ClaimKeeper:
    """Prepares and unprepares claims; calls for different claims run at the same time.

    `edits` are the CDI edits for each device of a claim, by its name: the device nodes of its GPU,
    the driver's files.
    """

    def __init__(
        self,
        driver: str,
        store: ClaimStore,
        cdi_folder: Path,
        offers: Callable[[], Mapping[str, Offer]],
        read_claim: ReadClaim,
        edits: Callable[[Sequence[HeldDevice]], Mapping[str, JsonObject]],
    ) -> None:
        self._driver = driver
        self._store = store
        self._cdi_folder = cdi_folder
        self._offers = offers
        self._read_claim = read_claim
        self._edits = edits
        self._locks: dict[str, tuple[threading.Lock, int]] = {}
        self._locks_lock = threading.Lock()

    def prepare(self, ref: ClaimRef) -> Sequence[HeldDevice]:
        """See `ClaimWork`; the same devices again for a claim that is prepared."""
        self._spec_path(ref.uid)  # raises for what is no UID
        with self._claim_lock(ref.uid):
            known = self._claims().by_uid.get(ref.uid)
            if known is not None and known.state is ClaimState.PREPARED:
                self._write_spec(known)
                return known.devices
            results = results_of(self._read_claim(ref), ref.uid, self._driver)
            offers = self._offers()
            claims = self._change(lambda now: now.started(ref, results, offers))
            ids = self._write_spec(claims.by_uid[ref.uid])
            claims = self._change(lambda now: now.prepared(ref.uid, ids))
            return claims.by_uid[ref.uid].devices

    def unprepare(self, ref: ClaimRef) -> None:
        """See `ClaimWork`."""
        with self._claim_lock(ref.uid):
            if ref.uid in self._claims().by_uid:
                self._remove_spec(ref.uid)
                self._change(lambda now: now.without(ref.uid))

    def restore(self) -> None:
        """After a start: write specs that are missing; no Prepare comes for pods that run."""
        for claim in self._claims().by_uid.values():
            if claim.state is ClaimState.PREPARED:
                self._write_spec(claim)

    def _claims(self) -> Claims:
        try:
            return self._store.claims
        except OSError as error:
            raise ClaimError(f"the file of claims cannot be read: {error}") from error

    def _change(self, made: Callable[[Claims], Claims]) -> Claims:
        try:
            return self._store.change(made)
        except OSError as error:
            raise ClaimError(f"the file of claims cannot be written: {error}") from error

    def _write_spec(self, claim: Claim) -> Mapping[str, tuple[str, ...]]:
        """Write the CDI spec of a claim if it is not there; the ids of its devices by name."""
        names = {
            held.result.device: f"{claim.ref.uid}-{held.result.device}" for held in claim.devices
        }
        edits = self._edits(claim.devices)
        spec = {
            "cdiVersion": CDI_VERSION,
            "kind": CDI_KIND,
            "devices": [
                {"name": name, "containerEdits": edits[device]} for device, name in names.items()
            ],
        }
        text = json.dumps(spec, indent=2) + "\n"
        path = self._spec_path(claim.ref.uid)
        try:
            present = path.read_text("utf-8") == text
        except (OSError, UnicodeDecodeError):
            present = False
        if not present and names:
            try:
                self._cdi_folder.mkdir(mode=0o755, parents=True, exist_ok=True)
                write_durably(path, text, _MODE)
            except OSError as error:
                raise ClaimError(f"the CDI spec {path} cannot be written: {error}") from error
        return {device: (f"{CDI_KIND}={name}",) for device, name in names.items()}

    def _remove_spec(self, uid: str) -> None:
        path = self._spec_path(uid)
        try:
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
        return self._cdi_folder / f"{CDI_VENDOR}-claim-{uid}.json"

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
