"""The targets of figures, in one table, and how a figure is compared with them.

Targets are for this project's own plugin and engines; what belongs to others is only measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from benchmarks.results import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.results import Measurement, Statistic

EMPTY = "empty handler"
ECHO = "unix echo"


@dataclass(frozen=True, slots=True)
class Target:
    """A limit for figures whose suite, case and subject match (as shell patterns).

    With `floor` it is for the ratio of `of` to that floor, else for p50 in `unit`. `at_least` turns
    the limit round.
    """

    suite: str
    case: str
    subject: str
    limit: float
    unit: str = ""
    floor: str = ""
    of: Statistic = "p50"
    at_least: bool = False

    @property
    def text(self) -> str:
        sign = ">=" if self.at_least else "<="
        if not self.floor:
            return f"{self.of} {sign} {self.limit:g} {self.unit}"
        return f"{self.of} {sign} {self.limit:g}x {self.floor}"

    def met_by(self, value: float, slack: float = 1.0) -> bool:
        """Whether a value keeps the limit, made wider by `slack`."""
        if self.at_least:
            return value >= self.limit / slack
        return value <= self.limit * slack


_OWN = "gpuplugin*"
_ENGINES = "engine *"

TARGETS = (
    Target("allocate", "8 x 10", _ENGINES, 1.10, floor=EMPTY),
    Target("allocate", "8 x 1000", _ENGINES, 1.10, floor=EMPTY),
    Target("allocate", "8 x 10", "engine fast", 1.3, floor=ECHO),
    Target("allocate", "8 x 10", "engine fast", 0.3, floor="engine grpcio"),
    Target("allocate", "8 x 10", "engine fast", 0.4, floor="engine grpcio", of="p99"),
    Target(
        "allocate", "8 x 10, 1 x 16 calls/s", "engine fast", 8, floor="engine grpcio", of="rate",
        at_least=True,
    ),
    Target("allocate", "handler alone, 1 device, *", "in process", 1, "us"),
    Target("allocate", "handler alone, 2 devices, *", "in process", 4, "us"),
    Target("allocate", "handler alone, 8 devices, *", "in process", 4, "us"),
    Target("allocate", "handler alone, 4 containers, *", "in process", 5, "us"),
    Target("prefer", "handler alone, 8 x 10, *", "in process", 8, "us"),
    Target("prefer", "8 x 10, request *", _ENGINES, 1.5, floor=EMPTY),
    Target("prefer", "8 x 1000, request *", _ENGINES, 3000, "us"),
    Target("prefer", "8 whole GPUs, *", _ENGINES, 1.5, floor=EMPTY),
    Target("prefer", "16 whole GPUs, *", _ENGINES, 5000, "us"),
    Target("life", "start to registered", _OWN, 450, "ms"),
    Target("life", "start to registered", "gpuplugin", 350, "ms"),
    Target("life", "resident, idle", _OWN, 60, "MiB"),
    Target("life", "resident, idle", "gpuplugin", 28, "MiB"),
    Target("life", "resident, after *", _OWN, 1.05, floor="resident, idle"),
    Target("life", "CPU, idle", _OWN, 0.3, "%"),
    Target("claims", "Prepare, one share", _OWN, 3, "ms"),
    Target("claims", "Prepare, * claims at once, all of them", _OWN, 10_000, "ms"),
    Target("claims", "resident, idle", "gpuplugin", 60, "MiB"),
    Target("claims", "64 nodes of 8 GPUs published", "gpuplugin", 5, floor="64 POSTs"),
    Target("faults", "fault to list, 8 x 1000", _OWN, 5, "ms"),
)  # fmt: skip


def judged(figure: Measurement, targets: tuple[Target, ...] = TARGETS) -> Measurement:
    """The figure with the verdicts of every target that is meant for it and can be decided."""
    verdicts = [
        Verdict(target.text, target.met_by(value)) for target, value in decided(figure, targets)
    ]
    return replace(figure, verdicts=tuple(verdicts))


def decided(
    figure: Measurement, targets: tuple[Target, ...] = TARGETS
) -> Iterator[tuple[Target, float]]:
    """The targets that are meant for a figure, each with what the figure has for it."""
    for target in targets:
        if _is_for(target, figure) and (value := _value(target, figure)) is not None:
            yield target, value


def _is_for(target: Target, figure: Measurement) -> bool:
    wanted = (target.suite, target.case, target.subject)
    return all(
        fnmatchcase(found, pattern) for found, pattern in zip(figure.key, wanted, strict=True)
    )


def _value(target: Target, figure: Measurement) -> float | None:
    """None if the figure has no such ratio, or another unit."""
    if target.floor:
        found = (one for one in figure.ratios if (one.floor, one.of) == (target.floor, target.of))
        return next((one.value for one in found), None)
    return figure.p50.value if target.unit == figure.unit else None
