"""Verdicts of checks, and a diagnosis as text and as JSON. Pure; the checks are in `checks`."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gpuplugin.doctor.facts import Facts


class Severity(IntEnum):
    """How severe it is; `SKIPPED` was not checked, for the reason in the verdict."""

    SKIPPED = 0
    OK = 1
    WARN = 2
    FAIL = 3

    @property
    def word(self) -> str:
        return "skip" if self is Severity.SKIPPED else self.name.lower()


EXIT_STATUS = {Severity.SKIPPED: 0, Severity.OK: 0, Severity.WARN: 1, Severity.FAIL: 3}
"""2 is left to wrong usage, as everywhere on the command line."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: what, where it was found, and what to do."""

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
        if self.problems:
            return max(problem.severity for problem in self.problems)
        return Severity.SKIPPED if self.skipped else Severity.OK


@dataclass(frozen=True, slots=True)
class Check:
    """A check: its name, and the function that judges facts; its docstring is for documents."""

    name: str
    judge: Callable[[Facts], Verdict]


@dataclass(frozen=True, slots=True)
class Finding:
    """A check's name with its verdict."""

    check: str
    verdict: Verdict


def fail(what: str, where: str, do: str) -> Problem:
    """A problem that keeps GPUs from pods, or takes them away."""
    return Problem(Severity.FAIL, what, where, do)


def warn(what: str, where: str, do: str) -> Problem:
    """A problem that may do harm later, or a setting that may be intended."""
    return Problem(Severity.WARN, what, where, do)


def well(text: str) -> Verdict:
    return Verdict(text)


def skipped(text: str) -> Verdict:
    return Verdict(text, skipped=True)


def failed(what: str, where: str, do: str) -> Verdict:
    """The verdict for a single problem, as `fail` describes it."""
    return Verdict(what, (fail(what, where, do),))


def warned(what: str, where: str, do: str) -> Verdict:
    """The verdict for a single problem, as `warn` describes it."""
    return Verdict(what, (warn(what, where, do),))


def found(problems: Sequence[Problem], otherwise: str) -> Verdict:
    """The verdict for any number of problems: the first of the worst, or else `otherwise`."""
    if not problems:
        return well(otherwise)
    first = max(problems, key=lambda problem: problem.severity)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return Verdict(first.what + more, tuple(problems))


def diagnose(facts: Facts, checks: Sequence[Check]) -> tuple[Finding, ...]:
    """Every check's verdict, in the order of the checks."""
    return tuple(Finding(check.name, check.judge(facts)) for check in checks)


def worst(findings: Sequence[Finding]) -> Severity:
    """The severity of the whole diagnosis."""
    return max((finding.verdict.severity for finding in findings), default=Severity.OK)


def as_text(findings: Sequence[Finding]) -> str:
    """One line for each check; then, for each problem, what, where and what to do."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines = [
        f"{finding.verdict.severity.word:4}  {finding.check:{width}}  {finding.verdict.text}"
        for finding in findings
    ]
    problems = [(one.check, problem) for one in findings for problem in one.verdict.problems]
    for check, problem in sorted(problems, key=lambda entry: -entry[1].severity):
        lines += [
            "",
            f"{problem.severity.word.upper()}: {problem.what}",
            f"  where: {problem.where} (check {check})",
            f"  do:    {problem.do}",
        ]
    counts = {
        severity: sum(one.verdict.severity is severity for one in findings) for severity in Severity
    }
    summary = (
        f"{counts[Severity.OK]} well, {counts[Severity.WARN]} with a warning, "
        f"{counts[Severity.FAIL]} failed, {counts[Severity.SKIPPED]} skipped"
    )
    return "\n".join([*lines, "", summary])


def as_json(findings: Sequence[Finding]) -> str:
    """The same as one JSON object."""
    severity = worst(findings)
    checks = [
        {
            "check": finding.check,
            "severity": finding.verdict.severity.word,
            "text": finding.verdict.text,
            "problems": [
                {
                    "severity": problem.severity.word,
                    "what": problem.what,
                    "where": problem.where,
                    "do": problem.do,
                }
                for problem in finding.verdict.problems
            ],
        }
        for finding in findings
    ]
    diagnosis = {"severity": severity.word, "exit_status": EXIT_STATUS[severity], "checks": checks}
    return json.dumps(diagnosis, indent=2)


def table_of(checks: Sequence[Check]) -> str:
    """The checks as a table in Markdown, for documents."""
    rows = [f"| `{check.name}` | {inspect.getdoc(check.judge)} |" for check in checks]
    return "\n".join(["| check | what it checks |", "|---|---|", *rows])
