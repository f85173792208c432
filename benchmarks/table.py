"""A run as plain text, on a hundred columns."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from benchmarks import words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.results import Figure, Run

WIDTH = 100
_CASE, _SUBJECT, _UNIT = 40, 14, 8


def as_table(run: Run, *, everything: bool = False) -> list[str]:
    """Lines. Of a family of figures the worst one is shown, unless `everything` is wanted."""
    machine = run.machine
    where = f"{machine.cores} cores of {machine.cpu}, Linux {machine.kernel}"
    lines = [
        f"{run.date}, {where}, Python {machine.python}, seed {run.seed}",
        ", ".join(f"{name} {text}" for name, text in machine.libraries.items()),
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
    lines.append(f"{decided} targets looked at, {len(missed)} figures miss one.")
    return lines


def worst_of_families(figures: Iterable[Figure]) -> list[Figure]:
    """Figures in their order; of each family and subject the worst one.

    That is one that misses a target, before one that does not, and the one with the largest median.
    """
    found: dict[tuple[str, str, str], Figure] = {}
    for figure in figures:
        key = (figure.suite, figure.family or figure.case, figure.subject)
        other = found.get(key)
        if other is None or _badness(figure) > _badness(other):
            found[key] = figure
    return list(found.values())


def _badness(figure: Figure) -> tuple[int, float]:
    return sum(not one.met for one in figure.verdicts), figure.p50.value


def _lines(figure: Figure, *, worst: bool) -> list[str]:
    case = f"{figure.case} (worst)" if worst else figure.case
    lines = [
        _row(
            case,
            figure.subject,
            figure.unit,
            words.estimated(figure.p50),
            words.estimated(figure.p99),
        )
    ]
    beside = [words.ratio(one) for one in figure.ratios]
    if figure.verdicts:
        beside.append(words.verdicts(figure))
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
