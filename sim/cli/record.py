"""`gpuplugin record`: a node's GPUs, load and events as a scenario file."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, TextIO

from gpuplugin.cli.backends import BackendError, make_backend, told
from gpuplugin.cli.options import load
from gpuplugin.cli.text import fail, output_file
from gpuplugin.config.loaded import ConfigError
from gpuplugin.config.values import parse_duration_s
from hal import HalError
from sim.node.scenario import ScenarioError
from sim.study.observe import observe
from sim.study.recording import as_yaml

if TYPE_CHECKING:
    import argparse
    from contextlib import AbstractContextManager


def record(parsed: argparse.Namespace) -> int:
    """Record and write the file, also what was recorded until Ctrl-C; 1 if that cannot be done."""
    try:
        for_s, interval_s = (
            _seconds("--for", parsed.length),
            _seconds("--interval", parsed.interval),
        )
        settings = load(parsed).settings
        with _output(parsed.output) as stream:
            with make_backend(settings, control=False) as backend:
                backend.open()
                try:
                    recording = observe(backend, for_s, interval_s)
                finally:
                    backend.close()
            stream.write(as_yaml(recording, parsed.name, scrub=parsed.scrub))
    except (ConfigError, BackendError, HalError, ScenarioError, ValueError, OSError) as error:
        return fail(told(error))
    if stream is not sys.stdout:
        print(f"wrote {parsed.output}, {recording.length_s:.0f} s", file=sys.stderr)
    return 0


def _seconds(flag: str, text: str) -> float:
    try:
        seconds = parse_duration_s(text)
    except ValueError as error:
        raise ValueError(f"{flag} {error}") from error
    if seconds <= 0:
        raise ValueError(f"{flag} must be longer than nothing, found {text!r}")
    return seconds


def _output(path: str | None) -> AbstractContextManager[TextIO]:
    return nullcontext(sys.stdout) if path in (None, "-") else output_file(str(path))
