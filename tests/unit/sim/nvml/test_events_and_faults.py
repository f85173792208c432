"""Events and faults as a client of the library meets them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pynvml
import pytest

from tests.unit.sim.nvml.conftest import code_of

if TYPE_CHECKING:
    from tests.unit.sim.nvml.conftest import World

DEADLINE_MS = 20_000
DEADLINE_S = DEADLINE_MS / 1000


def a_set(*indices: int) -> object:
    """An event set with all that these GPUs can report."""
    events: object = pynvml.nvmlEventSetCreate()
    for index in indices:
        gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
        types = pynvml.nvmlDeviceGetSupportedEventTypes(gpu)
        pynvml.nvmlDeviceRegisterEvents(gpu, types, events)
    return events


def wait(events: object, timeout_ms: int = DEADLINE_MS) -> tuple[int, int]:
    """Type and data of the next event."""
    event = pynvml.nvmlEventSetWait_v2(events, timeout_ms)
    return event.eventType, event.eventData


def test_every_set_is_told_what_it_registered_for(nvml: World) -> None:
    one, other, third = a_set(0), a_set(0, 1), a_set(1)
    nvml.let("{kind: xid, xid: 31}", 0)
    nvml.let("{kind: ecc, uncorrectable: true}", 0)
    for events in (one, other):
        assert wait(events) == (pynvml.nvmlEventTypeXidCriticalError, 31)
        assert wait(events)[0] == pynvml.nvmlEventTypeDoubleBitEccError
    for events in (one, other, third):
        with pytest.raises(pynvml.NVMLError_Timeout):
            wait(events, 0)


def test_an_event_of_a_mig_device_names_its_instances(nvml: World) -> None:
    events = a_set(2)
    nvml.let("{kind: xid, xid: 31, mig: 1}", 2)
    event = pynvml.nvmlEventSetWait_v2(events, DEADLINE_MS)
    gpu = pynvml.nvmlDeviceGetHandleByIndex(2)
    mig = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 1)
    assert event.gpuInstanceId == pynvml.nvmlDeviceGetGpuInstanceId(mig)
    assert pynvml.nvmlDeviceGetUUID(event.device) == pynvml.nvmlDeviceGetUUID(gpu)


def test_a_set_with_a_lost_gpu_tells_what_came_before_and_then_fails(nvml: World) -> None:
    events = a_set(0, 1)
    nvml.let("{kind: xid, xid: 79}", 1)
    assert wait(events) == (pynvml.nvmlEventTypeXidCriticalError, 79)
    assert code_of(lambda: wait(events)) == pynvml.NVML_ERROR_GPU_IS_LOST
    assert code_of(lambda: wait(a_set(0), 0)) == pynvml.NVML_ERROR_TIMEOUT


def test_types_that_a_gpu_cannot_report_are_refused(nvml: World) -> None:
    events = pynvml.nvmlEventSetCreate()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(3)
    ecc = pynvml.nvmlEventTypeDoubleBitEccError
    assert code_of(lambda: pynvml.nvmlDeviceRegisterEvents(gpu, ecc, events)) == (
        pynvml.NVML_ERROR_NOT_SUPPORTED
    )


def test_a_set_that_was_freed_is_an_invalid_argument(nvml: World) -> None:
    events = a_set(0)
    pynvml.nvmlEventSetFree(events)
    for call in (lambda: wait(events, 0), lambda: pynvml.nvmlEventSetFree(events)):
        assert code_of(call) == pynvml.NVML_ERROR_INVALID_ARGUMENT


class Waiting:
    """A wait in a thread of its own."""

    def __init__(self, events: object) -> None:
        self.code: int | None = None
        self._thread = threading.Thread(target=self._wait, args=(events,), daemon=True)
        self._thread.start()

    def _wait(self, events: object) -> None:
        self.code = code_of(lambda: wait(events, 3_600_000))

    def end(self) -> int | None:
        """Its code; None if it does not end."""
        self._thread.join(DEADLINE_S)
        return self.code


@pytest.mark.parametrize(
    ("what", "gpu", "code"),
    [
        ("{kind: xid, xid: 43}", 0, pynvml.NVML_SUCCESS),
        ("{kind: lost}", 0, pynvml.NVML_ERROR_GPU_IS_LOST),
        ("{kind: unplug}", 0, pynvml.NVML_ERROR_GPU_IS_LOST),
        ("{kind: driver-down}", None, pynvml.NVML_ERROR_DRIVER_NOT_LOADED),
        ("{kind: watch-broken}", None, pynvml.NVML_ERROR_UNKNOWN),
    ],
)
def test_what_happens_ends_a_wait_that_runs(
    nvml: World, what: str, gpu: int | None, code: int
) -> None:
    waiting = Waiting(a_set(0, 1))
    # Its connection is the second: it waits, or will find what happened when it asks.
    nvml.let(what, gpu)
    assert waiting.end() == code


def test_a_set_that_is_freed_ends_the_wait_for_it(nvml: World) -> None:
    events = a_set(0)
    waiting = Waiting(events)
    pynvml.nvmlEventSetFree(events)
    nvml.let("{kind: recover}", 1)
    assert waiting.end() == pynvml.NVML_ERROR_INVALID_ARGUMENT


def test_the_end_of_the_node_ends_waits_and_hanging_calls(nvml: World) -> None:
    gpu = pynvml.nvmlDeviceGetHandleByIndex(1)
    events = a_set(0)
    nvml.let("{kind: hang}", 1)
    waiting = Waiting(events)
    codes: list[int] = []
    hanging = threading.Thread(
        target=lambda: codes.append(code_of(lambda: pynvml.nvmlDeviceGetName(gpu))), daemon=True
    )
    hanging.start()
    nvml.server.close()
    nvml.server.close()
    hanging.join(DEADLINE_S)
    assert waiting.end() == pynvml.NVML_ERROR_GPU_IS_LOST
    assert codes == [pynvml.NVML_ERROR_GPU_IS_LOST]
    assert code_of(lambda: pynvml.nvmlDeviceGetName(gpu)) == pynvml.NVML_ERROR_GPU_IS_LOST
    assert code_of(pynvml.nvmlDeviceGetCount) == pynvml.NVML_ERROR_DRIVER_NOT_LOADED


def test_a_hang_holds_up_its_gpu_alone_and_ends(nvml: World) -> None:
    gpu, other = (pynvml.nvmlDeviceGetHandleByIndex(index) for index in (0, 1))
    nvml.let("{kind: hang}", 0)
    done = threading.Event()
    names: list[str] = []

    def ask() -> None:
        names.append(pynvml.nvmlDeviceGetName(gpu))
        done.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    assert pynvml.nvmlDeviceGetName(other)
    assert not done.is_set()
    nvml.let("{kind: recover}", 0)
    assert done.wait(DEADLINE_S)
    assert names == [pynvml.nvmlDeviceGetName(other)]
    thread.join(DEADLINE_S)


def test_a_driver_that_is_away_fails_calls_and_comes_back(nvml: World) -> None:
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    nvml.let("{kind: driver-down}")
    for call in (pynvml.nvmlDeviceGetCount, lambda: pynvml.nvmlDeviceGetUUID(gpu)):
        assert code_of(call) == pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    pynvml.nvmlShutdown()
    assert code_of(pynvml.nvmlInit) == pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    nvml.let("{kind: driver-up}")
    pynvml.nvmlInit()
    assert pynvml.nvmlDeviceGetUUID(gpu)


def test_a_lost_gpu_is_counted_and_answers_nothing(nvml: World) -> None:
    gpu = pynvml.nvmlDeviceGetHandleByIndex(1)
    behind = pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(3))
    nvml.let("{kind: lost}", 1)
    assert pynvml.nvmlDeviceGetCount() == 5
    for call in (
        lambda: pynvml.nvmlDeviceGetHandleByIndex(1),
        lambda: pynvml.nvmlDeviceGetUUID(gpu),
        lambda: pynvml.nvmlDeviceGetMemoryInfo(gpu),
        lambda: pynvml.nvmlDeviceGetHandleByUUID(behind),
    ):
        assert code_of(call) == pynvml.NVML_ERROR_GPU_IS_LOST
    nvml.let("{kind: recover}", 1)
    assert pynvml.nvmlDeviceGetUUID(gpu)


def test_a_replaced_gpu_stays_lost_and_another_has_its_index(nvml: World) -> None:
    gpu = pynvml.nvmlDeviceGetHandleByIndex(1)
    uuid = pynvml.nvmlDeviceGetUUID(gpu)
    nvml.let("{kind: replace}", 1)
    assert code_of(lambda: pynvml.nvmlDeviceGetUUID(gpu)) == pynvml.NVML_ERROR_GPU_IS_LOST
    assert pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(1)) != uuid


def test_handles_of_mig_devices_that_are_gone_are_invalid(nvml: World) -> None:
    gpu = pynvml.nvmlDeviceGetHandleByIndex(2)
    mig = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0)
    nvml.let("{kind: repartition, mig: [7g.80gb]}", 2)
    assert code_of(lambda: pynvml.nvmlDeviceGetUUID(mig)) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    new = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0)
    assert pynvml.nvmlDeviceGetName(new).endswith("7g.80gb")
