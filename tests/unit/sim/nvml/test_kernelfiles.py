"""The simulated kernel's files, read as the NVML backend reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hal.nvml.kernelfiles import (
    mig_device_nodes,
    numa_node,
    read_epoch,
    read_mig_minors,
    read_proc_gpus,
    sysfs_bus_id,
)
from sim.gpu.faults import (
    DriverDown,
    DriverHang,
    DriverUp,
    LostFault,
    Plug,
    Recovery,
    Repartition,
    Replacement,
    Unplug,
    XidFault,
)
from sim.node.node import SimulatedNode
from sim.node.realtime import RealTimeNode
from sim.node.scenario import GpuGroup, Scenario
from sim.node.serve import CannotServe, kernel_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sim.gpu.faults import GpuFault
    from sim.node.kernel import KernelFiles


class Kernel:
    """A node with two GPUs, and its files."""

    def __init__(self, node: SimulatedNode, files: KernelFiles) -> None:
        self.node = node
        self.files = files

    def let(self, *what: GpuFault, gpu: int = 0) -> None:
        for one in what:
            self.node.inject(self.node.present[gpu], one)

    def epoch(self, gpu: int = 0) -> str:
        identity = self.node.present[gpu].identity
        return read_epoch(identity, "580.105.08", self.files.sysfs, self.files.procfs)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    model = SimulatedNode(Scenario(gpus=[GpuGroup(model="h100-sxm5-80gb", count=2)]))
    with kernel_files(RealTimeNode(model), tmp_path / "kernel") as files:
        yield Kernel(model, files)


@pytest.mark.parametrize(
    "what",
    [(Recovery(),), (LostFault(), Recovery()), (Unplug(), Plug()), (Recovery(), Recovery())],
)
def test_a_reset_changes_the_epoch_of_its_gpu_alone(
    kernel: Kernel, what: tuple[GpuFault, ...]
) -> None:
    before = kernel.epoch(), kernel.epoch(1)
    kernel.let(*what)
    assert kernel.epoch() != before[0]
    assert kernel.epoch(1) == before[1]


def test_no_epoch_of_late_comes_again(kernel: Kernel) -> None:
    epochs = [kernel.epoch()]
    for _ in range(50):
        kernel.let(Recovery())
        epochs.append(kernel.epoch())
    assert len(set(epochs)) == len(epochs)


def test_folders_do_not_pile_up(kernel: Kernel) -> None:
    for _ in range(300):
        kernel.let(Recovery())
    assert len(list((kernel.files.sysfs / "devices").iterdir())) < 100


def test_a_fault_leaves_the_epoch_as_it_is(kernel: Kernel) -> None:
    before = kernel.epoch()
    kernel.let(XidFault(xid=31), XidFault(xid=95), LostFault())
    assert kernel.epoch() == before


def test_a_load_of_the_driver_changes_the_epochs_of_all(kernel: Kernel) -> None:
    before = kernel.epoch(), kernel.epoch(1)
    module = kernel.files.sysfs / "module/nvidia"
    assert module.exists()
    kernel.node.inject_node(DriverDown())
    assert not module.exists()
    kernel.node.inject_node(DriverUp())
    assert module.exists()
    assert kernel.epoch() != before[0]
    assert kernel.epoch(1) != before[1]


def test_a_driver_that_hung_and_was_loaded_anew_changes_the_epoch(kernel: Kernel) -> None:
    before = kernel.epoch()
    kernel.node.inject_node(DriverHang())
    assert kernel.epoch() == before
    kernel.node.inject_node(DriverUp())
    assert kernel.epoch() != before


def test_the_gpus_are_listed_with_their_numa_nodes_and_who_they_are(kernel: Kernel) -> None:
    kernel.let(Replacement(), gpu=1)
    kernel.let(LostFault(), gpu=1)
    listed = read_proc_gpus(kernel.files.procfs)
    present = [gpu.identity for gpu in kernel.node.present]
    assert [one and one.uuid for one in listed] == [gpu.uuid for gpu in present]
    assert [one and one.minor for one in listed] == [gpu.minor for gpu in present]
    found = [numa_node(kernel.files.sysfs, gpu.pci_bus_id, pytest.fail) for gpu in present]
    assert found == [gpu.numa_node for gpu in present] == [0, 1]


def test_an_unplugged_gpu_is_not_on_the_bus(kernel: Kernel) -> None:
    folder = kernel.files.sysfs / "bus/pci/devices"
    bus_id = sysfs_bus_id(kernel.node.present[0].identity.pci_bus_id)
    assert (folder / bus_id).exists()
    kernel.let(Unplug())
    assert not (folder / bus_id).exists()


def test_mig_devices_have_their_device_nodes(kernel: Kernel) -> None:
    kernel.let(Repartition(mig=["3g.40gb", "2g.20gb"]), gpu=1)
    minors = read_mig_minors(kernel.files.procfs)
    migs = kernel.node.present[1].identity.mig_devices
    assert len(migs) == 2
    for mig in migs:
        nodes = mig_device_nodes(1, mig.gpu_instance, mig.compute_instance, minors)
        assert nodes == mig.device_nodes
    kernel.let(Repartition(mig=None), gpu=1)
    assert read_mig_minors(kernel.files.procfs) == {}


def test_pci_devices_have_what_programs_read(kernel: Kernel) -> None:
    bus_id = sysfs_bus_id(kernel.node.present[0].identity.pci_bus_id)
    folder = kernel.files.sysfs / "bus/pci/devices" / bus_id
    texts = {name: (folder / name).read_text().strip() for name in ("vendor", "device", "class")}
    assert texts == {"vendor": "0x10de", "device": "0x2330", "class": "0x030200"}
    config = (folder / "config").read_bytes()
    assert len(config) == 256
    assert config[:4] == bytes.fromhex("de103023")
    assert config[0x0A:0x0C] == bytes.fromhex("0203")
    assert config[0x2C:0x30] == bytes.fromhex("de10c116")
    assert (folder / "driver").resolve().name == "nvidia"
    assert len((folder / "resource").read_text().splitlines()) == 13


def test_switches_are_pci_devices_too(kernel: Kernel) -> None:
    folder = kernel.files.sysfs / "bus/pci/devices"
    classes = [(one / "class").read_text().strip() for one in folder.iterdir()]
    assert sorted(classes) == ["0x030200"] * 2 + ["0x068000"] * 4


def test_the_driver_tells_its_version_and_its_gpus(kernel: Kernel) -> None:
    driver = kernel.files.procfs / "driver/nvidia"
    assert "  580.105.08  " in (driver / "version").read_text()
    bus_id = sysfs_bus_id(kernel.node.present[1].identity.pci_bus_id)
    information = (driver / "gpus" / bus_id / "information").read_text()
    assert "Video BIOS: \t 96.00.99.00.01" in information
    assert (kernel.files.sysfs / "module/nvidia/version").read_text() == "580.105.08\n"


def test_instances_have_capabilities(kernel: Kernel) -> None:
    folder = kernel.files.procfs / "driver/nvidia/capabilities"

    def found() -> dict[str, int]:
        """Minors by file."""
        return {
            str(path.relative_to(folder)): int(path.read_text().split()[1])
            for path in folder.rglob("*")
            if path.is_file()
        }

    administration = {"mig/config": 1, "mig/monitor": 2}
    assert found() == administration
    gpu = kernel.node.present[1]
    kernel.let(Repartition(mig=[]), gpu=1)
    mig = gpu.profile.mig[4]
    instance = kernel.node.partitions.create_gpu_instance(gpu, mig)
    assert found() == administration | {"gpu1/mig/gi1/access": 147}
    kernel.node.partitions.create_compute_instance(gpu, instance)
    access = {"gpu1/mig/gi1/access": 147, "gpu1/mig/gi1/ci0/access": 148}
    assert found() == administration | access
    assert read_mig_minors(kernel.files.procfs) == {(1, 1, None): 147, (1, 1, 0): 148}
    kernel.let(Repartition(mig=None), gpu=1)
    assert found() == administration


def test_they_are_gone_with_the_node(tmp_path: Path) -> None:
    node = RealTimeNode(SimulatedNode(Scenario(gpus=[GpuGroup(model="rtx3090")])))
    with kernel_files(node, tmp_path / "kernel"):
        assert (tmp_path / "kernel").exists()
    assert not (tmp_path / "kernel").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_text("")
    node = RealTimeNode(SimulatedNode(Scenario(gpus=[GpuGroup(model="rtx3090")])))
    with (
        pytest.raises(CannotServe, match=str(tmp_path / "kernel")),
        kernel_files(node, tmp_path / "kernel"),
    ):
        pass
