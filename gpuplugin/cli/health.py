"""`gpuplugin health`: the health of GPUs as the running daemon sees it, and clearing it by hand."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from gpuplugin.cli.options import load
from gpuplugin.cli.text import WATCH_S, table, watched
from gpuplugin.config.loaded import ConfigError
from gpuplugin.daemon.control import SOCKET_NAME
from gpuplugin.daemon.serving.sockets import KubeletDirs
from gpuplugin.linesocket import ControlError, ask

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping
    from pathlib import Path

ANSWER_TIMEOUT_S = 10.0


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Unit(_Answer):
    uuid: str
    index: str
    state: str
    for_s: float
    reason: str
    action: str
    xid: int | None
    needs_reset: bool
    left_out: bool = False
    """By the configuration: nobody is given it."""
    unknown: list[str] = []
    """Calls that gave no value, with their codes."""

    @property
    def shown_state(self) -> str:
        return f"{self.state}, left out" if self.left_out else self.state

    @property
    def why(self) -> str:
        if not self.reason:
            return ""
        waits = "; waits for a reset" if self.needs_reset and self.state == "Unhealthy" else ""
        return f"{self.reason} (action: {self.action}{waits})"


class _Report(_Answer):
    blind: str
    units: list[_Unit]


class _Cleared(_Answer):
    cleared: list[str]
    refused: list[str]


def show(parsed: argparse.Namespace) -> int:
    """Print the state of every GPU and MIG device; 1 if no daemon answers, or one is not healthy.

    Those that the configuration leaves out do not count.
    """
    return watched(lambda: _shown(parsed), WATCH_S if parsed.watch else 0)


def _shown(parsed: argparse.Namespace) -> tuple[int, str]:
    answer = _ask(parsed, {"report": True})
    if answer is None:
        return 1, ""
    report = _Report.model_validate(answer)
    all_healthy = all(unit.state == "Healthy" or unit.left_out for unit in report.units)
    status = 0 if all_healthy and not report.blind else 1
    if parsed.json:
        return status, report.model_dump_json(indent=2)
    lines = [f"The GPUs cannot be watched: {report.blind}", ""] if report.blind else []
    rows = [
        (unit.index, unit.uuid, unit.shown_state, f"{unit.for_s:.0f} s", unit.why)
        for unit in report.units
    ]
    lines += table(("GPU", "UUID", "STATE", "FOR", "REASON"), rows)
    for unit in report.units:
        if unit.unknown:
            lines += ["", f"GPU {unit.index} does not tell: {'; '.join(unit.unknown)}"]
    return status, "\n".join(lines)


def clear(parsed: argparse.Namespace) -> int:
    """Clear the fault of a GPU or MIG device; 1 if the daemon refuses."""
    answer = _ask(parsed, {"clear": parsed.unit})
    if answer is None:
        return 1
    outcome = _Cleared.model_validate(answer)
    if parsed.json:
        print(outcome.model_dump_json(indent=2))
        return 1 if outcome.refused else 0
    for uuid in outcome.cleared:
        print(f"{uuid}: cleared")
    for text in outcome.refused:
        print(f"gpuplugin: {text}", file=sys.stderr)
    if not outcome.cleared and not outcome.refused:
        print("all are healthy: nothing to clear")
    return 1 if outcome.refused else 0


def forget(parsed: argparse.Namespace) -> int:
    """Remove a GPU that is gone from the list; 1 if the daemon refuses."""
    answer = _ask(parsed, {"forget": parsed.uuid})
    if answer is None:
        return 1
    print(json.dumps(answer, indent=2) if parsed.json else f"{parsed.uuid}: forgotten")
    return 0


def _ask(parsed: argparse.Namespace, request: Mapping[str, object]) -> Mapping[str, object] | None:
    """The daemon's response; None if there is none, after printing why."""
    try:
        dirs = KubeletDirs(load(parsed).settings.daemon.kubelet_dir)
        return ask_daemon(dirs, request)
    except (ConfigError, ControlError) as error:
        print(f"gpuplugin: {error}", file=sys.stderr)
        return None


def _is_there(place: Path) -> bool:
    """Raises ControlError if this user may not see it."""
    try:
        return place.exists()
    except PermissionError:
        raise ControlError(
            f"this user may not look into {place.parent}: run it as root or as the plugin's user, "
            "for example with kubectl exec in the plugin's pod"
        ) from None


def ask_daemon(dirs: KubeletDirs, request: Mapping[str, object]) -> Mapping[str, object]:
    """Ask at the socket of either way of registration; one may be left of a killed daemon.

    Raises:
        ControlError: no daemon is there, or it refuses.
    """
    places = [folder / SOCKET_NAME for folder in (dirs.plugin_watcher, dirs.device_plugins)]
    found = [place for place in places if _is_there(place)]
    if not found:
        raise ControlError(
            f"no plugin runs here: there is neither {places[0]} nor {places[1]}; name the folder "
            "that it serves with --kubelet-dir, and run this where it runs (kubectl exec)"
        )
    for place in found[:-1]:
        try:
            return ask(place, request, ANSWER_TIMEOUT_S)
        except ControlError:
            continue
    return ask(found[-1], request, ANSWER_TIMEOUT_S)
