"""Faults on a node: the state of its driver, which faults apply, and those that a scenario plans.

The kinds are in `sim.gpu.faults`, the effects on a GPU in `sim.gpu.gpu`.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final, assert_never

from hal import DriverUnavailable
from hal.nvml.api import Code, NvmlError
from hal.nvml.failures import hal_error
from sim.gpu.faults import (
    ConfidentialReady,
    DriverDown,
    DriverHang,
    DriverReturns,
    DriverUp,
    Fabric,
    NodeFault,
    Plug,
    Repartition,
    Replacement,
    Returns,
    WatchBroken,
    WatchMended,
    XidFault,
    gaps_s,
    repair_time_s,
    victims_of,
)
from sim.gpu.profiles import CannotPartition, check_partition
from sim.gpu.returns import Returned
from sim.gpu.scheduler import to_ns, until_s

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from typing import TypeAlias

    import simpy

    from hal import HalError
    from sim.gpu.faults import Failures, Fault, GpuFault, TimedFault, Victims
    from sim.gpu.gpu import SimulatedGpu
    from sim.node.node import SimulatedNode

    Events: TypeAlias = Generator[simpy.Event, object, None]


EVENT_CALLS: Final = ("nvmlEventSetCreate", "nvmlEventSetWait_v2")
_WAIT: Final = EVENT_CALLS[1]


@dataclass(slots=True)
class SimulatedDriver:
    """State of the driver; times are model time in seconds."""

    loaded: bool = True
    confidential_ready: bool = True
    returned: Returned = field(default_factory=Returned)
    """What calls that are about no GPU return in place of the truth."""
    _hung_until_s: float = -math.inf
    _unwatchable_until_s: float = -math.inf

    def apply(self, what: NodeFault, now_s: float) -> None:
        match what:
            case DriverDown():
                self.loaded = False
            case DriverUp():
                self.loaded, self._hung_until_s = True, -math.inf
                self.returned.clear()
            case DriverHang(for_s=for_s):
                self._hung_until_s = until_s(now_s, for_s)
            case WatchBroken(for_s=for_s):
                self._unwatchable_until_s = until_s(now_s, for_s)
            case WatchMended():
                self._unwatchable_until_s = -math.inf
            case DriverReturns(calls=calls, answer=answer, for_s=for_s, every=every):
                self.returned.add(calls, answer, now_s, for_s=for_s, every=every)
            case ConfidentialReady(ready=ready):
                self.confidential_ready = ready
            case _:
                assert_never(what)

    def hangs(self, now_s: float) -> bool:
        """True while no call returns; one to a driver that is not loaded fails at once."""
        return self.loaded and now_s < self._hung_until_s

    def failure(self) -> DriverUnavailable | None:
        """What every call raises; None if calls work."""
        if self.loaded:
            return None
        return DriverUnavailable(
            "the simulated driver is not loaded",
            "Load it: 'gpuplugin sim inject --driver up', or the fault driver-up",
        )

    def watch_failure(self, now_s: float) -> HalError | None:
        """What waiting for events raises; None if it works."""
        failure: HalError | None = self.failure()
        for call in EVENT_CALLS:
            answer = self.returned.always(call, now_s)
            nothing_new = call == _WAIT and answer is not None and answer.code is Code.TIMEOUT
            if answer is not None and answer.code is not Code.SUCCESS and not nothing_new:
                failure = failure or hal_error(
                    NvmlError(answer.code, answer.code.name), "Waiting for GPU events"
                )
        if failure is None and now_s < self._unwatchable_until_s:
            return DriverUnavailable(
                "clients of the simulated driver cannot wait for events",
                "Repair it: 'gpuplugin sim inject --watch mended', or the fault watch-mended",
            )
        return failure


def start_faults(node: SimulatedNode) -> None:
    """Start the processes that inject the faults of the node's scenario, timed and by rate."""
    for fault in node.scenario.faults:
        node.env.process(_inject_timed(node, fault))
    numa_nodes = [gpu.identity.numa_node for gpu in node.present]
    for number, failures in enumerate(node.scenario.failures):
        random = Random(f"{node.seed}/failures/{number}")
        for position, victims in enumerate(victims_of(failures, numa_nodes, random)):
            own = Random(f"{node.seed}/{random.random()}/{position}")
            node.env.process(_inject_at_rate(node, failures, victims, own))


def _inject_timed(node: SimulatedNode, fault: TimedFault) -> Events:
    yield node.env.timeout(to_ns(fault.at_s))
    _inject(node, fault.what, fault.indices(len(node.present)))
    if fault.repeat is not None:
        for _ in range(fault.repeat.times - 1):
            yield node.env.timeout(to_ns(fault.repeat.every_s))
            _inject(node, fault.what, fault.indices(len(node.present)))


def _inject_at_rate(
    node: SimulatedNode, failures: Failures, victims: Victims, random: Random
) -> Events:
    """Failure and repair in turn; a GPU that is being repaired does not fail."""
    for gap_s in gaps_s(failures, victims.factor, random):
        yield node.env.timeout(to_ns(gap_s))
        _inject(node, failures.what, victims.indices)
        if failures.repair is not None:
            yield node.env.timeout(to_ns(repair_time_s(failures.repair, random)))
            _inject(node, failures.repair.what, victims.indices)


def _inject(node: SimulatedNode, what: Fault, indices: Sequence[int]) -> None:
    """Inject a fault into the node or into GPUs; those to which it does not apply are left out."""
    if isinstance(what, NodeFault):
        node.inject_node(what)
        return
    for index in indices:
        with suppress(CannotInject):
            node.inject(node.present[index], what)


class CannotInject(Exception):
    """The fault does not apply to the GPU as it is now; the text says why, and what does."""


def check_applies(gpu: SimulatedGpu, what: GpuFault) -> None:
    """Raise `CannotInject` for a fault that does not apply to the GPU as it is now."""
    index = gpu.identity.index
    if gpu.replaced_by is not None:
        raise CannotInject(
            f"GPU {gpu.identity.uuid} was replaced by {gpu.replaced_by}: name that one, or {index}"
        )
    if not gpu.plugged and not isinstance(what, Plug | Replacement):
        raise CannotInject(f"GPU {index} is unplugged: plug it or replace it first")
    match what:
        case Plug() if gpu.plugged:
            raise CannotInject(f"GPU {index} is not unplugged; 'recover' brings a lost GPU back")
        case Repartition() if gpu.lost:
            raise CannotInject(f"GPU {index} is lost: let it recover first")
        case Repartition(mig=list(mig)):
            try:
                check_partition(gpu.identity.product, gpu.profile, mig)
            except CannotPartition as error:
                raise CannotInject(str(error)) from error
        case Fabric() if not gpu.profile.has_fabric:
            raise CannotInject(f"GPU {index} ({gpu.identity.product}) is in no NVLink fabric")
        case XidFault(mig=int(mig_index)) | Returns(mig=int(mig_index)) if mig_index >= len(
            gpu.identity.mig_devices
        ):
            raise CannotInject(
                f"GPU {index} has no MIG device {mig_index}, "
                f"only {len(gpu.identity.mig_devices)}, counted from 0"
            )
