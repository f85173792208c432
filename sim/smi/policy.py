"""What NVML has no public call for: time slices and resets, asked of the node itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuplugin.linesocket import ControlError
from hal import TimeSliceLevel
from sim.node.control import control_socket, inject, set_time_slice, status
from sim.smi.driver import SmiError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sim.smi.driver import Gpu


def compute_policies(gpus: Sequence[Gpu], nvml_socket: Path) -> Iterator[str]:
    rule = f"+{'-' * 37}+"
    try:
        levels = {one.uuid: one.time_slice for one in status(control_socket(nvml_socket.parent))}
    except ControlError as error:
        raise _no_node(error) from error
    yield rule
    yield "| GPU compute policies:               |"
    yield "| GPU   Policy               Value    |"
    yield f"|{'=' * 37}|"
    for gpu in gpus:
        level = TimeSliceLevel(levels[gpu.uuid]).name.capitalize()
        yield f"|{gpu.index:>4}   {'Timeslice':<21}{level:<9}|"
    yield rule


def set_policies(gpus: Sequence[Gpu], level: int, nvml_socket: Path) -> Iterator[str]:
    wanted = TimeSliceLevel(level)
    for gpu in gpus:
        try:
            set_time_slice(control_socket(nvml_socket.parent), gpu.uuid, wanted)
        except ControlError as error:
            text = f"Failed to set timeslice policy for GPU {gpu.bus_id}: {error}"
            raise SmiError(text, 3) from error
        yield f"Successfully set timeslice policy for GPU {gpu.bus_id} to {wanted.name.lower()}"


def reset(gpus: Sequence[Gpu], nvml_socket: Path) -> Iterator[str]:
    """Reset GPUs that nobody uses; raises `SmiError`."""
    busy = [gpu for gpu in gpus if gpu.processes()]
    if busy:
        lines = [f"  GPU {gpu.bus_id}: In use by another client" for gpu in busy]
        raise SmiError("\n".join(("The following GPUs could not be reset:", *lines)), 19)
    for gpu in gpus:
        try:
            inject(control_socket(nvml_socket.parent), gpu.uuid, {"kind": "recover"})
        except ControlError as error:
            raise _no_node(error) from error
        yield f"GPU {gpu.bus_id} was successfully reset."
    yield "All done."


def _no_node(error: ControlError) -> SmiError:
    return SmiError(f"the simulated node cannot be asked: {error}", 9)
