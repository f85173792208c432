"""Checks of the driver: the PCI bus, kernel modules, the library, NVML, device nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuplugin.doctor.facts import Failure
from gpuplugin.doctor.verdict import Verdict, fail, failed, found, skipped, warn, warned, well
from hal.nvml.library import LIBRARY, LIBRARY_DIRS

if TYPE_CHECKING:
    from gpuplugin.doctor.facts import Facts, PciGpu
    from gpuplugin.doctor.verdict import Problem

SIMULATED = "the GPUs are simulated"
_DRIVER = "nvidia"


def gpus_on_bus(facts: Facts) -> Verdict:
    """Each GPU on the PCI bus has the driver nvidia, not nouveau, vfio-pci or none."""
    pci = facts.driver.pci
    if facts.simulated:
        return skipped(SIMULATED)
    if facts.driver.wsl:
        return skipped("WSL has no PCI bus of GPUs")
    if pci is None:
        return skipped("/sys/bus/pci cannot be read")
    if not pci:
        return failed(
            "no NVIDIA GPU on the PCI bus",
            "/sys/bus/pci/devices",
            "Check that the machine has a GPU ('lspci -d 10de:'), that it is passed "
            "through to this virtual machine, and that the firmware maps it (above 4G "
            "decoding). Without one, let the plugin's affinity leave this node out",
        )
    some_for_containers = any(gpu.driver == _DRIVER for gpu in pci)
    problems = [problem for gpu in pci if (problem := _wrong_driver(gpu, some_for_containers))]
    return found(problems, f"{len(pci)} on the PCI bus, driven by {_DRIVER}")


def _wrong_driver(gpu: PciGpu, some_for_containers: bool) -> Problem | None:
    where = f"/sys/bus/pci/devices/{gpu.address}/driver"
    match gpu.driver:
        case "nvidia":
            return None
        case "nouveau":
            return fail(
                f"GPU {gpu.address} is bound to nouveau",
                where,
                "Blacklist it: 'blacklist nouveau' and 'options nouveau modeset=0' in "
                "/etc/modprobe.d, rebuild the initramfs, reboot",
            )
        case "vfio-pci":
            tell = warn if some_for_containers else fail
            otherwise = "leave it so" if some_for_containers else "leave this node out"
            return tell(
                f"GPU {gpu.address} is bound to vfio-pci, for virtual machines",
                where,
                f"If containers are to have it, bind it to nvidia; else {otherwise}",
            )
        case "":
            return fail(
                f"GPU {gpu.address} has no driver",
                where,
                "Load the module ('modprobe nvidia') and see 'dmesg' for why it did not take "
                "the GPU: too old for it, not signed (Secure Boot), or the GPU is broken",
            )
    what = f"GPU {gpu.address} is driven by {gpu.driver}"
    return warn(what, where, "Bind it to the driver nvidia")


def kernel_modules(facts: Facts) -> Verdict:
    """The modules nvidia and nvidia_uvm are loaded, nouveau is not."""
    modules = facts.driver.modules
    if facts.simulated:
        return skipped(SIMULATED)
    if facts.driver.wsl:
        return skipped("WSL has its driver in Windows")
    if modules is None:
        return skipped("/proc/modules cannot be read")
    problems: list[Problem] = []
    if "nvidia" not in modules:
        problems.append(
            fail(
                "the kernel module nvidia is not loaded",
                "/proc/modules",
                f"{_load_it(facts)}. The plugin finds a driver that is loaded later by itself: it "
                "needs no restart",
            )
        )
    elif "nvidia_uvm" not in modules:
        problems.append(
            fail(
                "the kernel module nvidia_uvm is not loaded: CUDA cannot start",
                "/proc/modules",
                "Load it and make its nodes: 'modprobe nvidia-uvm' and 'nvidia-modprobe -u -c=0'",
            )
        )
    if "nouveau" in modules:
        problems.append(
            warn(
                "the kernel module nouveau is loaded, which takes GPUs from the driver",
                "/proc/modules",
                "Blacklist it in /etc/modprobe.d, rebuild the initramfs, reboot",
            )
        )
    modeset = "" if "nvidia_modeset" in modules else " (without nvidia_modeset: no graphics)"
    version = f" {facts.driver.module_version}" if facts.driver.module_version else ""
    return found(problems, f"nvidia{version} and nvidia_uvm are loaded{modeset}")


def _load_it(facts: Facts) -> str:
    if facts.talos is not None:
        return (
            "Have Talos load it: deploy/talos/gpu-from-1.14.yaml, or -until-1.13.yaml. If there is "
            "none ('talosctl dmesg'), the image lacks the extension with the modules"
        )
    return (
        "Load it ('modprobe nvidia') and see 'dmesg'. If there is none for this kernel, install "
        "the driver (again, after a kernel update)"
    )


def nvml_library(facts: Facts) -> Verdict:
    """The driver's root has libnvidia-ml.so.1; if not, where else it is."""
    driver = facts.driver
    if facts.simulated:
        return skipped(SIMULATED)
    sound = [library for library in driver.libraries if not library.problem]
    if sound:
        version = f" ({sound[0].version})" if sound[0].version else ""
        return well(f"{LIBRARY} at {sound[0].path}{version}")
    if facts.hardware.failure is not Failure.NOT_FOUND:
        return well(f"{LIBRARY} is on the loader's own search path")
    problems = [
        fail(
            f"{library.path} cannot be loaded: {library.problem}",
            library.path,
            "Install the driver's files again; in a container, mount the whole driver",
        )
        for library in driver.libraries
    ]
    elsewhere = next((one for one in driver.elsewhere if not one.problem), None)
    if elsewhere is not None:
        folder = _root_of(elsewhere.path)
        problems.append(
            fail(
                f"{LIBRARY} is not below {driver.root}, but at {elsewhere.path}",
                "--driver-root",
                f"Set NVIDIA_DRIVER_ROOT={folder} (--driver-root), and mount it into the plugin's "
                "container at DRIVER_ROOT_CTR_PATH",
            )
        )
    elif not problems:
        problems.append(
            fail(
                f"{LIBRARY} was found nowhere",
                facts.hardware.cause or driver.root,
                "Install the driver on the node. In the plugin's container: set runtimeClassName "
                "to the RuntimeClass nvidia, or mount the driver and set NVIDIA_DRIVER_ROOT "
                "(where it is on the host) and DRIVER_ROOT_CTR_PATH (where it is mounted)",
            )
        )
    return found(problems, "")


def _root_of(library: str) -> str:
    """The driver's root for a library: its path without the folders that a root has."""
    folder = library.rpartition("/")[0]
    tails = sorted((f"/{one}" for one in LIBRARY_DIRS), key=len, reverse=True)
    tail = next((one for one in tails if folder.endswith(one)), "")
    return folder.removesuffix(tail) or "/"


def driver_versions(facts: Facts) -> Verdict:
    """The loaded module and the library on disk are of one version."""
    if facts.simulated:
        return skipped(SIMULATED)
    module = facts.driver.module_version
    versions = sorted({one.version for one in facts.driver.libraries if one.version})
    if not module or not versions:
        return skipped("the version of the module or of the library is not known")
    if module in versions and len(versions) == 1:
        return well(f"module and library are of version {module}")
    if module in versions:
        return warned(
            f"libraries of several drivers: {', '.join(versions)}; the module is {module}",
            ", ".join(one.path for one in facts.driver.libraries),
            "Remove the drivers that are not loaded",
        )
    return failed(
        f"the loaded module is {module}, the library on disk is {', '.join(versions)}",
        "/proc/driver/nvidia/version",
        "The driver was updated under running programs: drain the node and reboot, or "
        "stop what uses GPUs and reload the modules ('modprobe -r nvidia_uvm "
        "nvidia_drm nvidia_modeset nvidia', then 'modprobe nvidia nvidia-uvm')",
    )


_CURES = {
    Failure.NOT_FOUND: "See the check nvml-library; the plugin tries again by itself, and is not "
    "ready until then",
    Failure.UNAVAILABLE: "Check 'lsmod | grep nvidia' and 'dmesg | grep -i nvrm'; the plugin tries "
    "again by itself, and is not ready until then",
    Failure.HUNG: "Look for a stuck driver in 'dmesg'. Drain the node; a GPU that hangs often "
    "needs a reboot",
    Failure.OTHER: "See 'dmesg | grep -i nvrm'",
}


def driver_answers(facts: Facts) -> Verdict:
    """NVML answers and lists every GPU on the PCI bus that has the driver."""
    hardware = facts.hardware
    if hardware.failure is not None:
        consequence = ""
        if facts.settings.flags.fail_on_init_error and hardware.failure is not Failure.HUNG:
            consequence = ". With fail-on-init-error the plugin ends instead of trying again"
        not_found = hardware.failure is Failure.NOT_FOUND
        do = "" if not_found else hardware.remedy
        what = hardware.failure.value if not_found else hardware.cause
        problem = fail(what, "NVML", f"{do or _CURES[hardware.failure]}{consequence}")
        return Verdict(hardware.failure.value, (problem,))
    if not hardware.gpus:
        return failed(
            "the driver answers and lists no GPU",
            f"driver {hardware.driver_version}",
            "See 'dmesg | grep -i nvrm' for why it did not take them; in a container, set "
            "NVIDIA_VISIBLE_DEVICES=all",
        )
    listed = len(hardware.gpus)
    on_bus = sum(gpu.driver == _DRIVER for gpu in facts.driver.pci or ())
    if not facts.simulated and on_bus > listed:
        return warned(
            f"the driver lists {listed} of the {on_bus} GPUs on the bus that it drives",
            "NVML",
            "See 'dmesg | grep -i nvrm' for the others; in a container, set "
            "NVIDIA_VISIBLE_DEVICES=all",
        )
    return well(f"driver {hardware.driver_version} lists {listed} GPU{'s' * (listed > 1)}")


NVIDIA_MAJOR = 195
CONTROL_MINOR = 255
_CONTROL, _UVM = "/dev/nvidiactl", "/dev/nvidia-uvm"
_MAKE = "Create it: 'nvidia-modprobe -c=0 -u' on the host, or run 'nvidia-smi' there once"
_READ_WRITE = 6


def device_nodes(facts: Facts) -> Verdict:
    """The nodes of the driver, of GPUs and of MIG devices have the right numbers and mode."""
    if facts.simulated:
        return skipped(SIMULATED)
    if facts.driver.wsl:
        return skipped("WSL has /dev/dxg for all GPUs")
    if facts.driver.pci == ():
        return skipped("there is no GPU")
    modules = facts.driver.modules
    if modules is not None and "nvidia" not in modules:
        return skipped("the kernel module nvidia is not loaded")
    wanted: dict[str, tuple[int, int] | None] = {
        _CONTROL: (NVIDIA_MAJOR, CONTROL_MINOR),
        _UVM: None,
    }
    for gpu in facts.gpus:
        if gpu.minor is not None:
            wanted[f"/dev/nvidia{gpu.minor}"] = (NVIDIA_MAJOR, gpu.minor)
        for mig in gpu.mig_devices:
            wanted |= dict.fromkeys(mig.device_nodes[1:])
    problems = [
        problem for path, numbers in wanted.items() if (problem := _of_path(facts, path, numbers))
    ]
    count = len(facts.driver.nodes)
    return found(problems, f"{count} nodes are there, with the right numbers and rights")


def _of_path(facts: Facts, path: str, numbers: tuple[int, int] | None) -> Problem | None:
    node = facts.driver.nodes.get(path)
    if node is None:
        return fail(f"the device node {path} does not exist", path, _MAKE)
    if node.device is None:
        return fail(
            f"{path} is not a device node",
            path,
            f"Remove it: something made a file in its place before the driver came. {_MAKE}",
        )
    if numbers is not None and node.device != numbers:
        found_numbers, wanted = (f"{one}:{other}" for one, other in (node.device, numbers))
        return fail(
            f"{path} has the numbers {found_numbers}, the driver's are {wanted}",
            path,
            f"Remove it and create it again: 'mknod -m 666 {path} c {numbers[0]} {numbers[1]}'",
        )
    if not node.permits(65534, _READ_WRITE) and not path.startswith("/dev/nvidia-caps/"):
        return warn(
            f"{path} is open to some users only (mode {node.mode:04o})",
            path,
            "Containers that do not run as root cannot use the GPU: set the module's options "
            "NVreg_DeviceFileMode=0666, or 'chmod 666' until the next reboot",
        )
    return None
