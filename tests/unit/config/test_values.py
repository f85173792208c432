"""The spelling of single values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.config.values import full_resource_name, parse_duration_s

UNITS_NS = {
    "h": 3600 * 10**9,
    "m": 60 * 10**9,
    "s": 10**9,
    "ms": 10**6,
    "us": 10**3,
    "µs": 10**3,
    "ns": 1,
}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("1m30s", 90),
        ("1h", 3600),
        ("1.5h", 5400),
        ("500ms", 0.5),
        ("1.s", 1),
        (".5s", 0.5),
        ("10us", 1e-5),
        ("10µs", 1e-5),
        ("100ns", 1e-7),
        ("1h1m1s1ms", 3661.001),
        ("1s1s", 2),
        ("0s", 0),
    ],
)
def test_durations_as_go_reads_them(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        *("", "30", "s", "1 s", " 1s", "1s ", "1d", "1S", "1e3s", "1.2.3s", ".s", "1s30", "infs"),
        pytest.param("1s\n", id="newline"),
        pytest.param("\u0663s", id="digits of another script"),
    ],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        parse_duration_s(text)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(list(UNITS_NS))), min_size=1))
def test_a_duration_is_the_sum_of_its_parts(parts: list[tuple[int, str]]) -> None:
    text = "".join(f"{number}{unit}" for number, unit in parts)
    total_ns = sum(number * UNITS_NS[unit] for number, unit in parts)

    assert parse_duration_s(text) == pytest.approx(total_ns / 1e9)


@given(st.text(alphabet="0123456789.hmsuµn -+", max_size=12))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    said = repr(text)
    try:
        assert parse_duration_s(text) >= 0
    except ValueError as error:
        said = str(error)
    assert repr(text) in said


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("gpu", "nvidia.com/gpu"),
        ("nvidia.com/gpu", "nvidia.com/gpu"),
        ("mig-1g.5gb", "nvidia.com/mig-1g.5gb"),
        ("a" * 52, "nvidia.com/" + "a" * 52),
    ],
)
def test_the_prefix_is_added_where_it_is_missing(name: str, full: str) -> None:
    assert full_resource_name(name) == full


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        pytest.param("amd.com/gpu", "must have the prefix nvidia.com/", id="another vendor"),
        pytest.param("nvidia.com/a/b", "must have the prefix nvidia.com/", id="two slashes"),
        pytest.param("a" * 53, "is 64 characters long, the limit is 63", id="too long"),
        pytest.param("GPU", "lower-case", id="upper case"),
        pytest.param("nvidia.com/", "lower-case", id="only the prefix"),
        pytest.param("", "lower-case", id="empty"),
        pytest.param("gpu_x", "lower-case", id="underscore"),
        pytest.param("-gpu", "lower-case", id="leading hyphen"),
        pytest.param("gpu.", "lower-case", id="trailing dot"),
        pytest.param("gpu\n", "lower-case", id="newline"),
        pytest.param("g\u00e9pu", "lower-case", id="not ASCII"),
    ],
)
def test_a_resource_name_that_kubernetes_would_refuse(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        full_resource_name(name)


@given(st.text(max_size=70))
def test_a_full_name_is_its_own_full_name(name: str) -> None:
    try:
        full = full_resource_name(name)
    except ValueError:
        return
    assert full_resource_name(full) == full
    assert full.startswith("nvidia.com/")
    assert len(full) <= 63
