"""The metrics of the daemon by name. How they are exported is in `exposition`."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from gpuplugin.daemon.http.series import Counter, Gauge, Histogram
from gpuplugin.rpc.callstats import CallStats

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from prometheus_client import CollectorRegistry
    from prometheus_client.registry import Collector

    from gpuplugin.daemon.http.series import Family

PROBE_BUCKETS_S = (1e-3, 5e-3, 20e-3, 0.1, 0.5, 2.0, 10.0)


class CallCounts:
    """The counts of each resource's calls; they outlive the sockets that it is served on."""

    def __init__(self) -> None:
        self.by_resource: dict[str, CallStats] = {}

    def of(self, resource: str) -> CallStats:
        """The counts of a resource's calls."""
        return self.by_resource.setdefault(resource, CallStats())

    def remove_by_labels(self, labels: Mapping[str, str]) -> None:
        """The counts of a resource end, which is given as `resource`."""
        self.by_resource.pop(labels["resource"], None)


class Metrics:
    """Every series that the daemon exports; labels are bounded by GPUs, resources and Xids."""

    def __init__(self, version: str = "", backend: str = "") -> None:
        self.build = {"version": version, "backend": backend}
        self.sources: list[Collector] = []
        """More series, which are made from what is known at each scrape."""
        self._registry: CollectorRegistry | None = None
        self.start_time = Gauge(
            "gpuplugin_start_time_seconds",
            "When the plugin was started; the time since is its age.",
        )
        self.start_time.set_to_current_time()
        self.calls = CallCounts()
        self.devices = Gauge(
            "gpuplugin_devices",
            "Devices by what the kubelet is told of them.",
            ["resource", "health"],
        )
        self.gpu_health = Gauge(
            "gpuplugin_gpu_health",
            "1 for the state that the GPU or MIG device is in, 0 for the others.",
            ["uuid", "gpu", "state"],
        )
        self.xids = Counter(
            "gpuplugin_xid_events",
            "Xids that the driver reported, application errors included.",
            ["uuid", "gpu", "xid", "action"],
        )
        self.ecc_errors = Counter(
            "gpuplugin_ecc_events",
            "ECC events that the driver reported.",
            ["uuid", "gpu", "kind"],
        )
        self.health_transitions = Counter(
            "gpuplugin_gpu_health_transitions",
            "Changes of the health state of a GPU or MIG device, with what caused them.",
            ["uuid", "gpu", "state", "cause", "xid", "action"],
        )
        self.list_updates = Counter(
            "gpuplugin_list_updates",
            "New device lists that were published; an unchanged list is not.",
            ["resource"],
        )
        self.list_bytes = Gauge(
            "gpuplugin_list_bytes",
            "Size of the device list; the kubelet receives at most 4194304 bytes.",
            ["resource"],
        )
        self.streams = Gauge(
            "gpuplugin_open_streams",
            "ListAndWatch streams that are open.",
            ["resource"],
        )
        self.kubelet_restarts = Counter(
            "gpuplugin_kubelet_restarts",
            "Streams that the kubelet ended while their socket was good, as when it restarts.",
            ["resource"],
        )
        self.registrations = Counter(
            "gpuplugin_registrations",
            "What came of registrations with the kubelet.",
            ["resource", "mode", "result"],
        )
        self.socket_renewals = Counter(
            "gpuplugin_socket_renewals",
            "New sockets that were made because the old one was of no use, by reason.",
            ["resource", "reason"],
        )
        self.monitor_failures = Counter(
            "gpuplugin_monitor_failures",
            "Failed attempts to open the driver or to watch the GPUs.",
            ["stage"],
        )
        self.probe_seconds = Histogram(
            "gpuplugin_probe_duration_seconds",
            "Time that the driver took to say whether a GPU can be used.",
            PROBE_BUCKETS_S,
        )
        self.monitor_blind = Gauge(
            "gpuplugin_monitor_blind",
            "1 while the GPUs cannot be watched and are reported Unhealthy for that.",
        )
        self.config_reloads = Counter(
            "gpuplugin_config_reloads",
            "Attempts to take over a changed configuration, by result.",
            ["result"],
        )
        self.config_good = Gauge(
            "gpuplugin_config_last_reload_successful",
            "0 while the configuration file is not the one in force, because it cannot be used.",
        )
        self.config_good_since = Gauge(
            "gpuplugin_config_last_good_timestamp_seconds",
            "When the configuration in force was read.",
        )
        self.preferences = Counter(
            "gpuplugin_preferences",
            "Choices of GetPreferredAllocation, by the method that found them.",
            ["resource", "method"],
        )
        self.task_restarts = Counter(
            "gpuplugin_task_restarts",
            "Tasks of the daemon that failed and were started again.",
            ["task"],
        )
        self.node_reports = Counter(
            "gpuplugin_node_reports",
            "Events and node conditions for the API server: sent, failed (tried again), refused, "
            "dropped.",
            ["kind", "result"],
        )

    @property
    def registry(self) -> CollectorRegistry:
        """What is scraped. The library is loaded by whoever asks first."""
        if self._registry is None:
            from gpuplugin.daemon.http.exposition import make_registry

            self._registry = make_registry(self)
        return self._registry

    @property
    def by_resource(self) -> tuple[Family | CallCounts, ...]:
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
