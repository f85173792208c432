"""Which Xids count: the file's lists, and NVIDIA's variables with what their users expect."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.config.load import load_settings
from gpuplugin.config.loaded import ConfigError
from gpuplugin.config.plans import health_policy
from gpuplugin.config.values import parse_xids

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from gpuplugin.config.loaded import Loaded
    from gpuplugin.core.health import HealthPolicy

DISABLE, ENABLE = "DP_DISABLE_HEALTHCHECKS", "DP_ENABLE_HEALTHCHECKS"
SOME = (13, 31, 43, 45, 46, 48, 68, 74, 79, 94, 95, 109)
BY_CATALOGUE = {46, 48, 74, 79, 95, 109}


def loaded(folder: Path, text: str = "", **environment: str) -> Loaded:
    file = folder / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return load_settings({}, environment, str(file))


def policy(folder: Path, text: str = "", **environment: str) -> HealthPolicy:
    return health_policy(loaded(folder, text, **environment).settings)


def fatal(policy: HealthPolicy) -> set[int]:
    return {code for code in SOME if policy.xids.is_fatal(code)}


@pytest.mark.parametrize(
    ("variables", "acting"),
    [
        pytest.param({}, BY_CATALOGUE, id="nothing said"),
        pytest.param({DISABLE: ""}, BY_CATALOGUE, id="present but empty"),
        pytest.param({DISABLE: "79"}, BY_CATALOGUE - {79}, id="one more ignored"),
        pytest.param({DISABLE: "79,74"}, BY_CATALOGUE - {74, 79}, id="two more ignored"),
        pytest.param({DISABLE: "xids"}, set(), id="xids: all of them ignored"),
        pytest.param({DISABLE: "all"}, set(), id="all: nothing acts"),
        pytest.param({DISABLE: "ALL"}, set(), id="in any case"),
        pytest.param({DISABLE: " 79 , Xids "}, set(), id="with spaces"),
        pytest.param({ENABLE: "31"}, BY_CATALOGUE | {31}, id="one more acts"),
        pytest.param({ENABLE: "all"}, set(SOME), id="all of them act"),
        pytest.param({ENABLE: "xids"}, set(SOME), id="all of them act, by the other word"),
        pytest.param({DISABLE: "all", ENABLE: "79"}, {79}, id="all but 79, as its users expect"),
        pytest.param({DISABLE: "xids", ENABLE: "79,13"}, {13, 79}, id="all but two"),
        pytest.param({DISABLE: "79", ENABLE: "79"}, BY_CATALOGUE, id="enable wins"),
        pytest.param({DISABLE: "all", ENABLE: "all"}, set(SOME), id="enable all wins"),
    ],
)
def test_nvidias_variables(tmp_path: Path, variables: Mapping[str, str], acting: set[int]) -> None:
    assert fatal(policy(tmp_path, **variables)) == acting


@pytest.mark.parametrize(
    ("variables", "hardware_checks", "needs_events"),
    [
        ({}, True, True),
        ({DISABLE: "xids"}, True, True),
        ({DISABLE: "all"}, False, False),
        ({DISABLE: "all", ENABLE: "79"}, False, True),
    ],
)
def test_all_is_more_than_xids(
    tmp_path: Path, variables: Mapping[str, str], hardware_checks: bool, needs_events: bool
) -> None:
    found = policy(tmp_path, **variables)

    assert (found.hardware_checks, found.needs_events) == (hardware_checks, needs_events)


@pytest.mark.parametrize("variable", [DISABLE, ENABLE])
def test_a_malformed_token_is_told_and_takes_nothing_else_along(
    tmp_path: Path, variable: str
) -> None:
    got = loaded(tmp_path, "{}", **{variable: "79,seventy,-1,0,13"})

    health = got.settings.health
    assert (health.ignore_xids if variable == DISABLE else health.fatal_xids) == [79, 13]
    assert [problem.where for problem in got.warnings] == [variable] * 3
    for token, problem in zip(("seventy", "-1", "0"), got.warnings, strict=True):
        assert repr(token) in str(problem)


@pytest.mark.parametrize(
    ("text", "ignored", "acting"),
    [
        ("health: {ignoreXids: [79]}", [79], BY_CATALOGUE - {79}),
        ("health: {ignoreXids: all, fatalXids: [13]}", ["all"], {13}),
        ("health: {ignoreXids: '79, 74'}", [79, 74], BY_CATALOGUE - {74, 79}),
        ("health: {fatalXids: 31}", [], BY_CATALOGUE | {31}),
    ],
)
def test_the_file(tmp_path: Path, text: str, ignored: list[int | str], acting: set[int]) -> None:
    assert loaded(tmp_path, text).settings.health.ignore_xids == ignored
    assert fatal(policy(tmp_path, text)) == acting


def test_a_variable_replaces_the_files_list(tmp_path: Path) -> None:
    found = policy(tmp_path, "health: {ignoreXids: [79]}", **{DISABLE: "74"})

    assert fatal(found) == BY_CATALOGUE - {74}


@pytest.mark.parametrize("wrong", ["[79, nonsense]", "[-1]", "0", "[true]", "{a: 1}", "''", "1.5"])
def test_a_wrong_list_in_the_file_is_refused_by_its_key(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, f"health: {{ignoreXids: {wrong}}}")
    (problem,) = caught.value.problems
    assert problem.key.startswith("health.ignoreXids")
    assert "must be Xid numbers" in problem.message


def test_flapping_is_configured(tmp_path: Path) -> None:
    found = policy(
        tmp_path, "health: {quietPeriod: 10s, quietPeriodCap: 5m, flapMemory: 2h, blindAfter: 1m}"
    )
    assert (found.quiet_period_s, found.quiet_period_cap_s, found.flap_memory_s) == (10, 300, 7200)


@given(st.text())
def test_any_text_of_a_variable_is_read(text: str) -> None:
    good, bad = parse_xids(text)

    assert all((isinstance(one, int) and one > 0) or one in ("all", "xids") for one in good)
    assert all(token.strip() for token in bad)
    tokens = [part for part in text.split(",") if part.strip()]
    assert len(good) + len(bad) == len(tokens)
