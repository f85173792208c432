"""Metrics of a simulated node over hours, as a Prometheus would have scraped them."""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sim.node.node import SimulatedNode
from sim.node.scenario import parse_scenario
from tests.observability.tools import promtool, serving_prometheus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.observability.tools import Prometheus

WORKING = 0.01


class Scrapes:
    """Samples by metric and labels, in the order of time."""

    def __init__(self) -> None:
        self._series: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(dict)

    def add(self, at_s: float, metric: str, value: float, **labels: str) -> None:
        told = ",".join(f'{name}="{text}"' for name, text in labels.items())
        self._series[metric].setdefault(told, []).append((at_s, value))

    def write(self, file: Path) -> None:
        with file.open("w") as stream:
            for metric, series in self._series.items():
                print(f"# TYPE {metric} gauge", file=stream)
                for labels, samples in series.items():
                    for at_s, value in samples:
                        print(f"{metric}{{{labels}}} {value} {at_s:.3f}", file=stream)
            print("# EOF", file=stream)


def scrape_node(
    scenario: str, until_s: float, length_s: float, step_s: float, replicas: int
) -> Scrapes:
    """`length_s` of a node up to `until_s`; a tenant is a pod of its own in the namespace ml."""
    node = SimulatedNode(parse_scenario(scenario, "scraped"))
    scrapes, at_s = Scrapes(), 0.0
    while at_s < length_s:
        at_s += step_s
        node.advance(at_s)
        _scrape(scrapes, node, until_s - length_s + at_s, replicas)
    return scrapes


def _scrape(scrapes: Scrapes, node: SimulatedNode, at_s: float, replicas: int) -> None:
    for gpu in node.present:
        uuid, reading, processes = gpu.identity.uuid, gpu.telemetry(node.now_s), gpu.processes()

        def gauge(name: str, value: float, uuid: str = uuid) -> None:
            scrapes.add(at_s, f"gpuplugin_gpu_{name}", value, uuid=uuid)

        gauge("replicas", replicas)
        gauge("replicas_allocated", len(processes))
        gauge("tenants", len(processes))
        gauge("contending_tenants", sum((one.sm_share or 0) >= WORKING for one in processes))
        gauge("utilization_ratio", reading.utilization or 0.0)
        gauge("memory_used_bytes", float(reading.memory_used_bytes or 0))
        gauge("memory_headroom_bytes", float(reading.memory_free_bytes or 0))
        for process in processes:
            labels = {"namespace": "ml", "pod": process.name, "uuid": uuid}
            scrapes.add(at_s, "gpuplugin_pod_sm_ratio", process.sm_share or 0.0, **labels)
            held = float(process.memory_bytes or 0)
            scrapes.add(at_s, "gpuplugin_pod_memory_bytes", held, **labels)


@contextmanager
def backfilled(folder: Path, scrapes: Scrapes) -> Iterator[Prometheus]:
    """A Prometheus with these samples."""
    text = folder / "metrics.txt"
    scrapes.write(text)
    command = ("tsdb", "create-blocks-from", "openmetrics", str(text), str(folder / "data"))
    made = promtool(*command)
    assert made.returncode == 0, made.stderr
    (folder / "prometheus.yml").write_text("{}")
    with serving_prometheus(folder) as server:
        yield server
