"""`make hardware`: what is judged of a load, costs of calls, and what a report leaves out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sim.calibrate.processes import KILL_S
from tools.hardware.__main__ import STEPS, TOTAL_S
from tools.hardware.calls import Called
from tools.hardware.load import Look, Looks, compared
from tools.hardware.node import costs
from tools.hardware.report import (
    SIMULATED,
    Report,
    Result,
    anonymous,
    as_data,
    as_text,
    names_here,
)
from tools.hardware.step import Failed

UUID = "GPU-8f14e45f-ceea-467f-a9d3-0123456789ab"
PID = 4711
IDLE = Look(0.0, 600.0, 70.0, 30.0, frozenset({12}))
BUSY = Look(1.0, 1200.0, 300.0, 40.0, frozenset({12, PID}))
SEEN = Looks(IDLE, (IDLE, BUSY, BUSY), IDLE)


def test_all_steps_together_end_within_ten_minutes() -> None:
    assert sum(step.limit_s for step in STEPS) <= TOTAL_S
    assert TOTAL_S + 2 * KILL_S < 600


def test_a_load_that_is_seen_is_well() -> None:
    found = compared(SEEN, PID, own_pids=True, said="CUDA 12.8, 9 writes")
    assert found.text == "CUDA 12.8, 9 writes; process listed, 70 to 300 W"
    assert found.data["used_memory_grew_mib"] == 600.0


@pytest.mark.parametrize(
    ("looks", "problem"),
    [
        (replace(SEEN, during=()), "the load ended before the GPU was read"),
        (
            replace(SEEN, during=(replace(BUSY, used_mib=650.0),)),
            "256 MiB were allocated, used memory grew by 50",
        ),
        (
            replace(SEEN, during=(replace(BUSY, utilization=0.0),)),
            "the utilisation stayed 0 under the load",
        ),
        (
            replace(SEEN, during=(replace(BUSY, pids=frozenset({12, 99})),)),
            f"process {PID} is not among the processes of the GPU",
        ),
        (
            replace(SEEN, after=replace(IDLE, pids=frozenset({PID}))),
            f"process {PID} has ended and is still listed",
        ),
        (
            replace(SEEN, after=replace(IDLE, used_mib=900.0)),
            "300 MiB more are used after the load than before",
        ),
    ],
)
def test_what_is_not_seen_of_a_load_is_named(looks: Looks, problem: str) -> None:
    with pytest.raises(Failed) as failed:
        compared(looks, PID, own_pids=True, said="")
    assert failed.value.data["problems"] == [problem]


def test_in_another_pid_namespace_the_load_may_have_another_id_or_none() -> None:
    under_another = replace(BUSY, pids=frozenset({12, 99}))
    for look, process in ((under_another, "listed under another id"), (IDLE, "not listed")):
        during = (replace(look, utilization=1.0, used_mib=1200.0),)
        found = compared(replace(SEEN, during=during), PID, own_pids=False, said="")
        assert found.data["process"] == process


def test_values_that_are_unknown_are_not_judged() -> None:
    unknown = Look(None, None, None, None, frozenset({PID}))
    nothing = replace(unknown, pids=frozenset())
    found = compared(Looks(nothing, (unknown,), nothing), PID, own_pids=True, said="CUDA")
    assert found.text == "CUDA; process listed"


def test_costs_of_calls_are_by_function_with_the_names_of_codes() -> None:
    times_us = (10, 20, 30)
    calls = [Called("nvmlDeviceGetName", 0, 1000 * us, 0) for us in times_us]
    calls += [Called("nvmlDeviceGetFoo", 0, 5000, 3), Called("nvmlDeviceGetFoo", 0, 5000, 4242)]
    foo, name = costs(calls)
    assert (name["calls"], name["p50_us"], name["max_us"]) == (3, 20.0, 30.0)
    assert name["codes"] == {}
    assert foo["codes"] == {"NOT_SUPPORTED": 1, "4242": 1}


def test_a_report_has_neither_uuids_nor_names() -> None:
    names = {"/tmp/gpabc": "TMP", "node17.example.org": "HOST", "node17": "HOST"}
    value = {
        UUID: [
            f"{UUID}::3 on node17.example.org",
            "/tmp/gpabc/k is there",
            "node171, 0a:1b:2c:3d:4e:5f",
        ],
        "gpu": 3,
    }
    found = anonymous(value, names)
    assert isinstance(found, dict)
    (uuid, gpu) = found
    assert gpu == "gpu"
    assert uuid.startswith("GPU-")
    assert len(uuid) == len("GPU-") + 8
    assert uuid[4:] not in UUID
    assert found[uuid] == [f"{uuid}::3 on HOST", "TMP/k is there", "node171, MAC"]


def test_the_names_of_this_machine_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.node", lambda: "node17.example.org")
    monkeypatch.setattr("getpass.getuser", lambda: "someone")
    names = names_here({Path("/tmp/gpabc"): "TMP"})
    assert names["node17.example.org"] == names["node17"] == "HOST"
    assert names["someone"] == "USER"
    assert names["/tmp/gpabc"] == "TMP"
    assert list(names) == sorted(names, key=len, reverse=True)


@pytest.mark.parametrize("simulated", [True, False])
def test_a_report_says_whether_it_is_of_hardware(*, simulated: bool) -> None:
    result = Result("driver", "ok", "1 GPU", 1.0, {"gpus": []})
    report = Report(simulated, 2.0, (result,))
    text = as_text(report, {})
    assert (SIMULATED in text) is simulated
    assert ("GPUs of this machine" in text) is not simulated
    assert as_data(report, {})["simulated"] is simulated


def test_a_report_compares_what_was_measured_of_time_slicing_with_what_is_shipped() -> None:
    rows = [
        {"what": "switch, GPU full, us", "measured": 200.0, "shipped": 220.0, "assumed": True,
         "off": 0.1},
        {"what": "MPS share", "measured": 0.0, "shipped": 0.59, "assumed": False, "off": None},
    ]  # fmt: skip
    result = Result("calibrate", "ok", "slices of 2048 us", 1.0, {"compared": rows})
    lines = as_text(Report(simulated=False, took_s=2.0, results=(result,)), {}).splitlines()
    at = lines.index("Time slicing, measured and shipped")
    switch, share = (line.split() for line in lines[at + 1 : at + 3])
    assert switch == [
        "switch,",
        "GPU",
        "full,",
        "us",
        "200.0",
        "220.0",
        "(assumed)",
        "off",
        "by",
        "+10.0%",
    ]
    assert share == ["MPS", "share", "0.0", "0.6"]
