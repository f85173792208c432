"""`gpuplugin sim inject`: a fault, or a recovery, for a running simulated node or its GPUs."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.linesocket import ControlError
from hal import lookup_xid
from sim.node.control import control_socket
from sim.node.control import inject as inject_into

if TYPE_CHECKING:
    import argparse
    from typing import TypeAlias

    What: TypeAlias = tuple[dict[str, object], str]
    """A happening as a scenario spells it, and what to say of it."""

_GPU_KINDS = {
    "lost": ("lost", "lost"),
    "thermal_shutdown": ("thermal-shutdown", "at its shutdown temperature, lost soon"),
    "unplug": ("unplug", "removed from the bus"),
    "plug": ("plug", "back on the bus"),
    "replace": ("replace", "taken out"),
    "recover": ("recover", "recovered, as after a reset"),
}
"""Options without a value: the happening's kind, and what is said of the GPU."""


def inject(parsed: argparse.Namespace) -> int:
    """Inject; 1 if no node listens or it refuses, 2 for options that do not go together."""
    what, text = _what(parsed)
    wrong = _wrong_usage(parsed, what)
    if wrong:
        parsed.wrong_usage(wrong)
    socket = Path(parsed.control) if parsed.control else control_socket(Path(parsed.kubelet_dir))
    try:
        injected = inject_into(socket, parsed.gpu, what)
    except ControlError as error:
        print(f"gpuplugin: {error}", file=sys.stderr)
        return 1
    for gpu in injected.gpus:
        successor = f", {gpu.replaced_by} is in its place" if gpu.replaced_by else ""
        print(f"GPU {gpu.index} ({gpu.uuid}): {text}{successor}")
    if not injected.gpus:
        print(text)
    return 0


def _wrong_usage(parsed: argparse.Namespace, what: dict[str, object]) -> str:
    """What is wrong about options that each are right; empty if nothing is."""
    node_wide = bool(parsed.driver or parsed.watch)
    if node_wide and parsed.gpu is not None:
        return "--driver and --watch apply to the whole node: leave --gpu out"
    if not node_wide and parsed.gpu is None:
        return "this applies to a GPU: name it with --gpu INDEX, --gpu UUID or --gpu all"
    if parsed.mig is not None and parsed.xid is None:
        return "--mig goes with --xid"
    if parsed.count is not None and parsed.ecc is None:
        return "--count goes with --ecc"
    if parsed.for_s is not None and parsed.hang is not None:
        return "give the seconds of a hang as --hang SECONDS"
    if parsed.for_s is not None and "for_s" not in what:
        return "--for goes with --driver hang and --watch broken"
    return ""


def _what(parsed: argparse.Namespace) -> What:
    if parsed.xid is not None:
        return _xid(parsed.xid, parsed.mig)
    if parsed.ecc is not None:
        count = 1 if parsed.count is None else parsed.count
        ecc = {"kind": "ecc", "uncorrectable": parsed.ecc == "uncorrectable", "count": count}
        return ecc, f"{parsed.ecc} ECC" + (f", {count} errors" if count > 1 else "")
    if parsed.row_remap is not None:
        failed = parsed.row_remap == "failed"
        return {"kind": "row-remap", "failed": failed}, f"row remap {parsed.row_remap}, no event"
    if parsed.hang is not None:
        for_s = None if parsed.hang == math.inf else parsed.hang
        return {"kind": "hang", "for_s": for_s}, f"hangs {_how_long(for_s, 'until it recovers')}"
    if parsed.repartition is not None:
        return _repartition(parsed.repartition)
    if parsed.driver is not None:
        return _driver(parsed.driver, parsed.for_s)
    if parsed.watch == "broken":
        text = f"events cannot be waited for {_how_long(parsed.for_s, 'until that is mended')}"
        return {"kind": "watch-broken", "for_s": parsed.for_s}, text
    if parsed.watch == "mended":
        return {"kind": "watch-mended"}, "events can be waited for again"
    kind, text = next(said for option, said in _GPU_KINDS.items() if getattr(parsed, option))
    return {"kind": kind}, text


def _xid(code: int, mig: int | None) -> What:
    xid = lookup_xid(code)
    text = f"Xid {xid.code}, {xid.meaning} (action: {xid.action.value})"
    if mig is None:
        return {"kind": "xid", "xid": code}, text
    return {"kind": "xid", "xid": code, "mig": mig}, f"MIG device {mig}: {text}"


def _repartition(wanted: str) -> What:
    if wanted == "none":
        return {"kind": "repartition", "mig": None}, "MIG is off"
    profiles = [name.strip() for name in wanted.split(",") if name.strip()]
    text = f"MIG devices {', '.join(profiles)}" if profiles else "MIG is on, without devices"
    return {"kind": "repartition", "mig": profiles}, text


def _driver(how: str, for_s: float | None) -> What:
    if how == "hang":
        text = f"the driver hangs {_how_long(for_s, 'until --driver up')}"
        return {"kind": "driver-hang", "for_s": for_s}, text
    text = "the driver is not loaded" if how == "down" else "the driver was loaded anew"
    return {"kind": f"driver-{how}"}, text


def _how_long(for_s: float | None, otherwise: str) -> str:
    return otherwise if for_s is None else f"for {for_s:g} s"
