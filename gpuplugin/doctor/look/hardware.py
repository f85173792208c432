"""Asks the hardware backend, every call with a deadline: one that hangs keeps a thread, not us."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from gpuplugin.doctor.facts import Failure, GpuFacts, HardwareFacts
from hal import DriverNotFound, DriverUnavailable, GpuState, HalError

if TYPE_CHECKING:
    from collections.abc import Callable

    from hal import Backend, Gpu

_T = TypeVar("_T")

_CALL_S = 3.0
"""The longest that one question about one GPU may take; opening may take the whole budget."""


class _Hung(Exception):
    """A call did not return in time."""


class _Asker:
    """Makes calls in threads of their own, all of them within one budget of seconds."""

    def __init__(self, budget_s: float) -> None:
        self._ends_s = time.monotonic() + budget_s
        self.hung = False

    def ask(self, call: Callable[[], _T], at_most_s: float | None = None) -> _T:
        """What `call` returns.

        Raises:
            HalError: what the call raised.
            _Hung: it did not return in time.
        """
        answers: queue.SimpleQueue[tuple[_T | None, HalError | None]] = queue.SimpleQueue()

        def work() -> None:
            try:
                answers.put((call(), None))
            except HalError as error:
                answers.put((None, error))

        threading.Thread(target=work, name="doctor", daemon=True).start()
        left_s = max(0.1, self._ends_s - time.monotonic())
        try:
            answer, error = answers.get(timeout=min(left_s, at_most_s or left_s))
        except queue.Empty:
            self.hung = True
            raise _Hung from None
        if error is not None:
            raise error
        return answer  # type: ignore[return-value] # no error: it is what the call returned


def look_at_hardware(backend: Backend, name: str, budget_s: float) -> HardwareFacts:
    """What the backend called `name` tells within `budget_s`."""
    asker = _Asker(budget_s)
    try:
        asker.ask(backend.open)
        version = asker.ask(lambda: backend.driver_version)
        gpus = asker.ask(backend.gpus)
        facts = tuple(_of_gpu(backend, gpu, asker) for gpu in gpus)
    except _Hung:
        return HardwareFacts(
            name, failure=Failure.HUNG, cause=f"a call to the driver takes over {budget_s:g} s"
        )
    except HalError as error:
        return HardwareFacts(name, failure=_failure(error), cause=error.cause, remedy=error.remedy)
    finally:
        if not asker.hung:
            # Not even closing may hold us: a driver can begin to hang at any time.
            with suppress(_Hung, HalError):
                asker.ask(backend.close, _CALL_S)
    return HardwareFacts(name, version, facts)


def _failure(error: HalError) -> Failure:
    match error:
        case DriverNotFound():
            return Failure.NOT_FOUND
        case DriverUnavailable():
            return Failure.UNAVAILABLE
    return Failure.OTHER


def _of_gpu(backend: Backend, gpu: Gpu, asker: _Asker) -> GpuFacts:
    if gpu.state is GpuState.LOST:
        return GpuFacts(gpu)
    try:
        probe = asker.ask(lambda: backend.probe(gpu.uuid), _CALL_S)
    except _Hung:
        return GpuFacts(gpu, problem=f"a call about it takes over {_CALL_S:g} s")
    except HalError as error:
        return GpuFacts(gpu, problem=str(error))
    try:
        processes = asker.ask(lambda: backend.processes(gpu.uuid), _CALL_S)
    except (_Hung, HalError):
        return GpuFacts(gpu, probe)
    return GpuFacts(gpu, probe, tuple(process.name for process in processes))
