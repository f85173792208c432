"""For each alert: series over which it fires, and others; in promtool's notation.

`at` is when that is asked; a series has one value a minute from 0 on.
"""

from __future__ import annotations

from dataclasses import dataclass

GPU = 'cluster="c",instance="n1",uuid="GPU-0",gpu="0"'
OTHER_GPU = 'cluster="c",instance="n1",uuid="GPU-1",gpu="1"'
NODE = 'cluster="c",instance="n1"'


@dataclass(frozen=True)
class Case:
    """`bad` fires at `at`, `good` does not; `early` is before its `for` is over, if it has one."""

    bad: dict[str, str]
    good: dict[str, str]
    at: str = "30m"
    early: str = ""


def _gauge(
    name: str, labels: str, bad: str, good: str, *, at: str = "30m", early: str = ""
) -> Case:
    series = f"{name}{{{labels}}}"
    return Case({series: bad}, {series: good}, at, early)


_HEALTH = f'{GPU},state="Unhealthy"'
_ALLOCATE = f'{NODE},resource="r",method="Allocate"'


def _slow(up_to_50ms: str) -> dict[str, str]:
    """Nine calls a minute, of which so many took up to 50 ms, and all of them up to 250."""
    counts = {"0.05": up_to_50ms, "0.25": "0+9x60", "+Inf": "0+9x60"}
    return {
        f'gpuplugin_rpc_duration_seconds_bucket{{{_ALLOCATE},code="OK",le="{le}"}}': values
        for le, values in counts.items()
    }


def _answers(code: str, values: str) -> dict[str, str]:
    return {f'gpuplugin_rpc_duration_seconds_count{{{_ALLOCATE},code="{code}"}}': values}


CASES: dict[str, Case] = {
    "GpuUnhealthy": _gauge("gpuplugin_gpu_health", _HEALTH, "0 1x60", "0 1x2 0x60", early="4m"),
    "GpuNotHealthy": _gauge(
        "gpuplugin_gpu_health",
        f'{GPU},state="Healthy"',
        "1 0x90",
        "1 0x50 1 0x30",
        at="80m",
        early="55m",
    ),
    "GpuFlapping": _gauge(
        "gpuplugin_gpu_health_transitions_total",
        f'{_HEALTH},cause="xid",xid="74",action=""',
        "0 0+1x30",
        "0 1x60",
    ),
    "GpuPluginBlind": _gauge("gpuplugin_monitor_blind", NODE, "1x60", "0 1 0x60", early="1m"),
    "GpuRowRemapFailed": _gauge("gpuplugin_gpu_row_remap", f'{GPU},state="failed"', "1x60", "0x60"),
    "GpuApplicationErrors": _gauge(
        "gpuplugin_xid_events_total",
        f'{GPU},xid="31",action="restart-app"',
        "0+2x60",
        "0+0x20 5x40",
    ),
    "GpuPluginDown": _gauge(
        "up", 'job="monitoring/gpuplugin",instance="n1"', "0x60", "1 0 1x60", early="4m"
    ),
    "GpuPluginWithoutKubelet": _gauge(
        "gpuplugin_open_streams", f'{NODE},resource="r"', "0x60", "1 0x3 1x60", early="4m"
    ),
    "GpuPluginConfigRejected": _gauge(
        "gpuplugin_config_last_reload_successful", NODE, "0x60", "1 0 1x60", early="4m"
    ),
    "GpuPluginTasksRestart": _gauge(
        "gpuplugin_task_restarts_total", f'{NODE},task="monitor"', "0+1x60", "0 1x60"
    ),
    "GpuPluginKubeletRestarts": _gauge(
        "gpuplugin_kubelet_restarts_total", f'{NODE},resource="r"', "0+1x60", "0x20 1x40"
    ),
    "GpuAllocationErrors": Case(
        _answers("INVALID_ARGUMENT", "0x20 1x40"), _answers("OK", "0+9x60")
    ),
    "GpuAllocationSlow": Case(_slow("0x60"), _slow("0+9x60"), at="50m", early="10m"),
    "GpuClaimErrors": Case(
        {f'gpuplugin_dra_claims_total{{{NODE},operation="prepare",result="failed"}}': "0x20 1x40"},
        {f'gpuplugin_dra_claims_total{{{NODE},operation="prepare",result="ok"}}': "0+9x60"},
    ),
    "GpuDevicesNotOffered": _gauge(
        "gpuplugin_dra_devices_left_out", NODE, "3x60", "3x2 0x60", early="4m"
    ),
    "GpuMemoryOverFairShare": _gauge(
        "gpuplugin_pod_memory_over_fair_share",
        f'{GPU},namespace="ml",pod="trainer",container="main"',
        "1x60",
        "1x5 0x60",
        early="9m",
    ),
    "GpuMemoryAlmostFull": Case(
        {
            f"gpuplugin_gpu_memory_headroom_bytes{{{GPU}}}": "1x60",
            f"gpuplugin_gpu_memory_total_bytes{{{GPU}}}": "100x60",
            f"gpuplugin_gpu_replicas{{{GPU}}}": "10x60",
        },
        {
            f"gpuplugin_gpu_memory_headroom_bytes{{{GPU}}}": "40x60",
            f"gpuplugin_gpu_memory_total_bytes{{{GPU}}}": "100x60",
            f"gpuplugin_gpu_replicas{{{GPU}}}": "10x60",
            # One that a pod has for itself.
            f"gpuplugin_gpu_memory_headroom_bytes{{{OTHER_GPU}}}": "1x60",
            f"gpuplugin_gpu_memory_total_bytes{{{OTHER_GPU}}}": "100x60",
            f"gpuplugin_gpu_replicas{{{OTHER_GPU}}}": "1x60",
        },
        early="9m",
    ),
    "GpuSharingUnfair": _gauge(
        "gpuplugin_gpu_fairness_ratio", GPU, "0.3x90", "0.3x9 0.95x90", at="45m", early="29m"
    ),
}  # fmt: skip


def _fires(name: str, times: int, at: str) -> dict[str, object]:
    return {
        "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)',
        "eval_time": at,
        "exp_samples": [{"labels": "{}", "value": times}],
    }


def rule_tests() -> list[dict[str, object]]:
    """The cases as promtool takes them."""
    tests: list[dict[str, object]] = []
    for name, case in CASES.items():
        asked = [_fires(name, 1, case.at)]
        if case.early:
            asked.append(_fires(name, 0, case.early))
        for series, expected in ((case.bad, asked), (case.good, [_fires(name, 0, case.at)])):
            tests.append(
                {
                    "interval": "1m",
                    "input_series": [
                        {"series": one, "values": values} for one, values in series.items()
                    ],
                    "promql_expr_test": expected,
                }
            )
    return tests
