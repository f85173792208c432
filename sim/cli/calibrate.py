"""The option for a calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.gpu.calibration import load_calibration

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
