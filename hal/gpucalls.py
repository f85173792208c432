"""Calls about single GPUs that have not returned: what a backend needs to bear one that hangs."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from hal.errors import HalHung

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

_REMEDY = "Check dmesg for a stuck driver; a GPU that hangs often needs a reset or a reboot"

K = TypeVar("K", bound="Hashable")


@dataclass(slots=True, eq=False)
class _Call(Generic[K]):
    gpu: K
    thread: int
    since_s: float
    given_up: bool = False


class GpuCalls(Generic[K]):
    """The calls in progress, by whatever names a GPU. Safe to use from several threads."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._calls: list[_Call[K]] = []

    @contextmanager
    def about(self, gpu: K) -> Iterator[None]:
        """The body calls the driver about this GPU; raises `HalHung` if it hangs."""
        call = _Call(gpu, threading.get_ident(), self._clock_s())
        with self._lock:
            if any(one.given_up and one.gpu == gpu for one in self._calls):
                raise HalHung(f"an earlier call about GPU {gpu} has not returned", _REMEDY)
            self._calls.append(call)
        try:
            yield
        finally:
            with self._lock:
                self._calls.remove(call)

    def lasting_s(self, thread: int) -> float | None:
        """See `hal.Backend.call_lasting_s`; of calls within calls, the innermost."""
        with self._lock:
            since_s = [one.since_s for one in self._calls if one.thread == thread]
        return self._clock_s() - since_s[-1] if since_s else None

    def give_up(self, thread: int) -> bool:
        """See `hal.Backend.give_up`."""
        with self._lock:
            found = [one for one in self._calls if one.thread == thread]
            for one in found:
                one.given_up = True
        return bool(found)

    def given_up_in(self, thread: int) -> bool:
        """Whether a call that was given up is in this thread."""
        with self._lock:
            return any(one.given_up and one.thread == thread for one in self._calls)

    @property
    def in_progress(self) -> bool:
        with self._lock:
            return bool(self._calls)
