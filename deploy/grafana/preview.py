"""Draws gpuplugin.json over a Prometheus server without Grafana, as one HTML page.

For the picture in docs/metrics.md: `python deploy/grafana/preview.py --prometheus URL --out FILE`.
Titles, places, legends, units, thresholds and columns are those of the dashboard's file. Needs plotly
(`pip install 'gpuplugin-sim[report]'`).
"""

from __future__ import annotations

import argparse
import json
import re
import time
import urllib.parse
import urllib.request
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

if TYPE_CHECKING:
    from collections.abc import Mapping

Json: TypeAlias = "dict[str, object]"

DASHBOARD = Path(__file__).with_name("gpuplugin.json")
STEPS = 150
LINE_PX = 32
COLOURS = {"green": "#2f8f4e", "orange": "#d9822b", "red": "#c4352b"}
STYLE = """
body { margin: 0; padding: 12px; width: 1500px; background: #f4f5f7; font: 13px sans-serif; color: #1c2126; }
main { display: grid; grid-template-columns: repeat(24, 1fr); grid-auto-rows: 32px; gap: 6px; }
section { background: #fff; border: 1px solid #dfe3e8; border-radius: 4px; overflow: hidden; }
h1 { font-size: 18px; margin: 4px 0 10px; } h2 { font-size: 14px; margin: 0; padding: 6px 8px; font-weight: 600; }
.row { background: none; border: none; } .row h2 { font-size: 15px; padding: 8px 0; }
.number { color: #fff; } .number p { font-size: 34px; margin: 8px; text-align: center; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: 3px 8px; border-top: 1px solid #eceff2; }
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prometheus", required=True, metavar="URL")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--out", required=True, metavar="FILE")
    options = parser.parse_args()
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    source = Source(options.prometheus, 60 * options.minutes)
    drawn = "".join(panel_html(panel, source, options.minutes) for panel in dashboard["panels"])
    Path(options.out).write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(dashboard['title'])}"
        f"</title><style>{STYLE}</style><script>{get_plotlyjs()}</script>"
        f"<h1>{escape(dashboard['title'])}</h1><main>{drawn}</main>",
        encoding="utf-8",
    )


class Source:
    """A Prometheus server, asked about the last `length_s` seconds."""

    def __init__(self, base: str, length_s: float) -> None:
        self._base = base
        self._length_s = length_s
        self.end_s = time.time()

    def now(self, target: Mapping[str, str]) -> list[Json]:
        return self._ask("query", query=self._filled(target), time=f"{self.end_s:.3f}")

    def range(self, target: Mapping[str, str]) -> list[Json]:
        return self._ask(
            "query_range",
            query=self._filled(target),
            start=f"{self.end_s - self._length_s:.3f}",
            end=f"{self.end_s:.3f}",
            step=f"{self._length_s / STEPS:.3f}",
        )

    @staticmethod
    def _filled(target: Mapping[str, str]) -> str:
        """The expression with its variables: a rate over 20 s, and everything selected."""
        text = target["expr"].replace("$__rate_interval", "20s")
        return re.sub(r"\$\w+", ".*", text)

    def _ask(self, path: str, **parameters: str) -> list[Json]:
        url = f"{self._base}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - an address of the user's
            found: list[Json] = json.load(answer)["data"]["result"]
        return found


def panel_html(panel: Mapping[str, object], source: Source, minutes: float) -> str:
    place = panel["gridPos"]
    style = (
        f"grid-column: {place['x'] + 1} / span {place['w']}; "
        f"grid-row: {place['y'] + 1} / span {place['h']}"
    )
    title = f"<h2>{escape(panel['title'])}</h2>"
    match panel["type"]:
        case "row":
            return f'<section class=row style="{style}">{title}</section>'
        case "stat":
            number, colour = stat(panel, source)
            style += f"; background: {colour}"
            return f'<section class=number style="{style}">{title}<p>{number}</p></section>'
        case "table":
            return f'<section style="{style}">{title}{table(panel, source)}</section>'
        case _:
            height_px = place["h"] * (LINE_PX + 6) - 40
            chart = figure(panel, source, minutes, height_px).to_html(
                full_html=False, include_plotlyjs=False, config={"displayModeBar": False}
            )
            return f'<section style="{style}">{title}{chart}</section>'


def stat(panel: Mapping[str, object], source: Source) -> tuple[str, str]:
    """The text of a number, and the colour of its threshold."""
    defaults = panel["fieldConfig"]["defaults"]
    found = source.now(panel["targets"][0])
    if not found:
        return escape(defaults.get("noValue", "No data")), "#66707a"
    value = float(found[0]["value"][1])
    steps = [
        step for step in defaults["thresholds"]["steps"]
        if step["value"] is None or step["value"] <= value
    ]  # fmt: skip
    return f"{value:.{defaults.get('decimals', 0)}f}", COLOURS[steps[-1]["color"]]


def table(panel: Mapping[str, object], source: Source) -> str:
    """The table after its transformations: rows merged by labels, columns renamed and ordered."""
    rows: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for target in panel["targets"]:
        for one in source.now(target):
            labels = {key: text for key, text in one["metric"].items() if key != "__name__"}
            row = rows.setdefault(tuple(sorted(labels.items())), dict(labels))
            row[f"Value #{target['refId']}"] = one["value"][1]
    options = next(one["options"] for one in panel["transformations"] if one["id"] == "organize")
    units = {
        override["matcher"]["options"]: override["properties"][0]["value"]
        for override in panel["fieldConfig"]["overrides"]
    }
    present = {key for row in rows.values() for key in row}
    shown = sorted(
        present - options["excludeByName"].keys(),
        key=lambda name: options["indexByName"].get(name, len(present)),
    )
    names = [options["renameByName"].get(name, name) for name in shown]
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td>{escape(formatted(row.get(key, ''), units.get(name)))}</td>"
            for key, name in zip(shown, names, strict=True)
        )
        + "</tr>"
        for row in rows.values()
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def formatted(text: str, unit: str | None) -> str:
    match unit:
        case "percentunit" if text:
            return f"{float(text):.0%}"
        case "bytes" if text:
            return f"{float(text) / 1024**3:.1f} GiB"
        case _:
            return text


def figure(
    panel: Mapping[str, object], source: Source, minutes: float, height_px: int
) -> go.Figure:
    defaults = panel["fieldConfig"]["defaults"]
    states = panel["type"] == "state-timeline"
    stacked = defaults.get("custom", {}).get("stacking", {}).get("mode") == "normal"
    scale = 1024**3 if defaults.get("unit") == "bytes" else 1
    made = go.Figure()
    for target in panel["targets"]:
        for one in source.range(target):
            made.add_scatter(
                x=[(float(at_s) - source.end_s) / 60 for at_s, _ in one["values"]],
                y=[float(value) / scale for _, value in one["values"]],
                name=legend(target["legendFormat"], one["metric"]),
                mode="lines",
                line={"width": 1.3, "shape": "hv" if states else "linear"},
                stackgroup="all" if stacked else None,
            )
    made.update_layout(
        height=height_px, margin={"t": 4, "b": 8, "l": 60, "r": 12}, template="plotly_white",
        font={"size": 11}, showlegend=True,
        legend={"orientation": "h", "y": -0.16, "font": {"size": 10}},
    )  # fmt: skip
    made.update_xaxes(range=[-minutes, 0], ticksuffix=" min")
    made.update_yaxes(**axis(defaults, states=states))
    return made


def axis(defaults: Mapping[str, object], *, states: bool) -> Json:
    if states:
        return {"tickvals": [0, 1, 2], "ticktext": ["Healthy", "Recovering", "Unhealthy"]}
    shown: Json = {"rangemode": "tozero"}
    match defaults.get("unit"):
        case "percentunit":
            shown["tickformat"] = ".0%"
        case "bytes":
            shown["ticksuffix"] = " GiB"
        case "celsius":
            shown["ticksuffix"] = " °C"
        case "watt":
            shown["ticksuffix"] = " W"
        case "hertz":
            shown["ticksuffix"] = "Hz"
        case "s":
            shown["ticksuffix"] = "s"
        case "reqps":
            shown["ticksuffix"] = " /s"
    if "max" in defaults:
        shown["range"] = [0, 1.02 * defaults["max"]]
    return shown


def legend(pattern: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), pattern)


if __name__ == "__main__":
    main()
