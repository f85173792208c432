"""Profile of one Allocate call: time stamps between client, engine and handler.

Client and server stamp the same clock (CLOCK_MONOTONIC is one for all processes), so the way
through the kernel and the engine is what lies between their stamps. The stamps themselves cost
some tenths of a microsecond. The engine's own code is not measured.
"""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from benchmarks.calls import TIMEOUT_S, device_plugin_method
from benchmarks.devices import allocate_request, plugin_for
from benchmarks.results import quantile
from benchmarks.servers import run_engine, serving, with_metrics
from gpuplugin.rpc import Service
from gpuplugin.rpc.client import Connection

if TYPE_CHECKING:
    from multiprocessing.connection import Connection as Pipe

    from gpuplugin.rpc import EngineName

GPUS, REPLICAS = 8, 10
WARM_UP_CALLS = 200
WIDTH, ROW, LEFT = 960, 44, 16
_STAMPS = "Stamps"
_PER_CALL = 4
_COLOURS = (
    "#57606a", "#0969da", "#1a7f37", "#8250df", "#cf222e", "#bf3989", "#7d4e00", "#1b7c83",
)  # fmt: skip
_STYLE = """
svg { background: #fff; font: 12px system-ui, sans-serif; }
text { fill: #24292f; } .in { fill: #fff; } .title { font-weight: 600; font-size: 14px; }
rect { stroke: #fff; }
@media (prefers-color-scheme: dark) {
  svg { background: #0d1117; } text { fill: #e6edf3; } rect { stroke: #0d1117; }
}
"""


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a call; its place is counted from the call's begin. All in us, medians."""

    name: str
    depth: int
    begin_us: float
    took_us: float


@dataclass(frozen=True, slots=True)
class _Stamped:
    """The plugin's handlers on an engine, whose Allocate notes when it was where."""

    engine: EngineName

    def serve(self, path: Path, stop: Pipe) -> None:
        # Four numbers for each call: metrics entered, handler entered, handler left, metrics left.
        stamps = array("q")
        clock = time.perf_counter_ns
        plugin = plugin_for(GPUS, REPLICAS)
        inner = plugin.service()

        def handler(request: bytes) -> bytes:
            stamps.append(clock())
            answer = inner.unary["Allocate"](request)
            stamps.append(clock())
            return answer

        resource = plugin.snapshot.resource.name
        measured = with_metrics(Service(inner.name, {"Allocate": handler}, {}), resource)
        allocate = measured.unary["Allocate"]

        def outer(request: bytes) -> bytes:
            stamps.append(clock())
            answer = allocate(request)
            stamps.append(clock())
            return answer

        def stamped(_request: bytes) -> bytes:
            return stamps.tobytes()

        service = Service(inner.name, {"Allocate": outer, _STAMPS: stamped}, {})
        run_engine(self.engine, path, service, stop)


def profiled(engine: EngineName, calls: int) -> tuple[str, list[str]]:
    """A picture (SVG) and lines of text, from so many calls.

    Raises:
        DidNotStart: the server did not come up.
        ConnectionFailed: it went away.
    """
    stages = stages_of(engine, calls)
    lines = [f"An Allocate call on the engine {engine}, medians of {calls} calls:"]
    total_us = stages[0].took_us
    for stage in stages:
        share = stage.took_us / total_us
        lines.append(f"{stage.took_us:9.1f} us {share:5.0%}  {'  ' * stage.depth}{stage.name}")
    return as_svg(engine, stages), lines


def stages_of(engine: EngineName, calls: int) -> list[Stage]:
    with TemporaryDirectory(prefix="gp") as name:
        path = Path(name) / "p.sock"
        with serving(path, _Stamped(engine)), Connection(path, TIMEOUT_S) as connection:
            return _stages(*_measured(connection, WARM_UP_CALLS + calls))


def _measured(connection: Connection, calls: int) -> tuple[list[tuple[int, int, int]], array[int]]:
    """What the client stamped (begin, sent, answered), and the server."""
    ids = list(plugin_for(GPUS, REPLICAS).snapshot.devices)
    request, method = allocate_request([ids[0]]), device_plugin_method("Allocate")
    clock = time.perf_counter_ns
    ours = []
    for _ in range(calls):
        began_ns = clock()
        connection.start(method, request)
        sent_ns = clock()
        connection.ended()
        ours.append((began_ns, sent_ns, clock()))
    theirs = array("q")
    theirs.frombytes(connection.call(device_plugin_method(_STAMPS), b""))
    return ours, theirs


def _stages(ours: list[tuple[int, int, int]], theirs: array[int]) -> list[Stage]:
    calls = [
        (*ours[number], *theirs[number * _PER_CALL : (number + 1) * _PER_CALL])
        for number in range(WARM_UP_CALLS, len(ours))
    ]

    def between_us(first: int, last: int) -> float:
        return quantile(sorted((call[last] - call[first]) / 1e3 for call in calls), 0.5)

    began, sent, answered, entered, handler, handled, left = range(7)
    parts = (
        ("client sends", 1, began, sent),
        ("kernel and engine, to the handler", 1, sent, entered),
        ("handler with metrics", 1, entered, left),
        ("metrics: a call begins", 2, entered, handler),
        ("handler: bytes to bytes", 2, handler, handled),
        ("metrics: a call ends", 2, handled, left),
        ("engine and kernel, back to the client", 1, left, answered),
    )
    whole = Stage("one call", 0, 0.0, between_us(began, answered))
    stages = [whole]
    at = {1: 0.0, 2: 0.0}
    for name, depth, first, last in parts:
        took_us = between_us(first, last)
        begin_us = at[depth]
        stages.append(Stage(name, depth, begin_us, took_us))
        at[depth] = begin_us + took_us
        if depth == 1:
            at[2] = begin_us
    return stages


def as_svg(engine: str, stages: list[Stage]) -> str:
    # Medians of parts need not add up to the median of the whole.
    total_us = max(stage.begin_us + stage.took_us for stage in stages)
    scale = (WIDTH - 2 * LEFT) / total_us
    depth = max(stage.depth for stage in stages)
    legend_top = 56 + (depth + 1) * ROW
    height = legend_top + 20 * len(stages) + 16
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    title = f"An Allocate call on the engine {escape(engine)}: medians"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="28">{title}</text>',
    ]
    for number, stage in enumerate(stages):
        colour = _COLOURS[number % len(_COLOURS)]
        x, width = LEFT + stage.begin_us * scale, stage.took_us * scale
        y = 44 + stage.depth * ROW
        text = f"{stage.name}, {stage.took_us:.1f} us"
        parts.append(
            f'<rect x="{x:.1f}" y="{y}" width="{max(width, 1):.1f}" height="{ROW - 4}" '
            f'fill="{colour}"><title>{escape(text)}</title></rect>'
        )
        if width > 7 * len(text):
            parts.append(f'<text class="in" x="{x + 8:.1f}" y="{y + 24}">{escape(text)}</text>')
        line = legend_top + 20 * number
        indent = LEFT + 20 * stage.depth
        parts.append(
            f'<rect x="{indent}" y="{line}" width="12" height="12" fill="{colour}"/>'
            f'<text x="{indent + 20}" y="{line + 10}">{escape(text)}</text>'
        )
    return "\n".join([*parts, "</svg>"])
