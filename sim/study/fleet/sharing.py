"""What tenants of one GPU get under time slicing, as flows: for lifetimes of hours, not slices.

Round robin gives everybody who has work the same; who wants less leaves the rest to the others
(max-min fairness). Where everybody together wants more than there is, switches take their part.
`tests/unit/sim/fleet` holds this against the scheduler that follows every slice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.gpu.compute.parameters import SliceParameters


def shares_of(
    demands: Sequence[float], parameters: SliceParameters, occupancy: float
) -> list[float]:
    """The share of the GPU that each tenant gets (0 to 1), given the shares that they want.

    `occupancy` is how much of the GPU their kernels fill, for the cost of a switch.
    """
    if sum(demands) <= 1.0 or len(demands) < 2:
        return [min(1.0, demand) for demand in demands]
    switch_ns = parameters.switch_ns(occupancy, occupancy)
    left = parameters.slice_ns / (parameters.slice_ns + switch_ns)
    got = [0.0] * len(demands)
    hungry = sorted(range(len(demands)), key=lambda index: demands[index])
    while hungry:
        even = left / len(hungry)
        index = hungry[0]
        if demands[index] > even:
            for rest in hungry:
                got[rest] = even
            break
        got[index] = demands[index]
        left -= demands[index]
        hungry.pop(0)
    return got
