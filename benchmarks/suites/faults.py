"""The time from a fault of a GPU to the list with it, on the wire.

The fault is injected into the simulated node; what that alone takes is the floor. After each start
of a plugin every GPU has one fault, and none recovers: how soon a plugin recovers is a choice.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from benchmarks.devices import healthy_ids
from benchmarks.kubelet import NeverCame
from benchmarks.plugins import GPUS, simulated_node, started
from sim.node.control import inject, status

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from benchmarks.kubelet import MeasuringKubelet, Registered
    from benchmarks.plugins import PluginSpec, RunningPlugin
    from benchmarks.results import Measurement
    from benchmarks.suites import Context

FAULT: Mapping[str, object] = {"kind": "xid", "xid": 79}
"""The GPU has fallen off the bus: fatal to every plugin."""

WAIT_S = 30.0
"""A plugin that sends a list for each of 1000 replicas takes long."""
QUIET_S = 0.1
INJECTION = "asking the node"
PEER_FAULTS = 4
"""Starts of another plugin, with one fault each."""


def measure(context: Context) -> list[Measurement]:
    figures: list[Measurement] = []
    counts = [count for count in context.effort.replicas if count in (10, 1000)]
    for number, replicas in enumerate(counts):
        times: dict[str, list[tuple[float, float]]] = {}
        for start in range(context.effort.fault_starts):
            done = (number * context.effort.fault_starts + start) / (
                len(counts) * context.effort.fault_starts
            )
            context.progress("faults", done)
            _one_start(context, replicas, times)
        for name, pairs in times.items():
            if pairs:
                case = f"fault to list, {GPUS} x {replicas}"
                floors = {INJECTION: [[floor] for floor, _ in pairs]}
                took = [[took] for _, took in pairs]
                figures.append(context.figure(case, name, "ms", took, floors))
    return figures


def _one_start(
    context: Context, replicas: int, times: dict[str, list[tuple[float, float]]]
) -> None:
    """Start each plugin on a node of its own and let every GPU have a fault."""
    names = [*(f"{engine}" for engine in context.engines), *(spec.name for spec in context.others)]
    chance = context.chance(f"{context.suite} {replicas}")
    for position in chance.sample(range(len(names)), len(names)):
        # Another plugin may not come back from a fault before long: each has a start of its own.
        own = position < len(context.engines)
        for gpus in [range(GPUS)] if own else [[gpu] for gpu in range(PEER_FAULTS)]:
            with simulated_node(context.folder / f"f{position}") as node:
                spec = context.plugins(node)[position]
                found = times.setdefault(spec.name, [])
                with started(spec, node, replicas) as running:
                    plugin = running.first()
                    control = node.control(running.kubelet.folder)
                    found += _break_all(context, spec, running, plugin, control, gpus)


def _break_all(
    context: Context,
    spec: PluginSpec,
    running: RunningPlugin,
    plugin: Registered,
    control: Path,
    gpus: Iterable[int],
) -> Iterator[tuple[float, float]]:
    # A plugin may need a moment after its list until it watches its GPUs.
    time.sleep(0.5)
    for gpu in gpus:
        # Faults in close order share one list, later: this is about one alone.
        _wait_for_quiet(running, plugin)
        floor_started_ns = time.perf_counter_ns()
        status(control)
        floor_ms = (time.perf_counter_ns() - floor_started_ns) / 1e6
        took_ms = _fault_ms(running, plugin, control, gpu)
        if took_ms is None:
            context.note(f"{spec.name} sent no list within {WAIT_S:g} s of Xid 79.")
            return
        yield floor_ms, took_ms


def _wait_for_quiet(running: RunningPlugin, plugin: Registered) -> None:
    """Until no list has come for a while: some plugins send one for each replica."""
    deadline_s = time.monotonic() + WAIT_S
    seen = -1
    while seen < len(plugin.lists) and time.monotonic() < deadline_s and running.alive():
        seen = len(plugin.lists)
        time.sleep(QUIET_S)


def _fault_ms(running: RunningPlugin, plugin: Registered, control: Path, gpu: int) -> float | None:
    """Milliseconds from before the injection until a list had no healthy device of the GPU."""
    lists = len(plugin.lists)
    before = healthy_ids(plugin.lists[-1].data)
    per_gpu = Counter(one.partition("::")[0] for one in before)

    def gone(data: bytes) -> bool:
        left = Counter(one.partition("::")[0] for one in healthy_ids(data))
        return any(uuid not in left for uuid in per_gpu)

    started_ns = time.perf_counter_ns()
    inject(control, str(gpu), FAULT)
    seen = lists

    def came(_kubelet: MeasuringKubelet) -> bool:
        nonlocal seen
        while seen < len(plugin.lists):
            if gone(plugin.lists[seen].data):
                return True
            seen += 1
        return False

    try:
        running.kubelet.wait_until(came, WAIT_S, running.alive)
    except NeverCame:
        return None
    return (plugin.lists[seen].at_ns - started_ns) / 1e6
