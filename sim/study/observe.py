"""Observes a node through `hal`: what `gpuplugin record` turns into a scenario."""

from __future__ import annotations

import math
import re
import threading
import time
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from hal import GpuState, HalError
from sim.gpu.profiles import load_profile, model_names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hal import Backend, ComputeProcess, Event, Gpu, Link, Probe, Telemetry
    from sim.gpu.profiles import Profile


_WORD = re.compile(r"[a-z]+\d+[a-z]*|\d+gb|[a-z]+|\d+")
_SAME_CAPABILITY = 0.5
_MEMORY_WEIGHT = 0.3


def nearest_model(gpu: Gpu) -> str:
    """The model whose product name, compute capability and memory are closest to the GPU's."""
    return max(model_names(), key=lambda name: _likeness(gpu, load_profile(name)))


def _likeness(gpu: Gpu, profile: Profile) -> float:
    """Higher is closer: a name that is the same beats everything else."""
    if gpu.product == profile.product:
        return math.inf if gpu.memory_bytes == profile.memory_bytes else 1e6 - _apart(gpu, profile)
    own, other = (set(_WORD.findall(text.lower())) for text in (gpu.product, profile.product))
    words = len(own & other) / max(1, len(own | other))
    same = gpu.compute_capability == profile.compute_capability
    return words + _SAME_CAPABILITY * same - _MEMORY_WEIGHT * _apart(gpu, profile)


def _apart(gpu: Gpu, profile: Profile) -> float:
    """How far the sizes of memory are apart, in powers of two."""
    if not gpu.memory_bytes:
        return 0.0
    return abs(math.log2(gpu.memory_bytes / profile.memory_bytes))


_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Sample:
    """One look, `at_s` after the start; a GPU that did not answer is missing."""

    at_s: float
    readings: Mapping[str, Telemetry]
    processes: Mapping[str, tuple[ComputeProcess, ...]]


READINGS = ("utilization", "power_w", "temperature_c", "sm_clock_mhz", "memory_used_bytes")
MOST_EVENTS = 10_000
"""Later ones are not kept."""


@dataclass(slots=True)
class Mean:
    total: float = 0.0
    count: int = 0

    def add(self, value: float | None) -> None:
        if value is not None:
            self.total += value
            self.count += 1

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


@dataclass(slots=True)
class ProcessSeen:
    """A process; one that was there at the first look (`first_s` 0) was there before."""

    first_s: float
    name: str
    mig_uuid: str | None
    graphics: bool
    share: Mean = field(default_factory=Mean)
    memory_bytes: Mean = field(default_factory=Mean)


@dataclass(slots=True)
class Summary:
    """What a scenario needs of all samples, however many there were."""

    looks: int = 0
    readings: dict[tuple[str, str], Mean] = field(default_factory=dict)
    """By the GPU's UUID and one of `READINGS`."""
    power_limit_w: dict[str, float] = field(default_factory=dict)
    processes: dict[str, dict[tuple[int, str | None], ProcessSeen]] = field(default_factory=dict)

    def add(self, sample: Sample) -> None:
        for uuid, reading in sample.readings.items():
            for key in READINGS:
                self.readings.setdefault((uuid, key), Mean()).add(getattr(reading, key))
            if reading.power_limit_w is not None:
                self.power_limit_w[uuid] = reading.power_limit_w
        for uuid, processes in sample.processes.items():
            seen = self.processes.setdefault(uuid, {})
            for process in processes:
                first_s = sample.at_s if self.looks else 0.0
                one = seen.setdefault(
                    (process.pid, process.mig_uuid),
                    ProcessSeen(first_s, process.name, process.mig_uuid, process.graphics),
                )
                one.share.add(process.sm_share)
                one.memory_bytes.add(process.memory_bytes)
        self.looks += 1

    def mean(self, uuid: str, key: str) -> float | None:
        mean = self.readings.get((uuid, key))
        return None if mean is None else mean.value


@dataclass(frozen=True, slots=True)
class Recording:
    """What was seen of a node in `length_s`; `notes` has what could not be read."""

    driver_version: str
    length_s: float
    gpus: tuple[Gpu, ...]
    probes: Mapping[str, Probe]
    links: Mapping[tuple[str, str], Link]
    summary: Summary
    events: tuple[tuple[float, Event], ...]
    notes: tuple[str, ...]


class _Observer:
    def __init__(
        self, backend: Backend, clock: Callable[[], float], looked: Callable[[Sample], None]
    ) -> None:
        self._backend = backend
        self._looked = looked
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
        summary = Summary()
        events: list[tuple[float, Event]] = []
        ends_s = self._start_s + for_s
        try:
            while not summary.looks or self._clock() < ends_s:
                sample = self._sample(gpus)
                summary.add(sample)
                self._looked(sample)
                next_s = min(self._clock() + interval_s, ends_s)
                while (left_s := next_s - self._clock()) > 0:
                    events.extend(self._wait(left_s))
                    if len(events) > MOST_EVENTS:
                        del events[MOST_EVENTS:]
                        self._notes[f"there were more than {MOST_EVENTS} events"] = None
        except KeyboardInterrupt:
            if not summary.looks:
                raise
            for_s = self._clock() - self._start_s
            self._notes[f"the recording was ended by hand after {for_s:.0f} s"] = None
        return Recording(
            driver_version=backend.driver_version,
            length_s=for_s,
            gpus=gpus,
            probes=MappingProxyType(probes),
            links=links,
            summary=summary,
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
            if found is not None:
                processes[uuid] = found
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
    looked: Callable[[Sample], None] = lambda _sample: None,
) -> Recording:
    """Observe an open backend, until Ctrl-C at most; `looked` is given each sample.

    Raises:
        HalError: the GPUs cannot be listed at all; anything else that fails is a note.
    """
    return _Observer(backend, clock, looked).record(for_s, interval_s)
