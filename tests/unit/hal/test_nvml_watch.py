"""What the NVML backend reports while it waits for events."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from hal.errors import DriverUnavailable, HalError
from hal.nvml import watch
from hal.nvml.api import NO_INSTANCE, Code, EventData, EventType, Handle, Memory
from hal.nvml.backend import NvmlBackend
from hal.types import EccError, Event, GpuAppeared, GpuDisappeared, XidError
from tests.unit.hal.fake_nvml import FakeGpu, FakeNvml, event

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE_S = 10.0
NEVER_S = 1e9


def opened(nvml: FakeNvml, rescan_s: float = NEVER_S) -> NvmlBackend:
    backend = NvmlBackend(api=nvml, rescan_s=rescan_s)
    backend.open()
    return backend


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda gpu: event(gpu, EventType.XID, 79), XidError("GPU-a", 79)),
        (lambda gpu: event(gpu, EventType.XID, 94, 2, 0), XidError("GPU-a", 94, 2, 0)),
        (lambda gpu: event(gpu, EventType.XID, 94, 2), XidError("GPU-a", 94, 2, None)),
        (lambda gpu: event(gpu, EventType.DOUBLE_BIT_ECC), EccError("GPU-a", uncorrectable=True)),
        (lambda gpu: event(gpu, EventType.SINGLE_BIT_ECC), EccError("GPU-a", uncorrectable=False)),
    ],
)
def test_events_are_told_in_the_terms_of_the_hal(
    make: Callable[[FakeGpu], EventData], expected: Event
) -> None:
    gpu = FakeGpu("GPU-a")
    nvml = FakeNvml(FakeGpu("GPU-0"), gpu)
    nvml.push(make(gpu))
    assert opened(nvml).wait_events(DEADLINE_S) == [expected]


@pytest.mark.parametrize("device", [Handle(0), Handle(1)])
def test_an_event_of_a_device_that_cannot_be_named(device: Handle) -> None:
    nvml = FakeNvml(FakeGpu("GPU-a"))
    nvml.push(EventData(device, EventType.XID, 8, NO_INSTANCE, NO_INSTANCE))
    assert opened(nvml).wait_events(DEADLINE_S) == [XidError(None, 8)]


def test_all_events_that_are_there_come_at_once_and_in_order() -> None:
    gpu = FakeGpu("GPU-a")
    nvml = FakeNvml(gpu)
    nvml.push(*(event(gpu, EventType.XID, xid) for xid in (48, 63, 94)))
    backend = opened(nvml)
    xids = [XidError("GPU-a", xid) for xid in (48, 63, 94)]
    assert backend.wait_events(DEADLINE_S) == xids
    # Only the first is waited for.
    assert nvml.timeouts_ms[1:] == [0, 0, 0]
    assert backend.wait_events(0) == []


def test_a_storm_of_events_comes_in_pieces() -> None:
    gpu = FakeGpu("GPU-a")
    nvml = FakeNvml(gpu)
    nvml.push(*(event(gpu, EventType.SINGLE_BIT_ECC) for _ in range(1500)))
    backend = opened(nvml)
    first, second = backend.wait_events(DEADLINE_S), backend.wait_events(DEADLINE_S)
    assert 0 < len(first) < 1500
    assert len(first) + len(second) == 1500


def test_an_event_of_a_gpu_that_was_not_subscribed_to_is_named_all_the_same() -> None:
    gpu = FakeGpu("GPU-a", event_types=0)
    nvml = FakeNvml(gpu, FakeGpu("GPU-b"))
    nvml.push(event(gpu, EventType.XID, 79))
    assert opened(nvml).wait_events(DEADLINE_S) == [XidError("GPU-a", 79)]


def test_only_supported_types_are_subscribed_to() -> None:
    gpu = FakeGpu("GPU-a", event_types=EventType.XID | 0x4)
    nvml = FakeNvml(gpu)
    opened(nvml).wait_events(0)
    assert list(nvml.registered.values()) == [{gpu.handle: int(EventType.XID)}]


@pytest.mark.parametrize(
    "deaf",
    [
        FakeGpu("GPU-old", failing={"event_types": Code.NOT_SUPPORTED}),
        FakeGpu("GPU-old", failing={"event_register": Code.NOT_SUPPORTED}),
        FakeGpu("GPU-old", event_types=0),
    ],
)
def test_a_gpu_without_events_is_warned_of_once_and_still_listed(
    deaf: FakeGpu, caplog: pytest.LogCaptureFixture
) -> None:
    good = FakeGpu("GPU-a")
    nvml = FakeNvml(deaf, good)
    backend = opened(nvml, rescan_s=0)
    nvml.push(event(good, EventType.XID, 43))
    assert backend.wait_events(DEADLINE_S) == [XidError("GPU-a", 43)]
    backend.wait_events(0)
    assert [record.message for record in caplog.records if "GPU-old" in record.message] == [
        caplog.records[0].message
    ]
    assert [gpu.uuid for gpu in backend.gpus()] == ["GPU-old", "GPU-a"]


def test_a_long_wait_is_several_inside_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "WAIT_S", 0.1)
    nvml = FakeNvml(FakeGpu("GPU-a"))
    assert opened(nvml).wait_events(0.25) == []
    assert max(nvml.timeouts_ms) == 100


def test_a_gpu_that_is_lost_and_back_between_two_rescans_is_told_of() -> None:
    """It was lost when the event set was made, and back when the next rescan was due."""
    gpu, now_s = FakeGpu("GPU-a"), [0.0]
    backend = NvmlBackend(api=FakeNvml(gpu), rescan_s=5.0, clock=lambda: now_s[0])
    backend.open()
    gpu.gone = Code.GPU_IS_LOST
    told = list(backend.wait_events(0))
    gpu.gone = None
    now_s[0] += 5.0
    told += backend.wait_events(0)
    assert told == [GpuDisappeared("GPU-a"), GpuAppeared("GPU-a")]


def test_a_rescan_goes_by_what_somebody_else_saw_meanwhile() -> None:
    gpu, other, now_s = FakeGpu("GPU-a"), FakeGpu("GPU-b"), [0.0]
    nvml = FakeNvml(gpu, other)
    backend = NvmlBackend(api=nvml, rescan_s=5.0, clock=lambda: now_s[0])
    backend.open()
    assert backend.wait_events(0) == []
    other.gone = Code.GPU_IS_LOST
    backend.gpus()
    now_s[0] += 5.0
    looks = nvml.calls["device_count"]
    assert backend.wait_events(0) == [GpuDisappeared("GPU-b")]
    assert nvml.calls["device_count"] == looks
    now_s[0] += 5.0
    backend.wait_events(0)
    assert nvml.calls["device_count"] > looks, "nobody else looked meanwhile"


def test_a_change_that_was_found_in_a_wait_that_failed_is_told_by_the_next() -> None:
    gpu = FakeGpu("GPU-a")
    nvml = FakeNvml(gpu, FakeGpu("GPU-b"))
    backend = opened(nvml)
    gpu.gone = Code.GPU_IS_LOST
    nvml.failing["event_set_create"] = Code.UNKNOWN
    with pytest.raises(HalError):
        backend.wait_events(0)
    del nvml.failing["event_set_create"]
    assert backend.wait_events(0) == [GpuDisappeared("GPU-a")]


def test_a_lost_gpu_is_reported_from_a_failing_wait() -> None:
    lost, good = FakeGpu("GPU-a"), FakeGpu("GPU-b")
    nvml = FakeNvml(lost, good)
    backend = opened(nvml)
    backend.wait_events(0)
    lost.gone = Code.GPU_IS_LOST
    nvml.push(Code.GPU_IS_LOST)
    assert backend.wait_events(DEADLINE_S) == [GpuDisappeared("GPU-a")]
    # The next set is one that works: it leaves the lost GPU out.
    nvml.push(event(good, EventType.XID, 31))
    assert backend.wait_events(DEADLINE_S) == [XidError("GPU-b", 31)]
    (only,) = nvml.open_sets
    assert list(nvml.registered[only]) == [good.handle]


def test_a_lost_gpu_behind_other_events_loses_none_of_them() -> None:
    lost = FakeGpu("GPU-a")
    nvml = FakeNvml(lost)
    backend = opened(nvml)
    backend.wait_events(0)
    lost.gone = Code.GPU_IS_LOST
    nvml.push(event(lost, EventType.XID, 79), Code.GPU_IS_LOST)
    assert backend.wait_events(DEADLINE_S) == [XidError("GPU-a", 79)]
    assert backend.wait_events(DEADLINE_S) == [GpuDisappeared("GPU-a")]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (Code.UNKNOWN, HalError),
        (Code.UNINITIALIZED, DriverUnavailable),
        (Code.GPU_IS_LOST, HalError),
    ],
)
def test_a_failing_wait_is_an_error_and_the_next_one_starts_afresh(
    code: Code, error: type[HalError]
) -> None:
    gpu = FakeGpu("GPU-a")
    nvml = FakeNvml(gpu)
    backend = opened(nvml)
    backend.wait_events(0)
    (broken,) = nvml.open_sets
    nvml.push(code)
    with pytest.raises(error):
        backend.wait_events(DEADLINE_S)
    assert broken not in nvml.open_sets
    nvml.push(event(gpu, EventType.XID, 13))
    assert backend.wait_events(DEADLINE_S) == [XidError("GPU-a", 13)]


def test_a_set_that_fails_behind_an_event_is_not_used_again() -> None:
    gpu = FakeGpu("GPU-a")
    nvml = FakeNvml(gpu)
    backend = opened(nvml)
    backend.wait_events(0)
    (broken,) = nvml.open_sets
    nvml.push(event(gpu, EventType.XID, 31), Code.UNKNOWN)
    assert backend.wait_events(DEADLINE_S) == [XidError("GPU-a", 31)]
    assert broken not in nvml.open_sets


def test_no_event_set_at_all_is_an_error() -> None:
    nvml = FakeNvml(FakeGpu("GPU-a"))
    nvml.failing["event_set_create"] = Code.UNKNOWN
    backend = opened(nvml)
    with pytest.raises(HalError):
        backend.wait_events(0)


def test_gpus_that_come_and_go_are_seen_without_any_event_from_the_driver() -> None:
    nvml = FakeNvml(FakeGpu("GPU-a"))
    backend = opened(nvml, rescan_s=0)
    assert backend.wait_events(0) == []
    added = FakeGpu("GPU-b")
    nvml.gpus.append(added)
    assert backend.wait_events(0) == [GpuAppeared("GPU-b")]
    nvml.push(event(added, EventType.XID, 43))
    assert backend.wait_events(DEADLINE_S) == [XidError("GPU-b", 43)]
    assert added.handle in nvml.registered[max(nvml.open_sets)]
    added.gone = Code.GPU_IS_LOST
    assert backend.wait_events(0) == [GpuDisappeared("GPU-b")]
    assert backend.wait_events(0) == []
    assert added.handle not in nvml.registered[max(nvml.open_sets)]
    added.gone = None
    assert backend.wait_events(0) == [GpuAppeared("GPU-b")]


def test_a_loss_that_another_call_saw_first_is_still_reported() -> None:
    gpu = FakeGpu("GPU-a")
    backend = opened(FakeNvml(gpu), rescan_s=0)
    gpu.gone = Code.GPU_IS_LOST
    backend.gpus()
    assert backend.wait_events(0) == [GpuDisappeared("GPU-a")]
    assert backend.wait_events(0) == []


def test_the_gpus_are_compared_only_now_and_then() -> None:
    now = 100.0
    nvml = FakeNvml(FakeGpu("GPU-a"))
    backend = NvmlBackend(api=nvml, rescan_s=5.0, clock=lambda: now)
    backend.open()
    backend.wait_events(0)
    nvml.gpus.append(FakeGpu("GPU-b"))
    now = 104.9
    assert backend.wait_events(0) == []
    now = 105.1
    assert backend.wait_events(0) == [GpuAppeared("GPU-b")]


@pytest.mark.parametrize("gpus", [(), (FakeGpu("GPU-a"),)])
def test_closing_ends_a_wait_in_another_thread(
    monkeypatch: pytest.MonkeyPatch, gpus: tuple[FakeGpu, ...]
) -> None:
    monkeypatch.setattr(watch, "WAIT_S", 1.0)
    nvml = FakeNvml(*gpus)
    backend = opened(nvml)
    started = threading.Event()
    returned: list[object] = []

    def wait() -> None:
        started.set()
        try:
            returned.append(backend.wait_events(3600))
        except DriverUnavailable:
            # It was closed before the wait began.
            returned.append([])

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert (nvml.waiting if gpus else started).wait(DEADLINE_S)
    began_s = time.monotonic()
    backend.close()
    assert time.monotonic() - began_s < 0.9, "it is not waited for"
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert returned == [[]]
    assert nvml.initialised == 0
    assert not nvml.shut_down_while_waiting


def test_what_could_not_be_shut_down_is_once_no_call_is_in_it() -> None:
    """NVML counts its users: one that is forgotten keeps it from ever seeing another driver."""
    gpu = FakeGpu("GPU-a")
    nvml = FakeNvml(gpu)
    backend = opened(nvml)
    entered, released = threading.Event(), threading.Event()
    memory = nvml.memory

    def hang(device: Handle) -> Memory:
        entered.set()
        assert released.wait(10)
        return memory(device)

    nvml.memory = hang  # type: ignore[method-assign]
    call = threading.Thread(target=backend.probe, args=("GPU-a",))
    call.start()
    assert entered.wait(10)
    backend.close()
    assert nvml.initialised == 1
    released.set()
    call.join()
    backend.open()
    assert nvml.initialised == 1, "the old connection was shut down before the new one"
    backend.close()
    assert nvml.initialised == 0
