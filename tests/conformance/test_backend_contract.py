"""What every `hal.Backend` keeps to, whatever is behind it."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import pytest

from hal import (
    Backend,
    EccError,
    GpuAppeared,
    GpuDisappeared,
    GpuLost,
    GpuState,
    HalError,
    HalHung,
    LinkKind,
    NotSupported,
    RecoveryAction,
    ThrottleReason,
    TimeSliceLevel,
    UnknownGpu,
    XidError,
)
from sim.gpu.faults import EccFault, Hang, LostFault, Recovery, XidFault
from tests.component.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hal import Event, Gpu
    from tests.conformance.conftest import Subject

UUID = re.compile(r"GPU-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
BUS_ID = re.compile(r"[0-9A-F]{8}:[0-9A-F]{2}:[0-9A-F]{2}\.[0-7]")
MIG_UUID = re.compile(UUID.pattern.replace("GPU", "MIG"))
MIG_PROFILE = re.compile(r"(\d+c\.)?\d+g\.\d+gb(\+[a-z.]+)*")
NOBODY = "GPU-ffffffff-ffff-4fff-8fff-ffffffffffff"
DEADLINE_S = 20.0

Question: TypeAlias = Callable[[Backend, str], object]

ABOUT_A_GPU: dict[str, Question] = {
    "probe": lambda backend, uuid: backend.probe(uuid),
    "telemetry": lambda backend, uuid: backend.telemetry(uuid),
    "processes": lambda backend, uuid: backend.processes(uuid),
    "set_time_slice": lambda backend, uuid: backend.set_time_slice(uuid, TimeSliceLevel.DEFAULT),
}


def take_events(subject: Subject, count: int) -> Sequence[Event]:
    """At least `count` events, however many waits they take."""
    events: list[Event] = []
    for _ in range(20):
        if len(events) >= count:
            break
        events.extend(subject.backend.wait_events(1.0))
    return events


def drain(subject: Subject) -> None:
    """Take what is there already."""
    while subject.backend.wait_events(0.0):
        pass


def test_gpus_are_ordered_by_index(subject: Subject) -> None:
    indices = [gpu.index for gpu in subject.backend.gpus()]
    assert indices == sorted(set(indices))
    assert indices[0] == 0


def test_identities_are_well_formed_and_unique(subject: Subject) -> None:
    gpus = subject.backend.gpus()
    for gpu in gpus:
        assert UUID.fullmatch(gpu.uuid), gpu.uuid
        assert BUS_ID.fullmatch(gpu.pci_bus_id), gpu.pci_bus_id
        assert gpu.product
        assert gpu.product == gpu.product.strip()
        assert gpu.memory_bytes is None or gpu.memory_bytes > 2**30
        assert gpu.compute_capability is None or gpu.compute_capability >= (3, 0)
        assert gpu.minor is None or gpu.minor >= 0
        assert gpu.numa_node is None or gpu.numa_node >= 0
        assert gpu.state is GpuState.OK
    values: list[Callable[[Gpu], object]] = [
        lambda gpu: gpu.uuid,
        lambda gpu: gpu.pci_bus_id,
        lambda gpu: gpu.minor,
    ]
    for value in values:
        assert len({value(gpu) for gpu in gpus}) == len(gpus)


def test_enumeration_changes_nothing(subject: Subject) -> None:
    first = subject.backend.gpus()
    assert subject.backend.gpus() == first
    assert subject.backend.gpus() == first


def test_the_driver_version_is_a_version(subject: Subject) -> None:
    assert re.fullmatch(r"\d+\.\d+(\.\d+)*", subject.backend.driver_version)


def test_the_cuda_version_is_a_version(subject: Subject) -> None:
    version = subject.backend.cuda_version
    assert version is None or (11, 0) <= version < (100, 0)


def test_a_mig_device_says_what_it_has(subject: Subject) -> None:
    for gpu in subject.backend.gpus():
        assert gpu.mig_capable or not gpu.mig_enabled
        for mig in gpu.mig_devices:
            assert mig.attributes is not None
            assert mig.attributes.memory_mib * 2**20 == mig.memory_bytes
            assert mig.attributes.gpu_slices >= mig.attributes.compute_slices >= 1
            assert mig.attributes.copy_engines >= 1


def test_opening_again_changes_nothing(subject: Subject) -> None:
    before = subject.backend.gpus()
    subject.backend.open()
    assert subject.backend.gpus() == before


def test_it_can_be_closed_and_opened_again(subject: Subject) -> None:
    before = subject.backend.gpus()
    subject.backend.close()
    subject.backend.close()
    subject.backend.open()
    assert subject.backend.gpus() == before
    assert subject.backend.probe(before[0].uuid).reachable


def test_a_probe_finds_a_sound_gpu_usable_and_changes_nothing(subject: Subject) -> None:
    for uuid in subject.uuids:
        probe = subject.backend.probe(uuid)
        assert probe.reachable
        assert probe.recovery_action in (RecoveryAction.NONE, RecoveryAction.UNKNOWN)
        assert probe.clean
        assert probe.epoch
        assert probe.uncorrectable_ecc is None or probe.uncorrectable_ecc >= 0
        assert subject.backend.probe(uuid) == probe


def test_telemetry_is_within_its_ranges(subject: Subject) -> None:
    for gpu in subject.backend.gpus():
        reading = subject.backend.telemetry(gpu.uuid)
        assert reading.memory_total_bytes == gpu.memory_bytes
        used, free = reading.memory_used_bytes, reading.memory_free_bytes
        assert (used is None) == (free is None) == (gpu.memory_bytes is None)
        if used is not None and free is not None:
            assert min(used, free) >= 0
            assert used + free == gpu.memory_bytes
        assert reading.utilization is None or 0 <= reading.utilization <= 1
        assert reading.temperature_c is None or 0 < reading.temperature_c < 130
        assert reading.power_w is None or 0 < reading.power_w < 3000
        assert reading.power_limit_w is None or 10 < reading.power_limit_w < 3000
        assert reading.sm_clock_mhz is None or 0 <= reading.sm_clock_mhz < 10_000
        assert reading.memory_clock_mhz is None or 0 < reading.memory_clock_mhz < 30_000
        assert reading.corrected_ecc is None or reading.corrected_ecc >= 0
        assert reading.uncorrectable_ecc is None or reading.uncorrectable_ecc >= 0
        assert isinstance(reading.throttle_reasons, ThrottleReason)


def test_processes_are_ordered_and_fit_into_what_is_used(subject: Subject) -> None:
    for gpu in subject.backend.gpus():
        processes = subject.backend.processes(gpu.uuid)
        used = subject.backend.telemetry(gpu.uuid).memory_used_bytes
        assert [one.pid for one in processes] == sorted(one.pid for one in processes)
        if used is not None and gpu.memory_bytes is not None:
            assert sum(one.memory_bytes or 0 for one in processes) <= used <= gpu.memory_bytes
        shares = [one.sm_share for one in processes if one.sm_share is not None]
        assert all(0 <= share <= 1 for share in shares)
        assert sum(shares) <= 1 + 1e-9
        assert all(one.pid > 0 for one in processes)


def test_processes_stay_the_same_while_nothing_happens(subject: Subject) -> None:
    for uuid in subject.uuids:
        first, second = (
            {(one.pid, one.name, one.mig_uuid) for one in subject.backend.processes(uuid)}
            for _ in range(2)
        )
        if subject.inject is not None:  # on a real GPU others may come and go
            assert first == second
        assert all(name == name.strip() for _, name, _ in first | second)


def test_a_process_is_on_one_device(subject: Subject) -> None:
    """Of the GPU itself, or of one of its MIG devices, with memory that fits there."""
    for gpu in subject.backend.gpus():
        room = {mig.uuid: mig.memory_bytes for mig in gpu.mig_devices}
        for process in subject.backend.processes(gpu.uuid):
            if process.mig_uuid is not None:
                room[process.mig_uuid] -= process.memory_bytes or 0
        assert all(left >= 0 for left in room.values())


def test_probe_and_telemetry_tell_the_same_errors(subject: Subject) -> None:
    if subject.inject is not None:
        subject.let(0, EccFault(uncorrectable=True, count=3))
    for uuid in subject.uuids:
        told = subject.backend.telemetry(uuid).uncorrectable_ecc
        if told is not None:
            assert subject.backend.probe(uuid).uncorrectable_ecc == told


def test_mig_devices_are_well_formed_and_fit_into_their_gpu(subject: Subject) -> None:
    seen: set[str] = set()
    for gpu in subject.backend.gpus():
        migs = gpu.mig_devices
        assert gpu.mig_enabled or not migs
        assert [mig.index for mig in migs] == sorted({mig.index for mig in migs})
        assert len({(mig.gpu_instance, mig.compute_instance) for mig in migs}) == len(migs)
        assert sum(mig.memory_bytes for mig in migs) <= (gpu.memory_bytes or 0)
        for mig in migs:
            assert MIG_UUID.fullmatch(mig.uuid), mig.uuid
            assert MIG_PROFILE.fullmatch(mig.profile), mig.profile
            assert mig.memory_bytes > 2**30
            assert mig.device_nodes[: len(gpu.device_nodes)] == gpu.device_nodes
            assert len(set(mig.device_nodes)) == len(mig.device_nodes)
            assert mig.uuid not in seen
            seen.add(mig.uuid)


def test_links_are_symmetric_and_complete(subject: Subject) -> None:
    uuids = subject.uuids
    links = subject.backend.links()
    assert set(links) == {(one, other) for one in uuids for other in uuids if one != other}
    for (one, other), link in links.items():
        assert links[other, one] == link
        assert isinstance(link.kind, LinkKind)
        assert 0 <= link.nvlinks <= 18


def test_links_are_read_once(subject: Subject) -> None:
    assert subject.backend.links() is subject.backend.links()


@pytest.mark.parametrize("question", ABOUT_A_GPU)
@pytest.mark.parametrize("uuid", [NOBODY, "", "0", "GPU-", "nonsense"])
def test_an_unknown_uuid_is_named(subject: Subject, question: str, uuid: str) -> None:
    with pytest.raises(UnknownGpu) as unknown:
        ABOUT_A_GPU[question](subject.backend, uuid)
    assert unknown.value.uuid == uuid
    assert unknown.value.remedy


def test_the_time_slice_can_be_set_or_the_error_says_why_not(subject: Subject) -> None:
    for uuid in subject.uuids:
        try:
            subject.backend.set_time_slice(uuid, TimeSliceLevel.DEFAULT)
        except NotSupported as error:
            assert error.cause  # noqa: PT017 - either outcome is right


def test_a_wait_in_which_nothing_happens_is_empty(subject: Subject) -> None:
    drain(subject)
    assert list(subject.backend.wait_events(0.05)) == []
    assert list(subject.backend.wait_events(0.0)) == []


def test_close_ends_a_wait_in_another_thread(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hal.nvml.watch.WAIT_S", 0.5)  # nothing ends a call of NVML's sooner
    drain(subject)
    waiting = threading.Event()
    outcomes: list[object] = []

    def wait() -> None:
        waiting.set()
        try:
            outcomes.append(subject.backend.wait_events(300.0))
        except HalError as error:
            outcomes.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert waiting.wait(DEADLINE_S)
    # Closed until it returns: the first close may come just before the call.
    pause = threading.Event()
    for _ in range(200):
        subject.backend.close()
        if outcomes:
            break
        pause.wait(DEADLINE_S / 200)
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert len(outcomes) == 1


def test_the_backend_answers_while_it_waits_for_events(subject: Subject) -> None:
    drain(subject)
    before = subject.backend.gpus()
    waiting, done = threading.Event(), threading.Event()

    def wait() -> None:
        waiting.set()
        with suppress(HalError):  # closed before it waited
            subject.backend.wait_events(DEADLINE_S / 2)
        done.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(DEADLINE_S)
    try:
        assert subject.backend.gpus() == before
        assert subject.backend.probe(before[0].uuid).reachable
        assert not done.is_set(), "the wait held up the other calls"
    finally:
        subject.backend.close()
        thread.join(DEADLINE_S)
    assert not thread.is_alive()


def test_an_event_ends_a_wait(subject: Subject) -> None:
    drain(subject)
    uuid = subject.uuids[0]
    inject = subject.inject
    if inject is None:
        pytest.skip("nothing can be made to happen to real GPUs")
    timer = threading.Timer(0.02, lambda: inject(0, XidFault(xid=31)))
    timer.start()
    assert list(subject.backend.wait_events(DEADLINE_S)) == [XidError(uuid, 31)]
    timer.join()


def test_events_come_in_order_and_once(subject: Subject) -> None:
    drain(subject)
    last = len(subject.uuids) - 1
    uuid = subject.uuids[last]
    for code in (31, 43, 31):
        subject.let(last, XidFault(xid=code))
    expected: list[Event] = [XidError(uuid, 31), XidError(uuid, 43), XidError(uuid, 31)]
    # A board without ECC reports no such events, whatever is made to happen to it.
    if subject.backend.telemetry(uuid).uncorrectable_ecc is not None:
        subject.let(last, EccFault(uncorrectable=True))
        expected.append(EccError(uuid, uncorrectable=True))
    assert list(take_events(subject, len(expected))) == expected
    assert list(subject.backend.wait_events(0.0)) == []


def test_every_gpu_is_heard(subject: Subject) -> None:
    drain(subject)
    uuids = subject.uuids
    for index in reversed(range(len(uuids))):
        subject.let(index, XidFault(xid=31))
    told = take_events(subject, len(uuids))
    assert list(told) == [XidError(uuid, 31) for uuid in reversed(uuids)]


def test_an_event_of_a_mig_device_names_its_instances(subject: Subject) -> None:
    gpu = subject.backend.gpus()[-1]
    if not gpu.mig_devices:
        pytest.skip("no MIG device here")
    drain(subject)
    mig = gpu.mig_devices[-1]
    subject.let(gpu.index, XidFault(xid=43, mig=mig.index))
    told = take_events(subject, 1)
    assert list(told) == [XidError(gpu.uuid, 43, mig.gpu_instance, mig.compute_instance)]


def test_events_between_two_waits_are_kept(subject: Subject) -> None:
    drain(subject)
    subject.let(0, XidFault(xid=13))
    subject.backend.gpus()
    subject.backend.probe(subject.uuids[0])
    assert list(subject.backend.wait_events(0.0)) == [XidError(subject.uuids[0], 13)]


def test_a_lost_gpu_is_listed_with_its_last_identity(subject: Subject) -> None:
    before = subject.backend.gpus()
    last = len(before) - 1
    lost = before[last]
    drain(subject)
    subject.let(last, LostFault())
    assert subject.backend.gpus() == (*before[:last], replace(lost, state=GpuState.LOST))
    assert GpuDisappeared(lost.uuid) in take_events(subject, 1)
    assert not subject.backend.probe(lost.uuid).reachable
    assert not subject.backend.probe(lost.uuid).clean
    for question in ("telemetry", "processes", "set_time_slice"):
        with pytest.raises(GpuLost) as error:
            ABOUT_A_GPU[question](subject.backend, lost.uuid)
        assert error.value.uuid == lost.uuid
    for gpu in before[:last]:
        assert subject.backend.probe(gpu.uuid).clean
        assert subject.backend.telemetry(gpu.uuid).memory_total_bytes == gpu.memory_bytes


def test_links_leave_out_a_gpu_that_is_lost(subject: Subject) -> None:
    """The contract: pairs of distinct reachable GPUs."""
    uuids = subject.uuids
    subject.backend.links()
    subject.let(0, LostFault())
    assert all(uuids[0] not in pair for pair in subject.backend.links())


def test_a_gpu_that_is_back_is_as_before_with_another_epoch(subject: Subject) -> None:
    before = subject.backend.gpus()
    epoch = subject.backend.probe(before[0].uuid).epoch
    subject.let(0, LostFault())
    drain(subject)
    subject.let(0, Recovery())
    assert subject.backend.gpus() == before
    assert list(take_events(subject, 1)) == [GpuAppeared(before[0].uuid)]
    probe = subject.backend.probe(before[0].uuid)
    assert probe.clean
    assert probe.epoch != epoch


def test_a_fault_that_needs_a_reset_shows_in_the_probe_until_then(subject: Subject) -> None:
    uuid = subject.uuids[0]
    subject.let(0, XidFault(xid=95))
    probe = subject.backend.probe(uuid)
    assert probe.recovery_action is RecoveryAction.RESET
    assert probe.reachable
    assert not probe.clean
    subject.let(0, Recovery())
    assert subject.backend.probe(uuid).clean


def test_what_befalls_a_gpu_while_closed_is_seen_when_open(subject: Subject) -> None:
    uuid = subject.uuids[0]
    drain(subject)
    subject.backend.close()
    subject.let(0, LostFault())
    subject.backend.open()
    assert subject.backend.gpus()[0].state is GpuState.LOST
    assert not subject.backend.probe(uuid).reachable


@contextmanager
def hanging(subject: Subject, gpu: int) -> Iterator[int]:
    """A GPU hangs, and with it a call about it in the thread of this identifier."""
    uuid = subject.uuids[gpu]
    subject.let(gpu, Hang())
    call = threading.Thread(target=subject.backend.probe, args=(uuid,), daemon=True)
    call.start()
    thread = call.ident
    assert thread is not None
    try:
        eventually(lambda: (subject.backend.call_lasting_s(thread) or 0) > 0.01)
        yield thread
        assert call.is_alive()
    finally:
        subject.let(gpu, Recovery())
        call.join(DEADLINE_S)
        assert not call.is_alive()
    assert subject.backend.call_lasting_s(thread) is None


def test_a_gpu_that_hangs_is_listed_as_last_seen_and_costs_no_other(subject: Subject) -> None:
    before = subject.backend.gpus()
    last = len(before) - 1
    drain(subject)
    with hanging(subject, last) as thread:
        assert subject.backend.give_up(thread)
        assert subject.backend.gpus() == before
        for question in ABOUT_A_GPU.values():
            with pytest.raises(HalHung):
                question(subject.backend, before[last].uuid)
        for gpu in before[:last]:
            assert subject.backend.probe(gpu.uuid).clean
        assert list(subject.backend.wait_events(0.0)) == []
    assert subject.backend.probe(before[last].uuid).reachable
    assert subject.backend.gpus() == before


def test_a_thread_in_no_call_about_a_gpu_cannot_be_given_up(subject: Subject) -> None:
    thread = threading.get_ident()
    subject.backend.probe(subject.uuids[0])
    assert subject.backend.call_lasting_s(thread) is None
    assert not subject.backend.give_up(thread)
    assert subject.backend.probe(subject.uuids[0]).reachable


def test_events_go_on_while_a_gpu_hangs(subject: Subject) -> None:
    """Also where the thread that waits for them looks at the GPUs, and hangs in that one."""
    uuids = subject.uuids
    if len(uuids) == 1:
        pytest.skip("a node of one GPU has no others")
    stop = threading.Event()
    seen: list[Event] = []
    threads: list[threading.Thread] = []

    def wait() -> None:
        while not stop.is_set():
            seen.extend(subject.backend.wait_events(0.05))

    def start() -> None:
        threads.append(threading.Thread(target=wait, daemon=True))
        threads[-1].start()

    def heard() -> bool:
        last = threads[-1].ident or 0
        if (subject.backend.call_lasting_s(last) or 0) > 0.3 and subject.backend.give_up(last):
            start()
        subject.let(1, XidFault(xid=31))
        return XidError(uuids[1], 31) in seen

    subject.let(0, Hang())
    start()
    try:
        eventually(heard)
    finally:
        subject.let(0, Recovery())
        stop.set()
        for thread in threads:
            thread.join(DEADLINE_S)
