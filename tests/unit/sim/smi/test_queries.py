"""`--query-gpu`, `--query-compute-apps`, the table, `-L` and `topo -m`, as programs read them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.unit.sim.nvml.test_answers import H100, RTX3090, T4

if TYPE_CHECKING:
    from tests.unit.sim.smi.conftest import Smi

NUMBER, FLOAT = r"\d+", r"\d+\.\d\d"
GPU_FIELDS = {
    # name: (what the header adds to it, the value of an H100, its unit)
    "timestamp": ("", r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{3}", ""),
    "driver_version": ("", r"580\.105\.08", ""),
    "count": ("", "5", ""),
    "index": ("", "0", ""),
    "name": ("", "NVIDIA H100 80GB HBM3", ""),
    "gpu_name": ("", "NVIDIA H100 80GB HBM3", ""),
    "uuid": ("", r"GPU-[0-9a-f-]{36}", ""),
    "gpu_uuid": ("", r"GPU-[0-9a-f-]{36}", ""),
    "serial": ("", r"\d{13}", ""),
    "pci.bus_id": ("", "00000000:53:00.0", ""),
    "gpu_bus_id": ("", "00000000:53:00.0", ""),
    "pci.domain": ("", "0x0000", ""),
    "pci.bus": ("", "0x53", ""),
    "pci.device": ("", "0x00", ""),
    "pci.device_id": ("", "0x233010DE", ""),
    "pci.sub_device_id": ("", "0x16C110DE", ""),
    "vbios_version": ("", "96.00.99.00.01", ""),
    "compute_cap": ("", "9.0", ""),
    "compute_mode": ("", "Default", ""),
    "persistence_mode": ("", "Enabled", ""),
    "display_active": ("", "Disabled", ""),
    "accounting.mode": ("", "Disabled", ""),
    "pstate": ("", "P0", ""),
    "mig.mode.current": ("", "Disabled", ""),
    "ecc.mode.current": ("", "Enabled", ""),
    "ecc.errors.uncorrected.volatile.total": ("", "0", ""),
    "ecc.errors.corrected.aggregate.device_memory": ("", "0", ""),
    "retired_pages.pending": ("", r"\[N/A\]", ""),
    "remapped_rows.pending": ("", "No", ""),
    "remapped_rows.histogram.max": ("", "2560", ""),
    "fan.speed": (" [%]", r"\[N/A\]", ""),
    "temperature.gpu": ("", NUMBER, ""),
    "temperature.memory": ("", r"\[N/A\]", ""),
    "utilization.gpu": (" [%]", "75", " %"),
    "utilization.memory": (" [%]", "0", " %"),
    "memory.total": (" [MiB]", "81559", " MiB"),
    "memory.reserved": (" [MiB]", "480", " MiB"),
    "memory.used": (" [MiB]", "10240", " MiB"),
    "memory.free": (" [MiB]", NUMBER, " MiB"),
    "power.management": ("", "Enabled", ""),
    "power.draw": (" [W]", FLOAT, " W"),
    "power.draw.average": (" [W]", FLOAT, " W"),
    "power.draw.instant": (" [W]", FLOAT, " W"),
    "power.limit": (" [W]", "700.00", " W"),
    "enforced.power.limit": (" [W]", "700.00", " W"),
    "power.default_limit": (" [W]", "700.00", " W"),
    "power.min_limit": (" [W]", "200.00", " W"),
    "power.max_limit": (" [W]", "700.00", " W"),
    "clocks.gr": (" [MHz]", "1980", " MHz"),
    "clocks.sm": (" [MHz]", "1980", " MHz"),
    "clocks.mem": (" [MHz]", "2619", " MHz"),
    "clocks.video": (" [MHz]", "1545", " MHz"),
    "clocks.current.graphics": (" [MHz]", "1980", " MHz"),
    "clocks.current.memory": (" [MHz]", "2619", " MHz"),
    "clocks.max.graphics": (" [MHz]", "1980", " MHz"),
    "clocks.max.sm": (" [MHz]", "1980", " MHz"),
    "clocks.max.mem": (" [MHz]", "2619", " MHz"),
    "clocks.applications.graphics": (" [MHz]", "1980", " MHz"),
    "clocks_event_reasons.active": ("", "0x0000000000000000", ""),
    "clocks_throttle_reasons.active": ("", "0x0000000000000000", ""),
    "clocks_event_reasons.sw_power_cap": ("", "Not Active", ""),
    "clocks_throttle_reasons.hw_slowdown": ("", "Not Active", ""),
    "pcie.link.gen.current": ("", "5", ""),
    "pcie.link.gen.max": ("", "5", ""),
    "pcie.link.width.current": ("", "16", ""),
    "pcie.link.width.max": ("", "16", ""),
}
"""Names and formats from the manual and public outputs of nvidia-smi."""


def test_every_field_has_its_header_and_its_format(smi: Smi) -> None:
    header, row = smi(f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv", "-i", "0").lines
    plain = smi(
        *("--query-gpu", ",".join(GPU_FIELDS), "--format=csv,noheader,nounits", "-i", "0")
    ).lines
    assert header == ", ".join(name + added for name, (added, *_) in GPU_FIELDS.items())
    assert len(plain) == 1
    for name, shown, bare in zip(GPU_FIELDS, row.split(", "), plain[0].split(", "), strict=True):
        _, value, unit = GPU_FIELDS[name]
        assert re.fullmatch(value + unit, shown), (name, shown)
        assert re.fullmatch(value, bare), (name, bare)


def test_a_board_without_something_says_so(smi: Smi) -> None:
    query = "--query-gpu=serial,ecc.mode.current,mig.mode.current,power.draw.average"
    rows = smi(query, "--format=csv,noheader", "-i", f"{RTX3090},{T4}").lines
    assert rows[0] == "[N/A], [N/A], [N/A], [N/A]"
    assert rows[1].endswith(", Enabled, [N/A], [N/A]")


def test_wrong_queries_are_refused(smi: Smi) -> None:
    unknown = smi("--query-gpu=name,nothing", "--format=csv")
    assert unknown.status == 2
    assert unknown.lines[0] == 'Field "nothing" is not a valid field to query.'
    assert smi("--query-gpu=name").status == 2
    assert smi("--query-gpu=name", "--format=csv,colour").status == 2
    assert smi("--no-such-option").status == 2
    for wrong in (("-l", "-1"), ("-l", "nan"), ("-lms", "-5"), ("-pl", "nan"), ("-pl", "inf")):
        refused = smi(*wrong)
        assert refused.status == 2
        assert f"invalid number value: '{wrong[1]}'" in refused.text
    missing = smi("-i", "17")
    assert (missing.status, "No devices were found" in missing.text) == (6, True)


def test_processes_of_all_gpus(smi: Smi) -> None:
    query = "--query-compute-apps=gpu_uuid,pid,process_name,used_memory"
    header, *rows = smi(query, "--format=csv").lines
    assert header == "gpu_uuid, pid, process_name, used_memory [MiB]"
    assert [row.split(", ")[2:] for row in rows] == [
        ["trainer", "8192 MiB"],
        ["notebook", "2048 MiB"],
        ["on-mig", "4396 MiB"],
    ]
    named = "--query-compute-apps=pid,name,used_gpu_memory"
    (plain, *_) = smi(named, "--format=csv,noheader,nounits").lines
    assert re.fullmatch(r"\d+, trainer, 8192", plain)


@pytest.mark.parametrize("by", ["index", "uuid", "pci.bus_id", "serial"])
def test_a_gpu_is_chosen_by_any_of_its_names(smi: Smi, by: str) -> None:
    (name,) = smi(f"--query-gpu={by}", "--format=csv,noheader", "-i", str(T4)).lines
    assert smi("--query-gpu=name", "--format=csv,noheader", "-i", name).lines == ["Tesla T4"]


def test_the_list_has_gpus_and_mig_devices(smi: Smi) -> None:
    lines = smi("-L").lines
    assert re.fullmatch(r"GPU 0: NVIDIA H100 80GB HBM3 \(UUID: GPU-[0-9a-f-]{36}\)", lines[0])
    devices = [line for line in lines if line.startswith("  MIG")]
    assert [line.split("(")[0] for line in devices] == [
        "  MIG 3g.40gb     Device  0: ",
        "  MIG 2g.20gb     Device  1: ",
        "  MIG 1g.10gb     Device  2: ",
    ]
    assert all(re.search(r"\(UUID: MIG-[0-9a-f-]{36}\)$", line) for line in devices)


def test_the_table(smi: Smi) -> None:
    date, *lines = smi().lines
    assert re.fullmatch(r"\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}       ", date)
    assert {len(line) for line in lines if line} == {91}
    text = "\n".join(lines)
    version = "580.105.08             Driver Version: 580.105.08     CUDA Version: 13.0     |"
    assert f"| NVIDIA-SMI {version}" in text
    assert "|   0  NVIDIA H100 80GB HBM3          On  |   00000000:53:00.0 Off |" in text
    assert "|  10240MiB /  81559MiB |     75%      Default |" in text.replace(
        "|   10240", "|  10240"
    )
    assert "|    0   N/A  N/A            4001      C   trainer" in text
    assert "|  2    1   0   0  |               0MiB / 40448MiB    | 60      0 |" in text
    assert re.search(r"\|    2     2    0 +\d+      C   on-mig +4396MiB \|", text)
    quiet = smi("-i", str(T4)).text
    assert "|  No running processes found" in quiet
    assert "MIG devices" not in quiet


def test_the_topology(smi: Smi) -> None:
    header, *rows = smi("topo", "-m").lines
    assert header == "\tGPU0\tGPU1\tGPU2\tGPU3\tGPU4\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID"
    assert rows[H100].split("\t")[:4] == ["GPU0", " X ", "NV18", "NV18"]
    assert rows[RTX3090].split("\t")[:6] == ["GPU3", "NODE", "SYS", "NODE", " X ", "NODE"]
    assert rows[0].split("\t")[6:8] == ["0-31", "0"]
    assert smi("topo").status == 2


def test_version_and_file(smi: Smi, tmp_path: object) -> None:
    assert smi("--version").lines[2] == "DRIVER version      : 580.105.08"
    assert smi("-L", "-f", f"{tmp_path}/gpus.txt").lines == []
    assert smi("-L", "-f", f"{tmp_path}/no/folder").status == 2
