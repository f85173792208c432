"""`gpuplugin sim inject`: a fault, or a recovery, for a GPU of a running simulated node."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hal import lookup_xid
from sim.control import control_socket
from sim.control import inject as inject_into
from sim.lineserver import ControlError

if TYPE_CHECKING:
    import argparse


def inject(parsed: argparse.Namespace) -> int:
    """Inject; 1 if no node listens or it refuses."""
    socket = Path(parsed.control) if parsed.control else control_socket(Path(parsed.kubelet_dir))
    what, text = _what(parsed)
    try:
        answer = inject_into(socket, parsed.gpu, what)
    except ControlError as error:
        print(f"gpuplugin: {error}", file=sys.stderr)
        return 1
    print(f"GPU {answer['gpu']} ({answer['uuid']}): {text}")
    return 0


def _what(parsed: argparse.Namespace) -> tuple[dict[str, object], str]:
    if parsed.xid is not None:
        xid = lookup_xid(parsed.xid)
        text = f"Xid {xid.code}, {xid.meaning} (action: {xid.action.value})"
        return {"kind": "xid", "xid": parsed.xid}, text
    if parsed.ecc is not None:
        return {"kind": "ecc", "uncorrectable": parsed.ecc == "uncorrectable"}, f"{parsed.ecc} ECC"
    if parsed.lost:
        return {"kind": "lost"}, "lost"
    return {"kind": "recover"}, "recovered, as after a reset"
