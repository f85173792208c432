"""A recording as a scenario: its GPUs, tenants and faults, as YAML."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import yaml

from hal import GIB, EccError, GpuAppeared, GpuDisappeared, GpuState, XidError
from sim.gpu.profiles import CannotPartition, check_partition, load_profile
from sim.node.scenario import parse_scenario
from sim.study.observe import nearest_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hal import Event, Gpu, MigDevice, Probe
    from sim.study.observe import ProcessSeen, Recording
    from sim.study.usage import Labels


Node: TypeAlias = dict[str, object]
"""A mapping of YAML."""

_LARGEST_XID = 999
_UNSAMPLED_SHARE = 0.5
_UNATTRIBUTED_GIB = 0.5
"""Memory beyond all processes below this is taken for what the driver keeps."""


class Scenarist:
    """Makes the scenario of one recording; `notes` has what it cannot express."""

    def __init__(self, recording: Recording, labels: Labels) -> None:
        self._recording = recording
        self._labels = labels
        self._scrub = scrub = labels.scrub
        self._gpus = _by_position(recording.gpus)
        self._positions = {gpu.uuid: index for index, gpu in enumerate(self._gpus)}
        self._without_mig: set[str] = set()
        self.notes: list[str] = list(() if scrub else recording.notes)

    def scenario(self, name: str) -> Node:
        scenario: Node = {
            "name": name,
            "driver_version": self._recording.driver_version,
            "gpus": [self._group(gpu) for gpu in self._gpus],
        }
        parts = {
            "links": list(self._links()),
            "tenants": [tenant for gpu in self._gpus for tenant in self._tenants(gpu)],
            "faults": [*self._beforehand(), *self._faults()],
        }
        return {**scenario, **{key: value for key, value in parts.items() if value}}

    def _group(self, gpu: Gpu) -> Node:
        model = nearest_model(gpu)
        profile = load_profile(model)
        recorded: Node = {"minor": gpu.minor, "numa_node": gpu.numa_node}
        if not self._scrub:
            recorded = {"uuid": gpu.uuid, "pci_bus_id": gpu.pci_bus_id or None, **recorded}
        if gpu.product != profile.product:
            self.notes.append(f"GPU {self._positions[gpu.uuid]} is no {model}, which is nearest")
            recorded["product"] = gpu.product
        if gpu.memory_bytes and gpu.memory_bytes != profile.memory_bytes:
            recorded["memory_bytes"] = gpu.memory_bytes
        limit_w = self._recording.summary.power_limit_w.get(gpu.uuid)
        if limit_w is not None and limit_w != profile.power_w.default_limit:
            recorded["power_limit_w"] = limit_w
        group: Node = {"model": model}
        if gpu.mig_enabled:
            group["mig"] = self._mig(gpu, model)
            if group["mig"]:
                recorded["mig"] = [self._recorded_mig(mig) for mig in gpu.mig_devices]
        group["recorded"] = {key: value for key, value in recorded.items() if value is not None}
        return group

    def _mig(self, gpu: Gpu, model: str) -> list[str]:
        profiles = [mig.profile for mig in gpu.mig_devices]
        try:
            check_partition(model, load_profile(model), profiles)
        except CannotPartition as error:
            self._without_mig.add(gpu.uuid)
            self.notes.append(f"MIG devices of GPU {self._positions[gpu.uuid]} left out: {error}")
            return []
        return profiles

    def _mig_position(self, gpu: Gpu, uuid: str) -> int | None:
        """Where a MIG device stands in the group's `mig`; None if it does not stand there."""
        uuids = [mig.uuid for mig in gpu.mig_devices]
        left_out = gpu.uuid in self._without_mig
        return None if left_out or uuid not in uuids else uuids.index(uuid)

    def _recorded_mig(self, mig: MigDevice) -> Node:
        facts: Node = {
            "gpu_instance": mig.gpu_instance,
            "compute_instance": mig.compute_instance,
            "memory_bytes": mig.memory_bytes,
        }
        return facts if self._scrub else {"uuid": mig.uuid, **facts}

    def _links(self) -> Iterator[Node]:
        for (one, other), link in self._recording.links.items():
            places = self._positions.get(one), self._positions.get(other)
            if None in places or places[0] >= places[1]:  # type: ignore[operator] # no None is left
                continue
            yield {"gpus": list(places), "path": link.kind.value, "nvlinks": link.nvlinks}

    def _tenants(self, gpu: Gpu) -> Iterator[Node]:
        """Processes, and load and memory that no process explains."""
        summary = self._recording.summary
        seen = summary.processes.get(gpu.uuid, {})
        utilization = summary.mean(gpu.uuid, "utilization") or 0.0
        shares = {pid: share for pid, one in seen.items() if (share := one.share.value) is not None}
        rest = max(0.0, utilization - sum(shares.values()))
        unsampled = [pid for pid, one in seen.items() if pid not in shares and one.mig_uuid is None]
        for pid in unsampled:
            shares[pid] = rest / len(unsampled)
        position = self._positions[gpu.uuid]
        memory_gib = 0.0
        for pid, one in sorted(seen.items(), key=lambda item: item[0][0]):
            held_gib = (one.memory_bytes.value or 0.0) / GIB
            memory_gib += held_gib
            if one.mig_uuid is not None and self._mig_position(gpu, one.mig_uuid) is None:
                self.notes.append(f"{self._name(one.name)} left out: its MIG device is not known")
                continue
            yield self._tenant(gpu, one, shares.get(pid), held_gib)
        if gpu.mig_enabled:
            return
        used_gib = (summary.mean(gpu.uuid, "memory_used_bytes") or 0.0) / GIB
        reserved_gib = (load_profile(nearest_model(gpu)).memory_reserved_bytes or 0) / GIB
        extra_gib = used_gib - reserved_gib - memory_gib
        extra_load = 0.0 if unsampled else rest
        if extra_gib > _UNATTRIBUTED_GIB or extra_load > 0.01:
            yield {
                "name": "unattributed",
                "gpu": position,
                "utilization": round(min(1.0, extra_load), 3),
                "memory_gib": round(max(0.0, extra_gib), 3),
            }

    def _tenant(self, gpu: Gpu, one: ProcessSeen, share: float | None, held_gib: float) -> Node:
        tenant: Node = {"name": self._name(one.name), "gpu": self._positions[gpu.uuid]}
        late = one.first_s > 0
        if not late and one.mig_uuid is None:
            load: Node = {"utilization": round(min(1.0, share or 0.0), 3)}
            if one.graphics:
                load["graphics"] = True
            return {**tenant, **load, "memory_gib": round(held_gib, 3)}
        if one.mig_uuid is not None:
            tenant["mig"] = self._mig_position(gpu, one.mig_uuid)
            if share is None:
                self.notes.append(f"the load of {tenant['name']} on MIG is a guess")
        busy = _UNSAMPLED_SHARE if share is None else max(0.001, min(1.0, share))
        tenant["start_s"] = round(one.first_s, 3)
        tenant["workload"] = {"kind": "duty-cycle", "period_ms": 1000, "share": round(busy, 3)}
        tenant["memory"] = {"start_gib": round(held_gib, 3), "context_mib": 0}
        return tenant

    def _beforehand(self) -> Iterator[Node]:
        """Faults from before the recording began, as far as they can be expressed."""
        for gpu in self._gpus:
            position = self._positions[gpu.uuid]
            probe = self._recording.probes.get(gpu.uuid)
            if gpu.state is GpuState.LOST:
                yield {"at_s": 0, "gpu": position, "what": {"kind": "lost"}}
            elif probe is not None:
                yield from self._of_probe(position, probe)

    def _of_probe(self, position: int, probe: Probe) -> Iterator[Node]:
        if probe.row_remap_failed or probe.row_remap_pending:
            what: Node = {"kind": "row-remap", "failed": probe.row_remap_failed}
            yield {"at_s": 0, "gpu": position, "what": what}
        if probe.uncorrectable_ecc:
            what = {"kind": "ecc", "uncorrectable": True, "count": probe.uncorrectable_ecc}
            yield {"at_s": 0, "gpu": position, "what": what}
        if not probe.clean and not probe.row_remap_failed:
            self.notes.append(
                f"GPU {position} was not usable at the start ({probe.recovery_action.value}), "
                "which a scenario cannot say without an Xid"
            )

    def _faults(self) -> Iterator[Node]:
        for at_s, event in self._recording.events:
            uuid = event.uuid
            position = None if uuid is None else self._positions.get(uuid)
            what = None if position is None else self._what(event, self._gpus[position])
            if what is None:
                kind = type(event).__name__
                self.notes.append(f"{kind} after {at_s:.1f} s left out: of no recorded GPU")
                continue
            yield {"at_s": round(at_s, 3), "gpu": position, "what": what}

    def _what(self, event: Event, gpu: Gpu) -> Node | None:
        match event:
            case XidError(xid=xid) if 1 <= xid <= _LARGEST_XID:
                mig = {} if gpu.uuid in self._without_mig else _mig_of(event, gpu)
                return {"kind": "xid", "xid": xid, **mig}
            case EccError(uncorrectable=uncorrectable):
                return {"kind": "ecc", "uncorrectable": uncorrectable}
            case GpuDisappeared():
                return {"kind": "lost"}
            case GpuAppeared():
                return {"kind": "recover"}
        return None

    def _name(self, name: str) -> str:
        return self._labels.label("process", name) or "unnamed"


def _by_position(gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """One GPU for each index: of those that were replaced only the last one is there."""
    present: dict[int, Gpu] = {}
    for gpu in gpus:
        if gpu.index not in present or gpu.state is GpuState.OK:
            present[gpu.index] = gpu
    return tuple(gpu for _, gpu in sorted(present.items()))


def _mig_of(event: XidError, gpu: Gpu) -> Node:
    """The MIG device that an Xid names, if it names one that is known."""
    if event.gpu_instance is None:
        return {}
    for position, mig in enumerate(gpu.mig_devices):
        same_instance = mig.compute_instance == (event.compute_instance or 0)
        if mig.gpu_instance == event.gpu_instance and same_instance:
            return {"mig": position}
    return {}


_WIDTH = 100


def as_yaml(recording: Recording, name: str, labels: Labels) -> str:
    """The scenario file, checked; raises `ScenarioError` if no scenario can express it."""
    scenarist = Scenarist(recording, labels)
    body = yaml.safe_dump(
        scenarist.scenario(name), sort_keys=False, width=_WIDTH, allow_unicode=True
    )
    head = [
        f"# Recorded from a node in {recording.length_s:g} s, {recording.summary.looks} looks.",
        "# Scrubbed: UUIDs, PCI addresses and names of processes are not those of the node."
        if labels.scrub
        else "# It identifies hardware and programs: UUIDs, PCI addresses, names of processes.",
        *_seen(recording),
        *(f"# Not as it was: {' '.join(note.split())}" for note in dict.fromkeys(scenarist.notes)),
    ]
    text = "\n".join([*head, body])
    parse_scenario(text, name)
    return text


def _seen(recording: Recording) -> Iterator[str]:
    """What the readings were, which the simulated GPU comes near to but does not repeat."""
    for gpu in recording.gpus:
        values = [
            f"{label} {found:.{digits}f} {unit}"
            for key, label, unit, digits in (
                ("utilization", "utilisation", "of 1", 2),
                ("power_w", "power", "W", 0),
                ("temperature_c", "temperature", "C", 0),
                ("sm_clock_mhz", "SM clock", "MHz", 0),
            )
            if (found := recording.summary.mean(gpu.uuid, key)) is not None
        ]
        if values:
            yield f"# GPU {gpu.index}, on average: {', '.join(values)}"
