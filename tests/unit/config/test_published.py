"""Files shaped as people publish them: what `config check` says of each, and what the plugin does.

`ENTRIES` are configurations within another document, which the plugin itself refuses.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpuplugin.cli.main import main
from gpuplugin.config.load import load_settings
from gpuplugin.config.loaded import ConfigError

FOLDER = Path(__file__).parent / "published"
ENTRY = "sharing.timeSlicing.resources"

ACCEPTED: dict[str, tuple[list[int], list[str]]] = {
    "nvidia-time-slicing.yaml": ([10], []),
    "nvidia-all-flags.yaml": ([4, 2], []),
    "anchors.yaml": ([4], []),
    "trailing-separator.yaml": ([4], []),
    "odd-scalars.yaml": ([8], []),
    "base-60-devices.yaml": ([2], []),
    "with-a-note.yaml": ([4], ["1: note: is not a known key and has no effect"]),
    "nothing-but-comments.yaml": ([10], ["is empty: the built-in default.yaml is used"]),
    "snake-case.yaml": (
        [],
        ["3: sharing.time_slicing: is not a known key and has no effect; did "],
    ),
    "three-entries.yaml": (
        [2, 4, 8],
        [
            f"5: {ENTRY}[0]: has no effect: entry [2] is for all devices of nvidia.com/gpu, too",
            f"7: {ENTRY}[1]: has no effect: entry [2] is for all devices of nvidia.com/gpu, too",
        ],
    ),
    "never-matches.yaml": (
        [2, 4, 4, 8],
        [
            f"7: {ENTRY}[0]: has no effect: nvidia.com/mig-1g.5gb is there with MIG strategy mixed",
            f"9: {ENTRY}[1]: has no effect: no device is called nvidia.com/gpus",
            f"11: {ENTRY}[2]: does not get 1: entry [3] names it, too, and is later",
        ],
    ),
}
"""Replicas of the entries, and the beginnings of the warnings after the file's name."""

REFUSED: dict[str, list[str]] = {
    "base-60-replicas.yaml": [
        f"8: {ENTRY}[0].replicas: must be a whole number, found '1:30'",
        "3: health.ignoreXids: must be Xid numbers or one of all, xids, found '13:31'",
    ],
    "missing-letter.yaml": [
        f"5: {ENTRY}[0].replicas: is required",
        f"6: {ENTRY}[0].replica: is not a known key and has no effect; did you mean {ENTRY}.repli",
    ],
    "two-documents.yaml": ["8: a second document begins here: there can be one only"],
    "unrendered-template.yaml": ["6: a key must be a word; a template has to be rendered first"],
    "quoted-template.yaml": [
        f"6: {ENTRY}[0].replicas: must be a whole number, found '{{{{ .Values.replicas }}}}'; a t"
    ],
    "tabs.yaml": ["3: found character '\\t' that cannot start any token; indent with blanks, not"],
    "no-blank-after-colon.yaml": ["6: mapping values are not allowed here; write a blank after"],
    "too-many-replicas.yaml": [
        f"6: {ENTRY}[0].replicas: must be at most 100000, found 99999999999999999999"
    ],
    "mps.yaml": ["3: sharing.mps: sharing by MPS is not supported yet; use sharing.timeSlicing"],
    "from-another-tool.yaml": [
        " no key of a configuration (version, flags, resources, sharing, imex, health, gpus) is at",
        "1: replicaCount: is not a known key",
        "2: service: is not a known key",
    ],
    "deployment.yaml": [" this is a DaemonSet, and has no configuration in it"],
    "cluster-policy-by-name.yaml": [" this is a ClusterPolicy, and has no configuration in it"],
}
"""The beginnings of errors and warnings after the file's name."""

ENTRIES: dict[str, tuple[str, dict[str, int | str]]] = {
    "configmap.yaml": ("this is a ConfigMap", {"data.config.yaml": 4}),
    "configmap-per-node.yaml": (
        "this is a ConfigMap",
        {
            "data.a100-40gb": 8,
            "data.tesla-t4": f"25: {ENTRY}[0].replicas: must be a whole number, found '4'",
        },
    ),
    "configmap-in-quotes.json": (
        "this is a ConfigMap",
        {"data.config.yaml": f"6: {ENTRY}[0].replicas: is required"},
    ),
    "lone-entry.yaml": ("this is no configuration, it contains one", {"any": 4}),
    "helm-values-nvidia.yaml": (
        "this is no configuration, it contains one",
        {"config.map.default": 4, "config.map.whole": 0},
    ),
    "gpu-operator-values.yaml": (
        "this is no configuration, it contains one",
        {"devicePlugin.config.data.any": 4},
    ),
    "cluster-policy.yaml": ("this is a ClusterPolicy", {"spec.devicePlugin.config.data.any": 4}),
    "talos-guide.yaml": ("", {"data.config.yaml": 5}),
    "list-of-objects.yaml": ("this is a List", {"items[0].data.config.yaml": 6}),
}
"""What the plugin says of the whole, and replicas (0: not shared) or the error of each entry."""


def said(file: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    status = main(["config", "check", str(FOLDER / file), "--json"])
    return status, json.loads(capsys.readouterr().out)


def replicas(check: dict[str, Any]) -> list[int]:
    section = check["config"]["sharing"].get("timeSlicing") or {"resources": []}
    return [entry["replicas"] for entry in section["resources"]]


def texts(file: str, problems: list[dict[str, str]]) -> list[str]:
    """Problems as text, without the file's name."""
    parts = [(one["where"], one["key"], one["message"]) for one in problems]
    return [": ".join(filter(None, part)).removeprefix(f"{FOLDER / file}:") for part in parts]


def begin(found: list[str], expected: list[str]) -> bool:
    return len(found) == len(expected) and all(map(str.startswith, found, expected))


def test_every_file_has_its_verdict() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {*ACCEPTED, *REFUSED, *ENTRIES}
    assert len([*ACCEPTED, *REFUSED, *ENTRIES]) >= 25


@pytest.mark.parametrize("file", ACCEPTED)
def test_accepted(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, check = said(file, capsys)
    counts, warnings = ACCEPTED[file]

    assert status == 0
    assert replicas(check) == counts
    found = [one.lstrip() for one in texts(file, check["warnings"])]
    assert begin(found, warnings), found


@pytest.mark.parametrize("file", REFUSED)
def test_refused(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, check = said(file, capsys)

    assert status == 1
    found = texts(file, [*check["errors"], *check["warnings"]])
    assert begin(found, REFUSED[file]), found
    with pytest.raises(ConfigError):
        load_settings({}, {}, str(FOLDER / file))


@pytest.mark.parametrize("file", ENTRIES)
def test_entries_of_another_document(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, check = said(file, capsys)
    whole, entries = ENTRIES[file]

    assert list(check["entries"]) == list(entries)
    for name, expected in entries.items():
        one = check["entries"][name]
        if isinstance(expected, str):
            assert begin(texts(file, one["errors"]), [expected]), one
        else:
            assert replicas(one)[:1] == ([expected] if expected else [])
    assert status == (1 if any(isinstance(one, str) for one in entries.values()) else 0)
    with pytest.raises(ConfigError) as caught:
        load_settings({}, {}, str(FOLDER / file))
    assert whole in str(caught.value)
    assert not whole or all(name in str(caught.value) for name in entries)
