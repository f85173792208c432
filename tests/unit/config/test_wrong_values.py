"""Wrong values at any keys of a whole document: exactly these are told, and take nothing along."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.config.document import Document
from gpuplugin.config.load import load_settings
from gpuplugin.config.loaded import ConfigError
from gpuplugin.config.problems import dotted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Path = tuple[str | int, ...]
    Wrong = tuple[object, ...]

WHOLE: dict[str, Any] = {
    "version": "v1",
    "flags": {
        "migStrategy": "mixed",
        "failOnInitError": True,
        "nvidiaDriverRoot": "/driver",
        "nvidiaDevRoot": "/dev-root",
        "gdrcopyEnabled": True,
        "gdsEnabled": True,
        "mofedEnabled": True,
        "mpsRoot": "/mps",
        "deviceDiscoveryStrategy": "nvml",
        "plugin": {
            "passDeviceSpecs": True,
            "deviceListStrategy": ["cdi-cri", "envvar"],
            "deviceIDStrategy": "index",
            "cdiAnnotationPrefix": "example.com/",
            "nvidiaCTKPath": "/ctk",
            "containerDriverRoot": "/root",
            "sharedDevicesAllocationPolicy": "packed",
        },
        "gfd": {
            "oneshot": True,
            "noTimestamp": True,
            "sleepInterval": "infinite",
            "outputFile": "/out",
            "machineTypeFile": "/machine",
            "useNodeFeatureAPI": False,
        },
    },
    "resources": {
        "gpus": [{"pattern": "*A100*", "name": "nvidia.com/a100"}],
        "mig": [{"pattern": "1g.*", "name": "nvidia.com/small"}],
    },
    "sharing": {
        "timeSlicing": {
            "renameByDefault": True,
            "failRequestsGreaterThanOne": True,
            "interval": "Medium",
            "resources": [
                {"name": "nvidia.com/a", "rename": "nvidia.com/b", "devices": 2, "replicas": 3},
                {"name": "nvidia.com/c", "rename": None, "devices": ["0", "1:2"], "replicas": 4},
            ],
        },
        "mps": None,
    },
    "imex": {"channelIDs": [0], "required": True},
    "health": {
        "quietPeriod": "40s",
        "quietPeriodCap": "2000s",
        "flapMemory": "4000s",
        "probeInterval": "6s",
        "blindAfter": "11s",
        "fabricCheck": False,
        "confidentialCheck": False,
        "evictLost": True,
        "ignoreXids": [13, "xids"],
        "fatalXids": [79],
    },
    "gpus": {"include": ["0", "NVIDIA*"], "exclude": ["7"]},
}
"""Every key of the file as `effective` spells it, hardly one with its default."""

NO_BOOLEAN: Wrong = (0, 1, "true", "", [True], {}, 1.0)
NO_TEXT: Wrong = (5, 2.5, True, ["/"], {"a": 1})
NO_WORD: Wrong = (*NO_TEXT, "", "Mixed", "none at all")
NO_PERIOD_OR_NEVER: Wrong = (
    "9ms",
    -1,
    "30",
    "soon",
    True,
    [1],
    {},
    float("nan"),
    float("inf"),
    10**400,
)
NO_PERIOD: Wrong = (0, "0s", *NO_PERIOD_OR_NEVER)
NO_NAME: Wrong = (*NO_TEXT, "", "amd.com/gpu", "GPU", "a" * 53)
NO_TERM: Wrong = (True, 0.5, -1, {})
NO_XIDS: Wrong = (0, -1, 1.5, "", "x", "79,x", True, {}, [True], [[13]], ["all", 0])
NO_COUNT: Wrong = (0, -1, 1.5, "2", True, [2], {}, float("inf"), float("nan"))
NO_SELECTION: Wrong = (0, -1, 1.5, "2", "ALL", True, [], {}, [-1], ["x"], [["0"]], [True])
FLAGS, PLUGIN, GFD = ("flags",), ("flags", "plugin"), ("flags", "gfd")
ENTRIES: Path = ("sharing", "timeSlicing", "resources")


def at(section: Path, keys: str, wrong: Iterable[object]) -> dict[Path, Wrong]:
    return {(*section, key): tuple(wrong) for key in keys.split()}


WRONG: Mapping[Path, Wrong] = {
    **at((), "version", (*NO_TEXT, "v2")),
    **at(FLAGS, "migStrategy deviceDiscoveryStrategy", (*NO_WORD, "tegra")),
    **at(FLAGS, "failOnInitError gdrcopyEnabled gdsEnabled mofedEnabled", NO_BOOLEAN),
    **at(FLAGS, "nvidiaDriverRoot nvidiaDevRoot mpsRoot", NO_TEXT),
    **at(PLUGIN, "passDeviceSpecs", NO_BOOLEAN),
    **at(PLUGIN, "deviceListStrategy", (5, True, {})),
    (*PLUGIN, "deviceListStrategy", 1): (*NO_WORD, None),
    **at(PLUGIN, "deviceIDStrategy sharedDevicesAllocationPolicy", NO_WORD),
    **at(PLUGIN, "cdiAnnotationPrefix nvidiaCTKPath containerDriverRoot", NO_TEXT),
    **at(GFD, "oneshot noTimestamp useNodeFeatureAPI", NO_BOOLEAN),
    **at(GFD, "sleepInterval", (0, "0s", -1, "30", "Infinite", True, [1], float("nan"))),
    **at(GFD, "outputFile machineTypeFile", NO_TEXT),
    **at(("resources", "gpus", 0), "pattern", (*NO_TEXT, "")),
    **at(("resources", "mig", 0), "name", NO_NAME),
    **at(ENTRIES[:2], "renameByDefault failRequestsGreaterThanOne", NO_BOOLEAN),
    **at((*ENTRIES, 0), "name rename", NO_NAME),
    **at((*ENTRIES, 1), "devices", NO_SELECTION),
    **at((*ENTRIES, 0), "replicas", NO_COUNT),
    **at(("sharing",), "mps", ({}, [], False, "yes", 0)),
    **at(("imex",), "channelIDs", ([1], [0, 0], 0, "0", True, {})),
    **at(("imex",), "required", NO_BOOLEAN),
    **at(("health",), "quietPeriod blindAfter", NO_PERIOD),
    **at(("health",), "probeInterval", NO_PERIOD_OR_NEVER),
    **at(("health",), "fabricCheck confidentialCheck evictLost", NO_BOOLEAN),
    **at(("health",), "quietPeriodCap flapMemory", (0, "0s", -1, "x", True, float("inf"))),
    **at(("health",), "ignoreXids fatalXids", NO_XIDS),
    **at(("gpus",), "exclude", NO_TERM),
    **at(("sharing", "timeSlicing"), "interval", (*NO_WORD, "long", "SHORT")),
    ("gpus", "include", 1): (*NO_TERM, None),
}
"""What each key refuses, `mps` by what is written for it at all."""

SECTIONS: Mapping[Path, Wrong] = {
    **at((), "flags resources sharing imex health gpus", (5, "x", True, [])),
    **at(FLAGS, "plugin gfd", (5, "x", True, [])),
    **at(("sharing",), "timeSlicing", (5, "x", True, [])),
    **at(("resources",), "gpus mig", (5, "x", True, {})),
    **at(ENTRIES[:2], "resources", (5, "x", True, {}, [])),
    (*ENTRIES, 1): (5, "x", [], None),
}


def document(data: dict[str, Any]) -> Document:
    return Document("file", data, {})


def holder(data: Any, path: Path) -> Any:
    """What has the value at a path."""
    for part in path[:-1]:
        data = data[part]
    return data


def refused(data: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load_settings({}, {}, None, document(data))
    told = {problem.key: problem.message for problem in caught.value.problems}
    assert len(told) == len(caught.value.problems)
    return told


def effective(data: dict[str, Any]) -> dict[str, Any]:
    return {**load_settings({}, {}, None, document(data)).effective, "daemon": None}


@st.composite
def mistakes(draw: st.DrawFn) -> dict[Path, object]:
    """Wrong values by the keys that have them, none of which is within another."""
    every = {**WRONG, **SECTIONS}
    chosen = draw(st.sets(st.sampled_from(sorted(every, key=str)), min_size=1, max_size=6))
    outer = {path for path in chosen if not any(path[:n] in chosen for n in range(len(path)))}
    return {path: draw(st.sampled_from(every[path])) for path in sorted(outer, key=str)}


def test_a_whole_document_is_what_it_says() -> None:
    assert effective(WHOLE) == {**WHOLE, "daemon": None}


@pytest.mark.parametrize("path", [*WRONG, *SECTIONS], ids=dotted)
def test_every_wrong_value_is_told_with_its_key(path: Path) -> None:
    for value in {**WRONG, **SECTIONS}[path]:
        data = deepcopy(WHOLE)
        holder(data, path)[path[-1]] = value
        ((key, message),) = refused(data).items()
        assert key == dotted(path), value
        assert message


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("flags", "mpsRoot"), "must be text, found a number that is too long"),
        (("flags", "failOnInitError"), "must be true or false, found a number that is too long"),
        (("health", "quietPeriod"), "must be a duration such as 30s or 1m30s, found a number that"),
        (("sharing", "timeSlicing", "resources", 0, "name"), "must be text, found a number that"),
    ],
)
def test_a_number_that_cannot_be_written_is_refused_all_the_same(path: Path, message: str) -> None:
    data = deepcopy(WHOLE)
    holder(data, path)[path[-1]] = 10**5000

    ((key, told),) = refused(data).items()
    assert key == dotted(path)
    assert told.startswith(message)


@given(mistakes())
def test_wrong_values_anywhere_are_told_all_and_nothing_else(wrong: dict[Path, object]) -> None:
    data = deepcopy(WHOLE)
    for path, value in wrong.items():
        holder(data, path)[path[-1]] = value

    assert refused(data).keys() == {dotted(path) for path in wrong}


OPTIONAL = sorted(path for path in WRONG if not any(isinstance(part, int) for part in path))


@given(st.sets(st.sampled_from(OPTIONAL)))
def test_what_is_not_written_has_its_default_and_the_rest_stays(absent: set[Path]) -> None:
    nothing = effective({"sharing": {"timeSlicing": {"resources": [{"name": "x", "replicas": 1}]}}})
    data, expected = deepcopy(WHOLE), {**deepcopy(WHOLE), "daemon": None}
    for path in absent:
        del holder(data, path)[path[-1]]
        holder(expected, path)[path[-1]] = holder(nothing, path)[path[-1]]

    assert effective(data) == expected
