"""`gpuplugin config check`: prints the effective configuration of a file, or all its problems."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import yaml

from gpuplugin.config.load import load_settings
from gpuplugin.config.loaded import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from gpuplugin.config.loaded import Loaded, Problem


def check(parsed: argparse.Namespace) -> int:
    """Check a file by itself, without flags and variables; 1 if it cannot be used."""
    try:
        environment = {"GPUPLUGIN_STRICT_CONFIG": "true"} if parsed.strict else {}
        loaded = load_settings({}, environment, parsed.file)
    except ConfigError as error:
        if parsed.json:
            _print_json({"ok": False, "errors": _problems(error.problems)})
        else:
            print(error, file=sys.stderr)
        return 1
    if parsed.json:
        warnings = _problems(loaded.warnings)
        _print_json({"ok": True, "warnings": warnings, "config": _effective(loaded)})
        return 0
    for warning in loaded.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(yaml.safe_dump(_effective(loaded), sort_keys=False).rstrip())
    return 0


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


def _problems(problems: Iterable[Problem]) -> list[dict[str, str]]:
    return [
        {"where": problem.where, "key": problem.key, "message": problem.message}
        for problem in problems
    ]


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))
