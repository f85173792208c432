"""Readings of GPUs: probes, telemetry, processes, and the links between them.

Each function takes the handle of a GPU and lets `NvmlError` through only where the GPU or the
driver does not respond; a value that is not supported is left out instead.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, Final

from hal.nvml.api import NO_INSTANCE, Clock, Code, EccKind, Field, NvmlError, optional, supported
from hal.nvml.failures import hal_error
from hal.nvml.kernelfiles import canonical_bus_id
from hal.types import (
    ComputeProcess,
    Link,
    LinkKind,
    Probe,
    RecoveryAction,
    Telemetry,
    ThrottleReason,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hal.gpucalls import GpuCalls
    from hal.nvml.api import Handle, NvmlApi, ProcessSample
    from hal.nvml.inventory import Snapshot
    from hal.types import Gpu

_ACTIONS: Final = {
    0: RecoveryAction.NONE,
    1: RecoveryAction.RESET,
    2: RecoveryAction.REBOOT,
    3: RecoveryAction.DRAIN_P2P,
    4: RecoveryAction.DRAIN_AND_RESET,
    6: RecoveryAction.RESET,
    7: RecoveryAction.REBOOT,
}

_THROTTLES: Final = {
    0x01: ThrottleReason.IDLE,
    0x02: ThrottleReason.OTHER,
    0x04: ThrottleReason.POWER_CAP,
    0x10: ThrottleReason.OTHER,
    0x20: ThrottleReason.THERMAL_SOFTWARE,
    0x40: ThrottleReason.THERMAL_HARDWARE,
    0x80: ThrottleReason.POWER_BRAKE,
}
_HARDWARE_SLOWDOWN: Final = 0x08
_HARDWARE_CAUSES: Final = 0x40 | 0x80

_MAX_NVLINKS: Final = 36

_LINK_KINDS: Final = {
    0: LinkKind.SAME_BOARD,
    10: LinkKind.SINGLE_SWITCH,
    20: LinkKind.MULTI_SWITCH,
    30: LinkKind.HOST_BRIDGE,
    40: LinkKind.SAME_CPU,
    50: LinkKind.CROSS_CPU,
}


def read_probe(
    api: NvmlApi, find: Callable[[], Handle], epoch: str, limits: ShutdownLimits
) -> Probe:
    """Whether the GPU that `find` finds can be used; raises `HalError` only for a failed driver."""
    try:
        handle = find()
        # Any response will do; chips without memory of their own report "not supported".
        supported(lambda: api.memory(handle), None)
        return _healthy_probe(api, handle, epoch, limits)
    except NvmlError as err:
        if err.is_driver_failure:
            raise hal_error(err, "Probing a GPU") from err
        reset = err.code == Code.RESET_REQUIRED
        action = RecoveryAction.RESET if reset else RecoveryAction.UNKNOWN
        return Probe.unreachable(epoch, action)


def _healthy_probe(api: NvmlApi, handle: Handle, epoch: str, limits: ShutdownLimits) -> Probe:
    action = optional(lambda: api.field(handle, Field.RECOVERY_ACTION), None)
    rows = optional(lambda: api.remapped_rows(handle), None)
    return Probe(
        reachable=True,
        recovery_action=_action(action),
        row_remap_pending=rows is not None and rows.pending,
        row_remap_failed=rows is not None and rows.failure,
        uncorrectable_ecc=optional(lambda: api.volatile_ecc(handle, EccKind.UNCORRECTED), None),
        epoch=epoch,
        thermal_shutdown=limits.reached(handle),
    )


class ShutdownLimits:
    """Where GPUs shut themselves down for heat: limits are read once per connection.

    Up to Ampere the limit is a temperature; since then it is a margin below the slowdown.
    """

    def __init__(self, api: NvmlApi) -> None:
        self._api = api
        self._temperatures_c: dict[Handle, int] = {}
        self._margins_c: dict[Handle, int] = {}

    def reached(self, handle: Handle) -> bool:
        """Whether the die is as hot as that; raises `NvmlError` if the GPU does not respond."""
        api = self._api
        if limit_c := self._temperature_limit_c(handle):
            temperature_c = optional(lambda: api.temperature_c(handle), None)
            return temperature_c is not None and temperature_c >= limit_c
        margin_limit_c = self._margin_limit_c(handle)
        if margin_limit_c is None or margin_limit_c >= 0:
            # Slowing down begins at a margin of 0: a limit there would call every hot GPU dead.
            return False
        margin_c = optional(lambda: api.temperature_margin_c(handle), None)
        return margin_c is not None and margin_c <= margin_limit_c

    def _temperature_limit_c(self, handle: Handle) -> int:
        if handle in self._margins_c:
            return 0
        if handle not in self._temperatures_c:
            limit_c = optional(lambda: self._api.shutdown_temperature_c(handle), None)
            if not limit_c:
                return 0  # perhaps only now: a failed read is repeated
            self._temperatures_c[handle] = limit_c
        return self._temperatures_c[handle]

    def _margin_limit_c(self, handle: Handle) -> int | None:
        if handle not in self._margins_c:
            field = Field.SHUTDOWN_MARGIN_C
            limit_c = optional(lambda: _signed(self._api.field(handle, field)), None)
            if limit_c is None:
                return None
            self._margins_c[handle] = limit_c
        return self._margins_c[handle]


def _signed(number: int) -> int:
    # Drivers do not agree on whether the field's type is signed.
    return number - 2**32 if number >= 2**31 else number


def _action(number: int | None) -> RecoveryAction:
    if number is None:
        return RecoveryAction.UNKNOWN
    # An action of a newer driver: not UNKNOWN, with which the GPU counts as usable.
    return _ACTIONS.get(number, RecoveryAction.OTHER)


def read_telemetry(api: NvmlApi, handle: Handle) -> Telemetry:
    """Read a GPU's sensors; raises `NvmlError` if the GPU or the driver does not respond."""
    memory = supported(lambda: api.memory(handle), None)
    percent = optional(lambda: api.utilization_percent(handle), None)
    temperature = optional(lambda: api.temperature_c(handle), None)
    return Telemetry(
        utilization=None if percent is None else percent / 100,
        memory_used_bytes=0 if memory is None else memory.used,
        memory_total_bytes=0 if memory is None else memory.total,
        temperature_c=None if temperature is None else float(temperature),
        power_w=_watts(lambda: api.power_mw(handle)),
        power_limit_w=_watts(lambda: api.power_limit_mw(handle)),
        sm_clock_mhz=optional(lambda: api.clock_mhz(handle, Clock.SM), None),
        memory_clock_mhz=optional(lambda: api.clock_mhz(handle, Clock.MEMORY), None),
        throttle_reasons=throttle_reasons(optional(lambda: api.clock_reasons(handle), 0)),
        corrected_ecc=optional(lambda: api.volatile_ecc(handle, EccKind.CORRECTED), None),
        uncorrectable_ecc=optional(lambda: api.volatile_ecc(handle, EccKind.UNCORRECTED), None),
    )


def _watts(read: Callable[[], int]) -> float | None:
    milliwatts = optional(read, None)
    return None if milliwatts is None else milliwatts / 1000


def throttle_reasons(mask: int) -> ThrottleReason:
    """NVML's clock event reasons in the HAL's terms."""
    reasons = ThrottleReason.NONE
    for bit in (1 << n for n in range(mask.bit_length())):
        if mask & bit and bit != _HARDWARE_SLOWDOWN:
            reasons |= _THROTTLES.get(bit, ThrottleReason.OTHER)
    if mask & _HARDWARE_SLOWDOWN and not mask & _HARDWARE_CAUSES:
        # The sum of the hardware's causes; reported only if the driver names none of them.
        reasons |= ThrottleReason.OTHER
    return reasons


def read_processes(api: NvmlApi, gpu: Gpu, handle: Handle) -> tuple[ComputeProcess, ...]:
    """Compute processes ordered by pid; raises `NvmlError` if they cannot be listed."""
    processes = api.processes(handle)
    latest: dict[int, ProcessSample] = {}
    # The driver samples none on a GPU in MIG mode.
    for sample in optional(lambda: api.process_samples(handle), ()):
        if sample.pid not in latest or sample.timestamp_us > latest[sample.pid].timestamp_us:
            latest[sample.pid] = sample
    migs = {(mig.gpu_instance, mig.compute_instance): mig.uuid for mig in gpu.mig_devices}
    found = [
        ComputeProcess(
            pid=process.pid,
            # It may have ended, or be in another PID namespace.
            name=optional(partial(api.process_name, process.pid), ""),
            memory_bytes=process.memory,
            sm_share=_share(latest, process.pid),
            mig_uuid=migs.get((process.gpu_instance, process.compute_instance))
            if process.gpu_instance != NO_INSTANCE
            else None,
        )
        for process in processes
    ]
    return tuple(sorted(found, key=lambda process: (process.pid, process.mig_uuid or "")))


def _share(latest: Mapping[int, ProcessSample], pid: int) -> float | None:
    sample = latest.get(pid)
    # Some drivers overshoot, or mark a sample as invalid with all bits set.
    return None if sample is None or sample.sm_percent > 1000 else min(1.0, sample.sm_percent / 100)


def read_links(
    api: NvmlApi, snapshot: Snapshot, calls: GpuCalls[int | tuple[int, int]]
) -> Mapping[tuple[str, str], Link]:
    """The link of each ordered pair of the GPUs that respond.

    A path that cannot be read counts as the farthest, an NVLink that cannot be read as absent.
    Raises NvmlError if the driver does not respond: an incomplete matrix must not be kept.
    """
    gpus = [gpu for gpu in snapshot.gpus if gpu.uuid in snapshot.handles]
    remotes: dict[str, list[str]] = {}
    for gpu in gpus:
        with calls.about(gpu.index):
            remotes[gpu.uuid] = _remotes(api, snapshot.handles[gpu.uuid])
    links: dict[tuple[str, str], Link] = {}
    for one, other in itertools.combinations(gpus, 2):
        # For the pair: if it hangs, which of the two it is will show by itself.
        with calls.about((one.index, other.index)):
            kind = _kind(api, snapshot.handles[one.uuid], snapshot.handles[other.uuid])
        # Both ends report the same links; one that cannot must not make the pair asymmetric.
        nvlinks = max(
            remotes[one.uuid].count(other.pci_bus_id), remotes[other.uuid].count(one.pci_bus_id)
        )
        link = Link(kind, nvlinks)
        links[one.uuid, other.uuid] = links[other.uuid, one.uuid] = link
    return links


def _kind(api: NvmlApi, one: Handle, other: Handle) -> LinkKind:
    try:
        return _LINK_KINDS.get(api.topology(one, other), LinkKind.CROSS_CPU)
    except NvmlError as err:
        if err.is_driver_failure:
            raise
        return LinkKind.CROSS_CPU


def _remotes(api: NvmlApi, device: Handle) -> list[str]:
    """The PCI addresses at the far ends of a GPU's links that are up."""
    remotes: list[str] = []
    for link in range(_MAX_NVLINKS):
        try:
            if api.nvlink_active(device, link):
                remotes.append(canonical_bus_id(api.nvlink_remote(device, link)))
        except NvmlError as err:
            if err.is_driver_failure:
                raise
    return remotes
