"""The words of Events and of the node condition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.core.nodecondition import MESSAGE_BYTES, Condition, GpuReport, condition_for

LOST = GpuReport("GPU-a", "3", "Unhealthy", "Xid 79: off the bus", "reboot-node", 79)
UNKNOWN = GpuReport("GPU-b", "", "Unhealthy")


@pytest.mark.parametrize(
    ("news", "reason", "kind", "message"),
    [
        (
            LOST,
            "GPUUnhealthy",
            "Warning",
            "GPU 3 (GPU-a) is Unhealthy: Xid 79: off the bus; action: reboot-node",
        ),
        (GpuReport("GPU-a", "0", "Healthy"), "GPUHealthy", "Normal", "GPU 0 (GPU-a) is Healthy"),
        (
            GpuReport("GPU-a", "0", "Recovering", "lost"),
            "GPURecovering",
            "Normal",
            "GPU 0 (GPU-a) is Recovering: lost",
        ),
        (
            GpuReport("GPU-a", "0", "Unhealthy", "off the bus", "", 79),
            "GPUUnhealthy",
            "Warning",
            "GPU 0 (GPU-a) is Unhealthy: off the bus, Xid 79",
        ),
        (
            GpuReport("GPU-a", "0", "Unhealthy", "", "reset", 64),
            "GPUUnhealthy",
            "Warning",
            "GPU 0 (GPU-a) is Unhealthy: Xid 64; action: reset",
        ),
        (UNKNOWN, "GPUUnhealthy", "Warning", "GPU unknown (GPU-b) is Unhealthy"),
    ],
)
def test_what_an_event_says(news: GpuReport, reason: str, kind: str, message: str) -> None:
    assert (news.event_reason, news.event_type, news.event_message) == (reason, kind, message)


@pytest.mark.parametrize(
    ("unhealthy", "total", "blind", "condition"),
    [
        ([], 8, "", Condition(True, "AllGPUsHealthy", "all GPUs are healthy (8)")),
        ([], 0, "", Condition(None, "NoGPU", "no GPU is listed")),
        (
            [LOST],
            8,
            "no driver",
            Condition(None, "MonitorBlind", "GPUs cannot be watched: no driver"),
        ),
        (
            [
                GpuReport("GPU-x", "10", "Unhealthy", "lost", "reset"),
                GpuReport("GPU-y", "9", "Recovering", "hot"),
            ],
            16,
            "",
            Condition(
                False,
                "GPUsNotHealthy",
                "2 of 16 GPUs are not healthy: GPU 9 (GPU-y) Recovering: hot, "
                "GPU 10 (GPU-x): lost; action: reset",
            ),
        ),
    ],
)
def test_the_condition(
    unhealthy: list[GpuReport], total: int, blind: str, condition: Condition
) -> None:
    assert condition_for(unhealthy, total, blind) == condition


def test_the_status_is_as_the_api_has_it() -> None:
    assert [Condition(one, "A", "").status for one in (True, False, None)] == [
        "True",
        "False",
        "Unknown",
    ]


def test_many_gpus_are_named_as_far_as_they_fit_and_then_counted() -> None:
    news = [GpuReport(f"GPU-{index:036}", str(index), "Unhealthy", "x" * 40) for index in range(64)]
    message = condition_for(news, 64, "").message

    named = message.count("GPU-")
    assert len(message) <= MESSAGE_BYTES
    assert len(message) > MESSAGE_BYTES - 120, "there was room for one more"
    assert message.endswith(f", and {64 - named} more")


def test_where_one_gpu_fits_the_others_are_counted() -> None:
    news = [GpuReport(f"GPU-{one}", str(one), "Unhealthy", "x" * 600) for one in range(3)]
    message = condition_for(news, 8, "").message

    assert message.count("GPU-") == 1
    assert message.endswith(", and 2 more")


WORDS = st.text(max_size=900)


@given(WORDS, st.integers(1, 40), WORDS)
def test_messages_are_bounded_in_bytes(reason: str, count: int, blind: str) -> None:
    news = [GpuReport(f"GPU-{one}", str(one), "Unhealthy", reason, reason) for one in range(count)]

    for message in (
        news[0].event_message,
        condition_for(news, count, "").message,
        condition_for(news, count, blind * 4).message,
    ):
        assert message
        assert len(message.encode()) <= MESSAGE_BYTES


@given(st.permutations([GpuReport(f"GPU-{one}", str(one), "Unhealthy") for one in range(12)]))
def test_the_order_of_gpus_does_not_matter(news: list[GpuReport]) -> None:
    ordered = sorted(news, key=lambda one: int(one.gpu))

    assert condition_for(news, 12, "") == condition_for(ordered, 12, "")


def test_a_message_that_is_too_long_is_cut_between_characters() -> None:
    for text in (
        condition_for([], 8, "é" * 2000).message,
        GpuReport("GPU-a", "10", "Unhealthy", "é" * 2000).event_message,
        condition_for([GpuReport("GPU-a", "10", "Unhealthy", "é" * 2000)], 8, "").message,
    ):
        assert MESSAGE_BYTES - 1 <= len(text.encode()) <= MESSAGE_BYTES
        assert text.endswith("é...")


def test_text_that_is_no_text_is_no_error() -> None:
    assert condition_for([], 8, "/lib/\udcff.so").message == "GPUs cannot be watched: /lib/?.so"
    assert GpuReport("GPU-a", "0", "Unhealthy", "\udcff").event_message.endswith(": ?")
    one = GpuReport("GPU-a", "0", "Unhealthy", "\udcff")
    assert condition_for([one], 1, "").message.endswith(": ?")
