"""The command line of `nvidia-smi`."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pynvml

from sim.smi import mig
from sim.smi.driver import NODE, SmiError, connect, gpus
from sim.smi.query import gpu_lines, parse_format, process_lines
from sim.smi.report import cuda_version, driver_version, text_report, xml_report
from sim.smi.table import listed, summary
from sim.smi.topology import matrix
from sim.smi.tree import SECTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from typing import NoReturn, TextIO

    from sim.smi.driver import Gpu

PROGRAM: Final = "nvidia-smi"
_MOST: Final = 1_000_000
"""Of seconds, milliseconds and watts."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SmiError(f"{message}\n{self.format_usage().rstrip()}", 2)


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the program; its exit status is NVML's code where a call fails, 2 for wrong usage."""
    try:
        parsed = _parsed(arguments)
        connect(environment)
        with _output(parsed.filename) as output:
            _repeat(parsed, environment, output)
    except SmiError as error:
        # As the original does: on standard output.
        sys.stdout.write(f"{error}\n")
        return error.status
    except pynvml.NVMLError as error:
        sys.stdout.write(f"{PROGRAM}: {error}\n")
        return int(error.value)
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    return 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the program in a container prints, and when it asks again; 0 s: it ends.

    It goes to the container's file of this name, to standard output if it is empty.
    """

    status: int
    text: str
    again_s: float = 0.0
    filename: str = ""


def answer(arguments: Sequence[str], environment: Mapping[str, str]) -> Answer:
    """What one run prints in a container: without changes."""
    printed = StringIO()
    again_s, filename = 0.0, ""
    try:
        with redirect_stdout(printed):  # the parser prints its help there
            parsed = _parsed(arguments)
        _check_in_container(parsed)
        connect(environment)
        printed.writelines(f"{line}\n" for line in _lines(parsed, environment))
        status, again_s, filename = 0, _pause_s(parsed), parsed.filename or ""
    except SmiError as error:
        printed.write(f"{error}\n")
        status = error.status
    except pynvml.NVMLError as error:
        printed.write(f"{PROGRAM}: {error}\n")
        status = int(error.value)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 2
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    return Answer(status, printed.getvalue(), again_s, filename)


def _check_in_container(parsed: argparse.Namespace) -> None:
    """Raises `SmiError` for what only the node can do."""
    asks_node = parsed.command == "compute-policy" or (not parsed.command and parsed.reset)
    if asks_node:
        raise SmiError("Insufficient Permissions: a container cannot ask the node for that", 4)


def _output(filename: str | None) -> AbstractContextManager[TextIO]:
    if filename is None:
        return nullcontext(sys.stdout)
    try:
        return Path(filename).open("w")
    except OSError as error:
        raise SmiError(f"{filename}: {error.strerror}", 2) from error


def _repeat(parsed: argparse.Namespace, environment: Mapping[str, str], output: TextIO) -> None:
    pause_s = _pause_s(parsed)
    while True:
        for line in _lines(parsed, environment):
            print(line, file=output)
        output.flush()
        if not pause_s:
            return
        time.sleep(pause_s)


def _pause_s(parsed: argparse.Namespace) -> float:
    """Between two reports; 0: there is one."""
    return float(parsed.loop if parsed.loop is not None else (parsed.loop_ms or 0) / 1000)


def _lines(parsed: argparse.Namespace, environment: Mapping[str, str]) -> Iterator[str]:
    chosen = gpus(parsed.id)
    match parsed.command:
        case "topo":
            yield from matrix(chosen)
        case "mig":
            yield from mig.run(parsed, chosen)
        case "compute-policy":
            yield from _policy(parsed, chosen, environment)
        case _:
            yield from _main_lines(parsed, chosen, environment)


def _main_lines(
    parsed: argparse.Namespace, chosen: Sequence[Gpu], environment: Mapping[str, str]
) -> Iterator[str]:
    if parsed.version:
        yield from _version()
    elif parsed.list_gpus:
        yield from listed(chosen)
    elif parsed.query_gpu is not None:
        yield from gpu_lines(parsed.query_gpu, chosen, parse_format(parsed.format))
    elif parsed.query_apps is not None:
        yield from process_lines(parsed.query_apps, chosen, parse_format(parsed.format))
    elif parsed.mig_mode is not None:
        yield from _set_mig_mode(chosen, parsed.mig_mode)
    elif parsed.power_limit is not None:
        yield from _set_power_limit(chosen, parsed.power_limit)
    elif parsed.reset:
        from sim.smi.policy import reset  # it needs what no other command does

        yield from reset(chosen, Path(environment[NODE]))
    elif parsed.query and parsed.xml:
        yield from xml_report(chosen)
    elif parsed.query:
        yield from text_report(chosen, _sections(parsed.display))
    else:
        yield from summary(chosen)


def _sections(display: str | None) -> list[str]:
    wanted = [one.strip().upper() for one in (display or "").split(",") if one.strip()]
    unknown = [one for one in wanted if one not in SECTIONS]
    if unknown:
        raise SmiError(f"Unknown display type {unknown[0]!r}; known: {', '.join(SECTIONS)}", 2)
    return wanted


def _version() -> Iterator[str]:
    library = pynvml.nvmlSystemGetNVMLVersion().partition(".")[2]
    yield f"NVIDIA-SMI version  : {driver_version()}"
    yield f"NVML version        : {library.rpartition('.')[0] or library}"
    yield f"DRIVER version      : {driver_version()}"
    yield f"CUDA Version        : {cuda_version()}"


def _set_mig_mode(chosen: Sequence[Gpu], mode: int) -> Iterator[str]:
    name = "Enabled" if mode else "Disabled"
    for gpu in chosen:
        try:
            activation = pynvml.nvmlDeviceSetMigMode(gpu.handle, mode)
        except pynvml.NVMLError as error:
            doing = f"Unable to {name[:-1].lower()} MIG Mode for GPU {gpu.bus_id}"
            raise SmiError(f"{doing}: {error}", int(error.value)) from error
        if activation:
            yield (
                f"Warning: MIG mode is in pending {name[:-1].lower()} state for GPU {gpu.bus_id}: "
                "In use by another client"
            )
        yield f"{name} MIG Mode for GPU {gpu.bus_id}"
    yield "All done."


def _set_power_limit(chosen: Sequence[Gpu], limit_w: float) -> Iterator[str]:
    for gpu in chosen:
        before_w = pynvml.nvmlDeviceGetPowerManagementLimit(gpu.handle) / 1000
        try:
            pynvml.nvmlDeviceSetPowerManagementLimit(gpu.handle, round(limit_w * 1000))
        except pynvml.NVMLError as error:
            text = f"Provided power limit {limit_w:.2f} W is not a valid power limit for GPU "
            raise SmiError(f"{text}{gpu.bus_id}: {error}", int(error.value)) from error
        yield (
            f"Power limit for GPU {gpu.bus_id} was set to {limit_w:.2f} W from {before_w:.2f} W."
        )
    yield "All done."


def _policy(
    parsed: argparse.Namespace, chosen: Sequence[Gpu], environment: Mapping[str, str]
) -> Iterator[str]:
    from sim.smi.policy import compute_policies, set_policies

    node = Path(environment[NODE])
    if parsed.time_slice is not None:
        yield from set_policies(chosen, parsed.time_slice, node)
    else:
        yield from compute_policies(chosen, node)


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    command = arguments[0] if arguments and arguments[0] in _COMMANDS else ""
    parser = _Parser(
        prog=f"{PROGRAM} {command}".rstrip(),
        allow_abbrev=False,
        description="System management of a simulated node's GPUs, with the options of NVIDIA's "
        "program that others use.",
    )
    parser.set_defaults(command=command, loop=None, loop_ms=None, filename=None)
    parser.add_argument("-i", "--id", metavar="GPUS", help="indices, UUIDs, bus ids or serials")
    _COMMANDS[command](parser)
    return parser.parse_args(arguments[bool(command) :])


def _main_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--version", action="store_true", help="versions of the driver and its parts")
    add("-L", "--list-gpus", action="store_true", help="GPUs and MIG devices with their UUIDs")
    add("-q", "--query", action="store_true", help="everything about the GPUs")
    add("-x", "--xml-format", dest="xml", action="store_true", help="with -q: as XML")
    add("-d", "--display", metavar="TYPES", help=f"with -q: only {', '.join(SECTIONS)}")
    add("-f", "--filename", metavar="FILE", help="write to a file")
    add("-l", "--loop", type=number, nargs="?", const=5.0, metavar="S", help="again every S s")
    add("-lms", "--loop-ms", type=number, metavar="MS", help="again every MS milliseconds")
    add("--query-gpu", metavar="FIELDS", help="a line for each GPU; see --format")
    add("--query-compute-apps", dest="query_apps", metavar="FIELDS", help="for each process")
    add("--format", metavar="csv[,noheader][,nounits]", help="of a query")
    add("-pl", "--power-limit", type=number, metavar="W", help="set the power limit")
    add("-mig", "--multi-instance-gpu", dest="mig_mode", type=int, choices=(0, 1), help="MIG mode")
    add("-r", "--gpu-reset", dest="reset", action="store_true", help="reset the GPUs")


def number(text: str) -> float:
    value = float(text)
    if not 0 <= value <= _MOST:
        raise ValueError(text)
    return value


def _mig_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-lgip", "--list-gpu-instance-profiles", dest="list_profiles", action="store_true")
    add(
        "-lgipp",
        "--list-gpu-instance-possible-placements",
        dest="list_placements",
        action="store_true",
    )
    add("-lgi", "--list-gpu-instances", dest="list_instances", action="store_true")
    add("-lci", "--list-compute-instances", dest="list_compute", action="store_true")
    add("-cgi", "--create-gpu-instance", dest="create", metavar="PROFILES[:START]")
    add("-C", "--default-compute-instance", dest="with_compute", action="store_true")
    add("-cci", "--create-compute-instance", dest="create_compute", nargs="?", const="")
    add("-dgi", "--destroy-gpu-instance", dest="destroy", action="store_true")
    add("-dci", "--destroy-compute-instance", dest="destroy_compute", action="store_true")
    add("-gi", "--gpu-instance-id", dest="instances", metavar="IDS")


def _topo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--matrix", action="store_true", required=True)


def _policy_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-l", "--list", action="store_true", help="the policies in force")
    parser.add_argument(
        "--set-timeslice",
        dest="time_slice",
        type=int,
        choices=range(4),
        help="0 default, 1 short, 2 medium, 3 long",
    )


_COMMANDS: Final = {
    "": _main_options,
    "topo": _topo_options,
    "mig": _mig_options,
    "compute-policy": _policy_options,
}
