"""`gpuplugin record`: a node's GPUs, load, events and usage over time as a scenario file."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from gpuplugin.cli.backends import BackendError, make_backend, told
from gpuplugin.cli.options import load
from gpuplugin.cli.text import fail, output_file
from gpuplugin.config.loaded import ConfigError
from gpuplugin.config.values import parse_duration_s
from gpuplugin.daemon.cluster.pods import CgroupsUnreadable, PodIdentities
from hal import HalError
from sim.node.scenario import USAGE_MARK, ScenarioError
from sim.study.observe import observe
from sim.study.recording import as_yaml
from sim.study.usage import Labels, UsageWriter

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from gpuplugin.config.settings import Settings
    from gpuplugin.core.usage import PodName
    from sim.study.observe import Recording


def record(parsed: argparse.Namespace) -> int:
    """Record and write the file, also what was recorded until Ctrl-C; 1 if that cannot be done."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for_s, interval_s = (
            _seconds("--for", parsed.length),
            _seconds("--interval", parsed.interval),
        )
        settings = load(parsed).settings
        with _output(parsed.output) as stream:
            recording = _record(parsed, settings, stream, for_s, interval_s)
    except (ConfigError, BackendError, HalError, ScenarioError, ValueError, OSError) as error:
        return fail(told(error))
    if stream is not sys.stdout:
        print(f"wrote {parsed.output}, {recording.length_s:.0f} s", file=sys.stderr)
    return 0


def _record(
    parsed: argparse.Namespace,
    settings: Settings,
    output: TextIO,
    for_s: float,
    interval_s: float,
) -> Recording:
    """The usage goes to a file without a name meanwhile: the scenario above it is known last."""
    labels = Labels(scrub=parsed.scrub)
    pods = _Pods(PodIdentities(settings.daemon.host_proc, settings.daemon.pod_logs))
    with tempfile.TemporaryFile("w+", encoding="utf-8", dir=_beside(parsed.output)) as usage:
        writer = UsageWriter(usage, interval_s, for_s, time.time(), labels, pods.of)
        with make_backend(settings, control=False) as backend:
            backend.open()
            try:
                recording = observe(backend, for_s, interval_s, looked=writer.looked)
            finally:
                backend.close()
        writer.flush()
        usage.seek(0)
        output.write(as_yaml(recording, parsed.name, labels))
        print(USAGE_MARK, file=output)
        shutil.copyfileobj(usage, output)
    if pods.why:
        why = f"processes are recorded by their names, for their pods are not known: {pods.why}"
        print(f"gpuplugin: {why}", file=sys.stderr)
    return recording


def _beside(path: str | None) -> Path | None:
    """The folder of a file to write, which has room for it; None for a pipe or device."""
    if path is None or path == "-" or (Path(path).exists() and not Path(path).is_file()):
        return None
    return Path(path).resolve().parent


class _Pods:
    """The pods of processes, as far as the host's folders show them; `why` they are not known."""

    def __init__(self, identities: PodIdentities) -> None:
        self._identities = identities
        self.why = ""

    def of(self, pids: frozenset[int]) -> Mapping[int, PodName | None]:
        try:
            return self._identities.pods_of(pids)
        except CgroupsUnreadable as error:
            self.why = str(error)
            return {}


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
