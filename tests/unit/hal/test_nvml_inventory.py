"""Which GPUs the NVML backend lists, and what it says about them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from hal.errors import DriverNotFound, DriverUnavailable, HalError, UnknownGpu
from hal.nvml.api import Code, EventType, Handle, Memory
from hal.nvml.backend import NvmlBackend
from hal.nvml.inventory import mig_profile
from hal.nvml.kernelfiles import canonical_bus_id, sysfs_bus_id
from hal.types import PCI_3D, ComputeMode, Gpu, GpuState, MigAttributes, MigDevice, XidError
from tests.unit.hal.fake_nvml import GIB, NEED_THE_GPU, FakeGpu, FakeMig, FakeNvml, event

if TYPE_CHECKING:
    from pathlib import Path

    from hal.backend import Backend


def opened(nvml: FakeNvml, root: Path) -> NvmlBackend:
    backend = NvmlBackend(api=nvml, sysfs_root=root / "sys", procfs_root=root / "proc")
    backend.open()
    return backend


def write_numa(root: Path, bus_id: str, text: str) -> None:
    folder = root / "sys/bus/pci/devices" / bus_id
    folder.mkdir(parents=True)
    (folder / "numa_node").write_text(text)


def states(gpus: tuple[Gpu, ...]) -> dict[str, GpuState]:
    return {gpu.uuid: gpu.state for gpu in gpus}


def test_it_is_a_backend() -> None:
    backend: Backend = NvmlBackend(api=FakeNvml())
    backend.open()
    assert backend.gpus() == ()


def test_gpus_come_in_order_with_all_their_fields(tmp_path: Path) -> None:
    write_numa(tmp_path, "0000:07:00.0", "1\n")
    (tmp_path / "sys/bus/pci/devices/0000:07:00.0/class").write_text("0x030200\n")
    nvml = FakeNvml(
        FakeGpu("GPU-a", minor=3, bus_id="00000000:07:00.0\0"),
        FakeGpu(
            "GPU-b",
            bus_id="00000000:0A:00.0",
            name="Tesla T4",
            memory=Memory(15 * GIB, 0),
            compute_capability=(7, 5),
        ),
    )
    first, second = opened(nvml, tmp_path).gpus()
    assert first == Gpu(
        uuid="GPU-a",
        index=0,
        minor=3,
        pci_bus_id="00000000:07:00.0",
        numa_node=1,
        product="NVIDIA H100 80GB HBM3",
        memory_bytes=80 * GIB,
        compute_capability=(9, 0),
        mig_capable=True,
        pci_class=PCI_3D,
        compute_mode=ComputeMode.DEFAULT,
    )
    assert second.pci_class is None
    assert (second.index, second.product, second.memory_bytes) == (1, "Tesla T4", 15 * GIB)
    assert second.compute_capability == (7, 5)


@pytest.mark.parametrize(
    ("text", "canonical", "kernel"),
    [
        ("00000000:07:00.0", "00000000:07:00.0", "0000:07:00.0"),
        ("0000:af:00.0", "00000000:AF:00.0", "0000:af:00.0"),
        ("00010000:3b:00.0", "00010000:3B:00.0", "10000:3b:00.0"),
        ("0000000F:C7:1f.7\0\0", "0000000F:C7:1F.7", "000f:c7:1f.7"),
    ],
)
def test_bus_ids_are_spelled_as_nvml_and_the_kernel_do(
    text: str, canonical: str, kernel: str
) -> None:
    assert canonical_bus_id(text) == canonical
    assert sysfs_bus_id(canonical) == kernel


@pytest.mark.parametrize(
    ("text", "node", "warns"),
    [("0", 0, False), ("-1\n", None, False), (None, None, False), ("zwei", None, True)],
)
def test_numa_node(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    text: str | None,
    node: int | None,
    warns: bool,
) -> None:
    if text is not None:
        write_numa(tmp_path, "0000:07:00.0", text)
    (gpu,) = opened(FakeNvml(FakeGpu("GPU-a")), tmp_path).gpus()
    assert gpu.numa_node == node
    assert ("numa_node" in caplog.text) == warns


def test_what_a_gpu_does_not_support_is_left_out(tmp_path: Path) -> None:
    unsupported = ("minor", "compute_capability", "mig_mode", "memory")
    gpu = FakeGpu("GPU-a", failing=dict.fromkeys(unsupported, Code.NOT_SUPPORTED))
    (listed,) = opened(FakeNvml(gpu), tmp_path).gpus()
    assert (listed.minor, listed.compute_capability, listed.memory_bytes) == (None, None, None)
    assert listed.state is GpuState.OK


@pytest.mark.parametrize(
    ("number", "mode"),
    [
        (0, ComputeMode.DEFAULT),
        (1, ComputeMode.EXCLUSIVE_PROCESS),
        (2, ComputeMode.PROHIBITED),
        (3, ComputeMode.EXCLUSIVE_PROCESS),
        (4, None),
        (None, None),
    ],
)
def test_the_compute_mode(tmp_path: Path, number: int | None, mode: ComputeMode | None) -> None:
    (listed,) = opened(FakeNvml(FakeGpu("GPU-a", compute_mode=number)), tmp_path).gpus()
    assert listed.compute_mode is mode


@pytest.mark.parametrize("name", ["DGX Display", "NVIDIA DGX Display"])
def test_the_display_gpu_of_a_dgx_station_is_not_listed(tmp_path: Path, name: str) -> None:
    nvml = FakeNvml(FakeGpu("GPU-a"), FakeGpu("GPU-display", name=name), FakeGpu("GPU-b"))
    listed = opened(nvml, tmp_path).gpus()
    assert [(gpu.uuid, gpu.index) for gpu in listed] == [("GPU-a", 0), ("GPU-b", 2)]


@pytest.mark.parametrize("code", [Code.GPU_IS_LOST, Code.RESET_REQUIRED, Code.UNKNOWN])
@pytest.mark.parametrize("calls", ["handle_by_index", "uuid", " ".join(NEED_THE_GPU)])
def test_a_lost_gpu_keeps_its_identity_and_the_others_go_on(
    tmp_path: Path, calls: str, code: Code
) -> None:
    bad = FakeGpu("GPU-b", minor=7, bus_id="00000000:AF:00.0")
    nvml = FakeNvml(FakeGpu("GPU-a"), bad, FakeGpu("GPU-c"))
    backend = opened(nvml, tmp_path)
    before = backend.gpus()
    bad.failing |= dict.fromkeys(calls.split(), code)
    after = backend.gpus()
    assert states(after) == {
        "GPU-a": GpuState.OK,
        "GPU-b": GpuState.LOST,
        "GPU-c": GpuState.OK,
    }
    assert (after[1].minor, after[1].pci_bus_id, after[1].index) == (7, "00000000:AF:00.0", 1)
    bad.failing.clear()
    assert backend.gpus() == before


def test_what_cannot_change_is_asked_once_for_each_connection(tmp_path: Path) -> None:
    gpu = FakeGpu("GPU-a", minor=3)
    nvml = FakeNvml(gpu)
    backend = opened(nvml, tmp_path)
    nvml.calls.clear()
    assert backend.gpus()[0].minor == 3
    assert not nvml.calls.keys() & {"name", "minor", "compute_capability", "pci_bus_id"}
    assert nvml.calls["memory"], "whether it answers at all is asked every time"
    backend.close()
    gpu.minor = 4
    backend.open()
    assert backend.gpus()[0].minor == 4


def test_a_gpu_that_was_moved_is_asked_again(tmp_path: Path) -> None:
    gpu = FakeGpu("GPU-a", minor=3, bus_id="00000000:07:00.0")
    backend = opened(FakeNvml(gpu), tmp_path)
    gpu.minor, gpu.bus_id = 4, "00000000:08:00.0"
    backend.close()
    backend.open()
    assert (backend.gpus()[0].minor, backend.gpus()[0].pci_bus_id) == (4, "00000000:08:00.0")


def test_a_gpu_that_was_lost_and_is_back_is_asked_again(tmp_path: Path) -> None:
    gpu = FakeGpu("GPU-a", minor=3)
    backend = opened(FakeNvml(gpu), tmp_path)
    gpu.gone = Code.GPU_IS_LOST
    assert backend.gpus()[0].state is GpuState.LOST
    gpu.gone, gpu.minor = None, 4
    assert backend.gpus()[0].minor == 4


def test_a_gpu_that_vanished_altogether_stays_listed_as_lost(tmp_path: Path) -> None:
    nvml = FakeNvml(FakeGpu("GPU-a"), FakeGpu("GPU-b"))
    backend = opened(nvml, tmp_path)
    backend.close()
    del nvml.gpus[0]
    backend.open()
    listed = backend.gpus()
    assert states(listed) == {"GPU-a": GpuState.LOST, "GPU-b": GpuState.OK}
    # GPU-b took over index 0 from GPU-a, and is still found under it.
    assert backend.probe("GPU-b").reachable
    assert not backend.probe("GPU-a").reachable


def test_a_gpu_that_could_never_be_read_is_skipped_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nvml = FakeNvml(FakeGpu("GPU-a", gone=Code.GPU_IS_LOST), FakeGpu("GPU-b"))
    backend = opened(nvml, tmp_path)
    assert [gpu.uuid for gpu in backend.gpus()] == ["GPU-b"]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "index 0" in record.message
    assert "gone" in record.message


def test_mig_devices(tmp_path: Path) -> None:
    first = MigAttributes(1, 1, 9856, multiprocessors=16, copy_engines=1, jpeg_engines=1)
    second = MigAttributes(3, 1, 40320)
    gpu = FakeGpu(
        "GPU-a",
        mig_mode=True,
        migs={
            0: FakeMig("MIG-0", 1, 0, "NVIDIA H100 80GB HBM3 MIG 1g.10gb+me", first),
            3: FakeMig("MIG-1", 2, 1, "NVIDIA H100", second),
        },
    )
    (listed,) = opened(FakeNvml(gpu), tmp_path).gpus()
    assert listed.mig_enabled
    assert listed.mig_devices == (
        MigDevice("MIG-0", 0, 1, 0, "1g.10gb+me", 9856 * 1024**2, ("/dev/nvidia0",), first),
        MigDevice("MIG-1", 3, 2, 1, "1c.3g.40gb", 40320 * 1024**2, ("/dev/nvidia0",), second),
    )


def test_mig_devices_have_the_nodes_that_the_driver_lists(tmp_path: Path) -> None:
    minors = tmp_path / "proc/driver/nvidia-caps/mig-minors"
    minors.parent.mkdir(parents=True)
    minors.write_text(
        "config 1\nmonitor 2\ngpu0/gi1/access 12\ngpu0/gi1/ci0/access 13\n"
        "gpu1/gi1/access 147\ngpu1/gi1/ci0/access 148\n"
    )
    gpu = FakeGpu("GPU-a", mig_mode=True, migs={0: FakeMig("MIG-0", 1, 0, "MIG 1g.10gb")})
    (listed,) = opened(FakeNvml(gpu), tmp_path).gpus()
    assert listed.mig_devices[0].device_nodes == (
        "/dev/nvidia0",
        "/dev/nvidia-caps/nvidia-cap12",
        "/dev/nvidia-caps/nvidia-cap13",
    )


@pytest.mark.parametrize(
    ("name", "slices", "mib", "total", "profile"),
    [
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", (1, 1), 4864, 40 * GIB, "1g.5gb"),
        ("NVIDIA A100-SXM4-40GB MIG 1c.3g.20gb", (3, 1), 19968, 40 * GIB, "1c.3g.20gb"),
        ("NVIDIA A30 MIG 1g.6gb+me.all", (1, 1), 5952, 24 * GIB, "1g.6gb+me.all"),
        ("NVIDIA RTX PRO MIG 1g.24gb-me", (1, 1), 24000, 96 * GIB, "1g.24gb-me"),
        ("", (1, 1), 4864, 42_949_672_960, "1g.5gb"),
        ("", (3, 3), 19968, 42_949_672_960, "3g.20gb"),
        ("", (7, 7), 40192, 42_949_672_960, "7g.40gb"),
        ("", (1, 1), 9856, 85_520_809_984, "1g.10gb"),
        ("", (2, 1), 20096, 85_520_809_984, "1c.2g.20gb"),
        ("", (1, 1), 0, 0, "1g.0gb"),
    ],
)
def test_mig_profiles_are_spelled_as_nvidia_does(
    name: str, slices: tuple[int, int], mib: int, total: int, profile: str
) -> None:
    assert mig_profile(name, *slices, mib, total) == profile


def test_a_bad_mig_device_does_not_hide_its_siblings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Nvml(FakeNvml):
        def mig_attributes(self, mig: int) -> MigAttributes:
            if mig == bad.handle:
                return super().mig_attributes(self.gpus[0].handle)
            return super().mig_attributes(bad.handle)

    bad = FakeMig("MIG-bad", 1, 0)
    gpu = FakeGpu("GPU-a", mig_mode=True, migs={0: bad, 1: FakeMig("MIG-good", 2, 0)})
    (listed,) = opened(Nvml(gpu), tmp_path).gpus()
    assert [mig.uuid for mig in listed.mig_devices] == ["MIG-good"]
    assert "MIG device 0" in caplog.text


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (Code.DRIVER_NOT_LOADED, DriverUnavailable),
        (Code.LIB_RM_VERSION_MISMATCH, DriverUnavailable),
        (Code.NO_PERMISSION, DriverUnavailable),
        (Code.UNKNOWN, DriverUnavailable),
        (Code.LIBRARY_NOT_FOUND, DriverNotFound),
    ],
)
@pytest.mark.parametrize("call", ["init", "device_count"])
def test_opening_can_be_tried_again_after_a_failure(
    tmp_path: Path, call: str, code: Code, error: type[HalError]
) -> None:
    nvml = FakeNvml(FakeGpu("GPU-a"))
    nvml.failing[call] = code
    backend = NvmlBackend(api=nvml, sysfs_root=tmp_path, procfs_root=tmp_path)
    with pytest.raises(error) as caught:
        backend.open()
    assert caught.value.remedy
    assert nvml.initialised == 0
    nvml.failing.clear()
    backend.open()
    assert backend.driver_version == "580.105.08"


def test_a_driver_that_goes_away_is_an_error_and_not_lost_gpus(tmp_path: Path) -> None:
    nvml = FakeNvml(FakeGpu("GPU-a"))
    backend = opened(nvml, tmp_path)
    nvml.gpus[0].gone = Code.DRIVER_NOT_LOADED
    with pytest.raises(DriverUnavailable):
        backend.gpus()


def test_closing_lets_go_of_everything_and_can_be_undone(tmp_path: Path) -> None:
    nvml = FakeNvml(FakeGpu("GPU-a"))
    backend = opened(nvml, tmp_path)
    assert backend.wait_events(0) == []
    backend.close()
    backend.close()
    assert (nvml.initialised, nvml.open_sets) == (0, set())
    with pytest.raises(DriverUnavailable, match="not open"):
        backend.gpus()
    backend.open()
    backend.open()
    assert nvml.initialised == 1
    assert states(backend.gpus()) == {"GPU-a": GpuState.OK}


def test_closing_never_raises(tmp_path: Path) -> None:
    nvml = FakeNvml(FakeGpu("GPU-a"))
    backend = opened(nvml, tmp_path)
    backend.wait_events(0)
    nvml.failing = dict.fromkeys(("shutdown", "event_set_free"), Code.UNKNOWN)
    backend.close()
    assert (nvml.calls["shutdown"], nvml.calls["event_set_free"]) == (1, 1)


def test_a_uuid_that_was_never_seen(tmp_path: Path) -> None:
    backend = opened(FakeNvml(FakeGpu("GPU-a")), tmp_path)
    for call in (backend.probe, backend.telemetry, backend.processes):
        with pytest.raises(UnknownGpu):
            call("GPU-x")


def test_a_gpu_that_is_on_no_bus_is_listed_and_can_be_probed(tmp_path: Path) -> None:
    gpu = FakeGpu("GPU-a", failing={"pci_bus_id": Code.NOT_SUPPORTED})
    backend = opened(FakeNvml(gpu), tmp_path)
    (listed,) = backend.gpus()
    assert (listed.pci_bus_id, listed.numa_node, listed.state) == ("", None, GpuState.OK)
    assert backend.probe("GPU-a").reachable


def test_a_driver_that_cannot_list_mig_devices_still_lists_the_gpu(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = FakeGpu("GPU-a", mig_mode=True, failing={"mig_handle": Code.FUNCTION_NOT_FOUND})
    (listed,) = opened(FakeNvml(gpu), tmp_path).gpus()
    assert (listed.state, listed.mig_enabled, listed.mig_devices) == (GpuState.OK, True, ())
    assert "MIG device 0 of GPU GPU-a is skipped" in caplog.text


def test_a_mig_device_without_attributes_is_known_by_its_name(tmp_path: Path) -> None:
    named = FakeMig("MIG-a", 1, 0, name="NVIDIA A100 MIG 1g.10gb", attributes=None)
    nameless = FakeMig("MIG-b", 2, 0, attributes=None)
    gpu = FakeGpu("GPU-a", mig_mode=True, migs={0: named, 1: nameless})
    (listed,) = opened(FakeNvml(gpu), tmp_path).gpus()
    (mig,) = listed.mig_devices
    assert (mig.uuid, mig.profile, mig.memory_bytes) == ("MIG-a", "1g.10gb", 9 * GIB)


def test_handles_are_made_anew_when_the_driver_was_reloaded(tmp_path: Path) -> None:
    nvml = FakeNvml(FakeGpu("GPU-a"), FakeGpu("GPU-b"))
    backend = opened(nvml, tmp_path)
    before = backend.gpus()
    old = {gpu.handle for gpu in nvml.gpus}
    assert backend.wait_events(0) == []

    nvml.failing["device_count"] = Code.UNINITIALIZED
    with pytest.raises(DriverUnavailable):
        backend.gpus()
    backend.close()
    nvml.failing.clear()
    nvml.gpus = [FakeGpu("GPU-b"), FakeGpu("GPU-a")]  # other handles, and in another order
    assert not {gpu.handle for gpu in nvml.gpus} & old

    backend.open()
    assert {gpu.uuid for gpu in backend.gpus()} == {gpu.uuid for gpu in before}
    assert all(backend.probe(uuid).reachable for uuid in ("GPU-a", "GPU-b"))
    assert backend.telemetry("GPU-a").memory_total_bytes == 80 * GIB
    nvml.push(event(nvml.gpus[1], EventType.XID, 79))
    assert backend.wait_events(1.0) == [XidError("GPU-a", 79)]


def test_nvml_is_called_from_the_callers_threads_alone(tmp_path: Path) -> None:
    callers: set[int | None] = set()

    class Nvml(FakeNvml):
        def _check(self, call: str) -> None:
            callers.add(threading.get_ident())
            super()._check(call)

    backend = NvmlBackend(tmp_path, Nvml(FakeGpu("GPU-a"), FakeGpu("GPU-b")), sysfs_root=tmp_path)

    def use() -> None:
        backend.open()
        for gpu in backend.gpus():
            backend.probe(gpu.uuid)
            backend.telemetry(gpu.uuid)
            backend.processes(gpu.uuid)
        backend.links()
        backend.wait_events(0)
        backend.close()

    own = threading.Thread(target=use)
    own.start()
    own.join()
    assert callers == {own.ident}


UUID_A, UUID_B = (f"GPU-{letter * 8}-0000-4000-8000-{letter * 12}" for letter in "ab")


def write_proc(root: Path, address: str, uuid: str, minor: int, excluded: str = "No") -> None:
    folder = root / "proc/driver/nvidia/gpus" / address
    folder.mkdir(parents=True)
    (folder / "information").write_text(
        f"Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 42\nGPU UUID: \t {uuid}\n"
        f"Bus Location: \t {address}\nDevice Minor: \t {minor}\nGPU Excluded:\t {excluded}\n"
    )


@pytest.mark.parametrize("code", [Code.GPU_IS_LOST, Code.RESET_REQUIRED, Code.UNKNOWN])
def test_a_gpu_that_was_lost_before_the_first_look_is_listed_as_the_kernel_knows_it(
    tmp_path: Path, code: Code
) -> None:
    write_proc(tmp_path, "0000:06:00.0", "GPU-x", 9, excluded="Yes")
    write_proc(tmp_path, "0000:07:00.0", UUID_A, 0)
    write_proc(tmp_path, "0000:08:00.0", UUID_B, 1)
    write_numa(tmp_path, "0000:08:00.0", "1")
    lost = FakeGpu(UUID_B, gone=code)
    nvml = FakeNvml(FakeGpu(UUID_A), lost)
    backend = opened(nvml, tmp_path)
    first, second = backend.gpus()
    assert (first.uuid, first.state) == (UUID_A, GpuState.OK)
    assert second == Gpu(
        uuid=UUID_B,
        index=1,
        minor=1,
        pci_bus_id="00000000:08:00.0",
        numa_node=1,
        product="NVIDIA H100 80GB HBM3",
        memory_bytes=None,
        compute_capability=None,
        state=GpuState.LOST,
    )
    assert not backend.probe(UUID_B).reachable

    lost.gone = None
    assert states(backend.gpus()) == {UUID_A: GpuState.OK, UUID_B: GpuState.OK}
    assert backend.gpus()[1].memory_bytes == 80 * GIB


@pytest.mark.parametrize(
    "known", [(), (UUID_A,), (UUID_A, "GPU-????????-????-????-????-????????????")]
)
def test_a_lost_gpu_that_nobody_knows_is_left_out(tmp_path: Path, known: tuple[str, ...]) -> None:
    for minor, uuid in enumerate(known):
        write_proc(tmp_path, f"0000:0{minor + 7}:00.0", uuid, minor)
    nvml = FakeNvml(FakeGpu(UUID_A), FakeGpu(UUID_B, gone=Code.GPU_IS_LOST))
    assert states(opened(nvml, tmp_path).gpus()) == {UUID_A: GpuState.OK}


def test_of_two_scans_at_a_time_the_one_that_began_later_counts(tmp_path: Path) -> None:
    """One thread scans for events while another lists: the older must not win by ending last."""
    later: list[tuple[Gpu, ...]] = []

    class Overtaken(FakeNvml):
        """While a scan reads the second GPU, another scan finds the first one lost."""

        def mig_mode(self, device: Handle) -> bool:
            mode = super().mig_mode(device)
            if self.overtake and device == self.gpus[1].handle:
                self.overtake = False
                self.gpus[0].gone = Code.GPU_IS_LOST
                later.append(backend.gpus())
            return mode

        overtake = False

    nvml = Overtaken(FakeGpu("GPU-a"), FakeGpu("GPU-b"))
    backend = opened(nvml, tmp_path)
    nvml.overtake = True
    listed = backend.gpus()
    lost = {"GPU-a": GpuState.LOST, "GPU-b": GpuState.OK}
    assert [states(gpus) for gpus in later] == [lost]
    assert states(listed) == lost
    assert states(backend.gpus()) == lost


@pytest.mark.parametrize("count", [257, 2**32 - 1])
def test_a_count_of_gpus_that_no_node_has_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    nvml = FakeNvml(FakeGpu("GPU-a"))
    monkeypatch.setattr(nvml, "device_count", lambda: count)
    with pytest.raises(HalError, match=f"NVML counts {count} GPUs, more than the 256"):
        opened(nvml, tmp_path).gpus()


def test_gpus_that_were_lost_do_not_pile_up(tmp_path: Path) -> None:
    nvml = FakeNvml()
    backend = opened(nvml, tmp_path)
    for number in range(300):
        nvml.gpus = [FakeGpu(f"GPU-{number}")]
        backend.gpus()
    listed = states(backend.gpus())
    assert len(listed) == 257
    assert listed["GPU-299"] is GpuState.OK
    assert "GPU-298" in listed
    assert "GPU-0" not in listed


def test_a_count_of_mig_devices_that_no_gpu_has_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = FakeNvml(FakeGpu("GPU-a", mig_mode=True))
    monkeypatch.setattr(nvml, "max_mig_devices", lambda _device: 2**32 - 1)
    (gpu,) = opened(nvml, tmp_path).gpus()
    assert gpu.mig_devices == ()
    assert "which cannot be" in str(gpu.unknown)


def test_a_gpu_that_has_no_mig_mode_is_not_capable_of_mig(tmp_path: Path) -> None:
    nvml = FakeNvml(FakeGpu("GPU-a", failing={"mig_mode": Code.NOT_SUPPORTED}))
    backend = opened(nvml, tmp_path)
    assert [gpu.mig_capable for gpu in backend.gpus()] == [False]
    assert backend.cuda_version == (13, 0)


def test_an_old_driver_without_a_cuda_version(tmp_path: Path) -> None:
    nvml = FakeNvml(FakeGpu("GPU-a"))
    nvml.failing["cuda_version"] = Code.FUNCTION_NOT_FOUND
    assert opened(nvml, tmp_path).cuda_version is None
