"""What a GPU says: every fact by name, with its unit and what reads it.

The names are those of `--query-gpu`, or `@name` for facts that only the reports show.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

import pynvml

from sim.smi.driver import MIB, Gpu, number, text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Read = Callable[[Gpu], "str | None"]

NOT_AVAILABLE: Final = "N/A"


@dataclass(frozen=True, slots=True)
class Field:
    """`read` returns the value without its unit; None: the GPU has none.

    `in_csv` is False where CSV leaves the unit out.
    """

    read: Read
    unit: str = ""
    in_csv: bool = True

    def shown(self, gpu: Gpu) -> str:
        """As the reports show it."""
        found = self.read(gpu)
        if found is None:
            return NOT_AVAILABLE
        return f"{found} {self.unit}".rstrip()


def no_value(_: Gpu) -> None:
    """A fact that no simulated GPU has."""


def _always(shown: str) -> Read:
    return lambda _: shown


def count(call: Callable[..., object], *arguments: object) -> Read:
    return lambda gpu: _text(gpu.number(call, *arguments))


def part(call: Callable[..., object], name: str | int, *arguments: object) -> Read:
    return lambda gpu: _text(gpu.part(call, name, *arguments))


def words(call: Callable[..., object], *choices: str) -> Read:
    return lambda gpu: _word(gpu.number(call), choices)


def words_of(call: Callable[..., object], index: int, *choices: str) -> Read:
    return lambda gpu: _word(gpu.part(call, index), choices)


def _word(found: int | None, choices: tuple[str | None, ...]) -> str | None:
    return choices[found] if found is not None and found < len(choices) else None


def _text(found: int | None) -> str | None:
    return None if found is None else str(found)


def _watts(read: Callable[[Gpu], int | None]) -> Read:
    return lambda gpu: None if (found := read(gpu)) is None else f"{found / 1000:.2f}"


def _mib(found: int | None) -> str | None:
    return None if found is None else str(round(found / MIB))


def _power(field: int, scope: int = 0) -> Field:
    return Field(_watts(lambda gpu: gpu.field(field, scope)), "W")


def _percent(call: Callable[..., object], name: str | int) -> Field:
    return Field(part(call, name), "%")


def _clock(call: Callable[..., object], *arguments: object) -> Field:
    return Field(count(call, *arguments), "MHz")


def _ecc(kind: int, counter: int, location: int | None) -> Field:
    if location is None:
        return Field(count(pynvml.nvmlDeviceGetTotalEccErrors, kind, counter))
    return Field(count(pynvml.nvmlDeviceGetMemoryErrorCounter, kind, counter, location))


def _reason(bit: int) -> Field:
    def read(gpu: Gpu) -> str | None:
        found = gpu.number(pynvml.nvmlDeviceGetCurrentClocksEventReasons)
        return None if found is None else ("Active" if found & bit else "Not Active")

    return Field(read)


def _hex(call: Callable[..., object]) -> Field:
    return Field(lambda gpu: None if (found := gpu.number(call)) is None else f"0x{found:016X}")


def _pci(name: str, width: int) -> Field:
    def read(gpu: Gpu) -> str | None:
        found = gpu.part(pynvml.nvmlDeviceGetPciInfo, name)
        return None if found is None else f"0x{found:0{width}X}"

    return Field(read)


def _capability(gpu: Gpu) -> str | None:
    found = gpu.value(pynvml.nvmlDeviceGetCudaComputeCapability)
    return f"{found[0]}.{found[1]}" if isinstance(found, list | tuple) else None


def _pages(cause: int) -> Read:
    def read(gpu: Gpu) -> str | None:
        found = gpu.value(pynvml.nvmlDeviceGetRetiredPages, cause)
        return str(len(found)) if isinstance(found, list | tuple) else None

    return read


def _threshold(field: int, kind: int | None) -> Callable[[Gpu], str | None]:
    """A margin of T.Limit by field, or a temperature by kind of threshold."""
    if kind is None:
        return lambda gpu: _text(gpu.field(field, signed=True))
    return count(pynvml.nvmlDeviceGetTemperatureThreshold, kind)


def _margin(gpu: Gpu) -> str | None:
    return _text(gpu.number(pynvml.nvmlDeviceGetMarginTemperature))


def _addressing(gpu: Gpu) -> str | None:
    return _word(gpu.number(pynvml.nvmlDeviceGetAddressingMode), ("None", "HMM", "ATS"))


def _product_of(gpu: Gpu) -> str | None:
    brands = {5: "GeForce", 14: "NVIDIA", 2: "Tesla", 1: "Quadro", 6: "Titan", 13: "NVIDIA RTX"}
    return brands.get(gpu.number(pynvml.nvmlDeviceGetBrand) or 0)


_ARCHITECTURES: Final = {
    6: "Turing",
    7: "Ampere",
    8: "Ada Lovelace",
    9: "Hopper",
    10: "Blackwell",
}


def _recovery(gpu: Gpu) -> str | None:
    actions = ("None", "Reset", "Reboot", "Drain P2P", "Drain and Reset")
    return _word(gpu.field(230), actions)


def _name(gpu: Gpu) -> str:
    return gpu.name


def _driver_version(_: Gpu) -> str | None:
    return text(pynvml.nvmlSystemGetDriverVersion)


def _timestamp(_: Gpu) -> str:
    return datetime.now().astimezone().strftime("%Y/%m/%d %H:%M:%S.%f")[:-3]


_ON: Final = ("Disabled", "Enabled")
_YES: Final = ("No", "Yes")
COMPUTE_MODES: Final = ("Default", "Exclusive_Thread", "Prohibited", "Exclusive_Process")
REASONS: Final = {
    "gpu_idle": 0x1,
    "applications_clocks_setting": 0x2,
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
    "sw_thermal_slowdown": 0x20,
    "sync_boost": 0x10,
    "display_clocks_setting": 0x100,
}
_CLOCKS: Final = {"graphics": 0, "sm": 1, "memory": 2, "video": 3}
_LOCATIONS: Final = {
    "l1_cache": 0,
    "l2_cache": 1,
    "device_memory": 2,
    "register_file": 3,
    "texture_memory": 4,
    "sram": 7,
    "dram": 2,
    "total": None,
}


def _identity() -> Iterator[tuple[str, Field]]:
    yield "timestamp", Field(_timestamp)
    yield "driver_version", Field(_driver_version)
    yield "count", Field(lambda _: _text(number(pynvml.nvmlDeviceGetCount)))
    yield "name", Field(_name)
    yield "serial", Field(lambda gpu: gpu.text(pynvml.nvmlDeviceGetSerial))
    yield "uuid", Field(lambda gpu: gpu.uuid)
    yield "index", Field(lambda gpu: str(gpu.index))
    yield "compute_cap", Field(_capability)
    yield "vbios_version", Field(lambda gpu: gpu.text(pynvml.nvmlDeviceGetVbiosVersion))
    yield "@gsp", Field(lambda gpu: gpu.text(pynvml.nvmlDeviceGetGspFirmwareVersion))
    yield "@part_number", Field(lambda gpu: gpu.text(pynvml.nvmlDeviceGetBoardPartNumber))
    yield "@minor", Field(count(pynvml.nvmlDeviceGetMinorNumber))
    yield "@brand", Field(_product_of)
    yield (
        "@architecture",
        Field(lambda gpu: _ARCHITECTURES.get(gpu.number(pynvml.nvmlDeviceGetArchitecture) or 0)),
    )
    yield "@multi_gpu", Field(words(pynvml.nvmlDeviceGetMultiGpuBoard, *_YES))
    yield (
        "@board_id",
        Field(
            lambda gpu: (
                None if (one := gpu.number(pynvml.nvmlDeviceGetBoardId)) is None else f"0x{one:x}"
            )
        ),
    )
    yield "pci.bus_id", Field(lambda gpu: gpu.bus_id)
    yield "pci.domain", _pci("domain", 4)
    yield "pci.bus", _pci("bus", 2)
    yield "pci.device", _pci("device", 2)
    yield "pci.device_id", _pci("pciDeviceId", 8)
    yield "pci.sub_device_id", _pci("pciSubSystemId", 8)


def _modes() -> Iterator[tuple[str, Field]]:
    yield "display_mode", Field(words(pynvml.nvmlDeviceGetDisplayMode, *_ON))
    yield "display_attached", Field(lambda _: "Yes")
    yield "display_active", Field(words(pynvml.nvmlDeviceGetDisplayActive, *_ON))
    yield "persistence_mode", Field(words(pynvml.nvmlDeviceGetPersistenceMode, *_ON))
    yield "addressing_mode", Field(_addressing)
    yield "accounting.mode", Field(words(pynvml.nvmlDeviceGetAccountingMode, *_ON))
    yield "accounting.buffer_size", Field(count(pynvml.nvmlDeviceGetAccountingBufferSize))
    yield "compute_mode", Field(words(pynvml.nvmlDeviceGetComputeMode, *COMPUTE_MODES))
    yield "mig.mode.current", Field(words_of(pynvml.nvmlDeviceGetMigMode, 0, *_ON))
    yield "mig.mode.pending", Field(words_of(pynvml.nvmlDeviceGetMigMode, 1, *_ON))
    yield "ecc.mode.current", Field(words_of(pynvml.nvmlDeviceGetEccMode, 0, *_ON))
    yield "ecc.mode.pending", Field(words_of(pynvml.nvmlDeviceGetEccMode, 1, *_ON))
    virtual = ("None", "Pass-Through", "VGPU", "Host VGPU", "Host VSGA")
    yield "@virtualization", Field(words(pynvml.nvmlDeviceGetVirtualizationMode, *virtual))
    yield "@recovery", Field(_recovery)
    for name in (
        *("driver_model.current", "driver_model.pending", "gom.current", "gom.pending"),
        *("inforom.img", "inforom.oem", "inforom.ecc", "inforom.pwr", "fan.speed"),
        *("gsp.mode.current", "gsp.mode.default", "temperature.memory"),
    ):
        yield name, Field(no_value, "%" if name == "fan.speed" else "")


def _links() -> Iterator[tuple[str, Field]]:
    current, most = (
        pynvml.nvmlDeviceGetCurrPcieLinkGeneration,
        pynvml.nvmlDeviceGetMaxPcieLinkGeneration,
    )
    yield "pcie.link.gen.current", Field(count(current))
    yield "pcie.link.gen.gpucurrent", Field(count(current))
    yield "pcie.link.gen.max", Field(count(most))
    yield "pcie.link.gen.gpumax", Field(count(pynvml.nvmlDeviceGetGpuMaxPcieLinkGeneration))
    yield "pcie.link.gen.hostmax", Field(no_value)
    yield "pcie.link.width.current", Field(count(pynvml.nvmlDeviceGetCurrPcieLinkWidth))
    yield "pcie.link.width.max", Field(count(pynvml.nvmlDeviceGetMaxPcieLinkWidth))
    yield "@replays", Field(count(pynvml.nvmlDeviceGetPcieReplayCounter))
    for name, counter in (("@tx", 0), ("@rx", 1)):
        yield name, Field(count(pynvml.nvmlDeviceGetPcieThroughput, counter), "KB/s")
    yield "fabric.state", Field(_fabric_state)
    yield "fabric.status", Field(_fabric_status)


def _fabric(gpu: Gpu) -> pynvml.c_nvmlGpuFabricInfoV_t | None:
    info = pynvml.c_nvmlGpuFabricInfoV_t()
    answered = gpu.value(pynvml.nvmlDeviceGetGpuFabricInfoV, ctypes.byref(info)) is not None
    return info if answered else None


def _fabric_state(gpu: Gpu) -> str | None:
    info = _fabric(gpu)
    return (
        None
        if info is None
        else _word(info.state, (None, "Not Started", "In Progress", "Completed"))
    )


def _fabric_status(gpu: Gpu) -> str | None:
    info = _fabric(gpu)
    if info is None or info.state != pynvml.NVML_GPU_FABRIC_STATE_COMPLETED:
        return None
    return str(pynvml.nvmlErrorString(info.status))


def _load() -> Iterator[tuple[str, Field]]:
    yield "pstate", Field(_pstate)
    for name in ("total", "reserved", "used", "free"):
        yield f"memory.{name}", Field(lambda gpu, name=name: _mib(gpu.memory(name)), "MiB")  # type: ignore[misc]
    for name, member in (("total", "bar1Total"), ("used", "bar1Used"), ("free", "bar1Free")):
        yield (
            f"@bar1.{name}",
            Field(
                lambda gpu, member=member: _mib(  # type: ignore[misc]
                    gpu.part(pynvml.nvmlDeviceGetBAR1MemoryInfo, member)
                ),
                "MiB",
            ),
        )
    yield "utilization.gpu", _percent(pynvml.nvmlDeviceGetUtilizationRates, "gpu")
    yield "utilization.memory", _percent(pynvml.nvmlDeviceGetUtilizationRates, "memory")
    yield "utilization.encoder", _percent(pynvml.nvmlDeviceGetEncoderUtilization, 0)
    yield "utilization.decoder", _percent(pynvml.nvmlDeviceGetDecoderUtilization, 0)
    yield "utilization.jpeg", _percent(pynvml.nvmlDeviceGetJpgUtilization, 0)
    yield "utilization.ofa", _percent(pynvml.nvmlDeviceGetOfaUtilization, 0)
    for name in ("sessionCount", "averageFps", "averageLatency"):
        yield f"encoder.stats.{name}", Field(no_value)


def _pstate(gpu: Gpu) -> str | None:
    found = gpu.number(pynvml.nvmlDeviceGetPerformanceState)
    return None if found is None else f"P{found}"


def _board() -> Iterator[tuple[str, Field]]:
    yield (
        "temperature.gpu",
        Field(
            count(pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU), "C", in_csv=False
        ),
    )
    yield "temperature.gpu.tlimit", Field(_margin, "C", in_csv=False)
    for name, field, kind in (("shutdown", 193, 0), ("slowdown", 194, 1), ("max", 196, 3)):
        yield f"@tlimit.{name}", Field(_threshold(field, None), "C")
        yield f"@threshold.{name}", Field(_threshold(field, kind), "C")
    yield "power.management", Field(words(pynvml.nvmlDeviceGetPowerManagementMode, *_ON))
    yield "power.draw", Field(_watts(lambda gpu: gpu.number(pynvml.nvmlDeviceGetPowerUsage)), "W")
    yield "power.draw.average", _power(185)
    yield "power.draw.instant", _power(186)
    yield "power.min_limit", _power(187)
    yield "power.max_limit", _power(188)
    yield "power.default_limit", _power(189)
    yield "power.limit", _power(190)
    yield "enforced.power.limit", _power(190)
    yield "@power.requested", _power(192)
    yield "@power.memory.average", _power(185, 2)
    yield "@power.memory.instant", _power(186, 2)
    for name, field in (
        *(("average", 185), ("instant", 186), ("current", 190), ("requested", 192)),
        *(("default", 189), ("min", 187), ("max", 188)),
    ):
        yield f"@power.module.{name}", _power(field, 1)


def _clocks() -> Iterator[tuple[str, Field]]:
    for name, kind in _CLOCKS.items():
        yield f"clocks.current.{name}", _clock(pynvml.nvmlDeviceGetClockInfo, kind)
        yield f"clocks.max.{name}", _clock(pynvml.nvmlDeviceGetMaxClockInfo, kind)
        if name in ("graphics", "memory"):
            yield f"clocks.applications.{name}", _clock(pynvml.nvmlDeviceGetApplicationsClock, kind)
            yield (
                f"clocks.default_applications.{name}",
                _clock(pynvml.nvmlDeviceGetDefaultApplicationsClock, kind),
            )
    yield "@clocks.boost", _clock(pynvml.nvmlDeviceGetMaxCustomerBoostClock, 0)
    yield (
        "clocks_event_reasons.supported",
        _hex(pynvml.nvmlDeviceGetSupportedClocksEventReasons),
    )
    yield "clocks_event_reasons.active", _hex(pynvml.nvmlDeviceGetCurrentClocksEventReasons)
    for name, bit in REASONS.items():
        yield f"clocks_event_reasons.{name}", _reason(bit)


def _errors() -> Iterator[tuple[str, Field]]:
    for kind, corrected in enumerate(("corrected", "uncorrected")):
        for counter, lasting in enumerate(("volatile", "aggregate")):
            for name, location in _LOCATIONS.items():
                yield f"ecc.errors.{corrected}.{lasting}.{name}", _ecc(kind, counter, location)
    yield "retired_pages.single_bit_ecc.count", Field(_pages(0))
    yield "retired_pages.double_bit.count", Field(_pages(1))
    yield (
        "retired_pages.pending",
        Field(words(pynvml.nvmlDeviceGetRetiredPagesPendingStatus, *_YES)),
    )
    rows = pynvml.nvmlDeviceGetRemappedRows
    yield "remapped_rows.correctable", Field(part(rows, 0))
    yield "remapped_rows.uncorrectable", Field(part(rows, 1))
    yield "remapped_rows.pending", Field(words_of(rows, 2, *_YES))
    yield "remapped_rows.failure", Field(words_of(rows, 3, *_YES))
    for name in ("max", "high", "partial", "low", "none"):
        yield (
            f"remapped_rows.histogram.{name}",
            Field(part(pynvml.nvmlDeviceGetRowRemapperHistogram, name), "bank(s)", in_csv=False),
        )


FIELDS: Final[Mapping[str, Field]] = dict(
    field
    for group in (_identity, _modes, _links, _load, _board, _clocks, _errors)
    for field in group()
)

_SHORT: Final = {
    "gpu_name": "name",
    "gpu_serial": "serial",
    "gpu_uuid": "uuid",
    "gpu_bus_id": "pci.bus_id",
    "inforom.image": "inforom.img",
    "inforom.power": "inforom.pwr",
    "retired_pages.sbe": "retired_pages.single_bit_ecc.count",
    "retired_pages.dbe": "retired_pages.double_bit.count",
}


@functools.cache
def queried(name: str) -> Field | None:
    """The field of a name of `--query-gpu`, which may be one of its other spellings."""
    if name.startswith("@"):
        return None
    plain = _SHORT.get(name, name).replace("clocks_throttle_reasons.", "clocks_event_reasons.")
    for short, long in ((".gr", ".graphics"), (".mem", ".memory")):
        if plain.startswith("clocks.") and plain.endswith(short):
            plain = plain.removesuffix(short) + long
    if plain.startswith("clocks.") and plain.removeprefix("clocks.") in _CLOCKS:
        plain = plain.replace("clocks.", "clocks.current.")
    return FIELDS.get(plain)
