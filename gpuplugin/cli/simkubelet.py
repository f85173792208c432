"""`gpuplugin sim kubelet`, `sim pod`, `sim node`: the kubelet stand-in and its remote control."""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.cli.text import table
from gpuplugin.linesocket import ControlError
from sim.kubelet import Kubelet, Pod, simple_pod
from sim.kubelet.control import (
    ManifestError,
    ask_kubelet,
    parse_limits,
    pods_from_yaml,
    serve_kubelet_control,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

    from sim.kubelet import KubeletEvent

DEFAULT_LIMIT = "nvidia.com/gpu=1"


def kubelet(parsed: argparse.Namespace) -> int:
    """Run the stand-in in the foreground, one line per fact, until a signal."""
    try:
        pods = _pods(parsed)
    except (ManifestError, OSError) as error:
        return _fail(error)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        with Kubelet(Path(parsed.kubelet_dir), seed=parsed.seed, listener=_print_fact) as running:
            control = serve_kubelet_control(running)
            for pod in pods:
                running.create_pod(pod)
            stop.wait()
            control.close()
    except (OSError, RuntimeError, ValueError) as error:
        return _fail(error)
    return 0


def pod_create(parsed: argparse.Namespace) -> int:
    """Create a pod; 0 if it runs, 1 if it was refused or has to wait."""

    def create() -> Mapping[str, object]:
        return ask_kubelet(
            Path(parsed.kubelet_dir),
            command="create",
            name=parsed.name,
            limits=dict(parse_limits(parsed.limit or [DEFAULT_LIMIT])),
            containers=parsed.containers,
            static=parsed.static,
        )

    return _remote(parsed, create, _pod_lines, lambda pod: pod["phase"] == "Running")


def pod_delete(parsed: argparse.Namespace) -> int:
    """Delete a pod."""
    return _remote(
        parsed,
        lambda: ask_kubelet(Path(parsed.kubelet_dir), command="delete", name=parsed.name),
        lambda _node: [f"{parsed.name} deleted"],
    )


def pod_list(parsed: argparse.Namespace) -> int:
    """List pods."""
    return _remote(
        parsed, lambda: ask_kubelet(Path(parsed.kubelet_dir), command="view"), _pod_table
    )


def node_show(parsed: argparse.Namespace) -> int:
    """Show capacity and allocatable, once they are as `--wait` says."""

    def show() -> Mapping[str, object]:
        folder = Path(parsed.kubelet_dir)
        if not parsed.wait:
            return ask_kubelet(folder, command="view")
        ((resource, count),) = parse_limits([parsed.wait]).items()
        return ask_kubelet(
            folder,
            parsed.timeout + 5,
            command="wait",
            resource=resource,
            count=count,
            timeout_s=parsed.timeout,
        )

    return _remote(parsed, show, _node_table)


def node_restart(parsed: argparse.Namespace) -> int:
    """Restart the stand-in: plugins have to come back, pods stay."""
    return _remote(
        parsed,
        lambda: ask_kubelet(Path(parsed.kubelet_dir), command="restart"),
        lambda _node: ["restarted"],
    )


def _remote(
    parsed: argparse.Namespace,
    request: Callable[[], Mapping[str, object]],
    lines: Callable[[Mapping[str, object]], list[str]],
    succeeded: Callable[[Mapping[str, object]], bool] = lambda _answer: True,
) -> int:
    try:
        answer = request()
    except (ControlError, ManifestError) as error:
        return _fail(error)
    print(json.dumps(answer, indent=2) if parsed.json else "\n".join(lines(answer)))
    return 0 if succeeded(answer) else 1


def _pods(parsed: argparse.Namespace) -> list[Pod]:
    pods = []
    for text in parsed.pod:
        name, _, limit = text.partition("=")
        resource, _, count = limit.rpartition(":")
        pods.append(simple_pod(name, parse_limits([f"{resource}={count}"])))
    for file in parsed.pods:
        pods.extend(pods_from_yaml(Path(file).read_text("utf-8")))
    return pods


def _print_fact(happened: KubeletEvent) -> None:
    print(f"{happened.kind:12} {happened.text}", flush=True)


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
    ]


def _node_table(node: Mapping[str, object]) -> list[str]:
    resources = node["resources"]
    if not isinstance(resources, dict) or not resources:
        return ["no device plugin is registered"]
    return table(
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


def _list(value: object) -> list[dict[str, object]]:
    return value if isinstance(value, list) else []


def _fail(error: Exception) -> int:
    print(f"gpuplugin: {error}", file=sys.stderr)
    return 1
