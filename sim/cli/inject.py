"""`gpuplugin sim inject`: a fault, or a recovery, for a running simulated node or its GPUs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from pydantic import ValidationError

from gpuplugin.cli.text import fail
from gpuplugin.linesocket import ControlError
from hal import ComputeMode, FabricState, lookup_xid
from sim.gpu.faults import (
    FAULT,
    ComputeModeChange,
    ConfidentialReady,
    DriverDown,
    DriverHang,
    DriverReturns,
    DriverUp,
    EccFault,
    Fabric,
    Hang,
    LostFault,
    Plug,
    Recovery,
    Repartition,
    Replacement,
    Returns,
    RowRemap,
    ThermalShutdown,
    Unplug,
    WatchBroken,
    WatchMended,
    XidFault,
    problems,
)
from sim.node.control import control_socket
from sim.node.control import inject as inject_into

if TYPE_CHECKING:
    import argparse

    from gpuplugin.cli.parser import Commands
    from sim.gpu.faults import Fault

_KINDS = {
    "lost": "the GPU stops responding",
    "thermal-shutdown": "the GPU overheats and is lost",
    "unplug": "the GPU is removed from the bus",
    "plug": "the removed GPU is back",
    "replace": "another GPU of the model takes its place",
    "recover": "the GPU was reset and is as new",
}
"""Kinds whose option has no value, with its help."""


def add(commands: Commands) -> None:
    inject = commands.add_parser("inject", help="inject a fault into a simulated GPU or node")
    inject.set_defaults(module="sim.cli.inject", function="inject", wrong_usage=inject.error)
    where = inject.add_mutually_exclusive_group(required=True)
    where.add_argument("--kubelet-dir", metavar="DIR", help="folder that the node serves")
    where.add_argument(
        "--control", metavar="SOCKET", help="the control socket of a node, or of a fleet"
    )
    inject.add_argument("--node", default="", metavar="NAME", help="which node of a fleet")
    inject.add_argument(
        "--gpu", metavar="INDEX|UUID|all", help="which GPU; left out for the node as a whole"
    )
    what = inject.add_mutually_exclusive_group(required=True)
    what.add_argument("--xid", type=int, metavar="N", help="the driver reports Xid N")
    what.add_argument("--ecc", choices=("corrected", "uncorrectable"), help="an ECC event")
    remap = "a row remap, which no event reports"
    what.add_argument("--row-remap", choices=("pending", "failed"), help=remap)
    for kind, text in _KINDS.items():
        what.add_argument(f"--{kind}", action="store_true", help=text)
    what.add_argument(
        "--hang",
        nargs="?",
        type=float,
        const=math.inf,
        metavar="SECONDS",
        help="calls about the GPU do not return (default: until --recover)",
    )
    what.add_argument(
        "--repartition",
        metavar="PROFILE,...|none",
        help="MIG devices of these profiles; none turns MIG off",
    )
    what.add_argument(
        "--driver", choices=("down", "up", "hang"), help="unload, load or hang the driver"
    )
    what.add_argument(
        "--watch", choices=("broken", "mended"), help="waiting for events fails, or works again"
    )
    what.add_argument(
        "--returns",
        metavar="CALL,...",
        help="calls of NVML (functions, groups, field:N) about the GPU return --code or --value; "
        "without --gpu, calls that are about no GPU",
    )
    modes, states = ([one.value for one in kind] for kind in (ComputeMode, FabricState))
    what.add_argument("--compute-mode", choices=modes, help="set the compute mode")
    what.add_argument("--fabric", choices=states, help="state of the GPU in the NVLink fabric")
    what.add_argument(
        "--confidential",
        choices=("ready", "not-ready"),
        help="whether GPUs accept work in confidential computing",
    )
    inject.add_argument("--json", action="store_true", help="print JSON")
    inject.add_argument("--code", metavar="NAME|N", help="with --returns and --fabric: this code")
    inject.add_argument(
        "--value",
        metavar="N|MEMBER=N,...|hex:BYTES",
        help="with --returns: a number, members of a structure, or the bytes of a text",
    )
    inject.add_argument(
        "--every", type=int, metavar="K", help="with --returns: only every K-th call (default 1)"
    )
    inject.add_argument(
        "--mig", type=int, metavar="INDEX", help="with --xid and --returns: this MIG device"
    )
    inject.add_argument(
        "--count", type=int, metavar="N", help="with --ecc: errors found at once (default 1)"
    )
    inject.add_argument(
        "--for",
        dest="for_s",
        type=float,
        metavar="SECONDS",
        help="with --returns, --driver hang and --watch broken: how long (default: until it is "
        "ended)",
    )


def inject(parsed: argparse.Namespace) -> int:
    """Inject; 1 if no node listens or it refuses, 2 for options that do not go together."""
    what = what_of(parsed)
    wrong = _wrong_usage(parsed, what)
    if wrong:
        parsed.wrong_usage(wrong)
    socket = Path(parsed.control) if parsed.control else control_socket(Path(parsed.kubelet_dir))
    try:
        text = describe(FAULT.validate_python(what))
        injected = inject_into(socket, parsed.gpu, what, parsed.node)
    except ValidationError as error:
        return fail(f"this cannot be injected: {problems(error)}")
    except ControlError as error:
        return fail(error)
    if parsed.json:
        print(injected.model_dump_json(indent=2))
        return 0
    for gpu in injected.gpus:
        successor = f", {gpu.replaced_by} is in its place" if gpu.replaced_by else ""
        print(f"GPU {gpu.index} ({gpu.uuid}): {text}{successor}")
    if not injected.gpus:
        print(text)
    return 0


def _wrong_usage(parsed: argparse.Namespace, what: dict[str, object]) -> str:
    """What is wrong about options that each are right; empty if nothing is."""
    node_wide = bool(parsed.driver or parsed.watch or parsed.confidential)
    if node_wide and parsed.gpu is not None:
        return "--driver, --watch and --confidential apply to the whole node: leave --gpu out"
    if not node_wide and parsed.gpu is None and parsed.returns is None:
        return "this applies to a GPU: name it with --gpu INDEX, --gpu UUID or --gpu all"
    if parsed.mig is not None and parsed.xid is None and (not parsed.returns or not parsed.gpu):
        return "--mig goes with --xid and --returns, and a GPU"
    if parsed.code is not None and parsed.returns is None and parsed.fabric is None:
        return "--code goes with --returns and --fabric"
    if parsed.returns is None and (parsed.value is not None or parsed.every is not None):
        return "--value and --every go with --returns"
    if parsed.count is not None and parsed.ecc is None:
        return "--count goes with --ecc"
    if parsed.for_s is not None and parsed.hang is not None:
        return "give the seconds of a hang as --hang SECONDS"
    if parsed.for_s is not None and "for_s" not in what:
        return "--for goes with --returns, --driver hang and --watch broken"
    return ""


def what_of(  # noqa: C901 - one case for each option
    parsed: argparse.Namespace,
) -> dict[str, object]:
    """The fault that the options name, as a scenario spells it."""
    if parsed.xid is not None:
        mig = {} if parsed.mig is None else {"mig": parsed.mig}
        return {"kind": "xid", "xid": parsed.xid, **mig}
    if parsed.ecc is not None:
        count = 1 if parsed.count is None else parsed.count
        return {"kind": "ecc", "uncorrectable": parsed.ecc == "uncorrectable", "count": count}
    if parsed.row_remap is not None:
        return {"kind": "row-remap", "failed": parsed.row_remap == "failed"}
    if parsed.hang is not None:
        return {"kind": "hang", "for_s": None if parsed.hang == math.inf else parsed.hang}
    if parsed.repartition is not None:
        profiles = [name.strip() for name in parsed.repartition.split(",") if name.strip()]
        return {"kind": "repartition", "mig": None if profiles == ["none"] else profiles}
    if parsed.returns is not None:
        return _returns(parsed)
    if parsed.compute_mode is not None:
        return {"kind": "compute-mode", "mode": parsed.compute_mode}
    if parsed.fabric is not None:
        return {"kind": "fabric", "state": parsed.fabric, "code": parsed.code or "SUCCESS"}
    if parsed.confidential is not None:
        return {"kind": "confidential-ready", "ready": parsed.confidential == "ready"}
    node_wide = f"driver-{parsed.driver}" if parsed.driver else f"watch-{parsed.watch}"
    if node_wide in {"driver-hang", "watch-broken"}:
        return {"kind": node_wide, "for_s": parsed.for_s}
    if parsed.driver or parsed.watch:
        return {"kind": node_wide}
    return {"kind": next(kind for kind in _KINDS if getattr(parsed, kind.replace("-", "_")))}


def _returns(parsed: argparse.Namespace) -> dict[str, object]:
    what: dict[str, object] = {
        "kind": "driver-returns" if parsed.gpu is None else "returns",
        "calls": [name.strip() for name in parsed.returns.split(",") if name.strip()],
        "code": parsed.code,
        "value": None if parsed.value is None else _value(parsed.value),
        "every": 1 if parsed.every is None else parsed.every,
        "for_s": parsed.for_s,
    }
    return what if parsed.gpu is None else {**what, "mig": parsed.mig}


def _value(text: str) -> int | dict[str, int] | str:
    """The value of `--value`; what is no number is left for the fault's model to refuse."""
    if text.startswith("hex:"):
        return text
    try:
        if "=" not in text:
            return int(text, 0)
        members = (member.split("=", 1) for member in text.split(","))
        return {name.strip(): int(number, 0) for name, number in members}
    except ValueError:
        return text


def describe(fault: Fault) -> str:  # noqa: C901, PLR0912 - one case for each kind
    match fault:
        case XidFault(xid=code, mig=mig):
            xid = lookup_xid(code)
            where = "" if mig is None else f"MIG device {mig}: "
            return f"{where}Xid {xid.code}, {xid.meaning} (action: {xid.action.value})"
        case EccFault(uncorrectable=uncorrectable, count=count):
            kind = "uncorrectable" if uncorrectable else "corrected"
            return f"{kind} ECC" + (f", {count} errors" if count > 1 else "")
        case RowRemap(failed=failed):
            return f"row remap {'failed' if failed else 'pending'}, no event"
        case Hang(for_s=for_s):
            return f"hangs {_how_long(for_s, 'until it recovers')}"
        case Repartition(mig=None):
            return "MIG is off"
        case Repartition(mig=profiles):
            names = ", ".join(profiles or ())
            return f"MIG devices {names}" if names else "MIG is on, without devices"
        case DriverHang(for_s=for_s):
            return f"the driver hangs {_how_long(for_s, 'until --driver up')}"
        case WatchBroken(for_s=for_s):
            return f"waiting for events fails {_how_long(for_s, 'until --watch mended')}"
        case Returns() | DriverReturns():
            return _describe_returns(fault)
        case ComputeModeChange(mode=mode):
            return f"compute mode {mode.value}"
        case Fabric(state=state, code=code):
            told = "" if code == "SUCCESS" else f", {code}"
            return f"NVLink fabric {state.value}{told}"
        case ConfidentialReady(ready=ready):
            return f"GPUs are {'' if ready else 'not '}ready for confidential computing"
        case LostFault():
            return "lost"
        case ThermalShutdown():
            return "at its shutdown temperature, lost soon"
        case Unplug():
            return "removed from the bus"
        case Plug():
            return "back on the bus"
        case Replacement():
            return "taken out"
        case Recovery():
            return "recovered, as after a reset"
        case DriverDown():
            return "the driver is not loaded"
        case DriverUp():
            return "the driver was reloaded"
        case WatchMended():
            return "waiting for events works again"
        case _:
            assert_never(fault)


def _describe_returns(fault: Returns | DriverReturns) -> str:
    where, end = "", "until --driver up"
    if isinstance(fault, Returns):
        where = "" if fault.mig is None else f"MIG device {fault.mig}: "
        end = "until it recovers"
    calls = ", ".join(fault.calls)
    if fault.code == "SUCCESS":
        return f"{where}{calls} return the truth"
    what = fault.code if fault.value is None else fault.value
    often = "" if fault.every == 1 else f" at one call in {fault.every}"
    return f"{where}{calls} return {what}{often} {_how_long(fault.for_s, end)}"


def _how_long(for_s: float | None, otherwise: str) -> str:
    return otherwise if for_s is None else f"for {for_s:g} s"
