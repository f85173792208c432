"""`gpuplugin sim up`: a whole simulated node in one process: GPUs, kubelet, pods and the plugin."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.cli.options import add_options, given_options
from gpuplugin.cli.parser import add_kubelet_dir
from gpuplugin.cli.text import fail
from gpuplugin.config.loaded import ConfigError
from gpuplugin.config.options import OPTIONS
from gpuplugin.daemon.app import run as run_daemon
from gpuplugin.daemon.logs import set_up_logging
from gpuplugin.version import VERSION
from sim.cli.cluster import NODE, RESOURCE, add_dra, cluster
from sim.cli.folder import Taken, owned
from sim.cli.options import add_calibration
from sim.kubelet import Kubelet
from sim.kubelet.control import serve_kubelet_control
from sim.node.node import SimulatedNode
from sim.node.podwork import PodWork, scenario_work
from sim.node.realtime import RealTimeNode, SimBackend
from sim.node.scenario import ScenarioError, load_scenario, scenario_names
from sim.node.serve import CannotServe, served
from sim.pods.door import pod_door
from sim.virtual.settings import load_for

if TYPE_CHECKING:
    import argparse

    from gpuplugin.cli.parser import Commands
    from gpuplugin.config.loaded import Loaded
    from gpuplugin.config.settings import DaemonSettings, Settings
    from sim.node.scenario import Scenario

log = logging.getLogger("gpuplugin")

_EVERYWHERE = ("", "0.0.0.0", "[::]")  # noqa: S104 - to be replaced by what a browser understands


_SECTIONS = ("flags", "gpus", "health", "imex")
_NAMES = (
    *("--registration", "--listen-address", "--log-level", "--log-format", "--rpc-engine"),
    *("--metrics-interval", "--cdi-root", "--node-name", "--pod-files"),
)


def add(commands: Commands) -> None:
    up = commands.add_parser(
        "up", help="run a whole simulated node: GPUs, kubelet, pods and the plugin"
    )
    up.set_defaults(module="sim.cli.up", function="up")
    up.add_argument(
        "scenario",
        nargs="?",
        default="default",
        metavar="SCENARIO",
        help="a file, or the name of a shipped one (default default)",
    )
    add_kubelet_dir(up)
    add_dra(up)
    add_calibration(up)
    add_options(up, sections=_SECTIONS, names=_NAMES)


def up(parsed: argparse.Namespace) -> int:
    """Run until a signal; 0 then, 1 if something could not start."""
    try:
        scenario = load_scenario(parsed.scenario)
        if parsed.calibration is not None:
            scenario = scenario.with_calibration(parsed.calibration)
        if parsed.dra:
            scenario = scenario.model_copy(update={"allocation": "dra"})
        loaded = _load(parsed, scenario)
    except ScenarioError as error:
        return fail(error)
    except ConfigError as error:
        return fail(f"the configuration cannot be used:\n{error}")
    daemon = loaded.settings.daemon
    set_up_logging(daemon.log_level, daemon.log_format)
    for warning in loaded.warnings:
        log.warning("%s", warning, extra={"event": "config-warning"})
    try:
        with ExitStack() as stack:
            stack.enter_context(owned(daemon.kubelet_dir))
            node = RealTimeNode(SimulatedNode(scenario, name=daemon.node_name))
            stack.callback(node.stop)
            stack.enter_context(served(node, daemon.kubelet_dir))
            if daemon.pod_files:
                stack.enter_context(pod_door(node, Path(daemon.pod_files)))
            store = None
            if scenario.allocation == "dra":
                server = stack.enter_context(
                    cluster(daemon.kubelet_dir, daemon.dra_driver_name, _resources(loaded.settings))
                )
                store = server.store
                os.environ |= {
                    "KUBECONFIG": str(daemon.kubelet_dir / "kubeconfig"),
                    "NO_PROXY": "127.0.0.1",
                }
            kubelet = stack.enter_context(
                Kubelet(daemon.kubelet_dir, store=store, node=daemon.node_name)
            )
            stack.enter_context(closing(serve_kubelet_control(kubelet)))
            host = daemon.host_proc.parent
            work = PodWork(kubelet, node, host, scenario_work(scenario), scenario)
            work.start()
            stack.callback(work.stop)
            return asyncio.run(
                run_daemon(
                    loaded,
                    lambda: _load(parsed, scenario),
                    SimBackend(node),
                    VERSION,
                    on_http=lambda port: _announce(scenario, daemon, port),
                )
            )
    except (CannotServe, OSError, RuntimeError, Taken) as error:
        return fail(error)


def _announce(scenario: Scenario, daemon: DaemonSettings, port: int) -> None:
    """Where the node is, once its page can be looked at, and what to do with it."""
    host = daemon.listen_address.rpartition(":")[0]
    at = f"--kubelet-dir {shlex.quote(str(daemon.kubelet_dir))}"
    print(
        f"node {scenario.name} with {scenario.gpu_count} GPUs at {daemon.kubelet_dir}; "
        f"look at http://{'127.0.0.1' if host in _EVERYWHERE else host}:{port}/\n"
        "in another terminal:\n"
        f"  gpuplugin sim node show {at}\n"
        f"  gpuplugin sim pod create trainer {at}\n"
        f"  gpuplugin sim inject {at} --gpu 0 --xid 79\n"
        f"  gpuplugin health {at} --watch\n"
        f"  gpuplugin doctor {at}\n"
        f"{_api(daemon)}"
        "Ctrl-C ends it.",
        flush=True,
    )


def _api(daemon: DaemonSettings) -> str:
    if daemon.allocation != "dra":
        return ""
    return f"its API server: KUBECONFIG={shlex.quote(str(daemon.kubelet_dir / 'kubeconfig'))}\n"


def _resources(settings: Settings) -> list[str]:
    """The resources that pods may ask for: GPUs, and what the configuration renames them to."""
    slicing = settings.sharing.time_slicing
    shared = slicing.resources if slicing is not None else []
    return list(dict.fromkeys((RESOURCE, *(one.rename for one in shared if one.rename))))


def _absolute(scenario: str) -> str:
    """The scenario as others find it, too: the doctor lists the same GPUs."""
    return scenario if scenario in scenario_names() else str(Path(scenario).absolute())


def _load(parsed: argparse.Namespace, scenario: Scenario) -> Loaded:
    """The scenario's configuration or the user's; the host's files are the node's own."""
    flags = given_options(parsed)
    by_flag = {option.flags[0]: option for option in OPTIONS}
    host = f"{parsed.kubelet_dir}/host"
    flags |= {
        by_flag["--backend"]: "sim",
        by_flag["--scenario"]: _absolute(parsed.scenario),
        by_flag["--kubelet-dir"]: parsed.kubelet_dir,
        by_flag["--host-proc"]: f"{host}/proc",
        by_flag["--pod-logs"]: f"{host}/pod-logs",
    }
    flags.setdefault(by_flag["--listen-address"], "127.0.0.1:2112")
    flags.setdefault(by_flag["--metrics-interval"], "1s")
    if scenario.allocation == "dra":
        flags |= {by_flag["--allocation"]: "dra", by_flag["--node-name"]: NODE}
        flags.setdefault(by_flag["--cdi-root"], f"{host}/cdi")
    return load_for(scenario, flags, os.environ, parsed.config_file)
