"""`gpuplugin config check`: what a file means, or everything that is wrong with it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import yaml

from gpuplugin.config.load import ConfigError, load_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from gpuplugin.config.load import Loaded, Problem


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
    return loaded.settings.model_dump(
        mode="json", by_alias=True, exclude={"daemon"}, exclude_none=True
    )


def _problems(problems: Iterable[Problem]) -> list[dict[str, str]]:
    return [
        {"where": problem.where, "key": problem.key, "message": problem.message}
        for problem in problems
    ]


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))
