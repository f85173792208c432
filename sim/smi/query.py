"""`--query-gpu` and `--query-compute-apps`: CSV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from sim.smi.driver import MIB, SmiError
from sim.smi.fields import FIELDS, Field, queried

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sim.smi.driver import Gpu, Process


_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Format:
    """`csv`, with or without the line of names and the units."""

    header: bool
    units: bool


def parse_format(text: str | None) -> Format:
    """The format of a query; raises `SmiError` where it is none or unknown."""
    words = [word.strip() for word in (text or "").split(",")]
    if "csv" not in words:
        raise SmiError(
            '"--format=" switch is missing. Default (option-less) format is not supported: use '
            "--format=csv[,noheader][,nounits]",
            2,
        )
    unknown = set(words) - {"csv", "noheader", "nounits"}
    if unknown:
        raise SmiError(f'Unknown format option "{min(unknown)}"', 2)
    return Format("noheader" not in words, "nounits" not in words)


def gpu_lines(names: str, gpus: Sequence[Gpu], form: Format) -> Iterator[str]:
    """A line for each GPU; raises `SmiError` for an unknown field."""
    wanted = _wanted(names, queried)
    if form.header:
        yield _header(wanted)
    for gpu in gpus:
        yield ", ".join(_cell(field.read(gpu), field, form) for _, field in wanted)


def process_lines(names: str, gpus: Sequence[Gpu], form: Format) -> Iterator[str]:
    """A line for each process that computes; raises `SmiError` for an unknown field."""
    wanted = _wanted(names, _PROCESS_FIELDS.get)
    if form.header:
        yield _header(wanted)
    for gpu in gpus:
        for process in gpu.processes():
            if process.kind == "C":
                yield ", ".join(_cell(field.read(gpu, process), field, form) for _, field in wanted)


@dataclass(frozen=True, slots=True)
class _ProcessField:
    read: Callable[[Gpu, Process], str | None]
    unit: str = ""
    in_csv: bool = True


def _of_gpu(name: str) -> _ProcessField:
    return _ProcessField(lambda gpu, _: FIELDS[name].read(gpu))


def _used(_: Gpu, process: Process) -> str | None:
    return None if process.memory_bytes is None else str(process.memory_bytes // MIB)


_PROCESS_FIELDS: Mapping[str, _ProcessField] = {
    "timestamp": _of_gpu("timestamp"),
    "gpu_name": _of_gpu("name"),
    "gpu_bus_id": _of_gpu("pci.bus_id"),
    "gpu_serial": _of_gpu("serial"),
    "gpu_uuid": _of_gpu("uuid"),
    "pid": _ProcessField(lambda _, process: str(process.pid)),
    "process_name": _ProcessField(lambda _, process: process.name),
    "name": _ProcessField(lambda _, process: process.name),
    "used_gpu_memory": _ProcessField(_used, "MiB"),
    "used_memory": _ProcessField(_used, "MiB"),
}


def _wanted(names: str, find: Callable[[str], _Found | None]) -> Sequence[tuple[str, _Found]]:
    wanted: list[tuple[str, _Found]] = []
    for name in (one.strip() for one in names.split(",")):
        field = find(name)
        if field is None:
            raise SmiError(f'Field "{name}" is not a valid field to query.\n', 2)
        wanted.append((name, field))
    return wanted


def _header(wanted: Sequence[tuple[str, Field | _ProcessField]]) -> str:
    return ", ".join(
        f"{name} [{field.unit}]" if field.unit and field.in_csv else name for name, field in wanted
    )


def _cell(found: str | None, field: Field | _ProcessField, form: Format) -> str:
    if found is None:
        return "[N/A]"
    return f"{found} {field.unit}" if form.units and field.unit and field.in_csv else found
