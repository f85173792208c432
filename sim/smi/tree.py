"""Everything that a GPU says, in the order of `-q`: one tree for text and XML.

A group or item has the label of the text and the element of the XML. Elements are those of
`nvsmi_device_v13.dtd`, labels those of drivers from 575 on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sim.smi.fields import FIELDS, NOT_AVAILABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim.smi.driver import Gpu


@dataclass(frozen=True, slots=True)
class Item:
    """A value: that of a field, or a constant."""

    label: str
    element: str
    read: Callable[[Gpu], str]


@dataclass(frozen=True, slots=True)
class Group:
    """Items under a heading; `shown` tells whether the GPU has it at all."""

    label: str
    element: str
    nodes: tuple[Item | Group, ...]
    shown: Callable[[Gpu], bool] = lambda _: True


def _item(label: str, element: str, field: str = "") -> Item:
    """A field of the table; without one, not available on simulated GPUs."""
    if not field:
        return Item(label, element, lambda _: NOT_AVAILABLE)
    return Item(label, element, FIELDS[field].shown)


def _constant(label: str, element: str, shown: str) -> Item:
    return Item(label, element, lambda _: shown)


def _bare(label: str, element: str, field: str) -> Item:
    """A number in hexadecimal without its `0x`."""
    return Item(label, element, lambda gpu: FIELDS[field].shown(gpu).removeprefix("0x"))


def _current_pending(label: str, element: str, of: str, field: str = "") -> Group:
    return Group(
        label,
        element,
        (
            _item("Current", f"current_{of}", field and f"{field}.current"),
            _item("Pending", f"pending_{of}", field and f"{field}.pending"),
        ),
    )


def _sessions(label: str, element: str) -> Group:
    return Group(
        label,
        element,
        (
            _constant("Active Sessions", "session_count", "0"),
            _constant("Average FPS", "average_fps", "0"),
            _constant("Average Latency", "average_latency", "0"),
        ),
    )


def _has_margins(gpu: Gpu) -> bool:
    return FIELDS["@tlimit.shutdown"].read(gpu) is not None


def _has_rows(gpu: Gpu) -> bool:
    return FIELDS["remapped_rows.pending"].read(gpu) is not None


def _without_rows(gpu: Gpu) -> bool:
    return not _has_rows(gpu)


def _since_ampere(gpu: Gpu) -> bool:
    return FIELDS["@architecture"].read(gpu) != "Turing"


def _ecc(lasting: str, *, turing: bool = False) -> tuple[Item, ...]:
    def errors(kind: str, location: str) -> str:
        return f"ecc.errors.{kind}.{lasting}.{location}"

    bad = errors("uncorrected", "sram")
    parities = (
        _item("SRAM Uncorrectable Parity", "sram_uncorrectable_parity", bad),
        _item("SRAM Uncorrectable SEC-DED", "sram_uncorrectable_secded", bad),
    )
    return (
        _item("SRAM Correctable", "sram_correctable", errors("corrected", "sram")),
        *((_item("SRAM Uncorrectable", "sram_uncorrectable", bad),) if turing else parities),
        _item("DRAM Correctable", "dram_correctable", errors("corrected", "dram")),
        _item("DRAM Uncorrectable", "dram_uncorrectable", errors("uncorrected", "dram")),
    )


def _power(field: str, *, limits: bool) -> tuple[Item, ...]:
    names = (
        ("Average Power Draw", "average_power_draw", "average"),
        ("Instantaneous Power Draw", "instant_power_draw", "instant"),
        ("Current Power Limit", "current_power_limit", "current"),
        ("Requested Power Limit", "requested_power_limit", "requested"),
        ("Default Power Limit", "default_power_limit", "default"),
        ("Min Power Limit", "min_power_limit", "min"),
        ("Max Power Limit", "max_power_limit", "max"),
    )
    return tuple(
        _item(label, element, f"{field}.{name}")
        for label, element, name in (names if limits else names[:2])
    )


_REASON_LABELS: Final = {
    "gpu_idle": "Idle",
    "applications_clocks_setting": "Applications Clocks Setting",
    "sw_power_cap": "SW Power Cap",
    "hw_slowdown": "HW Slowdown",
    "hw_thermal_slowdown": "HW Thermal Slowdown",
    "hw_power_brake_slowdown": "HW Power Brake Slowdown",
    "sync_boost": "Sync Boost",
    "sw_thermal_slowdown": "SW Thermal Slowdown",
    "display_clocks_setting": "Display Clock Setting",
}


def _clocks(label: str, element: str, field: str, *names: str) -> Group:
    labels = {
        "graphics": ("Graphics", "graphics_clock"),
        "sm": ("SM", "sm_clock"),
        "memory": ("Memory", "mem_clock"),
        "video": ("Video", "video_clock"),
    }
    return Group(
        label, element, tuple(_item(*labels[name], field and f"{field}.{name}") for name in names)
    )


PRODUCT: Final[tuple[Item | Group, ...]] = (
    _item("Product Name", "product_name", "name"),
    _item("Product Brand", "product_brand", "@brand"),
    _item("Product Architecture", "product_architecture", "@architecture"),
    _constant("Display Mode", "display_mode", "Requested functionality has been deprecated"),
    _constant("Display Attached", "display_attached", "Yes"),
    _item("Display Active", "display_active", "display_active"),
    _item("Persistence Mode", "persistence_mode", "persistence_mode"),
    _item("Addressing Mode", "addressing_mode", "addressing_mode"),
    _current_pending("MIG Mode", "mig_mode", "mig", "mig.mode"),
)
BOARD: Final[tuple[Item | Group, ...]] = (
    _item("Accounting Mode", "accounting_mode", "accounting.mode"),
    _item("Accounting Mode Buffer Size", "accounting_mode_buffer_size", "accounting.buffer_size"),
    _current_pending("Driver Model", "driver_model", "dm"),
    _item("Serial Number", "serial", "serial"),
    _item("GPU UUID", "uuid", "uuid"),
    _item("GPU PDI", "pdi"),
    _item("Minor Number", "minor_number", "@minor"),
    _item("VBIOS Version", "vbios_version", "vbios_version"),
    _item("MultiGPU Board", "multigpu_board", "@multi_gpu"),
    _item("Board ID", "board_id", "@board_id"),
    _item("Board Part Number", "board_part_number", "@part_number"),
    _item("GPU Part Number", "gpu_part_number"),
    _item("FRU Part Number", "gpu_fru_part_number"),
    Group(
        "Platform Info",
        "platformInfo",
        (
            _item("Chassis Serial Number", "chassis_serial_number"),
            _item("Slot Number", "slot_number"),
            _item("Tray Index", "tray_index"),
            _item("Host ID", "host_id"),
            _item("Peer Type", "peer_type"),
            _item("Module Id", "module_id"),
            _item("GPU Fabric GUID", "gpu_fabric_guid"),
        ),
    ),
    Group(
        "Inforom Version",
        "inforom_version",
        (
            _item("Image Version", "img_version"),
            _item("OEM Object", "oem_object"),
            _item("ECC Object", "ecc_object"),
            _item("Power Management Object", "pwr_object"),
        ),
    ),
    Group(
        "Inforom BBX Object Flush",
        "inforom_bbx_flush",
        (
            _item("Latest Timestamp", "latest_timestamp"),
            _item("Latest Duration", "latest_duration"),
        ),
    ),
    _current_pending("GPU Operation Mode", "gpu_operation_mode", "gom"),
    _item("GPU C2C Mode", "c2c_mode"),
    Group(
        "GPU Virtualization Mode",
        "gpu_virtualization_mode",
        (
            _item("Virtualization Mode", "virtualization_mode", "@virtualization"),
            _item("Host VGPU Mode", "host_vgpu_mode"),
            _item("vGPU Heterogeneous Mode", "vgpu_heterogeneous_mode"),
        ),
    ),
    _item("GPU Recovery Action", "gpu_recovery_action", "@recovery"),
    _item("GSP Firmware Version", "gsp_firmware_version", "@gsp"),
    Group("IBMNPU", "ibmnpu", (_item("Relaxed Ordering Mode", "relaxed_ordering_mode"),)),
    Group(
        "PCI",
        "pci",
        (
            _bare("Bus", "pci_bus", "pci.bus"),
            _bare("Device", "pci_device", "pci.device"),
            _bare("Domain", "pci_domain", "pci.domain"),
            _constant("Base Classcode", "pci_base_class", "3"),
            _constant("Sub Classcode", "pci_sub_class", "2"),
            _bare("Device Id", "pci_device_id", "pci.device_id"),
            _item("Bus Id", "pci_bus_id", "pci.bus_id"),
            _bare("Sub System Id", "pci_sub_system_id", "pci.sub_device_id"),
            Group(
                "GPU Link Info",
                "pci_gpu_link_info",
                (
                    Group(
                        "PCIe Generation",
                        "pcie_gen",
                        (
                            _item("Max", "max_link_gen", "pcie.link.gen.max"),
                            _item("Current", "current_link_gen", "pcie.link.gen.current"),
                            _item(
                                "Device Current",
                                "device_current_link_gen",
                                "pcie.link.gen.gpucurrent",
                            ),
                            _item("Device Max", "max_device_link_gen", "pcie.link.gen.gpumax"),
                            _item("Host Max", "max_host_link_gen", "pcie.link.gen.hostmax"),
                        ),
                    ),
                    Group(
                        "Link Width",
                        "link_widths",
                        (
                            Item("Max", "max_link_width", lambda gpu: _width(gpu, "max")),
                            Item(
                                "Current", "current_link_width", lambda gpu: _width(gpu, "current")
                            ),
                        ),
                    ),
                ),
            ),
            Group(
                "Bridge Chip",
                "pci_bridge_chip",
                (_item("Type", "bridge_chip_type"), _item("Firmware", "bridge_chip_fw")),
            ),
            _item("Replays Since Reset", "replay_counter", "@replays"),
            _constant("Replay Number Rollovers", "replay_rollover_counter", "0"),
            _item("Tx Throughput", "tx_util", "@tx"),
            _item("Rx Throughput", "rx_util", "@rx"),
            _item("Atomic Caps Outbound", "atomic_caps_outbound"),
            _item("Atomic Caps Inbound", "atomic_caps_inbound"),
        ),
    ),
    _item("Fan Speed", "fan_speed", "fan.speed"),
    _item("Performance State", "performance_state", "pstate"),
    Group(
        "Clocks Event Reasons",
        "clocks_event_reasons",
        tuple(
            _item(label, f"clocks_event_reason_{name}", f"clocks_event_reasons.{name}")
            for name, label in _REASON_LABELS.items()
        ),
    ),
    Group(
        "Clocks Event Reasons Counters",
        "clocks_event_reasons_counters",
        (
            _item("SW Power Capping", "clocks_event_reasons_counters_sw_power_cap"),
            _item("Sync Boost", "clocks_event_reasons_counters_sync_boost"),
            _item("SW Thermal Slowdown", "clocks_event_reasons_counters_sw_therm_slowdown"),
            _item("HW Thermal Slowdown", "clocks_event_reasons_counters_hw_therm_slowdown"),
            _item("HW Power Braking", "clocks_event_reasons_counters_hw_power_brake"),
        ),
    ),
    _item("Sparse Operation Mode", "sparse_operation_mode"),
)


def _width(gpu: Gpu, name: str) -> str:
    return f"{FIELDS[f'pcie.link.width.{name}'].shown(gpu)}x"


_MEMORY: Final[tuple[Item | Group, ...]] = (
    Group(
        "FB Memory Usage",
        "fb_memory_usage",
        tuple(
            _item(name.capitalize(), name, f"memory.{name}")
            for name in ("total", "reserved", "used", "free")
        ),
    ),
    Group(
        "BAR1 Memory Usage",
        "bar1_memory_usage",
        tuple(
            _item(name.capitalize(), name, f"@bar1.{name}") for name in ("total", "used", "free")
        ),
    ),
    Group(
        "Conf Compute Protected Memory Usage",
        "cc_protected_memory_usage",
        tuple(_constant(name.capitalize(), name, "0 MiB") for name in ("total", "used", "free")),
    ),
)
_LOAD: Final[tuple[Item | Group, ...]] = (
    _item("Compute Mode", "compute_mode", "compute_mode"),
    Group(
        "Utilization",
        "utilization",
        (
            _item("GPU", "gpu_util", "utilization.gpu"),
            _item("Memory", "memory_util", "utilization.memory"),
            _item("Encoder", "encoder_util", "utilization.encoder"),
            _item("Decoder", "decoder_util", "utilization.decoder"),
            _item("JPEG", "jpeg_util", "utilization.jpeg"),
            _item("OFA", "ofa_util", "utilization.ofa"),
        ),
    ),
    _sessions("Encoder Stats", "encoder_stats"),
    _sessions("FBC Stats", "fbc_stats"),
    _current_pending("DRAM Encryption Mode", "dram_encryption_mode", "dram_encryption"),
)
_ERRORS: Final[tuple[Item | Group, ...]] = (
    _current_pending("ECC Mode", "ecc_mode", "ecc", "ecc.mode"),
    Group(
        "ECC Errors",
        "ecc_errors",
        (
            Group("Volatile", "volatile", _ecc("volatile")),
            Group(
                "Aggregate",
                "aggregate",
                (*_ecc("aggregate"), _item("SRAM Threshold Exceeded", "sram_threshold_exceeded")),
            ),
            Group(
                "Aggregate Uncorrectable SRAM Sources",
                "aggregate_uncorrectable_sram_sources",
                (
                    _item("SRAM L2", "sram_l2"),
                    _item("SRAM SM", "sram_sm"),
                    _item("SRAM Microcontroller", "sram_microcontroller"),
                    _item("SRAM PCIE", "sram_pcie"),
                    _item("SRAM Other", "sram_other"),
                ),
            ),
            _item("Channel Repair Pending", "channel_repair_pending"),
            _item("TPC Repair Pending", "tpc_repair_pending"),
        ),
        _since_ampere,
    ),
    Group(
        "ECC Errors",
        "ecc_errors",
        (
            Group("Volatile", "volatile", _ecc("volatile", turing=True)),
            Group("Aggregate", "aggregate", _ecc("aggregate", turing=True)),
        ),
        lambda gpu: not _since_ampere(gpu),
    ),
    Group(
        "Retired Pages",
        "retired_pages",
        (
            Group(
                "Single Bit ECC",
                "multiple_single_bit_retirement",
                (
                    _item("Count", "retired_count", "retired_pages.single_bit_ecc.count"),
                    _item("List", "retired_pagelist"),
                ),
            ),
            Group(
                "Double Bit ECC",
                "double_bit_retirement",
                (
                    _item("Count", "retired_count", "retired_pages.double_bit.count"),
                    _item("List", "retired_pagelist"),
                ),
            ),
            _item("Pending Page Blacklist", "pending_blacklist", "retired_pages.pending"),
            _item("Pending Retirement", "pending_retirement", "retired_pages.pending"),
        ),
    ),
    Group("Remapped Rows", "remapped_rows", (), _without_rows),
    Group(
        "Remapped Rows",
        "remapped_rows",
        (
            _item("Correctable Error", "remapped_row_corr", "remapped_rows.correctable"),
            _item("Uncorrectable Error", "remapped_row_unc", "remapped_rows.uncorrectable"),
            _item("Pending", "remapped_row_pending", "remapped_rows.pending"),
            _item("Remapping Failure Occurred", "remapped_row_failure", "remapped_rows.failure"),
            Group(
                "Bank Remap Availability Histogram",
                "row_remapper_histogram",
                tuple(
                    _item(
                        name.capitalize(),
                        f"row_remapper_histogram_{name}",
                        f"remapped_rows.histogram.{name}",
                    )
                    for name in ("max", "high", "partial", "low", "none")
                ),
            ),
        ),
        _has_rows,
    ),
)
_HEAT: Final[tuple[Item | Group, ...]] = (
    Group(
        "Temperature",
        "temperature",
        (
            _item("GPU Current Temp", "gpu_temp", "temperature.gpu"),
            _item("GPU T.Limit Temp", "gpu_temp_tlimit", "temperature.gpu.tlimit"),
            _item("GPU Shutdown T.Limit Temp", "gpu_temp_max_tlimit_threshold", "@tlimit.shutdown"),
            _item(
                "GPU Slowdown T.Limit Temp", "gpu_temp_slow_tlimit_threshold", "@tlimit.slowdown"
            ),
            _item(
                "GPU Max Operating T.Limit Temp", "gpu_temp_max_gpu_tlimit_threshold", "@tlimit.max"
            ),
            _item("GPU Target Temperature", "gpu_target_temperature"),
            _item("Memory Current Temp", "memory_temp"),
            _item("Memory Max Operating T.Limit Temp", "gpu_temp_max_mem_tlimit_threshold"),
        ),
        _has_margins,
    ),
    Group(
        "Temperature",
        "temperature",
        (
            _item("GPU Current Temp", "gpu_temp", "temperature.gpu"),
            _item("GPU T.Limit Temp", "gpu_temp_tlimit"),
            _item("GPU Shutdown Temp", "gpu_temp_max_threshold", "@threshold.shutdown"),
            _item("GPU Slowdown Temp", "gpu_temp_slow_threshold", "@threshold.slowdown"),
            _item("GPU Max Operating Temp", "gpu_temp_max_gpu_threshold", "@threshold.max"),
            _item("GPU Target Temperature", "gpu_target_temperature"),
            _item("Memory Current Temp", "memory_temp"),
            _item("Memory Max Operating Temp", "gpu_temp_max_mem_threshold"),
        ),
        lambda gpu: not _has_margins(gpu),
    ),
    Group(
        "Supported GPU Target Temp",
        "supported_gpu_target_temp",
        (
            _item("GPU Target Temp Min", "gpu_target_temp_min"),
            _item("GPU Target Temp Max", "gpu_target_temp_max"),
        ),
    ),
)
_POWER: Final[tuple[Item | Group, ...]] = (
    Group(
        "GPU Power Readings",
        "gpu_power_readings",
        (
            _item("Power State", "power_state", "pstate"),
            _item("Average Power Draw", "average_power_draw", "power.draw.average"),
            _item("Instantaneous Power Draw", "instant_power_draw", "power.draw.instant"),
            _item("Current Power Limit", "current_power_limit", "power.limit"),
            _item("Requested Power Limit", "requested_power_limit", "@power.requested"),
            _item("Default Power Limit", "default_power_limit", "power.default_limit"),
            _item("Min Power Limit", "min_power_limit", "power.min_limit"),
            _item("Max Power Limit", "max_power_limit", "power.max_limit"),
        ),
    ),
    Group(
        "GPU Memory Power Readings",
        "gpu_memory_power_readings",
        _power("@power.memory", limits=False),
    ),
    Group(
        "Module Power Readings",
        "module_power_readings",
        (
            _item("Power State", "power_state", "pstate"),
            *_power("@power.module", limits=True),
        ),
    ),
    _item("Power Smoothing", "power_smoothing"),
    Group(
        "Workload Power Profiles",
        "power_profiles",
        (
            _item("Requested Profiles", "power_profile_requested_profiles"),
            _item("Enforced Profiles", "power_profile_enforced_profiles"),
        ),
    ),
)
_CLOCKS: Final[tuple[Item | Group, ...]] = (
    _clocks("Clocks", "clocks", "clocks.current", "graphics", "sm", "memory", "video"),
    _clocks(
        "Applications Clocks",
        "applications_clocks",
        "clocks.applications",
        *("graphics", "memory"),
    ),
    _clocks(
        "Default Applications Clocks",
        "default_applications_clocks",
        "clocks.default_applications",
        *("graphics", "memory"),
    ),
    _clocks("Deferred Clocks", "deferred_clocks", "", "memory"),
    _clocks("Max Clocks", "max_clocks", "clocks.max", "graphics", "sm", "memory", "video"),
    Group(
        "Max Customer Boost Clocks",
        "max_customer_boost_clocks",
        (_item("Graphics", "graphics_clock", "@clocks.boost"),),
    ),
    Group(
        "Clock Policy",
        "clock_policy",
        (_item("Auto Boost", "auto_boost"), _item("Auto Boost Default", "auto_boost_default")),
    ),
    Group(
        "Fabric",
        "fabric",
        (
            _item("State", "state", "fabric.state"),
            _item("Status", "status", "fabric.status"),
            _item("CliqueId", "cliqueId"),
            _item("ClusterUUID", "clusterUuid"),
            Group(
                "Health",
                "health",
                (
                    _item("Summary", "summary"),
                    _item("Bandwidth", "bandwidth"),
                    _item("Route Recovery in progress", "route_recovery_in_progress"),
                    _item("Route Unhealthy", "route_unhealthy"),
                    _item("Access Timeout Recovery", "access_timeout_recovery"),
                    _item("Incorrect Configuration", "incorrect_configuration"),
                ),
            ),
        ),
    ),
)

TREE: Final = (*_MEMORY, *_LOAD, *_ERRORS, *_HEAT, *_POWER, *_CLOCKS)

SECTIONS: Final = {
    "MEMORY": _MEMORY,
    "UTILIZATION": _LOAD[1:4],
    "ECC": _ERRORS[:2],
    "PAGE_RETIREMENT": _ERRORS[2:3],
    "ROW_REMAPPER": _ERRORS[3:],
    "TEMPERATURE": _HEAT,
    "POWER": _POWER,
    "CLOCK": _CLOCKS[:-1],
    "COMPUTE": _LOAD[:1],
    "PERFORMANCE": BOARD[-4:-1],
    "FABRIC": _CLOCKS[-1:],
    "MIG": PRODUCT[-1:],
}
"""What `-d` leaves."""
