"""The mutants of `make mutants`: what is changed, what is not, and the list of equivalent ones."""

from __future__ import annotations

import ast

from tools.mutants import TESTS, all_mutants, equivalent, mutants_of

SOURCE = '''
"""A docstring."""
LIMIT: int | None = 3
LATER_S = 60.0

class Gate:
    def passes(self, weight: int | None = None) -> bool | None:
        log.info("asked for %d", 5)
        if not weight and self.open:
            self.count += weight
        return min(weight, LIMIT) < LIMIT
'''


def test_every_change_is_one_of_a_line_in_its_function() -> None:
    found = [(one.where, one.change) for one in mutants_of("gate.py", SOURCE)]
    test, result = "if not weight and self.open:", "return min(weight, LIMIT) < LIMIT"
    assert found == [
        ("gate.py", "LIMIT: int | None = 3 -> LIMIT: int | None = 4"),
        ("gate.py", "LIMIT: int | None = 3 -> LIMIT: int | None = 2"),
        ("gate.py Gate.passes", f"{test} -> if not weight or self.open:"),
        ("gate.py Gate.passes", f"{test} -> if weight and self.open:"),
        ("gate.py Gate.passes", "self.count += weight -> pass"),
        ("gate.py Gate.passes", "self.count += weight -> self.count -= weight"),
        ("gate.py Gate.passes", f"{result} -> return max(weight, LIMIT) < LIMIT"),
        ("gate.py Gate.passes", f"{result} -> return min(weight, LIMIT) <= LIMIT"),
        ("gate.py Gate.passes", f"{result} -> return min(weight, LIMIT) >= LIMIT"),
    ]


def test_each_source_has_its_own_change_alone() -> None:
    sources = [one.source for one in mutants_of("gate.py", SOURCE)]
    assert len({*sources, ast.unparse(ast.parse(SOURCE))}) == len(sources) + 1


def test_every_equivalent_mutant_is_one_of_todays_code() -> None:
    """Else the code has changed: take the entry out, or write it anew."""
    now = {(one.where, one.change) for folder in TESTS for one in all_mutants(folder)}
    listed = {(where, change) for where, changes in equivalent().items() for change in changes}
    assert listed <= now


def test_every_equivalent_mutant_has_a_reason() -> None:
    assert all(reason for changes in equivalent().values() for reason in changes.values())
