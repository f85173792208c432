"""A diagnosis as text for people and as JSON for machines; and the checks as a table."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from gpuplugin.doctor.verdict import EXIT_STATUS, Severity, worst

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gpuplugin.doctor.verdict import Check, Finding, Problem

_WORD_WIDTH = 4


def as_text(findings: Sequence[Finding]) -> str:
    """One line for each check; then, for each problem, what, where and what to do."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines = [
        f"{finding.verdict.severity.word:{_WORD_WIDTH}}  {finding.check:{width}}  "
        f"{finding.verdict.text}"
        for finding in findings
    ]
    problems = sorted(_problems(findings), key=lambda entry: -entry[1].severity)
    for check, problem in problems:
        lines += [
            "",
            f"{problem.severity.word.upper()}: {problem.what}",
            f"  where: {problem.where} (check {check})",
            f"  do:    {problem.do}",
        ]
    lines += ["", _summary(findings)]
    return "\n".join(lines)


def as_json(findings: Sequence[Finding]) -> str:
    """The same as one JSON object."""
    severity = worst(findings)
    return json.dumps(
        {
            "severity": severity.word,
            "exit_status": EXIT_STATUS[severity],
            "checks": [
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
            ],
        },
        indent=2,
    )


def table_of(checks: Sequence[Check]) -> str:
    """The checks as a table in Markdown, for documents."""
    rows = [f"| `{check.name}` | {check.looks_at} |" for check in checks]
    return "\n".join(["| check | looks at |", "|---|---|", *rows])


def _problems(findings: Sequence[Finding]) -> Iterator[tuple[str, Problem]]:
    for finding in findings:
        for problem in finding.verdict.problems:
            yield finding.check, problem


def _summary(findings: Sequence[Finding]) -> str:
    counts = {
        severity: sum(finding.verdict.severity is severity for finding in findings)
        for severity in Severity
    }
    return ", ".join(
        f"{counts[severity]} {word}"
        for severity, word in (
            (Severity.OK, "well"),
            (Severity.WARN, "with a warning"),
            (Severity.FAIL, "failed"),
            (Severity.SKIPPED, "skipped"),
        )
    )
