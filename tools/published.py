"""What others measured of GPUs that share time, and what this model makes of the same.

The model's parameters are those of the GPU's profile, or the MPS share that is named here. `fitted`
says which rows these come from; agreement with them is necessary and proves little, or nothing
where they come from that row alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeAlias

from sim.gpu.profiles import load_profile, slice_parameters
from sim.gpu.scheduler import NS_PER_MS, NS_PER_S, NS_PER_US, ContextId
from sim.gpu.timeslicing import TimeSlicing
from sim.study.share import Mechanism, SharePlan, ShareResult, share

if TYPE_CHECKING:
    from collections.abc import Callable

A100 = "a100-sxm4-80gb"
YOLOS_MS = 88.15
"""One inference of YOLOS-small alone on an A100 80GB."""

RTX_5090_KERNEL_MS = 12.957
"""One kernel of eunomia-bpf/gpu_ext (docs/eval/multi-tenant-scheduler, MIT licence), alone."""

BETWEEN_PEAKS_MS = 88.0
"""Wall times of these kernels in six processes have two peaks, one on either side of this."""

YOLOS = "YOLOS-small on A100 80GB, saturating pods"
SIX = "six processes on RTX 5090, full-occupancy kernels of 12.957 ms (eunomia-bpf/gpu_ext)"
ENCODERS = "encoders on GB10"
ENCODER_MS = 20.0
"""Assumed: no duration was published, and the slowdown of saturating clients has none in it."""

YOLOS_MPS = "YOLOS inference on A100 80GB PCIe, MPS"
YOLOS_MPS_SHARE = 0.43
ENCODER_MPS_SHARE = 0.75
"""The MPS shares that these two families of measurements give."""


Fitted: TypeAlias = Literal["no", "partly", "yes"]
"""Whether the model's parameters come from it: with others, or from it alone."""


@dataclass(frozen=True, slots=True)
class Published:
    """A measurement: of what (`setup`), which `quantity` in which unit, and the model's value."""

    setup: str
    quantity: str
    measured: float
    model: Callable[[], float]
    fitted: Fitted
    remark: str = ""

    @property
    def error(self) -> float:
        """How far the model is off, as a share of what was measured."""
        return self.model() / self.measured - 1


def yolos_slowdown(pods: int) -> float:
    return _slowdown(SharePlan(model=A100, clients=pods, busy_ms=YOLOS_MS))


@cache
def six_processes() -> ShareResult:
    return share(SharePlan(model="rtx5090", clients=6, busy_ms=RTX_5090_KERNEL_MS))


def six_processes_peak_ms(*, second: bool) -> float:
    side = [ms for ms in six_processes().latencies_ms if (ms > BETWEEN_PEAKS_MS) is second]
    return side[len(side) // 2]


def six_processes_first_share() -> float:
    times_ms = six_processes().latencies_ms
    return 100 * sum(ms < BETWEEN_PEAKS_MS for ms in times_ms) / len(times_ms)


def short_job_ms(model: str, busy: int, work_ms: float) -> float:
    """How long a job takes that comes as one of `busy` full-occupancy clients begins a slice.

    That is the longest it can take.
    """
    scheduler = TimeSlicing(slice_parameters(load_profile(model)))
    slice_ns = scheduler.parameters.slice_ns
    for context in range(busy):
        scheduler.submit(ContextId(context), NS_PER_S, 1.0)
    # Behind two rounds, and the switch in: a slice begins.
    begin_ns = scheduler.parameters.switch_ns(0.0, 1.0)
    if busy > 1:
        begin_ns += 2 * busy * (slice_ns + scheduler.parameters.switch_ns(1.0, 1.0))
    scheduler.advance(begin_ns)
    job = ContextId(busy)
    scheduler.submit(job, round(work_ms * NS_PER_MS), 1.0)
    while (end_ns := scheduler.next_end_ns()) is not None:
        if any(ended.context == job for ended in scheduler.advance(end_ns)):
            break
    return (scheduler.now_ns - begin_ns) / NS_PER_MS


def wait_ms(model: str, busy: int) -> float:
    """What a job of a microsecond waits: see `short_job_ms`."""
    return short_job_ms(model, busy, 0.001) - 0.001


def two_loops_ms() -> float:
    """Two processes on an RTX 5090, each with a loop of 260.15 ms in one block."""
    plan = SharePlan(model="rtx5090", clients=2, busy_ms=260.15, occupancy=0.0)
    return _slowdown(plan) * plan.busy_ms


def one_thread_slowdown() -> float:
    """Five processes on a T4, each with kernels of one thread."""
    return _slowdown(SharePlan(model="t4", clients=5, busy_ms=100, occupancy=0.0))


def encoders(clients: int) -> float:
    """Encoders that fill a GB10, by time slicing."""
    return _slowdown(SharePlan(model="gb10", clients=clients, busy_ms=ENCODER_MS))


def yolos_by_mps(clients: int) -> float:
    """The throughput of all clients together, where one alone has 1."""
    return clients / _by_mps(A100, clients, YOLOS_MS, YOLOS_MPS_SHARE)


def switch_us(model: str, occupancy: float) -> float:
    """A switch between two clients of this occupancy."""
    return slice_parameters(load_profile(model)).switch_ns(occupancy, occupancy) / NS_PER_US


PUBLISHED = (
    Published(YOLOS, "slowdown of each of 3", 3.33, lambda: yolos_slowdown(3), fitted="partly"),
    Published(
        YOLOS, "slowdown of each of 5", 5 * 1.109, lambda: yolos_slowdown(5), fitted="partly"
    ),
    Published(
        YOLOS, "slowdown of each of 7", 7 * 1.110, lambda: yolos_slowdown(7), fitted="partly"
    ),
    Published(
        SIX,
        "first peak of wall times, ms",
        82.12,
        lambda: six_processes_peak_ms(second=False),
        fitted="partly",
    ),
    Published(
        SIX,
        "second peak of wall times, ms",
        93.62,
        lambda: six_processes_peak_ms(second=True),
        fitted="partly",
    ),
    Published(SIX, "kernels in the first peak, %", 66, six_processes_first_share, fitted="partly"),
    Published(
        SIX,
        "kernels per second, all together",
        69.8,
        lambda: 6 * six_processes().throughput_per_client_per_s,
        fitted="partly",
    ),
    Published(
        "short job behind busy clients on RTX 5090",
        "wait behind 5, ms",
        11.40,
        lambda: wait_ms("rtx5090", 5),
        fitted="no",
        remark="the job comes as a slice begins: the longest wait of the model",
    ),
    Published(
        "frame behind a saturating job on RTX 4090",
        "wait behind 1, ms",
        2.3,
        lambda: wait_ms("rtx4090", 1),
        fitted="partly",
        remark="as above",
    ),
    Published(
        "job of 2.60 ms against a saturating one on RTX 5090",
        "time, ms",
        7.091,
        lambda: short_job_ms("rtx5090", 1, 2.60),
        fitted="partly",
        remark="as above; the occupancy was not published, 1 is assumed",
    ),
    Published(
        "two busy loops on RTX 5090, 260.15 ms alone",
        "time of each, ms",
        539.46,
        two_loops_ms,
        fitted="partly",
        remark="occupancy 0 is assumed, for one small block",
    ),
    Published(
        "kernels of one thread on T4",
        "slowdown of each of 5",
        6.11,
        one_thread_slowdown,
        fitted="yes",
        remark="the profile's switch is what this row leaves; it includes the start of the "
        "processes",
    ),
    Published(
        "gap between slices on RTX 3090",
        "switch at full occupancy, us",
        145,
        lambda: switch_us("rtx3090", 1.0),
        fitted="no",
        remark="wrong: a kernel's occupancy was not published; one of 0.5 would fit",
    ),
    Published(ENCODERS, "slowdown of each of 2", 2.17, lambda: encoders(2), fitted="yes"),
    Published(ENCODERS, "slowdown of each of 3", 3.26, lambda: encoders(3), fitted="yes"),
    Published(
        f"{ENCODERS}, BF16 alone",
        "switch, us",
        170,
        lambda: switch_us("gb10", 1.0),
        fitted="no",
    ),
    Published(
        f"two and three {ENCODERS}, whole window",
        "switch, us",
        76.5,
        lambda: switch_us("gb10", 1.0),
        fitted="no",
        remark="wrong: 59 to 94 us were measured over a window with pauses; an occupancy of 0.06 "
        "would fit",
    ),
    Published(YOLOS_MPS, "throughput of 3 together", 1.61, lambda: yolos_by_mps(3), fitted="yes"),
    Published(
        f"{ENCODERS}, MPS",
        "slowdown of each of 2",
        1.752,
        lambda: _by_mps("gb10", 2, ENCODER_MS, ENCODER_MPS_SHARE),
        fitted="yes",
    ),
)


def comparison_table() -> str:
    """All rows, as a table of a document."""
    lines = [
        "| published measurement | quantity | measured | model | error | fitted on it | |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in PUBLISHED:
        figures = f"{one.measured:.4g} | {one.model():.4g} | {100 * one.error:+.1f} %"
        lines.append(f"| {one.setup} | {one.quantity} | {figures} | {one.fitted} | {one.remark} |")
    return "\n".join(lines)


def _by_mps(model: str, clients: int, busy_ms: float, mps_share: float) -> float:
    return _slowdown(
        SharePlan(model, clients, busy_ms, mechanism=Mechanism.MPS, mps_share=mps_share)
    )


def _slowdown(plan: SharePlan) -> float:
    slowdown = share(plan).slowdown_mean
    assert slowdown is not None  # noqa: S101 - the memory suffices
    return slowdown
