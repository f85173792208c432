"""Every call of NVML with every return code: what it must mean, to every backend.

What the codes mean is declared in `hal.nvml.calls`; here each of them is made to happen.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from hal import GpuState, HalError, NotSupported
from hal.nvml.api import LOST, Code
from hal.nvml.calls import CALLS, Meaning, Role, meaning
from sim.gpu.faults import DriverReturns, Recovery, Returns
from sim.node.scenario import GpuGroup
from tests.conformance.conftest import Subject, over_library, simulated

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

CODES: list[Code] = [code for code in Code if code is not Code.SUCCESS]
TELLING = [
    *(Code.UNINITIALIZED, Code.INVALID_ARGUMENT, Code.NOT_SUPPORTED, Code.NO_PERMISSION),
    *(Code.NOT_FOUND, Code.FUNCTION_NOT_FOUND, Code.GPU_IS_LOST, Code.NOT_READY, Code.UNKNOWN),
]
"""One for each way in which a code is handled anywhere."""
OPPOSED = [Code.UNINITIALIZED, Code.NOT_SUPPORTED, Code.GPU_IS_LOST, Code.UNKNOWN]
"""One for each thing that it can mean to a value."""
NODE_WIDE = {
    *("init", "device_count", "driver_version", "process_name"),
    *("is_confidential", "is_confidential_ready"),
}
GROUP = GpuGroup(model="h100-sxm5-80gb", count=2, mig=["3g.40gb", "1g.10gb"])
ABOUT_MIG = {"gpu_instance", "compute_instance", "mig_attributes"}
VICTIM, OTHER = 0, 1


@pytest.fixture(scope="module", params=["sim", "library"])
def node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    if request.param == "sim":
        with simulated(GROUP) as subject:
            yield subject
        return
    library: Path = request.getfixturevalue("nvml_library")
    with over_library(GROUP, library, tmp_path_factory.mktemp("n")) as subject:
        yield subject


@contextmanager
def returning(node: Subject, name: str, code: Code, *, reopen: bool) -> Iterator[None]:
    """The call returns the code until the end; `reopen`: from before the connection on."""
    function = CALLS[name].function
    if name in NODE_WIDE:
        node.let_node(DriverReturns(calls=(function,), code=code.name))
    else:
        mig = 0 if name in ABOUT_MIG else None
        node.let(VICTIM, Returns(calls=(function,), code=code.name, mig=mig))
    if reopen:
        node.backend.close()
    try:
        yield
    finally:
        node.let(VICTIM, Recovery())
        node.let_node(DriverReturns(calls=(function,), code="SUCCESS"))
        node.backend.open()


def meant(node: Subject, uuids: tuple[str, ...]) -> Meaning | str:
    """What a call that fails means to those who read the node: a `Meaning`, or what is wrong."""
    backend = node.backend
    try:
        gpus = {gpu.uuid: gpu for gpu in backend.gpus()}
    except HalError:
        return Meaning.DRIVER_FAILED
    victim, other = (gpus.get(uuids[index]) for index in (VICTIM, OTHER))
    if victim is None or other is None:
        return "a GPU is not listed"
    probes = {uuid: backend.probe(uuid) for uuid in uuids}
    if other.state is GpuState.LOST or not probes[other.uuid].clean:
        return "the other GPU suffers"
    if victim.state is GpuState.LOST:
        failures = {victim.failure, probes[victim.uuid].failure}
        if probes[victim.uuid].reachable or len(failures) != 1:
            return f"probe and list disagree: {failures}"
        (failure,) = failures
        lost = failure is None or failure.code in LOST
        return Meaning.GPU_LOST if lost else Meaning.GPU_UNREADABLE
    if not probes[victim.uuid].clean:
        return "probe and list disagree"
    try:
        with suppress(HalError):
            backend.links()  # only for preferences
        backend.wait_events(0.0)
        backend.telemetry(victim.uuid)
        with suppress(NotSupported):
            backend.processes(victim.uuid)
    except HalError as error:
        return f"{type(error).__name__}: {error}"
    return Meaning.VALUE_UNKNOWN


ROWS = [
    (name, reopen)
    for name, call in CALLS.items()
    for reopen in (False, True)
    if call.role is not Role.EVENTS and (name, reopen) != ("init", False)
]


each_call = pytest.mark.parametrize(
    ("name", "reopen"),
    ROWS,
    ids=lambda value: value if isinstance(value, str) else "at-the-start" if value else "later",
)


@each_call
def test_a_call_that_fails_means_what_the_table_says(
    node: Subject, name: str, reopen: bool
) -> None:
    """At run time, or from before the connection on; the GPUs were seen before."""
    codes = OPPOSED if CALLS[name].role is Role.OPTIONAL else TELLING
    assert not misunderstood(node, name, codes, reopen=reopen)


@pytest.mark.slow
@each_call
def test_every_code_of_a_call_means_what_the_table_says(
    node: Subject, name: str, reopen: bool
) -> None:
    assert not misunderstood(node, name, CODES, reopen=reopen)


def misunderstood(node: Subject, name: str, codes: Sequence[Code], *, reopen: bool) -> list[str]:
    """What each code that does not mean what it should means instead."""
    uuids = node.uuids
    wrong: list[str] = []
    for code in codes:
        with returning(node, name, code, reopen=reopen):
            try:
                node.backend.open()
                seen = meant(node, uuids)
            except HalError:
                seen = Meaning.DRIVER_FAILED
        wanted = meaning(CALLS[name], code)
        if seen is not wanted:
            wrong.append(f"{code.name}: {seen}")
    return wrong


@pytest.mark.parametrize("code", ["GPU_IS_LOST", "RESET_REQUIRED", "UNKNOWN", "TIMEOUT"])
def test_a_gpu_of_which_no_call_gives_a_value_is_lost(node: Subject, code: str) -> None:
    """Although its handle and its UUID, which the driver keeps, can be had."""
    uuids = node.uuids
    calls = ("description", "memory", "processes", "sensors", "health", "mig", "links")
    node.let(VICTIM, Returns(calls=calls, code=code))
    try:
        assert meant(node, uuids) in (Meaning.GPU_LOST, Meaning.GPU_UNREADABLE)
        failure = node.backend.probe(uuids[VICTIM]).failure
        assert failure is not None
        assert (failure.call, failure.code) == ("nvmlDeviceGetMemoryInfo_v2", Code[code])
    finally:
        node.let(VICTIM, Recovery())


def test_what_could_not_be_read_is_named_with_call_and_code(node: Subject) -> None:
    uuid = node.uuids[VICTIM]
    node.let(VICTIM, Returns(calls=("nvmlDeviceGetMinorNumber", "field:230"), code=17))
    node.let(VICTIM, Returns(calls=("nvmlDeviceGetPowerUsage",), value=0xFFFFFFFF))
    try:
        listed = {gpu.uuid: gpu for gpu in node.backend.gpus()}[uuid]
        probe, reading = node.backend.probe(uuid), node.backend.telemetry(uuid)
        assert [(one.call, one.code) for one in probe.unknown] == [("nvmlDeviceGetFieldValues", 17)]
        assert [(one.call, one.code) for one in reading.unknown] == [("nvmlDeviceGetPowerUsage", 0)]
        assert reading.power_w is None
        assert listed.minor is not None  # as it was before
    finally:
        node.let(VICTIM, Recovery())


@pytest.mark.parametrize("name", ["mig_mode", "max_mig_devices", *sorted(ABOUT_MIG), "mig_handle"])
def test_mig_devices_do_not_vanish_because_they_cannot_be_read(node: Subject, name: str) -> None:
    before = node.backend.gpus()[VICTIM].mig_devices
    assert len(before) == 2
    for code in (Code.UNKNOWN, Code.NOT_SUPPORTED, Code.NO_PERMISSION):
        with returning(node, name, code, reopen=False):
            assert node.backend.gpus()[VICTIM].mig_devices == before
        with returning(node, name, code, reopen=True):
            node.backend.open()
            assert node.backend.gpus()[VICTIM].mig_devices == before


@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if call.role is Role.EVENTS])
def test_a_wait_for_events_that_fails_is_an_error_and_ends(node: Subject, name: str) -> None:
    """Other calls go on; what the plugin makes of it: `core.watch`."""
    call, uuid = CALLS[name], node.uuids[VICTIM]
    for code in CODES:
        node.backend.close()
        node.backend.open()
        node.let_node(DriverReturns(calls=(call.function,), code=code.name))
        try:
            if meaning(call, code) is Meaning.NOTHING_NEW:
                assert list(node.backend.wait_events(0.01)) == []
            else:
                with pytest.raises(HalError):
                    node.backend.wait_events(0.01)
            assert node.backend.probe(uuid).clean
        finally:
            node.let_node(DriverReturns(calls=(call.function,), code="SUCCESS"))
        node.backend.wait_events(0.0)
