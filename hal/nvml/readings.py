"""Readings of GPUs: probes, telemetry, processes, and the links between them.

Each function takes the handle of a GPU and lets `NvmlError` through only where the GPU or the
driver does not respond; a value that cannot be had is unknown.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from hal.errors import NotSupported
from hal.nvml.api import NO_INSTANCE, Clock, Code, EccKind, Field, NvmlError
from hal.nvml.calls import CALLS
from hal.nvml.failures import call_failure, hal_error
from hal.nvml.inventory import is_sane
from hal.nvml.kernelfiles import canonical_bus_id
from hal.nvml.values import MOST_MEMORY_BYTES, Values, check_responds, named
from hal.types import (
    ComputeProcess,
    FabricState,
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
    from hal.nvml.api import Handle, NvmlApi, Process, ProcessSample
    from hal.nvml.inventory import Inventory, Snapshot
    from hal.types import CallFailure, Gpu

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
    api: NvmlApi,
    find: Callable[[], Handle],
    epoch: str,
    limits: ShutdownLimits,
    readiness: Readiness,
) -> Probe:
    """Whether the GPU that `find` finds can be used; raises `HalError` only for a failed driver."""
    try:
        handle = find()
        check_responds(api, handle)
    except NvmlError as err:
        if err.is_driver_failure:
            raise hal_error(err, "Probing a GPU") from err
        reset = err.code == Code.RESET_REQUIRED
        action = RecoveryAction.RESET if reset else RecoveryAction.UNKNOWN
        return Probe.unreachable(epoch, action, call_failure(err))
    values = Values()
    action = read_action(api, handle, values)
    rows = values.read(None, api.remapped_rows, handle)
    ecc = values.bounded(None, _is_count, api.volatile_ecc, handle, EccKind.UNCORRECTED)
    hot = limits.reached(handle, values)
    fabric, fabric_failure = readiness.fabric(handle, values)
    confidential_ready = readiness.confidential(values)
    return Probe(
        reachable=True,
        recovery_action=action,
        row_remap_pending=rows is not None and rows.pending,
        row_remap_failed=rows is not None and rows.failure,
        uncorrectable_ecc=ecc,
        epoch=epoch,
        thermal_shutdown=hot,
        fabric=fabric,
        fabric_failure=fabric_failure,
        confidential_ready=confidential_ready,
        unknown=tuple(values.failures),
    )


# No sensor of a GPU shows more; drivers fill what they cannot tell with ones.
_MOST_COUNT: Final = 1 << 40
_MOST_C: Final = 200
_MOST_MW: Final = 10_000_000
_MOST_MHZ: Final = 50_000
_MOST_ENERGY_MJ: Final = 10**16
"""What 10 kW are in 30 years."""


def _is_count(number: int) -> bool:
    return 0 <= number <= _MOST_COUNT


def _is_energy(number: int) -> bool:
    return 0 <= number <= _MOST_ENERGY_MJ


def _is_temperature(number: int) -> bool:
    return -_MOST_C <= number <= _MOST_C


def _is_power(number: int) -> bool:
    return 0 <= number <= _MOST_MW


def _is_clock(number: int) -> bool:
    return 0 <= number <= _MOST_MHZ


class Readiness:
    """Whether GPUs that respond are ready for CUDA; what a GPU does not have is asked once.

    Not for several threads at once.
    """

    def __init__(self, api: NvmlApi) -> None:
        self._api = api
        self._without_fabric: set[Handle] = set()
        self._is_confidential: bool | None = None

    def fabric(
        self, handle: Handle, values: Values
    ) -> tuple[FabricState | None, CallFailure | None]:
        """The state of the NVLink fabric, and what is wrong with one that is completed."""
        if handle in self._without_fabric:
            return None, None
        failures = len(values.failures)
        info = values.read(None, self._api.fabric, handle)
        if info is None or info.state == 0:
            if len(values.failures) == failures:
                self._without_fabric.add(handle)
            return None, None
        failure = None
        if info.status != Code.SUCCESS and _FABRIC.get(info.state) is FabricState.COMPLETED:
            call = CALLS["fabric"].function
            failure = call_failure(NvmlError(info.status, "the fabric has failed", call))
        return _FABRIC.get(info.state), failure

    def confidential(self, values: Values) -> bool | None:
        """Whether confidential work is accepted; None outside of confidential computing."""
        if self._is_confidential is None:
            failures = len(values.failures)
            on = values.read(None, self._api.is_confidential)
            if on is None and len(values.failures) > failures:
                return None
            self._is_confidential = bool(on)
        if not self._is_confidential:
            return None
        return values.read(None, self._api.is_confidential_ready)


_FABRIC: Final = {
    1: FabricState.NOT_STARTED,
    2: FabricState.IN_PROGRESS,
    3: FabricState.COMPLETED,
}


class ShutdownLimits:
    """Where GPUs shut themselves down for heat: limits are read once per connection.

    Up to Ampere the limit is a temperature; since then it is a margin below the slowdown.
    """

    def __init__(self, api: NvmlApi) -> None:
        self._api = api
        self._temperatures_c: dict[Handle, int] = {}
        self._margins_c: dict[Handle, int] = {}

    def reached(self, handle: Handle, values: Values) -> bool:
        """Whether the die is as hot as that; where that is unknown, it is not."""
        left_c = self.left_c(handle, values)
        return left_c is not None and left_c <= 0

    def left_c(self, handle: Handle, values: Values) -> int | None:
        """By how many degrees the die is cooler than that, read now; None if it is unknown."""
        api = self._api
        if limit_c := self._temperature_limit_c(handle, values):
            temperature_c = values.bounded(None, _is_temperature, api.temperature_c, handle)
            return None if temperature_c is None else limit_c - temperature_c
        margin_limit_c = self._margin_limit_c(handle, values)
        if margin_limit_c is None or margin_limit_c >= 0:
            # Slowing down begins at a margin of 0: a limit there would call every hot GPU dead.
            return None
        margin_c = values.bounded(None, _is_temperature, api.temperature_margin_c, handle)
        return None if margin_c is None else margin_c - margin_limit_c

    def _temperature_limit_c(self, handle: Handle, values: Values) -> int:
        if handle in self._margins_c:
            return 0
        if handle not in self._temperatures_c:
            read = self._api.shutdown_temperature_c
            limit_c = values.bounded(None, _is_temperature, read, handle)
            if not limit_c:
                return 0  # perhaps only now: a failed read is repeated
            self._temperatures_c[handle] = limit_c
        return self._temperatures_c[handle]

    def _margin_limit_c(self, handle: Handle, values: Values) -> int | None:
        if handle not in self._margins_c:
            field = Field.SHUTDOWN_MARGIN_C
            number = values.read(None, self._api.field, handle, field)
            if number is None or not _is_temperature(_signed(number)):
                return None
            self._margins_c[handle] = _signed(number)
        return self._margins_c[handle]


def _signed(number: int) -> int:
    # Drivers do not agree on whether the field's type is signed.
    return number - 2**32 if number >= 2**31 else number


def read_action(api: NvmlApi, handle: Handle, values: Values) -> RecoveryAction:
    number = values.read(None, api.field, handle, Field.RECOVERY_ACTION)
    if number is None:
        return RecoveryAction.UNKNOWN
    # An action of a newer driver: not UNKNOWN, with which the GPU counts as usable.
    return _ACTIONS.get(number, RecoveryAction.OTHER)


def read_telemetry(api: NvmlApi, handle: Handle) -> Telemetry:
    """Read a GPU's sensors; raises `NvmlError` if the GPU does not respond."""
    values = Values()
    memory = values.bounded(None, is_sane, api.memory, handle)
    if memory is None:
        check_responds(api, handle)
    percent = values.bounded(None, lambda share: 0 <= share <= 100, api.utilization_percent, handle)
    temperature = values.bounded(None, _is_temperature, api.temperature_c, handle)
    power_mw = values.bounded(None, _is_power, api.power_mw, handle)
    limit_mw = values.bounded(None, _is_power, api.power_limit_mw, handle)
    energy_mj = values.bounded(None, _is_energy, api.energy_mj, handle)
    sm_mhz, memory_mhz = (
        values.bounded(None, _is_clock, api.clock_mhz, handle, clock)
        for clock in (Clock.SM, Clock.MEMORY)
    )
    reasons = values.read(0, api.clock_reasons, handle)
    corrected, uncorrectable = (
        values.bounded(None, _is_count, api.volatile_ecc, handle, kind)
        for kind in (EccKind.CORRECTED, EccKind.UNCORRECTED)
    )
    return Telemetry(
        utilization=None if percent is None else percent / 100,
        memory_used_bytes=None if memory is None else memory.total - memory.free,
        memory_free_bytes=None if memory is None else memory.free,
        memory_total_bytes=None if memory is None else memory.total,
        temperature_c=None if temperature is None else float(temperature),
        power_w=None if power_mw is None else power_mw / 1000,
        power_limit_w=None if limit_mw is None else limit_mw / 1000,
        energy_j=None if energy_mj is None else energy_mj / 1000,
        sm_clock_mhz=sm_mhz,
        memory_clock_mhz=memory_mhz,
        throttle_reasons=throttle_reasons(reasons),
        corrected_ecc=corrected,
        uncorrectable_ecc=uncorrectable,
        unknown=tuple(values.failures),
    )


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
    """Processes ordered by pid; raises `NvmlError` if those that compute cannot be listed."""
    processes = {_place(one): (one, False) for one in named(api.processes, handle)}
    values = Values()
    for one in values.read((), api.graphics_processes, handle):
        processes.setdefault(_place(one), (one, True))
    latest: dict[int, ProcessSample] = {}
    # The driver samples none on a GPU in MIG mode.
    for sample in values.read((), api.process_samples, handle):
        if sample.pid not in latest or sample.timestamp_us > latest[sample.pid].timestamp_us:
            latest[sample.pid] = sample
    migs = {(mig.gpu_instance, mig.compute_instance): mig.uuid for mig in gpu.mig_devices}
    found = [
        ComputeProcess(
            pid=process.pid,
            # It may have ended, or be in another PID namespace.
            name=values.read("", api.process_name, process.pid),
            memory_bytes=_sane_memory(process.memory),
            sm_share=_share(latest, process.pid),
            mig_uuid=migs.get((process.gpu_instance, process.compute_instance))
            if process.gpu_instance != NO_INSTANCE
            else None,
            graphics=graphics,
        )
        for process, graphics in processes.values()
        if 0 < process.pid <= _MOST_PID
    ]
    return tuple(sorted(found, key=lambda process: (process.pid, process.mig_uuid or "")))


def list_processes(api: NvmlApi, inventory: Inventory, uuid: str) -> tuple[ComputeProcess, ...]:
    """As `hal.Backend.processes`."""
    try:
        handle = inventory.handle(api, uuid)
        try:
            return read_processes(api, inventory.known(uuid), handle)
        except NvmlError as err:
            check_responds(api, handle)
            failure = call_failure(err)
            raise NotSupported(
                f"The processes on GPU {uuid} are unknown: {failure}", failure.remedy
            ) from err
    except NvmlError as err:
        raise hal_error(err, "Listing the processes", uuid) from err


_MOST_PID: Final = 1 << 22
"""The kernel's limit; entries that are read in a wrong layout have others, or 0."""


def _place(process: Process) -> tuple[int, int, int]:
    return process.pid, process.gpu_instance, process.compute_instance


def _sane_memory(size_bytes: int | None) -> int | None:
    return size_bytes if size_bytes is not None and size_bytes <= MOST_MEMORY_BYTES else None


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
