"""How much of the GPUs has to be read anew: little, while nothing suggests a change.

A survey reads everything of every GPU. Where one found all of them well, the looks of the next
`survey_s` ask only for what comes without an event: how many GPUs there are, and of each whether it
responds, its temperature and the recovery action. Whatever differs is followed by a survey at once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hal.nvml.api import NvmlError
from hal.nvml.kernelfiles import mig_instances
from hal.nvml.readings import read_action
from hal.nvml.values import Values
from hal.types import FabricState, GpuState, RecoveryAction

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hal.nvml.api import NvmlApi
    from hal.nvml.inventory import Inventory, Snapshot
    from hal.nvml.readings import ShutdownLimits
    from hal.types import Probe

_WELL = (RecoveryAction.NONE, RecoveryAction.UNKNOWN)


class Surveys:
    """When the next survey is due, and what the last one found. Safe to use from several threads.

    A `survey_s` of 0 makes each look a survey.
    """

    def __init__(
        self,
        inventory: Inventory,
        procfs_root: Path,
        survey_s: float,
        clock_s: Callable[[], float],
    ) -> None:
        self._inventory = inventory
        self._procfs_root = procfs_root
        self._survey_s = survey_s
        self._clock_s = clock_s
        self._calm_from_s = -math.inf
        self._surveyed_s = -math.inf
        self._found: Snapshot | None = None
        self._instances: tuple[str, ...] = ()
        self._probes: dict[str, Probe] = {}

    def suspect(self) -> None:
        """Something may have changed: survey at each look, for as long as between two surveys."""
        self._calm_from_s = self._clock_s() + self._survey_s
        self._found = None

    def begin(self) -> None:
        """Another connection: nothing is known, and nothing suspected."""
        self._calm_from_s = -math.inf
        self._found = None

    def still_good(self, api: NvmlApi) -> Snapshot | None:
        """The GPUs as the last survey found them; None if they have to be read anew."""
        now_s, found = self._clock_s(), self._found
        if found is None or now_s < self._calm_from_s or found is not self._inventory.latest:
            return None
        if (
            now_s - self._surveyed_s >= self._survey_s
            or self._instances_of(found) != self._instances
        ):
            return None
        listed = len(found.gpus) + found.displays
        try:
            return found if api.device_count() == listed else None
        except NvmlError:
            return None  # the survey says so

    def surveyed(self, snapshot: Snapshot) -> None:
        self._probes = {}
        self._surveyed_s = self._clock_s()
        self._instances = self._instances_of(snapshot)
        well = all(gpu.state is GpuState.OK and not gpu.unknown for gpu in snapshot.gpus)
        self._found = snapshot if well else None

    def probed(self, uuid: str, probe: Probe) -> None:
        """A GPU was probed as a whole."""
        if _is_well(probe):
            self._probes[uuid] = probe
        else:
            self.suspect()

    def pulse(self, api: NvmlApi, uuid: str, epoch: str, limits: ShutdownLimits) -> Probe | None:
        """What a probe finds now, by two calls; None if the GPU has to be probed as a whole."""
        found, probe = self._found, self._probes.get(uuid)
        if found is None or probe is None or found is not self._inventory.latest:
            return None
        handle = found.handles.get(uuid)
        if handle is None or probe.epoch != epoch:
            return None
        values = Values()
        left_c = limits.left_c(handle, values)
        if left_c is None or left_c <= 0:
            return None
        action = read_action(api, handle, values)
        return probe if action is probe.recovery_action and not values.failures else None

    def _instances_of(self, snapshot: Snapshot) -> tuple[str, ...]:
        return mig_instances(self._procfs_root, (gpu.minor for gpu in snapshot.gpus))


def _is_well(probe: Probe) -> bool:
    return (
        probe.reachable
        and probe.recovery_action in _WELL
        and not probe.row_remap_pending
        and not probe.row_remap_failed
        and not probe.thermal_shutdown
        and probe.fabric in (None, FabricState.COMPLETED)
        and probe.fabric_failure is None
        and probe.confidential_ready is not False
        and not probe.unknown
    )
