"""The simulator's means for drivers that misbehave, as every backend reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hal import ComputeMode, DriverUnavailable, GpuState, HalError
from sim.gpu.faults import (
    FAULT,
    ComputeModeChange,
    DriverReturns,
    DriverUp,
    Plug,
    Recovery,
    Returns,
    Unplug,
)
from sim.node.scenario import GpuGroup
from tests.conformance.conftest import over_library, simulated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conformance.conftest import Subject


def returns(calls: str, **what: object) -> Returns:
    return Returns.model_validate({"calls": calls.split(), **what})


@pytest.fixture(params=["sim", "library"])
def two(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    """Two GPUs, the second in MIG mode."""
    group = GpuGroup(model="h100-sxm5-80gb", count=2, mig=["3g.40gb", "1g.10gb"])
    if request.param == "sim":
        with simulated(group) as subject:
            yield subject
        return
    library: Path = request.getfixturevalue("nvml_library")
    with over_library(group, library, tmp_path) as subject:
        yield subject


def test_a_code_of_a_call_holds_for_its_gpu_until_it_recovers(two: Subject) -> None:
    one, other = two.uuids
    two.let(0, returns("nvmlDeviceGetPowerUsage", code="not-supported"))
    assert two.backend.telemetry(one).power_w is None
    assert two.backend.telemetry(one).temperature_c is not None
    assert two.backend.telemetry(other).power_w is not None
    two.let(0, Recovery())
    assert two.backend.telemetry(one).power_w is not None


def test_a_code_ends_with_success_and_a_group_is_its_functions(two: Subject) -> None:
    one = two.uuids[0]
    two.let(0, returns("sensors", code=999))
    reading = two.backend.telemetry(one)
    assert (reading.temperature_c, reading.power_w, reading.sm_clock_mhz) == (None, None, None)
    two.let(0, returns("nvmlDeviceGetTemperature", code="SUCCESS"))
    assert two.backend.telemetry(one).temperature_c is not None
    assert two.backend.telemetry(one).power_w is None


def test_a_call_that_fails_every_other_time(two: Subject) -> None:
    one = two.uuids[0]
    two.let(0, returns("nvmlDeviceGetTemperature", code="unknown", every=2))
    seen = [two.backend.telemetry(one).temperature_c is None for _ in range(6)]
    assert seen == [False, True, False, True, False, True]


def test_a_field_value_of_its_own(two: Subject) -> None:
    one = two.uuids[0]
    two.let(0, returns("field:230", value=3))
    assert two.backend.probe(one).recovery_action.value == "drain-p2p"
    two.let(0, returns("field:230", code="not-supported"))
    assert two.backend.probe(one).recovery_action.value == "unknown"


def test_members_of_a_structure(two: Subject) -> None:
    one = two.uuids[0]
    two.let(0, returns("nvmlDeviceGetMemoryInfo", value={"free": 42}))
    reading = two.backend.telemetry(one)
    assert (reading.memory_free_bytes, reading.memory_total_bytes) == (42, 85520809984)


def test_calls_about_a_mig_device(two: Subject) -> None:
    before = two.backend.gpus()[1].mig_devices
    two.let(1, returns("nvmlDeviceGetName", value="hex:41", mig=1))
    first, second = two.backend.gpus()[1].mig_devices
    assert first == before[0]
    assert second.profile == "1g.10gb"  # from its slices, for the name has no profile
    assert two.backend.gpus()[0].product.startswith("NVIDIA")


def test_calls_about_no_gpu(two: Subject) -> None:
    two.let_node(DriverReturns(calls=("nvmlDeviceGetCount",), code="driver-not-loaded"))
    with pytest.raises(DriverUnavailable):
        two.backend.gpus()
    two.let_node(DriverUp())
    assert len(two.backend.gpus()) == 2


def test_waiting_for_events_can_fail(two: Subject) -> None:
    two.let_node(DriverReturns(calls=("events",), code="unknown"))
    with pytest.raises(HalError):
        two.backend.wait_events(0.5)
    two.let_node(DriverUp())
    two.backend.wait_events(0.0)


def test_a_connection_can_be_refused(two: Subject) -> None:
    two.let_node(DriverReturns(calls=("nvmlInit",), code="no-permission"))
    two.backend.close()
    with pytest.raises(DriverUnavailable):
        two.backend.open()
    two.let_node(DriverUp())
    two.backend.open()


def test_a_fault_of_some_seconds(two: Subject) -> None:
    one = two.uuids[0]
    two.let(0, returns("nvmlDeviceGetTemperature", code="unknown", for_s=0.2))
    assert two.backend.telemetry(one).temperature_c is None
    for _ in range(200):
        if two.backend.telemetry(one).temperature_c is not None:
            break
        two.backend.wait_events(0.02)
    assert two.backend.telemetry(one).temperature_c is not None


def test_gpus_are_numbered_anew_when_one_has_left(two: Subject) -> None:
    """Only by a new connection, as NVML does; one that runs keeps its indices."""
    one, other = two.uuids
    two.let(0, Unplug())
    assert [(gpu.uuid, gpu.index) for gpu in two.backend.gpus()] == [(one, 0), (other, 1)]
    two.backend.close()
    two.backend.open()
    listed = {gpu.uuid: (gpu.index, gpu.state is GpuState.OK) for gpu in two.backend.gpus()}
    assert listed[other] == (0, True)
    assert listed[one] == (0, False)
    two.let(0, Plug())
    two.backend.close()
    two.backend.open()
    assert [(gpu.uuid, gpu.index) for gpu in two.backend.gpus()] == [(one, 0), (other, 1)]


def test_the_compute_mode_is_read(two: Subject) -> None:
    two.let(0, ComputeModeChange(mode=ComputeMode.EXCLUSIVE_PROCESS))
    modes = [gpu.compute_mode for gpu in two.backend.gpus()]
    assert modes == [ComputeMode.EXCLUSIVE_PROCESS, ComputeMode.DEFAULT]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"calls": ["nvmlDeviceGetNonsense"], "code": 3}, "nor a function of NVML"),
        ({"calls": ["nvmlShutdown"], "code": 3}, "does not ask the node"),
        ({"calls": ["nvmlDeviceSetDriverModel"], "code": 3}, "does not ask the node"),
        ({"calls": ["memory"], "code": 77}, "is no return code of NVML"),
        ({"calls": ["memory"], "code": 3, "value": 4}, "either a code or a value"),
        ({"calls": ["memory"]}, "either a code or a value"),
        ({"calls": ["memory"], "value": "f88a"}, "'hex:' and its bytes"),
        ({"calls": [], "code": 3}, "at least 1 item"),
    ],
)
def test_what_cannot_be_returned_is_refused(what: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FAULT.validate_python({"kind": "returns", **what})
