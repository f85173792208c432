"""The whole plugin: from its start to the first list, and what it costs a node to have it."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.calls import Subject, caller
from benchmarks.devices import healthy_ids
from benchmarks.machine import cpu_s, resident_mib
from benchmarks.plugins import simulated_node, started
from benchmarks.scrape import scrape
from benchmarks.shapes import SHAPES, equally_long

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.plugins import Node, PluginSpec, RunningPlugin
    from benchmarks.results import Measurement
    from benchmarks.suites import Context

REPLICAS = 10
SETTLE_S = 6.0
"""After the first list, before it is called idle: the configuration is read once more meanwhile."""

INTERPRETER = "start of Python"
IDLE_MEMORY = "resident, idle"


def measure(context: Context) -> list[Measurement]:
    with simulated_node(context.folder / "n") as node:
        specs = context.plugins(node)
        figures = _starts(context, node, specs)
        for number, spec in enumerate(specs):
            context.progress(f"memory and CPU of {spec.name}", number / len(specs))
            figures += _costs(context, node, spec)
    return figures


def _starts(context: Context, node: Node, specs: tuple[PluginSpec, ...]) -> list[Measurement]:
    for spec in specs:
        # One that does not count: files are in memory from then on, and Python code is compiled.
        _start(spec, node, [])
    registered: dict[str, list[float]] = {spec.name: [] for spec in specs}
    subjects = [Subject(INTERPRETER, _start_python)]
    subjects += [
        Subject(spec.name, partial(_start, spec, node, registered[spec.name])) for spec in specs
    ]
    first_lists = context.turns(subjects, context.effort.starts, "starts")
    floor = first_lists.pop(INTERPRETER)
    floors = {INTERPRETER: floor}
    figures = [context.figure(INTERPRETER, "a process", "ms", floor)]
    for spec in specs:
        both = {
            "start to registered": [[took] for took in registered[spec.name]],
            "start to first list": first_lists[spec.name],
        }
        figures += [
            context.figure(case, spec.name, "ms", rounds, floors) for case, rounds in both.items()
        ]
    return figures


def _start_python() -> list[float]:
    started_ns = time.perf_counter_ns()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return [(time.perf_counter_ns() - started_ns) / 1e6]


def _start(spec: PluginSpec, node: Node, registered_ms: list[float]) -> list[float]:
    with started(spec, node, REPLICAS) as running:
        plugin = running.first()
        if plugin.registered_ns is None:
            raise AssertionError("a plugin is listed once it is registered")
        registered_ms.append((plugin.registered_ns - running.started_ns) / 1e6)
        return [(plugin.lists[0].at_ns - running.started_ns) / 1e6]


def _costs(context: Context, node: Node, spec: PluginSpec) -> list[Measurement]:
    effort = context.effort
    with started(spec, node, REPLICAS) as running:
        plugin = running.first()
        time.sleep(min(SETTLE_S, effort.idle_s))
        if running.http_port is None:
            context.note(f"{spec.name} logs no port for metrics: its memory is without a scrape.")
        else:
            # A plugin at work is scraped, and the first scrape takes memory that stays.
            scrape(running.http_port)
        idle_percent = _cpu_percent(running, effort.idle_s)
        idle_mib = resident_mib(running.pids)
        figures = [
            context.number(IDLE_MEMORY, spec.name, "MiB", idle_mib),
            context.number("CPU, idle", spec.name, "%", idle_percent),
        ]
        ids = healthy_ids(plugin.lists[-1].data)
        if not ids:
            context.note(f"{spec.name} lists no healthy device: nothing was allocated from it.")
            return figures
        ids, chance = equally_long(ids), context.chance(spec.name)
        with caller(context.client, plugin.socket, "Allocate") as call:
            _cpu_of_calls_us(running, call, SHAPES[0].requests(ids, chance, effort.memory_calls))
            after_mib = resident_mib(running.pids)
            for shape in SHAPES[1:]:
                if len(ids) >= shape.devices * shape.containers:
                    requests = shape.requests(ids, chance, effort.memory_calls // 4 or 1)
                    cost_us = _cpu_of_calls_us(running, call, requests)
                    figures.append(
                        context.number(f"CPU of a call, {shape.name}", spec.name, "us", cost_us)
                    )
        case = f"resident, after {effort.memory_calls} calls"
        floors = {IDLE_MEMORY: [[idle_mib]]}
        after = context.figure(case, spec.name, "MiB", [[after_mib]], floors)
    return [*figures, after]


def _cpu_of_calls_us(
    running: RunningPlugin, call: Callable[[bytes], bytes], requests: Sequence[bytes]
) -> float:
    before_s = cpu_s(running.pids)
    for request in requests:
        call(request)
    return (cpu_s(running.pids) - before_s) / len(requests) * 1e6


def _cpu_percent(running: RunningPlugin, over_s: float) -> float:
    """Share of one core that the plugin used while nothing called it."""
    began_s, before_s = time.monotonic(), cpu_s(running.pids)
    time.sleep(over_s)
    return (cpu_s(running.pids) - before_s) / (time.monotonic() - began_s) * 100
