"""Allocate: one call after the other, many at once, and the handler without any transport.

The plugin's handlers on an engine, an empty handler on the same, and a bare echo are called in
turns; whole plugins are in `benchmarks.whole`.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.calls import (
    TIMEOUT_S,
    Subject,
    caller,
    device_plugin_method,
    handled,
    kept_busy,
    one_by_one,
)
from benchmarks.devices import allocate_request, plugin_for
from benchmarks.servers import Echo, EmptyHandler, Handlers, daemon_like, serving, with_metrics
from benchmarks.shapes import SHAPES
from benchmarks.targets import ECHO, EMPTY
from benchmarks.whole import whole_plugins
from gpuplugin.kubelet.deviceplugin import SERVICE_NAME
from gpuplugin.rpc import Service
from gpuplugin.rpc.client import Connection

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from random import Random

    from benchmarks.calls import Caller
    from benchmarks.results import Measurement, Rounds
    from benchmarks.suites import Context
    from gpuplugin.rpc import EngineName

GPUS = 8
WARM_UP_CALLS = 50
CLIENTS = (1, 4, 16)
STREAMS = (1, 16)
BUSY_REPLICAS = 10
HANDLER_REQUESTS = 10


def measure(context: Context) -> list[Measurement]:
    figures = _handler_alone(context) + _over_sockets(context) + whole_plugins(context)
    if context.client == "raw":
        figures += _busy(context)
    else:
        context.note("Many clients at once are measured with --client raw alone.")
    return figures


def _handler_alone(context: Context) -> list[Measurement]:
    """Bytes to bytes in this process, with the daemon's metrics around."""
    effort, chance = context.effort, context.chance("handler")
    empty = with_metrics(Service(SERVICE_NAME, {"Allocate": lambda _request: b""}, {}), "none")
    ids = list(plugin_for(GPUS, BUSY_REPLICAS).snapshot.devices)
    nothing = partial(handled, empty.unary["Allocate"], [allocate_request(ids[:1])], effort.calls)
    subjects = [Subject(EMPTY, nothing)]
    for replicas in effort.replicas:
        plugin = plugin_for(GPUS, replicas)
        ids = list(plugin.snapshot.devices)
        handler = daemon_like(plugin).unary["Allocate"]
        for shape in SHAPES[1:]:
            if len(ids) >= shape.devices * shape.containers:
                requests = shape.requests(ids, chance, HANDLER_REQUESTS)
                sample = partial(handled, handler, requests, effort.calls)
                name = f"handler alone, {shape.name}, {GPUS} x {replicas}"
                subjects.append(Subject(name, sample))
    found = context.turns(subjects, effort.rounds, "Allocate, the handler alone", chance)
    floors = {EMPTY: found[EMPTY]}
    return [
        context.figure(name, "in process", "us", rounds, None if name == EMPTY else floors)
        for name, rounds in found.items()
    ]


@dataclass(frozen=True, slots=True)
class _Called:
    """Something that is called over a socket: what its figure is called, and its floors."""

    case: str
    subject: str
    sample: Callable[[], list[float]]
    floors: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.subject}: {self.case}"


def _over_sockets(context: Context) -> list[Measurement]:
    with ExitStack() as stack:
        called = [_echo(context, stack)]
        for engine in context.engines:
            called += _engine(context, stack, engine)
        subjects = [Subject(one.name, one.sample) for one in called]
        what = "Allocate, one call after the other"
        found = context.turns(subjects, context.effort.rounds, what)
    return [
        _latency(context, one.case, one.subject, found[one.name], _floors(one.floors, found))
        for one in called
    ]


def _latency(
    context: Context, case: str, subject: str, rounds: Rounds, floors: dict[str, list[list[float]]]
) -> Measurement:
    """A latency, whose 99th percentile is compared with that of other engines."""
    engines = [name for name in floors if name.startswith("engine ")]
    return context.figure(case, subject, "us", rounds, floors, p99_floors=engines)


def _floors(
    names: Sequence[str], found: dict[str, list[list[float]]]
) -> dict[str, list[list[float]]]:
    """Floors under the names that tables have for them."""
    return {_floor_name(name): found[name] for name in names if name in found}


def _floor_name(name: str) -> str:
    subject, _, case = name.partition(": ")
    return case if case in (EMPTY, ECHO) else subject


def _echo(context: Context, stack: ExitStack) -> _Called:
    plugin = plugin_for(GPUS, BUSY_REPLICAS)
    request = allocate_request([next(iter(plugin.snapshot.devices))])
    method = device_plugin_method("Allocate")
    path = context.folder / "echo.sock"
    request_bytes = len(method.whole_call(1, request))
    stack.enter_context(serving(path, Echo(request_bytes, plugin.allocate(request))))
    connection = stack.enter_context(Connection(path, TIMEOUT_S))
    call = partial(connection.call, method, request)
    return _Called(ECHO, "a socket", lambda: one_by_one(call, context.effort.calls))


def _engine(context: Context, stack: ExitStack, engine: EngineName) -> list[_Called]:
    subject, chance = f"engine {engine}", context.chance(engine)
    echo = f"a socket: {ECHO}"
    called = []
    ids = list(plugin_for(GPUS, BUSY_REPLICAS).snapshot.devices)
    path = context.folder / f"{engine}-empty.sock"
    stack.enter_context(serving(path, EmptyHandler(engine)))
    sample = _sampler(context, stack, path, ids, chance)
    called.append(_Called(EMPTY, subject, sample, (echo,)))
    for replicas in context.effort.replicas:
        case = f"{GPUS} x {replicas}"
        ids = list(plugin_for(GPUS, replicas).snapshot.devices)
        path = context.folder / f"{engine}-{replicas}.sock"
        stack.enter_context(serving(path, Handlers(engine, GPUS, replicas)))
        floors = [f"{subject}: {EMPTY}", echo]
        if engine != context.engines[0]:
            floors.append(f"engine {context.engines[0]}: {case}")
        sample = _sampler(context, stack, path, ids, chance)
        called.append(_Called(case, subject, sample, tuple(floors)))
    return called


def _sampler(
    context: Context, stack: ExitStack, path: Path, ids: Sequence[str], chance: Random
) -> Callable[[], list[float]]:
    """Rounds of calls to a server, warmed up."""
    call = stack.enter_context(caller(context.client, path, "Allocate"))
    request = allocate_request([ids[0]])
    one_by_one(partial(call, request), min(WARM_UP_CALLS, context.effort.calls))
    return partial(_calls, call, ids, chance, context.effort.calls)


def _calls(call: Caller, ids: Sequence[str], chance: Random, calls: int) -> list[float]:
    """One round: calls for a device of its own, of which the first does not count."""
    request = allocate_request([chance.choice(ids)])
    call(request)
    return [call.timed(request) for _ in range(calls)]


def _busy(context: Context) -> list[Measurement]:
    """So many clients with so many calls in flight each."""
    figures: list[Measurement] = []
    ids = list(plugin_for(GPUS, BUSY_REPLICAS).snapshot.devices)
    request = allocate_request([ids[0]])
    with ExitStack() as stack:
        paths: dict[tuple[str, str], Path] = {}
        for engine in context.engines:
            for name, what in (
                (EMPTY, EmptyHandler(engine)),
                (f"{GPUS} x {BUSY_REPLICAS}", Handlers(engine, GPUS, BUSY_REPLICAS)),
            ):
                path = context.folder / f"{engine}-busy-{len(paths)}.sock"
                stack.enter_context(serving(path, what))
                paths[f"engine {engine}", name] = path
        for clients in CLIENTS:
            for streams in STREAMS:
                figures += _busy_with(context, paths, request, clients, streams)
    return figures


def _busy_with(
    context: Context, paths: dict[tuple[str, str], Path], request: bytes, clients: int, streams: int
) -> list[Measurement]:
    method = device_plugin_method("Allocate")
    calls = max(context.effort.busy_calls, clients * streams)
    rates: dict[str, list[list[float]]] = {f"{of}: {case}": [] for of, case in paths}
    with ExitStack() as stack:
        subjects = []
        for (subject, case), path in paths.items():
            connections = [stack.enter_context(Connection(path, TIMEOUT_S)) for _ in range(clients)]
            kept_busy(connections, method, request, 1, clients)
            name = f"{subject}: {case}"

            def sample(
                connections: list[Connection] = connections, name: str = name
            ) -> list[float]:
                busy = kept_busy(connections, method, request, streams, calls)
                rates[name].append([busy.calls_per_s])
                return list(busy.latencies_us)

            subjects.append(Subject(name, sample))
        what = f"Allocate, {clients} clients x {streams} streams"
        chance = context.chance(f"{clients} x {streams}")
        found = context.turns(subjects, context.effort.busy_rounds, what, chance)
    figures = []
    for name, rounds in found.items():
        subject, _, handler = name.partition(": ")
        case = f"{handler}, {clients} x {streams}"
        floors = _busy_floors(context, subject, handler)
        figures.append(_latency(context, case, subject, rounds, _floors(floors, found)))
        per_s = context.figure(
            f"{case} calls/s", subject, "calls/s", rates[name], _floors(floors, rates), of="rate"
        )
        figures.append(per_s)
    return figures


def _busy_floors(context: Context, subject: str, handler: str) -> tuple[str, ...]:
    floors = () if handler == EMPTY else (f"{subject}: {EMPTY}",)
    first = f"engine {context.engines[0]}"
    return floors if subject == first else (*floors, f"{first}: {handler}")
