"""The table, the picture and the verdicts say what was found."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from benchmarks.plot import as_svg
from benchmarks.results import Estimate, Interval, Ratio
from benchmarks.show import WIDTH, as_table
from benchmarks.targets import TARGETS, Target, judged
from tests.unit.benchmarks.runs import a_figure, a_run, with_ratio, with_verdict

TARGET = Target("allocate", "8 x 1*", "engine *", 15, "us")
AGAINST = Target("allocate", "8 x 10", "engine *", 1.1, floor="empty handler")


def test_a_figure_meets_a_target_or_not() -> None:
    assert judged(a_figure(15), (TARGET,)).verdicts[0].met
    missed = judged(a_figure(15.1), (TARGET,)).verdicts[0]
    assert (missed.target, missed.met) == ("p50 <= 15 us", False)
    assert not judged(replace(a_figure(1), subject="other"), (TARGET,)).verdicts
    assert not judged(replace(a_figure(1), unit="ms"), (TARGET,)).verdicts


def test_a_target_for_a_ratio_looks_at_that_ratio() -> None:
    figure = with_ratio(a_figure(99), 1.05, 1, 1.1)
    assert judged(figure, (AGAINST,)).verdicts[0].met
    assert not judged(with_ratio(figure, 1.2, 1, 1.3), (AGAINST,)).verdicts[0].met
    assert not judged(a_figure(99), (AGAINST,)).verdicts
    other = replace(figure, ratios=(Ratio("empty handler", "p99", 1.0, Interval(1, 1)),))
    assert not judged(other, (AGAINST,)).verdicts


def test_a_target_may_be_a_least() -> None:
    target = replace(TARGET, at_least=True)
    assert target.text == "p50 >= 15 us"
    assert judged(a_figure(16), (target,)).verdicts[0].met
    assert not judged(a_figure(14), (target,)).verdicts[0].met


def test_targets_are_for_our_own() -> None:
    for target in TARGETS:
        assert target.subject.startswith(("gpuplugin", "engine ", "in process"))


def test_the_table_shows_figures_ratios_and_verdicts() -> None:
    figure = with_verdict(with_ratio(a_figure(12.34, 12, None), 1.05, 1.01, 1.09), met=False)
    text = "\n".join(as_table(a_run(figure, notes=("no compiler",))))
    for wanted in (
        "ALLOCATE",
        "12.3 [12.0-?]",
        "1.05x empty handler [1.01-1.09]",
        "MISS p50 <= 15 us",
        "Note: no compiler",
        "1 targets checked, 1 figures miss one",
        "2 cores of A fast one",
    ):
        assert wanted in text


def test_of_a_family_the_worst_is_shown_and_one_that_misses_is_worse_than_one_that_is_slow() -> (
    None
):
    def size(number: int, value: float, *, met: bool) -> str:
        figures = [
            replace(with_verdict(a_figure(one, 1, 2), met=ok), case=f"request {n}", family="sizes")
            for n, one, ok in ((1, 10.0, True), (2, 30.0, True), (number, value, met))
        ]
        return "\n".join(as_table(a_run(*figures)))

    assert "request 2 (worst)" in size(3, 20, met=True)
    assert "request 3 (worst)" in size(3, 20, met=False)
    assert "request 1" not in size(3, 20, met=False)
    figures = [replace(a_figure(n), case=f"request {n}", family="sizes") for n in (1, 2)]
    everything = "\n".join(as_table(a_run(*figures), everything=True))
    assert "request 1" in everything
    assert "worst" not in everything


def test_families_of_two_suites_are_two_families() -> None:
    prefer = replace(a_figure(500), suite="prefer", case="request 1", family="8 x 10")
    text = "\n".join(as_table(a_run(a_figure(200), prefer)))
    assert "200" in text
    assert "500" in text


def test_the_table_fits_a_hundred_columns() -> None:
    ratios = tuple(Ratio(f"floor number {n}", "p50", 1.0, Interval(0.99, 1.01)) for n in range(9))
    figure = replace(a_figure(123.4, 120, 130), ratios=ratios, p99=Estimate(1, Interval(1, 2)))
    assert max(map(len, as_table(a_run(figure)))) <= WIDTH == 100


@pytest.mark.parametrize("values", [(5.0,), (1.0, 1e6), (0.0, 3.0), (10.0, 10.0)])
def test_the_picture_is_sound_and_has_every_figure_that_an_axis_can_show(
    values: tuple[float, ...],
) -> None:
    figures = [
        replace(with_verdict(a_figure(value, value * 0.9, value * 1.1), met=False), case=f"c<{n}>")
        for n, value in enumerate(values)
    ]
    root = ET.fromstring(as_svg(a_run(*figures)))  # noqa: S314 - our own
    name = "{http://www.w3.org/2000/svg}"
    circles = list(root.iter(f"{name}circle"))
    assert len(circles) == sum(value > 0 for value in values)
    width = float(root.attrib["width"])
    assert all(0 < float(one.attrib["cx"]) < width for one in circles)
    ticks = [one for one in root.iter(f"{name}line") if one.attrib["class"] == "grid"]
    assert len(ticks) >= 2
    assert [one.attrib["class"] for one in root.iter(f"{name}g")] == ["miss"] * len(circles)


def test_the_picture_sets_floors_apart() -> None:
    floor = replace(a_figure(10), case="empty handler")
    run = a_run(floor, with_ratio(a_figure(12), 1.2, 1.1, 1.3))
    root = ET.fromstring(as_svg(run))  # noqa: S314 - our own
    groups = [one.attrib["class"] for one in root.iter("{http://www.w3.org/2000/svg}g")]
    assert groups == ["floor", ""]
