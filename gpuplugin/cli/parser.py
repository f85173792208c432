"""The parser of all commands. What each command does is in a module of its own."""

from __future__ import annotations

from argparse import ArgumentTypeError
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

from gpuplugin.cli.options import add_options
from gpuplugin.cli.text import needs_simulator
from gpuplugin.cli.usage import Parser, TopParser, add_examples
from gpuplugin.config.values import DEFAULT_CDI_ROOT
from gpuplugin.version import VERSION

if TYPE_CHECKING:
    import argparse

    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001

_MOST = 1_000_000
_DEVICES_SECTIONS = ("flags", "gpus", "imex")
_DEVICES_NAMES = ("--backend", "--scenario", "--node-name", "--sysfs-root", "--procfs-root")
_DOCTOR_SECTIONS = ("flags", "gpus", "imex")
_DOCTOR_NAMES = (
    "--backend", "--scenario", "--kubelet-dir", "--kubelet-socket", "--registration",
    "--listen-address", "--cdi-root", "--sysfs-root", "--procfs-root", "--node-name",
)  # fmt: skip


def build_parser(
    command: str | None = None, subcommand: str | None = None
) -> argparse.ArgumentParser:
    """The whole command line, from which documents are made, too; or the part of one command.

    The options of all other commands would cost the daemon time and memory. With an unknown
    `command` (or none: `""`) the options of `bench` and `sim` are left out, too.
    """
    parser = TopParser(
        prog="gpuplugin",
        description="A Kubernetes GPU device plugin with time slicing, and a simulated GPU node.",
    )
    parser.add_argument("--version", action="version", version=f"gpuplugin {VERSION}")
    found: Any = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    commands: Commands = found
    names = (*_COMMANDS, "advise", "bench", "sim")
    is_known = command is None or command in names
    for name in (command,) if command in names else names:
        match name:
            case "advise":
                _add_advise(commands, options=is_known)
            case "bench":
                _add_bench(commands, options=is_known)
            case "sim":
                _add_sim(commands, subcommand if is_known else "")
            case _:
                _COMMANDS[name](commands)
    add_examples(parser)
    return parser


def module_of(parsed: argparse.Namespace) -> str:
    """The full name of a command's module; without a dot the parser says one beside it."""
    name: str = parsed.module
    return name if "." in name else f"gpuplugin.cli.{name}"


def _amount(text: str) -> float:
    """Seconds, or how many times as fast."""
    with suppress(ValueError):
        if 0 < (number := float(text)) <= _MOST:
            return number
    raise ArgumentTypeError(f"must be a number above 0, at most {_MOST}, found {text!r}")


def _add_run(commands: Commands) -> None:
    run = commands.add_parser("run", help="run the device plugin")
    run.set_defaults(module="run", function="prepare")
    add_options(run)


def _add_devices(commands: Commands) -> None:
    devices = commands.add_parser("devices", help="list GPUs and what would be advertised")
    devices.set_defaults(module="devices", function="devices")
    add_options(devices, sections=_DEVICES_SECTIONS, names=_DEVICES_NAMES)
    devices.add_argument("--json", action="store_true", help="print JSON")


def _add_config(commands: Commands) -> None:
    config = commands.add_parser("config", help="check configuration files")
    config_commands = config.add_subparsers(metavar="COMMAND", required=True)
    check = config_commands.add_parser("check", help="check a file and print what it means")
    check.set_defaults(module="config", function="check")
    check.add_argument(
        "file",
        metavar="FILE|-",
        help="a configuration, or a ConfigMap, ClusterPolicy or values file with some; -: standard "
        "input",
    )
    check.add_argument("--json", action="store_true", help="print JSON")
    check.add_argument("--strict", action="store_true", help="an unknown key is an error")
    check.add_argument(
        "--explain", action="store_true",
        help="print what each GPU would be advertised as, and which key makes it so",
    )  # fmt: skip
    check.add_argument(
        "--scenario", metavar="FILE|NAME",
        help="explain the GPUs of this scenario, not of this machine",
    )  # fmt: skip
    schema = config_commands.add_parser("schema", help="print the JSON schema, for editors")
    schema.set_defaults(module="config", function="schema")


def _add_cdi(commands: Commands) -> None:
    cdi = commands.add_parser("cdi", help="CDI specs of the GPUs")
    cdi_commands = cdi.add_subparsers(metavar="COMMAND", required=True)
    show = cdi_commands.add_parser("show", help="print the specs that would be written")
    show.set_defaults(module="devices", function="show_cdi")
    add_options(show, sections=_DEVICES_SECTIONS, names=_DEVICES_NAMES)
    remove = cdi_commands.add_parser("remove", help="remove the specs that were written")
    remove.set_defaults(module="devices", function="remove_cdi")
    remove.add_argument(
        "--cdi-root", default=DEFAULT_CDI_ROOT, metavar="DIR", help=f"default {DEFAULT_CDI_ROOT}"
    )
    remove.add_argument("--json", action="store_true", help="print JSON")


def _add_manifests(commands: Commands) -> None:
    manifests = commands.add_parser(
        "manifests",
        help="print or write the files that deploy the plugin",
        description="Without an option the overlays and components are listed. Objects are put "
        "together by kubectl or kustomize.",
    )
    manifests.set_defaults(module="manifests", function="manifests")
    manifests.add_argument(
        "--overlay", metavar="NAME", help="print the objects of an overlay (default: the base)"
    )
    manifests.add_argument(
        "--component", action="append", default=[], metavar="NAME",
        help="with this component; may be repeated, in this order",
    )  # fmt: skip
    manifests.add_argument("--image", metavar="REFERENCE", help="the image of the plugin")
    manifests.add_argument(
        "--output", metavar="DIR", help="write all files there, for kubectl apply -k"
    )


def _add_health(commands: Commands) -> None:
    health = commands.add_parser("health", help="health of the GPUs, as the running plugin sees it")
    health.set_defaults(module="health", function="show")
    health.add_argument("--json", action="store_true", help="print JSON")
    add_watch(health, "2 s")
    add_options(health, sections=(), names=("--kubelet-dir",))
    health_commands = health.add_subparsers(metavar="COMMAND")
    clear = health_commands.add_parser("clear", help="clear a fault by hand")
    clear.set_defaults(module="health", function="clear")
    clear.add_argument("unit", metavar="UUID|INDEX|all", help="a GPU or MIG device")
    clear.add_argument("--json", action="store_true", help="print JSON")
    add_options(clear, sections=(), names=("--kubelet-dir",))
    forget = health_commands.add_parser("forget", help="stop listing a GPU that is gone for good")
    forget.set_defaults(module="health", function="forget")
    forget.add_argument("uuid", metavar="UUID", help="a GPU that does not respond")
    forget.add_argument("--json", action="store_true", help="print JSON")
    add_options(forget, sections=(), names=("--kubelet-dir",))


def _add_top(commands: Commands) -> None:
    top = commands.add_parser(
        "top",
        help="watch GPUs, replicas and pods of a node in the terminal",
        description="A live view of the node that the running plugin serves: GPUs with their "
        "health, load and replicas, pods with their shares, and the last calls.",
        epilog="keys: Ctrl-C ends it. For a simulated node, name its folder: "
        "gpuplugin top --kubelet-dir DIR",
    )
    top.set_defaults(module="top", function="top")
    add_options(top, sections=(), names=("--kubelet-dir",))
    top.add_argument(
        "--interval", type=_amount, default=2.0, metavar="S",
        help="seconds between two looks (default 2)",
    )  # fmt: skip
    top.add_argument("--once", action="store_true", help="print one view, and end")
    top.add_argument("--json", action="store_true", help="print one view as JSON, and end")


def _add_demo(commands: Commands) -> None:
    demo = commands.add_parser("demo", help="watch a simulated node serve a kubelet (40 s)")
    demo.set_defaults(module="sim.cli.demo", function="demo")
    demo.add_argument(
        "--dra", action="store_true", help="give GPUs to pods by Dynamic Resource Allocation"
    )
    demo.add_argument("--plain", action="store_true", help="plain lines, also on a terminal")
    demo.add_argument(
        "--pace", type=_amount, default=1.0, metavar="X", help="play X times as fast (default 1)"
    )
    demo.add_argument("--picture", metavar="FILE", help="save the screen with the lost GPU as SVG")


def _add_completion(commands: Commands) -> None:
    completion = commands.add_parser(
        "completion",
        help="print what lets a shell complete commands",
        description='For bash: eval "$(gpuplugin completion bash)" in ~/.bashrc. Needs the '
        "extra completion (pip install 'gpuplugin[completion]').",
    )
    completion.set_defaults(module="completion", function="completion")
    completion.add_argument("shell", choices=("bash", "zsh", "fish", "tcsh"))


def _add_doctor(commands: Commands) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="check a node and say what to do",
        epilog="exit status: 0 all well, 1 warnings, 2 wrong usage, 3 failures",
    )
    doctor.set_defaults(module="doctor", function="doctor")
    add_options(doctor, sections=_DOCTOR_SECTIONS, names=_DOCTOR_NAMES)
    doctor.add_argument(
        "--root", default="/", metavar="DIR", help="where the host's root is mounted (default /)"
    )
    doctor.add_argument(
        "--plugin-uid", type=int, metavar="UID",
        help="the user that the plugin runs as (default: that of the running one, or yours)",
    )  # fmt: skip
    doctor.add_argument(
        "--timeout", type=_amount, default=10.0, metavar="S",
        help="how long the driver may take to answer (default 10)",
    )  # fmt: skip
    doctor.add_argument("--json", action="store_true", help="print JSON")
    add_watch(doctor, "10 s")


def _add_record(commands: Commands) -> None:
    record = commands.add_parser(
        "record",
        help="write this node's GPUs, load and usage over time as a scenario",
        description="Write this node's GPUs, load and faults as a scenario, and below it the usage "
        "of each process over time, from which 'gpuplugin advise --record' takes workloads.",
    )
    record.set_defaults(module="sim.cli.record", function="record")
    add_options(record, sections=("flags",), names=(*_DEVICES_NAMES, "--host-proc", "--pod-logs"))
    record.add_argument(
        "--for", dest="length", default="10s", metavar="DURATION", help="how long (default 10s)"
    )
    record.add_argument(
        "--interval", default="1s", metavar="DURATION", help="between two readings (default 1s)"
    )
    record.add_argument(
        "--scrub", action="store_true", help="leave out what identifies hardware and programs"
    )
    record.add_argument("--name", default="recorded", help="of the scenario (default recorded)")
    record.add_argument("-o", "--output", metavar="FILE", help="default: standard output")


def _add_calibrate(commands: Commands) -> None:
    calibrate = commands.add_parser(
        "calibrate",
        help="measure how this machine's GPU shares its time",
        description="Measure slices, switches and contexts on a GPU, in under two minutes, and "
        "write what the simulator takes in place of its shipped numbers. Nothing of the driver is "
        "changed, apart from the time slice with --levels.",
        epilog="exit status: 0 measured, 1 could not measure",
    )
    calibrate.set_defaults(module="sim.cli.calibrate", function="calibrate")
    calibrate.add_argument(
        "--gpu", metavar="INDEX|UUID", help="which one (default: the first that can be measured)"
    )
    calibrate.add_argument(
        "--levels", action="store_true",
        help="also measure the time-slice levels; sets them, which needs root",
    )  # fmt: skip
    calibrate.add_argument(
        "--restore", default="default", choices=("default", "short", "medium", "long"),
        help="the level to set after --levels (default default): no call tells which one it was",
    )  # fmt: skip
    calibrate.add_argument(
        "--mps-command", metavar="COMMAND",
        help="also measure the MPS share of this command, which runs three times: some 10 s each "
        "are best",
    )  # fmt: skip
    calibrate.add_argument(
        "-o", "--output", metavar="FILE", help="write the calibration (default: standard output)"
    )
    calibrate.add_argument(
        "--stamps", metavar="FILE", help="also write what was seen, as JSON, for --from"
    )
    calibrate.add_argument(
        "--from", dest="source", metavar="FILE",
        help="conclude from a file of --stamps, and measure nothing",
    )  # fmt: skip
    calibrate.add_argument("--json", action="store_true", help="print JSON")


def _add_advise(commands: Commands, *, options: bool) -> None:
    advise = commands.add_parser(
        "advise",
        help="how many replicas, for a stated goal",
        description="Try numbers of replicas with your workloads in the simulator, and recommend "
        "the largest that keeps the goals.",
    )
    advise.set_defaults(module="sim.cli.advise", function="run")
    if options:
        with needs_simulator("gpuplugin advise"):
            options_of = import_module("sim.cli.advise")
        options_of.add_options(advise)


def _add_bench(commands: Commands, *, options: bool) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure the plugin, and others beside it",
        description="Measure device plugins and the simulator, each against a floor of the same "
        "run. The table goes to standard output.",
        epilog="exit status: 0 measured, 1 could not measure, missed a target with --strict, or "
        "became worse with --compare, 2 wrong usage",
    )
    bench.set_defaults(module="benchmarks.cli", function="bench", wrong_usage=bench.error)
    if options:
        with needs_simulator("gpuplugin bench"):
            options_of = import_module("benchmarks.cli")
        options_of.add_options(bench)


def _add_sim(commands: Commands, wanted: str | None = None) -> None:
    """Options of a simulation command are beside it, and loaded for that command alone.

    Raises:
        SimulatorMissing: they are in a distribution that is not installed.
    """
    sim = commands.add_parser("sim", help="simulated nodes, shared GPUs and the kubelet stand-in")
    if wanted == "":
        return
    sim_commands = sim.add_subparsers(metavar="COMMAND", required=True)
    for name, (module, function) in _SIM_COMMANDS.items():
        if wanted == name or wanted not in _SIM_COMMANDS:
            with needs_simulator("gpuplugin sim"):
                beside = import_module(f"sim.cli.{module}")
            getattr(beside, function)(sim_commands)


def add_watch(parser: argparse.ArgumentParser, period: str) -> None:
    parser.add_argument("--watch", action="store_true", help=f"again every {period}, until Ctrl-C")


def add_kubelet_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kubelet-dir", required=True, metavar="DIR", help="folder that plays /var/lib/kubelet"
    )


_COMMANDS = {
    "run": _add_run,
    "devices": _add_devices,
    "config": _add_config,
    "cdi": _add_cdi,
    "manifests": _add_manifests,
    "health": _add_health,
    "top": _add_top,
    "doctor": _add_doctor,
    "record": _add_record,
    "calibrate": _add_calibrate,
    "demo": _add_demo,
    "completion": _add_completion,
}

_SIM_COMMANDS = {
    "kubelet": ("kubelet", "add_kubelet"),
    "pod": ("pods", "add_pod"),
    "up": ("up", "add"),
    "fleet": ("fleet", "add"),
    "scenario": ("run", "add_scenario"),
    "replay": ("replay", "add"),
    "node": ("pods", "add_node"),
    "env": ("node", "add_env"),
    "smi": ("smi", "add"),
    "inject": ("inject", "add"),
    "share": ("share", "add"),
    "run": ("run", "add_run"),
    "sweep": ("sweep", "add"),
}
"""The module in `sim.cli` of each simulation command, and its function that adds the options."""
