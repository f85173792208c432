"""A report in a few plain sentences: what ran, which tenants were slowed down, what was lost."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.study.runreport import Deprived, GpuReport, KindReport, RunReport


UNDISTURBED = 1.1
"""Up to this slowdown a kind counts as undisturbed."""

ENDLESS = 0.05
"""Where half of the requests wait for more than this share of the run, a queue has no end."""

_PARTS = 4
"""Kinds of tenants that a sentence names, each with what became of it."""

_UNITS = ((86400 * 2, 86400, "days"), (3600 * 3, 3600, "hours"), (180, 60, "minutes"))


def as_sentences(report: RunReport) -> list[str]:
    """Three to six sentences or so, in the order in which a person wants to know."""
    return [
        _setup(report),
        *_deprived(report),
        *_slowdowns(report),
        *_switching(report),
        *_heat(report.gpus),
        _failures(report),
    ]


def duration(seconds: float) -> str:
    """A time as people say it: `45 s`, `10 minutes`, `7 days`."""
    for least, unit_s, name in _UNITS:
        if seconds >= least:
            return f"{number(seconds / unit_s)} {name}"
    return f"{number(seconds)} s"


def number(value: float) -> str:
    """Three digits at most, without zeros that say nothing: 1,234, 56.7, 3.2, 0.04."""
    if abs(value) >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2g}"


def percent(share: float) -> str:
    """A share as a percentage; a small one is not called nothing."""
    if share < 0.0005:
        return "less than 0.1 %" if share else "0 %"
    return f"{share * 100:.0f} %" if share >= 0.0995 else f"{share * 100:.1f} %"


def milliseconds(value: float) -> str:
    return f"{number(value)} ms" if value < 10_000 else f"{number(value / 1000)} s"


def counted(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def listed(items: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(items[:-1]), *items[-1:])))


def _setup(report: RunReport) -> str:
    # One that was replaced shares its index with its successor, and counts once.
    models = Counter({gpu.index: gpu.product for gpu in report.gpus}.values())
    node = listed([f"{count} x {product}" for product, count in models.items()])
    kinds = Counter(one.kind for one in report.tenants if one.gpu)
    names = [one.kind for one in report.kinds if kinds[one.kind]]
    who = ", ".join(f"{kinds[name]} x {name}" for name in names[:6])
    more = f" and {len(names) - 6} more kinds" if len(names) > 6 else ""
    tenants = f" were shared by {counted(kinds.total(), 'tenant')} ({who}{more})"
    return (
        f"For {duration(report.until_s)} of model time {node}"
        f"{tenants if kinds else ' ran without tenants that have work'}"
        f" (scenario {report.scenario}, seed {report.seed})."
    )


_WHY = {
    "waited": "waited for devices",
    "refused": "failed admission",
    "memory": "asked for memory that was not free",
    "fault": "ended by a fault",
    "starved": "had work, of which none was done",
}


def _deprived(report: RunReport) -> list[str]:
    """Who got nothing, and who waited: before those who were merely slowed down."""
    lines = []
    if report.deprived:
        grouped: dict[tuple[str, str], list[Deprived]] = {}
        for one in report.deprived:
            grouped.setdefault((one.kind, one.why), []).append(one)
        parts = [_group(report, *key, ones) for key, ones in grouped.items()]
        shown = [*parts[:_PARTS], *([f"{len(parts) - _PARTS} more"] if len(parts) > _PARTS else [])]
        of = counted(len({one.name for one in report.tenants}), "tenant")
        lines.append(f"{len(report.deprived)} of {of} got nothing: {'; '.join(shown)}.")
    pods = report.pods
    if pods.waited:
        lines.append(
            f"Of {counted(pods.created, 'pod')}, {pods.waited} waited for devices before they ran, "
            f"at most {duration(pods.wait_max_s or 0)}."
        )
    return lines


def _group(report: RunReport, kind: str, why: str, ones: Sequence[Deprived]) -> str:
    for_s = [one.for_s for one in ones]
    spans = duration(max(for_s)) if len(ones) == 1 else f"up to {duration(max(for_s))}"
    time = f" for {spans}" if why in ("waited", "starved") else ""
    if len(ones) == 1:
        return f"{ones[0].name} {_WHY[why]}{time}"
    of = next((one.tenants for one in report.kinds if one.kind == kind), len(ones))
    return f"{len(ones)} of {of} {kind} {_WHY[why]}{time}"


def _slowdowns(report: RunReport) -> list[str]:
    served = [kind for kind in report.kinds if kind.slowdown is not None and kind.latency_ms]
    if not served:
        return ["No request was finished."] if report.tenants else []
    served.sort(key=lambda kind: -(kind.slowdown or 0))
    worst, *others = served
    if (worst.slowdown or 0) < UNDISTURBED:
        return [_single_slowdown(report)]
    lines = [_slowed_down(worst, report.until_s), _from_whom(worst)]
    if others:
        rest = listed([f"{one.kind} took {number(one.slowdown or 1)} times" for one in others[:3]])
        left_out = f" (the table has {len(others) - 3} more)" if len(others) > 3 else ""
        lines.append(f"Of the others, {rest} as long as alone{left_out}.")
    return lines


def _single_slowdown(report: RunReport) -> str:
    """No kind was slowed down on average, but one of its tenants may be."""
    one = max(report.tenants, key=lambda one: one.slowdown or 0)
    if (one.slowdown or 0) < UNDISTURBED:
        return "No tenant was slowed down: requests took as long as alone on the GPU."
    label = next((gpu.label for gpu in report.gpus if gpu.uuid == one.gpu), "")
    where = f" on GPU {label}" if label else ""
    return (
        f"Most were not slowed down, but requests of {one.name}{where} took "
        f"{number(one.slowdown or 1)} times as long as alone on average."
    )


def _slowed_down(kind: KindReport, until_s: float) -> str:
    latency, alone_ms = kind.latency_ms, kind.alone_ms
    assert latency is not None  # noqa: S101 - who has a slowdown was served
    queue = ""
    if latency.p50 > until_s * 1000 * ENDLESS:
        queue = " Its queue only grew: its load exceeds its share of the GPU."
    return (
        f"{kind.kind} was slowed down most: its requests took {number(kind.slowdown or 1)} times "
        f"as long as alone on average; half took {milliseconds(latency.p50)} or less and 1 in 100 "
        f"took {milliseconds(latency.p99)} or more, against {milliseconds(alone_ms or 0)} alone."
        f"{queue}"
    )


def _from_whom(kind: KindReport) -> str:
    if not kind.neighbours:
        return "No other tenant used the GPU: its requests waited for each other."
    other, share = next(iter(kind.neighbours.items()))
    who = f"other tenants of {kind.kind}" if other == kind.kind else other
    gpus = "the GPU" if kind.gpus == 1 else f"{kind.gpus} GPUs"
    return f"It shared {gpus} with {who}, which took {percent(share)} of the time there."


def _switching(report: RunReport) -> list[str]:
    if report.switching_share is None:
        return []
    fairness = (
        f" Fairness (Jain) was {report.fairness:.2f}; 1 is all slowed down alike, and who got "
        "nothing counts as 0."
        if report.fairness is not None and report.deprived
        else f" Fairness (Jain) was {report.fairness:.2f}; 1 is all slowed down alike."
        if report.fairness is not None
        else ""
    )
    if not report.switching_share:
        return [f"Nothing was lost to switching between tenants.{fairness}"]
    lost = percent(report.switching_share)
    return [f"Switching between tenants took {lost} of the time with work.{fairness}"]


def _heat(gpus: Sequence[GpuReport]) -> list[str]:
    ended = [
        f"GPU {gpu.label} ({counted(gpu.thermal_shutdowns, 'time')})"
        for gpu in gpus
        if gpu.thermal_shutdowns
    ]
    shut_down = [f"Shut down at the highest temperature: {listed(ended)}."] if ended else []
    slow = [gpu for gpu in gpus if gpu.clock_min_share is not None and gpu.clock_min_share < 0.995]
    if not slow:
        return shut_down
    worst = min(slow, key=lambda gpu: gpu.clock_min_share or 1)
    reached_c, clock = worst.temperature_max_c or 0, percent(worst.clock_min_share or 0)
    lines = (
        f"Heat slowed down {counted(len(slow), 'GPU')}: GPU {worst.label} reached {reached_c:.0f}"
        f" °C and ran at {clock} of its clocks."
    )
    return [" ".join([lines, *shut_down])]


def _failures(report: RunReport) -> str:
    ooms = (
        f"memory ran out {counted(report.ooms, 'time')}" if report.ooms else "memory never ran out"
    )
    ill = [gpu for gpu in report.gpus if gpu.unhealthy_s]
    if not ill and not report.xids:
        return f"{ooms[0].upper()}{ooms[1:]}, and no GPU failed."
    xids = sum(report.xids.values())
    codes = listed([f"{count} x {code}" for code, count in report.xids.items()][:4])
    faults = f" {counted(xids, 'Xid')} ({codes})." if xids else ""
    lost = ""
    if ill:
        who = [f"GPU {gpu.label} for {duration(gpu.unhealthy_s)}" for gpu in ill[:4]]
        who += [f"{len(ill) - 4} more"] if len(ill) > 4 else []
        lost = (
            f" Not usable: {listed(who)}, together "
            f"{number(report.unavailable_replica_hours)} replica-hours."
        )
    restarts = (
        f" Containers were restarted {counted(report.restarts, 'time')}." if report.restarts else ""
    )
    return f"{ooms[0].upper()}{ooms[1:]}.{faults}{lost}{restarts}"
