"""Where the NVLinks of a simulated node's GPUs lead: to other GPUs as recorded, or to switches."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from hal.nvml.kernelfiles import canonical_bus_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sim.gpu.profiles import Profile


MOST_NVLINKS: Final = 36
"""Of one GPU, as NVML numbers them."""


NVSWITCH_DEVICE_ID: Final = 0x22A310DE
"""That of the switches of Hopper; assumed for all."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The GPU with this index is at the other end."""

    index: int


@dataclass(frozen=True, slots=True)
class Switch:
    """An NVSwitch is at the other end."""

    bus_id: str


LinkEnd: TypeAlias = Peer | Switch | None
"""What is at the other end of a link; None: the link is down."""


def link_ends(
    profiles: Sequence[Profile], bus_ids: Sequence[str], direct: Mapping[frozenset[int], int]
) -> tuple[tuple[LinkEnd, ...], ...]:
    """The ends of each GPU's links, by index and link number.

    `direct` is the number of links between pairs of GPUs. GPUs with such links have none to a
    switch. All others share the switches of the node, of which there are as many as the model with
    the most of them has.
    """
    peers_of: list[list[LinkEnd]] = [[] for _ in profiles]
    for pair, links in direct.items():
        for one, other in itertools.permutations(sorted(pair)):
            peers_of[one] += [Peer(other)] * links
    count = max((_nvlink(profile)[1] for profile in profiles), default=0)
    switches = [Switch(bus_id) for bus_id in itertools.islice(_free_bus_ids(bus_ids), count)]
    found: list[tuple[LinkEnd, ...]] = []
    for profile, peers in zip(profiles, peers_of, strict=True):
        links, behind = _nvlink(profile)
        ends = peers or [switches[link % behind] for link in range(links) if behind]
        found.append((*ends, *[None] * (links - len(ends))))
    return tuple(found)


def _nvlink(profile: Profile) -> tuple[int, int]:
    """How many links a GPU of the model has, and the switches behind them."""
    nvlink = profile.nvlink
    return (0, 0) if nvlink is None else (nvlink.links, nvlink.switches or 0)


def _free_bus_ids(taken: Iterable[str]) -> Iterable[str]:
    """Bus ids on buses without a GPU, from 05 on as on a DGX."""
    buses = {canonical_bus_id(bus_id).rpartition(":")[0] for bus_id in taken}
    every = (
        f"{domain:08X}:{bus:02X}"
        for domain in itertools.count()
        for bus in range(5 if domain == 0 else 1, 256)
    )
    return (f"{bus}:00.0" for bus in every if bus not in buses)
