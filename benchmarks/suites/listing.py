"""ListAndWatch: from the call to the first list, whole, and how many bytes it has."""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.calls import TIMEOUT_S, Subject, device_plugin_method
from benchmarks.devices import plugin_for
from benchmarks.plugins import simulated_node, started
from benchmarks.servers import EmptyHandler, Handlers, serving
from gpuplugin.rpc import RpcCode
from gpuplugin.rpc.client import CallFailed, Connection

if TYPE_CHECKING:
    from benchmarks.results import Measurement
    from benchmarks.suites import Context

GPUS = 8
CALLS = 3
PLUGIN_REPLICAS = 10
EMPTY_LIST = "empty list"
_PAUSE_S = 0.002
_DEADLINE_S = 10.0


def measure(context: Context) -> list[Measurement]:
    effort = context.effort
    figures = [
        context.number(f"size of the list, {GPUS} x {count}", "gpuplugin", "KiB", size / 1024)
        for count in effort.replicas
        if (size := plugin_for(GPUS, count).devices.size_bytes)
    ]
    names: dict[str, tuple[str, str, str]] = {}
    with ExitStack() as stack:
        subjects = []
        for engine in context.engines:
            floor = f"{engine}: {EMPTY_LIST}"
            cases: dict[str, Handlers | EmptyHandler] = {EMPTY_LIST: EmptyHandler(engine)}
            for count in effort.replicas:
                cases[f"first list, {GPUS} x {count}"] = Handlers(engine, GPUS, count)
            for case, what in cases.items():
                path = context.folder / f"{engine}-list-{len(names)}.sock"
                stack.enter_context(serving(path, what))
                connection = stack.enter_context(Connection(path, TIMEOUT_S))
                names[f"{engine}: {case}"] = case, f"engine {engine}", floor
                subjects.append(Subject(f"{engine}: {case}", partial(_first_lists, connection)))
        subjects += _whole_plugins(context, stack, names)
        found = context.turns(subjects, effort.rounds, "ListAndWatch, first list")
    for name, rounds in found.items():
        case, subject, floor = names[name]
        floors = {} if name == floor else {EMPTY_LIST: found[floor]}
        figures.append(context.figure(case, subject, "us", rounds, floors))
    return figures


def _whole_plugins(
    context: Context, stack: ExitStack, names: dict[str, tuple[str, str, str]]
) -> list[Subject]:
    node = stack.enter_context(simulated_node(context.folder / "n"))
    subjects = []
    for spec in context.plugins(node):
        plugin = stack.enter_context(started(spec, node, PLUGIN_REPLICAS)).first()
        connection = stack.enter_context(Connection(plugin.socket, TIMEOUT_S))
        floor = f"{spec.engine or context.engines[0]}: {EMPTY_LIST}"
        names[spec.name] = "first list, whole plugin", spec.name, floor
        subjects.append(Subject(spec.name, partial(_first_lists, connection)))
    return subjects


def _first_lists(connection: Connection) -> list[float]:
    """Microseconds of a few first lists, each on a stream of its own."""
    return [_first_list_us(connection) for _ in range(CALLS)]


def _first_list_us(connection: Connection) -> float:
    method = device_plugin_method("ListAndWatch")
    deadline_s = time.monotonic() + _DEADLINE_S
    while True:
        started_ns = time.perf_counter_ns()
        stream = connection.start(method, b"", streaming=True)
        try:
            connection.next_response(stream)
        except CallFailed as error:
            # Streams that were cancelled a moment ago may still count as open.
            if error.code != RpcCode.RESOURCE_EXHAUSTED or time.monotonic() > deadline_s:
                raise
            time.sleep(_PAUSE_S)
            continue
        took_us = (time.perf_counter_ns() - started_ns) / 1e3
        connection.cancel(stream)
        return took_us
