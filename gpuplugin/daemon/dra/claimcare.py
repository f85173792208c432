"""What becomes of prepared claims: their conditions at the API server, and those that were left.

Nothing waits for either: claims are prepared whether or not the API server hears of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gpuplugin.core.dra.claims import ClaimError, ClaimState, results_of
from gpuplugin.core.dra.conditions import device_statuses, with_statuses
from gpuplugin.core.pacing import Backoff
from gpuplugin.daemon.dra.claimapi import ClaimGone
from gpuplugin.daemon.logs import log_fact
from gpuplugin.daemon.tasks import wait_period

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gpuplugin.core.dra.claims import Claim, Claims
    from gpuplugin.core.dra.conditions import DeviceStatus
    from gpuplugin.core.dra.devices import Offer
    from gpuplugin.daemon.dra.claimapi import ClaimApi
    from gpuplugin.daemon.dra.claimwork import ClaimKeeper

FIRST_RETRY_S, LAST_RETRY_S = 1.0, 300.0
PAUSE_S = 0.1
"""Between two claims: pods that start meanwhile, and the API server, come first."""
CLEANUP_S = 900.0
"""How often claims are looked up: one that is gone twice is unprepared.

The kubelet does it when the containers have ended, which may take as long as a pod has to end.
"""

log = logging.getLogger(__name__)


class ClaimCare:
    """Two tasks; `follow` is for the event loop."""

    def __init__(self, driver: str, api: ClaimApi, keeper: ClaimKeeper) -> None:
        self._driver = driver
        self._api = api
        self._keeper = keeper
        self._turn = asyncio.Event()
        self._claims: Mapping[str, Claim] = {}
        self._wanted: dict[str, tuple[DeviceStatus, ...]] = {}
        self._settled: dict[str, tuple[DeviceStatus, ...]] = {}
        self._failing = False

    def follow(self, claims: Claims, offers: Mapping[str, Offer]) -> None:
        """These are the claims now, and what the node has."""
        self._claims = claims.by_uid
        self._wanted = {
            uid: device_statuses(claim, offers)
            for uid, claim in claims.by_uid.items()
            if claim.state is ClaimState.PREPARED and claim.devices
        }
        self._settled = {uid: one for uid, one in self._settled.items() if uid in self._wanted}
        self._turn.set()

    async def report(self) -> None:
        """Keep the conditions of claims' devices at the API server as they are, until cancelled."""
        backoff = Backoff(FIRST_RETRY_S, LAST_RETRY_S)
        failures = Counter[str]()
        while True:
            await self._turn.wait()
            self._turn.clear()
            failures = Counter({uid: failures[uid] for uid in self._wanted})
            # One that fails every time must not keep the others waiting for ever.
            for uid, statuses in sorted(self._wanted.items(), key=lambda one: failures[one[0]]):
                claim = self._claims.get(uid)
                if claim is None or self._settled.get(uid) == statuses:
                    continue
                try:
                    await asyncio.to_thread(self._send, claim, statuses)
                except ClaimError as error:
                    self._failed(error)
                    if error.may_pass:
                        failures[uid] += 1
                        self._turn.set()
                        await asyncio.sleep(backoff.next_s())
                        break
                else:
                    backoff.reset()
                    self._failing = False
                self._settled[uid] = statuses
                await asyncio.sleep(PAUSE_S)

    def _send(self, claim: Claim, statuses: tuple[DeviceStatus, ...]) -> None:
        """In a thread; a claim that is gone, or another one by now, has nothing to be told."""
        try:
            stored = self._api.read(claim.ref)
        except ClaimGone:
            return
        try:
            results_of(stored, claim.ref.uid, self._driver)
        except ClaimError:
            return
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if (body := with_statuses(stored, self._driver, statuses, now)) is not None:
            self._api.replace_status(claim.ref, body)

    def _failed(self, error: ClaimError) -> None:
        if not self._failing:
            self._failing = True
            text = f"what is known of claims' devices cannot be told the API server: {error}"
            log_fact(log, logging.WARNING, "claim-conditions-failed", text)

    async def clean_up(self) -> None:
        """Unprepare claims whose objects are gone and of which nobody said so, until cancelled."""
        gone: frozenset[str] = frozenset()
        while True:
            await wait_period(CLEANUP_S)
            gone = await asyncio.to_thread(self._look, tuple(self._claims.values()), gone)

    def _look(self, claims: Iterable[Claim], gone_before: frozenset[str]) -> frozenset[str]:
        """In a thread: the UIDs of claims that are gone now; those of before are unprepared."""
        gone = frozenset(claim.ref.uid for claim in claims if self._is_gone(claim))
        for claim in claims:
            if claim.ref.uid in gone & gone_before:
                name = f"{claim.ref.namespace}/{claim.ref.name}"
                try:
                    self._keeper.unprepare(claim.ref)
                except ClaimError as error:
                    log_fact(log, logging.WARNING, "claim-left", f"{name} is gone: {error}")
                else:
                    text = f"claim {name} ({claim.ref.uid}) is gone: unprepared"
                    log_fact(log, logging.WARNING, "claim-cleaned-up", text)
        return gone

    def _is_gone(self, claim: Claim) -> bool:
        try:
            stored = self._api.read(claim.ref)
        except ClaimGone:
            return True
        except ClaimError:
            return False  # it is not known
        try:
            return not results_of(stored, claim.ref.uid, self._driver)
        except ClaimError:
            return True
