"""Which pods use which share of which GPU: replicas, pods and processes joined. Pure.

A *unit* is what is shared: a GPU, or a MIG device of one. A *tenant* of a unit is a pod with
processes or replicas there, or, where no pod is known, a process for itself. The sampler of the
daemon reads the facts.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gpuplugin.core.inventory import Device, Inventory
    from hal import ComputeProcess, Gpu, Telemetry

STALE_AFTER_PERIODS = 3
"""A reading that is older than so many periods is dropped: it no longer describes the present."""

HOLDINGS, PROCESSES, PODS = "pod-resources", "processes", "pods"
SOURCES = (HOLDINGS, PROCESSES, PODS)
"""What a reading may lack: pods of replicas, processes on GPUs, pods of processes."""

WORKING_SHARE = 0.01
"""A tenant had work if its kernels ran for at least this share of the sample: NVML's resolution."""


@dataclass(frozen=True, slots=True)
class PodName:
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Holding:
    pod: PodName
    container: str
    resource: str
    device_ids: tuple[str, ...]
    by_claim: bool = False
    """True if the scheduler gave it by a claim (DRA), which therefore knows of it."""


@dataclass(frozen=True, slots=True)
class ClaimUse:
    """A container has a device of a claim, as the kubelet lists it.

    The kubelet (1.36) lists a device again each time that its claim was prepared again.
    """

    pod: PodName
    container: str
    namespace: str
    claim: str
    driver: str
    device: str
    share_id: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """A share, or a whole device: namespace and name of the claim, device, share id."""
        return self.namespace, self.claim, self.device, self.share_id


@dataclass(frozen=True, slots=True)
class Work:
    """A process on a GPU, and its pod if that is known."""

    gpu_uuid: str
    process: ComputeProcess
    pod: PodName | None


@dataclass(frozen=True, slots=True)
class ReplicaUse:
    """A device that a container holds; `replica` is None for one that is not shared."""

    resource: str
    uuid: str
    index: str
    replica: int | None
    pod: PodName
    container: str


@dataclass(frozen=True, slots=True)
class TenantUse:
    """What a tenant has of a unit.

    `pod` is None for processes of which no pod is known; `container` names the containers that hold
    replicas here, with commas. `memory_bytes` and `sm_share` (0 to 1, of the last sample) are None
    where no process is seen or the driver does not report it.
    """

    uuid: str
    index: str
    pod: PodName | None
    container: str
    replicas: int
    processes: int
    memory_bytes: int | None
    sm_share: float | None
    fair_memory_bytes: int | None
    """The unit's memory by the share of its advertised replicas that the tenant holds."""

    @property
    def over_fair_share(self) -> bool:
        if self.memory_bytes is None or self.fair_memory_bytes is None:
            return False
        return self.memory_bytes > self.fair_memory_bytes

    @property
    def working(self) -> bool:
        return (self.sm_share or 0.0) >= WORKING_SHARE


@dataclass(frozen=True, slots=True)
class UnitUse:
    """How a unit is shared.

    `replicas` are advertised, `allocated` of them given to containers (None: not
    known). `tenants` have a process here, `contending` of them had work at the same time; None
    where processes are not seen.
    """

    uuid: str
    index: str
    replicas: int
    allocated: int | None
    memory_bytes: int | None
    free_bytes: int | None
    tenants: int | None
    contending: int | None
    fairness: float | None
    efficiency: float | None
    gain: float | None


@dataclass(frozen=True, slots=True)
class Usage:
    units: tuple[UnitUse, ...] = ()
    tenants: tuple[TenantUse, ...] = ()
    replicas: tuple[ReplicaUse, ...] = ()


@dataclass(frozen=True, slots=True)
class Seen:
    """What could be read; None is what could not.

    `telemetry` and `work` are by the UUID of the physical GPU; one that did not respond is missing.
    """

    gpus: Sequence[Gpu]
    inventory: Inventory
    holdings: Sequence[Holding] | None
    telemetry: Mapping[str, Telemetry]
    work: Mapping[str, Sequence[Work]]


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read at `at_s`; `unseen` has the reason for each source that could not be."""

    at_s: float = 0.0
    took_s: float = 0.0
    period_s: float = math.inf
    driver: str = ""
    gpus: Sequence[Gpu] = ()
    telemetry: Mapping[str, Telemetry] = field(default_factory=lambda: MappingProxyType({}))
    usage: Usage = field(default_factory=Usage)
    unseen: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def stale(self, now_s: float) -> bool:
        """True once it is too old to describe `now_s`."""
        return now_s - self.at_s > STALE_AFTER_PERIODS * self.period_s


def usage_of(seen: Seen) -> Usage:
    devices = {
        (resource.name, device.id): device
        for resource in seen.inventory.resources
        for device in resource.devices
    }
    advertised = Counter(device.uuid for device in devices.values())
    replicas = tuple(_replica_uses(devices, seen.holdings or ()))
    # Each once: pods may have one claim together, and containers of a pod, too.
    held = Counter(uuid for uuid, _ in {(use.uuid, use.replica) for use in replicas})
    units: list[UnitUse] = []
    tenants: list[TenantUse] = []
    for unit in _units(seen.gpus):
        if not advertised[unit.uuid]:
            continue
        uses = [use for use in replicas if use.uuid == unit.uuid]
        work = _work_on(unit, seen.work)
        shares = _tenants(unit, uses, work or (), advertised[unit.uuid])
        tenants += shares
        units.append(
            _unit_use(
                unit,
                advertised[unit.uuid],
                None if seen.holdings is None else held[unit.uuid],
                seen.telemetry.get(unit.gpu_uuid),
                None if work is None else shares,
            )
        )
    return Usage(tuple(units), tuple(tenants), replicas)


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 if all have the same, 1/n if one has everything.

    Source: Jain, Chiu, Hawe, DEC-TR-301 (1984).
    """
    squares = math.fsum(share * share for share in shares)
    return math.fsum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


@dataclass(frozen=True, slots=True)
class _Unit:
    uuid: str
    index: str
    gpu_uuid: str
    mig: bool
    memory_bytes: int | None


def _units(gpus: Iterable[Gpu]) -> Iterable[_Unit]:
    for gpu in gpus:
        yield _Unit(gpu.uuid, str(gpu.index), gpu.uuid, mig=False, memory_bytes=gpu.memory_bytes)
        for mig in gpu.mig_devices:
            index = f"{gpu.index}:{mig.index}"
            yield _Unit(mig.uuid, index, gpu.uuid, mig=True, memory_bytes=mig.memory_bytes)


def _replica_uses(
    devices: Mapping[tuple[str, str], Device], holdings: Iterable[Holding]
) -> Iterable[ReplicaUse]:
    for holding in holdings:
        for device_id in holding.device_ids:
            device = devices.get((holding.resource, device_id))
            if device is not None:
                yield ReplicaUse(
                    holding.resource,
                    device.uuid,
                    device.index,
                    device.replica,
                    holding.pod,
                    holding.container,
                )


def _work_on(unit: _Unit, work: Mapping[str, Sequence[Work]]) -> list[Work] | None:
    """Processes of the unit; None where those of its GPU could not be read."""
    on_gpu, mig_uuid = work.get(unit.gpu_uuid), unit.uuid if unit.mig else None
    return None if on_gpu is None else [one for one in on_gpu if one.process.mig_uuid == mig_uuid]


def _tenants(
    unit: _Unit, uses: Sequence[ReplicaUse], work: Sequence[Work], advertised: int
) -> list[TenantUse]:
    pods = {*(use.pod for use in uses), *(one.pod for one in work)}
    known = sorted(pods - {None}, key=lambda pod: (pod.namespace, pod.name) if pod else ("", ""))
    return [
        _tenant(
            unit,
            pod,
            [use for use in uses if use.pod == pod],
            [one for one in work if one.pod == pod],
            advertised,
        )
        for pod in (*known, *(pods & {None}))
    ]


def _tenant(
    unit: _Unit,
    pod: PodName | None,
    uses: Sequence[ReplicaUse],
    work: Sequence[Work],
    advertised: int,
) -> TenantUse:
    memory = [one.process.memory_bytes for one in work if one.process.memory_bytes is not None]
    shares = [one.process.sm_share for one in work if one.process.sm_share is not None]
    held = len({use.replica for use in uses})
    return TenantUse(
        uuid=unit.uuid,
        index=unit.index,
        pod=pod,
        container=",".join(sorted({use.container for use in uses})),
        replicas=held,
        processes=len(work),
        memory_bytes=sum(memory) if memory else None,
        sm_share=min(1.0, sum(shares)) if shares else None,
        fair_memory_bytes=None
        if unit.memory_bytes is None or not uses
        else unit.memory_bytes * held // advertised,
    )


def _unit_use(
    unit: _Unit,
    advertised: int,
    allocated: int | None,
    telemetry: Telemetry | None,
    tenants: Sequence[TenantUse] | None,
) -> UnitUse:
    present = None if tenants is None else [one for one in tenants if one.processes]
    working = [one.sm_share or 0.0 for one in present or () if one.working]
    fairness = efficiency = gain = None
    # The driver samples MIG devices neither as a whole nor by process.
    utilization = telemetry.utilization if telemetry is not None and not unit.mig else None
    if present is not None and len(working) >= 2:
        fairness = jain(
            [one.sm_share / max(1, one.replicas) for one in present if one.working and one.sm_share]
        )
        if utilization is not None:
            efficiency = utilization
            gain = max(1.0, utilization / max(working))
    return UnitUse(
        uuid=unit.uuid,
        index=unit.index,
        replicas=advertised,
        allocated=allocated,
        memory_bytes=unit.memory_bytes,
        free_bytes=_free_bytes(unit, telemetry, present),
        # Processes of unknown pods count one by one: they may not belong together.
        tenants=None
        if present is None
        else sum(1 if one.pod else one.processes for one in present),
        contending=None if present is None else len(working),
        fairness=fairness,
        efficiency=efficiency,
        gain=gain,
    )


def _free_bytes(
    unit: _Unit, telemetry: Telemetry | None, present: Sequence[TenantUse] | None
) -> int | None:
    if not unit.mig:
        return None if telemetry is None else telemetry.memory_free_bytes
    if unit.memory_bytes is None or present is None:
        return None
    if any(one.memory_bytes is None for one in present):
        return None
    return max(0, unit.memory_bytes - sum(one.memory_bytes or 0 for one in present))
