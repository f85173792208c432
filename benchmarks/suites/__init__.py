"""The suites by name. Each has a module with `measure(context)`, which returns figures."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from benchmarks.results import Measurement
    from benchmarks.run import Context

SUITES = {
    "allocate": "Allocate: latency and throughput",
    "prefer": "GetPreferredAllocation: every size of request",
    "listing": "ListAndWatch: the first list, and its bytes",
    "life": "start, registration, memory and CPU of the whole plugin",
    "faults": "from a fault to the list on the wire",
    "simulator": "speed of the simulator",
}


class _Measure(Protocol):
    def __call__(self, context: Context) -> list[Measurement]: ...


def measure(suite: str, context: Context) -> list[Measurement]:
    """Run a suite.

    Raises:
        DidNotStart: a server or plugin did not come up.
        CallFailed: a call failed.
        ConnectionFailed: a server went away.
    """
    call: _Measure = import_module(f"benchmarks.suites.{suite}").measure
    return call(context)
