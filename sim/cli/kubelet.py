"""`gpuplugin sim kubelet`: the kubelet stand-in."""

from __future__ import annotations

import json
import signal
import threading
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.cli.parser import add_kubelet_dir
from gpuplugin.cli.text import fail
from sim.cli.cluster import NODE, add_dra, cluster
from sim.cli.folder import Taken, owned
from sim.kubelet import Kubelet, Pod, simple_pod
from sim.kubelet.control import pods_from_yaml, serve_kubelet_control
from sim.kubeletsocket import ManifestError, parse_limits

if TYPE_CHECKING:
    import argparse

    from gpuplugin.cli.parser import Commands
    from sim.kubelet import KubeletEvent


def add_kubelet(commands: Commands) -> None:
    kubelet = commands.add_parser("kubelet", help="run the kubelet stand-in")
    kubelet.set_defaults(module="sim.cli.kubelet", function="kubelet")
    add_kubelet_dir(kubelet)
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
    add_dra(kubelet)
    kubelet.add_argument("--seed", type=int, default=0, help="order of device ids (default 0)")
    kubelet.add_argument("--json", action="store_true", help="print each event as a line of JSON")


def kubelet(parsed: argparse.Namespace) -> int:
    """Run the stand-in in the foreground, one line per fact, until a signal."""
    try:
        pods = _pods(parsed)
    except (ManifestError, OSError, UnicodeDecodeError) as error:
        return fail(error)
    tell = _tell_json if parsed.json else _tell
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    folder = Path(parsed.kubelet_dir)
    try:
        with ExitStack() as stack:
            stack.enter_context(owned(folder))
            server = stack.enter_context(cluster(folder)) if parsed.dra else None
            store = server.store if server is not None else None
            running = stack.enter_context(
                Kubelet(folder, seed=parsed.seed, listener=tell, store=store, node=NODE)
            )
            stack.enter_context(closing(serve_kubelet_control(running)))
            for pod in pods:
                running.create_pod(pod)
            stop.wait()
    except (OSError, RuntimeError, Taken, ValueError) as error:
        return fail(error)
    return 0


def _tell(event: KubeletEvent) -> None:
    print(f"{event.kind:12} {event.text}", flush=True)


def _tell_json(event: KubeletEvent) -> None:
    print(json.dumps({"kind": event.kind, "text": event.text}), flush=True)


def _pods(parsed: argparse.Namespace) -> list[Pod]:
    pods = []
    for text in parsed.pod:
        name, _, limit = text.partition("=")
        resource, _, count = limit.rpartition(":")
        pods.append(simple_pod(name, parse_limits([f"{resource}={count}"])))
    for file in parsed.pods:
        pods.extend(pods_from_yaml(Path(file).read_text("utf-8"), file))
    return pods
