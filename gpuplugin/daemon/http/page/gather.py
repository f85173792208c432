"""Gathers what the status page shows, from parts that may be read from any thread."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import yaml
from google.protobuf.message import DecodeError

from gpuplugin.daemon.http.page.view import CallView, PageView, SpanView, TenantView, UnitView
from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from hal import ThrottleReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gpuplugin.config.loaded import Loaded
    from gpuplugin.core.usage import TenantUse, Usage
    from gpuplugin.daemon.hardware.sampler import Reading
    from gpuplugin.daemon.healthrecord import Change, HealthRecord
    from gpuplugin.daemon.node import Node
    from gpuplugin.daemon.status import Vitals
    from gpuplugin.kubelet.deviceplugin import RecentCall
    from hal import Gpu, Telemetry

HISTORY_S = 3600.0
MOST_CALLS = 20
_MOST_DEVICES = 4


class PageSource:
    """Makes a `PageView` of this moment."""

    def __init__(
        self,
        version: str,
        vitals: Vitals,
        node: Node,
        record: HealthRecord,
        reading: Callable[[], Reading | None],
        loaded: Callable[[], Loaded],
    ) -> None:
        self._version = version
        self._vitals = vitals
        self._node = node
        self._record = record
        self._reading = reading
        self._loaded = loaded

    def view(self) -> PageView:
        """What there is to show."""
        report = self._vitals.readiness()
        reading, loaded = self._reading(), self._loaded()
        settings = loaded.settings
        return PageView(
            version=self._version,
            node=settings.daemon.node_name,
            backend=settings.daemon.backend,
            ready=report.ok,
            parts=report.parts,
            now_s=report.now_s,
            units=self._units(reading),
            calls=_calls(self._node),
            unseen={} if reading is None else reading.unseen,
            configuration=yaml.safe_dump(loaded.effective, sort_keys=False),
            source=loaded.source,
        )

    def _units(self, reading: Reading | None) -> list[UnitView]:
        changes = self._record.changes(0.0)
        now_s = time.time()
        health = self._node.board.units
        counts: dict[str, int] = {}
        for resource in self._node.inventory.resources:
            for device in resource.devices:
                counts[device.uuid] = counts.get(device.uuid, 0) + 1
        units = []
        for gpu in self._node.gpus:
            telemetry = reading.telemetry.get(gpu.uuid) if reading else None
            for index, uuid, product, memory_bytes in _devices(gpu):
                unit_health = health.get(uuid)
                if uuid not in counts or unit_health is None:
                    continue
                unit = _Unit(index, uuid, product, memory_bytes, uuid != gpu.uuid)
                state = unit_health.status.value
                reason = unit_health.fault.reason if unit_health.fault else ""
                history = spans([one for one in changes if one.uuid == uuid], now_s)
                usage = reading.usage if reading else None
                units.append(unit.view(state, reason, counts[uuid], history, usage, telemetry))
        return units


class _Unit:
    """A GPU or MIG device on its way to the page."""

    def __init__(self, index: str, uuid: str, product: str, memory_bytes: int, mig: bool) -> None:
        self._index = index
        self._uuid = uuid
        self._product = product
        self._memory_bytes = memory_bytes
        self._mig = mig

    def view(
        self,
        state: str,
        reason: str,
        replicas: int,
        history: tuple[float, Sequence[SpanView]],
        usage: Usage | None,
        telemetry: Telemetry | None,
    ) -> UnitView:
        """As the page has it; a MIG device has no telemetry of its own but its memory."""
        uses = [use for use in usage.replicas if use.uuid == self._uuid] if usage else []
        (unit,) = [one for one in usage.units if one.uuid == self._uuid] if usage else [None]
        used = (
            self._memory_bytes - unit.free_bytes if unit and unit.free_bytes is not None else None
        )
        own = None if self._mig else telemetry
        return UnitView(
            index=self._index,
            uuid=self._uuid,
            product=self._product,
            state=state,
            reason=reason,
            replicas=replicas,
            holders={use.replica or 0: f"{use.pod.namespace}/{use.pod.name}" for use in uses},
            allocated=unit.allocated if unit else None,
            tenants=[
                _tenant(one) for one in (usage.tenants if usage else ()) if one.uuid == self._uuid
            ],
            history_s=history[0],
            history=history[1],
            utilization=own.utilization if own else None,
            memory_used_bytes=own.memory_used_bytes if own else used,
            memory_total_bytes=own.memory_total_bytes if own else self._memory_bytes,
            temperature_c=own.temperature_c if own else None,
            power_w=own.power_w if own else None,
            clock_mhz=own.sm_clock_mhz if own else None,
            throttled=_throttled(own),
        )


def spans(changes: Sequence[Change], now_s: float) -> tuple[float, list[SpanView]]:
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


def _devices(gpu: Gpu) -> Iterable[tuple[str, str, str, int]]:
    yield str(gpu.index), gpu.uuid, gpu.product, gpu.memory_bytes
    for mig in gpu.mig_devices:
        product = f"{gpu.product} MIG {mig.profile}"
        yield f"{gpu.index}:{mig.index}", mig.uuid, product, mig.memory_bytes


def _tenant(use: TenantUse) -> TenantView:
    name = f"{use.pod.namespace}/{use.pod.name}" if use.pod else "processes of no known pod"
    return TenantView(
        name, use.container, use.replicas, use.memory_bytes, use.fair_memory_bytes, use.sm_share
    )


def _throttled(telemetry: Telemetry | None) -> str:
    if telemetry is None:
        return ""
    reasons = telemetry.throttle_reasons & ~ThrottleReason.IDLE
    return ", ".join(
        str(reason.name).lower().replace("_", " ") for reason in ThrottleReason if reason in reasons
    )


def _calls(node: Node) -> list[CallView]:
    now_s = time.time()
    recent = [
        (call, resource)
        for resource, plugin in dict(node.plugins).items()
        for call in plugin.recent
    ]
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
