"""Series of GPUs and pods: how many there are, and that none outlives what it tells of."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from gpuplugin.core.inventory import GPU_RESOURCE, Plan, build_inventory
from gpuplugin.core.sharing import SharedResource, TimeSlicing
from gpuplugin.core.usage import Holding, PodName, Reading, Seen, Work, usage_of
from gpuplugin.daemon.http.exposition import families
from gpuplugin.daemon.http.metrics import Metrics
from gpuplugin.daemon.http.series import Scraped
from gpuplugin.daemon.http.textformat import TEXT, encoded
from hal import ComputeProcess, Gpu, Telemetry, ThrottleReason
from tests.unit.builders import EMPTY_VIEW

if TYPE_CHECKING:
    from prometheus_client import Metric

SCRAPED = [
    metric
    for metric in vars(Metrics).values()
    if isinstance(metric, Scraped) and not metric.name.startswith("gpuplugin_rpc_")
]
GPUS, REPLICAS, PODS = 8, 100, 110
GIB = 1024**3

GPU_LIST = tuple(
    Gpu(f"GPU-{n}", n, n, f"00000000:{n:02x}:00.0", 0, "NVIDIA X", 80 * GIB, (9, 0))
    for n in range(GPUS)
)
TELEMETRY = Telemetry(
    0.5,
    *(40 * GIB, 40 * GIB, 80 * GIB),
    *(50.0, 300.0, 400.0, 1234.5),
    *(1000, 1000),
    ThrottleReason.POWER_CAP,
    *(0, 0),
)


def a_reading(generation: int) -> Reading:
    """A node that is full of pods; no pod of one generation is in another."""
    inventory = build_inventory(
        GPU_LIST, Plan(sharing=TimeSlicing((SharedResource(GPU_RESOURCE, REPLICAS),)))
    )
    pods = [PodName(f"team-{n % 7}", f"pod-{generation}-{n}") for n in range(PODS)]
    holdings = [
        Holding(pod, "main", GPU_RESOURCE, tuple(f"GPU-{k % GPUS}::{k // GPUS}" for k in mine))
        for n, pod in enumerate(pods)
        if (mine := range(n, GPUS * REPLICAS, PODS))
    ]
    work = {
        gpu.uuid: [
            Work(gpu.uuid, ComputeProcess(1000 * n + gpu.index, "p", GIB, 0.01), pod)
            for n, pod in enumerate(pods)
        ]
        for gpu in GPU_LIST
    }
    telemetry = {gpu.uuid: TELEMETRY for gpu in GPU_LIST}
    usage = usage_of(Seen(GPU_LIST, inventory, holdings, telemetry, work))
    return Reading(time.monotonic(), 0.01, 15.0, "580.1", GPU_LIST, telemetry, usage)


class Churn:
    """What is exported of the reading of the day."""

    def __init__(self) -> None:
        self.reading: Reading | None = None
        self.metrics = Metrics()

    def families(self) -> list[Metric]:
        """Those that are made from the node's view."""
        ours = {metric.name for metric in SCRAPED}
        made = families(self.metrics, replace(EMPTY_VIEW, reading=self.reading))
        text = encoded(made, TEXT).decode()
        return [one for one in text_string_to_metric_families(text) if one.name in ours]

    def text(self) -> str:
        return "\n".join(
            f"{sample.name}{sample.labels} {sample.value}"
            for family in self.families()
            for sample in family.samples
        )


def test_a_full_node_with_churn_has_a_bounded_number_of_series() -> None:
    churn = Churn()
    counts, text = [], ""
    for generation in range(5):
        churn.reading = a_reading(generation)
        text = churn.text()
        assert f"pod-{generation}-0" in text
        assert f"pod-{generation - 1}-" not in text
        counts.append(len(text.splitlines()))
    assert len(set(counts)) == 1
    replicas = [line for line in text.splitlines() if line.startswith("gpuplugin_replica_info")]
    assert len(replicas) == GPUS * REPLICAS
    pods_on_gpus = len(churn.reading.usage.tenants) if churn.reading else 0
    assert counts[0] <= GPUS * REPLICAS + 6 * pods_on_gpus + GPUS * 40 + 10


def test_without_a_reading_there_is_only_what_is_not_seen() -> None:
    samples = {
        (sample.name, sample.value) for family in Churn().families() for sample in family.samples
    }
    assert samples == {("gpuplugin_visible", 0.0), ("gpuplugin_monitor_blind", 0.0)}


def test_every_family_can_have_samples_and_none_is_unknown() -> None:
    churn = Churn()
    churn.reading = a_reading(0)
    found = {family.name for family in churn.families()}
    known = {metric.name for metric in SCRAPED}
    assert found <= known
    assert known - found == {
        "gpuplugin_devices",
        "gpuplugin_gpu_compute_mode",
        "gpuplugin_gpu_health",
        "gpuplugin_gpu_row_remap",
        "gpuplugin_gpu_unhealthy_seconds",
    }
