"""Guards against regressions: `python -m benchmarks.guard` prints each figure with its limit.

Where it can be, a figure is a count, which is the same on every machine. The rest are the targets
of `gpuplugin bench`, measured quickly and with wide limits: they only catch what became several
times worse. Exit status 1 if a limit is broken.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from benchmarks.devices import TOPOLOGIES, allocate_request, plugin_for, prefer_request
from benchmarks.idle import idle_costs
from benchmarks.machine import instructions, kept_bytes, loaded_modules, peak_bytes
from benchmarks.run import Wanted, run
from benchmarks.servers import daemon_like
from benchmarks.targets import decided
from sim.nvml.library import CannotBuild

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

GPUS = 8
FEW, SOME, MANY = 1, 10, 1000
CALLS = 2000
IDLE_S = 60.0

DAEMON = (
    "gpuplugin.cli.main",
    "gpuplugin.cli.run",
    "gpuplugin.cli.rundaemon",
    "gpuplugin.rpc.fast",
    "hal.nvml.binding",
)
NOT_AT_THE_START = frozenset(
    {
        "argparse", "benchmarks", "google", "grpc", "httpx2", "jsonschema", "lightkube", "plotly",
        "prometheus_client", "pydantic", "pydantic_core", "pydantic_settings", "rich", "sim",
        "simpy", "yaml",
    }
)  # fmt: skip

WIDE: Mapping[str, float] = {"allocate": 4.0, "life": 5.0, "faults": 20.0, "claims": 20.0}
"""By suite: how many times worse than its target a figure may be, on a machine that is busy."""


@dataclass(frozen=True, slots=True)
class Guarded:
    name: str
    value: float
    limit: float
    unit: str
    kept: bool
    at_least: bool = False


def at_most(name: str, value: float, limit: float, unit: str) -> Guarded:
    return Guarded(name, value, limit, unit, value <= limit)


def main() -> None:
    """Measure and print; the exit status is 1 if a limit is broken."""
    broken = False
    for one in chain(counts(), idle(), times()):
        broken = broken or not one.kept
        state = "ok" if one.kept else "LESS" if one.at_least else "MORE"
        limit = f"{'at least' if one.at_least else 'at most'} {one.limit:g}"
        print(f"{state:4}  {one.name:52} {one.value:12.6g} {one.unit:12} {limit}", flush=True)
    sys.exit(1 if broken else 0)


def counts() -> Iterator[Guarded]:
    yield from _allocate_counts()
    yield from _prefer_counts()
    yield from _list_counts()
    modules = loaded_modules(DAEMON)
    # The libraries for messages, metrics and HTTP included: what serves is loaded before it serves.
    yield at_most("modules that the daemon starts with", len(modules), 330, "modules")
    unwanted = {name.partition(".")[0] for name in modules} & NOT_AT_THE_START
    yield at_most(f"unwanted ones: {', '.join(sorted(unwanted)) or 'none'}", len(unwanted), 0, "")


def _allocate_counts() -> Iterator[Guarded]:
    needed = {}
    for replicas in (FEW, MANY):
        call = _call(replicas, "Allocate", allocate_request([_ids(replicas)[-1]]))
        needed[replicas] = instructions(call)
        name = f"Allocate, {GPUS} x {replicas}, with metrics"
        yield at_most(name, needed[replicas], 250, "instructions")
        yield at_most(f"{name}: allocated", peak_bytes(call), 4096, "bytes")
        yield at_most(f"{name}: kept", kept_bytes(call, CALLS), 8192, "bytes")
    ids = _ids(MANY)[:: MANY - 1][:GPUS]
    for name, request in (
        (f"{GPUS} devices", allocate_request(ids)),
        ("4 containers", b"".join(allocate_request([one]) for one in ids[:4])),
    ):
        call = _call(MANY, "Allocate", request)
        yield at_most(f"Allocate, {name}, with metrics", instructions(call), 700, "instructions")
    growth = needed[MANY] / needed[FEW]
    yield at_most("Allocate: many devices against few", growth, 1.1, "x")


def _prefer_counts() -> Iterator[Guarded]:
    for size in (1, GPUS):
        ids = _ids(MANY)
        call = _call(MANY, "GetPreferredAllocation", prefer_request(ids, size))
        name = f"GetPreferredAllocation, {GPUS} x {MANY}, request {size}"
        yield at_most(name, instructions(call), 2500, "instructions")
        yield at_most(f"{name}: kept", kept_bytes(call, 20), 8192, "bytes")
    ids = _ids(SOME)
    for available, limit in ((ids, 420), (ids[GPUS:], 1300)):
        call = _call(SOME, "GetPreferredAllocation", prefer_request(available, GPUS))
        name = f"GetPreferredAllocation, {GPUS} x {SOME}, {len(available)} free, request {GPUS}"
        yield at_most(name, instructions(call), limit, "instructions")
    ids = _ids(FEW)
    whole = [_call(FEW, "GetPreferredAllocation", prefer_request(ids, size)) for size in (1, GPUS)]
    name = f"GetPreferredAllocation, {GPUS} whole GPUs, all free"
    yield at_most(name, max(map(instructions, whole)), 500, "instructions")
    for gpus, sizes, limit in ((16, range(1, 17), 100_000), (64, (1, 2, 16, 32, 63), 400_000)):
        for topology in TOPOLOGIES:
            service = daemon_like(plugin_for(gpus, 1, topology))
            ids = list(plugin_for(gpus, 1).snapshot.devices)
            worst = max(
                instructions(
                    partial(
                        service.unary["GetPreferredAllocation"], prefer_request(ids[:free], size)
                    )
                )
                for free in (gpus // 2 + 1, gpus - 1, gpus)
                for size in sizes
                if size <= free
            )
            name = f"GetPreferredAllocation, {gpus} whole GPUs, {topology}, worst"
            yield at_most(name, worst, limit, "instructions")


def _list_counts() -> Iterator[Guarded]:
    plugin = plugin_for(GPUS, MANY)
    snapshot = plugin.snapshot
    uuids = dict.fromkeys(device.gpu_uuid for device in snapshot.resource.devices)
    sick = iter(uuids)

    def another_gpu_fails() -> None:
        uuid = next(sick)
        plugin.update(snapshot, lambda gpu, _mig: gpu != uuid)

    needed = instructions(another_gpu_fails)
    yield at_most(f"a new list, {GPUS} x {MANY}", needed, 1000, "instructions")


def idle() -> Iterator[Guarded]:
    """What a plugin with nothing to do costs in the minute in which it reads everything once."""
    try:
        found = idle_costs("fast", IDLE_S)
    except CannotBuild as error:
        print(f"left out: what an idle plugin costs ({error})")
        return
    name = f"idle, {GPUS} GPUs"
    yield at_most(f"{name}: calls of the driver", found.driver_calls, 300, "in a minute")
    yield at_most(f"{name}: wake-ups by timers", found.wake_ups, 60, "in a minute")
    yield at_most(f"{name}: processor", found.cpu_percent, 0.5, "%")


def times() -> Iterator[Guarded]:
    """The targets that are measured in time or memory, with wide limits."""
    found = run(Wanted(suites=tuple(WIDE), quick=True))
    for figure in found.figures:
        for target, value in decided(figure):
            slack = WIDE[figure.suite]
            if "resident" in target.case:  # memory is the same everywhere, or nearly
                slack = 1.2 if target.unit == "MiB" else 1.05
            limit = target.limit / slack if target.at_least else target.limit * slack
            name = f"{figure.suite}: {figure.case}, {figure.subject}"
            unit = f"x {target.floor}" if target.floor else target.unit
            kept = target.met_by(value, slack)
            yield Guarded(name, value, limit, unit, kept, target.at_least)


def _call(replicas: int, method: str, request: bytes) -> Callable[[], object]:
    return partial(daemon_like(plugin_for(GPUS, replicas)).unary[method], request)


def _ids(replicas: int) -> list[str]:
    return list(plugin_for(GPUS, replicas).snapshot.devices)


if __name__ == "__main__":
    main()
