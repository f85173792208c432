"""The usage over time of recorded nodes as a history."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from sim.advise.history import ACTIVE, CannotRead, History, PodSeries
from sim.study.sentences import counted
from sim.study.usage import NoUsage, read_usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sim.study.usage import Tenant, Usage


def history_of(files: Sequence[str]) -> tuple[History, list[str]]:
    """What recordings of one or more nodes show together, and notes; raises `CannotRead`.

    Recordings at different intervals are taken at the longest of them.
    """
    usages = {}
    for file in files:
        try:
            usages[file] = read_usage(Path(file))
        except NoUsage as error:
            raise CannotRead(str(error)) from error
        except (OSError, UnicodeDecodeError) as error:
            raise CannotRead(f"{file} cannot be read: {error}") from error
    step_s = max(usage.head.interval_s for usage in usages.values())
    tenants = [one for file, usage in usages.items() for one in _tenants(file, usage, step_s)]
    if not any(one.shares for one in tenants):
        raise CannotRead(f"{', '.join(files)}: no process with a share of the SMs was recorded")
    contending: Counter[tuple[str, float]] = Counter()
    for one in tenants:
        for at_s, share in one.shares.items():
            contending[one.uuid, at_s] += share >= ACTIVE
    unsampled = sum(not one.shares for one in tenants)
    left_out = (
        f"{counted(unsampled, 'tenant')} left out: the driver samples no share of the SMs for "
        "processes on MIG devices."
    )
    return (
        History(
            [one.series(one.shares) for one in tenants if one.shares],
            [one.series(one.memory) for one in tenants if one.shares],
            contending,
            step_s,
        ),
        [left_out] if unsampled else [],
    )


class _Tenant:
    """A pod, or a process outside of pods, on one GPU."""

    def __init__(self, uuid: str, who: Tenant) -> None:
        self.uuid = uuid
        self._who = who
        self.shares: dict[float, float] = {}
        self.memory: dict[float, float] = {}

    def series(self, values: dict[float, float]) -> PodSeries:
        who = self._who
        pod = who.pod or f"{who.process} on {self.uuid}"
        return PodSeries(who.namespace, pod, self.uuid, sorted(values.items()), who.owner)


def _tenants(file: str, usage: Usage, step_s: float) -> Iterator[_Tenant]:
    found: dict[tuple[int, str, str, int], _Tenant] = {}
    of_process: dict[int, _Tenant] = {}
    for who in usage.tenants.values():
        key = (who.gpu, who.namespace, who.pod, -1 if who.pod else who.process)
        tenant = found.setdefault(key, _Tenant(f"{file}/{who.gpu}", who))
        of_process[who.process] = tenant
    looks: Counter[float] = Counter()
    sums: dict[_Tenant, defaultdict[float, float]] = {}
    for look in usage.looks:
        at_s = look.at_s // step_s * step_s
        looks[at_s] += 1
        held: dict[_Tenant, float] = defaultdict(float)
        for process, (share, size) in look.seen.items():
            tenant = of_process[process]
            if share is not None:
                sums.setdefault(tenant, defaultdict(float))[at_s] += share
            held[tenant] += size
        for tenant, size in held.items():
            tenant.memory[at_s] = max(tenant.memory.get(at_s, 0.0), size)
    for tenant, values in sums.items():
        tenant.shares = {at_s: min(1.0, value / looks[at_s]) for at_s, value in values.items()}
    yield from found.values()
