"""A stand-in for the driver: NVML's calls answered from plain values that tests set."""

from __future__ import annotations

import itertools
import threading
from collections import Counter, deque
from dataclasses import dataclass, field

from hal.nvml.api import (
    NO_INSTANCE,
    Clock,
    Code,
    EccKind,
    EventData,
    EventSet,
    EventType,
    FabricInfo,
    Field,
    Handle,
    Memory,
    NvmlError,
    Process,
    ProcessSample,
    RemappedRows,
)
from hal.types import MigAttributes

GIB = 1024**3

NEED_THE_GPU = (
    "memory",
    "utilization_percent",
    "temperature_c",
    "clock_mhz",
    "power_mw",
    "volatile_ecc",
    "processes",
)
"""Calls that the driver cannot answer for a GPU that is gone."""

_handles = itertools.count(0x1000)
_ONE_SLICE = MigAttributes(1, 1, 9856)
_MIG_MEMORY = Memory(9 * GIB, 9 * GIB)
_MEMORY = Memory(80 * GIB, 79 * GIB)
_NO_ROWS = RemappedRows(pending=False, failure=False)


@dataclass
class FakeMig:
    uuid: str
    gpu_instance: int
    compute_instance: int
    name: str = ""
    attributes: MigAttributes | None = _ONE_SLICE
    memory: Memory = _MIG_MEMORY
    handle: Handle = field(default_factory=lambda: Handle(next(_handles)))


@dataclass
class FakeGpu:
    """`failing` maps names of calls to the code they fail with; `gone` fails all of them."""

    uuid: str
    name: str = "NVIDIA H100 80GB HBM3"
    minor: int = 0
    bus_id: str = "00000000:07:00.0"
    memory: Memory = _MEMORY
    compute_capability: tuple[int, int] = (9, 0)
    compute_mode: int | None = 0
    mig_mode: bool = False
    migs: dict[int, FakeMig] = field(default_factory=dict)
    event_types: int = EventType.XID | EventType.SINGLE_BIT_ECC | EventType.DOUBLE_BIT_ECC | 0x10
    fields: dict[Field, int] = field(default_factory=lambda: {Field.RECOVERY_ACTION: 0})
    rows: RemappedRows = _NO_ROWS
    ecc: dict[EccKind, int] = field(default_factory=lambda: dict.fromkeys(EccKind, 0))
    utilization: int = 0
    temperature: int = 40
    shutdown_temperature: int | None = None
    temperature_margin: int | None = None
    power_mw: int = 70_000
    power_limit_mw: int = 700_000
    energy_mj: int = 1_234_000
    clocks: dict[Clock, int] = field(default_factory=lambda: {Clock.SM: 345, Clock.MEMORY: 2619})
    clock_reasons: int = 0x1
    processes: list[Process] = field(default_factory=list)
    graphics: list[Process] = field(default_factory=list)
    samples: list[ProcessSample] = field(default_factory=list)
    fabric: FabricInfo | None = None
    nvlinks: dict[int, str] = field(default_factory=dict)
    failing: dict[str, Code] = field(default_factory=dict)
    gone: Code | None = None
    handle: Handle = field(default_factory=lambda: Handle(next(_handles)))


class FakeNvml:
    """Implements `NvmlApi`. Waits for events really wait, until their timeout or an event."""

    def __init__(self, *gpus: FakeGpu) -> None:
        self.gpus = list(gpus)
        self.version = "580.105.08"
        self.confidential_ready: bool | None = None
        self.failing: dict[str, Code] = {}
        self.calls: Counter[str] = Counter()
        self.names: dict[int, str] = {}
        self.topologies: dict[frozenset[str], int] = {}
        self.initialised = 0
        self.open_sets: set[EventSet] = set()
        self.registered: dict[EventSet, dict[Handle, int]] = {}
        self.timeouts_ms: list[int] = []
        self.waiting = threading.Event()
        self.shut_down_while_waiting = False
        self._in_wait = 0
        self._queue: deque[EventData | Code] = deque()
        self._changed = threading.Condition()
        self._sets = itertools.count(1)

    def push(self, *events: EventData | Code) -> None:
        """Have the next waits return these events, or fail with these codes."""
        with self._changed:
            self._queue.extend(events)
            self._changed.notify_all()

    def _check(self, call: str) -> None:
        self.calls[call] += 1
        if not self.initialised:
            raise NvmlError(Code.UNINITIALIZED, "Uninitialized")
        if call in self.failing:
            raise NvmlError(self.failing[call], call)

    def _gpu(self, call: str, device: Handle) -> FakeGpu:
        self._check(call)
        for gpu in self.gpus:
            if gpu.handle == device:
                if gpu.gone is not None:
                    raise NvmlError(gpu.gone, "gone")
                if call in gpu.failing:
                    raise NvmlError(gpu.failing[call], call)
                return gpu
        raise NvmlError(Code.INVALID_ARGUMENT, "no such handle")

    def _mig(self, call: str, device: Handle) -> FakeMig | None:
        self._check(call)
        return next((m for g in self.gpus for m in g.migs.values() if m.handle == device), None)

    def _the_mig(self, call: str, device: Handle) -> FakeMig:
        mig = self._mig(call, device)
        if mig is None:
            raise NvmlError(Code.INVALID_ARGUMENT, "no MIG device")
        return mig

    def init(self) -> None:
        if "init" in self.failing:
            raise NvmlError(self.failing["init"], "init")
        self.initialised += 1

    def shutdown(self) -> None:
        self._check("shutdown")
        self.shut_down_while_waiting |= self._in_wait > 0
        self.initialised -= 1

    def driver_version(self) -> str:
        self._check("driver_version")
        return self.version

    def cuda_version(self) -> int:
        self._check("cuda_version")
        return 13000

    def process_name(self, pid: int) -> str:
        self._check("process_name")
        if pid not in self.names:
            raise NvmlError(Code.NOT_FOUND, "no such process")
        return self.names[pid]

    def device_count(self) -> int:
        self._check("device_count")
        return len(self.gpus)

    def handle_by_index(self, index: int) -> Handle:
        self._check("handle_by_index")
        if index >= len(self.gpus):
            raise NvmlError(Code.INVALID_ARGUMENT, "no such index")
        return self._gpu("handle_by_index", self.gpus[index].handle).handle

    def uuid(self, device: Handle) -> str:
        mig = self._mig("uuid", device)
        return mig.uuid if mig else self._gpu("uuid", device).uuid

    def name(self, device: Handle) -> str:
        mig = self._mig("name", device)
        return mig.name if mig else self._gpu("name", device).name

    def minor(self, device: Handle) -> int:
        return self._gpu("minor", device).minor

    def pci_bus_id(self, device: Handle) -> str:
        return self._gpu("pci_bus_id", device).bus_id

    def memory(self, device: Handle) -> Memory:
        mig = self._mig("memory", device)
        return mig.memory if mig else self._gpu("memory", device).memory

    def compute_capability(self, device: Handle) -> tuple[int, int]:
        return self._gpu("compute_capability", device).compute_capability

    def compute_mode(self, device: Handle) -> int:
        mode = self._gpu("compute_mode", device).compute_mode
        if mode is None:
            raise NvmlError(Code.FUNCTION_NOT_FOUND, "compute_mode")
        return mode

    def mig_mode(self, device: Handle) -> bool:
        return self._gpu("mig_mode", device).mig_mode

    def max_mig_devices(self, device: Handle) -> int:
        self._gpu("max_mig_devices", device)
        return 7

    def mig_handle(self, device: Handle, index: int) -> Handle:
        migs = self._gpu("mig_handle", device).migs
        if index not in migs:
            raise NvmlError(Code.NOT_FOUND, "no MIG device here")
        return migs[index].handle

    def gpu_instance(self, mig: Handle) -> int:
        return self._the_mig("gpu_instance", mig).gpu_instance

    def compute_instance(self, mig: Handle) -> int:
        return self._the_mig("compute_instance", mig).compute_instance

    def mig_attributes(self, mig: Handle) -> MigAttributes:
        attributes = self._the_mig("mig_attributes", mig).attributes
        if attributes is None:
            raise NvmlError(Code.FUNCTION_NOT_FOUND, "mig_attributes")
        return attributes

    def event_set_create(self) -> EventSet:
        self._check("event_set_create")
        events = EventSet(next(self._sets))
        self.open_sets.add(events)
        self.registered[events] = {}
        return events

    def event_set_free(self, events: EventSet) -> None:
        self._check("event_set_free")
        self.open_sets.remove(events)

    def event_types(self, device: Handle) -> int:
        return self._gpu("event_types", device).event_types

    def event_register(self, device: Handle, types: int, events: EventSet) -> None:
        gpu = self._gpu("event_register", device)
        if types & ~gpu.event_types:
            raise NvmlError(Code.NOT_SUPPORTED, "not one of the supported types")
        self.registered[events][device] = types

    def event_wait(self, events: EventSet, timeout_ms: int) -> EventData:
        self._check("event_wait")
        if events not in self.open_sets:
            raise NvmlError(Code.INVALID_ARGUMENT, "freed event set")
        self.timeouts_ms.append(timeout_ms)
        with self._changed:
            self._in_wait += 1
            self.waiting.set()
            self._changed.wait_for(lambda: bool(self._queue), timeout_ms / 1000)
            self._in_wait -= 1
            event = self._queue.popleft() if self._queue else Code.TIMEOUT
        if isinstance(event, Code):
            raise NvmlError(event, "event_wait")
        return event

    def field(self, device: Handle, field: Field) -> int:
        fields = self._gpu("field", device).fields
        if field not in fields:
            raise NvmlError(Code.NOT_SUPPORTED, "field")
        return fields[field]

    def remapped_rows(self, device: Handle) -> RemappedRows:
        return self._gpu("remapped_rows", device).rows

    def volatile_ecc(self, device: Handle, kind: EccKind) -> int:
        return self._gpu("volatile_ecc", device).ecc[kind]

    def fabric(self, device: Handle) -> FabricInfo:
        fabric = self._gpu("fabric", device).fabric
        if fabric is None:
            raise NvmlError(Code.NOT_SUPPORTED, "fabric")
        return fabric

    def is_confidential(self) -> bool:
        self._check("is_confidential")
        if self.confidential_ready is None:
            raise NvmlError(Code.NOT_SUPPORTED, "is_confidential")
        return True

    def is_confidential_ready(self) -> bool:
        self._check("is_confidential_ready")
        return bool(self.confidential_ready)

    def utilization_percent(self, device: Handle) -> int:
        return self._gpu("utilization_percent", device).utilization

    def temperature_c(self, device: Handle) -> int:
        return self._gpu("temperature_c", device).temperature

    def shutdown_temperature_c(self, device: Handle) -> int:
        limit = self._gpu("shutdown_temperature_c", device).shutdown_temperature
        if limit is None:
            raise NvmlError(Code.NOT_SUPPORTED, "shutdown_temperature_c")
        return limit

    def temperature_margin_c(self, device: Handle) -> int:
        margin = self._gpu("temperature_margin_c", device).temperature_margin
        if margin is None:
            raise NvmlError(Code.NOT_SUPPORTED, "temperature_margin_c")
        return margin

    def power_mw(self, device: Handle) -> int:
        return self._gpu("power_mw", device).power_mw

    def power_limit_mw(self, device: Handle) -> int:
        return self._gpu("power_limit_mw", device).power_limit_mw

    def energy_mj(self, device: Handle) -> int:
        return self._gpu("energy_mj", device).energy_mj

    def clock_mhz(self, device: Handle, clock: Clock) -> int:
        return self._gpu("clock_mhz", device).clocks[clock]

    def clock_reasons(self, device: Handle) -> int:
        return self._gpu("clock_reasons", device).clock_reasons

    def processes(self, device: Handle) -> list[Process]:
        return self._gpu("processes", device).processes

    def graphics_processes(self, device: Handle) -> list[Process]:
        return self._gpu("graphics_processes", device).graphics

    def process_samples(self, device: Handle) -> list[ProcessSample]:
        return self._gpu("process_samples", device).samples

    def topology(self, one: Handle, other: Handle) -> int:
        pair = frozenset({self._gpu("topology", one).uuid, self._gpu("topology", other).uuid})
        if pair not in self.topologies:
            raise NvmlError(Code.UNKNOWN, "topology")
        return self.topologies[pair]

    def nvlink_active(self, device: Handle, link: int) -> bool:
        return link in self._gpu("nvlink_active", device).nvlinks

    def nvlink_remote(self, device: Handle, link: int) -> str:
        return self._gpu("nvlink_remote", device).nvlinks[link]


def event(
    gpu: FakeGpu,
    kind: EventType,
    data: int = 0,
    gpu_instance: int = NO_INSTANCE,
    compute_instance: int = NO_INSTANCE,
) -> EventData:
    """An event of `gpu` for `FakeNvml.push`."""
    return EventData(gpu.handle, int(kind), data, gpu_instance, compute_instance)
