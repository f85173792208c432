"""Allocate of whole plugins in every shape, in turns: ours, others, and an echo of the same size.

Each is asked for the devices that it lists.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.calls import Subject, caller, device_plugin_method
from benchmarks.client import TimedClient
from benchmarks.devices import healthy_ids, plugin_for
from benchmarks.plugins import GPUS, simulated_node, started
from benchmarks.servers import Echo, serving
from benchmarks.shapes import SHAPES, equally_long, placed, placements
from benchmarks.targets import ECHO

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from benchmarks.calls import Caller
    from benchmarks.plugins import PluginSpec
    from benchmarks.results import Measurement
    from benchmarks.shapes import Shape
    from benchmarks.suites import Context

REPLICAS = (10, 1000)
WARM_UP_CALLS = 50
EMPTY_SUFFIX = ", empty"
"""After a plugin's name: what is in its language, with handlers that do nothing."""


@dataclass(frozen=True, slots=True)
class _Served:
    """Something that is called: its ids, and the processes that are placed on a core."""

    name: str
    call: Caller
    ids: Sequence[str]
    pids: Sequence[int]

    def sample(self, shape: Shape, placement: str, calls: int, chance: Random) -> list[float]:
        """One round, of which the first call does not count."""
        first, *requests = shape.requests(self.ids, chance, calls + 1)
        with placed(placement, self.pids):
            self.call(first)
            return [self.call.timed(request) for request in requests]


def whole_plugins(context: Context) -> list[Measurement]:
    counts = [count for count in context.effort.replicas if count in REPLICAS]
    return [figure for count in counts for figure in _with_replicas(context, count)]


def _with_replicas(context: Context, replicas: int) -> list[Measurement]:
    figures: list[Measurement] = []
    with ExitStack() as stack:
        plugins = _plugins(context, stack, replicas)
        for shape in SHAPES:
            able = [one for one in plugins if len(one.ids) >= shape.devices * shape.containers]
            echo = _echo(context, stack, shape, replicas)
            for placement in placements():
                figures += _shape(context, shape, placement, replicas, [*able, echo])
        shares = [one.call.own_share for one in plugins if isinstance(one.call, TimedClient)]
    if any(shares):
        context.note(
            f"Of the medians of whole plugins, {GPUS} x {replicas}, the client itself has "
            f"{min(shares):.1%} to {max(shares):.1%}."
        )
    return figures


def _plugins(context: Context, stack: ExitStack, replicas: int) -> list[_Served]:
    found = []
    node = stack.enter_context(simulated_node(context.folder / f"n{replicas}"))
    specs = context.plugins(node)
    for spec in (*specs, *(_floor_of(one) for one in specs if one.floor is not None)):
        running = stack.enter_context(started(spec, node, replicas))
        plugin = running.first()
        ids = healthy_ids(plugin.lists[-1].data)
        if not ids:
            context.note(f"{spec.name} lists no healthy device: its Allocate is not measured.")
            continue
        call = stack.enter_context(caller(context.client, plugin.socket, "Allocate"))
        served = _Served(spec.name, call, equally_long(ids), running.pids)
        chance = context.chance(spec.name)
        for request in SHAPES[0].requests(ids, chance, min(WARM_UP_CALLS, context.effort.calls)):
            call(request)
        found.append(served)
    return found


def _floor_of(spec: PluginSpec) -> PluginSpec:
    """Its own empty plugin, under the name that tables have for it."""
    assert spec.floor is not None  # noqa: S101 - the caller has looked
    return replace(spec.floor, name=f"{spec.name}{EMPTY_SUFFIX}")


def _echo(context: Context, stack: ExitStack, shape: Shape, replicas: int) -> _Served:
    """It answers as our plugin does, for requests as long as this shape's."""
    plugin = plugin_for(GPUS, replicas)
    ids = equally_long(plugin.snapshot.devices)
    request = shape.request(ids, context.chance(shape.name))
    path = context.folder / f"echo-{replicas}-{SHAPES.index(shape)}.sock"
    method = device_plugin_method("Allocate")
    what = Echo(len(method.whole_call(1, request)), plugin.allocate(request))
    pid = stack.enter_context(serving(path, what))
    call = stack.enter_context(caller("raw", path, "Allocate"))
    return _Served(ECHO, call, ids, [pid])


def _shape(
    context: Context, shape: Shape, placement: str, replicas: int, served: Sequence[_Served]
) -> list[Measurement]:
    case = f"{shape.name}, {GPUS} x {replicas}, {placement}"
    chance = context.chance(case)
    subjects = [
        Subject(one.name, partial(one.sample, shape, placement, context.effort.calls, chance))
        for one in served
    ]
    found = context.turns(subjects, context.effort.rounds, f"Allocate, {case}", chance)
    empties = {name for name in found if name.endswith(EMPTY_SUFFIX)}
    peers = [
        name
        for name in found
        if name != ECHO and name not in empties and not name.startswith("gpuplugin")
    ]
    figures = []
    for name, rounds in found.items():
        floors = [] if name == ECHO else [ECHO]
        floors += [f"{name}{EMPTY_SUFFIX}"] if f"{name}{EMPTY_SUFFIX}" in empties else []
        floors += peers if name.startswith("gpuplugin") else []
        figures.append(
            context.figure(case, name, "us", rounds, {floor: found[floor] for floor in floors})
        )
    return figures
