"""`gpuplugin config check`: prints the effective configuration of a file, or all its problems."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import yaml

from gpuplugin.config.load import load_settings
from gpuplugin.config.loaded import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from gpuplugin.config.loaded import Loaded

_INDEX = re.compile(r"\d+(:\d+)?", re.ASCII)


def check(parsed: argparse.Namespace) -> int:
    """Check a file by itself, without flags and variables; 1 if it cannot be used."""
    try:
        environment = {"GPUPLUGIN_STRICT_CONFIG": "true"} if parsed.strict else {}
        loaded = load_settings({}, environment, parsed.file)
    except ConfigError as error:
        if parsed.json:
            _print_json({"ok": False, "errors": [asdict(one) for one in error.problems]})
        else:
            print(error, file=sys.stderr)
        return 1
    if parsed.json:
        warnings = [asdict(one) for one in loaded.warnings]
        notes = list(_notes(loaded))
        _print_json(
            {"ok": True, "warnings": warnings, "notes": notes, "config": _effective(loaded)}
        )
        return 0
    for warning in loaded.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for note in _notes(loaded):
        print(f"note: {note}", file=sys.stderr)
    print(yaml.safe_dump(_effective(loaded), sort_keys=False).rstrip())
    return 0


def _notes(loaded: Loaded) -> Iterator[str]:
    """What is right, and may come to mean something else."""
    settings = loaded.settings
    terms = {"gpus.include": settings.gpus.include, "gpus.exclude": settings.gpus.exclude}
    if settings.sharing.time_slicing is not None:
        for position, entry in enumerate(settings.sharing.time_slicing.resources):
            key = f"sharing.timeSlicing.resources[{position}].devices"
            terms[key] = sorted(entry.devices.ids or ())
    for key, names in terms.items():
        if indices := [name for name in names if _INDEX.fullmatch(name)]:
            yield (
                f"{loaded.source}: {key}: an index ({', '.join(indices)}) means another GPU once "
                "one is removed; select by UUID ('gpuplugin devices' lists them)"
            )


def _effective(loaded: Loaded) -> dict[str, object]:
    """The configuration with all defaults, as a file that means the same."""
    return {
        key: _without_nulls(value) for key, value in loaded.effective.items() if key != "daemon"
    }


def _without_nulls(value: object) -> object:
    if isinstance(value, list):
        return [_without_nulls(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_nulls(one) for key, one in value.items() if one is not None}


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))
