"""The library's functions, sizes and versions against those of the real Python binding."""

from __future__ import annotations

import ctypes
import inspect
import re
import subprocess
from collections import Counter
from pathlib import Path

import pynvml
import pytest

from hal.nvml.api import Code
from sim.nvml import abi as structures
from sim.nvml.abi import Kind
from sim.nvml.dispatch import FUNCTIONS, LOCAL, NOT_SIMULATED
from sim.nvml.functions.gpm import GpmMetric, GpmSupport
from sim.nvml.library import FLAGS, source

NOT_OF_A_PROGRAM = ("-shared", "-fPIC", "-nostdlib")
VERSIONS = {
    "nvmlMemory_v2": "nvmlDeviceGetMemoryInfo_v2",
    "nvmlTemperature_v1": "nvmlDeviceGetTemperatureV",
    "nvmlMarginTemperature_v1": "nvmlDeviceGetMarginTemperature",
    "nvmlGpuInstanceProfileInfo_v2": "nvmlDeviceGetGpuInstanceProfileInfoV",
    "nvmlComputeInstanceProfileInfo_v2": "nvmlGpuInstanceGetComputeInstanceProfileInfoV",
    "nvmlDeviceAddressingMode_v1": "nvmlDeviceGetAddressingMode",
    "nvmlPowerValue_v2": "nvmlDeviceSetPowerManagementLimit_v2",
    "nvmlUUID_v1": "nvmlDeviceGetHandleByUUIDV",
}

SAME = {
    GpmSupport: pynvml.c_nvmlGpmSupport_t,
    structures.EventData: pynvml.c_nvmlEventData_t,
    structures.GpuInstanceInfo: pynvml.c_nvmlGpuInstanceInfo_t,
    structures.ComputeInstanceInfo: pynvml.c_nvmlComputeInstanceInfo_t,
}

BEGINNING = {
    GpmMetric: pynvml.c_nvmlGpmMetric_t,
    structures.EventDataV1: pynvml.c_nvmlEventData_t,
    structures.ProcessInfoV1: pynvml.c_nvmlProcessInfo_t,
    structures.PciInfoV1: pynvml.nvmlPciInfo_v2_t,
}


def layout(structure: type[ctypes.Structure]) -> dict[str, tuple[int, int]]:
    """Offset and size of each field, by name."""
    names = [field[0] for field in structure._fields_]
    return {
        name: (getattr(structure, name).offset, getattr(structure, name).size) for name in names
    }


@pytest.mark.parametrize(("own", "theirs"), SAME.items())
def test_structures_are_laid_out_as_those_of_the_binding(
    own: type[ctypes.Structure], theirs: type[ctypes.Structure]
) -> None:
    assert layout(own) == layout(theirs)
    assert ctypes.sizeof(own) == ctypes.sizeof(theirs)


@pytest.mark.parametrize(("own", "theirs"), BEGINNING.items())
def test_old_structures_are_how_the_new_ones_begin(
    own: type[ctypes.Structure], theirs: type[ctypes.Structure]
) -> None:
    assert layout(own).items() <= layout(theirs).items()


@pytest.mark.parametrize(("constant", "name"), VERSIONS.items())
def test_versions_are_those_of_the_binding(constant: str, name: str) -> None:
    (function,) = (one for one in FUNCTIONS if one.name == name)
    (argument,) = (one for one in function.arguments if one.kind is Kind.VERSIONED)
    assert set(argument.versions) == {getattr(pynvml, constant)}


def test_versions_tell_the_size() -> None:
    for function in FUNCTIONS:
        for argument in function.arguments:
            for version, structure in argument.versions.items():
                assert version & 0xFFFFFF == ctypes.sizeof(structure)


def test_the_sizes_in_the_c_source_are_those_of_the_binding(library: Path, tmp_path: Path) -> None:
    """The generated part, compiled with a check of each size that the binding knows."""
    sizes = {
        "nvmlDeviceGetMemoryInfo": (1, pynvml.c_nvmlMemory_t),
        "nvmlDeviceGetPciInfo_v3": (1, pynvml.nvmlPciInfo_t),
        "nvmlDeviceGetUtilizationRates": (1, pynvml.c_nvmlUtilization_t),
        "nvmlDeviceGetBAR1MemoryInfo": (1, pynvml.c_nvmlBAR1Memory_t),
        "nvmlDeviceGetComputeRunningProcesses_v3": (2, pynvml.c_nvmlProcessInfo_t),
        "nvmlDeviceGetProcessUtilization": (1, pynvml.c_nvmlProcessUtilizationSample_t),
        "nvmlDeviceGetFieldValues": (2, pynvml.c_nvmlFieldValue_t),
        "nvmlDeviceGetAttributes_v2": (1, pynvml.c_nvmlDeviceAttributes),
        "nvmlDeviceGetDetailedEccErrors": (3, pynvml.c_nvmlEccErrorCounts_t),
        "nvmlDeviceGetRowRemapperHistogram": (1, pynvml.c_nvmlRowRemapperHistogramValues),
        "nvmlDeviceGetGpuInstanceProfileInfo": (2, pynvml.c_nvmlGpuInstanceProfileInfo_t),
        "nvmlGpuInstanceGetInfo": (1, pynvml.c_nvmlGpuInstanceInfo_t),
        "nvmlComputeInstanceGetInfo_v2": (1, pynvml.c_nvmlComputeInstanceInfo_t),
        "nvmlEventSetWait_v2": (1, pynvml.c_nvmlEventData_t),
    }
    checks = [
        f"    if (arguments_{name}[{position}].size != {ctypes.sizeof(structure)}) return {number};"
        for number, (name, (position, structure)) in enumerate(sizes.items(), 1)
    ]
    text = source() + "\nint main(void) {\n" + "\n".join(checks) + "\n    return 0;\n}\n"
    (tmp_path / "sizes.c").write_text(text)
    folder = Path(inspect.getfile(structures)).parent / "library"
    flags = [flag for flag in FLAGS if flag not in NOT_OF_A_PROGRAM and "soname" not in flag]
    program = tmp_path / "sizes"
    subprocess.run(
        ["cc", *flags, f"-I{folder}", "-o", program, tmp_path / "sizes.c", *folder.glob("*.c")],
        check=True,
    )
    assert subprocess.run([program], check=False).returncode == 0


def test_every_function_that_the_binding_knows_is_there_once() -> None:
    text = inspect.getsource(pynvml)
    bound = set(re.findall(r'_nvmlGetFunctionPointer\("(nvml\w+)"\)', text))
    names = Counter([*LOCAL, *NOT_SIMULATED, *(one.name for one in FUNCTIONS)])
    assert bound - set(names) == set()
    assert [name for name, count in names.items() if count > 1] == []


def test_the_library_exports_them_and_nothing_else(library: Path) -> None:
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True
    )
    exported = {line.split()[2] for line in listed.stdout.splitlines()}
    assert exported == {*LOCAL, *NOT_SIMULATED, *(one.name for one in FUNCTIONS)}


def test_return_codes_are_those_of_the_binding() -> None:
    theirs = {
        name.removeprefix("NVML_ERROR_"): value
        for name, value in vars(pynvml).items()
        if name.startswith("NVML_ERROR_")
    }
    assert {code.name: code.value for code in Code if code} == theirs
