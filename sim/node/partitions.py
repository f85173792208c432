"""MIG mode and instances of a live node's GPUs, as an administrator changes them one by one.

A GPU instance has at most one compute instance, which has all of it and makes it a MIG device.
Nothing changes where a method raises `InUse` or `NoRoom`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sim.gpu.instances import GpuInstance, InUse, NoRoom, device_of, free_starts, next_id, width

if TYPE_CHECKING:
    from hal import MigDevice
    from sim.gpu.gpu import SimulatedGpu
    from sim.gpu.profiles import MigProfile
    from sim.node.node import SimulatedNode


class Partitions:
    """Changes MIG modes and instances of the GPUs of one node."""

    def __init__(self, node: SimulatedNode) -> None:
        self._node = node

    def set_mig_mode(self, gpu: SimulatedGpu, *, enabled: bool) -> None:
        """Switch at once; raises `InUse` beside processes, and the next reset brings the mode."""
        if enabled == gpu.identity.mig_enabled:
            gpu.mig_pending = None
            return
        if gpu.processes():
            gpu.mig_pending = enabled
            raise InUse
        self._switch(gpu, enabled=enabled)

    def after_reset(self, gpu: SimulatedGpu) -> None:
        """Bring the MIG mode that was pending."""
        if gpu.mig_pending is not None:
            self._switch(gpu, enabled=gpu.mig_pending)

    def create_gpu_instance(
        self, gpu: SimulatedGpu, mig: MigProfile, start: int | None = None
    ) -> GpuInstance:
        """A GPU instance at `start`, or at the first place that is free."""
        free = free_starts(mig, gpu.profile, gpu.instances.values())
        if not free or (start is not None and start not in free):
            raise NoRoom
        made = GpuInstance(
            next_id(gpu.instances),
            mig.profile,
            free[0] if start is None else start,
            width(mig, gpu.profile),
        )
        gpu.instances[made.id] = made
        self._changed(gpu, "create-gpu-instance", made)
        return made

    def destroy_gpu_instance(self, gpu: SimulatedGpu, instance: GpuInstance) -> None:
        if device_of(gpu, instance) is not None:
            raise InUse
        del gpu.instances[instance.id]
        self._changed(gpu, "destroy-gpu-instance", instance)

    def create_compute_instance(self, gpu: SimulatedGpu, instance: GpuInstance) -> MigDevice:
        if device_of(gpu, instance) is not None:
            raise NoRoom
        identity = gpu.identity
        taken = {device.index for device in identity.mig_devices}
        index = next(number for number in range(len(taken) + 1) if number not in taken)
        place = (index, instance.id)
        made = self._node.identities.mig_device(identity, instance.profile, place, gpu.profile)
        devices = sorted((*identity.mig_devices, made), key=lambda device: device.index)
        fresh = self._node.tenancies_of(replace(identity, mig_devices=(made,)), gpu.profile)
        gpu.set_devices(
            replace(identity, mig_devices=tuple(devices)), gpu.tenancies | fresh, gpu.instances
        )
        self._changed(gpu, "create-compute-instance", instance)
        return made

    def destroy_compute_instance(self, gpu: SimulatedGpu, device: MigDevice) -> None:
        if any(process.mig_uuid == device.uuid for process in gpu.processes()):
            raise InUse
        left = tuple(one for one in gpu.identity.mig_devices if one.uuid != device.uuid)
        tenancies = {uuid: one for uuid, one in gpu.tenancies.items() if uuid != device.uuid}
        gpu.set_devices(replace(gpu.identity, mig_devices=left), tenancies, gpu.instances)
        self._changed(gpu, "destroy-compute-instance", gpu.instances[device.gpu_instance])

    def _switch(self, gpu: SimulatedGpu, *, enabled: bool) -> None:
        identity = replace(gpu.identity, mig_enabled=enabled, mig_devices=())
        gpu.repartition(identity, self._node.tenancies_of(identity, gpu.profile), self._node.now_s)
        self._node.log("mig-mode", {"uuid": identity.uuid, "enabled": enabled})
        self._node.on_change()

    def _changed(self, gpu: SimulatedGpu, what: str, instance: GpuInstance) -> None:
        self._node.log(
            what, {"uuid": gpu.identity.uuid, "id": instance.id, "profile": instance.profile}
        )
        self._node.on_change()
