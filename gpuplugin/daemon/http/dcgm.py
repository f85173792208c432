"""The common series of dcgm-exporter, under its names, labels and units, for what is built on them.

dcgm-exporter knows one pod of a GPU. Here the use of a shared GPU, `DCGM_FI_DEV_GPU_UTIL` and
`DCGM_FI_DEV_FB_USED`, has a series for each pod and one without a pod for the rest: together they
are the GPU's. What belongs to the board, such as its power, has one series, or sums over GPUs would
count it once for each pod.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from gpuplugin.daemon.http.textformat import Family

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from gpuplugin.core.nodeview import NodeView
    from gpuplugin.core.usage import Reading, TenantUse, UnitUse
    from hal import Gpu, MigDevice, Probe, Telemetry

Labels: TypeAlias = "Mapping[str, str]"

_MIB = 1024**2


@dataclass(frozen=True, slots=True)
class Board:
    """What is known of a board at a scrape; `last_xid` is 0 if none came since the start."""

    telemetry: Telemetry
    probe: Probe | None
    last_xid: int


@dataclass(frozen=True, slots=True)
class Field:
    """A field of DCGM; `value` is in its unit, None where it is not known."""

    name: str
    text: str
    value: Callable[[Board], float | None]


def _of_telemetry(attribute: str, factor: float = 1.0) -> Callable[[Board], float | None]:
    def value(board: Board) -> float | None:
        found: float | None = getattr(board.telemetry, attribute)
        return None if found is None else found * factor

    return value


GPU_UTIL = Field(
    "DCGM_FI_DEV_GPU_UTIL", "GPU utilization (in %).", _of_telemetry("utilization", 100)
)
FB_USED = Field(
    "DCGM_FI_DEV_FB_USED",
    "Used memory (in MiB), including the driver's own.",
    _of_telemetry("memory_used_bytes", 1 / _MIB),
)
FB_FREE = Field(
    "DCGM_FI_DEV_FB_FREE", "Free memory (in MiB).", _of_telemetry("memory_free_bytes", 1 / _MIB)
)
OF_PODS = (GPU_UTIL, FB_USED)
OF_BOARDS = (
    FB_FREE,
    Field(
        "DCGM_FI_DEV_FB_TOTAL", "Memory (in MiB).", _of_telemetry("memory_total_bytes", 1 / _MIB)
    ),
    Field(
        "DCGM_FI_DEV_SM_CLOCK", "Clock of the SMs (in MHz).", _of_telemetry("sm_clock_mhz")
    ),
    Field(
        "DCGM_FI_DEV_MEM_CLOCK", "Clock of the memory (in MHz).", _of_telemetry("memory_clock_mhz")
    ),
    Field("DCGM_FI_DEV_GPU_TEMP", "Temperature (in C).", _of_telemetry("temperature_c")),
    Field("DCGM_FI_DEV_POWER_USAGE", "Power draw (in W).", _of_telemetry("power_w")),
    Field(
        "DCGM_FI_DEV_POWER_MGMT_LIMIT", "Power limit (in W).", _of_telemetry("power_limit_w")
    ),
    Field(
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
        "Energy since the driver was loaded (in mJ).",
        _of_telemetry("energy_j", 1000),
    ),
    Field(
        "DCGM_FI_DEV_XID_ERRORS",
        "The last Xid since the start of the plugin, 0 for none.",
        lambda board: board.last_xid,
    ),
    Field(
        "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL",
        "Corrected ECC errors since the driver was loaded.",
        _of_telemetry("corrected_ecc"),
    ),
    Field(
        "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL",
        "Uncorrectable ECC errors since the driver was loaded.",
        _of_telemetry("uncorrectable_ecc"),
    ),
    Field(
        "DCGM_FI_DEV_ROW_REMAP_FAILURE",
        "1 if a row remapping has failed.",
        lambda board: None if board.probe is None else board.probe.row_remap_failed,
    ),
    Field(
        "DCGM_FI_DEV_ROW_REMAP_PENDING",
        "1 if a row remapping waits for a reset.",
        lambda board: None if board.probe is None else board.probe.row_remap_pending,
    ),
)  # fmt: skip


def dcgm_families(view: NodeView, hostname: str, now_s: float) -> Iterator[Family]:
    """What the newest reading shows; nothing if it is too old."""
    reading = view.reading_at(now_s)
    if reading is None:
        return iter(())
    # No counters: OpenMetrics wants other names for these.
    found = {
        field.name: Family(field.name, field.text, "unknown") for field in (*OF_PODS, *OF_BOARDS)
    }
    for gpu in reading.gpus:
        telemetry = reading.telemetry.get(gpu.uuid)
        if telemetry is None:
            continue
        labels = _labels(gpu, reading, hostname)
        probe, xids = view.probes.get(gpu.uuid), view.xids.get(gpu.uuid, ())
        board = Board(
            telemetry, probe if probe and probe.reachable else None, xids[0].code if xids else 0
        )
        tenants = _tenants_of(reading, [gpu.uuid])
        alone = _pod(tenants[0]) if len(tenants) == 1 else {}
        for field in OF_BOARDS:
            _add(found[field.name], labels | alone, field.value(board))
        for field, shares in zip(OF_PODS, (_busy(tenants), _memory(tenants)), strict=True):
            _add_split(found[field.name], labels, field.value(board), tenants, shares)
        for mig in gpu.mig_devices:
            _add_mig(found, labels, mig, reading)
    return (family for family in found.values() if family.samples)


def _labels(gpu: Gpu, reading: Reading, hostname: str) -> dict[str, str]:
    return {
        "gpu": str(gpu.index),
        "UUID": gpu.uuid,
        "pci_bus_id": gpu.pci_bus_id,
        "device": "" if gpu.minor is None else f"nvidia{gpu.minor}",
        "modelName": gpu.product,
        "Hostname": hostname,
        "DCGM_FI_DRIVER_VERSION": reading.driver,
    }


def _pod(tenant: TenantUse) -> dict[str, str]:
    if tenant.pod is None:
        return {}
    return {
        "namespace": tenant.pod.namespace,
        "pod": tenant.pod.name,
        "container": tenant.container,
    }


def _tenants_of(reading: Reading, uuids: Sequence[str]) -> list[TenantUse]:
    return [one for one in reading.usage.tenants if one.uuid in uuids and one.pod is not None]


def _busy(tenants: Iterable[TenantUse]) -> list[float | None]:
    return [None if one.sm_share is None else 100 * one.sm_share for one in tenants]


def _memory(tenants: Iterable[TenantUse]) -> list[float | None]:
    return [None if one.memory_bytes is None else one.memory_bytes / _MIB for one in tenants]


def _add(family: Family, labels: Labels, value: float | None) -> None:
    if value is not None:
        family.samples.append((family.name, labels, value))


def _add_split(
    family: Family,
    labels: Labels,
    whole: float | None,
    tenants: Sequence[TenantUse],
    shares: Sequence[float | None],
) -> None:
    """The share of each pod, and the rest without a pod; all of it for a pod that is alone."""
    if len(tenants) == 1 and whole is not None:
        _add(family, {**labels, **_pod(tenants[0])}, whole)
        return
    for tenant, share in zip(tenants, shares, strict=True):
        _add(family, {**labels, **_pod(tenant)}, share)
    if whole is not None:
        _add(family, labels, max(0.0, whole - sum(share or 0.0 for share in shares)))


def _add_mig(found: Mapping[str, Family], labels: Labels, mig: MigDevice, reading: Reading) -> None:
    """Memory of a MIG device; a driver tells nothing else of one."""
    unit = next((one for one in reading.usage.units if one.uuid == mig.uuid), None)
    if unit is None:
        return
    labels = {**labels, "GPU_I_PROFILE": mig.profile, "GPU_I_ID": str(mig.gpu_instance)}
    tenants = _tenants_of(reading, [mig.uuid])
    alone = _pod(tenants[0]) if len(tenants) == 1 else {}
    free_mib = None if unit.free_bytes is None else unit.free_bytes / _MIB
    _add(found[FB_FREE.name], {**labels, **alone}, free_mib)
    _add_split(found[FB_USED.name], labels, _used_mib(unit), tenants, _memory(tenants))


def _used_mib(unit: UnitUse) -> float | None:
    if unit.memory_bytes is None or unit.free_bytes is None:
        return None
    return (unit.memory_bytes - unit.free_bytes) / _MIB
