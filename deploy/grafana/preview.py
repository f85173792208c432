"""Draws the dashboard's queries over a Prometheus server without Grafana, as one HTML page.

For the picture in docs/metrics.md: `python deploy/grafana/preview.py --prometheus URL --out FILE`.
Needs plotly (`pip install 'gpuplugin-sim[report]'`). Stat panels are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

sys.path.insert(0, str(Path(__file__).parent))
from dashboard import ROWS, Panel, Query  # a module beside this file

COLUMNS = 3
STEPS = 150
COLOURS = {"Healthy": "seagreen", "Unhealthy": "firebrick"}
VARIABLES = {"$cluster": ".*", "$node": ".*", "$gpu": ".*", "$__rate_interval": "20s"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prometheus", required=True, metavar="URL")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--out", required=True, metavar="FILE")
    options = parser.parse_args()
    panels = [panel for row in ROWS.values() for panel in row if panel.kind != "stat"]
    rows = -(-len(panels) // COLUMNS)
    figure = make_subplots(
        rows=rows,
        cols=COLUMNS,
        subplot_titles=[panel.title for panel in panels],
        vertical_spacing=0.35 / rows,
        horizontal_spacing=0.05,
    )
    end_s = time.time()
    for position, panel in enumerate(panels):
        where = {"row": position // COLUMNS + 1, "col": position % COLUMNS + 1}
        for query in panel.queries:
            for line in lines(options.prometheus, panel, query, end_s, 60 * options.minutes):
                figure.add_trace(line, **where)
        figure.update_yaxes(**_axis(panel), **where)
    figure.update_layout(
        height=230 * rows, width=1500, margin={"t": 40, "b": 30, "l": 50, "r": 20},
        showlegend=False, template="plotly_white", font={"size": 10},
    )  # fmt: skip
    figure.update_xaxes(range=[-options.minutes, 0])
    figure.write_html(options.out, include_plotlyjs=True, config={"displayModeBar": False})


def lines(base: str, panel: Panel, query: Query, end_s: float, length_s: float) -> list[go.Scatter]:
    expression = query.expression
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    parameters = {
        "query": expression,
        "start": f"{end_s - length_s:.3f}",
        "end": f"{end_s:.3f}",
        "step": f"{length_s / STEPS:.3f}",
    }
    url = f"{base}/api/v1/query_range?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - an address of the user's
        series = json.load(answer)["data"]["result"]
    return [
        go.Scatter(
            x=[(float(at_s) - end_s) / 60 for at_s, _ in one["values"]],
            y=[float(value) for _, value in one["values"]],
            mode="lines",
            line={
                "width": 1.2,
                "shape": "hv" if panel.kind == "state-timeline" else "linear",
                "color": COLOURS.get(one["metric"].get("health", "")),
            },
            stackgroup="all" if panel.stacked else None,
        )
        for one in series
    ]


def _axis(panel: Panel) -> dict[str, object]:
    axis: dict[str, object] = {"rangemode": "tozero"}
    if panel.unit == "percentunit":
        axis["tickformat"] = ".0%"
    if panel.most is not None:
        axis["range"] = [0, panel.most * 1.02]
    if panel.kind == "state-timeline":
        axis |= {"tickvals": [0, 1, 2], "ticktext": ["Healthy", "Recovering", "Unhealthy"]}
    return axis


if __name__ == "__main__":
    main()
