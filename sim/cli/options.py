"""Options that several commands have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.gpu.calibration import load_calibration
from sim.study.workers import Workers

if TYPE_CHECKING:
    import argparse

    from sim.gpu.calibration import Calibration


def add_calibration(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--calibration",
        metavar="FILE",
        help="what 'gpuplugin calibrate' measured on a GPU, in place of what is shipped for its "
        "model",
    )


def given_calibration(parsed: argparse.Namespace) -> Calibration | None:
    """The calibration of the command's model; raises `CannotUse`."""
    if parsed.calibration is None:
        return None
    return load_calibration(parsed.calibration, parsed.model)


def add_workers(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--processes", type=int, default=0, metavar="N", help="at once (default: one for each core)"
    )
    command.add_argument(
        "--dask",
        default="",
        metavar="ADDRESS",
        help="run on the workers of this Dask scheduler, such as tcp://10.0.0.7:8786",
    )


def workers_of(parsed: argparse.Namespace) -> Workers:
    return Workers(max(0, parsed.processes), parsed.dask)
