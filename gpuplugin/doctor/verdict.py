"""What a check says: a verdict, and the problems behind it. Pure; the checks are in `checks`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gpuplugin.doctor.facts import Facts


class Severity(IntEnum):
    """How bad it is; `SKIPPED` was not looked at, for a reason that the verdict tells."""

    SKIPPED = 0
    OK = 1
    WARN = 2
    FAIL = 3

    @property
    def word(self) -> str:
        """As it is printed."""
        return "skip" if self is Severity.SKIPPED else self.name.lower()


EXIT_STATUS = {Severity.SKIPPED: 0, Severity.OK: 0, Severity.WARN: 1, Severity.FAIL: 3}
"""2 is left to wrong usage, as everywhere on the command line."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: what, where it was seen, and what to do."""

    severity: Severity
    what: str
    where: str
    do: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found: one short line, and problems if there are any."""

    text: str
    problems: tuple[Problem, ...] = ()
    skipped: bool = False

    @property
    def severity(self) -> Severity:
        """That of the worst problem."""
        if self.problems:
            return max(problem.severity for problem in self.problems)
        return Severity.SKIPPED if self.skipped else Severity.OK


@dataclass(frozen=True, slots=True)
class Check:
    """A check: its name, what it looks at (for documents), and how it judges facts."""

    name: str
    looks_at: str
    judge: Callable[[Facts], Verdict]


@dataclass(frozen=True, slots=True)
class Finding:
    """A check's name with its verdict."""

    check: str
    verdict: Verdict


def diagnose(facts: Facts, checks: Sequence[Check]) -> tuple[Finding, ...]:
    """Every check's verdict, in the order of the checks."""
    return tuple(Finding(check.name, check.judge(facts)) for check in checks)


def worst(findings: Sequence[Finding]) -> Severity:
    """The severity of the whole diagnosis."""
    return max((finding.verdict.severity for finding in findings), default=Severity.OK)


def well(text: str) -> Verdict:
    """All is as it should be."""
    return Verdict(text)


def skipped(text: str) -> Verdict:
    """Not looked at."""
    return Verdict(text, skipped=True)


def fail(what: str, where: str, do: str) -> Problem:
    """A problem that keeps GPUs from pods, or takes them away."""
    return Problem(Severity.FAIL, what, where, do)


def warn(what: str, where: str, do: str) -> Problem:
    """A problem that may bite later, or that somebody may have wanted."""
    return Problem(Severity.WARN, what, where, do)


def found(problems: Sequence[Problem], otherwise: str) -> Verdict:
    """The problems, told by the first of the worst; `otherwise` if there are none."""
    if not problems:
        return well(otherwise)
    first = max(problems, key=lambda problem: problem.severity)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return Verdict(first.what + more, tuple(problems))
