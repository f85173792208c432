"""`gpuplugin sim fleet`: many simulated GPU nodes of a real API server, without kubelets."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from contextlib import ExitStack, closing
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from gpuplugin.cli.options import add_options, given_options
from gpuplugin.cli.text import fail
from gpuplugin.config.loaded import ConfigError
from gpuplugin.config.options import OPTIONS
from gpuplugin.core.node import ConfigurationMisfit
from gpuplugin.daemon.http.server import HttpError, HttpServer
from gpuplugin.daemon.logs import set_up_logging
from sim.apiserver.rules import quantity
from sim.fleet.objects import Machine
from sim.lineserver import LineServer
from sim.node.control import RESPONSE_TIMEOUT_S
from sim.node.scenario import ScenarioError, load_scenario
from sim.virtual.settings import load_for, with_replicas

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from gpuplugin.cli.parser import Commands
    from gpuplugin.config.settings import DaemonSettings
    from gpuplugin.daemon.http.textformat import Family
    from sim.fleet.api import FleetApi
    from sim.fleet.keeper import Keeper
    from sim.fleet.plan import FleetPlan, Pool

_NAMES = ("--log-level", "--log-format", "--listen-address")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?")
_MOST_NODES = 5_000
_LEAST_LEASE_S = 4
_SCRAPE_S = 60.0
_PAGE = "<!doctype html><title>gpuplugin sim fleet</title><a href='/metrics'>metrics</a>"


def add(commands: Commands) -> None:
    fleet = commands.add_parser(
        "fleet",
        help="keep many simulated GPU nodes at a real API server, without kubelets",
        description="Keep Node objects with status, leases and allocatable devices at the API "
        "server of KUBECONFIG, or of the pod that this runs in, until a signal ends it. Needs the "
        "extra kubernetes.",
    )
    fleet.set_defaults(module="sim.cli.fleet", function="fleet", wrong_usage=fleet.error)
    fleet.add_argument(
        "--nodes", type=int, metavar="N", help="how many (default 10); not with NAME=COUNT"
    )
    fleet.add_argument(
        "--scenario",
        action="append",
        metavar="FILE|NAME[=COUNT]",
        help="what a node is (default: default); repeated with counts, a pool of nodes each",
    )
    fleet.add_argument(
        "--replicas", type=int, metavar="N", help="replicas of each GPU, over the scenario's config"
    )
    fleet.add_argument(
        "--name-prefix", default="sim", metavar="NAME", help="nodes are NAME-0 and so on (sim)"
    )
    fleet.add_argument(
        "--label", action="append", default=[], metavar="KEY=VALUE", help="a label of all nodes"
    )
    fleet.add_argument(
        "--taint", action="store_true", help="taint them gpuplugin.dev/simulated=true:NoSchedule"
    )
    usual = Machine()
    for name, text in (
        ("cpu", "CPUs of a node"),
        ("memory", "memory of a node"),
        ("pods", "pods that a node takes"),
    ):
        value = getattr(usual, name)
        fleet.add_argument(
            f"--{name}", default=value, metavar="QUANTITY", help=f"{text} (default {value})"
        )
    fleet.add_argument(
        "--lease-seconds", type=int, default=40, metavar="S",
        help="how long a lease lasts; it is renewed four times as often (default 40)",
    )  # fmt: skip
    fleet.add_argument(
        "--qps", type=float, default=100.0, metavar="N",
        help="requests a second at most, renewals of leases aside (default 100)",
    )  # fmt: skip
    fleet.add_argument(
        "--kubernetes-reports",
        action="store_true",
        help="report GPUs' health: Events, and the condition GPUHealthy of nodes",
    )
    fleet.add_argument("--keep", action="store_true", help="leave the nodes there at the end")
    fleet.add_argument(
        "--control", metavar="SOCKET", help="listen there for gpuplugin sim inject --node"
    )
    fleet.add_argument("--kubeconfig", metavar="FILE", help="default: $KUBECONFIG, or the pod's")
    add_options(fleet, sections=("flags", "gpus", "health"), names=_NAMES)


def fleet(parsed: argparse.Namespace) -> int:
    """Keep them until a signal; 0 then, 1 if it cannot be done, 2 for wrong usage."""
    wrong = _wrong_usage(parsed)
    if wrong:
        parsed.wrong_usage(wrong)
    if parsed.kubeconfig:
        os.environ["KUBECONFIG"] = parsed.kubeconfig
    try:
        from sim.fleet.api import FleetApi, NoCluster, Refused
        from sim.fleet.keeper import NotOurs
    except ImportError as error:
        return fail(f"sim fleet needs a client of Kubernetes: {error}: pip install "
                    "'gpuplugin[kubernetes]'")  # fmt: skip
    try:
        plan, daemon = _plan(parsed)
        set_up_logging(daemon.log_level, daemon.log_format)
        return asyncio.run(_keep(FleetApi(parsed.qps), plan, daemon, parsed.control))
    except ScenarioError as error:
        return fail(error)
    except ConfigError as error:
        return fail(f"the configuration cannot be used:\n{error}")
    except OSError as error:
        return fail(f"--control {parsed.control} cannot be listened on: {error}")
    except (NoCluster, ConfigurationMisfit, HttpError, NotOurs, Refused) as error:
        return fail(error)


async def _keep(api: FleetApi, plan: FleetPlan, daemon: DaemonSettings, control: str | None) -> int:
    from sim.fleet.keeper import Keeper

    keeper = Keeper(plan, api)
    stop, ready = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with ExitStack() as stack:
        if control is not None:
            stack.enter_context(closing(_control(keeper, Path(control), loop)))
        if daemon.listen_address:
            stack.enter_context(closing(_http(keeper, daemon.listen_address, loop)))
        telling = asyncio.create_task(_announce(ready, plan))
        stack.callback(telling.cancel)
        async with api:
            await keeper.run(stop, ready)
    return 0


def _http(keeper: Keeper, address: str, loop: asyncio.AbstractEventLoop) -> HttpServer:
    """Metrics, readiness and liveness; the metrics are put together on the event loop."""

    def families() -> list[Family]:
        return asyncio.run_coroutine_threadsafe(keeper.families(), loop).result(_SCRAPE_S)

    return HttpServer(address, keeper.status, families, lambda: _PAGE)


def _control(keeper: Keeper, path: Path, loop: asyncio.AbstractEventLoop) -> LineServer:
    """A control socket; what it is asked for is done on the event loop."""

    async def on_loop(request: Mapping[str, object]) -> Mapping[str, object]:
        return keeper.inject(request)

    def handle(request: Mapping[str, object]) -> Mapping[str, object]:
        return asyncio.run_coroutine_threadsafe(on_loop(request), loop).result(RESPONSE_TIMEOUT_S)

    return LineServer(path, handle)


async def _announce(ready: asyncio.Event, plan: FleetPlan) -> None:
    await ready.wait()
    last = plan.count - 1
    print(
        f"{plan.count} nodes are kept: {plan.prefix}-0 to {plan.prefix}-{last}\n"
        f"  kubectl get nodes -l gpuplugin.dev/fleet={plan.prefix}\n"
        f"Ctrl-C ends it{'' if plan.keep else ' and removes them'}.",
        flush=True,
    )


def _wrong_usage(parsed: argparse.Namespace) -> str:
    """What is wrong about the options; empty if nothing is."""
    if not _NAME.fullmatch(parsed.name_prefix):
        return f"--name-prefix {parsed.name_prefix!r}: lower-case letters, digits and '-', up to 52"
    if parsed.qps <= 0 or parsed.lease_seconds < _LEAST_LEASE_S:
        return f"--qps must be above 0, and --lease-seconds {_LEAST_LEASE_S} at least"
    if parsed.replicas is not None and parsed.replicas < 1:
        return "--replicas must be 1 at least"
    for name in ("cpu", "memory", "pods"):
        try:
            quantity(getattr(parsed, name))
        except ValueError as error:
            return f"--{name}: {error}"
    for label in parsed.label:
        if not label.partition("=")[0] or "=" not in label:
            return f"--label {label!r}: write KEY=VALUE"
    return ""


def _plan(parsed: argparse.Namespace) -> tuple[FleetPlan, DaemonSettings]:
    from sim.fleet.plan import FleetPlan

    made = [_pool(parsed, name, count) for name, count in _counts(parsed)]
    machine = Machine(
        cpu=parsed.cpu,
        memory=parsed.memory,
        pods=parsed.pods,
        labels=MappingProxyType(dict(label.split("=", 1) for label in parsed.label)),
        tainted=parsed.taint,
    )
    plan = FleetPlan(
        parsed.name_prefix,
        made,
        machine,
        parsed.lease_seconds,
        keep=parsed.keep,
        reports=parsed.kubernetes_reports,
    )
    return plan, made[0].settings.daemon


def _counts(parsed: argparse.Namespace) -> list[tuple[str, int]]:
    """The scenarios and how many nodes each has."""
    named = parsed.scenario or ["default"]
    pairs = [one.rpartition("=")[::2] if "=" in one else (one, "") for one in named]
    counted = [count for _, count in pairs if count]
    if counted and parsed.nodes is not None:
        parsed.wrong_usage("give --nodes, or a count with each --scenario, not both")
    if len(counted) < len(pairs) and len(pairs) > 1:
        parsed.wrong_usage("with several --scenario each needs a count: --scenario NAME=COUNT")
    if not all(count.isdecimal() for count in counted):
        parsed.wrong_usage(f"--scenario {', '.join(named)}: a count is a number")
    nodes = 10 if parsed.nodes is None else parsed.nodes
    counts = [(name, int(count) if count else nodes) for name, count in pairs]
    total = sum(count for _, count in counts)
    if min(count for _, count in counts) < 1 or total > _MOST_NODES:
        parsed.wrong_usage(f"there must be 1 to {_MOST_NODES} nodes, not {total}")
    return counts


def _pool(parsed: argparse.Namespace, name: str, count: int) -> Pool:
    from sim.fleet.plan import Pool

    scenario = load_scenario(name)
    if scenario.allocation == "dra":
        raise ScenarioError(
            f"scenario {name} gives GPUs to pods by DRA: a fleet keeps resources of device plugins"
        )
    if parsed.replicas is not None:
        config = with_replicas(scenario.config, parsed.replicas)
        scenario = scenario.model_copy(update={"config": config})
    flags = given_options(parsed)
    listening = next(one for one in OPTIONS if one.flags[0] == "--listen-address")
    flags.setdefault(listening, "127.0.0.1:2112")
    loaded = load_for(scenario, flags, os.environ, parsed.config_file)
    return Pool(scenario, loaded.settings, count)
