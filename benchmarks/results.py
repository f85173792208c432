"""What a run found, as values and as JSON. Judging, showing and comparing is done elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from benchmarks.stats import Estimate, Interval  # noqa: TC001 - pydantic looks them up here

if TYPE_CHECKING:
    from pathlib import Path
    from typing import TypeAlias

SCHEMA = 1
"""Version of the JSON: another one cannot be read."""

Statistic: TypeAlias = Literal["p50", "p99", "rate"]


class CannotRead(Exception):
    """A file that holds no run; the text says what is wrong where."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A figure's `of` over that of its floor, measured in the same rounds."""

    floor: str
    of: Statistic
    value: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target in words, and whether the figure meets it."""

    target: str
    met: bool


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that was measured `n` times.

    `subject` is whose it is: an engine, a plugin, a floor. Figures with one `family` are one thing
    in several sizes, of which a table shows the worst. A unit that ends in `/s` is better when
    larger, any other when smaller. `p99` is None where there is only one number.
    """

    suite: str
    case: str
    subject: str
    unit: str
    n: int
    p50: Estimate
    p99: Estimate | None = None
    ratios: tuple[Ratio, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    family: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is called across runs."""
        return self.suite, self.case, self.subject

    @property
    def larger_is_better(self) -> bool:
        """True for a throughput."""
        return self.unit.endswith("/s")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured: figures of different machines are not to be compared."""

    cpu: str
    cores: int
    kernel: str
    python: str
    libraries: dict[str, str]


@dataclass(frozen=True, slots=True)
class Run:
    """A whole run; `date` is in UTC (ISO 8601), `notes` is what a reader has to know."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    schema: int
    date: str
    seed: int
    options: tuple[str, ...]
    machine: Machine
    notes: tuple[str, ...]
    figures: tuple[Figure, ...]


_RUN = TypeAdapter(Run)


def as_json(run: Run) -> str:
    """The run for a file."""
    return _RUN.dump_json(run, indent=1).decode()


def read_run(path: Path) -> Run:
    """The run in a file.

    Raises:
        CannotRead: no such file, or not a run of this version.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CannotRead(f"{path} cannot be read: {error}") from error
    try:
        run = _RUN.validate_json(text)
    except ValidationError as error:
        raise CannotRead(f"{path} is not a run of the benchmarks: {_problems(error)}") from error
    if run.schema != SCHEMA:
        raise CannotRead(f"{path} has schema {run.schema}, this program reads {SCHEMA}")
    return run


def _problems(error: ValidationError) -> str:
    """The first problems with their places."""
    shown = [
        f"{'.'.join(map(str, details['loc'])) or 'the file'}: {details['msg']}"
        for details in error.errors()[:3]
    ]
    more = error.error_count() - len(shown)
    return "; ".join([*shown, *([f"and {more} more"] if more else [])])
