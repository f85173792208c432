"""The contract between the hardware layer and everything above it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hal.types import ComputeProcess, Event, Gpu, Link, Probe, Telemetry, TimeSliceLevel


class Backend(Protocol):
    """GPUs of one node. Every call is synchronous and may block: never call it from an event loop.

    `wait_events` may run in one thread while the other calls run in another; no call is made
    before `open` returned or after `close`. Every call may raise a `hal.HalError`.
    """

    def open(self) -> None:
        """Connect to the hardware; safe to call again after a failure or after `close`.

        Raises:
            DriverNotFound: the driver's library is not on this machine.
            DriverUnavailable: the library is there, the driver does not respond.
        """

    def close(self) -> None:
        """Disconnect and make a blocked `wait_events` return. Never raises."""

    def call_lasting_s(self, thread: int) -> float | None:
        """For how long the thread of this identifier has been in a call about one GPU.

        None if it is in no such call. From any thread; never blocks.
        """

    def give_up(self, thread: int) -> bool:
        """Bear a GPU that hangs: the caller waits no longer for the call in this thread.

        Until that call returns, others about its GPU raise `HalHung`, and `gpus` lists that GPU as
        last seen. False if the thread is in no call about a GPU: then it is the driver that hangs.
        From any thread; never blocks.
        """

    @property
    def driver_version(self) -> str:
        """The driver's version as it prints it, for example `580.105.08`; empty if unknown."""

    @property
    def cuda_version(self) -> tuple[int, int] | None:
        """The newest CUDA version that the driver supports, for example (13, 0); or unknown."""

    def gpus(self) -> tuple[Gpu, ...]:
        """All GPUs and their MIG devices, ordered by index.

        A lost GPU is listed as lost with its last known identity; one bad GPU never makes
        this fail.
        """

    def wait_events(self, timeout_s: float) -> Sequence[Event]:
        """Events since the last call, waiting up to `timeout_s` for the first; may be empty."""

    def probe(self, uuid: str) -> Probe:
        """Whether the GPU can be used now; a lost one is `reachable=False`. Raises `UnknownGpu`."""

    def telemetry(self, uuid: str) -> Telemetry:
        """A fresh reading of one GPU; raises `UnknownGpu` or `GpuLost`."""

    def processes(self, uuid: str) -> tuple[ComputeProcess, ...]:
        """Processes with a context on the GPU, ordered by pid; a process for graphics alone, too.

        Raises as `telemetry`, and `NotSupported` where the GPU responds and they are unknown.
        """

    def links(self) -> Mapping[tuple[str, str], Link]:
        """How each ordered pair of distinct reachable GPUs is connected, by UUIDs. Cached."""

    def set_time_slice(self, uuid: str, level: TimeSliceLevel) -> None:
        """Set the GPU's time-slice level for contexts that are made from now on.

        Raises:
            NotSupported: this GPU or driver cannot (Turing to Blackwell can; no MIG).
            UnknownGpu: no GPU of this UUID was ever seen.
            GpuLost: the GPU does not respond.
        """
