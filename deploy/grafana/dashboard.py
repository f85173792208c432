"""Writes gpuplugin.json, the Grafana dashboard, beside this file: `python deploy/grafana/dashboard.py`.

A test keeps both in step. What a metric means is in docs/metrics.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

NODES = 'cluster=~"$cluster",instance=~"$node"'
GPUS = f'{NODES},gpu=~"$gpu"'
SCHEMA_VERSION = 39
"""Of Grafana 11; newer ones convert it."""


@dataclass(frozen=True)
class Query:
    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    title: str
    description: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    unit: str = "short"
    width: int = 12
    height: int = 8
    stacked: bool = False

    @property
    def most(self) -> float | None:
        """The top of the axis; shares that are not stacked end at 1."""
        return 1 if self.unit == "percentunit" and not self.stacked else None


GPU = "{{instance}} {{gpu}}"
POD = "{{namespace}}/{{pod}} on {{gpu}}"


def gpus(metric: str, legend: str = GPU) -> Query:
    return Query(f"{metric}{{{GPUS}}}", legend)


def increase(labels: str, metric: str, legend: str) -> Query:
    """How much a counter of the selected nodes grew, by labels."""
    return Query(f"sum by ({labels}) (increase({metric}{{{NODES}}}[$__rate_interval]))", legend)


def stat(title: str, description: str, expression: str, legend: str, unit: str = "short") -> Panel:
    queries = (Query(expression, legend),)
    return Panel(title, description, queries, kind="stat", unit=unit, width=4, height=4)


def panel(
    title: str,
    description: str,
    *queries: Query,
    kind: str = "timeseries",
    unit: str = "short",
    stacked: bool = False,
) -> Panel:
    return Panel(title, description, queries, kind=kind, unit=unit, stacked=stacked)


ROWS: dict[str, tuple[Panel, ...]] = {
    "Plugin": (
        stat(
            "Nodes that answer",
            "Plugins whose metrics could be read.",
            f"count(gpuplugin_build_info{{{NODES}}})",
            "nodes",
        ),
        stat(
            "GPUs healthy",
            "GPUs and MIG devices that are given to pods.",
            f'sum(gpuplugin_gpu_health{{{GPUS},state="Healthy"}})',
            "healthy",
        ),
        stat(
            "GPUs not healthy",
            "Unhealthy, or waiting for their quiet period.",
            f'sum(gpuplugin_gpu_health{{{GPUS},state!="Healthy"}})',
            "not healthy",
        ),
        stat(
            "Streams to the kubelet",
            "One for each resource of each node is right.",
            f"sum(gpuplugin_open_streams{{{NODES}}})",
            "streams",
        ),
        stat(
            "Configuration in force",
            "1: every node uses its file; 0: one keeps its last good configuration.",
            f"min(gpuplugin_config_last_reload_successful{{{NODES}}})",
            "in force",
        ),
        stat(
            "Up since",
            "When the youngest of the plugins was started.",
            f"max(gpuplugin_start_time_seconds{{{NODES}}}) * 1000",
            "start",
            unit="dateTimeFromNow",
        ),
        panel(
            "Restarts",
            "Restarts of the kubelet that the plugin saw, of its sockets and of its tasks.",
            increase("instance", "gpuplugin_kubelet_restarts_total", "kubelet {{instance}}"),
            increase(
                "instance, reason",
                "gpuplugin_socket_renewals_total",
                "socket {{instance}} {{reason}}",
            ),
            increase(
                "instance, task", "gpuplugin_task_restarts_total", "task {{instance}} {{task}}"
            ),
        ),
        panel(
            "Lists sent to the kubelet",
            "A new list is sent only when something changed.",
            increase(
                "instance, resource",
                "gpuplugin_list_updates_total",
                "{{instance}} {{resource}}",
            ),
        ),
    ),
    "Allocation": (
        panel(
            "Replicas: held and advertised",
            "What containers hold of each GPU, and what it is advertised as.",
            gpus("gpuplugin_gpu_replicas_allocated", "held {{instance}} {{gpu}}"),
            gpus("gpuplugin_gpu_replicas", "of {{instance}} {{gpu}}"),
        ),
        panel(
            "Devices by health",
            "The health of devices as sent to the kubelet.",
            Query(
                f"sum by (resource, health) (gpuplugin_devices{{{NODES}}})",
                "{{resource}} {{health}}",
            ),
            stacked=True,
        ),
        panel(
            "Latency of Allocate",
            "Time in the plugin, without the transport.",
            *(
                Query(
                    f"histogram_quantile({q}, sum by (le) (rate(gpuplugin_rpc_duration_seconds_bucket"
                    f'{{{NODES},method="Allocate"}}[$__rate_interval])))',
                    f"p{round(100 * q)}",
                )
                for q in (0.5, 0.99)
            ),
            unit="s",
        ),
        panel(
            "Calls",
            "By method and answer.",
            Query(
                f"sum by (method, code) (rate(gpuplugin_rpc_duration_seconds_count{{{NODES}}}[$__rate_interval]))",
                "{{method}} {{code}}",
            ),
            unit="reqps",
        ),
    ),
    "Time slicing: is it worth it?": (
        panel(
            "Efficiency",
            "Share of the time in which a kernel ran while two or more pods had work. "
            "The rest was lost to switching, or no pod needed it.",
            gpus("gpuplugin_gpu_timeslicing_efficiency_ratio"),
            unit="percentunit",
        ),
        panel(
            "Gain",
            "Utilisation with all pods over that of the busiest alone. 1: sharing brings nothing.",
            gpus("gpuplugin_gpu_timeslicing_gain_ratio"),
        ),
        panel(
            "Contention",
            "Pods with a context on the GPU, and pods whose kernels ran at the same time.",
            gpus("gpuplugin_gpu_contending_tenants", "at work {{instance}} {{gpu}}"),
            gpus("gpuplugin_gpu_tenants", "present {{instance}} {{gpu}}"),
        ),
        panel(
            "Fairness",
            "Jain's index of the shares of pods at work, per replica: 1 is all alike.",
            gpus("gpuplugin_gpu_fairness_ratio"),
            unit="percentunit",
        ),
    ),
    "Pods": (
        panel(
            "SM share by pod",
            "Share of the time in which the pod's kernels ran.",
            gpus("gpuplugin_pod_sm_ratio", POD),
            unit="percentunit",
            stacked=True,
        ),
        panel(
            "Memory by pod",
            "Time slicing does not divide memory: each takes what it gets.",
            gpus("gpuplugin_pod_memory_bytes", POD),
            unit="bytes",
            stacked=True,
        ),
        panel(
            "Over their fair share of memory",
            "Pods that have more than their replicas entitle them to, and by how much.",
            Query(
                f"gpuplugin_pod_memory_bytes{{{GPUS}}} - gpuplugin_pod_memory_fair_share_bytes{{{GPUS}}} > 0",
                POD,
            ),
            unit="bytes",
        ),
        panel(
            "Memory that is free",
            "What the next allocation can get.",
            gpus("gpuplugin_gpu_memory_headroom_bytes"),
            unit="bytes",
        ),
    ),
    "Health": (
        panel(
            "Health of each GPU",
            "Healthy, Recovering (waits for its quiet period) or Unhealthy.",
            Query(
                f'sum by (instance, gpu) (gpuplugin_gpu_health{{{GPUS},state="Recovering"}} + ignoring (state) '
                f'2 * gpuplugin_gpu_health{{{GPUS},state="Unhealthy"}})',
                GPU,
            ),
            kind="state-timeline",
        ),
        panel(
            "Xids",
            "Errors that the driver reported; those of applications included.",
            Query(
                # A series that just began has no increase, though its first value is one.
                "sum by (instance, gpu, xid, action) ("
                f"(gpuplugin_xid_events_total{{{GPUS}}} unless gpuplugin_xid_events_total{{{GPUS}}} offset $__rate_interval)"
                f" or increase(gpuplugin_xid_events_total{{{GPUS}}}[$__rate_interval]))",
                "{{instance}} {{gpu}} Xid {{xid}} {{action}}",
            ),
        ),
        panel(
            "Time out of use",
            "Share of the time in which a GPU was not Healthy.",
            Query(f"rate(gpuplugin_gpu_unhealthy_seconds_total{{{GPUS}}}[$__rate_interval])", GPU),
            unit="percentunit",
        ),
        panel(
            "Watching",
            "1: the GPUs cannot be watched and count as Unhealthy. Failed attempts beside it.",
            Query(f"gpuplugin_monitor_blind{{{NODES}}}", "blind {{instance}}"),
            increase(
                "instance, stage",
                "gpuplugin_monitor_failures_total",
                "failed {{instance}} {{stage}}",
            ),
        ),
    ),
    "Hardware": (
        panel(
            "Utilisation",
            "Share of the time in which a kernel ran.",
            gpus("gpuplugin_gpu_utilization_ratio"),
            unit="percentunit",
        ),
        panel(
            "Temperature",
            "Heat alone makes no GPU Unhealthy.",
            gpus("gpuplugin_gpu_temperature_celsius"),
            unit="celsius",
        ),
        panel("Power", "What the board draws.", gpus("gpuplugin_gpu_power_watts"), unit="watt"),
        panel(
            "Clocks",
            "Of the SMs.",
            Query(f'gpuplugin_gpu_clock_hertz{{{GPUS},domain="sm"}}', GPU),
            unit="hertz",
        ),
        panel(
            "Throttled",
            "1 while the clocks are held down for this reason; an idle GPU's are, too.",
            Query(
                f'gpuplugin_gpu_throttled{{{GPUS},reason!="idle"}}',
                "{{instance}} {{gpu}} {{reason}}",
            ),
        ),
        panel(
            "ECC errors",
            "Since the driver was loaded or the GPU was reset.",
            gpus("gpuplugin_gpu_ecc_errors_total", "{{instance}} {{gpu}} {{kind}}"),
        ),
    ),
}


def dashboard() -> dict[str, object]:
    return {
        "title": "gpuplugin: shared GPUs",
        "uid": "gpuplugin",
        "description": "Which pod uses which share of which GPU, and how the plugin is doing.",
        "tags": ["gpu", "kubernetes"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                _variable("cluster", "Cluster", "gpuplugin_build_info", "cluster"),
                _variable("node", "Node", 'gpuplugin_build_info{cluster=~"$cluster"}', "instance"),
                _variable("gpu", "GPU", f"gpuplugin_gpu_health{{{NODES}}}", "gpu"),
            ]
        },
        "panels": _panels(),
    }  # fmt: skip


def expressions() -> list[str]:
    return [query.expression for row in ROWS.values() for panel in row for query in panel.queries]


def _variable(name: str, label: str, series: str, value: str) -> dict[str, object]:
    query = f"label_values({series}, {value})"
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        "sort": 3,
    }


_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def _panels() -> list[dict[str, object]]:
    panels: list[dict[str, object]] = []
    top = 0
    for title, row in ROWS.items():
        panels.append(
            {
                "type": "row",
                "title": title,
                "id": len(panels) + 1,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": top, "w": 24, "h": 1},
            }
        )
        top += 1
        left = tallest = 0
        for panel in row:
            if left + panel.width > 24:
                left, top, tallest = 0, top + tallest, 0
            place = {"x": left, "y": top, "w": panel.width, "h": panel.height}
            panels.append(_panel(panel, len(panels) + 1, place))
            left, tallest = left + panel.width, max(tallest, panel.height)
        top += tallest
    return panels


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, object]:
    defaults: dict[str, object] = {"unit": panel.unit}
    if panel.most is not None:
        defaults |= {"min": 0, "max": panel.most}
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        defaults["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 25 if panel.stacked else 8,
            "stacking": stacking,
        }
    if panel.kind == "state-timeline":
        defaults["mappings"] = [
            {
                "type": "value",
                "options": {
                    "0": {"text": "Healthy", "color": "green"},
                    "1": {"text": "Recovering", "color": "orange"},
                    "2": {"text": "Unhealthy", "color": "red"},
                },
            }
        ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "id": number,
        "datasource": _DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {},
        "targets": [
            {
                "refId": chr(ord("A") + position),
                "datasource": _DATASOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
            }
            for position, query in enumerate(panel.queries)
        ],
    }


def text() -> str:
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("gpuplugin.json").write_text(text(), encoding="utf-8")
