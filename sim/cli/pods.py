"""`gpuplugin sim pod`, `sim node`: the remote control of a running kubelet stand-in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.cli.parser import add_kubelet_dir, add_watch
from gpuplugin.cli.text import WATCH_S, fail, table, watched
from gpuplugin.linesocket import ControlError
from sim.kubeletsocket import DECISION_TIMEOUT_S, ManifestError, ask_kubelet, parse_limits

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

    from gpuplugin.cli.parser import Commands

DEFAULT_LIMIT = "nvidia.com/gpu=1"


def add_pod(commands: Commands) -> None:
    pod = commands.add_parser("pod", help="pods of a running kubelet stand-in")
    pod_commands = pod.add_subparsers(metavar="COMMAND", required=True)
    create = pod_commands.add_parser("create", help="create a pod and wait until it is decided")
    create.set_defaults(module="sim.cli.pods", function="pod_create")
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
    delete.set_defaults(module="sim.cli.pods", function="pod_delete")
    delete.add_argument("name", metavar="NAME")
    listing = pod_commands.add_parser("list", help="list pods")
    listing.set_defaults(module="sim.cli.pods", function="pod_list")
    _add_remote(create, delete, listing)


def add_node(commands: Commands) -> None:
    node = commands.add_parser("node", help="a simulated node, and what a kubelet sees of it")
    node_commands = node.add_subparsers(metavar="COMMAND", required=True)
    show = node_commands.add_parser("show", help="capacity and allocatable")
    show.set_defaults(module="sim.cli.pods", function="node_show")
    show.add_argument(
        "--wait", metavar="RESOURCE=N", help="wait until that many devices are allocatable"
    )
    show.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="for --wait (default 30)"
    )
    add_watch(show, "2 s")
    restart = node_commands.add_parser("restart", help="restart the kubelet stand-in")
    restart.set_defaults(module="sim.cli.pods", function="node_restart")
    serve = node_commands.add_parser("serve", help="run a simulated node without a plugin")
    serve.set_defaults(module="sim.cli.node", function="serve")
    add_kubelet_dir(serve)
    serve.add_argument(
        "--scenario", default="default", metavar="FILE|NAME", help="default: default"
    )
    serve.add_argument(
        "--node-name", default="", metavar="NAME", help="nodes with other names have other GPUs"
    )
    serve.add_argument(
        "--processes",
        action="store_true",
        help="a real process for each tenant, which does nothing, for tools that look it up",
    )
    _add_remote(show, restart)


def _add_remote(*parsers: argparse.ArgumentParser) -> None:
    for parser in parsers:
        add_kubelet_dir(parser)
        parser.add_argument("--json", action="store_true", help="print JSON")


def pod_create(parsed: argparse.Namespace) -> int:
    """Create a pod; 0 if it runs, 1 if it was refused or has to wait."""
    try:
        limits = dict(parse_limits(parsed.limit or [DEFAULT_LIMIT]))
    except ManifestError as error:
        return fail(error)
    options = {key: vars(parsed)[key] for key in ("name", "containers", "static")}
    response = _request(parsed, _pod_lines, command="create", limits=limits, **options)
    return 0 if response and response["phase"] == "Running" else 1


def pod_delete(parsed: argparse.Namespace) -> int:
    lines = [f"{parsed.name} deleted"]
    return 0 if _request(parsed, lambda _: lines, command="delete", name=parsed.name) else 1


def pod_list(parsed: argparse.Namespace) -> int:
    return 0 if _request(parsed, _pod_table, command="view") else 1


def node_show(parsed: argparse.Namespace) -> int:
    """Show capacity and allocatable, once they are as `--wait` says."""
    request: dict[str, object] = {"command": "view"}
    if parsed.wait:
        try:
            ((resource, count),) = parse_limits([parsed.wait]).items()
        except ManifestError as error:
            return fail(error)
        request = {"resource": resource, "count": count, "timeout_s": parsed.timeout}
        request["command"] = "wait"
        if _ask(parsed, parsed.timeout + 5, request) is None:
            return 1
    return watched(lambda: _node(parsed), WATCH_S if parsed.watch else 0)


def _node(parsed: argparse.Namespace) -> tuple[int, str]:
    node = _ask(parsed, DECISION_TIMEOUT_S, {"command": "view"})
    if node is None:
        return 1, ""
    return 0, json.dumps(node, indent=2) if parsed.json else "\n".join(_node_table(node))


def node_restart(parsed: argparse.Namespace) -> int:
    """Restart the stand-in: plugins have to come back, pods stay."""
    return 0 if _request(parsed, lambda _: ["restarted"], command="restart") else 1


def _request(
    parsed: argparse.Namespace,
    lines: Callable[[Mapping[str, object]], list[str]],
    **request: object,
) -> Mapping[str, object] | None:
    """Send a request and print the response; None if it failed."""
    response = _ask(parsed, DECISION_TIMEOUT_S, request)
    if response is not None:
        print(json.dumps(response, indent=2) if parsed.json else "\n".join(lines(response)))
    return response


def _ask(
    parsed: argparse.Namespace, respond_within_s: float, request: Mapping[str, object]
) -> Mapping[str, object] | None:
    try:
        return ask_kubelet(Path(parsed.kubelet_dir), respond_within_s, **request)
    except ControlError as error:
        fail(error)
        return None


def _pod_lines(pod: Mapping[str, object]) -> list[str]:
    lines = [f"{pod['name']} {pod['phase']}"]
    if pod["reason"]:
        lines.append(f"  {pod['reason']}: {pod['message']}")
    lines.extend(f"  {container}: {devices}" for container, devices in _granted(pod))
    return lines


def _pod_table(node: Mapping[str, object]) -> list[str]:
    rows = []
    for pod in _list(node["pods"]):
        devices = ", ".join(devices for _, devices in _granted(pod))
        rows.append((str(pod["name"]), str(pod["phase"]), str(pod["reason"]), devices))
    return table(("POD", "PHASE", "REASON", "DEVICES"), rows)


def _granted(pod: Mapping[str, object]) -> list[tuple[str, str]]:
    return [
        (str(grant["container"]), ", ".join(map(str, _list(grant["device_ids"]))))
        for grant in _list(pod["grants"])
    ] + [
        (", ".join(map(str, _list(one["containers"]))), str(one["uuid"] or one["device"]))
        for one in _list(pod["devices"])
    ]


def _node_table(node: Mapping[str, object]) -> list[str]:
    resources = node["resources"]
    lines = _claimed_table(node)
    if not isinstance(resources, dict) or not resources:
        return lines or ["no device plugin is registered"]
    return lines + table(
        ("RESOURCE", "CAPACITY", "ALLOCATABLE", "UNHEALTHY", "LIST UPDATES"),
        [
            (
                name,
                str(amount["capacity"]),
                str(amount["allocatable"]),
                str(len(amount["unhealthy"])),
                str(amount["list_updates"]),
            )
            for name, amount in resources.items()
        ],
    )


def _claimed_table(node: Mapping[str, object]) -> list[str]:
    """The devices of ResourceSlices, if there are any."""
    rows = [
        (
            str(one["driver"]),
            str(one["device"]),
            str(one["uuid"]),
            f"{one['taken']} of {one['shares']}",
            ", ".join(map(str, _list(one["taints"]))),
        )
        for one in _list(node["offered"])
    ]
    return table(("DRIVER", "DEVICE", "UUID", "TAKEN", "TAINTS"), rows) if rows else []


def _list(value: object) -> list[dict[str, object]]:
    return value if isinstance(value, list) else []
