"""`gpuplugin demo`: a simulated eight-GPU node serves a kubelet, and the screen shows it.

It uses public parts alone: the daemon as a process (`stage`), the kubelet stand-in, the control
socket, and HTTP. The chapters are in `story`, with DRA in `claims`, the view for a terminal in
`live`, plain lines here.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.cli.text import fail
from sim.cli.demo.claims import ClaimStage, tell_of_claims
from sim.cli.demo.stage import Facts, Stage, StageError
from sim.cli.demo.story import View, tell

if TYPE_CHECKING:
    import argparse


class PlainView(View):
    def __init__(self) -> None:
        self._started_s = time.monotonic()

    def chapter(self, title: str, text: str) -> None:
        self._print(title)
        self._print(f"   {text}")

    def outcome(self, passed: bool, text: str) -> None:
        self._print(f"   {'ok' if passed else 'NOT SO'}: {text}")

    def _print(self, text: str) -> None:
        print(f"{time.monotonic() - self._started_s:5.1f} s  {text}", flush=True)


def demo(parsed: argparse.Namespace) -> int:
    """Play it; 0 if everything was as it should be, else 1."""
    if parsed.pace <= 0:
        print("gpuplugin: --pace must be above 0", file=sys.stderr)
        return 2
    # A picture that cannot be saved is told now, not at the end.
    folder = Path(parsed.picture or ".").absolute().parent
    if not os.access(folder, os.W_OK):
        return fail(f"{parsed.picture} cannot be written: {folder} is no folder that you may use")
    facts = Facts()
    try:
        if parsed.dra:
            with ClaimStage(facts) as claims, _view(facts, claims, parsed) as view:
                tell_of_claims(claims, view, facts, parsed.pace)
        else:
            with Stage(facts) as stage, _view(facts, stage, parsed) as view:
                tell(stage, view, facts, parsed.pace)
    except StageError as error:
        print(f"gpuplugin: the demo could not go on: {error}", file=sys.stderr)
        return 1
    print("\n".join(facts.summary()))
    return 0 if facts.all_passed else 1


def _view(facts: Facts, stage: Stage, parsed: argparse.Namespace) -> View:
    if parsed.plain or not (sys.stdout.isatty() or parsed.picture):
        return PlainView()
    try:
        from sim.cli.demo.live import LiveView
    except ModuleNotFoundError:
        print("For the live view: pip install 'gpuplugin-sim[cli]'. Plain lines meanwhile.")
        return PlainView()
    return LiveView(facts, stage, parsed.picture)
