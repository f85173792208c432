"""Charts: their frame and colours, and those of how tenants share a GPU."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from sim.gpu.scheduler import NS_PER_MS, NS_PER_S
from sim.study.report import kind_of
from sim.study.sentences import milliseconds, percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sim.gpu.timeslicing import Segment
    from sim.study.runreport import KindReport, RunReport
    from sim.virtual.run import GpuNotes, Outcome


KIND_COLOURS = (
    *("#3f8fd2", "#e8891c", "#2ba67a", "#b765c9"),
    *("#c9a227", "#1fa8b5", "#d1607f", "#7d8be0"),
)
"""Of kinds of tenants, by GPU time; distinguishable on white and on black."""

GPU_COLOURS = (
    *("#5b6cc9", "#3f8fb0", "#2f9e8f", "#57a85a"),
    *("#9aa63a", "#c48f35", "#c96f4a", "#b4567f"),
)

NEUTRAL = "#8b8f98"
"""Of what is no kind of its own: other tenants, the driver's memory, totals."""

SWITCH = "#e5484d"
"""Of context switches, which are lost time."""

OTHERS = "others"

_UNITS = ((86400 * 3, 86400, "days"), (3600 * 3, 3600, "hours"), (180, 60, "minutes"))


@dataclass(frozen=True, slots=True)
class Chart:
    """A plot with its texts.

    `title` says what is seen, `reading` how to read it, `note` what was left out. `legend` has
    pairs of colour and name. `plot` is Plotly's chart; None where a sentence says it all.
    """

    name: str
    title: str
    reading: str
    plot: go.Figure | None
    note: str = ""
    legend: Sequence[tuple[str, str]] = field(default=())
    half: bool = False


class Colours:
    """Which colour a tenant has, everywhere on the page: that of its kind."""

    def __init__(self, report: RunReport) -> None:
        kinds = [kind.kind for kind in report.kinds]
        self._of = dict(zip(kinds, KIND_COLOURS, strict=False))
        self.left_out = max(0, len(kinds) - len(self._of))

    def of(self, name: str) -> str:
        return self._of.get(kind_of(name), NEUTRAL)

    def legend(self) -> list[tuple[str, str]]:
        entries = [(colour, kind) for kind, colour in self._of.items()]
        if self.left_out:
            entries.append((NEUTRAL, "other kinds"))
        return entries


@dataclass(frozen=True, slots=True)
class TimeAxis:
    """Model time in the unit that suits the length of the run."""

    until_s: float

    @property
    def unit_s(self) -> float:
        return next((unit for least, unit, _ in _UNITS if self.until_s >= least), 1)

    @property
    def unit(self) -> str:
        return next((name for least, _, name in _UNITS if self.until_s >= least), "seconds")

    def of(self, seconds: Sequence[float]) -> list[float]:
        return [round(moment / self.unit_s, 6) for moment in seconds]

    def layout(self) -> dict[str, Any]:
        return {
            "title": {"text": f"model time in {self.unit}"},
            "range": [0, self.until_s / self.unit_s],
        }


def plot(
    traces: Sequence[Any], height: int, xaxis: dict[str, Any], yaxis: dict[str, Any], **more: object
) -> go.Figure:
    """A chart with the frame that all have; colours of frame and text are the page's matter."""
    chart = go.Figure(
        data=list(traces),
        layout={
            "height": height,
            "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
            "showlegend": False,
            "xaxis": {"automargin": True, "zeroline": False, **xaxis},
            "yaxis": {"automargin": True, "zeroline": False, "rangemode": "tozero", **yaxis},
            **more,
        },
    )
    chart.layout.template = None
    return chart


def line(
    x: list[float], y: list[Any], value: str, name: str, style: dict[str, Any], **more: object
) -> go.Scatter:
    """A line; `value` is Plotly's template of what the pointer shows."""
    hover = f"{name}: {value}<extra></extra>"
    return go.Scatter(x=x, y=y, mode="lines", name=name, line=style, hovertemplate=hover, **more)


def legend_of(entries: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Each colour once, with what is grey at the end."""
    return sorted(dict.fromkeys(entries), key=lambda one: one[0] == NEUTRAL)


def lanes(names: Sequence[str]) -> dict[str, Any]:
    return {"type": "category", "categoryorder": "array", "categoryarray": list(reversed(names))}


def and_left_out(shown: int, there: int, what: str, chosen: str) -> str:
    """The note of a plot that does not show everything; empty if it does."""
    return f"{shown} of {there} {what} are shown: {chosen}." if shown < there else ""


KINDS_SHOWN = 8
GPUS_SHOWN = 3
LANES_SHOWN = 10
BARS_SHOWN = 3000
"""Of one GPU; a window of 0.1 s has some hundred slices, unless tenants submit in crumbs."""

_MARKS = ((0.6, (1, 1.5, 2, 3, 4, 5, 7)), (1.2, (1, 2, 5)), (2.6, (1, 3)), (math.inf, (1,)))
"""Marks of each decade, for axes of up to so many decades; more do not fit on a phone."""

_SAME = 1.005
"""Times that differ by less are the same on any axis."""

_LEAST_DECADES = 0.45
"""Of the axis of times: in so many there are two marks at least."""


def latency(report: RunReport, colours: Colours) -> Chart | None:
    """How long requests took, by kind, on a logarithmic axis; None if none was served."""
    served = [kind for kind in report.kinds if kind.latency_curve]
    if not served:
        return None
    shown = served[:KINDS_SHOWN]
    if len(report.kinds) == 1 and _always(shown[0]):
        return Chart("latency", "How long requests took", _always(shown[0]), None)
    traces: list[Any] = []
    for kind in shown:
        colour, alone_ms = colours.of(kind.kind), kind.alone_ms or 0.0
        shares = [share * 100 for share, _ in kind.latency_curve]
        times = [took_ms for _, took_ms in kind.latency_curve]
        alone = {"color": colour, "width": 1.5, "dash": "dot"}
        traces += [
            line(
                times,
                shares,
                "%{y:.4g} % within %{x:.4g} ms",
                kind.kind,
                {"color": colour, "width": 2.5},
            ),
            line([alone_ms, alone_ms], [0, 100], "%{x:.4g} ms", f"{kind.kind} alone", alone),
        ]
    most_ms = max(kind.latency_curve[-1][1] for kind in shown)
    least_ms = min(min(kind.latency_curve[0][1], kind.alone_ms or math.inf) for kind in shown)
    nothing = [kind for kind in report.kinds if kind.deprived]
    traces += [
        line(
            [least_ms, most_ms],
            [0, 0],
            _nothing(kind),
            kind.kind,
            {"color": colours.of(kind.kind), "width": 6},
        )
        for kind in nothing
        if not kind.latency_curve
    ]
    return Chart(
        "latency",
        "How long requests took",
        "A point says how many of 100 requests were done within that time. The dotted line is what "
        "a request takes alone on the GPU: the further the curve is to its right, the more it "
        "slowed down.",
        plot(
            traces,
            340,
            _log_axis(least_ms, most_ms),
            {"title": {"text": "% of requests"}, "range": [0, 101]},
        ),
        " ".join(
            filter(
                None,
                (
                    *(f"{kind.kind}: {_nothing(kind)}." for kind in nothing),
                    and_left_out(
                        len(shown), len(served), "kinds of tenants", "those with most GPU time"
                    ),
                ),
            )
        ),
        [
            *((colours.of(kind.kind), kind.kind) for kind in shown),
            *(
                (colours.of(kind.kind), f"{kind.kind} (no request was done)")
                for kind in nothing
                if not kind.latency_curve
            ),
        ],
    )


def _always(kind: KindReport) -> str:
    """Of a kind whose requests all took the same time, which a curve would not show; else empty."""
    least_ms, most_ms = kind.latency_curve[0][1], kind.latency_curve[-1][1]
    if kind.deprived or most_ms > _SAME * least_ms:
        return ""
    alone = "" if kind.alone_ms is None else f"; alone it takes {milliseconds(kind.alone_ms)}"
    return f"Every request of {escape(kind.kind)} took {milliseconds(most_ms)}{alone}."


def _nothing(kind: KindReport) -> str:
    """What the curves, which are of requests that were done, cannot show."""
    if kind.deprived == kind.tenants == 1:
        return "no request was done, so that it has no curve"
    return f"{kind.deprived} of {kind.tenants} had no request done, and are in no curve"


def slices(outcome: Outcome, labels: Sequence[str], colours: Colours) -> list[Chart]:
    """Who ran when, slice by slice, on the GPUs that most tenants shared in the window."""
    noted = [
        (notes, label) for notes, label in zip(outcome.gpus, labels, strict=True) if notes.slices
    ]
    noted.sort(key=lambda one: -len({name for name, _ in one[0].slices}))
    # Beside GPUs that several tenants share, one with a single tenant shows nothing.
    noted = [one for one in noted if len({name for name, _ in one[0].slices}) > 1] or noted[:1]
    shown = noted[:GPUS_SHOWN]
    charts = [_slices_of(notes, label, colours) for notes, label in shown]
    if not charts and outcome.tenants:
        text = (
            "No tenant had work at the moments that were looked at. "
            "<code>--slices-at</code> looks at another one."
        )
        return [Chart("slices", "Who ran when, slice by slice", text, None)]
    note = and_left_out(len(shown), len(noted), "GPUs", "those with most tenants then")
    if note:
        last = charts[-1]
        charts[-1] = Chart(
            last.name, last.title, last.reading, last.plot, f"{last.note} {note}", last.legend
        )
    return charts


def _slices_of(notes: GpuNotes, label: str, colours: Colours) -> Chart:
    start_ns = min(segment.start_ns for _, segment in notes.slices)
    busy: Counter[str] = Counter()
    switching_ns = 0
    for name, segment in notes.slices:
        length_ns = segment.end_ns - segment.start_ns
        busy[name] += 0 if segment.switching else length_ns
        switching_ns += length_ns if segment.switching else 0
    by_time = sorted(busy, key=lambda name: (-busy[name], name))
    own = by_time if len(by_time) <= LANES_SHOWN else by_time[: LANES_SHOWN - 1]
    others = f"{len(by_time) - len(own)} {OTHERS}"
    bars: dict[tuple[str, bool], list[tuple[float, float]]] = defaultdict(list)
    for name, start, end, switching in _joined(notes.slices[:BARS_SHOWN]):
        lane = name if name in own else others
        bars[lane, switching].append(((start - start_ns) / NS_PER_MS, (end - start) / NS_PER_MS))
    names = sorted(own) + ([others] if len(by_time) > len(own) else [])
    traces = [
        go.Bar(
            orientation="h",
            y=[lane] * len(spans),
            base=[round(start, 4) for start, _ in spans],
            x=[round(length, 4) for _, length in spans],
            width=0.45 if switching else 0.8,
            marker={"color": SWITCH if switching else colours.of(lane), "line": {"width": 0}},
            hovertemplate=f"{'switch to ' if switching else ''}{lane}: %{{x:.3f}} ms"
            "<extra></extra>",
        )
        for (lane, switching), spans in bars.items()
    ]
    at_s = start_ns / NS_PER_S
    title = f"Who ran when on GPU {label}, slice by slice"
    if len(names) == 1 and not switching_ns:
        alone = (
            f"From {_moment(at_s)} on {escape(names[0])} had the GPU to itself for 0.1 s. No "
            "tenant had to take turns: nothing was lost."
        )
        return Chart(f"slices-{label}", title, alone, None)
    each = " on each MIG device" if len(notes.places) > 1 else ""
    note = f"{others} share the last lane." if len(by_time) > len(own) else ""
    if len(notes.slices) > BARS_SHOWN:
        drawn = f"The first {BARS_SHOWN:,} of {len(notes.slices):,} slices and switches are drawn."
        note = f"{note} {drawn}".strip()
    kinds = [one for one in colours.legend() if any(colours.of(name) == one[0] for name in names)]
    return Chart(
        f"slices-{label}",
        title,
        f"0.1 s of the run, from {_moment(at_s)} on. {_turns(busy, switching_ns, each)}",
        plot(
            traces,
            90 + 34 * len(names),
            {"title": {"text": f"milliseconds after {_moment(at_s)}"}, "range": [0, 100]},
            {**lanes(names), "rangemode": "normal"},
            barmode="overlay",
            bargap=0,
        ),
        note,
        [*kinds, *([(SWITCH, "switch")] if switching_ns else [])],
    )


def _moment(at_s: float) -> str:
    """`12.300 s`, `3 d 12:00:00.500`."""
    if at_s < 180:
        return f"{at_s:.3f} s"
    days, rest_s = divmod(at_s, 86_400)
    hours, minutes = int(rest_s // 3600), int(rest_s % 3600 // 60)
    clock = f"{hours:02}:{minutes:02}:{rest_s % 60:06.3f}"
    return f"{int(days)} d {clock}" if days else clock


def _turns(busy: Counter[str], switching_ns: int, each: str) -> str:
    if not switching_ns:
        return f"A bar is work of a tenant. No tenant had to take turns{each}: nothing was lost."
    lost = percent(switching_ns / (sum(busy.values()) + switching_ns))
    return (
        f"A bar is work of a tenant, one at a time{each}: while others wait, for a slice (on most "
        f"GPUs about 2 ms), then a switch (the small red bars). Switches took {lost} of the time "
        "with work."
    )


def _joined(segments: Iterable[tuple[str, Segment]]) -> Iterable[tuple[str, int, int, bool]]:
    """(name, start, end, switching), what follows without a gap in one piece."""
    last: tuple[str, int, int, bool] | None = None
    for name, segment in segments:
        new = (name, segment.start_ns, segment.end_ns, segment.switching)
        if last is not None and (last[0], last[2], last[3]) == (new[0], new[1], new[3]):
            last = (name, last[1], segment.end_ns, segment.switching)
            continue
        if last is not None:
            yield last
        last = new
    if last is not None:
        yield last


def _log_axis(least_ms: float, most_ms: float) -> dict[str, Any]:
    """A logarithmic axis with marks that people read: 10 ms, 20 ms, 1 s."""
    low, high = math.log10(least_ms) - 0.08, math.log10(most_ms) + 0.08
    lacking = max(0.0, _LEAST_DECADES - (high - low))
    low, high = low - lacking / 2, high + lacking / 2
    marks = next(marks for most, marks in _MARKS if high - low <= most)
    values = [
        mark * 10.0**decade
        for decade in range(math.floor(low), math.ceil(high) + 1)
        for mark in marks
        if low <= math.log10(mark) + decade <= high
    ]
    return {
        "type": "log",
        "range": [low, high],
        "tickvals": values,
        "ticktext": [_time(value) for value in values],
        "tickangle": 0,
        "title": {"text": "time from coming to done"},
    }


def _time(value_ms: float) -> str:
    if value_ms < 1:
        return f"{value_ms * 1000:g} µs"
    return f"{value_ms:g} ms" if value_ms < 1000 else f"{value_ms / 1000:g} s"
