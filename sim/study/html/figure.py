"""What all plots of the page have in common: their frame, time axes, and colours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from sim.study.report import kind_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.study.report import Report

KIND_COLOURS = (
    "#3f8fd2",
    "#e8891c",
    "#2ba67a",
    "#b765c9",
    "#c9a227",
    "#1fa8b5",
    "#d1607f",
    "#7d8be0",
)
"""Of kinds of tenants, by GPU time; to be told apart on white and on black."""

GPU_COLOURS = (
    "#5b6cc9",
    "#3f8fb0",
    "#2f9e8f",
    "#57a85a",
    "#9aa63a",
    "#c48f35",
    "#c96f4a",
    "#b4567f",
)

NEUTRAL = "#8b8f98"
"""Of what is no kind of its own: other tenants, the driver's memory, totals."""

SWITCH = "#e5484d"
"""Of context switches, which nobody gains from."""

OTHERS = "others"

_UNITS = ((86400 * 3, 86400, "days"), (3600 * 3, 3600, "hours"), (180, 60, "minutes"))


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot with its words.

    `title` says what is seen, `reading` how to read it, `note` what was left out. `legend` has
    pairs of colour and name. `plot` is Plotly's figure; None where a sentence says it all.
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

    def __init__(self, report: Report) -> None:
        kinds = [kind.kind for kind in report.kinds]
        self._of = dict(zip(kinds, KIND_COLOURS, strict=False))
        self.left_out = max(0, len(kinds) - len(self._of))

    def of(self, name: str) -> str:
        """The colour of a tenant or a kind."""
        return self._of.get(kind_of(name), NEUTRAL)

    def legend(self) -> list[tuple[str, str]]:
        """Colours and kinds; those without a colour of their own together."""
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
        """Seconds of the unit."""
        return next((unit for least, unit, _ in _UNITS if self.until_s >= least), 1)

    @property
    def unit(self) -> str:
        """Name of the unit."""
        return next((name for least, _, name in _UNITS if self.until_s >= least), "seconds")

    def of(self, seconds: Sequence[float]) -> list[float]:
        """Moments in this unit."""
        return [round(moment / self.unit_s, 6) for moment in seconds]

    def layout(self) -> dict[str, Any]:
        """The axis for Plotly."""
        return {
            "title": {"text": f"model time in {self.unit}"},
            "range": [0, self.until_s / self.unit_s],
        }


def plot(
    traces: Sequence[Any], height: int, xaxis: dict[str, Any], yaxis: dict[str, Any], **more: object
) -> go.Figure:
    """A figure with the frame that all have; colours of frame and text are the page's matter."""
    figure = go.Figure(
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
    figure.layout.template = None
    return figure


def lanes(names: Sequence[str]) -> dict[str, Any]:
    """A vertical axis with a lane for each name, the first on top."""
    return {"type": "category", "categoryorder": "array", "categoryarray": list(reversed(names))}


def and_left_out(shown: int, there: int, what: str, chosen: str) -> str:
    """The note of a plot that does not show everything; empty if it does."""
    return f"{shown} of {there} {what} are shown: {chosen}." if shown < there else ""
