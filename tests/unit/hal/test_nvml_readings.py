"""What the NVML backend reads from a GPU: probes, telemetry, processes, links, time slices."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import pytest

from hal.errors import DriverUnavailable, GpuLost, HalError, NotSupported
from hal.nvml.api import NO_INSTANCE, Code, EccKind, Field, Process, ProcessSample, RemappedRows
from hal.nvml.backend import NvmlBackend
from hal.nvml.readings import throttle_reasons
from hal.nvml.timeslice import set_time_slice
from hal.types import (
    ComputeProcess,
    Link,
    LinkKind,
    RecoveryAction,
    Telemetry,
    ThrottleReason,
    TimeSliceLevel,
)
from tests.unit.hal.fake_nvml import GIB, NEED_THE_GPU, FakeGpu, FakeMig, FakeNvml

if TYPE_CHECKING:
    from pathlib import Path


def opened(nvml: FakeNvml, root: Path) -> NvmlBackend:
    seconds = count(0.0, 60.0)  # a minute between any two looks
    backend = NvmlBackend(
        root,
        nvml,
        sysfs_root=root / "sys",
        procfs_root=root / "proc",
        clock=lambda: next(seconds),
    )
    backend.open()
    return backend


def write_boot_id(root: Path, text: str) -> None:
    path = root / "proc/sys/kernel/random/boot_id"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("number", "action", "clean"),
    [
        (0, RecoveryAction.NONE, True),
        (1, RecoveryAction.RESET, False),
        (2, RecoveryAction.REBOOT, False),
        (3, RecoveryAction.DRAIN_P2P, False),
        (4, RecoveryAction.DRAIN_AND_RESET, False),
        (6, RecoveryAction.RESET, False),
        (7, RecoveryAction.REBOOT, False),
        # Actions of drivers to come never pass for a usable GPU.
        (5, RecoveryAction.OTHER, False),
        (99, RecoveryAction.OTHER, False),
    ],
)
def test_probe_tells_the_recovery_action(
    tmp_path: Path, number: int, action: RecoveryAction, clean: bool
) -> None:
    gpu = FakeGpu("GPU-a", fields={Field.RECOVERY_ACTION: number})
    probe = opened(FakeNvml(gpu), tmp_path).probe("GPU-a")
    assert (probe.reachable, probe.recovery_action, probe.clean) == (True, action, clean)


@pytest.mark.parametrize(
    ("temperature", "shutdown", "margin", "margin_limit", "shut_down"),
    [
        pytest.param(91, 92, None, None, False, id="hot is not it"),
        pytest.param(92, 92, None, None, True, id="at the limit"),
        pytest.param(95, None, None, None, False, id="no limit is told"),
        pytest.param(95, 0, None, None, False, id="a limit of 0 is none"),
        pytest.param(95, None, -7, -8, False, id="slowed down is not it"),
        pytest.param(95, None, -8, -8, True, id="at the margin's limit"),
        pytest.param(95, None, -8, 2**32 - 8, True, id="a limit of the wrong sign"),
        pytest.param(95, None, None, -8, False, id="no margin is told"),
        pytest.param(95, None, -3, 0, False, id="a margin's limit of 0 is none"),
    ],
)
def test_a_gpu_at_its_shutdown_temperature(
    tmp_path: Path,
    temperature: int,
    shutdown: int | None,
    margin: int | None,
    margin_limit: int | None,
    shut_down: bool,
) -> None:
    gpu = FakeGpu(
        "GPU-a",
        temperature=temperature,
        shutdown_temperature=shutdown,
        temperature_margin=margin,
    )
    if margin_limit is not None:
        gpu.fields[Field.SHUTDOWN_MARGIN_C] = margin_limit
    probe = opened(FakeNvml(gpu), tmp_path).probe("GPU-a")
    assert (probe.thermal_shutdown, probe.clean) == (shut_down, not shut_down)


def test_probe_on_a_driver_that_tells_nothing_more(tmp_path: Path) -> None:
    silent = dict.fromkeys(("field", "remapped_rows", "volatile_ecc"), Code.FUNCTION_NOT_FOUND)
    probe = opened(FakeNvml(FakeGpu("GPU-a", failing=silent)), tmp_path).probe("GPU-a")
    assert probe.reachable
    assert probe.recovery_action is RecoveryAction.UNKNOWN
    assert (probe.row_remap_pending, probe.row_remap_failed) == (False, False)
    assert probe.uncorrectable_ecc is None
    assert probe.clean


def test_probe_tells_of_memory_errors(tmp_path: Path) -> None:
    rows = RemappedRows(pending=True, failure=True)
    gpu = FakeGpu("GPU-a", rows=rows, ecc={EccKind.CORRECTED: 9, EccKind.UNCORRECTED: 4})
    probe = opened(FakeNvml(gpu), tmp_path).probe("GPU-a")
    assert (probe.row_remap_pending, probe.row_remap_failed) == (True, True)
    assert probe.uncorrectable_ecc == 4
    assert not probe.clean


@pytest.mark.parametrize(
    ("code", "action"),
    [
        (Code.GPU_IS_LOST, RecoveryAction.UNKNOWN),
        (Code.RESET_REQUIRED, RecoveryAction.RESET),
        (Code.UNKNOWN, RecoveryAction.UNKNOWN),
    ],
)
@pytest.mark.parametrize("calls", ["uuid", " ".join(NEED_THE_GPU)])
def test_a_gpu_that_does_not_answer_is_not_reachable(
    tmp_path: Path, calls: str, code: Code, action: RecoveryAction
) -> None:
    gpu = FakeGpu("GPU-a")
    backend = opened(FakeNvml(gpu), tmp_path)
    gpu.failing |= dict.fromkeys(calls.split(), code)
    probe = backend.probe("GPU-a")
    assert (probe.reachable, probe.clean) == (False, False)
    if calls != "uuid":
        assert probe.recovery_action is action


@pytest.mark.parametrize("call", NEED_THE_GPU)
def test_one_value_that_cannot_be_had_does_not_make_a_gpu_unreachable(
    tmp_path: Path, call: str
) -> None:
    gpu = FakeGpu("GPU-a", failing={call: Code.GPU_IS_LOST})
    assert opened(FakeNvml(gpu), tmp_path).probe("GPU-a").reachable


def test_right_after_a_look_gpus_are_not_asked_for_their_names(tmp_path: Path) -> None:
    nvml = FakeNvml(FakeGpu("GPU-a"), FakeGpu("GPU-b"))
    now_s = [0.0]
    backend = NvmlBackend(tmp_path, nvml, clock=lambda: now_s[0])
    backend.open()
    backend.gpus()
    nvml.calls.clear()
    assert backend.probe("GPU-a").reachable
    assert "uuid" not in nvml.calls
    now_s[0] = 1.0
    nvml.gpus.reverse()
    assert backend.probe("GPU-a").reachable
    assert "uuid" in nvml.calls


def test_limits_that_were_told_are_not_asked_again(tmp_path: Path) -> None:
    gpu = FakeGpu("GPU-a", shutdown_temperature=100, temperature=50)
    nvml = FakeNvml(gpu)
    backend = opened(nvml, tmp_path)
    assert not backend.probe("GPU-a").thermal_shutdown
    nvml.calls.clear()
    gpu.temperature = 100
    assert backend.probe("GPU-a").thermal_shutdown
    assert "shutdown_temperature_c" not in nvml.calls


def test_a_limit_that_could_not_be_read_is_asked_again(tmp_path: Path) -> None:
    gpu = FakeGpu("GPU-a", shutdown_temperature=100, temperature=100)
    gpu.failing["shutdown_temperature_c"] = Code.UNKNOWN
    backend = opened(FakeNvml(gpu), tmp_path)
    assert not backend.probe("GPU-a").thermal_shutdown
    gpu.failing.clear()
    assert backend.probe("GPU-a").thermal_shutdown


def test_a_count_that_cannot_be_had_is_unknown_and_named(tmp_path: Path) -> None:
    gpu = FakeGpu("GPU-a", failing={"volatile_ecc": Code.GPU_IS_LOST})
    probe = opened(FakeNvml(gpu), tmp_path).probe("GPU-a")
    assert (probe.reachable, probe.uncorrectable_ecc) == (True, None)
    assert [(one.call, one.code) for one in probe.unknown] == [("nvmlDeviceGetTotalEccErrors", 15)]


def test_probing_without_a_driver_is_an_error(tmp_path: Path) -> None:
    gpu = FakeGpu("GPU-a")
    backend = opened(FakeNvml(gpu), tmp_path)
    gpu.gone = Code.DRIVER_NOT_LOADED
    with pytest.raises(DriverUnavailable):
        backend.probe("GPU-a")


def test_the_epoch_changes_with_boot_driver_and_device_and_else_stays(tmp_path: Path) -> None:
    device = tmp_path / "sys/bus/pci/devices/0000:07:00.0"
    module = tmp_path / "sys/module/nvidia"
    for folder in (device, module):
        folder.mkdir(parents=True)
    write_boot_id(tmp_path, "11111111-aaaa\n")
    nvml = FakeNvml(FakeGpu("GPU-a"))
    backend = opened(nvml, tmp_path)

    def epoch() -> str:
        return backend.probe("GPU-a").epoch

    first = epoch()
    (module / "refcnt").touch()
    assert epoch() == first
    seen = [first]
    write_boot_id(tmp_path, "22222222-bbbb\n")
    seen.append(epoch())
    for folder in (module, device):
        # A new folder while the old one is there has a new inode number for sure.
        (tmp_path / "new").mkdir()
        folder.rename(tmp_path / f"old-{folder.name}")
        (tmp_path / "new").rename(folder)
        seen.append(epoch())
    backend.close()
    nvml.version = "590.1"
    backend.open()
    seen.append(epoch())
    assert len(set(seen)) == len(seen) == 5


def test_telemetry_in_the_units_of_the_hal(tmp_path: Path) -> None:
    gpu = FakeGpu(
        "GPU-a",
        utilization=87,
        temperature=66,
        power_mw=512_345,
        clock_reasons=0x24,
        ecc={EccKind.CORRECTED: 3, EccKind.UNCORRECTED: 1},
    )
    assert opened(FakeNvml(gpu), tmp_path).telemetry("GPU-a") == Telemetry(
        utilization=0.87,
        memory_used_bytes=GIB,
        memory_free_bytes=79 * GIB,
        memory_total_bytes=80 * GIB,
        temperature_c=66.0,
        power_w=512.345,
        power_limit_w=700.0,
        energy_j=1234.0,
        sm_clock_mhz=345,
        memory_clock_mhz=2619,
        throttle_reasons=ThrottleReason.POWER_CAP | ThrottleReason.THERMAL_SOFTWARE,
        corrected_ecc=3,
        uncorrectable_ecc=1,
    )


@pytest.mark.parametrize("code", [Code.NOT_SUPPORTED, Code.FUNCTION_NOT_FOUND, Code.NO_DATA])
def test_telemetry_that_is_not_supported_is_none(tmp_path: Path, code: Code) -> None:
    calls = (
        "utilization_percent",
        "temperature_c",
        "power_mw",
        "power_limit_mw",
        "energy_mj",
        "clock_mhz",
        "clock_reasons",
        "volatile_ecc",
    )
    gpu = FakeGpu("GPU-a", failing=dict.fromkeys(calls, code))
    assert opened(FakeNvml(gpu), tmp_path).telemetry("GPU-a") == Telemetry(
        utilization=None,
        memory_used_bytes=GIB,
        memory_free_bytes=79 * GIB,
        memory_total_bytes=80 * GIB,
        temperature_c=None,
        power_w=None,
        power_limit_w=None,
        energy_j=None,
        sm_clock_mhz=None,
        memory_clock_mhz=None,
        throttle_reasons=ThrottleReason.NONE,
        corrected_ecc=None,
        uncorrectable_ecc=None,
    )


@pytest.mark.parametrize(
    ("mask", "reasons"),
    [
        (0x00, ThrottleReason.NONE),
        (0x01, ThrottleReason.IDLE),
        (0x08, ThrottleReason.OTHER),
        (0x48, ThrottleReason.THERMAL_HARDWARE),
        (0x88, ThrottleReason.POWER_BRAKE),
        (0x10, ThrottleReason.OTHER),
        (1 << 40, ThrottleReason.OTHER),
    ],
)
def test_throttle_reasons(mask: int, reasons: ThrottleReason) -> None:
    assert throttle_reasons(mask) == reasons


@pytest.mark.parametrize("code", [Code.GPU_IS_LOST, Code.RESET_REQUIRED])
def test_reading_a_lost_gpu_is_an_error_that_names_it(tmp_path: Path, code: Code) -> None:
    gpu = FakeGpu("GPU-a")
    backend = opened(FakeNvml(FakeGpu("GPU-0"), gpu), tmp_path)
    gpu.gone = code
    for call in (backend.telemetry, backend.processes):
        with pytest.raises(GpuLost, match="GPU-a"):
            call("GPU-a")
    assert backend.telemetry("GPU-0").memory_total_bytes


def test_processes(tmp_path: Path) -> None:
    gpu = FakeGpu(
        "GPU-a",
        processes=[
            Process(200, None, NO_INSTANCE, NO_INSTANCE),
            Process(100, 5 * GIB, NO_INSTANCE, NO_INSTANCE),
        ],
        samples=[
            ProcessSample(100, 20, 55),
            ProcessSample(100, 30, 70),
            ProcessSample(100, 10, 5),
        ],
    )
    nvml = FakeNvml(gpu)
    nvml.names[100] = "/usr/bin/python3"
    assert opened(nvml, tmp_path).processes("GPU-a") == (
        ComputeProcess(100, "/usr/bin/python3", 5 * GIB, 0.7),
        ComputeProcess(200, "", None, None),
    )


def test_processes_of_mig_devices(tmp_path: Path) -> None:
    gpu = FakeGpu(
        "GPU-a",
        mig_mode=True,
        migs={0: FakeMig("MIG-0", 7, 0), 1: FakeMig("MIG-1", 9, 0)},
        processes=[Process(100, GIB, 9, 0), Process(101, GIB, 4, 0)],
        failing={"process_samples": Code.NOT_SUPPORTED},
    )
    found = opened(FakeNvml(gpu), tmp_path).processes("GPU-a")
    assert [(p.pid, p.mig_uuid, p.sm_share) for p in found] == [
        (100, "MIG-1", None),
        (101, None, None),
    ]


def test_a_driver_without_a_process_list(tmp_path: Path) -> None:
    gpu = FakeGpu("GPU-a", failing={"processes": Code.FUNCTION_NOT_FOUND})
    backend = opened(FakeNvml(gpu), tmp_path)
    with pytest.raises(NotSupported):
        backend.processes("GPU-a")
    assert backend.telemetry("GPU-a").memory_total_bytes == 80 * GIB


@pytest.mark.parametrize(
    ("level", "kind"),
    [
        (0, LinkKind.SAME_BOARD),
        (10, LinkKind.SINGLE_SWITCH),
        (20, LinkKind.MULTI_SWITCH),
        (30, LinkKind.HOST_BRIDGE),
        (40, LinkKind.SAME_CPU),
        (50, LinkKind.CROSS_CPU),
        (None, LinkKind.CROSS_CPU),
    ],
)
def test_link_kinds(tmp_path: Path, level: int | None, kind: LinkKind) -> None:
    nvml = FakeNvml(FakeGpu("GPU-a"), FakeGpu("GPU-b", bus_id="00000000:08:00.0"))
    if level is not None:
        nvml.topologies[frozenset({"GPU-a", "GPU-b"})] = level
    assert opened(nvml, tmp_path).links() == {
        ("GPU-a", "GPU-b"): Link(kind),
        ("GPU-b", "GPU-a"): Link(kind),
    }


def test_direct_nvlinks_are_counted_and_those_to_a_switch_are_not(tmp_path: Path) -> None:
    a, b, c = (FakeGpu(f"GPU-{n}", bus_id=f"00000000:{n}0:00.0") for n in "abc")
    a.nvlinks = {0: "00000000:B0:00.0", 3: "00000000:b0:00.0\0", 17: "00000000:FF:00.0"}
    # One end that cannot tell does not make the matrix lopsided.
    b.failing["nvlink_active"] = Code.UNKNOWN
    links = opened(FakeNvml(a, b, c), tmp_path).links()
    assert len(links) == 6
    assert {pair for pair, link in links.items() if link.nvlinks} == {
        ("GPU-a", "GPU-b"),
        ("GPU-b", "GPU-a"),
    }
    assert links["GPU-b", "GPU-a"].nvlinks == 2


def test_links_are_cached_until_other_gpus_answer(tmp_path: Path) -> None:
    a, b = FakeGpu("GPU-a"), FakeGpu("GPU-b", bus_id="00000000:08:00.0")
    nvml = FakeNvml(a, b)
    backend = opened(nvml, tmp_path)
    first = backend.links()
    nvml.topologies[frozenset({"GPU-a", "GPU-b"})] = 10
    assert backend.links() is first
    b.gone = Code.GPU_IS_LOST
    assert backend.links() == {}


def install_nvidia_smi(root: Path, body: str, folder: str = "usr/bin") -> None:
    path = root / folder / "nvidia-smi"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("folder", ["usr/bin", "bin", "opt/bin", "usr/local/bin"])
@pytest.mark.parametrize("level", TimeSliceLevel)
def test_the_time_slice_is_set_by_nvidia_smi(
    tmp_path: Path, folder: str, level: TimeSliceLevel
) -> None:
    install_nvidia_smi(tmp_path, f'echo "$@" > {tmp_path}/arguments', folder)
    opened(FakeNvml(FakeGpu("GPU-a")), tmp_path).set_time_slice("GPU-a", level)
    arguments = (tmp_path / "arguments").read_text().strip()
    assert arguments == f"compute-policy -i GPU-a --set-timeslice={int(level)}"


def test_nvidia_smi_gets_the_library_that_was_found(tmp_path: Path) -> None:
    install_nvidia_smi(tmp_path, f'echo "$LD_LIBRARY_PATH" > {tmp_path}/path')
    library = tmp_path / "lib64/libnvidia-ml.so.1"
    set_time_slice(tmp_path, library, "GPU-a", TimeSliceLevel.LONG)
    assert (tmp_path / "path").read_text().startswith(str(library.parent))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo 'Setting timeslice is not supported'; exit 3", "not supported"),
        ("echo 'no permission' >&2; exit 4", "no permission"),
        ("exit 1", "printed nothing"),
    ],
)
def test_what_nvidia_smi_says_of_a_failure_is_passed_on(
    tmp_path: Path, body: str, words: str
) -> None:
    install_nvidia_smi(tmp_path, body)
    backend = opened(FakeNvml(FakeGpu("GPU-a")), tmp_path)
    with pytest.raises(NotSupported, match=words):
        backend.set_time_slice("GPU-a", TimeSliceLevel.SHORT)


def test_an_nvidia_smi_that_hangs_is_ended(tmp_path: Path) -> None:
    install_nvidia_smi(tmp_path, "exec tail -f /dev/null")
    with pytest.raises(NotSupported, match="did not end"):
        set_time_slice(tmp_path, None, "GPU-a", TimeSliceLevel.SHORT, timeout_s=0.2)


def test_no_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(NotSupported, match="usr/local/bin/nvidia-smi, PATH"):
        set_time_slice(tmp_path, None, "GPU-a", TimeSliceLevel.SHORT)


@pytest.mark.parametrize(
    ("gpu", "error"),
    [
        (FakeGpu("GPU-a", mig_mode=True), NotSupported),
        (FakeGpu("GPU-a", gone=Code.GPU_IS_LOST), GpuLost),
    ],
)
def test_the_time_slice_of_a_gpu_in_mig_mode_or_lost(
    tmp_path: Path, gpu: FakeGpu, error: type[HalError]
) -> None:
    install_nvidia_smi(tmp_path, "exit 0")
    gone, gpu.gone = gpu.gone, None
    backend = opened(FakeNvml(gpu), tmp_path)
    gpu.gone = gone
    with pytest.raises(error):
        backend.set_time_slice("GPU-a", TimeSliceLevel.SHORT)


@pytest.mark.parametrize("call", ["topology", "nvlink_active"])
def test_links_of_a_driver_that_goes_away_are_no_links(tmp_path: Path, call: str) -> None:
    nvml = FakeNvml(FakeGpu("GPU-a"), FakeGpu("GPU-b", bus_id="00000000:08:00.0"))
    nvml.topologies[frozenset({"GPU-a", "GPU-b"})] = 10
    backend = opened(nvml, tmp_path)
    nvml.failing[call] = Code.DRIVER_NOT_LOADED
    with pytest.raises(DriverUnavailable):
        backend.links()
    nvml.failing.clear()
    assert backend.links()["GPU-a", "GPU-b"].kind is LinkKind.SINGLE_SWITCH
