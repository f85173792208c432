"""Checks of the driver's device nodes: there, of the right numbers, open to everybody."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuplugin.doctor.checks.driver import SIMULATED
from gpuplugin.doctor.verdict import Verdict, fail, found, skipped, warn

if TYPE_CHECKING:
    from gpuplugin.doctor.facts import Facts
    from gpuplugin.doctor.verdict import Problem

NVIDIA_MAJOR = 195
CONTROL_MINOR = 255
_CONTROL, _UVM = "/dev/nvidiactl", "/dev/nvidia-uvm"
_MAKE = "Make it: 'nvidia-modprobe -c=0 -u' on the host, or run 'nvidia-smi' there once"
_READ_WRITE = 6


def device_nodes(facts: Facts) -> Verdict:
    """Nodes of the driver, of each GPU and of each MIG device."""
    if facts.simulated:
        return skipped(SIMULATED)
    if facts.driver.wsl:
        return skipped("WSL has /dev/dxg for all GPUs")
    if facts.driver.pci == ():
        return skipped("there is no GPU")
    modules = facts.driver.modules
    if modules is not None and "nvidia" not in modules:
        return skipped("the kernel module nvidia is not loaded")
    problems = _of_path(facts, _CONTROL, (NVIDIA_MAJOR, CONTROL_MINOR))
    problems += _of_path(facts, _UVM, None)
    for gpu in facts.gpus:
        if gpu.minor is not None:
            problems += _of_path(facts, f"/dev/nvidia{gpu.minor}", (NVIDIA_MAJOR, gpu.minor))
        for mig in gpu.mig_devices:
            for path in mig.device_nodes[1:]:
                problems += _of_path(facts, path, None)
    count = len(facts.driver.nodes)
    return found(problems, f"{count} nodes are there, with the right numbers and rights")


def _of_path(facts: Facts, path: str, numbers: tuple[int, int] | None) -> list[Problem]:
    node = facts.driver.nodes.get(path)
    if node is None:
        return [fail(f"the device node {path} is not there", path, _MAKE)]
    if node.device is None:
        return [
            fail(
                f"{path} is no device node",
                path,
                f"Remove it: something made a file in its place before the driver came. {_MAKE}",
            )
        ]
    if numbers is not None and node.device != numbers:
        found_numbers, wanted = (f"{one}:{other}" for one, other in (node.device, numbers))
        return [
            fail(
                f"{path} has the numbers {found_numbers}, the driver's are {wanted}",
                path,
                f"Remove it and make it anew: 'mknod -m 666 {path} c {numbers[0]} {numbers[1]}'",
            )
        ]
    if not node.permits(65534, _READ_WRITE) and not path.startswith("/dev/nvidia-caps/"):
        return [
            warn(
                f"{path} is open to some users only (mode {node.mode:04o})",
                path,
                "Containers that do not run as root cannot use the GPU: set the module's options "
                "NVreg_DeviceFileMode=0666, or 'chmod 666' until the next reboot",
            )
        ]
    return []
