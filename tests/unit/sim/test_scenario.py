"""Scenarios, and the words of their errors."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.node.scenario import (
    Scenario,
    ScenarioError,
    load_scenario,
    parse_scenario,
    scenario_names,
)

if TYPE_CHECKING:
    from pathlib import Path

GPUS = "gpus: [{model: t4, count: 2}]\n"


@pytest.mark.parametrize("name", scenario_names())
def test_every_shipped_scenario_loads_under_its_own_name(name: str) -> None:
    scenario = load_scenario(name)

    assert scenario.name == name
    assert scenario.description
    assert scenario.gpu_count >= 1


def test_a_scenario_of_the_user_is_read_from_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\n" + GPUS)

    assert load_scenario(str(path)).gpu_count == 2


def test_defaults() -> None:
    scenario = parse_scenario(GPUS, "x")

    assert (scenario.seed, scenario.tenants, scenario.faults) == (1, [], [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("", "", id="empty"),
        pytest.param("[]", "", id="a list"),
        pytest.param("{}", "gpus: is required", id="no GPUs"),
        pytest.param("gpus: []", "gpus: ", id="an empty list of GPUs"),
        pytest.param(
            "gpus: [{model: none}]", "gpus[0].model: no GPU model is called 'none'", id="model"
        ),
        pytest.param("gpus: [{model: t4, count: 0}]", "gpus[0].count: ", id="count"),
        pytest.param("gpus: [{model: t4, number: 1}]", "gpus[0].number: ", id="unknown key"),
        pytest.param(GPUS + "sede: 1", "sede: ", id="unknown key at the top"),
        pytest.param(
            GPUS + "tenants: [{name: a, gpu: 2}]",
            "tenants[0].gpu: 2, but the node has GPUs 0 to 1",
            id="tenant of no GPU",
        ),
        pytest.param(
            GPUS + "tenants: [{name: a, gpu: 0, utilization: 1.5}]",
            "tenants[0].utilization: ",
            id="more than full load",
        ),
        pytest.param(
            GPUS + "faults: [{at_s: 1, gpu: 7, what: {kind: lost}}]",
            "faults[0].gpu: 7",
            id="fault on no GPU",
        ),
        pytest.param(
            GPUS + "faults: [{at_s: -1, gpu: 0, what: {kind: lost}}]",
            "faults[0].at_s: ",
            id="before the start",
        ),
        pytest.param(
            GPUS + "faults: [{at_s: 1, gpu: 0, what: {kind: meteor}}]",
            "faults[0].what: ",
            id="unknown kind",
        ),
        pytest.param(
            GPUS + "faults: [{at_s: 1, gpu: 0, what: {kind: xid, xid: 0}}]",
            "faults[0].what.xid: ",
            id="no Xid",
        ),
        pytest.param(
            GPUS + "tenants: [{name: a, gpu: 0, memory_gib: .inf}]",
            "tenants[0].memory_gib: ",
            id="endless memory",
        ),
        pytest.param(
            GPUS + "faults: [{at_s: 1, what: {kind: hang}}]",
            "faults[0].gpu: hang applies to a GPU: an index, a list of them, or 'all'",
            id="no GPU",
        ),
        pytest.param(
            GPUS + "faults: [{at_s: 1, gpu: 0, what: {kind: driver-down}}]",
            "faults[0].gpu: driver-down applies to the whole node: leave this key out",
            id="a GPU too many",
        ),
        *(
            pytest.param(
                GPUS + f"faults: [{{at_s: 1, gpu: {gpu}, what: {{kind: lost}}}}]",
                "faults[0].gpu: an index, a list of different indices, or 'all'",
                id=f"GPU {gpu}",
            )
            for gpu in ("-1", "none", "[]", "[0, 0]", "[0, x]", "1.5", "true")
        ),
        pytest.param(
            GPUS + "faults: [{at_s: 1, gpu: [0, 2], what: {kind: lost}}]",
            "faults[0].gpu: 2, but the node has GPUs 0 to 1",
            id="fault on no GPU of a list",
        ),
        *(
            pytest.param(
                GPUS + f"faults: [{{at_s: 1, what: {{kind: {kind}, for_s: 0}}}}]",
                "faults[0].what.for_s: ",
                id=f"{kind} without duration",
            )
            for kind in ("driver-hang", "watch-broken")
        ),
        pytest.param(
            GPUS + "faults: [{at_s: 1, gpu: 0, what: {kind: repartition}}]",
            "faults[0].what.mig: is required",
            id="no partitions",
        ),
        pytest.param(
            GPUS + "faults: [{at_s: 1, gpu: 1, what: {kind: repartition, mig: [1g.5gb]}}]",
            "faults[0].what.mig: t4 has no MIG profile '1g.5gb'; known: none",
            id="partitions that cannot be",
        ),
        pytest.param(
            GPUS + "faults: [{at_s: 1, gpu: 0, what: {kind: xid, xid: 31, mig: 0}}]",
            "faults[0].what.mig: 0, but GPU 0 never has more than 0 MIG devices",
            id="Xid of no MIG device",
        ),
        *(
            pytest.param(
                GPUS + "faults: [{at_s: 1, gpu: 0, what: {kind: lost}, repeat: " + repeat + "}]",
                said,
                id=f"repeat {repeat}",
            )
            for repeat, said in (
                ("{every_s: 0, times: 2}", "faults[0].repeat.every_s: "),
                ("{every_s: 1, times: 0}", "faults[0].repeat.times: "),
                ("{every_s: 1}", "faults[0].repeat.times: is required"),
            )
        ),
        pytest.param("gpus: [", "mine:1: ", id="not YAML"),
        pytest.param(GPUS + "seed: 2001-99-99", "", id="impossible date"),
        pytest.param(GPUS + "seed: !!bool maybe", "", id="no boolean behind its tag"),
        pytest.param(GPUS + "name: " + "[" * 1000, "", id="too deep"),
    ],
)
@pytest.mark.usefixtures("usual_recursion_limit")
def test_an_error_names_the_scenario_and_the_key(text: str, said: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(text, "mine")
    assert str(caught.value).startswith("scenario mine")
    assert said in str(caught.value)


def test_an_xid_may_name_a_mig_device_that_a_repartition_makes() -> None:
    faults = (
        "faults: [{at_s: 2, gpu: 1, what: {kind: xid, xid: 31, mig: 1}},"
        " {at_s: 1, gpu: all, what: {kind: repartition, mig: [1g.10gb, 1g.10gb]}}]"
    )
    gpus = "gpus: [{model: h100-sxm5-80gb, count: 2}]\n"

    assert len(parse_scenario(gpus + faults, "x").faults) == 2


def test_all_wrong_keys_are_told_at_once() -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario("gpus: [{model: t4, count: 99}]\nseed: x\nother: 1\n", "mine")

    assert all(key in str(caught.value) for key in ("gpus[0].count", "seed", "other"))


def test_every_problem_has_its_line_and_the_nearest_key() -> None:
    text = (
        "gpus:\n- {model: t4, cuont: 2}\ntenants:\n- name: a\n  gpu: 0\n  utilisation: 0.3\n"
        "faults:\n- at_s: 1\n  gpu: 0\n  what:\n    kind: xid\n    xidd: 79\n"
    )
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(text, "mine")

    assert str(caught.value).splitlines()[1:] == [
        "mine:2: gpus[0].cuont: is not a known key; did you mean gpus.count?",
        "mine:6: tenants[0].utilisation: is not a known key; did you mean tenants.utilization?",
        "mine:10: faults[0].what.xid: is required",
        "mine:12: faults[0].what.xidd: is not a known key; did you mean faults.what.xid?",
    ]


def test_all_that_does_not_fit_together_is_told_at_once_with_its_line() -> None:
    text = GPUS + (
        "tenants:\n- {name: a, gpu: 2}\n- {name: b, gpu: 3}\n"
        "faults:\n- {at_s: 1, gpu: 7, what: {kind: lost}}\n"
    )
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(text, "mine")

    assert str(caught.value).splitlines()[1:] == [
        "mine:3: tenants[0].gpu: 2, but the node has GPUs 0 to 1",
        "mine:4: tenants[1].gpu: 3, but the node has GPUs 0 to 1",
        "mine:6: faults[0].gpu: 7, but the node has GPUs 0 to 1",
    ]


def test_the_plugins_configuration_in_it_is_checked_with_its_lines() -> None:
    text = GPUS + "config:\n  sharing:\n    timeSlicing:\n      resources:\n      - {name: gpu}\n"
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(text, "mine")

    (problem,) = str(caught.value).splitlines()[1:]
    assert problem == "mine:6: config.sharing.timeSlicing.resources[0].replicas: is required"


@pytest.mark.parametrize("name", ["no-such-scenario", "/", "/dev/null/x"])
def test_a_scenario_that_is_not_there_is_told_with_those_that_are(name: str) -> None:
    with pytest.raises(ScenarioError, match="homelab") as caught:
        load_scenario(name)
    assert name in str(caught.value)


def test_a_file_that_is_not_text_is_a_scenario_error(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe")

    with pytest.raises(ScenarioError):
        load_scenario(str(path))


def test_a_nul_in_a_name_is_a_scenario_error() -> None:
    with pytest.raises(ScenarioError):
        load_scenario("a\x00b")


@settings(max_examples=200)
@given(st.text(max_size=40))
def test_any_text_is_a_scenario_or_a_scenario_error(text: str) -> None:
    with contextlib.suppress(ScenarioError):
        assert isinstance(parse_scenario(text, "x"), Scenario)


def test_faults_may_have_their_old_name_but_not_both() -> None:
    fault = "[{at_s: 1, gpu: 0, what: {kind: lost}}]"
    old = parse_scenario(f"{GPUS}happenings: {fault}", "old")
    assert old == parse_scenario(f"{GPUS}faults: {fault}", "new")
    with pytest.raises(ScenarioError, match="happenings is the old name of faults"):
        parse_scenario(f"{GPUS}happenings: {fault}\nfaults: {fault}", "both")


def test_two_groups_of_pods_have_different_names() -> None:
    group = "{name: a, workload: {kind: closed-loop, busy_ms: 1}}"
    with pytest.raises(ScenarioError, match=r"pods\[1\].name: another group is named 'a', too"):
        parse_scenario(f"{GPUS}pods: [{group}, {group}]", "twice")
