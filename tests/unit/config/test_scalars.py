"""Scalars as sigs.k8s.io/yaml (go-yaml 2) has them, since NVIDIA's plugin reads with it.

The table follows `resolve` of go-yaml 2.4: its words, base prefixes and floats; no base 60, and
dates stay text.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from gpuplugin.config.document import parse_document
from gpuplugin.config.load import load_settings
from gpuplugin.config.loaded import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

TRUE = ("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON")
FALSE = ("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF")
ODD: tuple[tuple[str, object], ...] = (
    # Base 60 of YAML 1.1 is text.
    ("0:0", "0:0"), ("1:30", "1:30"), ("13:31", "13:31"), ("1:2:3", "1:2:3"), ("1:30.5", "1:30.5"),
    ("-1:30", "-1:30"), ("+1:30", "+1:30"),
    # Words are booleans, in three spellings of each.
    *((word, True) for word in TRUE),
    *((word, False) for word in FALSE),
    ("yEs", "yEs"), ("tRUE", "tRUE"), ("oN", "oN"), ("t", "t"), ("F", "F"),
    ("~", None), ("null", None), ("Null", None), ("NULL", None), ("nULL", "nULL"), ("", None),
    # Whole numbers: a leading 0 is octal, unless there is an 8 or 9.
    ("0", 0), ("00", 0), ("010", 8), ("-010", -8), ("08", 8.0), ("09", 9.0), ("0o10", 8),
    ("0O10", 8), ("0o8", "0o8"), ("0x1F", 31), ("0X1f", 31), ("-0x1F", -31), ("0b11", 3),
    ("-0b11", -3), ("0b12", "0b12"), ("0x", "0x"), ("0b", "0b"), ("+4", 4), ("1_000", 1000),
    ("1_", 1), ("1__0", 10), ("_1", "_1"), ("0_8", 8.0), ("1,000", "1,000"), ("4 ", 4),
    ("99999999999999999999", 99999999999999999999), ("9" * 5000, "9" * 5000),
    # Numbers with a point or an exponent.
    ("2.0", 2.0), ("2.", 2.0), (".5", 0.5), ("+.5", 0.5), ("-2.5", -2.5), ("1e3", 1000.0),
    ("1E+3", 1000.0), ("1e", "1e"), ("1.2.3", "1.2.3"), (".5_0", ".5_0"), ("1e999", "1e999"),
    (".inf", math.inf), ("+.Inf", math.inf), ("-.INF", -math.inf), (".iNF", ".iNF"),
    ("inf", "inf"), ("infinity", "infinity"), ("nan", "nan"),
    # Dates, versions, identities.
    ("2001-01-01", "2001-01-01"), ("2001-99-99", "2001-99-99"), ("v1", "v1"), ("1.29", 1.29),
    ("=", "="), ("0-3", "0-3"), ("1g.5gb", "1g.5gb"), ("GPU-8d3b7b5e", "GPU-8d3b7b5e"),
    ("\u0664", "\u0664"), ("1\u0664", "1\u0664"),
    # Quoted, it is always text; with a tag, what the tag says.
    ("'010'", "010"), ('"yes"', "yes"), ("'~'", "~"), ("!!str 010", "010"), ("!!float 2", 2.0),
    ("!!int '5'", 5),
)  # fmt: skip


@pytest.mark.parametrize(("written", "meant"), ODD, ids=lambda value: repr(value)[:20])
def test_an_odd_scalar_means_what_it_means_to_nvidias_plugin(written: str, meant: object) -> None:
    value = parse_document(f"key: {written}\n", "f").data["key"]

    assert (value, type(value)) == (meant, type(meant))


@pytest.mark.parametrize("written", [".nan", ".NaN", ".NAN"])
def test_what_is_no_number_is_a_number_of_its_own(written: str) -> None:
    value = parse_document(f"key: {written}\n", "f").data["key"]

    assert isinstance(value, float)
    assert math.isnan(value)


@pytest.mark.parametrize("key", ["010", "yes", "1:30", "~", "1.0", "2001-01-01"])
def test_keys_are_text_as_written(key: str) -> None:
    assert parse_document(f"{key}: 1\n", "f").data == {key: 1}


ENTRY = "sharing: {timeSlicing: {resources: [{name: gpu, replicas: %s, devices: %s}]}}"


@pytest.mark.parametrize(
    ("replicas", "devices", "said"),
    [
        ("1:30", "all", "replicas: must be a whole number, found '1:30'"),
        ("yes", "all", "replicas: must be a whole number, found True"),
        ("0o", "all", "replicas: must be a whole number, found '0o'"),
        ("99999999999999999999", "all", "must be at most 100000, found 99999999999999999999"),
        ("2001-01-01", "all", "replicas: must be a whole number, found '2001-01-01'"),
        ("2", "[1:0:2]", "devices: names no device"),
        ("2", "[yes]", "devices: names no device"),
    ],
)
def test_the_fields_own_check_speaks(
    tmp_path: Path, replicas: str, devices: str, said: str
) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(ENTRY % (replicas, devices))

    with pytest.raises(ConfigError) as caught:
        load_settings({}, {}, str(file))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("replicas", "devices", "count", "ids"),
    [
        ("010", "[0:0, 1:0, 1:1]", 8, {"0:0", "1:0", "1:1"}),
        ("08", "[00, 0x1]", 8, {"0", "1"}),
        ("1e1", "[010]", 10, {"8"}),
        ("1_0", "['010']", 10, {"010"}),
    ],
)
def test_what_is_accepted(
    tmp_path: Path, replicas: str, devices: str, count: int, ids: set[str]
) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(ENTRY % (replicas, devices))

    section = load_settings({}, {}, str(file)).settings.sharing.time_slicing
    assert section is not None
    (entry,) = section.resources
    assert (entry.replicas, set(entry.devices.ids or ())) == (count, ids)
