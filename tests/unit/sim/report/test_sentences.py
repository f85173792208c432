from __future__ import annotations

import pytest

from sim.study.report import report_of
from sim.study.sentences import as_sentences, duration, listed, milliseconds, number, percent
from sim.virtual.kubelet import PodNotes
from tests.unit.sim.outcomes import change, gpu, outcome, record, sample


def test_who_suffered_from_whom_and_how_much() -> None:
    done = outcome(
        record("api-0", latency_ms=[10] * 99 + [40], work_ms=4, busy_s=8),
        record("trainer-0", latency_ms=[300], work_ms=250, busy_s=80),
        gpus=[gpu(active_ns=88 * 10**9, switching_ns=2 * 10**9, places={"GPU-0"})],
    )
    text = "\n".join(as_sentences(report_of(done)))
    assert "For 100 s of model time 1 x NVIDIA Test" in text
    assert "shared by 2 tenants (1 x trainer, 1 x api)" in text
    assert "api was slowed down most: its requests took 2.6 times as long as alone" in text
    assert "half took 10 ms or less and 1 in 100 took 10 ms or more, against 4 ms alone." in text
    assert "It shared the GPU with trainer, which took 80 % of the time there." in text
    assert "trainer took 1.2 times as long as alone" in text
    assert "Switching between tenants took 2.2 % of the time with work." in text
    assert "Memory never ran out, and no GPU failed." in text
    assert "queue" not in text


def test_a_queue_without_end_is_called_so() -> None:
    done = outcome(record("asr-0", latency_ms=[6000.0] * 3, work_ms=20), until_s=100)
    text = " ".join(as_sentences(report_of(done)))
    assert "Its queue only grew" in text
    assert "No other tenant used the GPU" in text


def test_nobody_is_said_to_suffer_who_did_not() -> None:
    text = " ".join(as_sentences(report_of(outcome(record("a-0", latency_ms=[1.01])))))
    assert "No tenant was slowed down" in text
    assert "suffered" not in text


def test_faults_heat_and_memory_are_told() -> None:
    hot = gpu(0, unhealthy_ns=400 * 10**9, samples=[sample(1)])
    object.__setattr__(hot.samples[0], "clock_ppm", 600_000)
    object.__setattr__(hot.samples[0], "temperature_c", 91.0)
    done = outcome(record("a-0", ooms=3), gpus=[hot], until_s=7 * 86400)
    done.changes = [change(1, "Unhealthy")]
    done.xids = {95: 2}
    done.unavailable_replica_ns = 9 * 3600 * 10**9
    done.pods = [PodNotes(f"p-{number}", 0) for number in range(4)]
    text = " ".join(as_sentences(report_of(done)))
    assert "For 7 days" in text
    assert "GPU 0 reached 91 °C and ran at 60 % of its clocks." in text
    assert "Memory ran out 3 times. 2 Xids (2 x 95)." in text
    assert "Not usable: GPU 0 for 6.7 minutes, together 9 replica-hours." in text
    assert (
        "5 of 5 tenants got nothing: a-0 asked for memory that was not free; "
        "4 of 4 p waited for devices for up to 7 days." in text
    )
    assert "No request was finished." in text


def test_who_waited_comes_before_who_was_slow() -> None:
    done = outcome(record("a-0", latency_ms=[9]))
    done.pods = [PodNotes("a-0", 0, 19 * 10**9)]
    first, second, third, *_ = as_sentences(report_of(done))
    assert first.startswith("For 100 s")
    assert second == "Of 1 pod, 1 waited for devices before they ran, at most 19 s."
    assert third.startswith("a was slowed down most")


def test_a_gpu_that_shut_itself_down_is_named() -> None:
    done = outcome(record("a-0"), gpus=[gpu(0), gpu(1)])
    done.thermal_shutdowns["GPU-1"] = 2
    text = " ".join(as_sentences(report_of(done)))
    assert "Shut down at the highest temperature: GPU 1 (2 times)." in text


def test_one_who_suffered_among_many_who_did_not_is_named() -> None:
    well = [record(f"a-{number}", latency_ms=[1.0] * 50) for number in range(3)]
    slow = record("a-3", "GPU-1", latency_ms=[1.3] * 20)
    done = outcome(*well, slow, gpus=[gpu(0), gpu(1)])
    text = " ".join(as_sentences(report_of(done)))
    assert "requests of a-3 on GPU 1 took 1.3 times as long as alone" in text
    assert "No tenant was slowed down" in " ".join(as_sentences(report_of(outcome(*well))))


def test_a_node_without_tenants() -> None:
    text = " ".join(as_sentences(report_of(outcome(gpus=[gpu(0), gpu(1)]))))
    assert "2 x NVIDIA Test ran without tenants" in text
    assert "suffered" not in text


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (duration(45), "45 s"),
        (duration(600), "10 minutes"),
        (duration(6 * 3600), "6 hours"),
        (duration(7 * 86400), "7 days"),
        (number(1234.4), "1,234"),
        (number(0.042), "0.042"),
        (percent(0.0), "0 %"),
        (percent(0.0001), "less than 0.1 %"),
        (percent(0.034), "3.4 %"),
        (percent(0.5), "50 %"),
        (milliseconds(12_345), "12.3 s"),
        (listed(["a", "b", "c"]), "a, b and c"),
        (listed(["a"]), "a"),
    ],
)
def test_numbers_as_people_say_them(said: str, expected: str) -> None:
    assert said == expected
