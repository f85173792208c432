"""A driver that does what a test says: the only thing that is mocked below the daemon."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from hal import (
    Gpu,
    GpuCalls,
    MigDevice,
    NotSupported,
    Probe,
    RecoveryAction,
    Telemetry,
    ThrottleReason,
    UnknownGpu,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from hal import ComputeProcess, Event, Link, TimeSliceLevel


def made_up_gpu(index: int) -> Gpu:
    """A GPU that nobody sells."""
    return Gpu(
        uuid=f"GPU-00000000-0000-4000-8000-{index:012d}",
        index=index,
        minor=index,
        pci_bus_id=f"00000000:{index + 1:02X}:00.0",
        numa_node=0,
        product="Made-Up GPU",
        memory_bytes=16 * 1024**3,
        compute_capability=(9, 0),
    )


def with_mig(gpu: Gpu, *profiles: str) -> Gpu:
    """The GPU in MIG mode, with devices of these profiles."""
    devices = tuple(
        MigDevice(
            uuid=f"MIG-{gpu.index:08d}-0000-4000-8000-{index:04d}{profile:0>8}",
            index=index,
            gpu_instance=index + 1,
            compute_instance=0,
            profile=profile,
            memory_bytes=10 * 1024**3,
        )
        for index, profile in enumerate(profiles)
    )
    return replace(gpu, mig_enabled=True, mig_devices=devices)


class FakeDriver:
    """See `hal.Backend`. Set an `on_...` attribute to an exception to raise it from that call."""

    def __init__(self, count: int = 2) -> None:
        self.listed: tuple[Gpu, ...] = tuple(made_up_gpu(index) for index in range(count))
        self.on_open: Exception | None = None
        self.on_gpus: Exception | None = None
        self.on_wait: Exception | None = None
        self.on_probe: Exception | None = None
        self.calls: GpuCalls[str] = GpuCalls()
        self.opens = 0
        self.waits = 0
        self.listings = 0
        self.waiting = threading.Event()
        """Set once `wait_events` hangs on purpose."""
        self._hang = False
        self._changed = threading.Condition()
        self._closes = 0
        self._events: list[Event] = []

    def open(self) -> None:
        self.opens += 1
        _perhaps_raise(self.on_open)

    def close(self) -> None:
        with self._changed:
            self._closes += 1
            self._changed.notify_all()

    def call_lasting_s(self, thread: int) -> float | None:
        return self.calls.lasting_s(thread)

    def give_up(self, thread: int) -> bool:
        return self.calls.give_up(thread)

    @property
    def driver_version(self) -> str:
        return "999.1"

    @property
    def cuda_version(self) -> tuple[int, int] | None:
        return None

    def gpus(self) -> tuple[Gpu, ...]:
        self.listings += 1
        _perhaps_raise(self.on_gpus)
        return self.listed

    def wait_events(self, timeout_s: float) -> Sequence[Event]:
        with self._changed:
            self.waits += 1
            if self._hang:
                self.waiting.set()
                self._changed.wait_for(lambda: not self._hang)
            closes = self._closes
            self._changed.wait_for(
                lambda: self._events or self.on_wait or self._hang or self._closes != closes,
                timeout_s,
            )
            _perhaps_raise(self.on_wait)
            taken, self._events = tuple(self._events), []
            return taken

    def probe(self, uuid: str) -> Probe:
        _perhaps_raise(self.on_probe)
        if all(gpu.uuid != uuid for gpu in self.listed):
            raise UnknownGpu(uuid)
        return Probe(
            reachable=True,
            recovery_action=RecoveryAction.NONE,
            row_remap_pending=False,
            row_remap_failed=False,
            uncorrectable_ecc=0,
            epoch="boot-1",
        )

    def telemetry(self, uuid: str) -> Telemetry:
        return Telemetry(
            utilization=None,
            memory_used_bytes=0,
            memory_free_bytes=16 * 1024**3,
            memory_total_bytes=16 * 1024**3,
            temperature_c=None,
            power_w=None,
            power_limit_w=None,
            energy_j=1234.5,
            sm_clock_mhz=None,
            memory_clock_mhz=None,
            throttle_reasons=ThrottleReason.NONE,
            corrected_ecc=None,
            uncorrectable_ecc=None,
        )

    def processes(self, uuid: str) -> tuple[ComputeProcess, ...]:
        return ()

    def links(self) -> Mapping[tuple[str, str], Link]:
        return {}

    def set_time_slice(self, uuid: str, level: TimeSliceLevel) -> None:
        raise NotSupported("made-up GPUs have no time slices")

    def break_waiting(self, error: Exception | None) -> None:
        """Let `wait_events` fail from now on, a running call included; None repairs it."""
        self._change(lambda: setattr(self, "on_wait", error))

    def hang(self) -> None:
        """Let `wait_events` hang, a running call's successor included, until `release`."""
        self._change(lambda: setattr(self, "_hang", True))

    def release(self) -> None:
        """End the hanging."""
        self._change(lambda: setattr(self, "_hang", False))

    def report(self, event: Event) -> None:
        """Let the driver report an event."""
        self._change(lambda: self._events.append(event))

    def _change(self, change: Callable[[], None]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()


def _perhaps_raise(error: Exception | None) -> None:
    if error is not None:
        raise error
