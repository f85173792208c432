"""The options of `gpuplugin sim inject`: every kind of fault can be injected, and is described."""

from __future__ import annotations

from typing import get_args

import pytest

from gpuplugin.cli.parser import build_parser
from sim.cli.inject import describe, what_of
from sim.gpu.faults import FAULT, GpuFault, NodeFault

OPTIONS = {
    "--xid 79": "Xid 79, GPU has fallen off the bus (action: reboot-node)",
    "--ecc corrected": "corrected ECC",
    "--ecc uncorrectable --count 3": "uncorrectable ECC, 3 errors",
    "--row-remap failed": "row remap failed, no event",
    "--lost": "lost",
    "--hang": "hangs until it recovers",
    "--hang 2": "hangs for 2 s",
    "--thermal-shutdown": "at its shutdown temperature, lost soon",
    "--unplug": "removed from the bus",
    "--plug": "back on the bus",
    "--replace": "taken out",
    "--repartition none": "MIG is off",
    "--repartition 1g.10gb,2g.20gb": "MIG devices 1g.10gb, 2g.20gb",
    "--recover": "recovered, as after a reset",
    "--gpu 0 --returns memory --code not-supported": "memory return NOT_SUPPORTED until it "
    "recovers",
    "--gpu 0 --returns nvmlDeviceGetName,field:230 --value hex:f88a41 --mig 1 --every 3 --for 2": (
        "MIG device 1: nvmlDeviceGetName, field:230 return hex:f88a41 at one call in 3 for 2 s"
    ),
    "--gpu 0 --returns memory --value used=5,free=0x10": (
        "memory return {'used': 5, 'free': 16} until it recovers"
    ),
    "--gpu 0 --returns memory --code 0": "memory return the truth",
    "--returns nvmlDeviceGetCount --code 999": (
        "nvmlDeviceGetCount return UNKNOWN until --driver up"
    ),
    "--compute-mode exclusive-process": "compute mode exclusive-process",
    "--fabric in-progress": "NVLink fabric in-progress",
    "--fabric completed --code unknown": "NVLink fabric completed, UNKNOWN",
    "--confidential not-ready": "GPUs are not ready for confidential computing",
    "--driver down": "the driver is not loaded",
    "--driver up": "the driver was reloaded",
    "--driver hang": "the driver hangs until --driver up",
    "--watch broken --for 5": "waiting for events fails for 5 s",
    "--watch mended": "waiting for events works again",
}


def kind_of(options: str) -> str:
    words = ["sim", "inject", "--control", "socket", *options.split()]
    return FAULT.validate_python(what_of(build_parser("sim", "inject").parse_args(words))).kind


@pytest.mark.parametrize("options", OPTIONS)
def test_options_are_a_fault_and_its_description(options: str) -> None:
    words = ["sim", "inject", "--control", "socket", *options.split()]
    fault = FAULT.validate_python(what_of(build_parser("sim", "inject").parse_args(words)))
    assert describe(fault) == OPTIONS[options]


def test_every_kind_of_fault_has_an_option() -> None:
    kinds = {model.model_fields["kind"].default for model in get_args(GpuFault | NodeFault)}
    assert {kind_of(options) for options in OPTIONS} == kinds
