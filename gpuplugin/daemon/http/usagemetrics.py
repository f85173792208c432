"""Series of what GPUs do and who uses them: made anew from the newest reading at each scrape.

So a pod that is gone, a GPU that does not answer and a reading that is too old leave no series
behind, and a scrape waits for no hardware. How readings are made is in `sampler`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gpuplugin.daemon.hardware.sampler import HOLDINGS, PODS, PROCESSES
from hal import ThrottleReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client.core import Metric

    from gpuplugin.core.usage import TenantUse, UnitUse, Usage
    from gpuplugin.daemon.hardware.sampler import Reading
    from gpuplugin.daemon.healthrecord import HealthRecord
    from gpuplugin.daemon.node import Node
    from hal import Telemetry

    Add: TypeAlias = Callable[[str, tuple[object, ...], float | None], None]

GPU = ("uuid", "gpu")
POD = ("uuid", "gpu", "namespace", "pod", "container")

_MHZ = 1_000_000


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name without `gpuplugin_`, labels and meaning."""

    name: str
    labels: tuple[str, ...]
    meaning: str
    kind: Literal["gauge", "counter"] = "gauge"

    def empty(self) -> GaugeMetricFamily | CounterMetricFamily:
        """The family without a sample."""
        made = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        return made(f"gpuplugin_{self.name}", self.meaning, labels=self.labels)


FAMILIES: tuple[Family, ...] = (
    Family(
        "visible",
        ("what",),
        "1 if the plugin sees it: pod-resources (which pod holds which replica), processes (who "
        "works on the GPUs), pods (which pod a process belongs to).",
    ),
    Family("reading_age_seconds", (), "Age of the reading that the series of GPUs come from."),
    Family("reading_duration_seconds", (), "How long that reading took."),
    Family(
        "gpu_info",
        (*GPU, "product", "pci_bus_id", "numa_node", "driver"),
        "1 for each GPU that is listed.",
    ),
    Family("gpu_utilization_ratio", GPU, "Share of the last sample in which a kernel ran."),
    Family("gpu_memory_used_bytes", GPU, "Memory in use, the driver's own included."),
    Family("gpu_memory_total_bytes", GPU, "Memory that the GPU has."),
    Family("gpu_temperature_celsius", GPU, "Temperature of the GPU."),
    Family("gpu_power_watts", GPU, "Power that the board draws."),
    Family("gpu_power_limit_watts", GPU, "Power that the board may draw."),
    Family("gpu_clock_hertz", (*GPU, "domain"), "Clock of the sm or the memory."),
    Family(
        "gpu_throttled",
        (*GPU, "reason"),
        "1 while the clocks are below what was asked for, for this reason.",
    ),
    Family(
        "gpu_ecc_errors",
        (*GPU, "kind"),
        "ECC errors since the driver was loaded or the GPU was reset.",
        "counter",
    ),
    Family(
        "gpu_row_remap",
        (*GPU, "state"),
        "1 if a row of memory waits for a reset to be remapped (pending) or could not be (failed).",
    ),
    Family(
        "gpu_unhealthy_seconds",
        GPU,
        "Time since the start in which the GPU or MIG device was not Healthy.",
        "counter",
    ),
    Family("gpu_replicas", GPU, "Devices that the GPU or MIG device is advertised as."),
    Family("gpu_replicas_allocated", GPU, "Of these, devices that containers hold."),
    Family(
        "gpu_oversubscription_ratio",
        GPU,
        "Devices that containers hold, per physical device: above 1 it is shared.",
    ),
    Family("gpu_tenants", GPU, "Pods, and processes in none, that have a context there."),
    Family(
        "gpu_contending_tenants",
        GPU,
        "Of these, tenants whose kernels ran in the last sample.",
    ),
    Family("gpu_memory_headroom_bytes", GPU, "Memory that is free."),
    Family(
        "gpu_fairness_ratio",
        GPU,
        "Jain's index of the contending tenants' SM shares per replica: 1 all alike, 1/n one has "
        "it all. From two on.",
    ),
    Family(
        "gpu_timeslicing_efficiency_ratio",
        GPU,
        "Share of the time in which a kernel ran while two or more tenants had work: 1 less what "
        "switching took, and less what nobody wanted.",
    ),
    Family(
        "gpu_timeslicing_gain_ratio",
        GPU,
        "Utilisation with all tenants over that of the busiest alone: 1 means that sharing brings "
        "nothing. From two contending tenants on.",
    ),
    Family("pod_replicas", POD, "Devices that the pod holds of this GPU or MIG device."),
    Family("pod_processes", POD, "Processes of the pod with a context there."),
    Family("pod_memory_bytes", POD, "Memory that the pod's processes use there."),
    Family(
        "pod_memory_fair_share_bytes",
        POD,
        "The memory times the pod's share of the advertised replicas.",
    ),
    Family("pod_memory_over_fair_share", POD, "1 while the pod uses more than that."),
    Family("pod_sm_ratio", POD, "Share of the last sample in which the pod's kernels ran."),
    Family(
        "replica_info",
        ("resource", "uuid", "gpu", "replica", "namespace", "pod", "container"),
        "1 for each device that a container holds.",
    ),
)


class UsageCollector(Collector):
    """Collects from the newest reading, and from what the node knows."""

    def __init__(
        self, reading: Callable[[], Reading | None], node: Node, record: HealthRecord
    ) -> None:
        self._reading = reading
        self._node = node
        self._record = record

    def describe(self) -> Iterable[Metric]:
        """The families, without samples."""
        return [family.empty() for family in FAMILIES]

    def collect(self) -> Iterator[Metric]:
        """The families that have samples now."""
        families = {family.name: family.empty() for family in FAMILIES}

        def add(name: str, labels: tuple[object, ...], value: float | None) -> None:
            if value is not None:
                families[name].add_metric([str(label) for label in labels], float(value))

        for (uuid, index), seconds in self._record.unhealthy_seconds().items():
            add("gpu_unhealthy_seconds", (uuid, index), seconds)
        reading = self._reading()
        for what in (HOLDINGS, PROCESSES, PODS):
            add("visible", (what,), reading is not None and what not in reading.unseen)
        if reading is not None:
            self._add_reading(reading, add)
        return (family for family in families.values() if family.samples)

    def _add_reading(self, reading: Reading, add: Add) -> None:
        add("reading_age_seconds", (), time.monotonic() - reading.at_s)
        add("reading_duration_seconds", (), reading.took_s)
        probes = self._node.probes
        for gpu in reading.gpus:
            labels = (gpu.uuid, gpu.index)
            numa = "" if gpu.numa_node is None else gpu.numa_node
            add("gpu_info", (*labels, gpu.product, gpu.pci_bus_id, numa, reading.driver), 1)
            if (telemetry := reading.telemetry.get(gpu.uuid)) is not None:
                _add_telemetry(labels, telemetry, add)
            probe = probes.get(gpu.uuid)
            if probe is not None and probe.reachable:
                add("gpu_row_remap", (*labels, "pending"), probe.row_remap_pending)
                add("gpu_row_remap", (*labels, "failed"), probe.row_remap_failed)
        _add_usage(reading.usage, add)


def _add_telemetry(labels: tuple[object, ...], telemetry: Telemetry, add: Add) -> None:
    add("gpu_utilization_ratio", labels, telemetry.utilization)
    add("gpu_memory_used_bytes", labels, telemetry.memory_used_bytes)
    add("gpu_memory_total_bytes", labels, telemetry.memory_total_bytes)
    add("gpu_temperature_celsius", labels, telemetry.temperature_c)
    add("gpu_power_watts", labels, telemetry.power_w)
    add("gpu_power_limit_watts", labels, telemetry.power_limit_w)
    for domain, mhz in (("sm", telemetry.sm_clock_mhz), ("memory", telemetry.memory_clock_mhz)):
        add("gpu_clock_hertz", (*labels, domain), None if mhz is None else mhz * _MHZ)
    for reason in ThrottleReason:
        name = str(reason.name).lower().replace("_", "-")
        add("gpu_throttled", (*labels, name), reason in telemetry.throttle_reasons)
    add("gpu_ecc_errors", (*labels, "corrected"), telemetry.corrected_ecc)
    add("gpu_ecc_errors", (*labels, "uncorrectable"), telemetry.uncorrectable_ecc)


def _add_usage(usage: Usage, add: Add) -> None:
    for unit in usage.units:
        _add_unit(unit, add)
    for tenant in usage.tenants:
        _add_tenant(tenant, add)
    for use in usage.replicas:
        replica = "" if use.replica is None else use.replica
        pod = (use.pod.namespace, use.pod.name, use.container)
        add("replica_info", (use.resource, use.uuid, use.index, replica, *pod), 1)


def _add_unit(unit: UnitUse, add: Add) -> None:
    values: Mapping[str, float | None] = {
        "gpu_replicas": unit.replicas,
        "gpu_replicas_allocated": unit.allocated,
        "gpu_oversubscription_ratio": unit.allocated,
        "gpu_tenants": unit.tenants,
        "gpu_contending_tenants": unit.contending,
        "gpu_memory_headroom_bytes": unit.free_bytes,
        "gpu_fairness_ratio": unit.fairness,
        "gpu_timeslicing_efficiency_ratio": unit.efficiency,
        "gpu_timeslicing_gain_ratio": unit.gain,
    }
    for name, value in values.items():
        add(name, (unit.uuid, unit.index), value)


def _add_tenant(tenant: TenantUse, add: Add) -> None:
    namespace, pod = (tenant.pod.namespace, tenant.pod.name) if tenant.pod else ("", "")
    labels = (tenant.uuid, tenant.index, namespace, pod, tenant.container)
    add("pod_replicas", labels, tenant.replicas)
    add("pod_processes", labels, tenant.processes)
    add("pod_memory_bytes", labels, tenant.memory_bytes)
    add("pod_memory_fair_share_bytes", labels, tenant.fair_memory_bytes)
    if tenant.memory_bytes is not None and tenant.fair_memory_bytes is not None:
        add("pod_memory_over_fair_share", labels, tenant.over_fair_share)
    add("pod_sm_ratio", labels, tenant.sm_share)
