"""Two runs side by side: what became slower or faster, and what is only noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import words

if TYPE_CHECKING:
    from benchmarks.results import Figure, Run


@dataclass(frozen=True, slots=True)
class Change:
    """A figure of both runs; `factor` above 1 is worse, whichever way the unit counts.

    `against` tells what was compared: the medians, or the ratios to a floor.
    """

    figure: Figure
    before: str
    after: str
    factor: float
    significant: bool
    against: str

    def worse_than(self, threshold: float) -> bool:
        """True if it is worse by more than `threshold` and the intervals say that it is."""
        return self.significant and self.factor > threshold


def changes(before: Run, after: Run) -> list[Change]:
    """What both runs have, in the order of the later one.

    A figure with a floor is compared by its ratio to that, so that a busy machine or another one
    is no worsening; what is only a floor itself is left out.
    """
    known = {figure.key: figure for figure in before.figures}
    floors = {one.floor for figure in after.figures for one in figure.ratios}
    return [
        _change(known[figure.key], figure)
        for figure in after.figures
        if figure.key in known
        and known[figure.key].unit == figure.unit
        and (figure.ratios or figure.case.partition(",")[0] not in floors)
    ]


def as_text(found: list[Change], threshold: float) -> list[str]:
    """Lines of a table."""
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


def _change(before: Figure, after: Figure) -> Change:
    floors = {(one.floor, one.of): one for one in before.ratios}
    for now in after.ratios:
        then = floors.get((now.floor, now.of))
        if then is None:
            continue
        factor = then.value / now.value if after.larger_is_better else now.value / then.value
        apart = not then.interval.overlaps(now.interval)
        shown = f"{then.value:.2f}x", f"{now.value:.2f}x"
        return Change(after, *shown, factor, apart, f"ratio to {now.floor}")
    old, new = before.p50, after.p50
    factor = _over(old.value, new.value) if after.larger_is_better else _over(new.value, old.value)
    return Change(
        after,
        words.number(old.value),
        words.number(new.value),
        factor,
        not old.interval.overlaps(new.interval),
        f"medians in {after.unit}",
    )


def _over(one: float, other: float) -> float:
    if other == 0:
        return 1.0 if one == 0 else float("inf")
    return one / other
