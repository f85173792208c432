"""The one table of the metrics that the daemon exports; how they are exported: `exposition`."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING

from gpuplugin.daemon.http.series import Counter, Gauge, Histogram, Scraped
from gpuplugin.rpc.callstats import CallStats

if TYPE_CHECKING:
    from collections.abc import Callable

GPU = ("uuid", "gpu")
POD = ("uuid", "gpu", "namespace", "pod", "container")

PROBE_BUCKETS_S = (1e-3, 5e-3, 20e-3, 0.1, 0.5, 2.0, 10.0)


class Metrics:
    """Every metric; labels are bounded by GPUs, resources, Xids and the pods of the node.

    What is counted belongs to an instance; what is made at each scrape is declared on the class.
    """

    devices = Scraped("gpuplugin_devices", "Advertised devices, by health.", ("resource", "health"))
    gpu_health = Scraped(
        "gpuplugin_gpu_health",
        "1 for the health state of the GPU or MIG device, 0 for the other states.",
        (*GPU, "state"),
    )
    gpu_unhealthy_seconds = Scraped(
        "gpuplugin_gpu_unhealthy_seconds",
        "Time since the start during which the GPU or MIG device was not Healthy.",
        GPU,
        kind="counter",
    )
    monitor_blind = Scraped(
        "gpuplugin_monitor_blind",
        "1 while the GPUs cannot be watched; they are reported Unhealthy meanwhile.",
    )
    visible = Scraped(
        "gpuplugin_visible",
        "1 if the plugin can read it: pod-resources (which pod holds which replica), processes "
        "(the processes on the GPUs), pods (the pod of each process).",
        ("what",),
    )
    reading_age_seconds = Scraped(
        "gpuplugin_reading_age_seconds", "Age of the reading behind the GPU and pod metrics."
    )
    reading_duration_seconds = Scraped(
        "gpuplugin_reading_duration_seconds", "Duration of that reading."
    )
    gpu_info = Scraped(
        "gpuplugin_gpu_info",
        "1 for each listed GPU.",
        (*GPU, "product", "pci_bus_id", "numa_node", "driver"),
    )
    gpu_compute_mode = Scraped(
        "gpuplugin_gpu_compute_mode",
        "1 for the compute mode of the GPU; a shared one should be in default.",
        (*GPU, "mode"),
    )
    gpu_utilization_ratio = Scraped(
        "gpuplugin_gpu_utilization_ratio",
        "Share of the last sample period during which a kernel ran.",
        GPU,
    )
    gpu_memory_used_bytes = Scraped(
        "gpuplugin_gpu_memory_used_bytes", "Used memory, including the driver's own.", GPU
    )
    gpu_memory_total_bytes = Scraped("gpuplugin_gpu_memory_total_bytes", "Memory of the GPU.", GPU)
    gpu_temperature_celsius = Scraped(
        "gpuplugin_gpu_temperature_celsius", "Temperature of the GPU.", GPU
    )
    gpu_power_watts = Scraped("gpuplugin_gpu_power_watts", "Power draw of the board.", GPU)
    gpu_power_limit_watts = Scraped(
        "gpuplugin_gpu_power_limit_watts", "Power limit of the board.", GPU
    )
    gpu_energy_joules = Scraped(
        "gpuplugin_gpu_energy_joules",
        "Energy that the board drew since the driver was loaded or the GPU was reset.",
        GPU,
        kind="counter",
    )
    gpu_clock_hertz = Scraped(
        "gpuplugin_gpu_clock_hertz", "Clock of the domain sm or memory.", (*GPU, "domain")
    )
    gpu_throttled = Scraped(
        "gpuplugin_gpu_throttled",
        "1 while this reason keeps the clocks below the requested ones.",
        (*GPU, "reason"),
    )
    gpu_ecc_errors = Scraped(
        "gpuplugin_gpu_ecc_errors",
        "ECC errors since the driver was loaded or the GPU was reset.",
        (*GPU, "kind"),
        kind="counter",
    )
    gpu_row_remap = Scraped(
        "gpuplugin_gpu_row_remap",
        "1 if a row remapping waits for a reset (pending) or has failed (failed).",
        (*GPU, "state"),
    )
    gpu_replicas = Scraped(
        "gpuplugin_gpu_replicas", "Devices advertised for the GPU or MIG device.", GPU
    )
    gpu_replicas_allocated = Scraped(
        "gpuplugin_gpu_replicas_allocated", "Advertised devices that containers hold.", GPU
    )
    gpu_oversubscription_ratio = Scraped(
        "gpuplugin_gpu_oversubscription_ratio",
        "Devices that containers hold per physical device; above 1 it is shared.",
        GPU,
    )
    gpu_tenants = Scraped(
        "gpuplugin_gpu_tenants",
        "Pods, and processes outside of pods, with a context on the GPU or MIG device.",
        GPU,
    )
    gpu_contending_tenants = Scraped(
        "gpuplugin_gpu_contending_tenants",
        "Tenants whose kernels ran during the last sample period.",
        GPU,
    )
    gpu_memory_headroom_bytes = Scraped(
        "gpuplugin_gpu_memory_headroom_bytes",
        "Memory that programs can allocate; what the driver keeps is not free.",
        GPU,
    )
    gpu_fairness_ratio = Scraped(
        "gpuplugin_gpu_fairness_ratio",
        "Jain's index of the contending tenants' SM shares per replica: 1 if all are equal, 1/n "
        "if one has everything. From two contending tenants on.",
        GPU,
    )
    gpu_timeslicing_efficiency_ratio = Scraped(
        "gpuplugin_gpu_timeslicing_efficiency_ratio",
        "Share of the time during which a kernel ran while two or more tenants had work: 1 minus "
        "the time for switching and the time without work.",
        GPU,
    )
    gpu_timeslicing_gain_ratio = Scraped(
        "gpuplugin_gpu_timeslicing_gain_ratio",
        "Utilization with all tenants divided by that of the busiest one: 1 if sharing gains "
        "nothing. From two contending tenants on.",
        GPU,
    )
    pod_replicas = Scraped(
        "gpuplugin_pod_replicas", "Devices of the GPU or MIG device that the pod holds.", POD
    )
    pod_processes = Scraped(
        "gpuplugin_pod_processes", "Processes of the pod with a context there.", POD
    )
    pod_memory_bytes = Scraped(
        "gpuplugin_pod_memory_bytes", "Memory that the pod's processes use there.", POD
    )
    pod_memory_fair_share_bytes = Scraped(
        "gpuplugin_pod_memory_fair_share_bytes",
        "Memory multiplied by the pod's share of the advertised replicas.",
        POD,
    )
    pod_memory_over_fair_share = Scraped(
        "gpuplugin_pod_memory_over_fair_share",
        "1 while the pod uses more memory than its fair share.",
        POD,
    )
    pod_sm_ratio = Scraped(
        "gpuplugin_pod_sm_ratio",
        "Share of the last sample period during which the pod's kernels ran.",
        POD,
    )
    replica_info = Scraped(
        "gpuplugin_replica_info",
        "1 for each device that a container holds.",
        ("resource", *GPU, "replica", "namespace", "pod", "container"),
    )
    rpc_duration = Scraped(
        "gpuplugin_rpc_duration_seconds",
        "Duration of a handler, without the transport.",
        ("resource", "method", "code"),
        kind="histogram",
    )
    rpc_in_flight = Scraped("gpuplugin_rpc_in_flight", "Calls in progress.", ("resource", "method"))

    def __init__(self, version: str = "", backend: str = "") -> None:
        self.build = {"version": version, "backend": backend}
        self.calls: defaultdict[str, CallStats] = defaultdict(CallStats)
        """By resource; they outlive the sockets that it is served on."""
        self.start_time = Gauge(
            "gpuplugin_start_time_seconds", "Start time of the plugin, in seconds since the epoch."
        )
        self.start_time.set_to_current_time()
        self.xids = Counter(
            "gpuplugin_xid_events",
            "Xids that the driver reported, application errors included.",
            [*GPU, "xid", "action"],
        )
        self.ecc_errors = Counter(
            "gpuplugin_ecc_events", "ECC events that the driver reported.", [*GPU, "kind"]
        )
        self.health_transitions = Counter(
            "gpuplugin_gpu_health_transitions",
            "Changes of the health state of a GPU or MIG device, by cause.",
            [*GPU, "state", "cause", "xid", "action"],
        )
        self.list_updates = Counter(
            "gpuplugin_list_updates",
            "Device lists published, unchanged ones excluded.",
            ["resource"],
        )
        self.list_bytes = Gauge(
            "gpuplugin_list_bytes",
            "Size of the device list; the kubelet receives at most 4194304 bytes.",
            ["resource"],
        )
        self.streams = Gauge("gpuplugin_open_streams", "Open ListAndWatch streams.", ["resource"])
        self.kubelet_restarts = Counter(
            "gpuplugin_kubelet_restarts",
            "Streams that the kubelet ended while their socket was valid, as on its restart.",
            ["resource"],
        )
        self.registrations = Counter(
            "gpuplugin_registrations",
            "Registrations with the kubelet, by result.",
            ["resource", "mode", "result"],
        )
        self.socket_renewals = Counter(
            "gpuplugin_socket_renewals",
            "Sockets replaced because the old one had become useless, by reason.",
            ["resource", "reason"],
        )
        self.monitor_failures = Counter(
            "gpuplugin_monitor_failures",
            "Failed attempts to open the driver or to watch the GPUs.",
            ["stage"],
        )
        self.probe_seconds = Histogram(
            "gpuplugin_probe_duration_seconds", "Duration of a probe of a GPU.", PROBE_BUCKETS_S
        )
        self.config_reloads = Counter(
            "gpuplugin_config_reloads", "Reloads of a changed configuration, by result.", ["result"]
        )
        self.config_good = Gauge(
            "gpuplugin_config_last_reload_successful",
            "0 if the configuration file is invalid and the previous configuration stays in force.",
        )
        self.config_good_since = Gauge(
            "gpuplugin_config_last_good_timestamp_seconds",
            "Time at which the configuration in force was read, in seconds since the epoch.",
        )
        self.preferences = Counter(
            "gpuplugin_preferences",
            "Responses to GetPreferredAllocation, by the method that chose the devices.",
            ["resource", "method"],
        )
        self.task_restarts = Counter(
            "gpuplugin_task_restarts", "Restarts of failed tasks of the daemon.", ["task"]
        )
        self.node_reports = Counter(
            "gpuplugin_node_reports",
            "Events and node conditions for the API server: sent, failed (tried again), refused, "
            "dropped.",
            ["kind", "result"],
        )

        self.dra_claims = Counter(
            "gpuplugin_dra_claims",
            "Claims that the kubelet had prepared and unprepared, by result.",
            ["operation", "result"],
        )
        self.dra_prepared_claims = Gauge(
            "gpuplugin_dra_prepared_claims", "Claims that are prepared, or were begun to be."
        )
        self.dra_shares_out = Gauge(
            "gpuplugin_dra_shares_out",
            "Shares that claims hold, by device; an exclusive device counts as one.",
            ["device"],
        )
        self.dra_slice_writes = Counter(
            "gpuplugin_dra_slice_writes",
            "Writes of ResourceSlices to the API server, by result.",
            ["result"],
        )
        self.dra_devices_left_out = Gauge(
            "gpuplugin_dra_devices_left_out",
            "Devices that are in no ResourceSlice: a feature gate is off, or a device plugin "
            "offers the resource on this node.",
        )
        self.dra_devices_kept_shared = Gauge(
            "gpuplugin_dra_devices_kept_shared",
            "Devices that are configured as exclusive and stay shared until their shares are back.",
        )

    def forget_resource(self, resource: str) -> None:
        """The resource is served no more: its series end."""
        for metric in (
            self.list_updates,
            self.list_bytes,
            self.streams,
            self.kubelet_restarts,
            self.registrations,
            self.socket_renewals,
            self.preferences,
        ):
            metric.remove_by_labels({"resource": resource})
        self.calls.pop(resource, None)

    def forget_unit(self, uuid: str) -> None:
        """A GPU or MIG device is listed no more: its series end."""
        for metric in (self.xids, self.ecc_errors, self.health_transitions):
            metric.remove_by_labels({"uuid": uuid})

    def choices_of(self, resource: str) -> Callable[[str], None]:
        """A function that counts a choice of the resource by its method, in any thread."""
        # Each counter is found once: that takes longer than counting.
        inc_of = cache(lambda method: self.preferences.labels(resource, method).inc)
        return lambda method: inc_of(method)()
