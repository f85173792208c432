"""Looks at a backend for a while: inventory once, telemetry and processes again and again, events.

One thread makes all calls, and waiting for events is what passes the time in between.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from hal import GpuState, HalError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hal import Backend, ComputeProcess, Event, Gpu, Link, Probe, Telemetry

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Sample:
    """One look, `at_s` after the start; a GPU that did not answer is missing."""

    at_s: float
    readings: Mapping[str, Telemetry]
    processes: Mapping[str, tuple[ComputeProcess, ...]]


@dataclass(frozen=True, slots=True)
class Recording:
    """What was seen of a node in `length_s`; `notes` tells what could not be seen."""

    driver_version: str
    length_s: float
    gpus: tuple[Gpu, ...]
    probes: Mapping[str, Probe]
    links: Mapping[tuple[str, str], Link]
    samples: tuple[Sample, ...]
    events: tuple[tuple[float, Event], ...]
    notes: tuple[str, ...]


class _Observer:
    def __init__(self, backend: Backend, clock: Callable[[], float]) -> None:
        self._backend = backend
        self._clock = clock
        self._start_s = clock()
        self._notes: dict[str, None] = {}
        self._deaf = False

    def record(self, for_s: float, interval_s: float) -> Recording:
        backend = self._backend
        gpus = backend.gpus()
        probes = {
            gpu.uuid: probe
            for gpu in gpus
            if (probe := self._try(lambda gpu=gpu: backend.probe(gpu.uuid))) is not None  # type: ignore[misc]
        }
        links = self._try(backend.links) or {}
        samples: list[Sample] = []
        events: list[tuple[float, Event]] = []
        ends_s = self._start_s + for_s
        while True:
            samples.append(self._sample(gpus))
            next_s = min(self._clock() + interval_s, ends_s)
            while (left_s := next_s - self._clock()) > 0:
                events.extend(self._wait(left_s))
            if self._clock() >= ends_s:
                break
        return Recording(
            driver_version=backend.driver_version,
            length_s=for_s,
            gpus=gpus,
            probes=MappingProxyType(probes),
            links=links,
            samples=tuple(samples),
            events=tuple(events),
            notes=tuple(self._notes),
        )

    def _sample(self, gpus: tuple[Gpu, ...]) -> Sample:
        at_s = self._clock() - self._start_s
        readings: dict[str, Telemetry] = {}
        processes: dict[str, tuple[ComputeProcess, ...]] = {}
        for uuid in (gpu.uuid for gpu in gpus if gpu.state is GpuState.OK):
            reading = self._try(lambda uuid=uuid: self._backend.telemetry(uuid))  # type: ignore[misc]
            if reading is not None:
                readings[uuid] = reading
            found = self._try(lambda uuid=uuid: self._backend.processes(uuid))  # type: ignore[misc]
            processes[uuid] = found or ()
        return Sample(at_s, MappingProxyType(readings), MappingProxyType(processes))

    def _wait(self, left_s: float) -> list[tuple[float, Event]]:
        if self._deaf:
            threading.Event().wait(left_s)
            return []
        try:
            events = self._backend.wait_events(left_s)
        except HalError as error:
            self._deaf = True
            self._notes[f"events could not be recorded: {error}"] = None
            return []
        at_s = self._clock() - self._start_s
        return [(at_s, event) for event in events]

    def _try(self, call: Callable[[], _T]) -> _T | None:
        try:
            return call()
        except HalError as error:
            self._notes[str(error)] = None
            return None


def observe(
    backend: Backend,
    for_s: float,
    interval_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> Recording:
    """Look at an open backend for `for_s` seconds, every `interval_s`.

    What one GPU cannot tell is a note, and hides nothing else.

    Raises:
        HalError: not even the GPUs can be listed.
    """
    return _Observer(backend, clock).record(for_s, interval_s)
