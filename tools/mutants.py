"""Tests the tests: changes one thing in the code at random, and looks whether a test fails.

`make mutants` runs a sample on a copy of the tree, prints its seed, and lists what survived. Not in
CI: a mutant takes seconds. Survivors that no test can catch are in `equivalent_mutants.toml`, by
function and changed line; they are not counted.

No library, because none draws a sample: mutmut 3 changes functions alone, not the constants of
modules and classes; cosmic-ray 8 changes the files of the working tree in place, and half of its
7,000 changes here put each other arithmetic operator in the place of one.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import cache_from_source
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parents[1]
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")
TESTS = {
    "gpuplugin/core": ("tests/unit/core",),
    "gpuplugin/rpc": ("tests/unit/rpc", "tests/conformance/engines"),
}
GOAL = 0.95

_OPERATORS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.FloorDiv,),
    ast.FloorDiv: (ast.Mult,),
    ast.Div: (ast.Mult,),
    ast.Mod: (ast.FloorDiv,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.LShift: (ast.RShift,),
    ast.RShift: (ast.LShift,),
}
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
_SMALL = 16
"""Larger numbers are limits and times, of which a test need not notice one more or less."""
_NOT_MUTATED = {"annotation", "returns", "decorator_list", "type_comment", "ctx"}
"""Fields of nodes that do nothing at run time, or that say only how a class is made."""
_LIMITS = re.compile(r"_?MAX_\w+|\w+(_BYTES|_MS|_S)")
_BODIES = ("body", "orelse", "finalbody", "handlers", "cases")
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_LINES = (ast.stmt, ast.ExceptHandler, ast.match_case)


@dataclass(frozen=True)
class _Place:
    """A node, where it hangs in the tree (`index` is that in a list), and the line it is in."""

    node: ast.AST
    parent: ast.AST
    field: str
    index: int | None
    line: ast.AST
    function: str

    def put(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


@dataclass(frozen=True)
class Mutant:
    path: str
    module: ast.Module
    place: _Place
    other: ast.AST
    """What replaces the node."""

    @property
    def where(self) -> str:
        return f"{self.path} {self.place.function}".strip()

    @property
    def change(self) -> str:
        """`old line -> new line`: names the mutant in its function, whatever moves around it."""
        old = _text(self.place.line)
        if self.place.node is self.place.line:
            return f"{old} -> {_text(self.other)}"
        self.place.put(self.other)
        new = _text(self.place.line)
        self.place.put(self.place.node)
        return f"{old} -> {new}"

    @property
    def source(self) -> str:
        self.place.put(self.other)
        text = ast.unparse(self.module)
        self.place.put(self.place.node)
        return text


def mutants_of(path: str, source: str) -> list[Mutant]:
    module = ast.parse(source)
    return [
        Mutant(path, module, place, other)
        for place in _places(module, module, "")
        for other in _others(place)
    ]


def _text(line: ast.AST) -> str:
    """A statement on one line, without the block that follows it."""
    head = copy.copy(line)
    for name in _BODIES:
        if isinstance(getattr(head, name, None), list):
            setattr(head, name, [])
    return " ".join(ast.unparse(head).split())


def _places(node: ast.AST, line: ast.AST, function: str) -> Iterator[_Place]:
    for field, value in ast.iter_fields(node):
        if field in _NOT_MUTATED:
            continue
        for index, child in enumerate(value) if isinstance(value, list) else ((None, value),):
            if not isinstance(child, ast.AST) or _is_for_readers(child):
                continue
            if not function and _is_limit(child):
                continue
            its_line = child if isinstance(child, _LINES) else line
            yield _Place(child, node, field, index, its_line, function)
            name = getattr(child, "name", "") if isinstance(child, _SCOPES) else ""
            yield from _places(child, its_line, ".".join(filter(None, (function, name))))


def _is_for_readers(node: ast.AST) -> bool:
    """True for docstrings, log messages, imports, types and `zip(strict=True)`."""
    match node:
        case ast.Expr(value=ast.Constant()) | ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="log")))):
            return True
        case ast.Import() | ast.ImportFrom() | ast.keyword(arg="strict"):
            return True
    return False


def _is_limit(node: ast.AST) -> bool:
    """True for a constant of a module that says how much, and not whether: a time, a size."""
    match node:
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return _LIMITS.fullmatch(name) is not None
    return False


def _others(place: _Place) -> Iterator[ast.AST]:
    """What may stand in the place of a node."""
    node = place.node
    for operator in _OPERATORS.get(type(node), ()):
        yield operator()
    match node:
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            near = (value + 1, value - 1) if value <= _SMALL else (value * 2, value // 2)
            yield from map(ast.Constant, near)
        case ast.UnaryOp(op=ast.Not()):
            yield node.operand
        case ast.Name() | ast.Attribute() | ast.Call() if place.field == "test":
            yield ast.UnaryOp(ast.Not(), node)
        case ast.Name(id=name) if name in _NAMES:
            yield ast.Name(_NAMES[name])
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Continue() | ast.Break():
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()


def all_mutants(folder: str) -> list[Mutant]:
    paths = sorted((ROOT / folder).rglob("*.py"))
    found = (mutants_of(str(one.relative_to(ROOT)), one.read_text()) for one in paths)
    return list(chain.from_iterable(found))


def equivalent() -> dict[str, dict[str, str]]:
    """By `Mutant.where` and `Mutant.change`: why no test can tell the mutant from the code."""
    return tomllib.loads(EQUIVALENT.read_text())


def _copy_tree(to: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, to / name)


def _pass(tree: Path, tests: Sequence[str], limit_s: float) -> bool:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", *tests]
    process = subprocess.Popen(
        command,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(limit_s) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        with suppress(ProcessLookupError):  # what the tests have started goes as well
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _survives(tree: Path, mutant: Mutant, tests: Sequence[str], limit_s: float) -> bool:
    file = tree / mutant.path
    original = file.read_text()
    nearest = [f"{one}/test_{file.stem}.py" for one in tests]
    first = [one for one in nearest if (tree / one).exists()]
    try:
        _write(file, mutant.source)
        return (not first or _pass(tree, first, limit_s)) and _pass(tree, tests, limit_s)
    finally:
        _write(file, original)


def _write(file: Path, text: str) -> None:
    file.write_text(text)
    Path(cache_from_source(str(file))).unlink(missing_ok=True)  # its time stamp counts seconds


def run(folder: str, count: int, seed: int, within_s: float) -> tuple[int, int, int]:
    """Try a sample of a folder's mutants; returns how many were caught, equivalent, missed."""
    until_s = time.monotonic() + within_s
    known, tests = equivalent(), TESTS[folder]
    every = all_mutants(folder)
    sample = random.Random(seed).sample(every, min(count, len(every)))
    print(f"{folder}: {len(sample)} of {len(every)} mutants, seed {seed}", flush=True)
    caught = same = missed = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        tree = Path(name)
        _copy_tree(tree)
        began_s = time.monotonic()
        if not _pass(tree, tests, 600):
            raise SystemExit(f"the tests fail without a mutation: {' '.join(tests)}")
        limit_s = 10 + 2 * (time.monotonic() - began_s)
        for mutant in sample:
            if time.monotonic() > until_s:
                break
            if mutant.change in known.get(mutant.where, {}):
                same += 1
            elif _survives(tree, mutant, tests, limit_s):
                missed += 1
                print(f"  survived: {mutant.where}: {mutant.change}", flush=True)
            else:
                caught += 1
    print(
        f"  of {caught + same + missed}: caught {caught}, equivalent {same}, survived {missed}",
        flush=True,
    )
    return caught, same, missed


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--count", type=int, default=150, help="mutants in all (150)")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000), help="repeats a run")
    parser.add_argument("--folder", choices=TESTS, action="append", help="this one alone")
    parser.add_argument("--minutes", type=float, default=40, help="then it ends anyway (40)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left running
    folders = options.folder or list(TESTS)
    count, within_s = options.count // len(folders), options.minutes * 60 / len(folders)
    results = [run(one, count, options.seed, within_s) for one in folders]
    caught, _, missed = map(sum, zip(*results, strict=True))
    share = caught / max(caught + missed, 1)
    print(f"{share:.0%} of {caught + missed} caught; the goal is {GOAL:.0%}")
    return 0 if share >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
