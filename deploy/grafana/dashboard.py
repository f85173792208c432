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
    """A PromQL expression and how its series are named."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One picture; `width` of 24 columns."""

    title: str
    description: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    unit: str = "short"
    width: int = 12
    height: int = 8
    most: float | None = None
    stacked: bool = False


@dataclass(frozen=True)
class Row:
    """Panels under a headline."""

    title: str
    panels: tuple[Panel, ...]


ROWS = (
    Row(
        "Plugin",
        (
            Panel(
                "Nodes that answer",
                "Plugins whose metrics could be read.",
                (Query(f"count(gpuplugin_build_info{{{NODES}}})", "nodes"),),
                kind="stat",
                width=4,
                height=4,
            ),
            Panel(
                "GPUs healthy",
                "GPUs and MIG devices that are given to pods.",
                (Query(f'sum(gpuplugin_gpu_health{{{GPUS},state="Healthy"}})', "healthy"),),
                kind="stat",
                width=4,
                height=4,
            ),
            Panel(
                "GPUs not healthy",
                "Unhealthy, or waiting for their quiet period.",
                (Query(f'sum(gpuplugin_gpu_health{{{GPUS},state!="Healthy"}})', "not healthy"),),
                kind="stat",
                width=4,
                height=4,
            ),
            Panel(
                "Streams to the kubelet",
                "One for each resource of each node is right.",
                (Query(f"sum(gpuplugin_open_streams{{{NODES}}})", "streams"),),
                kind="stat",
                width=4,
                height=4,
            ),
            Panel(
                "Configuration in force",
                "1: every node uses its file; 0: one keeps its last good configuration.",
                (Query(f"min(gpuplugin_config_last_reload_successful{{{NODES}}})", "in force"),),
                kind="stat",
                width=4,
                height=4,
            ),
            Panel(
                "Up since",
                "When the youngest of the plugins was started.",
                (Query(f"max(gpuplugin_start_time_seconds{{{NODES}}}) * 1000", "start"),),
                kind="stat",
                unit="dateTimeFromNow",
                width=4,
                height=4,
            ),
            Panel(
                "Restarts",
                "Restarts of the kubelet that the plugin saw, of its sockets and of its tasks.",
                (
                    Query(
                        f"sum by (instance) (increase(gpuplugin_kubelet_restarts_total{{{NODES}}}[$__rate_interval]))",
                        "kubelet {{instance}}",
                    ),
                    Query(
                        f"sum by (instance, reason) (increase(gpuplugin_socket_renewals_total{{{NODES}}}[$__rate_interval]))",
                        "socket {{instance}} {{reason}}",
                    ),
                    Query(
                        f"sum by (instance, task) (increase(gpuplugin_task_restarts_total{{{NODES}}}[$__rate_interval]))",
                        "task {{instance}} {{task}}",
                    ),
                ),
            ),
            Panel(
                "Lists sent to the kubelet",
                "A new list is sent only when something changed.",
                (
                    Query(
                        f"sum by (instance, resource) (increase(gpuplugin_list_updates_total{{{NODES}}}[$__rate_interval]))",
                        "{{instance}} {{resource}}",
                    ),
                ),
            ),
        ),
    ),
    Row(
        "Allocation",
        (
            Panel(
                "Replicas: held and advertised",
                "What containers hold of each GPU, and what it is advertised as.",
                (
                    Query(
                        f"gpuplugin_gpu_replicas_allocated{{{GPUS}}}", "held {{instance}} {{gpu}}"
                    ),
                    Query(f"gpuplugin_gpu_replicas{{{GPUS}}}", "of {{instance}} {{gpu}}"),
                ),
            ),
            Panel(
                "Devices by health",
                "What the kubelet is told.",
                (
                    Query(
                        f"sum by (resource, health) (gpuplugin_devices{{{NODES}}})",
                        "{{resource}} {{health}}",
                    ),
                ),
                stacked=True,
            ),
            Panel(
                "Latency of Allocate",
                "Time in the plugin, without the transport.",
                tuple(
                    Query(
                        f"histogram_quantile({q}, sum by (le) (rate(gpuplugin_rpc_duration_seconds_bucket"
                        f'{{{NODES},method="Allocate"}}[$__rate_interval])))',
                        f"p{round(100 * q)}",
                    )
                    for q in (0.5, 0.99)
                ),
                unit="s",
            ),
            Panel(
                "Calls",
                "By method and answer.",
                (
                    Query(
                        f"sum by (method, code) (rate(gpuplugin_rpc_duration_seconds_count{{{NODES}}}[$__rate_interval]))",
                        "{{method}} {{code}}",
                    ),
                ),
                unit="reqps",
            ),
        ),
    ),
    Row(
        "Time slicing: is it worth it?",
        (
            Panel(
                "Efficiency",
                "Share of the time in which a kernel ran while two or more pods had work. What is missing went "
                "into switching, or nobody wanted it.",
                (
                    Query(
                        f"gpuplugin_gpu_timeslicing_efficiency_ratio{{{GPUS}}}",
                        "{{instance}} {{gpu}}",
                    ),
                ),
                unit="percentunit",
                most=1,
            ),
            Panel(
                "Gain",
                "Utilisation with all pods over that of the busiest alone. 1: sharing brings nothing.",
                (Query(f"gpuplugin_gpu_timeslicing_gain_ratio{{{GPUS}}}", "{{instance}} {{gpu}}"),),
            ),
            Panel(
                "Contention",
                "Pods with a context on the GPU, and pods whose kernels ran at the same time.",
                (
                    Query(
                        f"gpuplugin_gpu_contending_tenants{{{GPUS}}}",
                        "at work {{instance}} {{gpu}}",
                    ),
                    Query(f"gpuplugin_gpu_tenants{{{GPUS}}}", "present {{instance}} {{gpu}}"),
                ),
            ),
            Panel(
                "Fairness",
                "Jain's index of the shares of pods at work, per replica: 1 is all alike.",
                (Query(f"gpuplugin_gpu_fairness_ratio{{{GPUS}}}", "{{instance}} {{gpu}}"),),
                unit="percentunit",
                most=1,
            ),
        ),
    ),
    Row(
        "Pods",
        (
            Panel(
                "SM share by pod",
                "Share of the time in which the pod's kernels ran.",
                (Query(f"gpuplugin_pod_sm_ratio{{{GPUS}}}", "{{namespace}}/{{pod}} on {{gpu}}"),),
                unit="percentunit",
                stacked=True,
            ),
            Panel(
                "Memory by pod",
                "Time slicing does not divide memory: each takes what it gets.",
                (
                    Query(
                        f"gpuplugin_pod_memory_bytes{{{GPUS}}}", "{{namespace}}/{{pod}} on {{gpu}}"
                    ),
                ),
                unit="bytes",
                stacked=True,
            ),
            Panel(
                "Over their fair share of memory",
                "Pods that have more than their replicas entitle them to, and by how much.",
                (
                    Query(
                        f"gpuplugin_pod_memory_bytes{{{GPUS}}} - gpuplugin_pod_memory_fair_share_bytes{{{GPUS}}} > 0",
                        "{{namespace}}/{{pod}} on {{gpu}}",
                    ),
                ),
                unit="bytes",
            ),
            Panel(
                "Memory that is free",
                "What the next allocation can get.",
                (Query(f"gpuplugin_gpu_memory_headroom_bytes{{{GPUS}}}", "{{instance}} {{gpu}}"),),
                unit="bytes",
            ),
        ),
    ),
    Row(
        "Health",
        (
            Panel(
                "Health of each GPU",
                "Healthy, Recovering (waits for its quiet period) or Unhealthy.",
                (
                    Query(
                        f'sum by (instance, gpu) (gpuplugin_gpu_health{{{GPUS},state="Recovering"}} + ignoring (state) '
                        f'2 * gpuplugin_gpu_health{{{GPUS},state="Unhealthy"}})',
                        "{{instance}} {{gpu}}",
                    ),
                ),
                kind="state-timeline",
            ),
            Panel(
                "Xids",
                "Errors that the driver reported; those of applications included.",
                (
                    Query(
                        # A series that just began has no increase, though its first value is one.
                        "sum by (instance, gpu, xid, action) ("
                        f"(gpuplugin_xid_events_total{{{GPUS}}} unless gpuplugin_xid_events_total{{{GPUS}}} offset $__rate_interval)"
                        f" or increase(gpuplugin_xid_events_total{{{GPUS}}}[$__rate_interval]))",
                        "{{instance}} {{gpu}} Xid {{xid}} {{action}}",
                    ),
                ),
            ),
            Panel(
                "Time out of use",
                "Share of the time in which a GPU was not Healthy.",
                (
                    Query(
                        f"rate(gpuplugin_gpu_unhealthy_seconds_total{{{GPUS}}}[$__rate_interval])",
                        "{{instance}} {{gpu}}",
                    ),
                ),
                unit="percentunit",
                most=1,
            ),
            Panel(
                "Watching",
                "1: the GPUs cannot be watched and count as Unhealthy. Failed attempts beside it.",
                (
                    Query(f"gpuplugin_monitor_blind{{{NODES}}}", "blind {{instance}}"),
                    Query(
                        f"sum by (instance, stage) (increase(gpuplugin_monitor_failures_total{{{NODES}}}[$__rate_interval]))",
                        "failed {{instance}} {{stage}}",
                    ),
                ),
            ),
        ),
    ),
    Row(
        "Hardware",
        (
            Panel(
                "Utilisation",
                "Share of the time in which a kernel ran.",
                (Query(f"gpuplugin_gpu_utilization_ratio{{{GPUS}}}", "{{instance}} {{gpu}}"),),
                unit="percentunit",
                most=1,
            ),
            Panel(
                "Temperature",
                "Heat alone makes no GPU Unhealthy.",
                (Query(f"gpuplugin_gpu_temperature_celsius{{{GPUS}}}", "{{instance}} {{gpu}}"),),
                unit="celsius",
            ),
            Panel(
                "Power",
                "What the board draws.",
                (Query(f"gpuplugin_gpu_power_watts{{{GPUS}}}", "{{instance}} {{gpu}}"),),
                unit="watt",
            ),
            Panel(
                "Clocks",
                "Of the SMs.",
                (
                    Query(
                        f'gpuplugin_gpu_clock_hertz{{{GPUS},domain="sm"}}', "{{instance}} {{gpu}}"
                    ),
                ),
                unit="hertz",
            ),
            Panel(
                "Throttled",
                "1 while the clocks are held down for this reason; an idle GPU's are, too.",
                (
                    Query(
                        f'gpuplugin_gpu_throttled{{{GPUS},reason!="idle"}}',
                        "{{instance}} {{gpu}} {{reason}}",
                    ),
                ),
            ),
            Panel(
                "ECC errors",
                "Since the driver was loaded or the GPU was reset.",
                (
                    Query(
                        f"gpuplugin_gpu_ecc_errors_total{{{GPUS}}}", "{{instance}} {{gpu}} {{kind}}"
                    ),
                ),
            ),
        ),
    ),
)


def dashboard() -> dict[str, object]:
    """The dashboard as Grafana imports it."""
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
    """Every PromQL expression, variables of Grafana included."""
    return [query.expression for row in ROWS for panel in row.panels for query in panel.queries]


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
    for row in ROWS:
        panels.append(
            {
                "type": "row",
                "title": row.title,
                "id": len(panels) + 1,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": top, "w": 24, "h": 1},
            }
        )
        top += 1
        left = tallest = 0
        for panel in row.panels:
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
    """The file's text."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("gpuplugin.json").write_text(text(), encoding="utf-8")
