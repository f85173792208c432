"""The length of time slices: which level each GPU is to have, and which this plugin has set.

The driver does not tell what is set. So a GPU is only touched if a level is wanted for it, or this
plugin has set one, which becomes the default again when it is not wanted any more. The level
belongs to the GPU, not to a share of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from hal import TimeSliceLevel

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from gpuplugin.core.inventory import Inventory


def shared_gpus(inventory: Inventory) -> frozenset[str]:
    """UUIDs of the GPUs that are shared as a whole: MIG devices have no time slice to set."""
    return frozenset(
        device.gpu_uuid
        for resource in inventory.resources
        for device in resource.devices
        if device.replica is not None and device.mig is None
    )


def usual_time_slices(
    inventory: Inventory, interval: TimeSliceLevel | None
) -> dict[str, TimeSliceLevel]:
    """What the configuration wants, by UUID: one level for all GPUs that are shared, or nothing."""
    return {} if interval is None else dict.fromkeys(sorted(shared_gpus(inventory)), interval)


NOT_SET = "not set on"
"""How the text for people begins where it is about GPUs that have not what is wanted."""


@dataclass(frozen=True, slots=True)
class TimeSlices:
    """Levels by the UUID of a GPU: those that were set, and those that could not be.

    `in_force` has None for a level that a GPU may have lost since, by a reset for example.
    `refused` has the level with the reason: it is not tried again until something has changed.
    """

    in_force: Mapping[str, TimeSliceLevel | None] = field(
        default_factory=lambda: MappingProxyType({})
    )
    refused: Mapping[str, tuple[TimeSliceLevel, str]] = field(
        default_factory=lambda: MappingProxyType({})
    )

    def due(
        self, wanted: Mapping[str, TimeSliceLevel], usable: Collection[str]
    ) -> dict[str, TimeSliceLevel]:
        """What to set so that GPUs have what is wanted, of those that can be used now."""
        due: dict[str, TimeSliceLevel] = {}
        for uuid in (*wanted, *(one for one in self.in_force if one not in wanted)):
            level = wanted.get(uuid, TimeSliceLevel.DEFAULT)
            has_it = uuid in self.in_force and self.in_force[uuid] is level
            refused = uuid in self.refused and self.refused[uuid][0] is level
            if uuid in usable and not has_it and not refused:
                due[uuid] = level
        return due

    def begun(self, uuid: str) -> TimeSlices:
        """A level is being set: what becomes of it is not known if nobody waits for it."""
        return replace(self, in_force=MappingProxyType({**self.in_force, uuid: None}))

    def ended(self, uuid: str, before: TimeSlices) -> TimeSlices:
        """What was begun has changed nothing: the GPU has what it had before."""
        in_force = {key: one for key, one in self.in_force.items() if key != uuid}
        in_force |= {key: one for key, one in before.in_force.items() if key == uuid}
        return replace(self, in_force=MappingProxyType(in_force))

    def after_setting(self, uuid: str, level: TimeSliceLevel, *, wanted: bool) -> TimeSlices:
        """A level was set; what is the default again, and not wanted, is forgotten."""
        in_force = {key: one for key, one in self.in_force.items() if key != uuid}
        if wanted:
            in_force[uuid] = level
        return replace(self._tried_again({uuid}), in_force=MappingProxyType(in_force))

    def after_refusal(self, uuid: str, level: TimeSliceLevel, reason: str) -> TimeSlices:
        refused = {**self.refused, uuid: (level, reason)}
        return replace(self, refused=MappingProxyType(refused))

    def uncertain(self, uuids: Iterable[str]) -> TimeSlices:
        """These GPUs were reset perhaps, or the driver was loaded anew: set again what they had."""
        gone = frozenset(uuids)
        in_force = {uuid: None if uuid in gone else one for uuid, one in self.in_force.items()}
        return replace(self._tried_again(gone), in_force=MappingProxyType(in_force))

    def of_interest(
        self, wanted: Mapping[str, TimeSliceLevel], listed: Collection[str]
    ) -> TimeSlices:
        """Without GPUs that are gone, and refusals of what is not wanted any more."""
        in_force = {uuid: one for uuid, one in self.in_force.items() if uuid in listed}
        refused = {
            uuid: (level, reason)
            for uuid, (level, reason) in self.refused.items()
            if (uuid in wanted or uuid in in_force)
            and wanted.get(uuid, TimeSliceLevel.DEFAULT) is level
        }
        return TimeSlices(MappingProxyType(in_force), MappingProxyType(refused))

    def text(self, wanted: Mapping[str, TimeSliceLevel], index: Callable[[str], str]) -> str:
        """What people are told: levels with the GPUs that have them, and who has not, and why."""
        parts = []
        for level in TimeSliceLevel:
            having = [uuid for uuid in wanted if self.in_force.get(uuid) is level]
            if having:
                parts.append(f"{level.name.capitalize()} on {_gpus(having, index)}")
        reasons: dict[str, list[str]] = {}
        for uuid, (level, reason) in self.refused.items():
            reasons.setdefault(f"{level.name.capitalize()}: {reason}", []).append(uuid)
        parts += [f"{NOT_SET} {_gpus(uuids, index)} to {why}" for why, uuids in reasons.items()]
        return "; ".join(parts) or "none is set yet"

    def _tried_again(self, uuids: Collection[str]) -> TimeSlices:
        refused = {uuid: one for uuid, one in self.refused.items() if uuid not in uuids}
        return replace(self, refused=MappingProxyType(refused))


def _gpus(uuids: Iterable[str], index: Callable[[str], str]) -> str:
    names = sorted((index(uuid) or uuid for uuid in uuids), key=lambda name: (len(name), name))
    return f"GPU {names[0]}" if len(names) == 1 else f"GPUs {', '.join(names)}"
