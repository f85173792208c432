"""The dashboard's file is what its program writes, and says at a glance how the GPUs are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.observability.tools import ROOT, dashboard

BOARD: dict[str, Any] = json.loads(dashboard().text())
PANELS: dict[str, dict[str, Any]] = {panel["title"]: panel for panel in BOARD["panels"]}


def test_the_file_is_what_the_program_writes() -> None:
    written = (ROOT / "deploy/grafana/gpuplugin.json").read_text()
    assert written == dashboard().text(), "run: python deploy/grafana/dashboard.py"


def test_panels_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    assert len(PANELS) == len(BOARD["panels"]), "two panels have one title"


def test_variables_narrow_down_every_panel() -> None:
    variables = [one["name"] for one in BOARD["templating"]["list"]]
    assert variables == ["datasource", "cluster", "node", "gpu", "namespace", "pod"]
    for expression in dashboard().expressions():
        assert 'cluster=~"$cluster"' in expression
        assert 'instance=~"$node"' in expression
        if "gpuplugin_pod_" in expression:
            assert 'namespace=~"$namespace",pod=~"$pod"' in expression


def colour(title: str, value: float) -> str:
    """The colour that a number has on the panel."""
    steps = PANELS[title]["fieldConfig"]["defaults"]["thresholds"]["steps"]
    (*_, last) = [step for step in steps if step["value"] is None or step["value"] <= value]
    return str(last["color"])


@pytest.mark.parametrize(
    ("title", "value", "expected"),
    [
        ("GPUs that pods can use", 0, "red"),
        ("GPUs that pods can use", 8, "green"),
        ("GPUs not healthy", 0, "green"),
        ("GPUs not healthy", 3, "red"),
        ("Nodes that cannot be watched", 0, "green"),
        ("Nodes that cannot be watched", 1, "red"),
        ("Replicas that are free", 0, "red"),
        ("Replicas that are free", 1, "green"),
        ("Pods at work on the busiest GPU", 2, "green"),
        ("Pods at work on the busiest GPU", 4, "orange"),
        ("Gain of sharing", 1.0, "orange"),
        ("Gain of sharing", 1.6, "green"),
    ],
)
def test_the_first_row_is_red_where_somebody_is_needed(
    title: str, value: float, expected: str
) -> None:
    assert PANELS[title]["gridPos"]["y"] == 0
    assert colour(title, value) == expected


def test_what_needs_pod_metrics_says_so_where_it_is_empty() -> None:
    for title, panel in PANELS.items():
        expressions = " ".join(target["expr"] for target in panel.get("targets", ()))
        if "gpuplugin_pod_" in expressions or title == "Replicas that are free":
            no_value = panel["fieldConfig"]["defaults"]["noValue"]
            assert no_value == "Needs the component pod-metrics", title


def test_every_line_has_a_name_and_every_share_a_unit() -> None:
    for title, panel in PANELS.items():
        for target in panel.get("targets", ()):
            assert target.get("legendFormat") or panel["type"] == "table", title
            if "_ratio" in target["expr"] and panel["type"] == "timeseries" and title != "Gain":
                assert panel["fieldConfig"]["defaults"]["unit"] == "percentunit", title
