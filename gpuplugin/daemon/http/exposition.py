"""The daemon's metrics as Prometheus wants them, made at each scrape.

What is counted comes from `metrics`, what GPUs and pods do from the node's newest view. A pod that
ended, a GPU that does not respond and a stale reading leave no series behind, and a scrape waits
for no hardware.
"""

from __future__ import annotations

import time
from itertools import accumulate
from typing import TYPE_CHECKING, TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from gpuplugin.core.health import HealthState
from gpuplugin.core.usage import SOURCES
from gpuplugin.daemon.http.series import Counted, Counter, Histogram, Scraped
from gpuplugin.rpc.callstats import BOUNDS_S
from hal import ThrottleReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from prometheus_client.core import Metric

    from gpuplugin.core.node import NodeView
    from gpuplugin.core.usage import Reading, TenantUse, UnitUse, Usage
    from gpuplugin.daemon.http.metrics import Metrics
    from hal import Telemetry

Add: TypeAlias = "Callable[[Scraped, tuple[object, ...], float | None], None]"

_MHZ = 1_000_000


def make_registry(metrics: Metrics, view: Callable[[], NodeView]) -> CollectorRegistry:
    """Everything that the daemon exports; `view` is called once for each scrape."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(_Exposition(metrics, view))
    return registry


def empty_family(metric: Counted | Histogram | Scraped) -> Metric:
    match metric:
        case Histogram():
            return HistogramMetricFamily(metric.name, metric.text)
        case Scraped(kind="histogram"):
            return HistogramMetricFamily(metric.name, metric.text, labels=metric.label_names)
        case Counter() | Scraped(kind="counter"):
            return CounterMetricFamily(metric.name, metric.text, labels=metric.label_names)
        case _:
            return GaugeMetricFamily(metric.name, metric.text, labels=metric.label_names)


class _Exposition(Collector):
    def __init__(self, metrics: Metrics, view: Callable[[], NodeView]) -> None:
        self._metrics = metrics
        self._view = view

    def describe(self) -> Iterable[Metric]:
        """Nothing: no name is used twice."""
        return ()

    def collect(self) -> Iterator[Metric]:
        metrics = self._metrics
        yield InfoMetricFamily("gpuplugin_build", "Version of the plugin.", metrics.build)
        for metric in vars(metrics).values():
            if isinstance(metric, Counted):
                family = empty_family(metric)
                for labels, value in metric.samples():
                    family.add_sample(_sample_name(family), _named(metric, labels), value)
                yield family
            elif isinstance(metric, Histogram):
                yield _histogram(metric)
        yield from _calls(metrics)
        yield from _scraped(metrics, self._view(), time.monotonic())


def _sample_name(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def _named(metric: Counted | Scraped, labels: Sequence[str]) -> dict[str, str]:
    return dict(zip(metric.label_names, labels, strict=True))


def _histogram(histogram: Histogram) -> Metric:
    counts, sum_s = histogram.counts()
    family = HistogramMetricFamily(histogram.name, histogram.text)
    family.add_metric([], _buckets(histogram.bounds_s, counts), sum_s)
    return family


def _calls(metrics: Metrics) -> Iterator[Metric]:
    duration, in_flight = metrics.rpc_duration, metrics.rpc_in_flight
    seconds = HistogramMetricFamily(duration.name, duration.text, labels=duration.label_names)
    running = GaugeMetricFamily(in_flight.name, in_flight.text, labels=in_flight.label_names)
    for resource, stats in list(metrics.calls.items()):
        for calls in stats.calls():
            labels = [resource, calls.method, calls.code]
            seconds.add_metric(labels, _buckets(BOUNDS_S, calls.by_bucket), calls.seconds)
        for method, count in stats.running().items():
            running.add_metric([resource, method], count)
    yield seconds
    yield running


def _buckets(bounds_s: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Upper bounds with the counts of all that was within, as Prometheus adds them up."""
    names = (*map(repr, bounds_s), "+Inf")
    return [(le, float(sum_)) for le, sum_ in zip(names, accumulate(counts), strict=True)]


def _scraped(metrics: Metrics, view: NodeView, now_s: float) -> Iterator[Metric]:
    """What the node's view shows; metrics without a sample are left out."""
    families: dict[Scraped, Metric] = {}

    def add(metric: Scraped, labels: tuple[object, ...], value: float | None) -> None:
        if value is not None:
            family = families.get(metric)
            if family is None:
                family = families[metric] = empty_family(metric)
            texts = _named(metric, [str(label) for label in labels])
            family.add_sample(_sample_name(family), texts, float(value))

    _add_node(metrics, view, now_s, add)
    reading = view.reading_at(now_s)
    for what in SOURCES:
        add(metrics.visible, (what,), reading is not None and what not in reading.unseen)
    if reading is not None:
        _add_reading(metrics, view, reading, now_s, add)
    return iter(families.values())


def _add_node(metrics: Metrics, view: NodeView, now_s: float, add: Add) -> None:
    add(metrics.monitor_blind, (), bool(view.board.blind))
    healthy = view.healthy_devices()
    for resource in view.inventory.resources:
        name, good = resource.name, healthy[resource.name]
        add(metrics.devices, (name, "Healthy"), good)
        add(metrics.devices, (name, "Unhealthy"), len(resource.devices) - good)
    for uuid, health in view.board.units.items():
        for state in HealthState:
            labels = (uuid, view.index(uuid), state.value)
            add(metrics.gpu_health, labels, health.state is state)
    for gpu in view.gpus:
        if gpu.compute_mode is not None:
            add(metrics.gpu_compute_mode, (gpu.uuid, gpu.index, gpu.compute_mode.value), 1)
    for device, seconds in view.history.unhealthy_s(now_s).items():
        add(metrics.gpu_unhealthy_seconds, device, seconds)


def _add_reading(
    metrics: Metrics, view: NodeView, reading: Reading, now_s: float, add: Add
) -> None:
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
        if probe is not None and probe.reachable:
            add(metrics.gpu_row_remap, (*labels, "pending"), probe.row_remap_pending)
            add(metrics.gpu_row_remap, (*labels, "failed"), probe.row_remap_failed)
    _add_usage(metrics, reading.usage, add)


def _add_telemetry(
    metrics: Metrics, labels: tuple[object, ...], telemetry: Telemetry, add: Add
) -> None:
    add(metrics.gpu_utilization_ratio, labels, telemetry.utilization)
    add(metrics.gpu_memory_used_bytes, labels, telemetry.memory_used_bytes)
    add(metrics.gpu_memory_total_bytes, labels, telemetry.memory_total_bytes)
    add(metrics.gpu_temperature_celsius, labels, telemetry.temperature_c)
    add(metrics.gpu_power_watts, labels, telemetry.power_w)
    add(metrics.gpu_power_limit_watts, labels, telemetry.power_limit_w)
    for domain, mhz in (("sm", telemetry.sm_clock_mhz), ("memory", telemetry.memory_clock_mhz)):
        add(metrics.gpu_clock_hertz, (*labels, domain), None if mhz is None else mhz * _MHZ)
    for reason in ThrottleReason:
        name = str(reason.name).lower().replace("_", "-")
        add(metrics.gpu_throttled, (*labels, name), reason in telemetry.throttle_reasons)
    add(metrics.gpu_ecc_errors, (*labels, "corrected"), telemetry.corrected_ecc)
    add(metrics.gpu_ecc_errors, (*labels, "uncorrectable"), telemetry.uncorrectable_ecc)


def _add_usage(metrics: Metrics, usage: Usage, add: Add) -> None:
    for unit in usage.units:
        _add_unit(metrics, unit, add)
    for tenant in usage.tenants:
        _add_tenant(metrics, tenant, add)
    for use in usage.replicas:
        replica = "" if use.replica is None else use.replica
        pod = (use.pod.namespace, use.pod.name, use.container)
        add(metrics.replica_info, (use.resource, use.uuid, use.index, replica, *pod), 1)


def _add_unit(metrics: Metrics, unit: UnitUse, add: Add) -> None:
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


def _add_tenant(metrics: Metrics, tenant: TenantUse, add: Add) -> None:
    namespace, pod = (tenant.pod.namespace, tenant.pod.name) if tenant.pod else ("", "")
    labels = (tenant.uuid, tenant.index, namespace, pod, tenant.container)
    add(metrics.pod_replicas, labels, tenant.replicas)
    add(metrics.pod_processes, labels, tenant.processes)
    add(metrics.pod_memory_bytes, labels, tenant.memory_bytes)
    add(metrics.pod_memory_fair_share_bytes, labels, tenant.fair_memory_bytes)
    if tenant.memory_bytes is not None and tenant.fair_memory_bytes is not None:
        add(metrics.pod_memory_over_fair_share, labels, tenant.over_fair_share)
    add(metrics.pod_sm_ratio, labels, tenant.sm_share)
