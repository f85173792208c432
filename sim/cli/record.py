"""`gpuplugin record`: a node's GPUs, load and events as a scenario file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.cli.backends import BackendError, make_backend
from gpuplugin.cli.options import load
from gpuplugin.config.loaded import ConfigError
from gpuplugin.config.values import parse_duration_s
from hal import HalError
from sim.node.scenario import ScenarioError
from sim.study.observe import observe
from sim.study.recording import as_yaml

if TYPE_CHECKING:
    import argparse


def record(parsed: argparse.Namespace) -> int:
    """Record and write the file; 1 if that cannot be done."""
    try:
        for_s, interval_s = (
            _seconds("--for", parsed.length),
            _seconds("--interval", parsed.interval),
        )
        settings = load(parsed).settings
        with make_backend(settings, control=False) as backend:
            backend.open()
            try:
                recording = observe(backend, for_s, interval_s)
            finally:
                backend.close()
        text = as_yaml(recording, parsed.name, scrub=parsed.scrub)
        _write(text, parsed.output)
    except (ConfigError, BackendError, HalError, ScenarioError, ValueError, OSError) as error:
        print(f"gpuplugin: {error}", file=sys.stderr)
        return 1
    return 0


def _seconds(flag: str, text: str) -> float:
    try:
        seconds = parse_duration_s(text)
    except ValueError as error:
        raise ValueError(f"{flag} {error}") from error
    if seconds <= 0:
        raise ValueError(f"{flag} must be longer than nothing, found {text!r}")
    return seconds


def _write(text: str, output: str | None) -> None:
    if output is None or output == "-":
        sys.stdout.write(text)
        return
    Path(output).write_text(text, encoding="utf-8")
    print(f"wrote {output}", file=sys.stderr)
