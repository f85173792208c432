"""Writes gpuplugin.json, the Grafana dashboard, beside this file: `python deploy/grafana/dashboard.py`.

A test keeps both in step. What a metric means is in docs/metrics.md. The builders are Grafana's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from grafana_foundation_sdk.builders import stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders.common import (
    ReduceDataOptions,
    StackingConfig,
    VizLegendOptions,
)
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableHide,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

if TYPE_CHECKING:
    from collections.abc import Iterable

    from grafana_foundation_sdk.cog.builder import Builder
    from grafana_foundation_sdk.models.dashboard import Panel

NODES = 'cluster=~"$cluster",instance=~"$node"'
GPUS = f'{NODES},gpu=~"$gpu"'
PODS = f'{GPUS},namespace=~"$namespace",pod=~"$pod"'
GPU = "{{instance}} GPU {{gpu}}"
POD = "{{namespace}}/{{pod}} on GPU {{gpu}}"
NEEDS_PODS = "Needs the component pod-metrics"
DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, ORANGE, RED = "green", "orange", "red"
_P = TypeVar("_P", stat.Panel, statetimeline.Panel, table.Panel, timeseries.Panel)


CALLS_FOR_PODS = 'method=~"Allocate|NodePrepareResources"'
"""What the kubelet calls before a pod with GPUs starts, by either way of allocation."""


def query(expression: str, legend: str, *, at_once: bool = False) -> Dataquery:
    """A query over the time range; `at_once` is for its end alone, as a table's column."""
    made = Dataquery().datasource(DATASOURCE).expr(expression)
    if at_once:
        return made.instant().format(PromQueryFormat.TABLE).ref_id(legend)
    return made.range().legend_format(legend)


def increase(labels: str, metric: str, legend: str) -> Dataquery:
    """How much a counter of the selected nodes grew, by labels."""
    return query(f"sum by ({labels}) (increase({metric}{{{NODES}}}[$__rate_interval]))", legend)


def described(panel: _P, title: str, text: str, queries: Iterable[Dataquery]) -> _P:
    panel.title(title).description(text).datasource(DATASOURCE)
    for number, one in enumerate(queries):
        if not one._internal.ref_id:  # noqa: SLF001 - the builder has no way to read it
            one.ref_id(chr(ord("A") + number))
        panel.with_target(one)
    return panel


def number(
    title: str, text: str, expression: str, *steps: tuple[float | None, str], unit: str = "short"
) -> stat.Panel:
    """One number; it has the colour of the last step that is not above it."""
    thresholds = ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE)
    thresholds.steps([Threshold(value=value, color=colour) for value, colour in steps])
    panel = described(stat.Panel(), title, text, [query(expression, title)])
    return (
        panel.height(5)
        .span(4)
        .unit(unit)
        .thresholds(thresholds)
        .color_mode(BigValueColorMode.BACKGROUND)
        .graph_mode(BigValueGraphMode.NONE)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
    )


def lines(
    title: str,
    text: str,
    *queries: Dataquery,
    unit: str = "short",
    stacked: bool = False,
    of_pods: bool = False,
) -> timeseries.Panel:
    """Lines over time; the axis of shares ends at 100 %, unless they are stacked."""
    legend = VizLegendOptions().show_legend(True).display_mode(LegendDisplayMode.TABLE)
    legend.placement(LegendPlacement.BOTTOM).calcs(["lastNotNull", "max"])
    panel = described(timeseries.Panel(), title, text, queries)
    panel.height(9).span(12).unit(unit).min(0).legend(legend).line_width(1)
    panel.fill_opacity(25 if stacked else 8)
    if stacked:
        panel.stacking(StackingConfig().mode(StackingMode.NORMAL).group("A"))
    elif unit == "percentunit":
        panel.max(1)
    return panel.no_value(NEEDS_PODS) if of_pods else panel


FIRST = (
    number(
        "GPUs that pods can use",
        "Healthy GPUs and MIG devices.",
        f'sum(gpuplugin_gpu_health{{{GPUS},state="Healthy"}})',
        (None, RED), (1, GREEN),
    ),
    number(
        "GPUs not healthy",
        "Unhealthy, or waiting for their quiet period: the row Health has the reason.",
        f'sum(gpuplugin_gpu_health{{{GPUS},state!="Healthy"}})',
        (None, GREEN), (1, RED),
    ),
    number(
        "Nodes that cannot be watched",
        "Their GPUs count as Unhealthy until the driver responds.",
        f"sum(gpuplugin_monitor_blind{{{NODES}}})",
        (None, GREEN), (1, RED),
    ),
    number(
        "Replicas that are free",
        "At 0 the next pod waits. Needs the component pod-metrics.",
        f"sum(gpuplugin_gpu_replicas{{{GPUS}}} - gpuplugin_gpu_replicas_allocated{{{GPUS}}})",
        (None, RED), (1, GREEN),
    ).no_value(NEEDS_PODS),
    number(
        "Pods at work on the busiest GPU",
        "So many take turns: each may be that many times slower than alone.",
        f"max(gpuplugin_gpu_contending_tenants{{{GPUS}}})",
        (None, GREEN), (3, ORANGE), (6, RED),
    ),
    number(
        "Gain of sharing",
        "Utilisation of shared GPUs over that of their busiest pod alone, on average. At 1 sharing "
        "brings nothing: pods only wait for each other. Empty while no two pods are at work.",
        f"avg(gpuplugin_gpu_timeslicing_gain_ratio{{{GPUS}}})",
        (None, ORANGE), (1.1, GREEN),
    ).decimals(2).no_value("not shared now"),
)  # fmt: skip

COLUMNS = {
    "SM": f"gpuplugin_pod_sm_ratio{{{PODS}}}",
    "Memory": f"gpuplugin_pod_memory_bytes{{{PODS}}}",
    "Fair share": f"gpuplugin_pod_memory_fair_share_bytes{{{PODS}}}",
    "Replicas": f"gpuplugin_pod_replicas{{{PODS}}}",
}
"""Of the table of pods, beside the labels that name them."""


def pods() -> table.Panel:
    hidden = ("Time", "__name__", "uuid", "job", "endpoint", "service", "prometheus")
    names = {"instance": "Node", "gpu": "GPU", "namespace": "Namespace", "pod": "Pod"}
    names |= {"container": "Container", "cluster": "Cluster"}
    renamed = names | {f"Value #{column}": column for column in COLUMNS}
    order = {name: position for position, name in enumerate(renamed)}
    panel = described(
        table.Panel(),
        "Pods",
        "What each pod has of its GPU now. Over its fair share of memory it takes what others need.",
        [query(expression, column, at_once=True) for column, expression in COLUMNS.items()],
    )
    panel.height(9).span(24).no_value(NEEDS_PODS)
    panel.with_transformation(DataTransformerConfig(id_val="merge", options={}))
    panel.with_transformation(
        DataTransformerConfig(
            id_val="organize",
            options={
                "excludeByName": dict.fromkeys(hidden, True),
                "renameByName": renamed,
                "indexByName": order,
            },
        )
    )
    for column, unit in {"SM": "percentunit", "Memory": "bytes", "Fair share": "bytes"}.items():
        panel.override_by_name(column, [DynamicConfigValue(id_val="unit", value=unit)])
    return panel


def health() -> statetimeline.Panel:
    states = (("Healthy", GREEN), ("Recovering", ORANGE), ("Unhealthy", RED))
    results = {
        str(value): ValueMappingResult(text=text, color=colour, index=value)
        for value, (text, colour) in enumerate(states)
    }
    panel = described(
        statetimeline.Panel(),
        "Health of each GPU",
        "Healthy, Recovering (waits for its quiet period) or Unhealthy.",
        [
            query(
                "sum by (instance, gpu) ("
                f'gpuplugin_gpu_health{{{GPUS},state="Recovering"}} + ignoring (state) '
                f'2 * gpuplugin_gpu_health{{{GPUS},state="Unhealthy"}})',
                GPU,
            )
        ],
    )
    return panel.height(9).span(24).mappings([ValueMap(options=results)])


ROWS: dict[str, tuple[Builder[Panel], ...]] = {
    "Who uses which GPU": (
        pods(),
        lines(
            "SM share by pod",
            "Share of the time in which the pod's kernels ran.",
            query(f"gpuplugin_pod_sm_ratio{{{PODS}}}", POD),
            unit="percentunit",
            stacked=True,
            of_pods=True,
        ),
        lines(
            "Memory by pod",
            "Time slicing does not divide memory: each takes what it gets.",
            query(f"gpuplugin_pod_memory_bytes{{{PODS}}}", POD),
            unit="bytes",
            stacked=True,
            of_pods=True,
        ),
        lines(
            "Replicas: held and advertised",
            "What containers hold of each GPU, and what it is advertised as.",
            query(f"gpuplugin_gpu_replicas_allocated{{{GPUS}}}", f"held, {GPU}"),
            query(f"gpuplugin_gpu_replicas{{{GPUS}}}", f"advertised, {GPU}"),
        ),
        lines(
            "Memory that is free",
            "What the next allocation of a program can get.",
            query(f"gpuplugin_gpu_memory_headroom_bytes{{{GPUS}}}", GPU),
            unit="bytes",
        ),
    ),
    "Is sharing worth it?": (
        lines(
            "Contention",
            "Pods with a context on the GPU, and pods whose kernels ran at the same time.",
            query(f"gpuplugin_gpu_contending_tenants{{{GPUS}}}", f"at work, {GPU}"),
            query(f"gpuplugin_gpu_tenants{{{GPUS}}}", f"present, {GPU}"),
        ),
        lines(
            "Gain",
            "Utilisation with all pods over that of the busiest alone. 1: sharing brings nothing.",
            query(f"gpuplugin_gpu_timeslicing_gain_ratio{{{GPUS}}}", GPU),
        ),
        lines(
            "Efficiency",
            "Share of the time in which a kernel ran while two or more pods had work. "
            "The rest was lost to switching, or no pod needed it.",
            query(f"gpuplugin_gpu_timeslicing_efficiency_ratio{{{GPUS}}}", GPU),
            unit="percentunit",
        ),
        lines(
            "Fairness",
            "Jain's index of the shares of pods at work, per replica: 100 % is all alike.",
            query(f"gpuplugin_gpu_fairness_ratio{{{GPUS}}}", GPU),
            unit="percentunit",
        ),
    ),
    "Health": (
        health(),
        lines(
            "Xids",
            "Errors that the driver reported; those of applications included.",
            query(
                # A series that just began has no increase, though its first value is one.
                "sum by (instance, gpu, xid, action) ("
                f"(gpuplugin_xid_events_total{{{GPUS}}} unless "
                f"gpuplugin_xid_events_total{{{GPUS}}} offset $__rate_interval)"
                f" or increase(gpuplugin_xid_events_total{{{GPUS}}}[$__rate_interval]))",
                f"{GPU}: Xid {{{{xid}}}}, {{{{action}}}}",
            ),
        ),
        lines(
            "ECC errors",
            "Since the driver was loaded or the GPU was reset.",
            query(f"gpuplugin_gpu_ecc_errors_total{{{GPUS}}}", f"{GPU}, {{{{kind}}}}"),
        ),
        lines(
            "Time out of use",
            "Share of the time in which a GPU was not Healthy.",
            query(f"rate(gpuplugin_gpu_unhealthy_seconds_total{{{GPUS}}}[$__rate_interval])", GPU),
            unit="percentunit",
        ),
        lines(
            "Throttled",
            "1 while the clocks are held down for this reason; an idle GPU's are, too.",
            query(f'gpuplugin_gpu_throttled{{{GPUS},reason!="idle"}}', f"{GPU}: {{{{reason}}}}"),
        ),
    ),
    "Hardware": (
        lines(
            "Utilisation",
            "Share of the time in which a kernel ran.",
            query(f"gpuplugin_gpu_utilization_ratio{{{GPUS}}}", GPU),
            unit="percentunit",
        ),
        lines(
            "Temperature",
            "Heat alone makes no GPU Unhealthy.",
            query(f"gpuplugin_gpu_temperature_celsius{{{GPUS}}}", GPU),
            unit="celsius",
        ),
        lines(
            "Power",
            "What the board draws.",
            query(f"gpuplugin_gpu_power_watts{{{GPUS}}}", GPU),
            unit="watt",
        ),
        lines(
            "Clock of the SMs",
            "Lower under a power cap or heat: see Throttled.",
            query(f'gpuplugin_gpu_clock_hertz{{{GPUS},domain="sm"}}', GPU),
            unit="hertz",
        ),
    ),
    "Plugin": (
        lines(
            "Calls for pods",
            "Allocate, or with DRA the preparing of claims, by response. A call that fails is a pod "
            "that fails, or with DRA one that waits.",
            query(
                "sum by (method, code) (rate(gpuplugin_rpc_duration_seconds_count"
                f"{{{NODES},{CALLS_FOR_PODS}}}[$__rate_interval]))",
                "{{method}} {{code}}",
            ),
            unit="reqps",
        ),
        lines(
            "Latency of calls for pods",
            "Allocate, or NodePrepareResources with DRA: time in the plugin, without the transport.",
            *(
                query(
                    f"histogram_quantile({quantile}, sum by (le) (rate("
                    "gpuplugin_rpc_duration_seconds_bucket"
                    f"{{{NODES},{CALLS_FOR_PODS}}}[$__rate_interval])))",
                    f"p{round(100 * quantile)}",
                )
                for quantile in (0.5, 0.99)
            ),
            unit="s",
        ),
        lines(
            "Restarts",
            "Of the kubelet as the plugin saw them, of its sockets and of its tasks.",
            increase("instance", "gpuplugin_kubelet_restarts_total", "kubelet, {{instance}}"),
            increase(
                "instance, reason",
                "gpuplugin_socket_renewals_total",
                "socket, {{instance}}: {{reason}}",
            ),
            increase("instance, task", "gpuplugin_task_restarts_total", "{{task}}, {{instance}}"),
        ),
        lines(
            "Configuration in force",
            "1: the node uses its file. 0: the file is invalid, the last good one stays in force.",
            query(f"gpuplugin_config_last_reload_successful{{{NODES}}}", "{{instance}}"),
        ),
    ),
}


def variable(name: str, label: str, series: str, value: str) -> QueryVariable:
    every = VariableOption(text="All", value="$__all", selected=True)
    made = QueryVariable(name).label(label).datasource(DATASOURCE).hide(VariableHide.DONT_HIDE)
    made.query(f"label_values({series}, {value})").refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    return (
        made.include_all(True)
        .all_value(".*")
        .multi(True)
        .current(every)
        .sort(VariableSort.NUMERICAL_ASC)
    )


def dashboard() -> Dashboard:
    made = Dashboard("gpuplugin: shared GPUs").uid("gpuplugin").tags(["gpu", "kubernetes"])
    made.description("Which pod uses which share of which GPU, and how the plugin is doing.")
    made.editable().refresh("10s").time("now-1h", "now").variables(
        [
            DatasourceVariable("datasource").label("Data source").type("prometheus"),
            variable("cluster", "Cluster", "gpuplugin_build_info", "cluster"),
            variable("node", "Node", 'gpuplugin_build_info{cluster=~"$cluster"}', "instance"),
            variable("gpu", "GPU", f"gpuplugin_gpu_health{{{NODES}}}", "gpu"),
            variable("namespace", "Namespace", f"gpuplugin_pod_replicas{{{GPUS}}}", "namespace"),
            variable(
                "pod", "Pod", f'gpuplugin_pod_replicas{{{GPUS},namespace=~"$namespace"}}', "pod"
            ),
        ]
    )  # fmt: skip
    for panel in FIRST:
        made.with_panel(panel)
    for title, panels in ROWS.items():
        made.with_row(Row(title))
        for panel in panels:
            made.with_panel(panel)
    return made


def expressions() -> list[str]:
    """What the panels ask Prometheus, in their order."""
    shown = json.loads(text())["panels"]
    return [target["expr"] for panel in shown for target in panel.get("targets", ())]


def text() -> str:
    return json.dumps(dashboard().build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("gpuplugin.json").write_text(text(), encoding="utf-8")
