"""`gpuplugin demo`: a simulated eight-GPU node serves a kubelet, and the screen shows it.

It stands on public parts alone: the daemon as a process (`stage`), the kubelet stand-in, the
control socket, and HTTP. What happens is in `story`, how it looks in `live` and `plain`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from gpuplugin.cli.demo.facts import Facts
from gpuplugin.cli.demo.plain import PlainView
from gpuplugin.cli.demo.stage import Stage, StageError
from gpuplugin.cli.demo.story import tell

if TYPE_CHECKING:
    import argparse

    from gpuplugin.cli.demo.story import View


def demo(parsed: argparse.Namespace) -> int:
    """Play it; 0 if everything was as it should be, else 1."""
    if parsed.pace <= 0:
        print("gpuplugin: --pace must be above 0", file=sys.stderr)
        return 2
    facts = Facts()
    try:
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
        from gpuplugin.cli.demo.live import LiveView
    except ModuleNotFoundError:
        print("For the live view: pip install 'gpuplugin[cli]'. Plain lines meanwhile.")
        return PlainView()
    return LiveView(facts, stage, parsed.picture)
