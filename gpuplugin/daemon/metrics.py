"""The metrics of the daemon, on a registry of their own. How they are served is in `http`."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from gpuplugin.daemon.callmetrics import CallMetrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client.metrics import MetricWrapperBase

PROBE_BUCKETS_S = (1e-3, 5e-3, 20e-3, 0.1, 0.5, 2.0, 10.0)


class Metrics:
    """Every series that the daemon exports; labels are bounded by GPUs, resources and Xids."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        registry = self.registry
        self.build = Info("gpuplugin_build", "Version of the plugin.", registry=registry)
        self.start_time = Gauge(
            "gpuplugin_start_time_seconds",
            "When the plugin was started; the time since is its age.",
            registry=registry,
        )
        self.start_time.set_to_current_time()
        self.calls = CallMetrics()
        registry.register(self.calls)
        self.devices = Gauge(
            "gpuplugin_devices",
            "Devices by what the kubelet is told of them.",
            ["resource", "health"],
            registry=registry,
        )
        self.gpu_health = Gauge(
            "gpuplugin_gpu_health",
            "1 for the state that the GPU or MIG device is in, 0 for the others.",
            ["uuid", "gpu", "state"],
            registry=registry,
        )
        self.xids = Counter(
            "gpuplugin_xid_events",
            "Xids that the driver reported, application errors included.",
            ["uuid", "gpu", "xid", "action"],
            registry=registry,
        )
        self.ecc_errors = Counter(
            "gpuplugin_ecc_events",
            "ECC events that the driver reported.",
            ["uuid", "gpu", "kind"],
            registry=registry,
        )
        self.health_transitions = Counter(
            "gpuplugin_gpu_health_transitions",
            "Changes of the health state of a GPU or MIG device, with what caused them.",
            ["uuid", "gpu", "state", "cause", "xid", "action"],
            registry=registry,
        )
        self.list_updates = Counter(
            "gpuplugin_list_updates",
            "New device lists that were published; an unchanged list is not.",
            ["resource"],
            registry=registry,
        )
        self.list_bytes = Gauge(
            "gpuplugin_list_bytes",
            "Size of the device list; the kubelet receives at most 4194304 bytes.",
            ["resource"],
            registry=registry,
        )
        self.streams = Gauge(
            "gpuplugin_open_streams",
            "ListAndWatch streams that are open.",
            ["resource"],
            registry=registry,
        )
        self.kubelet_restarts = Counter(
            "gpuplugin_kubelet_restarts",
            "Streams that the kubelet ended while their socket was good, as when it restarts.",
            ["resource"],
            registry=registry,
        )
        self.registrations = Counter(
            "gpuplugin_registrations",
            "What came of registrations with the kubelet.",
            ["resource", "mode", "result"],
            registry=registry,
        )
        self.socket_renewals = Counter(
            "gpuplugin_socket_renewals",
            "New sockets that were made because the old one was of no use, by reason.",
            ["resource", "reason"],
            registry=registry,
        )
        self.monitor_failures = Counter(
            "gpuplugin_monitor_failures",
            "Failed attempts to open the driver or to watch the GPUs.",
            ["stage"],
            registry=registry,
        )
        self.probe_seconds = Histogram(
            "gpuplugin_probe_duration_seconds",
            "Time that the driver took to say whether a GPU can be used.",
            buckets=PROBE_BUCKETS_S,
            registry=registry,
        )
        self.monitor_blind = Gauge(
            "gpuplugin_monitor_blind",
            "1 while the GPUs cannot be watched and are reported Unhealthy for that.",
            registry=registry,
        )
        self.config_reloads = Counter(
            "gpuplugin_config_reloads",
            "Attempts to take over a changed configuration, by result.",
            ["result"],
            registry=registry,
        )
        self.config_good = Gauge(
            "gpuplugin_config_last_reload_successful",
            "0 while the configuration file is not the one in force, because it cannot be used.",
            registry=registry,
        )
        self.config_good_since = Gauge(
            "gpuplugin_config_last_good_timestamp_seconds",
            "When the configuration in force was read.",
            registry=registry,
        )
        self.preferences = Counter(
            "gpuplugin_preferences",
            "Choices of GetPreferredAllocation, by the method that found them.",
            ["resource", "method"],
            registry=registry,
        )
        self.task_restarts = Counter(
            "gpuplugin_task_restarts",
            "Tasks of the daemon that failed and were started again.",
            ["task"],
            registry=registry,
        )
        self.node_reports = Counter(
            "gpuplugin_node_reports",
            "Events and node conditions for the API server: sent, failed (tried again), refused, "
            "dropped.",
            ["kind", "result"],
            registry=registry,
        )

    @property
    def by_resource(self) -> tuple[MetricWrapperBase | CallMetrics, ...]:
        """Everything that has the label `resource`."""
        return (
            self.calls,
            self.devices,
            self.list_updates,
            self.list_bytes,
            self.streams,
            self.kubelet_restarts,
            self.registrations,
            self.socket_renewals,
            self.preferences,
        )

    def choices_of(self, resource: str) -> Callable[[str], None]:
        """A function that counts a choice of the resource by its method, in any thread."""
        # Each counter is looked up once: that takes longer than to count.
        inc_of = cache(lambda method: self.preferences.labels(resource, method).inc)
        return lambda method: inc_of(method)()
