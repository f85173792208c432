"""The dashboard's file is what its program writes, and its panels do not overlap."""

from __future__ import annotations

from tests.observability.tools import ROOT, dashboard


def test_the_file_is_what_the_program_writes() -> None:
    written = (ROOT / "deploy/grafana/gpuplugin.json").read_text()
    assert written == dashboard().text(), "run: python deploy/grafana/dashboard.py"


def test_panels_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    panels = dashboard().dashboard()["panels"]
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_the_variables_are_cluster_node_and_gpu() -> None:
    variables = [one["name"] for one in dashboard().dashboard()["templating"]["list"]]
    assert variables == ["datasource", "cluster", "node", "gpu"]
    for expression in dashboard().expressions():
        assert 'cluster=~"$cluster"' in expression
        assert 'instance=~"$node"' in expression
