"""The daemon's metrics as Prometheus wants them, made at each scrape.

What is counted comes from `metrics`, what GPUs and pods do from the node's newest view. A pod that
ended, a GPU that does not respond and a stale reading leave no series behind, and a scrape waits
for no hardware.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeAlias

from gpuplugin.core.health import HealthState
from gpuplugin.core.usage import SOURCES
from gpuplugin.daemon.http.dcgm import dcgm_families
from gpuplugin.daemon.http.process import process_families, python_families
from gpuplugin.daemon.http.series import Counted, Counter, Histogram, Scraped
from gpuplugin.daemon.http.textformat import Family
from gpuplugin.rpc.callstats import BOUNDS_S
from hal import ThrottleReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from gpuplugin.core.nodeview import NodeView
    from gpuplugin.core.usage import Reading, TenantUse, UnitUse, Usage
    from gpuplugin.daemon.http.metrics import Metrics
    from hal import Telemetry

_Table: TypeAlias = "Metrics | type[Metrics]"
"""What is made at each scrape is declared on the class."""
Add: TypeAlias = "Callable[[Scraped, tuple[object, ...], float | None], None]"

_MHZ = 1_000_000


def families(metrics: Metrics, view: NodeView, dcgm_host: str | None = None) -> Iterator[Family]:
    """Everything that the daemon exports; `dcgm_host` is this node's name in series of DCGM."""
    yield from process_families()
    yield from python_families()
    build = Family("gpuplugin_build", "Version of the plugin.", "info")
    build.add(1, metrics.build)
    yield build
    for metric in vars(metrics).values():
        if isinstance(metric, Counted):
            family = empty_family(metric)
            for labels, value in metric.samples():
                family.add(value, _named(metric, labels))
            yield family
        elif isinstance(metric, Histogram):
            family = empty_family(metric)
            counts, sum_s = metric.counts()
            family.add_histogram(metric.bounds_s, counts, sum_s)
            yield family
    yield from _calls(metrics)
    now_s = time.monotonic()
    yield from view_families(metrics, view, now_s)
    if dcgm_host is not None:
        yield from dcgm_families(view, dcgm_host, now_s)


def empty_family(metric: Counted | Histogram | Scraped) -> Family:
    match metric:
        case Histogram():
            return Family(metric.name, metric.text, "histogram")
        case Scraped():
            return Family(metric.name, metric.text, metric.kind)
        case Counter():
            return Family(metric.name, metric.text, "counter")
        case _:
            return Family(metric.name, metric.text)


def _named(metric: Counted | Scraped, labels: Sequence[str]) -> dict[str, str]:
    return dict(zip(metric.label_names, labels, strict=True))


def _calls(metrics: Metrics) -> Iterator[Family]:
    seconds, running = empty_family(metrics.rpc_duration), empty_family(metrics.rpc_in_flight)
    for resource, stats in list(metrics.calls.items()):
        for calls in stats.calls():
            labels = _named(metrics.rpc_duration, (resource, calls.method, calls.code))
            seconds.add_histogram(BOUNDS_S, calls.by_bucket, calls.seconds, **labels)
        for method, count in stats.running().items():
            running.add(count, _named(metrics.rpc_in_flight, (resource, method)))
    yield seconds
    yield running


def view_families(metrics: _Table, view: NodeView, now_s: float) -> Iterator[Family]:
    """What the node's view shows; metrics without a sample are left out."""
    found: dict[Scraped, Family] = {}

    def add(metric: Scraped, labels: tuple[object, ...], value: float | None) -> None:
        if value is not None:
            family = found.get(metric)
            if family is None:
                family = found[metric] = empty_family(metric)
            family.add(value, _named(metric, [str(label) for label in labels]))

    _add_node(metrics, view, now_s, add)
    reading = view.reading_at(now_s)
    for what in SOURCES:
        add(metrics.visible, (what,), reading is not None and what not in reading.unseen)
    if reading is not None:
        _add_reading(metrics, view, reading, now_s, add)
    return iter(found.values())


def _add_node(metrics: _Table, view: NodeView, now_s: float, add: Add) -> None:
    add(metrics.monitor_blind, (), bool(view.board.blind))
    healthy = view.healthy_devices()
    for resource in view.inventory.resources:
        name, good = resource.name, healthy[resource.name]
        add(metrics.devices, (name, "Healthy"), good)
        add(metrics.devices, (name, "Unhealthy"), len(resource.devices) - good)
    left_out = view.left_out
    for uuid, health in view.board.units.items():
        for state in HealthState if uuid not in left_out else ():
            labels = (uuid, view.index(uuid), state.value)
            add(metrics.gpu_health, labels, health.state is state)
    for gpu in view.gpus:
        if gpu.compute_mode is not None:
            add(metrics.gpu_compute_mode, (gpu.uuid, gpu.index, gpu.compute_mode.value), 1)
    for uuid, seconds in view.history.unhealthy_s(now_s).items():
        if uuid not in left_out:
            add(metrics.gpu_unhealthy_seconds, (uuid, view.index(uuid)), seconds)


def _add_reading(metrics: _Table, view: NodeView, reading: Reading, now_s: float, add: Add) -> None:
    left_out = view.left_out
    add(metrics.reading_age_seconds, (), now_s - reading.at_s)
    add(metrics.reading_duration_seconds, (), reading.took_s)
    for gpu in reading.gpus:
        labels = (gpu.uuid, gpu.index)
        numa = "" if gpu.numa_node is None else gpu.numa_node
        about = (*labels, gpu.product, gpu.pci_bus_id, numa, reading.driver)
        add(metrics.gpu_info, about, 1)
        if (telemetry := reading.telemetry.get(gpu.uuid)) is not None:
            _add_telemetry(metrics, labels, telemetry, add)
        probe = view.probes.get(gpu.uuid)
        if probe is not None and probe.reachable and gpu.uuid not in left_out:
            add(metrics.gpu_row_remap, (*labels, "pending"), probe.row_remap_pending)
            add(metrics.gpu_row_remap, (*labels, "failed"), probe.row_remap_failed)
    _add_usage(metrics, reading.usage, add)


def _add_telemetry(
    metrics: _Table, labels: tuple[object, ...], telemetry: Telemetry, add: Add
) -> None:
    add(metrics.gpu_utilization_ratio, labels, telemetry.utilization)
    add(metrics.gpu_memory_used_bytes, labels, telemetry.memory_used_bytes)
    add(metrics.gpu_memory_total_bytes, labels, telemetry.memory_total_bytes)
    add(metrics.gpu_temperature_celsius, labels, telemetry.temperature_c)
    add(metrics.gpu_power_watts, labels, telemetry.power_w)
    add(metrics.gpu_power_limit_watts, labels, telemetry.power_limit_w)
    add(metrics.gpu_energy_joules, labels, telemetry.energy_j)
    for domain, mhz in (("sm", telemetry.sm_clock_mhz), ("memory", telemetry.memory_clock_mhz)):
        add(metrics.gpu_clock_hertz, (*labels, domain), None if mhz is None else mhz * _MHZ)
    for reason in ThrottleReason:
        name = str(reason.name).lower().replace("_", "-")
        add(metrics.gpu_throttled, (*labels, name), reason in telemetry.throttle_reasons)
    add(metrics.gpu_ecc_errors, (*labels, "corrected"), telemetry.corrected_ecc)
    add(metrics.gpu_ecc_errors, (*labels, "uncorrectable"), telemetry.uncorrectable_ecc)


def _add_usage(metrics: _Table, usage: Usage, add: Add) -> None:
    for unit in usage.units:
        _add_unit(metrics, unit, add)
    for tenant in usage.tenants:
        _add_tenant(metrics, tenant, add)
    for use in usage.replicas:
        replica = "" if use.replica is None else use.replica
        pod = (use.pod.namespace, use.pod.name, use.container)
        add(metrics.replica_info, (use.resource, use.uuid, use.index, replica, *pod), 1)


def _add_unit(metrics: _Table, unit: UnitUse, add: Add) -> None:
    values: Mapping[Scraped, float | None] = {
        metrics.gpu_replicas: unit.replicas,
        metrics.gpu_replicas_allocated: unit.allocated,
        metrics.gpu_oversubscription_ratio: unit.allocated,
        metrics.gpu_tenants: unit.tenants,
        metrics.gpu_contending_tenants: unit.contending,
        metrics.gpu_memory_headroom_bytes: unit.free_bytes,
        metrics.gpu_fairness_ratio: unit.fairness,
        metrics.gpu_timeslicing_efficiency_ratio: unit.efficiency,
        metrics.gpu_timeslicing_gain_ratio: unit.gain,
    }
    for metric, value in values.items():
        add(metric, (unit.uuid, unit.index), value)


def _add_tenant(metrics: _Table, tenant: TenantUse, add: Add) -> None:
    namespace, pod = (tenant.pod.namespace, tenant.pod.name) if tenant.pod else ("", "")
    labels = (tenant.uuid, tenant.index, namespace, pod, tenant.container)
    add(metrics.pod_replicas, labels, tenant.replicas)
    add(metrics.pod_processes, labels, tenant.processes)
    add(metrics.pod_memory_bytes, labels, tenant.memory_bytes)
    add(metrics.pod_memory_fair_share_bytes, labels, tenant.fair_memory_bytes)
    if tenant.memory_bytes is not None and tenant.fair_memory_bytes is not None:
        add(metrics.pod_memory_over_fair_share, labels, tenant.over_fair_share)
    add(metrics.pod_sm_ratio, labels, tenant.sm_share)
