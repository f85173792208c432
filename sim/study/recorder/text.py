"""A recording as the text of a scenario file, with comments on what it is and what it lacks."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

import yaml

from sim.node.scenario import parse_scenario
from sim.study.recorder.scenario import Scenarist

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hal import Gpu
    from sim.study.recorder.observe import Recording

_WIDTH = 100


def as_yaml(recording: Recording, name: str, *, scrub: bool) -> str:
    """The scenario file; it is checked as one before it is returned.

    Raises:
        sim.node.scenario.ScenarioError: what was seen cannot be said in a scenario.
    """
    scenarist = Scenarist(recording, scrub=scrub)
    body = yaml.safe_dump(
        scenarist.scenario(name), sort_keys=False, width=_WIDTH, allow_unicode=True
    )
    head = [
        f"# Recorded from a node in {recording.length_s:g} s, {len(recording.samples)} looks.",
        "# Scrubbed: UUIDs, PCI addresses and names of processes are not those of the node."
        if scrub
        else "# It identifies hardware and programs: UUIDs, PCI addresses, names of processes.",
        *_seen(recording),
        *(f"# Not as it was: {' '.join(note.split())}" for note in dict.fromkeys(scenarist.notes)),
    ]
    text = "\n".join([*head, body])
    parse_scenario(text, name)
    return text


def _seen(recording: Recording) -> Iterator[str]:
    """What the readings were, which the simulated GPU comes near to but does not repeat."""
    for gpu in recording.gpus:
        values = [
            f"{label} {fmean(found):.{digits}f} {unit}"
            for key, label, unit, digits in (
                ("utilization", "utilisation", "of 1", 2),
                ("power_w", "power", "W", 0),
                ("temperature_c", "temperature", "C", 0),
                ("sm_clock_mhz", "SM clock", "MHz", 0),
            )
            if (found := _values(recording, gpu, key))
        ]
        if values:
            yield f"# GPU {gpu.index}, on average: {', '.join(values)}"


def _values(recording: Recording, gpu: Gpu, key: str) -> list[float]:
    readings = (one.readings.get(gpu.uuid) for one in recording.samples)
    values = (getattr(reading, key) for reading in readings if reading is not None)
    return [float(value) for value in values if value is not None]
