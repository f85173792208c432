"""What the status page shows, as plain values; `page` makes the HTML."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from gpuplugin.kubelet.requests import allocate_containers
from gpuplugin.rpc import RpcError
from hal import GpuState, ThrottleReason, lookup_xid

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gpuplugin.config.loaded import Loaded
    from gpuplugin.core.healthboard import HealthChange
    from gpuplugin.core.nodeview import NodeView
    from gpuplugin.core.usage import Reading, TenantUse
    from gpuplugin.daemon.status import Component, StatusReport
    from gpuplugin.kubelet.deviceplugin import DevicePlugin, RecentCall
    from hal import Gpu, Telemetry

_ADVICE = {
    "reset-gpu": "Reset the GPU (nvidia-smi --gpu-reset)",
    "reset": "Reset the GPU (nvidia-smi --gpu-reset)",
    "reset-or-reboot": "Reset the GPU, or reboot the node",
    "reboot": "Reboot the node",
    "reboot-node": "Reboot the node",
    "drain-and-reset": "Let its pods end, then reset the GPU",
    "drain-p2p": "Let the pods end that use it together with other GPUs, then reset it",
    "ecc-workflow": "Let its pods end, then reset the GPU",
    "nvlink-workflow": "Check NVLink and the fabric manager, then reset the GPU",
    "contact-support": "Have the GPU checked by its vendor",
    "see-dmesg": "See the driver's messages in dmesg",
    "none": "",
    "unknown": "",
    "unspecified": "See the driver's messages in dmesg",
}
"""Actions whose names say too little; docs/runbook.md has the steps."""

_DELETE_PODS = "Delete the pods that still hold it"

Tone: TypeAlias = Literal["good", "warn", "bad"]

HISTORY_S = 3600.0
MOST_CALLS = 20
_MOST_DEVICES = 4


@dataclass(frozen=True, slots=True)
class SpanView:
    """A unit was in a state from `begin` to `end`, as shares (0 to 1) of its history."""

    begin: float
    end: float
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class XidView:
    """An Xid that was reported `count` times, `age_s` ago for the last time."""

    code: int
    meaning: str
    count: int
    age_s: float


@dataclass(frozen=True, slots=True)
class UnitView:
    """A GPU, or a MIG device of one, that is advertised."""

    index: str
    uuid: str
    product: str
    state: str
    reason: str
    action: str
    """What to do about it, empty if nothing is to be done."""
    usable: bool
    """False if the kubelet gives none of its replicas to a pod."""
    gone: bool
    """True if another GPU has its place now."""
    replicas: int
    holders: Mapping[int, str]
    """The pod of each replica, by its number."""
    allocated: int | None
    tenants: Sequence[TenantUse]
    history_s: float
    """Length of the history: an hour, or less since the plugin's start."""
    history: Sequence[SpanView]
    utilization: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    clock_mhz: int | None = None
    throttled: str = ""
    xids: Sequence[XidView] = ()


@dataclass(frozen=True, slots=True)
class CallView:
    """A call that gave GPUs to a pod, `age_s` ago: `error` is "" if it succeeded.

    `devices` are device ids of a resource; with DRA device names, and `resource` is the claim.
    """

    age_s: float
    resource: str
    devices: Sequence[str]
    error: str


@dataclass(frozen=True, slots=True)
class PageView:
    """All that the page and `gpuplugin top` show; `units` are in the order of `_urgency`."""

    version: str
    node: str
    backend: str
    ready: bool
    components: Mapping[str, Component]
    now_s: float
    units: Sequence[UnitView]
    calls: Sequence[CallView]
    unseen: Mapping[str, str]
    configuration: str
    source: str

    @property
    def listed(self) -> Sequence[UnitView]:
        """Those that are there, or should be."""
        return [unit for unit in self.units if not unit.gone]

    @property
    def usable(self) -> int:
        return sum(unit.usable for unit in self.listed)

    @property
    def summary(self) -> str:
        """How the node is doing in a few words."""
        if not self.ready:
            return "Not ready"
        if not self.listed:
            return "Ready, no GPU"
        if self.usable == len(self.listed):
            return "Ready"
        usable = f"{self.usable} of {len(self.listed)}" if self.usable else "none is"
        return f"Ready, {usable} usable"

    @property
    def tone(self) -> Tone:
        if not self.ready or not self.usable:
            return "bad"
        return "good" if self.usable == len(self.listed) else "warn"

    @property
    def counts(self) -> str:
        """How many GPUs and replicas there are, and how many of those are held."""
        listed = self.listed
        migs = sum(":" in unit.index for unit in listed)
        kinds = [_number(len(listed) - migs, "GPU") if len(listed) > migs or not migs else ""]
        kinds += [_number(migs, "MIG device") if migs else ""]
        sick = sum(unit.state != "Healthy" for unit in listed)
        kinds += [f"{sick} not healthy" if sick else ""]
        gone = len(self.units) - len(listed)
        kinds += [f"{gone} replaced" if gone else ""]
        held = [unit.allocated for unit in listed if unit.allocated is not None]
        replicas = _number(sum(unit.replicas for unit in listed), "replica")
        replicas += f", {sum(held)} held" if held else ""
        return f"{', '.join(filter(None, kinds))} \N{MIDDLE DOT} {replicas}"


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def page_view(
    version: str,
    status: StatusReport,
    node: NodeView,
    calls: Sequence[CallView],
    loaded: Loaded,
) -> PageView:
    """What there is to show; `status` and `node` are of this moment."""
    reading = node.reading_at(status.now_s)
    settings = loaded.settings
    return PageView(
        version=version,
        node=settings.daemon.node_name or socket.gethostname(),
        backend=settings.daemon.backend,
        ready=status.ok,
        components=status.components,
        now_s=status.now_s,
        units=sorted(_units(node, reading, status.now_s), key=_urgency),
        calls=calls,
        unseen={} if reading is None else reading.unseen,
        configuration=loaded.effective_yaml,
        source=loaded.source,
    )


def _units(node: NodeView, reading: Reading | None, now_s: float) -> Iterable[UnitView]:
    health = node.board.units
    present = {gpu.index for gpu in node.gpus if gpu.state is GpuState.OK}
    counts: dict[str, int] = {}
    for resource in node.inventory.resources:
        for (gpu_uuid, mig_uuid), count in resource.units.items():
            uuid = mig_uuid or gpu_uuid
            counts[uuid] = counts.get(uuid, 0) + count
    for gpu in node.gpus:
        for index, uuid, product, memory_bytes in _devices(gpu):
            if uuid not in counts or uuid not in health:
                continue
            state, fault = health[uuid].state.value, health[uuid].fault
            withheld = node.withheld.get(uuid, "")
            gone = gpu.state is GpuState.LOST and gpu.index in present
            action = advice(fault.action) if fault and state == "Unhealthy" else ""
            changes = [one for one in node.history.changes if one.uuid == uuid]
            history_s, history = spans(changes, now_s)
            # A GPU or MIG device that is newer than the reading has no usage yet.
            usage = reading.usage if reading else None
            used = next((one for one in usage.units if one.uuid == uuid), None) if usage else None
            uses = [one for one in usage.replicas if one.uuid == uuid] if usage else []
            telemetry = reading.telemetry.get(uuid) if reading else None
            memory_used_bytes = telemetry.memory_used_bytes if telemetry else None
            free_bytes = used.free_bytes if used is not None else None
            if telemetry is None and memory_bytes is not None and free_bytes is not None:
                memory_used_bytes = memory_bytes - free_bytes
            yield UnitView(
                index=index,
                uuid=uuid,
                product=product,
                state=state,
                reason=fault.reason if fault else withheld or node.misfit,
                action=_DELETE_PODS if gone else action,
                usable=node.healthy(gpu.uuid, uuid if uuid != gpu.uuid else None),
                gone=gone,
                replicas=counts[uuid],
                holders={one.replica or 0: f"{one.pod.namespace}/{one.pod.name}" for one in uses},
                allocated=used.allocated if used else None,
                tenants=[one for one in usage.tenants if one.uuid == uuid] if usage else [],
                history_s=history_s,
                history=history,
                utilization=telemetry.utilization if telemetry else None,
                memory_used_bytes=memory_used_bytes,
                memory_total_bytes=telemetry.memory_total_bytes if telemetry else memory_bytes,
                temperature_c=telemetry.temperature_c if telemetry else None,
                power_w=telemetry.power_w if telemetry else None,
                clock_mhz=telemetry.sm_clock_mhz if telemetry else None,
                throttled=_throttled(telemetry),
                xids=[
                    XidView(one.code, lookup_xid(one.code).meaning, one.count, now_s - one.last_s)
                    for one in node.xids.get(uuid, ())
                ],
            )


def _urgency(unit: UnitView) -> tuple[bool, bool, list[int]]:
    """What needs a person first; GPUs that were replaced last."""
    return unit.gone, unit.usable, [int(number) for number in unit.index.split(":")]


def advice(action: str) -> str:
    """An action of the health machine as a sentence's beginning."""
    words = action.replace("-", " ")
    return _ADVICE.get(action, words[:1].upper() + words[1:])


def spans(changes: Sequence[HealthChange], now_s: float) -> tuple[float, list[SpanView]]:
    """The states of the last hour, or since the first of them; and how many seconds that is."""
    if not changes:
        return 0.0, []
    begin_s = max(now_s - HISTORY_S, changes[0].at_s)
    length_s = max(now_s - begin_s, 1.0)
    ends = [*(one.at_s for one in changes[1:]), now_s]
    result = [
        SpanView(
            begin=(max(one.at_s, begin_s) - begin_s) / length_s,
            end=(until_s - begin_s) / length_s,
            state=one.state,
            reason=one.reason,
        )
        for one, until_s in zip(changes, ends, strict=True)
        if until_s > begin_s
    ]
    return length_s, result


def _devices(gpu: Gpu) -> Iterable[tuple[str, str, str, int | None]]:
    yield str(gpu.index), gpu.uuid, gpu.product, gpu.memory_bytes
    for mig in gpu.mig_devices:
        product = f"{gpu.product} MIG {mig.profile}"
        yield f"{gpu.index}:{mig.index}", mig.uuid, product, mig.memory_bytes


def _throttled(telemetry: Telemetry | None) -> str:
    if telemetry is None:
        return ""
    reasons = telemetry.throttle_reasons & ~ThrottleReason.IDLE
    return ", ".join(
        str(reason.name).lower().replace("_", " ") for reason in ThrottleReason if reason in reasons
    )


def allocate_calls(plugins: Mapping[str, DevicePlugin]) -> list[CallView]:
    """The last Allocate calls of all resources, the newest first."""
    now_s = time.time()
    recent = [(call, resource) for resource, plugin in plugins.items() for call in plugin.recent]
    recent.sort(key=lambda one: one[0].at_s, reverse=True)
    return [_call(call, resource, now_s) for call, resource in recent[:MOST_CALLS]]


def _call(call: RecentCall, resource: str, now_s: float) -> CallView:
    try:
        ids = [one for container in allocate_containers(call.request) for one in container]
    except RpcError:
        return CallView(now_s - call.at_s, resource, (), call.error)
    shown = ids[:_MOST_DEVICES]
    if len(ids) > len(shown):
        shown = [*shown, f"and {len(ids) - len(shown)} more"]
    return CallView(now_s - call.at_s, resource, shown, call.error)
