"""The driver of a simulated node: whether calls to it work, hang or fail. No clock, no I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hal import DriverUnavailable
from sim.gpu.faults import DriverDown, DriverHang, DriverUp, WatchBroken, WatchMended
from sim.gpu.scheduler import NS_PER_S, to_ns

if TYPE_CHECKING:
    from sim.gpu.faults import NodeHappening


@dataclass(slots=True)
class SimulatedDriver:
    """State of the driver; times are model time in seconds."""

    loaded: bool = True
    _hung_until_s: float = -math.inf
    _unwatchable_until_s: float = -math.inf

    def suffer(self, what: NodeHappening, now_s: float) -> None:
        """Let something befall the node."""
        match what:
            case DriverDown():
                self.loaded = False
            case DriverUp():
                self.loaded, self._hung_until_s = True, -math.inf
            case DriverHang(for_s=for_s):
                self._hung_until_s = until_s(now_s, for_s)
            case WatchBroken(for_s=for_s):
                self._unwatchable_until_s = until_s(now_s, for_s)
            case WatchMended():
                self._unwatchable_until_s = -math.inf

    def hangs(self, now_s: float) -> bool:
        """True while no call returns; one to a driver that is not loaded fails at once."""
        return self.loaded and now_s < self._hung_until_s

    def failure(self) -> DriverUnavailable | None:
        """What every call raises; None if calls work."""
        if self.loaded:
            return None
        return DriverUnavailable(
            "the simulated driver is not loaded",
            "Load it: 'gpuplugin sim inject --driver up', or the happening driver-up",
        )

    def watch_failure(self, now_s: float) -> DriverUnavailable | None:
        """What waiting for events raises; None if it works."""
        failure = self.failure()
        if failure is None and now_s < self._unwatchable_until_s:
            return DriverUnavailable(
                "the simulated driver does not let anybody wait for events",
                "Mend it: 'gpuplugin sim inject --watch mended', or the happening watch-mended",
            )
        return failure


def until_s(now_s: float, for_s: float | None) -> float:
    """When something that lasts `for_s` from now on ends; None: never.

    In whole nanoseconds, as the clock counts: a sum of seconds may lie behind the moment at which
    the clock looks again, and would be found to last on then.
    """
    return math.inf if for_s is None else to_ns(now_s + for_s) / NS_PER_S
