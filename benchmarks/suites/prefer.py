"""GetPreferredAllocation over a socket: replicas in random order, and whole GPUs with links.

For whole GPUs each call is the first one that a new plugin gets, since what a search found may be
kept for the next one. The empty handler is sent the same bytes, and its process does what the
plugin's does between the calls.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.calls import Subject, caller, handled
from benchmarks.devices import TOPOLOGIES, healthy_ids, plugin_for, prefer_request
from benchmarks.plugins import simulated_node, started
from benchmarks.servers import RENEW, EmptyHandler, Handlers, daemon_like, serving
from benchmarks.targets import EMPTY
from gpuplugin.rpc.client import CallFailed, ConnectionFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from random import Random

    from benchmarks.calls import Caller
    from benchmarks.results import Measurement
    from benchmarks.suites import Context
    from gpuplugin.rpc import EngineName

GPUS = 8
SIZES = range(1, 9)
WHOLE = {8: SIZES, 16: (1, 2, 4, 8, 12, 15, 16)}
"""GPUs allocated whole, and the sizes of the requests."""
CALLS = 4
"""In a round, for each request: they are many, and the longest take milliseconds."""
FIRST_CALLS = 2
"""The same where a new plugin is made before each, which takes up to 20 ms for 16 GPUs."""
PEER_REPLICAS = (10, 1000)
ALONE_REPLICAS = 10
ALONE_REQUESTS = 10
QUIET_S = 0.003
"""After a new plugin was made, so that what is left of making it is no part of its first call."""


@dataclass(frozen=True, slots=True)
class _Case:
    """A plugin, and the sizes of the requests; `first_calls` makes a new one before each call."""

    name: str
    what: Handlers
    sizes: Sequence[int]
    first_calls: bool

    @property
    def floor(self) -> EmptyHandler:
        return EmptyHandler(self.what.engine, self.what if self.first_calls else None)


def measure(context: Context) -> list[Measurement]:
    figures = [
        figure
        for engine in context.engines
        for case in _cases(context, engine)
        for figure in _one_case(context, case)
    ]
    return [*_handler_alone(context), *figures, *_whole_plugins(context)]


def _handler_alone(context: Context) -> list[Measurement]:
    """Bytes to bytes in this process, with the daemon's metrics around."""
    chance = context.chance("handler")
    plugin = plugin_for(GPUS, ALONE_REPLICAS)
    ids = list(plugin.snapshot.devices)
    handler = daemon_like(plugin).unary["GetPreferredAllocation"]
    family = f"handler alone, {GPUS} x {ALONE_REPLICAS}"
    subjects = []
    for size in SIZES:
        requests = [
            prefer_request(chance.sample(ids, len(ids)), size) for _ in range(ALONE_REQUESTS)
        ]
        sample = partial(handled, handler, requests, context.effort.calls)
        subjects.append(Subject(f"{family}, request {size}", sample))
    what = "GetPreferredAllocation, the handler alone"
    found = context.turns(subjects, context.effort.prefer_rounds, what, chance)
    return [
        context.figure(name, "in process", "us", rounds, family=family)
        for name, rounds in found.items()
    ]


def _cases(context: Context, engine: EngineName) -> list[_Case]:
    cases = [
        _Case(f"{GPUS} x {count}", Handlers(engine, GPUS, count), SIZES, first_calls=False)
        for count in context.effort.replicas
        if count > 1
    ]
    for gpus, sizes in WHOLE.items():
        for topology in TOPOLOGIES:
            what = Handlers(engine, gpus, 1, topology)
            name = f"{gpus} whole GPUs, {topology}"
            cases.append(_Case(name, what, sizes, first_calls=True))
    return cases


def _one_case(context: Context, case: _Case) -> list[Measurement]:
    what = case.what
    chance = context.chance(f"{what.engine} {case.name}")
    ids = list(plugin_for(what.gpus, what.replicas).snapshot.devices)
    own = f"engine {what.engine}"
    subjects: list[Subject] = []
    with ExitStack() as stack:
        for name, server in ((own, what), (EMPTY, case.floor)):
            path = context.folder / f"{what.engine}-prefer-{len(subjects)}.sock"
            stack.enter_context(serving(path, server))
            # Connections of their own, so that answers of the one do not come between the other's.
            before = _caller(stack, context, path, RENEW) if case.first_calls else None
            call = _caller(stack, context, path, "GetPreferredAllocation")
            for size in case.sizes:
                sample = partial(_calls, call, before, ids, size, chance)
                subjects.append(Subject(f"{name}, {size}", sample))
        what_runs = f"GetPreferredAllocation, {case.name}"
        found = context.turns(subjects, context.effort.prefer_rounds, what_runs, chance)
    return [
        context.figure(
            f"{case.name}, request {size}",
            own,
            "us",
            found[f"{own}, {size}"],
            {EMPTY: found[f"{EMPTY}, {size}"]},
            family=case.name,
        )
        for size in case.sizes
    ]


def _caller(stack: ExitStack, context: Context, path: Path, method: str) -> Caller:
    """A method, on a connection of its own until `stack` ends."""
    return stack.enter_context(caller(context.client, path, method))


def _calls(
    call: Caller,
    before: Callable[[bytes], bytes] | None,
    ids: Sequence[str],
    size: int,
    chance: Random,
) -> list[float]:
    """One round: all ids are available, in an order of its own, as the kubelet sends them."""
    request = prefer_request(chance.sample(ids, len(ids)), size)
    call(request)  # it does not count
    if before is None:
        return [call.timed(request) for _ in range(CALLS)]
    found = []
    for _ in range(FIRST_CALLS):
        before(b"")
        time.sleep(QUIET_S)
        found.append(call.timed(request))
    return found


def _whole_plugins(context: Context) -> list[Measurement]:
    """This project's daemon and other plugins in turns, each with the devices that it lists."""
    counts = [count for count in context.effort.replicas if count in PEER_REPLICAS]
    return [figure for count in counts for figure in _whole_plugins_with(context, count)]


def _whole_plugins_with(context: Context, replicas: int) -> list[Measurement]:
    """Every subject has a floor: our engine's empty handler with the same requests."""
    with ExitStack() as stack:
        node = stack.enter_context(simulated_node(context.folder / f"n{replicas}"))
        chance = context.chance(f"{context.suite} {replicas}")
        path = context.folder / f"prefer-floor-{replicas}.sock"
        stack.enter_context(serving(path, EmptyHandler(context.engines[-1])))
        floor = _caller(stack, context, path, "GetPreferredAllocation")
        subjects, names = [], []
        for spec in context.plugins(node):
            plugin = stack.enter_context(started(spec, node, replicas)).first()
            ids = healthy_ids(plugin.lists[-1].data)
            call = _caller(stack, context, plugin.socket, "GetPreferredAllocation")
            if not ids or not _answers(call, ids):
                context.note(f"{spec.name} does not answer GetPreferredAllocation.")
                continue
            for size in SIZES:
                if size <= len(ids):
                    names.append((spec.name, size))
                    for name, one in ((spec.name, call), (f"{EMPTY} {spec.name}", floor)):
                        sample = partial(_calls, one, None, ids, size, chance)
                        subjects.append(Subject(f"{name}, {size}", sample))
        what = f"GetPreferredAllocation, whole plugins, {GPUS} x {replicas}"
        found = context.turns(subjects, context.effort.prefer_rounds, what, chance)
    family = f"whole plugin, {GPUS} x {replicas}"
    return [
        context.figure(
            f"{family}, request {size}",
            name,
            "us",
            found[f"{name}, {size}"],
            {EMPTY: found[f"{EMPTY} {name}, {size}"], **_beside(found, names, name, size)},
            family=family,
        )
        for name, size in names
    ]


def _beside(
    found: Mapping[str, list[list[float]]], names: Sequence[tuple[str, int]], own: str, size: int
) -> dict[str, list[list[float]]]:
    """The same of other plugins, which ours is compared with."""
    if not own.startswith("gpuplugin"):
        return {}
    peers = [name for name, of in names if of == size and not name.startswith("gpuplugin")]
    return {name: found[f"{name}, {size}"] for name in peers}


def _answers(call: Callable[[bytes], bytes], ids: Sequence[str]) -> bool:
    """False for a plugin that does not have the method, which is optional."""
    try:
        call(prefer_request(ids, 1))
    except ConnectionFailed:
        raise
    except CallFailed:
        return False
    return True
