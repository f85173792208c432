"""The page as text; that a browser draws it is tested in tests/e2e."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from sim.study.html import page_of
from sim.study.html.charts import KIND_COLOURS, LANES_SHOWN, NEUTRAL, Colours
from sim.study.report import report_of
from sim.study.sentences import number, percent
from tests.unit.sim.outcomes import change, gpu, outcome, record, sample, segment


def page(done: Any, description: str = "") -> str:
    return page_of(done, report_of(done), description)


def plots(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="plots">(.*?)</script>', text, re.DOTALL)
    assert found
    read: dict[str, Any] = json.loads(found[1])
    return read


def words(text: str) -> str:
    """The page without its scripts and styles."""
    return re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL)


def shared() -> Any:
    slices = [
        ("a-0", segment(1000, 1002)),
        ("b-0", segment(1002, 1002.2, switching=True)),
        ("b-0", segment(1002.2, 1004)),
        ("b-0", segment(1004, 1006)),
    ]
    return outcome(
        record("a-0", latency_ms=[4, 8], busy_s=40),
        record("b-0", latency_ms=[9], busy_s=30),
        gpus=[gpu(slices=slices, samples=[sample(one, a_0=10, b_0=20) for one in range(1, 100)])],
    )


def test_the_page_has_a_plot_for_each_thing_that_people_look_at() -> None:
    text = page(shared(), "Two of them")
    assert set(plots(text)) == {"latency", "slices-0", "memory-0", "utilisation", "temperature"}
    for title in (
        "How long requests took",
        "Who ran when on GPU 0, slice by slice",
        "Who held the memory of GPU 0",
        "How busy each GPU was",
        "How warm each GPU was",
        "At full clocks all the time",
        "Never: every GPU was Healthy all the time.",
        "Tenants in numbers",
        "Two of them",
    ):
        assert title in words(text)


def test_every_plot_has_titles_on_its_axes() -> None:
    for name, figure in plots(page(shared())).items():
        assert figure["layout"]["xaxis"]["title"]["text"], name
        assert name.startswith("slices") or figure["layout"]["yaxis"]["title"]["text"], name


def test_a_tenant_has_one_colour_everywhere() -> None:
    drawn = plots(page(shared()))
    seen: dict[str, set[str]] = {"a": set(), "b": set()}
    for curve in drawn["latency"]["data"]:
        seen[curve["name"][0]].add(curve["line"]["color"])
    for bar in drawn["slices-0"]["data"]:
        if bar["width"] > 0.5:  # a narrow one is a switch
            seen[bar["y"][0][0]].add(bar["marker"]["color"])
    for band in drawn["memory-0"]["data"]:
        if "name" in band and band["name"] != "driver":
            seen[band["name"][0]].add(band["line"]["color"])
    assert seen == {"a": {KIND_COLOURS[0]}, "b": {KIND_COLOURS[1]}}


def test_slices_are_joined_and_switches_are_bars_of_their_own() -> None:
    bars = plots(page(shared()))["slices-0"]["data"]
    lengths = {(bar["y"][0], bar["width"] < 0.5): bar["x"] for bar in bars}
    assert lengths == {("a-0", False): [2], ("b-0", True): [0.2], ("b-0", False): [3.8]}


def test_slices_that_are_not_drawn_are_said() -> None:
    slices = [(f"{name}-0", segment(at, at + 0.01)) for at in range(2000) for name in "ab"]
    done = outcome(record("a-0"), record("b-0"), gpus=[gpu(slices=slices)])
    assert "The first 3,000 of 4,000 slices and switches are drawn." in words(page(done))
    assert "are drawn." not in words(page(shared()))


def test_who_is_alone_takes_no_turns() -> None:
    done = outcome(record("a-0"), gpus=[gpu(slices=[("a-0", segment(1000, 1100))])])
    text = words(page(done))
    assert "No tenant had to take turns: nothing was lost." in text
    assert "</i>switch</span>" not in text
    assert "Switches took 3.3 % of the time" in words(page(shared()))
    assert "</i>switch</span>" in words(page(shared()))


@pytest.mark.parametrize("most_ms", [110, 250, 900, 5000, 1e6])
def test_an_axis_of_times_has_marks_whatever_its_span(most_ms: float) -> None:
    done = outcome(record("a-0", latency_ms=[100, most_ms], work_ms=100))
    marks = plots(page(done))["latency"]["layout"]["xaxis"]["ticktext"]
    assert 2 <= len(marks) <= 7


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_lines_of_gpus_have_colours_of_their_own_and_do_not_hide_each_other(count: int) -> None:
    gpus = [gpu(index, samples=[sample(1), sample(2)]) for index in range(count)]
    lines = plots(page(outcome(gpus=gpus)))["temperature"]["data"]
    assert len({line["line"]["color"] for line in lines}) == count
    widths = [line["line"]["width"] for line in lines]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) == count


@pytest.mark.parametrize("count", [7, 16, 40])
def test_of_many_lines_most_and_least_have_a_colour_and_the_rest_is_grey(count: int) -> None:
    gpus = [
        gpu(index, samples=[replace(sample(at), temperature_c=40.0 + index) for at in (1, 2)])
        for index in range(count)
    ]
    text = page(outcome(gpus=gpus))
    lines = plots(text)["temperature"]["data"]
    shown = min(count, 32)
    assert len(lines) == shown
    assert [line["line"]["color"] for line in lines].count(NEUTRAL) == shown - 2
    assert [line["name"] for line in lines[-2:]] == ["GPU 0", f"GPU {shown - 1}"]
    assert NEUTRAL not in {line["line"]["color"] for line in lines[-2:]}
    for told in ("GPU 0: least on average", f"GPU {shown - 1}: most on average"):
        assert told in words(text)
    assert f"{shown - 2} more GPUs" in words(text)


def test_where_one_has_the_gpu_alone_a_sentence_says_what_a_plot_would_not() -> None:
    done = outcome(
        record("a-0", latency_ms=[100, 100], work_ms=100),
        gpus=[gpu(slices=[("a-0", segment(1000, 1100))])],
    )
    text = page(done)
    assert not {"latency", "slices-0"} & set(plots(text))
    assert "Every request of a took 100 ms; alone it takes 100 ms." in words(text)
    assert "From 1.000 s on a-0 had the GPU to itself for 0.1 s." in words(text)


def test_nothing_is_fetched_and_names_are_text() -> None:
    done = shared()
    done.scenario = "<img src=x onerror=alert(1)>"
    done.tenants[0].name = "</script><b>-0"
    text = page(done, "<i>about</i>")
    own = words(text)
    assert "<img" not in own
    assert "<i>about" not in own
    assert text.count("</script>") == 3
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", own)
    assert "default-src 'none'" in own
    assert plots(text)["latency"]["data"][0]["name"] == "</script><b>"
    # After this an HTML parser takes the end of the script element for a part of it.
    done.tenants[0].name = "<!--<script>-0"
    assert "<!--<script" not in page(done).partition('id="plots"')[2]


def test_many_gpus_and_tenants_are_limited_and_the_page_says_what_it_left_out() -> None:
    tenants, gpus = [], []
    for index in range(12):
        names = [f"kind{number}-{index}" for number in range(15)]
        tenants += [record(name, f"GPU-{index}", [2.0, 3.0], busy_s=1) for name in names]
        slices = [
            (name, segment(1000 + 2 * turn, 1002 + 2 * turn)) for turn, name in enumerate(names)
        ]
        samples = [sample(at_s, **{name.replace("-", "_"): 1 for name in names}) for at_s in (1, 2)]
        gpus.append(gpu(index, slices=slices, samples=samples))
    done = outcome(*tenants, gpus=gpus)
    text = page(done)
    drawn, said = plots(text), words(text)
    assert "8 of 15 kinds of tenants are shown" in said
    assert "3 of 12 GPUs are shown" in said
    assert "4 of 12 GPUs with tenants are shown: the fullest." in said
    assert len(drawn["utilisation"]["data"]) == 12
    assert "6 others share the last lane." in said
    rows = {name for bar in drawn["slices-0"]["data"] for name in bar["y"]}
    assert len(rows) == LANES_SHOWN
    # Ten kinds, the driver, the others, and the line of all there is.
    assert len(drawn["memory-0"]["data"]) == 13


def test_health_has_a_lane_for_each_gpu_that_changed() -> None:
    done = outcome(gpus=[gpu(0), gpu(1), gpu(2)])
    done.changes = [
        change(10, "Unhealthy", "GPU-1", "Xid 79"),
        change(30, "Recovering", "GPU-1", "Xid 79"),
        change(60, "Healthy", "GPU-1"),
    ]
    text = page(done)
    healthy, recovering, unhealthy = plots(text)["health"]["data"]
    assert (unhealthy["base"], unhealthy["x"]) == ([10], [20])
    assert (recovering["base"], recovering["x"]) == ([30], [30])
    assert (healthy["base"], healthy["x"]) == ([0, 60], [10, 40])
    assert unhealthy["customdata"] == ["Xid 79"]
    assert set(unhealthy["y"]) == {"GPU 1"}
    assert "2 more GPUs were Healthy all the time." in words(text)


def test_a_line_is_broken_where_the_gpu_did_not_answer() -> None:
    samples = [sample(at_s) for at_s in (1, 2, 3, 60, 61, 61.5)]
    (line,) = plots(page(outcome(gpus=[gpu(samples=samples)])))["temperature"]["data"]
    assert line["y"] == [50, 50, 50, None, 50, 50, 50]
    assert line["x"][3] == 4


@pytest.mark.parametrize(
    "done",
    [
        outcome(gpus=[gpu(samples=[])]),
        outcome(record("died-0", ended_s=0, ended="oom"), gpus=[gpu(samples=[sample(1)])]),
        outcome(record("x-0", "gone", latency_ms=[1]), until_s=0.01),
    ],
)
def test_a_run_with_next_to_nothing_has_a_page(done: Any) -> None:
    text = page(done)
    assert "NaN" not in json.dumps(plots(text))
    assert "What came out" in text


def test_kinds_beyond_the_colours_are_grey() -> None:
    many = outcome(*(record(f"k{number}-0", busy_s=20 - number) for number in range(12)))
    colours = Colours(report_of(many))
    assert [colours.of(f"k{number}-7") for number in range(8)] == list(KIND_COLOURS)
    assert colours.of("k8-0") == NEUTRAL
    assert colours.legend()[-1] == (NEUTRAL, "other kinds")


def test_the_tables_have_the_numbers_of_the_json_report() -> None:
    done = shared()
    report = json.loads(report_of(done).model_dump_json())
    text = words(page(done))
    for kind in report["kinds"]:
        assert f"{kind['served']:,}" in text
        assert f"{number(kind['slowdown'])} x" in text
        assert number(kind["latency_ms"]["p99"]) in text
    curves = {one["name"]: one for one in plots(page(done))["latency"]["data"]}
    for kind in report["kinds"]:
        assert curves[kind["kind"]]["x"] == [took_ms for _, took_ms in kind["latency_curve"]]
    assert percent(report["utilization"]) in text
