"""The report of a run, as JSON and as text, without what identifies a machine or a person."""

from __future__ import annotations

import getpass
import hashlib
import json
import platform
import re
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from benchmarks.machine import this_machine

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

FORMAT = 1
SIMULATED = "SIMULATED: a rehearsal on the simulated library, not a result of hardware"

Verdict: TypeAlias = Literal["ok", "failed", "skipped"]
Data: TypeAlias = dict[str, object]

_UUID = re.compile(r"\b(GPU-|MIG-)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE)
_MAC = re.compile(r"\b[0-9a-f]{2}(?::[0-9a-f]{2}){5}\b", re.IGNORECASE)
_SHORTEST_NAME = 3
_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one step: `text` is one line, `data` its figures."""

    step: str
    verdict: Verdict
    text: str
    took_s: float
    data: Data


@dataclass(frozen=True, slots=True)
class Report:
    """A run; `simulated` is what the library that was loaded says, not what was asked for."""

    simulated: bool
    took_s: float
    results: tuple[Result, ...]

    @property
    def passed(self) -> bool:
        return all(result.verdict != "failed" for result in self.results)


def names_here(folders: Mapping[Path, str]) -> dict[str, str]:
    """Words that say which machine or person this is, and what stands for each; longest first."""
    found = {str(folder): word for folder, word in folders.items()}
    found[str(Path.home())] = "~"
    host = platform.node()
    for name in (host, host.partition(".")[0]):
        if len(name) >= _SHORTEST_NAME:
            found[name] = "HOST"
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = ""
    if len(user) >= _SHORTEST_NAME and user != "root":
        found[user] = "USER"
    found.pop("/", None)
    return dict(sorted(found.items(), key=lambda entry: -len(entry[0])))


def anonymous(value: object, names: Mapping[str, str]) -> object:
    """The same without UUIDs (a hash stands for each), MAC addresses and these names."""
    if isinstance(value, str):
        return _anonymous_text(value, names)
    if isinstance(value, dict):
        return {_UUID.sub(_hashed, str(key)): anonymous(one, names) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [anonymous(one, names) for one in value]
    return value


def _anonymous_text(text: str, names: Mapping[str, str]) -> str:
    text = _MAC.sub("MAC", _UUID.sub(_hashed, text))
    for name, word in names.items():
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", word, text)
    return text


def _hashed(uuid: re.Match[str]) -> str:
    return f"{uuid[1] or ''}{hashlib.sha256(uuid[0].lower().encode()).hexdigest()[:8]}"


def as_data(report: Report, names: Mapping[str, str]) -> Data:
    """What the JSON file has."""
    machine = this_machine()
    data: Data = {
        "format": FORMAT,
        "simulated": report.simulated,
        "passed": report.passed,
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "took_s": round(report.took_s, 1),
        "machine": {**asdict(machine), "architecture": platform.machine()},
        "steps": [asdict(result) for result in report.results],
    }
    found = anonymous(data, names)
    if not isinstance(found, dict):
        raise TypeError("a dictionary stays one")
    return found


def as_json(data: Data) -> str:
    return json.dumps(data, indent=2) + "\n"


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10, cwd=_HERE
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def line(result: Result) -> str:
    return f"{result.step:12} {result.verdict:8} {result.took_s:6.1f} s  {result.text}"


def as_text(report: Report, names: Mapping[str, str]) -> str:
    """For people: a line for each step, GPUs, what was not well, and both tables of calls."""
    machine = this_machine()
    lines = [
        *([SIMULATED, ""] if report.simulated else []),
        f"gpuplugin {machine.libraries['gpuplugin']}, "
        + ("simulated GPUs" if report.simulated else "GPUs of this machine"),
        f"{machine.cpu}, {machine.cores} cores, Linux {machine.kernel}, Python {machine.python}",
        "",
        *(line(result) for result in report.results),
        "",
        f"{'passed' if report.passed else 'NOT PASSED'}, {report.took_s:.0f} s in all",
    ]
    by_step = {result.step: result.data for result in report.results}
    lines += _section("GPUs", _gpus(by_step.get("driver", {})))
    for result in report.results:
        lines += _section(f"Step {result.step}", _problems(result.data))
    lines += _section(
        "Time slicing, measured and shipped",
        _compared(by_step.get("calibrate", {}).get("compared")),
    )
    lines += _section("NVML calls", _costs(by_step.get("calls", {}).get("functions")))
    lines += _section(
        "NVML calls of the idle plugin, for each minute",
        _rates(by_step.get("idle", {}).get("functions")),
    )
    if report.simulated:
        lines += ["", SIMULATED]
    return _anonymous_text("\n".join(lines) + "\n", names)


def _section(title: str, lines: Iterable[str]) -> list[str]:
    found = list(lines)
    return ["", title, *(f"  {one}" for one in found)] if found else []


def _rows(value: object) -> Sequence[Mapping[str, object]]:
    return value if isinstance(value, list) else []


def _gpus(data: Data) -> Iterator[str]:
    for gpu in _rows(data.get("gpus")):
        yield f"{gpu['index']}  {gpu['product']}  {gpu['summary']}"


def _problems(data: Data) -> list[str]:
    found = data.get("problems")
    return [str(one) for one in found] if isinstance(found, list) else []


def _compared(value: object) -> Iterator[str]:
    for row in _rows(value):
        off = row["off"]
        told = f"off by {off:+.1%}" if isinstance(off, float) else ""
        assumed = " (assumed)" if row["assumed"] else ""
        yield (
            f"{row['what']:26} {row['measured']:10.1f} {row['shipped']:10.1f}{assumed}  {told}"
        ).rstrip()


def _costs(value: object) -> Iterator[str]:
    rows = _rows(value)
    if rows:
        yield f"{'function':45} {'calls':>6} {'p50 us':>9} {'p99 us':>9} {'max us':>9}  codes"
    for row in rows:
        codes = row["codes"]
        notes = (
            [f"{count} x {code}" for code, count in codes.items()]
            if isinstance(codes, dict)
            else []
        )
        notes += ["time includes its limit"] if row["waits"] else []
        yield (
            f"{row['function']:45} {row['calls']:6} {row['p50_us']:9.1f} {row['p99_us']:9.1f} "
            f"{row['max_us']:9.1f}  {', '.join(notes)}".rstrip()
        )


def _rates(value: object) -> Iterator[str]:
    rows = _rows(value)
    if rows:
        yield f"{'function':45} {'calls':>8} {'ms':>9}"
    for row in rows:
        yield f"{row['function']:45} {row['per_minute']:8.1f} {row['ms_per_minute']:9.2f}"
