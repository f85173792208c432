"""The node at one moment, immutable: its devices, their health, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from gpuplugin.core.healthboard import HealthBoard, HealthHistory
from gpuplugin.core.inventory import Inventory, Plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuplugin.core.dra.devices import DraPlan
    from gpuplugin.core.health import HealthPolicy
    from gpuplugin.core.injection import InjectionPlan
    from gpuplugin.core.preference import PolicyName
    from gpuplugin.core.usage import Holding, Reading
    from gpuplugin.core.xidlog import XidLog
    from hal import CallFailure, Gpu, Link, Probe


class SpecsWriter(Protocol):
    """Makes the container runtime know devices, before the kubelet does."""

    def write(self, inventory: Inventory) -> None:
        """Write the specs of the inventory; blocks, and raises OSError."""


@dataclass(frozen=True, slots=True)
class NodePlan:
    """Everything that a configuration means for the node.

    `specs` writes the CDI specs, None where there is nothing to write; the model never calls it.
    `dra` is for Dynamic Resource Allocation, None with the device-plugin API.
    """

    inventory: Plan
    injection: InjectionPlan
    policy: PolicyName
    health: HealthPolicy
    specs: SpecsWriter | None = None
    dra: DraPlan | None = None


@dataclass(frozen=True, slots=True)
class NodeView:
    """The node at one moment: what the kubelet gets, and what people and metrics see."""

    plan: NodePlan
    """What is in force: `inventory` was made by it."""
    gpus: tuple[Gpu, ...] = ()
    """GPUs as last enumerated; one that vanished is kept as lost."""
    listed: bool = False
    """Whether GPUs were enumerated at all."""
    probes: Mapping[str, Probe] = field(default_factory=lambda: MappingProxyType({}))
    links: Mapping[tuple[str, str], Link] = field(default_factory=lambda: MappingProxyType({}))
    board: HealthBoard = field(default_factory=HealthBoard)
    inventory: Inventory = field(default_factory=Inventory)
    history: HealthHistory = field(default_factory=HealthHistory)
    xids: XidLog = field(default_factory=lambda: MappingProxyType({}))
    misfit: str = ""
    """Why the configuration does not suit the GPUs, empty if it does: all is Unhealthy then."""
    specs_problem: str = ""
    indices: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """The index by which people know a GPU (`0`) or MIG device (`0:1`), by UUID."""
    reading: Reading | None = None
    holdings: tuple[Holding, ...] | None = None
    """What pods hold, as the kubelet said last; None as long as it has not."""
    withheld: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Why a GPU or MIG device is not given out although it is healthy, by UUID."""

    def healthy(self, gpu_uuid: str, mig_uuid: str | None = None) -> bool:
        if self.misfit or (mig_uuid or gpu_uuid) in self.withheld:
            return False
        return self.board.healthy(gpu_uuid, mig_uuid)

    def index(self, uuid: str) -> str:
        return self.indices.get(uuid, "")

    @property
    def left_out(self) -> frozenset[str]:
        """GPUs, and their MIG devices, that the configuration leaves out: nobody is given them.

        What becomes of them is no concern of whoever watches the node.
        """
        admits = self.plan.inventory.gpu_filter.admits
        left_out = [gpu for gpu in self.gpus if not admits(gpu)]
        migs = (mig.uuid for gpu in left_out for mig in gpu.mig_devices)
        return frozenset((*(gpu.uuid for gpu in left_out), *migs))

    def unknown_values(self, gpu_uuid: str) -> tuple[CallFailure, ...]:
        """Calls about the GPU that gave no value at the last reads, each once."""
        gpu = next((gpu for gpu in self.gpus if gpu.uuid == gpu_uuid), None)
        probe = self.probes.get(gpu_uuid)
        telemetry = self.reading.telemetry.get(gpu_uuid) if self.reading is not None else None
        sources = (one.unknown for one in (gpu, probe, telemetry) if one is not None)
        return tuple(dict.fromkeys(failure for source in sources for failure in source))

    def healthy_devices(self) -> dict[str, int]:
        return {
            resource.name: sum(
                count for unit, count in resource.units.items() if self.healthy(*unit)
            )
            for resource in self.inventory.resources
        }

    def reading_at(self, now_s: float) -> Reading | None:
        """The reading, None if there is none, or it is stale at `now_s`."""
        reading = self.reading
        return None if reading is None or reading.stale(now_s) else reading
