"""A run as one SVG: a dot with its interval for each figure, on a logarithmic axis for each unit.

Made by hand, for no library of plots that the project has writes a picture without a browser.
"""

from __future__ import annotations

import math
from itertools import groupby
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from benchmarks.show import number, worst_of_families

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.results import Measurement, Run

WIDTH, LABELS, RIGHT, ROW, HEAD = 960, 350, 150, 20, 46
_STYLE = """
svg { background: #fff; font: 12px system-ui, sans-serif; }
text { fill: #24292f; } .dim { fill: #6e7781; } .title { font-weight: 600; font-size: 14px; }
line.grid { stroke: #d8dee4; } line.range { stroke: #0969da; stroke-width: 3; }
line.tail { stroke: #9ec5f4; stroke-width: 1.5; } circle { fill: #0969da; }
.miss circle { fill: #cf222e; } .miss line.range { stroke: #cf222e; }
.floor circle { fill: #6e7781; } .floor line.range { stroke: #6e7781; }
@media (prefers-color-scheme: dark) {
  svg { background: #0d1117; } text { fill: #e6edf3; } .dim { fill: #9198a1; }
  line.grid { stroke: #30363d; } circle { fill: #58a6ff; } line.range { stroke: #58a6ff; }
  line.tail { stroke: #264a72; } .miss circle { fill: #ff7b72; }
  .miss line.range { stroke: #ff7b72; } .floor circle { fill: #9198a1; }
  .floor line.range { stroke: #9198a1; }
}
"""


def as_svg(run: Run) -> str:
    parts: list[str] = []
    floors = {one.floor for figure in run.figures for one in figure.ratios}
    y = 56.0
    for (suite, unit), group in groupby(
        sorted(worst_of_families(run.figures), key=_panel_key), key=_panel_key
    ):
        figures = [figure for figure in group if figure.p50.value > 0]
        if figures:
            panel, y = _panel(f"{suite}, {unit}", figures, floors, y)
            parts += panel
    machine = run.machine
    head = [
        _text(16, 24, "gpuplugin bench", "title"),
        _text(
            16,
            42,
            f"{run.date}, {machine.cores} cores of {machine.cpu}. Dot: median, bar: its 95 % "
            "interval, thin line: to p99. Red: misses its target. Grey: a floor.",
            "dim",
        ),
    ]
    size = f'width="{WIDTH}" height="{y:g}" viewBox="0 0 {WIDTH} {y:g}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
            f"<style>{_STYLE}</style>",
            *head,
            *parts,
            "</svg>",
        ]
    )


def _panel_key(figure: Measurement) -> tuple[str, str]:
    return figure.suite, figure.unit


def _panel(
    title: str, figures: Sequence[Measurement], floors: set[str], top: float
) -> tuple[list[str], float]:
    axis = _Axis(figures)
    bottom = top + HEAD + ROW * len(figures)
    parts = [_text(16, top + 18, title, "title")]
    for value in axis.ticks:
        x = axis.place(value)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top + 36:g}" y2="{bottom:g}"/>'
        )
        parts.append(_text(x, top + 32, f"{value:g}", "dim", "middle"))
    for row, figure in enumerate(figures):
        missed = any(not one.met for one in figure.verdicts)
        # A floor with many calls at once says so behind a comma.
        is_floor = figure.case in floors or figure.case.partition(",")[0] in floors
        kind = "miss" if missed else "floor" if is_floor else ""
        parts += _row(figure, kind, axis, top + HEAD + ROW * (row + 0.5))
    return parts, bottom + 18


def _row(figure: Measurement, kind: str, axis: _Axis, y: float) -> list[str]:
    value, interval = figure.p50.value, figure.p50.interval
    low, high = interval.low or value, interval.high or value
    name = f"{figure.case}  \N{MIDDLE DOT}  {figure.subject}"
    shown = number(value) + "".join(f"  {one.value:.2f}x" for one in figure.ratios[:1])
    parts = [f'<g class="{kind}">', _text(LABELS - 12, y + 4, name, "", "end")]
    if figure.p99 is not None:
        parts.append(_line("tail", axis.place(value), axis.place(figure.p99.value), y))
    parts.append(_line("range", axis.place(low), axis.place(high), y))
    parts.append(f'<circle cx="{axis.place(value):.1f}" cy="{y:g}" r="4"/>')
    parts.append(_text(WIDTH - RIGHT + 16, y + 4, shown, "dim"))
    return [*parts, "</g>"]


class _Axis:
    """A logarithmic axis that holds every value of some figures, from one tick to another."""

    def __init__(self, figures: Sequence[Measurement]) -> None:
        values = [figure.p50.value for figure in figures]
        for figure in figures:
            ends = (figure.p50.interval.low, figure.p50.interval.high)
            values += [end for end in ends if end]
            values += [figure.p99.value] if figure.p99 and figure.p99.value > 0 else []
        low, high = min(values), max(values)
        steps = (1.0, 2.0, 5.0) if high / low < 60 else (1.0,)
        powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
        marks = [step * 10.0**power for power in powers for step in steps]
        first = max(mark for mark in marks if mark < low)
        last = min(mark for mark in marks if mark > high)
        self.ticks = [mark for mark in marks if first <= mark <= last]
        self._low, self._high = math.log10(first), math.log10(last)

    def place(self, value: float) -> float:
        """Where a value is, in pixels from the left."""
        share = (math.log10(max(value, 1e-12)) - self._low) / (self._high - self._low)
        return LABELS + min(max(share, 0.0), 1.0) * (WIDTH - LABELS - RIGHT)


def _line(kind: str, x1: float, x2: float, y: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y:g}" y2="{y:g}"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'
    )
