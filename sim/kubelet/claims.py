"""The kubelet's part of Dynamic Resource Allocation: drivers, prepared claims, health. Pure.

Follows the kubelet's DRA manager (1.36), with its checkpoint `dra_manager_state` as text: whether a
claim is prepared is not in it, so after a restart a pod whose sandbox is made anew is prepared
again, and the devices of each answer are added to those that are known. Time is an argument.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from sim.kubelet.admission import CallFailed
from sim.kubelet.devices import CheckpointDamaged
from sim.kubelet.pods import ClaimedDevice, ResourceHealth

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

    from sim.kubelet.pods import Health
    from sim.scheduler.claims import PlacedClaim

CLAIMS_FILE = "dra_manager_state"
HEALTH_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class ClaimTiming:
    """When a kubelet does what it does about claims; the defaults are those of 1.36."""

    wipe_at_start_s: float = 0.7
    """After its start it deletes the ResourceSlices of its node."""
    wipe_after_loss_s: float = 30.0
    """And those of a driver this long after its last instance went away."""
    prepare_retry_s: float = 60.0
    """A pod whose Prepare failed is tried again at its next sync."""
    unprepare_retry_s: float = 10.0
    """A pod that is deleted is tried again sooner."""
    reconcile_s: float = 60.0
    """How often claims are looked for whose pods are gone."""
    forced_cleanup_s: float = 0.85
    """When claims of a pod that was deleted by force are unprepared."""
    call_deadline_s: float = 45.0
    """Of Prepare and Unprepare."""


@dataclass(frozen=True, slots=True)
class ClaimRef:
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class PrepareCall:
    """NodePrepareResources of one driver, with all claims of one pod; answers by claim UID."""

    driver: str
    claims: tuple[ClaimRef, ...]


@dataclass(frozen=True, slots=True)
class UnprepareCall:
    """NodeUnprepareResources of one driver; the answers are without devices."""

    driver: str
    claims: tuple[ClaimRef, ...]


@dataclass(frozen=True, slots=True)
class PreparedDevice:
    """A device of a driver's answer; without requests it is for all of the claim's."""

    requests: tuple[str, ...]
    pool: str
    device: str
    cdi_devices: tuple[str, ...] = ()
    share_id: str = ""


@dataclass(frozen=True, slots=True)
class ClaimAnswer:
    error: str = ""
    devices: tuple[PreparedDevice, ...] = ()


DriverCall: TypeAlias = PrepareCall | UnprepareCall
Answers: TypeAlias = "Mapping[str, ClaimAnswer]"


@dataclass(frozen=True, slots=True)
class DeviceHealth:
    """What a driver's health stream says of a device; it holds for `timeout_s`."""

    pool: str
    device: str
    health: Health
    message: str = ""
    timeout_s: float = HEALTH_TIMEOUT_S


class DriverMissing(CallFailed):
    """No instance of the driver is registered."""

    def __init__(self, driver: str) -> None:
        super().__init__(f"DRA driver {driver} is not registered")
        self.driver = driver


@dataclass(slots=True)
class ClaimInfo:
    """A claim that the kubelet knows: its devices by driver, and the pods that use it, by UID."""

    ref: ClaimRef
    devices: dict[str, list[PreparedDevice]]
    pods: set[str] = field(default_factory=set)
    prepared: bool = False


@dataclass(frozen=True, slots=True)
class HeldClaim:
    """A claim as pod-resources lists it, for the containers that use it."""

    info: ClaimInfo
    containers: frozenset[str]


class ClaimManager:
    """Drivers and claims of a node."""

    def __init__(self, timing: ClaimTiming) -> None:
        self._timing = timing
        self._instances: dict[str, list[str]] = {}
        self._lost_at_s: dict[str, float] = {}
        self._claims: dict[tuple[str, str], ClaimInfo] = {}
        self._health: dict[tuple[str, str, str], tuple[DeviceHealth, float]] = {}
        self._wipe_all_at_s: float | None = None

    # Drivers

    def registered(self, driver: str, endpoint: str) -> None:
        """Another instance of a driver: it gets the calls from now on. Raises `CallFailed`."""
        instances = self._instances.setdefault(driver, [])
        if endpoint in instances:
            raise CallFailed(f"endpoint {endpoint} already registered for DRA driver {driver}")
        instances.append(endpoint)
        self._lost_at_s.pop(driver, None)

    def lost(self, driver: str, endpoint: str, now_s: float) -> None:
        instances = self._instances.get(driver, [])
        if endpoint in instances:
            instances.remove(endpoint)
            if not instances:
                self._lost_at_s[driver] = now_s

    def in_charge(self, driver: str) -> str | None:
        """The endpoint of the newest instance, None without one."""
        instances = self._instances.get(driver)
        return instances[-1] if instances else None

    @property
    def drivers(self) -> Mapping[str, tuple[str, ...]]:
        """Endpoints of the instances by driver, the newest last."""
        return {driver: tuple(one) for driver, one in self._instances.items() if one}

    @property
    def wipe_due_s(self) -> float | None:
        """When slices are to be wiped next."""
        due = [at_s + self._timing.wipe_after_loss_s for at_s in self._lost_at_s.values()]
        if self._wipe_all_at_s is not None:
            due.append(self._wipe_all_at_s)
        return min(due, default=None)

    def take_wipes(self, now_s: float) -> tuple[str | None, ...]:
        """The drivers whose slices go now; None is all of them."""
        wipes: list[str | None] = []
        if self._wipe_all_at_s is not None and now_s >= self._wipe_all_at_s:
            self._wipe_all_at_s = None
            wipes.append(None)
        for driver, at_s in list(self._lost_at_s.items()):
            if now_s >= at_s + self._timing.wipe_after_loss_s:
                del self._lost_at_s[driver]
                wipes.append(driver)
        return tuple(wipes)

    # Claims

    def prepare(
        self, pod_uid: str, claims: Sequence[PlacedClaim]
    ) -> Generator[DriverCall, Answers, None]:
        """Prepare what is not prepared yet; raises `CallFailed` with the kubelet's text."""
        infos = [self._known(claim) for claim in claims]
        for info in infos:
            info.pods.add(pod_uid)
        by_driver: dict[str, list[ClaimInfo]] = {}
        for info in infos:
            if not info.prepared:
                for driver in info.devices:
                    by_driver.setdefault(driver, []).append(info)
        for driver, wanted in by_driver.items():
            if self.in_charge(driver) is None:
                raise DriverMissing(driver)
            answers = yield PrepareCall(driver, tuple(info.ref for info in wanted))
            _check(answers, wanted, "NodePrepareResources")
            for info in wanted:
                devices = answers[info.ref.uid].devices
                if any(not one.pool or not one.device for one in devices):
                    raise CallFailed(f"device of claim {info.ref.name} lacks a pool or a name")
                info.devices[driver] += devices  # also after a restart: as kubelet 1.36 does
        for info in infos:
            info.prepared = True

    def unprepare(self, pod_uid: str) -> Generator[DriverCall, Answers, None]:
        """Unprepare claims that only this pod uses; raises `CallFailed`."""
        mine = [info for info in self._claims.values() if info.pods == {pod_uid}]
        yield from self._undo(mine)
        for info in self._claims.values():
            info.pods.discard(pod_uid)

    def reconcile(self, alive: Iterable[str]) -> Generator[DriverCall, Answers, None]:
        """Unprepare claims none of whose pods is there any more; raises `CallFailed`."""
        pods = set(alive)
        yield from self._undo([info for info in self._claims.values() if not info.pods & pods])

    def claimed_devices(self, claims: Iterable[PlacedClaim]) -> tuple[ClaimedDevice, ...]:
        """What a pod has by its claims, with the CDI devices that its containers get."""
        return tuple(
            ClaimedDevice(
                claim=claim.name,
                pod_claim=claim.pod_claim,
                request=result.request,
                driver=result.driver,
                pool=result.pool,
                device=result.device,
                share_id=result.share_id,
                uuid=claim.uuids.get((result.pool, result.device), ""),
                containers=tuple(
                    name
                    for name, requests in claim.uses.items()
                    if not requests or result.request.partition("/")[0] in requests
                ),
                cdi_devices=self._cdi_devices(claim, result.driver, result.request, result.device),
            )
            for claim in claims
            for result in claim.results
        )

    @property
    def claims(self) -> tuple[ClaimInfo, ...]:
        return tuple(self._claims.values())

    def info(self, claim: PlacedClaim) -> ClaimInfo | None:
        return self._claims.get((claim.namespace, claim.name))

    def held(self, claims: Iterable[PlacedClaim]) -> tuple[HeldClaim, ...]:
        """Copies of what is known of a pod's claims."""
        infos = ((self.info(claim), claim) for claim in claims)
        return tuple(
            HeldClaim(
                replace(info, devices={name: list(one) for name, one in info.devices.items()}),
                frozenset(claim.uses),
            )
            for info, claim in infos
            if info is not None
        )

    # Health

    def health_received(self, driver: str, devices: Iterable[DeviceHealth], now_s: float) -> None:
        for one in devices:
            self._health[driver, one.pool, one.device] = one, now_s

    def health(self, devices: Iterable[ClaimedDevice], now_s: float) -> tuple[ResourceHealth, ...]:
        """The health of what containers have by claims that the pod names."""
        return tuple(
            ResourceHealth(container, f"claim:{one.pod_claim}", one.cdi_devices[0], *told)
            for one in devices
            if one.pod_claim and one.cdi_devices
            for told in [self._told(one, now_s)]
            for container in one.containers
        )

    def _told(self, device: ClaimedDevice, now_s: float) -> tuple[Health, str]:
        known = self._health.get((device.driver, device.pool, device.device))
        if known is None or now_s - known[1] > known[0].timeout_s:
            return "Unknown", ""
        return known[0].health, known[0].message

    # Restarts

    def restarted(self, checkpoint: str | None, now_s: float) -> None:
        """The kubelet starts: no driver is there; raises `CheckpointDamaged`, without claims."""
        self._instances.clear()
        self._lost_at_s.clear()
        self._health.clear()
        self._claims.clear()
        self._wipe_all_at_s = now_s + self._timing.wipe_at_start_s
        if checkpoint is not None:
            self._claims = {
                (info.ref.namespace, info.ref.name): info for info in read_checkpoint(checkpoint)
            }

    def checkpoint(self) -> str:
        data = {"Entries": [_entry(info) for info in self._claims.values()]}
        return json.dumps({"Data": data, "Checksum": _checksum(data)})

    def _known(self, claim: PlacedClaim) -> ClaimInfo:
        key = claim.namespace, claim.name
        ref = ClaimRef(claim.namespace, claim.name, claim.uid)
        info = self._claims.get(key)
        if info is None:
            info = ClaimInfo(ref, {driver: [] for driver in claim.drivers})
            self._claims[key] = info
        elif info.ref != ref:
            raise CallFailed(
                f"old ResourceClaim with same name {claim.name} and different UID "
                f"{info.ref.uid} still exists (previous pod force-deleted?!)"
            )
        return info

    def _undo(self, infos: Sequence[ClaimInfo]) -> Generator[DriverCall, Answers, None]:
        by_driver: dict[str, list[ClaimInfo]] = {}
        for info in infos:
            for driver in info.devices:
                by_driver.setdefault(driver, []).append(info)
        for driver, wanted in by_driver.items():
            if self.in_charge(driver) is None:
                raise DriverMissing(driver)
            answers = yield UnprepareCall(driver, tuple(info.ref for info in wanted))
            _check(answers, wanted, "NodeUnprepareResources")
        for info in infos:
            self._claims.pop((info.ref.namespace, info.ref.name), None)

    def _cdi_devices(
        self, claim: PlacedClaim, driver: str, request: str, device: str
    ) -> tuple[str, ...]:
        info = self.info(claim)
        found = info.devices.get(driver, []) if info else []
        base = request.partition("/")[0]
        mine = (
            cdi
            for one in found
            if one.device == device and (not one.requests or base in one.requests)
            for cdi in one.cdi_devices
        )
        return tuple(dict.fromkeys(mine))


def drive_calls(
    steps: Generator[DriverCall, Answers, None], call_driver: Callable[[DriverCall], Answers]
) -> None:
    """Make the calls that `steps` yields, to the end; `call_driver` may raise `CallFailed`."""
    try:
        call = next(steps)
        while True:
            try:
                answers = call_driver(call)
            except CallFailed as error:
                call = steps.throw(error)
            else:
                call = steps.send(answers)
    except StopIteration:
        return


def _check(answers: Answers, wanted: Sequence[ClaimInfo], method: str) -> None:
    uids = {info.ref.uid: info for info in wanted}
    for uid, answer in answers.items():
        if uid not in uids:
            raise CallFailed(f"unknown claim {uid} in the answer to {method}")
        if answer.error:
            name = uids[uid].ref.name
            raise CallFailed(f"{method} failed for ResourceClaim {name}: {answer.error}")
    if missing := len(uids.keys() - answers.keys()):
        raise CallFailed(f"{method} skipped {missing} ResourceClaims")


def _entry(info: ClaimInfo) -> dict[str, object]:
    return {
        "ClaimUID": info.ref.uid,
        "ClaimName": info.ref.name,
        "Namespace": info.ref.namespace,
        "PodUIDs": {uid: {} for uid in sorted(info.pods)},
        "DriverState": {
            driver: {
                "Devices": [
                    {
                        "PoolName": one.pool,
                        "DeviceName": one.device,
                        "ShareID": one.share_id or None,
                        "RequestNames": list(one.requests),
                        "CDIDeviceIDs": list(one.cdi_devices),
                    }
                    for one in devices
                ]
            }
            for driver, devices in info.devices.items()
        },
    }


def read_checkpoint(text: str) -> list[ClaimInfo]:
    """The claims of a checkpoint; raises `CheckpointDamaged`."""
    try:
        content = json.loads(text)
        data = content["Data"]
        if content["Checksum"] != _checksum(data):
            raise CheckpointDamaged("the checkpoint's checksum is wrong")
        return [
            ClaimInfo(
                ClaimRef(str(entry["Namespace"]), str(entry["ClaimName"]), str(entry["ClaimUID"])),
                {
                    str(driver): [
                        PreparedDevice(
                            tuple(map(str, one["RequestNames"])),
                            str(one["PoolName"]),
                            str(one["DeviceName"]),
                            tuple(map(str, one["CDIDeviceIDs"])),
                            str(one["ShareID"] or ""),
                        )
                        for one in state["Devices"]
                    ]
                    for driver, state in entry["DriverState"].items()
                },
                set(map(str, entry["PodUIDs"])),
            )
            for entry in data["Entries"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointDamaged(f"not a checkpoint of claims: {error}") from error


def _checksum(data: object) -> int:
    return zlib.crc32(json.dumps(data, sort_keys=True).encode())
