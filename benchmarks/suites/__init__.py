"""The suites by name. Each has a module with `measure(context)`, which returns figures."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from benchmarks.context import Context
    from benchmarks.results import Figure

SUITES = {
    "allocate": "Allocate: latency and throughput",
    "prefer": "GetPreferredAllocation: every size of request",
    "listing": "ListAndWatch: the first list, and its bytes",
    "life": "start, registration, memory and CPU of the whole plugin",
    "faults": "from a fault to the list on the wire",
    "simulator": "speed of the simulator",
}


class _Measure(Protocol):
    def __call__(self, context: Context) -> list[Figure]: ...


def measure(suite: str, context: Context) -> list[Figure]:
    """Run a suite.

    Raises:
        DidNotStart: a server or plugin did not come up.
        CallError: a call failed.
        ConnectionLost: a server went away.
    """
    call: _Measure = import_module(f"benchmarks.suites.{suite}").measure
    return call(context)
