"""What the status page shows, as plain values; `page` makes the HTML."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from hal import ThrottleReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gpuplugin.config.loaded import Loaded
    from gpuplugin.core.healthboard import HealthChange
    from gpuplugin.core.node import NodeView
    from gpuplugin.core.usage import Reading, TenantUse
    from gpuplugin.daemon.status import Component, StatusReport
    from gpuplugin.kubelet.deviceplugin import DevicePlugin, RecentCall
    from hal import Gpu, Telemetry

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
class UnitView:
    """A GPU, or a MIG device of one, that is advertised."""

    index: str
    uuid: str
    product: str
    state: str
    reason: str
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


@dataclass(frozen=True, slots=True)
class CallView:
    """An Allocate call: `age_s` ago, for `devices` of a resource; `error` is "" if it succeeded."""

    age_s: float
    resource: str
    devices: Sequence[str]
    error: str


@dataclass(frozen=True, slots=True)
class PageView:
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


def page_view(
    version: str,
    status: StatusReport,
    node: NodeView,
    plugins: Mapping[str, DevicePlugin],
    loaded: Loaded,
) -> PageView:
    """What there is to show; `status` and `node` are of this moment."""
    reading = node.reading_at(status.now_s)
    settings = loaded.settings
    return PageView(
        version=version,
        node=settings.daemon.node_name,
        backend=settings.daemon.backend,
        ready=status.ok,
        components=status.components,
        now_s=status.now_s,
        units=list(_units(node, reading, status.now_s)),
        calls=_calls(plugins),
        unseen={} if reading is None else reading.unseen,
        configuration=loaded.effective_yaml,
        source=loaded.source,
    )


def _units(node: NodeView, reading: Reading | None, now_s: float) -> Iterable[UnitView]:
    health = node.board.units
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
                reason=fault.reason if fault else "",
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
            )


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


def _calls(plugins: Mapping[str, DevicePlugin]) -> list[CallView]:
    now_s = time.time()
    recent = [(call, resource) for resource, plugin in plugins.items() for call in plugin.recent]
    recent.sort(key=lambda one: one[0].at_s, reverse=True)
    return [_call(call, resource, now_s) for call, resource in recent[:MOST_CALLS]]


def _call(call: RecentCall, resource: str, now_s: float) -> CallView:
    try:
        containers = pb.AllocateRequest.FromString(call.request).container_requests
    except DecodeError:
        return CallView(now_s - call.at_s, resource, (), call.error)
    ids = [one for container in containers for one in container.devices_ids]
    shown = ids[:_MOST_DEVICES]
    if len(ids) > len(shown):
        shown = [*shown, f"and {len(ids) - len(shown)} more"]
    return CallView(now_s - call.at_s, resource, shown, call.error)
