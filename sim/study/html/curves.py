"""Plots over the whole run: memory, utilisation, temperature, clocks, and health."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from hal import GIB
from sim.study.html.charts import (
    GPU_COLOURS,
    NEUTRAL,
    OTHERS,
    Chart,
    Colours,
    TimeAxis,
    and_left_out,
    lanes,
    legend_of,
    line,
    plot,
)
from sim.study.report import kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sim.study.runreport import RunReport
    from sim.virtual.run import GpuNotes, HealthChange, Outcome, Sample

GPUS_WITH_MEMORY = 4
LINES = 32
MOST_COLOURS = 6
"""With more lines only two of them have a colour."""
TENANTS_STACKED = 10
LANES_OF_HEALTH = 16
_PPM = 1_000_000
_STATES = {"Healthy": "#2ba67a", "Recovering": "#e0b400", "Unhealthy": "#d64545"}


@dataclass(frozen=True, slots=True)
class Curves:
    """The run, and what its plots need; `labels` name the GPUs in the order of the outcome."""

    outcome: Outcome
    report: RunReport
    labels: Sequence[str]
    colours: Colours

    def charts(self) -> list[Chart]:
        return [*self._memory(), *self._lines(), self._health()]

    @property
    def _gpus(self) -> list[tuple[GpuNotes, str]]:
        return list(zip(self.outcome.gpus, self.labels, strict=True))

    @property
    def _time(self) -> TimeAxis:
        return TimeAxis(self.outcome.until_s)

    def _lines(self) -> list[Chart]:
        return [
            self._line_of(
                "utilisation",
                "How busy each GPU was",
                "Share of the time in which a kernel ran, as the driver reports it.",
                "% of the time",
                lambda sample: round(sample.utilization * 100, 2),
                {"range": [0, 104]},
            ),
            self._line_of(
                "temperature",
                "How warm each GPU was",
                "It follows the load with a lag of half a minute.",
                "°C",
                lambda sample: sample.temperature_c,
                {"rangemode": "normal"},
            ),
            self._clocks(),
        ]

    def _clocks(self) -> Chart:
        title = "How fast each GPU could run"
        if all(gpu.clock_min_share in (None, 1.0) for gpu in self.report.gpus):
            return Chart("clock", title, "At full clocks all the time: none became too hot.", None)
        return self._line_of(
            "clock",
            title,
            "Below 100 % heat has slowed down its clocks, and every tenant on it.",
            "% of full clocks",
            lambda sample: round(sample.clock_ppm / _PPM * 100, 2),
            {"range": [0, 104]},
        )

    def _line_of(
        self,
        name: str,
        title: str,
        reading: str,
        unit: str,
        value: Callable[[Sample], float],
        yaxis: dict[str, Any],
    ) -> Chart:
        most = {
            notes.uuid: max((one.utilization for one in notes.samples), default=-1.0)
            for notes, _ in self._gpus
        }
        busiest = sorted(self._gpus, key=lambda one: -most[one[0].uuid])[:LINES]
        shown = [one for one in self._gpus if one in busiest]
        drawn = _few(shown) if len(shown) <= MOST_COLOURS else _many(shown, value)
        traces = [
            line(
                self._time.of([at_s for at_s, _ in _readings(one.notes.samples)]),
                [sample and value(sample) for _, sample in _readings(one.notes.samples)],
                f"%{{y:.4g}} {unit}",
                f"GPU {one.label}",
                {"color": one.colour, "width": one.width},
            )
            for one in drawn
        ]
        return Chart(
            name,
            title,
            reading,
            plot(traces, 240, self._time.layout(), {"title": {"text": unit}, **yaxis}),
            and_left_out(len(shown), len(self._gpus), "GPUs", "the busiest"),
            legend_of((one.colour, one.told) for one in drawn),
            half=True,
        )

    def _memory(self) -> list[Chart]:
        held = [one for one in self._gpus if any(sample.tenants for sample in one[0].samples)]
        peaks = {gpu.uuid: gpu.memory_peak_bytes or 0 for gpu in self.report.gpus}
        fullest = sorted(held, key=lambda one: -peaks[one[0].uuid] / one[0].memory_bytes)
        shown = [one for one in held if one in fullest[:GPUS_WITH_MEMORY]]
        left_out = and_left_out(len(shown), len(held), "GPUs with tenants", "the fullest")
        return [
            self._memory_of(
                notes, label, left_out if number == len(shown) - 1 else "", explained=not number
            )
            for number, (notes, label) in enumerate(shown)
        ]

    def _memory_of(self, notes: GpuNotes, label: str, left_out: str, *, explained: bool) -> Chart:
        samples, total_gib = notes.samples, notes.memory_bytes / GIB
        layers, by_kind = _layers(samples)
        times = self._time.of([sample.at_s for sample in samples])
        traces = [
            line(
                times,
                [round(size / GIB, 3) for size in sizes],
                "%{y:.1f} GiB",
                name,
                {"width": 0.8, "color": self._colour(name), "shape": "hv"},
                stackgroup="memory",
            )
            for name, sizes in layers.items()
        ]
        traces.append(
            go.Scatter(
                x=self._time.of([0, self.outcome.until_s]),
                y=[total_gib, total_gib],
                mode="lines",
                line={"color": "#d64545", "width": 1.5, "dash": "dash"},
                hovertemplate=f"all there is: {total_gib:.0f} GiB<extra></extra>",
            )
        )
        colours = {self._colour(name) for name in layers}
        what = "kind of tenant" if by_kind else "tenant"
        return Chart(
            f"memory-{label}",
            f"Who held the memory of GPU {label}",
            f"A band is a {what}. At the dashed line nothing is left, and the next request gets "
            "an out-of-memory error. Replicas do not divide memory."
            if explained
            else f"A band is a {what}.",
            plot(
                traces,
                260,
                self._time.layout(),
                {"title": {"text": "GiB"}, "range": [0, total_gib * 1.06]},
            ),
            left_out,
            [
                *(one for one in self.colours.legend() if one[0] in colours - {NEUTRAL}),
                (NEUTRAL, "driver and others" if OTHERS in layers else "driver"),
                ("#d64545", "all there is"),
            ],
            half=True,
        )

    def _colour(self, name: str) -> str:
        return NEUTRAL if name in (_DRIVER, OTHERS) else self.colours.of(name)

    def _health(self) -> Chart:
        title = "When GPUs could not be used"
        units = self._units()
        if not units:
            return Chart("health", title, "Never: every GPU was Healthy all the time.", None)
        shown = dict(list(units.items())[:LANES_OF_HEALTH])
        traces = []
        for state, colour in _STATES.items():
            spans = [
                (lane, start, end, reason)
                for lane, changes in shown.items()
                for start, end, at, reason in self._spans(changes)
                if at == state
            ]
            traces.append(
                go.Bar(
                    orientation="h",
                    y=[lane for lane, *_ in spans],
                    base=self._time.of([start for _, start, _, _ in spans]),
                    x=self._time.of([end - start for _, start, end, _ in spans]),
                    width=0.6,
                    marker={"color": colour, "line": {"width": 0}},
                    customdata=[reason or state for *_, reason in spans],
                    hovertemplate=f"%{{y}} {state}: %{{customdata}}<extra></extra>",
                )
            )
        well = len(self._gpus) - sum(lane.startswith("GPU") for lane in units)
        rest = f"{well} more GPUs were Healthy all the time." if well > 0 else ""
        note = and_left_out(len(shown), len(units), "devices that changed", "the first by index")
        return Chart(
            "health",
            title,
            "Red: a fault was seen, and no pod gets a replica of the GPU. Yellow: it waits for a "
            "quiet time and a clean probe. Green: in use again.",
            plot(
                traces,
                100 + 30 * len(shown),
                self._time.layout(),
                {**lanes(list(shown)), "rangemode": "normal"},
                barmode="overlay",
            ),
            f"{rest} {note}".strip(),
            [(colour, state) for state, colour in _STATES.items()],
        )

    def _units(self) -> dict[str, list[HealthChange]]:
        """Changes by the name of the GPU or MIG device, by index; only those that changed."""
        names: dict[str, str] = {}
        for notes, label in self._gpus:
            names[notes.uuid] = f"GPU {label}"
            for number, place in enumerate(sorted(notes.places - {notes.uuid})):
                names[place] = f"MIG {label}:{number}"
        found: dict[str, list[HealthChange]] = defaultdict(list)
        for change in self.outcome.changes:
            found[names.get(change.uuid, change.uuid[:12])].append(change)
        order = {name: number for number, name in enumerate(names.values())}
        return dict(sorted(found.items(), key=lambda one: order.get(one[0], len(order))))

    def _spans(self, changes: Sequence[HealthChange]) -> list[tuple[float, float, str, str]]:
        """(start, end, state, reason) in seconds from the begin of the run to its end."""
        edges = [(0.0, "Healthy", ""), *((one.at_s, one.state, one.reason) for one in changes)]
        ends = [*(at_s for at_s, _, _ in edges[1:]), self.outcome.until_s]
        return [
            (at_s, end_s, state, reason)
            for (at_s, state, reason), end_s in zip(edges, ends, strict=True)
            if end_s > at_s
        ]


@dataclass(frozen=True, slots=True)
class _Line:
    """How a GPU is drawn, and what the legend says of it."""

    notes: GpuNotes
    label: str
    told: str
    colour: str
    width: float


def _few(gpus: Sequence[tuple[GpuNotes, str]]) -> list[_Line]:
    """Colours that lie far apart. Lines that coincide lie on each other: the lower are broader."""
    far = GPU_COLOURS[:: max(1, len(GPU_COLOURS) // max(1, len(gpus)))]
    return [
        _Line(notes, label, f"GPU {label}", colour, 2 + 1.2 * (len(gpus) - 1 - number))
        for number, (colour, (notes, label)) in enumerate(zip(far, gpus, strict=False))
    ]


def _many(gpus: Sequence[tuple[GpuNotes, str]], value: Callable[[Sample], float]) -> list[_Line]:
    """All in grey, and above them those that have most and least on average."""

    def mean(one: tuple[GpuNotes, str]) -> float:
        samples = one[0].samples
        return math.fsum(map(value, samples)) / len(samples) if samples else 0.0

    least, *between, most = sorted(gpus, key=mean)
    rest = f"{len(between)} more GPUs"
    return [
        *(_Line(notes, label, rest, NEUTRAL, 1) for notes, label in between),
        _Line(*least, f"GPU {least[1]}: least on average", GPU_COLOURS[1], 2),
        _Line(*most, f"GPU {most[1]}: most on average", GPU_COLOURS[5], 2),
    ]


def _readings(samples: Sequence[Sample]) -> list[tuple[float, Sample | None]]:
    """Samples with their moments, and nothing in between where a GPU did not answer."""
    readings: list[tuple[float, Sample | None]] = []
    steps_s = sorted(after.at_s - before.at_s for before, after in pairwise(samples))
    usual_s = steps_s[len(steps_s) // 2] if steps_s else math.inf
    for number, sample in enumerate(samples):
        if number and sample.at_s - samples[number - 1].at_s > 1.5 * usual_s:
            readings.append((samples[number - 1].at_s + usual_s, None))
        readings.append((sample.at_s, sample))
    return readings


_DRIVER = "driver"


def _layers(samples: Sequence[Sample]) -> tuple[dict[str, list[int]], bool]:
    """Bytes at each sample by tenant, or by kind if there are many (then True)."""
    names = list(dict.fromkeys(name for one in samples for name in one.memory_by_tenant))
    by_kind = len(names) > TENANTS_STACKED
    layers: dict[str, list[int]] = {_DRIVER: [0] * len(samples)}
    for name in names:
        layers.setdefault(kind_of(name) if by_kind else name, [0] * len(samples))
    for number, sample in enumerate(samples):
        used = 0
        for name, size in sample.memory_by_tenant.items():
            layers[kind_of(name) if by_kind else name][number] += size
            used += size
        layers[_DRIVER][number] = max(0, sample.memory_used_bytes - used)
    return _merged(layers), by_kind


def _merged(layers: dict[str, list[int]]) -> dict[str, list[int]]:
    """The largest layers; the rest added up as one."""
    tenants = sorted(
        (name for name in layers if name != _DRIVER), key=lambda one: -max(layers[one])
    )
    kept = {_DRIVER, *tenants[:TENANTS_STACKED]}
    merged = {name: sizes for name, sizes in layers.items() if name in kept}
    rest = [sizes for name, sizes in layers.items() if name not in kept]
    if rest:
        merged[OTHERS] = [sum(sizes) for sizes in zip(*rest, strict=True)]
    return merged
