"""The pages of an advice and of a sweep: what must be seen without a manual."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from sim.advise.advice import Advice, Goals, Plan, Row
from sim.advise.page import advice_page
from sim.advise.workload import parsed_workload
from sim.cli.advise import as_json
from sim.study.html.charts import KIND_COLOURS, NEUTRAL
from sim.study.html.sweeppage import sweep_page
from sim.study.sweep import Combination, Estimate, SweepReport
from tests.unit.sim.html.test_page import plots, words

ROW = Row(
    replicas=1, sharing=1, p50=1.0, p95=1.0, p99=1.0, ooms_per_week=0.0, refused=0.0, left_out=7,
    utilization=0.1, switching=0.01, worst="api", keeps=True,
)  # fmt: skip


def advice(misses_from: int | None = 6, missed: dict[str, Any] | None = None) -> Advice:
    """Slowdown grows with the number of replicas; from one of them on a goal is missed."""
    rows = []
    for replicas in (1, 2, 3, 4, 6, 8, 10):
        row = replace(ROW, replicas=replicas, sharing=replicas, p95=float(replicas))
        if misses_from is not None and replicas >= misses_from:
            row = replace(row, keeps=False, **(missed or {}))
        rows.append(row)
    replicas = max((row.replicas for row in rows if row.keeps), default=0)
    plan = Plan("l4", (parsed_workload("api:15/100/2:8"),), Goals(4.0))
    return Advice(plan, tuple(rows), replicas, {}, ())


def figure(text: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = plots(text)[name]
    return found


def told(chart: dict[str, Any]) -> list[str]:
    return [one["text"] for one in chart["layout"].get("annotations", [])]


def test_the_number_that_is_recommended_is_marked_in_every_chart_over_replicas() -> None:
    text = advice_page(advice())
    assert "recommended: 4" in told(figure(text, "slowdown"))
    for name in ("slowdown", "leftout", "time"):
        shapes = figure(text, name)["layout"]["shapes"]
        assert [shape["x0"] for shape in shapes if shape["type"] == "line"] == [4], name
        # The shade begins between the last number that keeps the goals and the first that does not.
        assert [shape["x0"] for shape in shapes if shape["type"] == "rect"] == [5], name


@pytest.mark.parametrize(
    ("missed", "said"),
    [
        ({}, "from 6 on: too slow"),
        ({"refused": 0.2}, "from 6 on: memory does not fit"),
        ({"ooms_per_week": 3.0}, "from 6 on: memory runs out"),
        ({"p95": None}, "from 6 on: nothing is done"),
    ],
)
def test_the_knee_is_named_with_what_is_missed(missed: dict[str, Any], said: str) -> None:
    assert said in told(figure(advice_page(advice(missed=missed)), "slowdown"))


def test_where_all_or_none_keeps_the_goals() -> None:
    every = figure(advice_page(advice(misses_from=None)), "slowdown")
    assert told(every) == ["recommended: 10"]
    assert [shape["type"] for shape in every["layout"]["shapes"]] == ["line"]
    none = figure(advice_page(advice(misses_from=1)), "slowdown")
    assert told(none) == ["from 1 on: too slow"]
    assert [shape["type"] for shape in none["layout"]["shapes"]] == ["rect"]


def test_the_answer_is_the_sentence_that_stands_out() -> None:
    (answer,) = re.findall(r'<li class="answer">(.*?)</li>', advice_page(advice()))
    assert answer.startswith("Make 4 replicas of the NVIDIA L4")


def estimate(mean: float) -> Estimate:
    return Estimate(mean=mean, low=mean - 0.5, high=mean + 0.5)


def sweep(models: int, *, without: str = "") -> SweepReport:
    """Two numbers of replicas and some models; the figures grow with the model's number."""
    # What each figure is for the first model, and by how much it grows.
    figures = {
        "deprived": (0.0, 0.0),
        "slowdown_p95": (2.0, 1.0),
        "utilization": (0.0, 0.1),
        "fairness": (1.0, 0.0),
    }
    names = (*figures, "slowdown", "ooms", "wait_max_s", "switching_share", "waited", "served")
    combinations = [
        Combination(
            settings={"model": f"m{number}", "replicas": replicas},
            figures={
                name: estimate(figures[name][0] + figures[name][1] * number)
                if name in figures and not (name == without and number == 0)
                else None
                for name in names
            },
            runs=[],
        )
        for number in range(models)
        for replicas in (2, 4)
    ]
    return SweepReport(scenario="s", until_s=60, seeds=[1, 2], combinations=combinations)


def lines(text: str, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = figure(text, name)["data"]
    return found


def colour_of(traces: list[dict[str, Any]], label: str) -> str:
    (found,) = [one["line"]["color"] for one in traces if f" {label}:" in one["hovertemplate"]]
    return str(found)


def test_a_combination_has_one_colour_in_every_chart_of_a_sweep() -> None:
    text = sweep_page(sweep(3, without="fairness"))
    assert len(lines(text, "fairness")) == 2
    for label in ("model=m1", "model=m2"):
        colours = {
            colour_of(lines(text, name), label)
            for name in ("slowdown_p95", "fairness", "utilization")
        }
        assert len(colours) == 1, label


def test_the_axis_is_the_setting_that_is_a_number_and_has_most_values() -> None:
    chart = figure(sweep_page(sweep(5)), "slowdown_p95")
    assert chart["layout"]["xaxis"]["title"]["text"] == "replicas"
    assert chart["layout"]["xaxis"]["categoryarray"] == ["2", "4"]


@pytest.mark.parametrize(
    ("name", "best", "worst"),
    [("slowdown_p95", "model=m0", "model=m8"), ("utilization", "model=m8", "model=m0")],
)
def test_of_many_lines_best_and_worst_have_a_colour_and_all_are_there(
    name: str, best: str, worst: str
) -> None:
    text = sweep_page(sweep(9))
    traces = lines(text, name)
    assert len(traces) == 9
    assert colour_of(traces, best) == KIND_COLOURS[2]
    assert colour_of(traces, worst) == KIND_COLOURS[1]
    assert [one["line"]["color"] for one in traces].count(NEUTRAL) == 7
    for line in (f"best on average: {best}", f"worst on average: {worst}", "7 others"):
        assert line in words(text)


def test_lines_that_are_all_alike_have_no_best() -> None:
    text = sweep_page(sweep(9))
    assert {one["line"]["color"] for one in lines(text, "fairness")} == {NEUTRAL}
    assert "9, all alike" in words(text)


def test_an_interval_never_goes_below_nothing() -> None:
    for trace in lines(sweep_page(sweep(3)), "utilization"):
        for mean, below in zip(trace["y"], trace["error_y"]["arrayminus"], strict=True):
            assert mean - below >= -1e-9


def test_what_is_drawn_is_what_the_json_has() -> None:
    report = sweep(3)
    text = sweep_page(report)
    data = json.loads(report.model_dump_json())
    for name, factor in (("slowdown_p95", 1), ("utilization", 100), ("fairness", 1)):
        drawn = {
            (one["hovertemplate"].partition(" %{x} ")[2].partition(":")[0], x): y
            for one in lines(text, name)
            for x, y in zip(one["x"], one["y"], strict=True)
        }
        wanted = {
            (f"model={one['settings']['model']}", str(one["settings"]["replicas"])): pytest.approx(
                factor * one["figures"][name]["mean"]
            )
            for one in data["combinations"]
        }
        assert drawn == wanted


def test_what_is_drawn_of_an_advice_is_what_its_json_has() -> None:
    made = advice(missed={"refused": 0.2})
    text, data = advice_page(made), json.loads(json.dumps(as_json(made, datetime.now(UTC))))
    drawn = {one["name"]: one for one in lines(text, "slowdown") if "name" in one}
    for name in ("p50", "p95", "p99"):
        wanted = [(row["replicas"], row[name]) for row in data["rows"]]
        assert list(zip(drawn[name]["x"], drawn[name]["y"], strict=True)) == wanted
    busy, switching = lines(text, "time")
    assert busy["y"] == [100 * row["utilization"] for row in data["rows"]]
    assert switching["y"] == [100 * row["switching"] for row in data["rows"]]
    assert lines(text, "leftout")[0]["y"] == [row["left_out"] for row in data["rows"]]
    assert data["replicas"] == 4
    assert data["sentence"] in words(text)
