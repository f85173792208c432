"""The parser of all commands. What each command does is in a module of its own."""

from __future__ import annotations

import argparse

from gpuplugin.cli.benchoptions import add_bench
from gpuplugin.cli.injectoptions import add_inject
from gpuplugin.cli.options import add_options
from gpuplugin.cli.shareoptions import add_share
from gpuplugin.cli.simrunoptions import add_run
from gpuplugin.config.values import DEFAULT_CDI_ROOT
from gpuplugin.version import VERSION

_DEVICES_SECTIONS = ("flags", "gpus", "imex")
_DEVICES_NAMES = ("--backend", "--scenario", "--sysfs-root", "--procfs-root")
_UP_SECTIONS = ("flags", "gpus", "health", "imex")
_UP_NAMES = (
    "--registration",
    "--listen-address",
    "--log-level",
    "--log-format",
    "--rpc-engine",
    "--metrics-interval",
    "--cdi-root",
    "--node-name",
)
_DOCTOR_SECTIONS = ("flags", "gpus", "imex")
_DOCTOR_NAMES = (
    "--backend", "--scenario", "--kubelet-dir", "--kubelet-socket", "--registration",
    "--listen-address", "--cdi-root", "--sysfs-root", "--procfs-root",
)  # fmt: skip


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The whole command line, from which documents are made, too; or the part of one command.

    The daemon has no use for the options of thirty other commands, which take time and memory.
    """
    parser = argparse.ArgumentParser(
        prog="gpuplugin",
        description="A Kubernetes GPU device plugin with time slicing, and a simulated GPU node.",
    )
    parser.add_argument("--version", action="version", version=f"gpuplugin {VERSION}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, add in _COMMANDS.items():
        if command == name or command not in _COMMANDS:
            add(commands)
    return parser


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = commands.add_parser("run", help="run the device plugin")
    run.set_defaults(module="run", function="run")
    add_options(run)


def _add_devices(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    devices = commands.add_parser("devices", help="list GPUs and what would be advertised")
    devices.set_defaults(module="devices", function="devices")
    add_options(devices, sections=_DEVICES_SECTIONS, names=_DEVICES_NAMES)
    devices.add_argument("--json", action="store_true", help="print JSON")


def _add_config(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    config = commands.add_parser("config", help="look at configuration files")
    config_commands = config.add_subparsers(metavar="COMMAND", required=True)
    check = config_commands.add_parser("check", help="check a file and print what it means")
    check.set_defaults(module="config", function="check")
    check.add_argument("file", metavar="FILE")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.add_argument("--strict", action="store_true", help="an unknown key is an error")


def _add_cdi(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    cdi = commands.add_parser("cdi", help="CDI specs of the GPUs")
    cdi_commands = cdi.add_subparsers(metavar="COMMAND", required=True)
    show = cdi_commands.add_parser("show", help="print the specs that would be written")
    show.set_defaults(module="cdi", function="show")
    add_options(show, sections=_DEVICES_SECTIONS, names=_DEVICES_NAMES)
    remove = cdi_commands.add_parser("remove", help="remove the specs that were written")
    remove.set_defaults(module="cdi", function="remove")
    remove.add_argument(
        "--cdi-root", default=DEFAULT_CDI_ROOT, metavar="DIR", help=f"default {DEFAULT_CDI_ROOT}"
    )


def _add_health(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    health = commands.add_parser("health", help="health of the GPUs, as the running plugin sees it")
    health.set_defaults(module="health", function="show")
    health.add_argument("--json", action="store_true", help="print JSON")
    add_options(health, sections=(), names=("--kubelet-dir",))
    health_commands = health.add_subparsers(metavar="COMMAND")
    clear = health_commands.add_parser("clear", help="say that a fault is over")
    clear.set_defaults(module="health", function="clear")
    clear.add_argument("unit", metavar="UUID|INDEX|all", help="a GPU or MIG device")
    add_options(clear, sections=(), names=("--kubelet-dir",))


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser("demo", help="watch a simulated node serve a kubelet (40 s)")
    demo.set_defaults(module="demo", function="demo")
    demo.add_argument("--plain", action="store_true", help="plain lines, also on a terminal")
    demo.add_argument(
        "--pace", type=float, default=1.0, metavar="X", help="play X times as fast (default 1)"
    )
    demo.add_argument("--picture", metavar="FILE", help="save the screen with the lost GPU as SVG")


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
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
        "--timeout", type=float, default=10.0, metavar="S",
        help="how long the driver may take to answer (default 10)",
    )  # fmt: skip
    doctor.add_argument("--json", action="store_true", help="print JSON")


def _add_record(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    record = commands.add_parser("record", help="write this node's GPUs and load as a scenario")
    record.set_defaults(module="record", function="record")
    add_options(record, sections=("flags",), names=_DEVICES_NAMES)
    record.add_argument(
        "--for", dest="length", default="10s", metavar="DURATION", help="how long (default 10s)"
    )
    record.add_argument(
        "--interval", default="1s", metavar="DURATION", help="between two looks (default 1s)"
    )
    record.add_argument(
        "--scrub", action="store_true", help="leave out what identifies hardware and programs"
    )
    record.add_argument("--name", default="recorded", help="of the scenario (default recorded)")
    record.add_argument("-o", "--output", metavar="FILE", help="default: standard output")


def _add_sim(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sim = commands.add_parser("sim", help="simulated nodes, shared GPUs and the kubelet stand-in")
    sim_commands = sim.add_subparsers(metavar="COMMAND", required=True)

    kubelet = sim_commands.add_parser("kubelet", help="run the kubelet stand-in")
    kubelet.set_defaults(module="simkubelet", function="kubelet")
    _add_kubelet_dir(kubelet)
    kubelet.add_argument(
        "--pod",
        action="append",
        default=[],
        metavar="NAME=RESOURCE:N",
        help="a pod to run once the stand-in serves; may be repeated",
    )
    kubelet.add_argument(
        "--pods",
        action="append",
        default=[],
        metavar="FILE",
        help="Kubernetes Pod manifests to run; may be repeated",
    )
    kubelet.add_argument("--seed", type=int, default=0, help="order of device ids (default 0)")

    pod = sim_commands.add_parser("pod", help="pods of a running kubelet stand-in")
    pod_commands = pod.add_subparsers(metavar="COMMAND", required=True)
    create = pod_commands.add_parser("create", help="create a pod and wait until it is decided")
    create.set_defaults(module="simkubelet", function="pod_create")
    create.add_argument("name", metavar="NAME")
    create.add_argument(
        "--limit",
        action="append",
        metavar="RESOURCE=N",
        help="what each container asks for (default nvidia.com/gpu=1); may be repeated",
    )
    create.add_argument("--containers", type=int, default=1, metavar="N", help="default 1")
    create.add_argument(
        "--static", action="store_true", help="go to the kubelet past the scheduler"
    )
    delete = pod_commands.add_parser("delete", help="delete a pod")
    delete.set_defaults(module="simkubelet", function="pod_delete")
    delete.add_argument("name", metavar="NAME")
    listing = pod_commands.add_parser("list", help="list pods")
    listing.set_defaults(module="simkubelet", function="pod_list")

    up = sim_commands.add_parser(
        "up", help="run a whole simulated node: GPUs, kubelet, pods and the plugin"
    )
    up.set_defaults(module="simup", function="up")
    up.add_argument(
        "scenario",
        nargs="?",
        default="default",
        metavar="SCENARIO",
        help="a file, or the name of a shipped one (default default)",
    )
    _add_kubelet_dir(up)
    add_options(up, sections=_UP_SECTIONS, names=_UP_NAMES)

    scenario = sim_commands.add_parser("scenario", help="scenarios of simulated nodes")
    scenario_commands = scenario.add_subparsers(metavar="COMMAND", required=True)
    scenarios = scenario_commands.add_parser("list", help="list the shipped ones")
    scenarios.set_defaults(module="simscenario", function="listing")
    check = scenario_commands.add_parser("check", help="check a file, or a shipped one by name")
    check.set_defaults(module="simscenario", function="check")
    check.add_argument("scenario", metavar="FILE|NAME")
    schema = scenario_commands.add_parser("schema", help="print the JSON schema of scenarios")
    schema.set_defaults(module="simscenario", function="schema")
    _add_replay(sim_commands)

    node = sim_commands.add_parser("node", help="a simulated node, and what a kubelet sees of it")
    node_commands = node.add_subparsers(metavar="COMMAND", required=True)
    show = node_commands.add_parser("show", help="capacity and allocatable")
    show.set_defaults(module="simkubelet", function="node_show")
    show.add_argument(
        "--wait", metavar="RESOURCE=N", help="wait until that many devices are allocatable"
    )
    show.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="for --wait (default 30)"
    )
    restart = node_commands.add_parser("restart", help="restart the kubelet stand-in")
    restart.set_defaults(module="simkubelet", function="node_restart")
    _add_serve(node_commands, sim_commands)
    for command in (create, delete, listing, show, restart):
        _add_kubelet_dir(command)
        command.add_argument("--json", action="store_true", help="print JSON")

    add_inject(sim_commands)
    add_share(sim_commands)
    add_run(sim_commands)


def _add_serve(
    node_commands: argparse._SubParsersAction[argparse.ArgumentParser],
    sim_commands: argparse._SubParsersAction[argparse.ArgumentParser],
) -> None:
    serve = node_commands.add_parser("serve", help="run a simulated node without a plugin")
    serve.set_defaults(module="simnode", function="serve")
    _add_kubelet_dir(serve)
    serve.add_argument(
        "--scenario", default="default", metavar="FILE|NAME", help="default: default"
    )
    serve.add_argument(
        "--processes",
        action="store_true",
        help="a real process for each tenant, which does nothing, for tools that look it up",
    )
    env = sim_commands.add_parser("env", help="print what lets NVML programs see the node")
    env.set_defaults(module="simnode", function="env")
    _add_kubelet_dir(env)


def _add_replay(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    replay = commands.add_parser("replay", help="replay a cluster's trace on a fleet that shares")
    replay.set_defaults(module="simreplay", function="replay")
    replay.add_argument("--pods", required=True, metavar="CSV", help="pods of the openb trace")
    replay.add_argument("--nodes", required=True, metavar="CSV", help="machines of the openb trace")
    replay.add_argument(
        "--replicas", type=_positive, default=4, metavar="N", help="of each GPU (default 4)"
    )
    replay.add_argument(
        "--policy",
        choices=("packed", "distributed"),
        default="packed",
        help="which GPU of a machine: the fullest, or the emptiest (default packed)",
    )
    replay.add_argument(
        "--occupancy",
        type=_share,
        default=1.0,
        metavar="0..1",
        help="how much of a GPU the pods' kernels fill, for the cost of switches (default 1)",
    )
    replay.add_argument("--json", action="store_true", help="print JSON")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, found {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, found {text!r}")
    return value


def _add_kubelet_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kubelet-dir", required=True, metavar="DIR", help="folder that plays /var/lib/kubelet"
    )


_COMMANDS = {
    "run": _add_run,
    "devices": _add_devices,
    "config": _add_config,
    "cdi": _add_cdi,
    "health": _add_health,
    "doctor": _add_doctor,
    "record": _add_record,
    "demo": _add_demo,
    "bench": add_bench,
    "sim": _add_sim,
}
