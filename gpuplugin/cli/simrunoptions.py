"""The options of `gpuplugin sim run`. What it does is in `gpuplugin.cli.simrun`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gpuplugin.cli.options import add_options
from gpuplugin.config.values import parse_duration_s

if TYPE_CHECKING:
    import argparse

_DAY_S = 86_400.0
_DAYS = re.compile(r"(\d+(?:\.\d*)?|\.\d+)d(.*)", re.ASCII)

_NAMES = (
    "--mig-strategy",
    "--shared-devices-allocation-policy",
    "--include-gpus",
    "--exclude-gpus",
)
"""Options of the plugin, beside those of health, that make a difference without containers."""


def add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `commands`."""
    run = commands.add_parser("run", help="run a scenario in virtual time and report")
    run.set_defaults(module="simrun", function="run")
    run.add_argument("scenario", metavar="SCENARIO", help="a shipped scenario's name, or a file")
    run.add_argument("--seed", type=int, metavar="N", help="instead of the scenario's own")
    run.add_argument(
        "--until",
        default="10m",
        metavar="DURATION",
        help="model time to run, for example 90s, 12h or 7d (default 10m)",
    )
    run.add_argument("--events", metavar="FILE", help="write the event log, as JSON lines")
    run.add_argument("--report", metavar="FILE", help="write the report as JSON")
    run.add_argument("--html", metavar="FILE", help="write a page with plots")
    run.add_argument(
        "--slices-at",
        metavar="DURATION",
        help="when 0.1 s of slices is noted for the page (default: once all tenants run)",
    )
    run.add_argument("--quiet", action="store_true", help="print no report and no progress")
    add_options(run, sections=("health",), names=_NAMES)


def span_s(text: str) -> float:
    """Seconds of a duration in Go's form, before which days may stand: `7d`, `1d12h`, `90s`.

    Raises:
        ValueError: not a duration, or none above 0.
    """
    days = _DAYS.fullmatch(text)
    try:
        seconds = float(days[1]) * _DAY_S if days else 0.0
        if days is None or days[2]:
            seconds += parse_duration_s(days[2] if days else text)
    except ValueError:
        raise ValueError(f"must be a duration such as 90s, 12h or 7d, found {text!r}") from None
    if seconds < 1e-9:
        raise ValueError(f"must be above 0, found {text!r}")
    return seconds
