"""A run as a table on a hundred columns, and two runs side by side."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.results import Estimate, Interval, Measurement, Ratio, Run


def number(value: float) -> str:
    if value == 0:
        return "0"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}"


def _between(interval: Interval) -> str:
    """`12.1-12.9`; a question mark is an end that the samples cannot give, nothing is none."""
    if interval.low is None and interval.high is None:
        return ""
    low = "?" if interval.low is None else number(interval.low)
    high = "?" if interval.high is None else number(interval.high)
    return f"{low}-{high}"


def _estimated(one: Estimate | None) -> str:
    if one is None:
        return ""
    return f"{number(one.value)} {_bracketed(_between(one.interval))}".strip()


def _ratio(one: Ratio) -> str:
    """`1.05x empty handler [1.03-1.07]`, with the statistic if it is not the usual one."""
    of = "" if one.of == "p50" else f"{one.of} "
    return f"{of}{one.value:.2f}x {one.floor} {_bracketed(_between(one.interval))}".strip()


def _verdicts(figure: Measurement) -> str:
    return ", ".join(f"{'pass' if one.met else 'MISS'} {one.target}" for one in figure.verdicts)


def _bracketed(text: str) -> str:
    return f"[{text}]" if text else ""


WIDTH = 100
_IDLE_LOAD = 0.5
_CASE, _SUBJECT, _UNIT = 40, 14, 8


def as_table(run: Run, *, everything: bool = False) -> list[str]:
    """Lines. Of a family of figures the worst one is shown, unless `everything` is wanted."""
    machine = run.machine
    where = f"{machine.cores} cores of {machine.cpu}, Linux {machine.kernel}"
    lines = [
        f"{run.date}, {where}, Python {machine.python}, seed {run.seed}",
        ", ".join(f"{name} {text}" for name, text in machine.libraries.items()),
        f"Load {machine.load[0]:.2f} before the run, {machine.load[1]:.2f} at its end.",
        "Medians and 99th percentiles with 95 % intervals in brackets.",
    ]
    chosen = run.figures if everything else worst_of_families(run.figures)
    for suite, figures in groupby(chosen, key=lambda figure: figure.suite):
        lines += ["", suite.upper(), _row("case", "of", "unit", "p50", "p99")]
        for figure in figures:
            lines += _lines(figure, worst=bool(figure.family) and not everything)
    lines += ["", *(f"Note: {note}" for note in run.notes)]
    missed = [figure for figure in run.figures if any(not one.met for one in figure.verdicts)]
    decided = sum(len(figure.verdicts) for figure in run.figures)
    lines.append(f"{decided} targets checked, {len(missed)} figures miss one.")
    if missed and (load := machine.load[0]) > _IDLE_LOAD:
        lines.append(
            f"Warning: the load was {load:.2f} before the run: others use this machine, and a "
            "target may be missed for that. Measure again when it is idle."
        )
    return lines


def worst_of_families(figures: Iterable[Measurement]) -> list[Measurement]:
    """Figures in their order; of each family and subject the worst one.

    That is one that misses a target, before one that does not, and the one with the largest median.
    """
    found: dict[tuple[str, str, str], Measurement] = {}
    for figure in figures:
        key = (figure.suite, figure.family or figure.case, figure.subject)
        other = found.get(key)
        if other is None or _badness(figure) > _badness(other):
            found[key] = figure
    return list(found.values())


def _badness(figure: Measurement) -> tuple[int, float]:
    return sum(not one.met for one in figure.verdicts), figure.p50.value


def _lines(figure: Measurement, *, worst: bool) -> list[str]:
    case = f"{figure.case} (worst)" if worst else figure.case
    lines = [
        _row(case, figure.subject, figure.unit, _estimated(figure.p50), _estimated(figure.p99))
    ]
    beside = [_ratio(one) for one in figure.ratios]
    if figure.verdicts:
        beside.append(_verdicts(figure))
    return lines + _wrapped(beside)


def _row(case: str, subject: str, unit: str, p50: str, p99: str) -> str:
    row = f"{case:{_CASE}} {subject:{_SUBJECT}} {unit:{_UNIT}} {p50:17} {p99}"
    return row.rstrip()


def _wrapped(parts: Sequence[str]) -> list[str]:
    """Parts side by side, indented, in as few lines as fit."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) + 3 <= WIDTH:
            lines[-1] += f" | {part}"
        else:
            lines.append(f"    {part}")
    return lines


@dataclass(frozen=True, slots=True)
class Comparison:
    """A figure of both runs; `factor` above 1 is worse, whichever way the unit counts.

    `against` is what was compared: the medians, or the ratios to a floor.
    """

    figure: Measurement
    before: str
    after: str
    factor: float
    significant: bool
    against: str

    def worse_than(self, threshold: float) -> bool:
        """True if it is worse by more than `threshold` and the intervals say that it is."""
        return self.significant and self.factor > threshold


def compare_runs(before: Run, after: Run) -> list[Comparison]:
    """What both runs have, in the order of the later one.

    A figure with a floor is compared by its ratio to that, so that a busy machine or another one
    is no worsening; what is only a floor itself is left out.
    """
    known = {figure.key: figure for figure in before.figures}
    floors = {one.floor for figure in after.figures for one in figure.ratios}
    return [
        _compared(known[figure.key], figure)
        for figure in after.figures
        if figure.key in known
        and known[figure.key].unit == figure.unit
        and (figure.ratios or figure.case.partition(",")[0] not in floors)
    ]


def as_comparison(found: list[Comparison], threshold: float) -> list[str]:
    lines = [f"{'case':44} {'of':16} {'before':>10} {'after':>10} {'change':>7}"]
    for change in found:
        figure = change.figure
        if change.worse_than(threshold):
            verdict = "WORSE"
        elif not change.significant:
            verdict = "intervals overlap"
        else:
            verdict = "better" if change.factor < 1 else "within the threshold"
        lines.append(
            f"{f'{figure.suite}: {figure.case}':44} {figure.subject:16} {change.before:>10} "
            f"{change.after:>10} {change.factor:6.2f}x  {verdict}, {change.against}"
        )
    return lines


def _compared(before: Measurement, after: Measurement) -> Comparison:
    floors = {(one.floor, one.of): one for one in before.ratios}
    for now in after.ratios:
        then = floors.get((now.floor, now.of))
        if then is None:
            continue
        factor = then.value / now.value if after.larger_is_better else now.value / then.value
        apart = not then.interval.overlaps(now.interval)
        shown = f"{then.value:.2f}x", f"{now.value:.2f}x"
        return Comparison(after, *shown, factor, apart, f"ratio to {now.floor}")
    old, new = before.p50, after.p50
    factor = _over(old.value, new.value) if after.larger_is_better else _over(new.value, old.value)
    return Comparison(
        after,
        number(old.value),
        number(new.value),
        factor,
        not old.interval.overlaps(new.interval),
        f"medians in {after.unit}",
    )


def _over(one: float, other: float) -> float:
    if other == 0:
        return 1.0 if one == 0 else float("inf")
    return one / other
