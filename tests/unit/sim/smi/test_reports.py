"""`-q -x` and `-q`: elements, their order and formats, as public captures have them.

`elements.txt` has the elements of the first GPU of a capture of eight H100 with driver 580.105.08
(published in NVIDIA/k8s-test-infra), each with the format of its value.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.sim.nvml.test_answers import H100, IN_MIG_MODE, RTX3090, T4

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.sim.smi.conftest import Smi

CAPTURED = [
    tuple(line.split(" ", 1))
    for line in Path(__file__).with_name("elements.txt").read_text().splitlines()
]
WORDS = {
    "Enabled": "ENABLED",
    "Disabled": "ENABLED",
    "Active": "ACTIVE",
    "Not Active": "ACTIVE",
    "Yes": "YES",
    "No": "YES",
    "N/A": "-",
    "": "",
}


NOT_SIMULATED = {
    *("pdi", "gpu_part_number", "platformInfo", "inforom_version", "inforom_bbx_flush"),
    *("c2c_mode", "gpu_virtualization_mode", "clocks_event_reasons_counters"),
    *("sparse_operation_mode", "ecc_errors", "temperature", "fabric", "accounted_processes"),
    "processes",
}
"""Elements, or what is in them, that have a value in the capture alone."""


def format_of(path: str, value: str) -> str:
    """The format of a value, as `elements.txt` spells it."""
    if path == "uuid":
        return "UUID" if value.startswith("GPU-") else value
    if value in WORDS:
        return WORDS[value]
    plain = re.sub(r"0x[0-9A-Fa-f]+", "HEX", value)
    plain = re.sub(r"-?\d+\.\d+", "FLOAT", plain)
    plain = re.sub(r"-?\d+", "INT", plain)
    return plain if re.fullmatch(r"(HEX|FLOAT|INT)( \S+)?", plain) else "TEXT"


def leaves(element: ET.Element, path: str = "") -> Iterator[tuple[str, str]]:
    """Path and value of each element without children."""
    for child in element:
        inner = f"{path}/{child.tag}".lstrip("/")
        if len(child):
            yield from leaves(child, inner)
        else:
            yield inner, (child.text or "").strip()


def gpus(smi: Smi, *arguments: str) -> list[ET.Element]:
    """The GPUs of the report as XML."""
    done = smi("-q", "-x", *arguments)
    assert done.status == 0, done.text
    return ET.fromstring(done.text).findall("gpu")  # noqa: S314 # our own text


def test_an_h100_has_the_elements_and_formats_of_a_captured_one(smi: Smi) -> None:
    (gpu,) = gpus(smi, "-i", str(H100 + 1))
    found = list(dict.fromkeys((path, format_of(path, value)) for path, value in leaves(gpu)))
    assert [path for path, _ in found] == [path for path, *_ in CAPTURED]
    captured = {path: (kind or [""])[0] for path, *kind in CAPTURED}
    others = {path: kind for path, kind in found if kind not in ("-", captured[path])}
    assert others == {}


def test_what_has_a_value_on_an_h100(smi: Smi) -> None:
    (gpu,) = gpus(smi, "-i", str(H100))
    known = [path for path, value in leaves(gpu) if value != "N/A"]
    captured = [path for path, *kind in CAPTURED if kind != ["-"]]
    missing = {path.split("/")[0] for path in set(captured) - set(known)}
    assert missing <= NOT_SIMULATED


def test_boards_show_the_limits_of_their_kind(smi: Smi) -> None:
    h100, t4, rtx = gpus(smi, "-i", f"{H100},{T4},{RTX3090}")
    assert h100.findtext("temperature/gpu_temp_max_tlimit_threshold") == "-8 C"
    assert t4.findtext("temperature/gpu_temp_max_threshold") == "96 C"
    assert t4.find("temperature/gpu_temp_max_tlimit_threshold") is None
    assert t4.findtext("remapped_rows") == "N/A"
    assert t4.findtext("ecc_errors/volatile/sram_uncorrectable") == "0"
    assert rtx.findtext("ecc_mode/current_ecc") == "N/A"
    assert rtx.findtext("product_brand") == "GeForce"
    assert rtx.findtext("serial") == "N/A"


def test_processes_and_mig_devices(smi: Smi) -> None:
    h100, in_mig_mode = gpus(smi, "-i", f"{H100},{IN_MIG_MODE}")
    found = [
        (one.findtext("process_name"), one.findtext("used_memory"), one.findtext("type"))
        for one in h100.findall("processes/process_info")
    ]
    assert found == [("trainer", "8192 MiB", "C"), ("notebook", "2048 MiB", "C")]
    migs = in_mig_mode.findall("mig_devices/mig_device")
    assert [one.findtext("index") for one in migs] == ["0", "1", "2"]
    shared = "device_attributes/shared/"
    assert [one.findtext(f"{shared}multiprocessor_count") for one in migs] == ["60", "32", "16"]
    assert [one.findtext(f"{shared}decoder_count") for one in migs] == ["3", "2", "1"]
    assert [one.findtext("fb_memory_usage/used") for one in migs] == ["0 MiB", "4396 MiB", "0 MiB"]
    (process,) = in_mig_mode.findall("processes/process_info")
    assert process.findtext("gpu_instance_id") == "2"


def test_the_text_has_the_same_values_under_labels(smi: Smi) -> None:
    text = smi("-q", "-i", str(H100)).lines
    assert text[1] == "==============NVSMI LOG=============="
    assert "    Product Name                          : NVIDIA H100 80GB HBM3" in text
    assert "        Total                             : 81559 MiB" in text
    assert {line.index(":") for line in text if " : " in line} == {42}
    (gpu,) = gpus(smi, "-i", str(H100))
    shown = [line.partition(": ")[2] for line in text if " : " in line]
    for path in ("vbios_version", "uuid", "gpu_power_readings/max_power_limit"):
        assert gpu.findtext(path) in shown


def test_sections_are_chosen(smi: Smi) -> None:
    lines = smi("-q", "-d", "memory,POWER", "-i", "0").lines
    headings = [line.strip() for line in lines if line.startswith("    ") and line[4] != " "]
    assert [one for one in headings if ":" not in one] == [
        *("FB Memory Usage", "BAR1 Memory Usage", "Conf Compute Protected Memory Usage"),
        *("GPU Power Readings", "GPU Memory Power Readings", "Module Power Readings"),
        "Workload Power Profiles",
    ]
    done = smi("-q", "-d", "WEATHER")
    assert (done.status, "known: MEMORY" in done.text) == (2, True)


@pytest.mark.parametrize("arguments", [("-q",), ("-q", "-x"), (), ("-L",), ("topo", "-m")])
def test_a_lost_gpu_ends_the_program_but_not_where_others_are_chosen(
    smi: Smi, nvml: object, arguments: tuple[str, ...]
) -> None:
    nvml.let("{kind: lost}", 1)  # type: ignore[attr-defined]
    done = smi(*arguments)
    assert done.status == 15
    assert done.lines[-1].startswith("Unable to determine the device handle for GPU1: ")
    command = arguments[:1] if arguments[:1] == ("topo",) else ()
    rest = arguments[len(command) :]
    assert smi(*command, "-i", "0", *rest).status == 0
