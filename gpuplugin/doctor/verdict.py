"""Verdicts of checks, and a diagnosis as text and as JSON. Pure; the checks are in `checks`."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
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
    """A check: its name, and the function that judges facts; its docstring is for documents.

    If a check of `after` fails, a failure of this one follows from it, and needs no own cure.
    """

    name: str
    judge: Callable[[Facts], Verdict]
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """A check's name with its verdict; `cause` is the failed check that it follows from, if any."""

    check: str
    verdict: Verdict
    cause: str = ""


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
    """Every check's verdict, in the order of the checks: causes come before what follows."""
    causes: dict[str, str] = {}
    findings: list[Finding] = []
    for check in checks:
        verdict = check.judge(facts)
        cause = ""
        if verdict.severity is Severity.FAIL:
            cause = next((causes[one] for one in check.after if one in causes), "")
            causes[check.name] = cause or check.name
        findings.append(Finding(check.name, verdict, cause))
    return tuple(findings)


def worst(findings: Sequence[Finding]) -> Severity:
    """The severity of the whole diagnosis."""
    return max((finding.verdict.severity for finding in findings), default=Severity.OK)


_COLOURS = {Severity.SKIPPED: 2, Severity.OK: 32, Severity.WARN: 33, Severity.FAIL: 31}


def as_text(
    findings: Sequence[Finding], header: str = "", width: int | None = None, colour: bool = False
) -> str:
    """One line for each check; then, for each problem, what, where and what to do.

    Failures that follow from another one, and problems that have the same cure, are told once.
    Lines are wrapped at words if there is a `width`.
    """
    column = max((len(finding.check) for finding in findings), default=0)

    def wrapped(text: str, indent: int) -> list[str]:
        if width is None:
            return [text]
        return textwrap.wrap(
            text,
            max(width, indent + 20),
            subsequent_indent=" " * indent,
            break_on_hyphens=False,
            break_long_words=False,
        ) or [""]

    def painted(lines: list[str], severity: Severity, length: int) -> list[str]:
        word, rest = lines[0][:length], lines[0][length:]
        return [
            f"\x1b[{_COLOURS[severity]}m{word}\x1b[0m{rest}" if colour else lines[0],
            *lines[1:],
        ]

    lines = [*wrapped(header, 2), ""] if header else []
    for one in findings:
        follows = f" (follows from {one.cause})" if one.cause else ""
        severity = one.verdict.severity
        text = f"{severity.word:4}  {one.check:{column}}  {one.verdict.text}{follows}"
        lines += painted(wrapped(text, column + 8), severity, 4)
    for check, problem, others in _told(findings):
        severity = problem.severity
        text = f"{severity.word.upper()}: {problem.what}"
        lines += ["", *painted(wrapped(text, 6), severity, 5)]
        lines += wrapped(f"  where: {problem.where} (check {check})", 9)
        lines += [line for other in others for line in wrapped(f"  also:  {other.what}", 9)]
        lines += wrapped(f"  do:    {problem.do}", 9)
    return "\n".join([*lines, "", *wrapped(_summary(findings), 0)])


def _told(findings: Sequence[Finding]) -> list[tuple[str, Problem, list[Problem]]]:
    """Problems to print, the worst first: each with others of its check that have its cure."""
    told: dict[tuple[str, Severity, str], tuple[str, Problem, list[Problem]]] = {}
    for one in findings:
        for problem in one.verdict.problems if not one.cause else ():
            cure = re.sub(r"\d+", "#", problem.do)
            _, _, others = told.setdefault(
                (one.check, problem.severity, cure), (one.check, problem, [])
            )
            if told[one.check, problem.severity, cure][1] is not problem:
                others.append(problem)
    return sorted(told.values(), key=lambda entry: -entry[1].severity)


def _summary(findings: Sequence[Finding]) -> str:
    counts = {
        severity: sum(one.verdict.severity is severity for one in findings) for severity in Severity
    }
    following = sum(bool(one.cause) for one in findings)
    note = f" ({following} of them because of another)" if following else ""
    return (
        f"{counts[Severity.OK]} well, {counts[Severity.WARN]} with a warning, "
        f"{counts[Severity.FAIL]} failed{note}, {counts[Severity.SKIPPED]} skipped"
    )


def as_json(findings: Sequence[Finding], asked: str = "") -> str:
    """The same as one JSON object; `asked` is which plugin was asked."""
    severity = worst(findings)
    checks = [
        {
            "check": finding.check,
            "severity": finding.verdict.severity.word,
            "text": finding.verdict.text,
            "follows_from": finding.cause or None,
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
    diagnosis = {
        "severity": severity.word,
        "exit_status": EXIT_STATUS[severity],
        "asked": asked,
        "checks": checks,
    }
    return json.dumps(diagnosis, indent=2)


def table_of(checks: Sequence[Check]) -> str:
    """The checks as a table in Markdown, for documents."""
    rows = [f"| `{check.name}` | {inspect.getdoc(check.judge)} |" for check in checks]
    return "\n".join(["| check | what it checks |", "|---|---|", *rows])
