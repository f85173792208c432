"""Tables of the documents that describe the simulator, generated from its models, as Markdown."""

from __future__ import annotations

import inspect
import types
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from hal.nvml.api import Code
from hal.nvml.calls import CALLS, Meaning, Role, meaning
from sim.gpu.calibration import (
    Calibration,
    MeasuredMps,
    MeasuredSlices,
    MeasuredSwitches,
    Spread,
)
from sim.gpu.faults import Failures, GpuFault, Lemons, NodeFault, Repair, Repeat, TimedFault
from sim.gpu.returns import GROUPS
from sim.gpu.workloads import Diurnal, MemoryUse, Workload
from sim.node.scenario import (
    GpuGroup,
    Pods,
    RecordedGpu,
    RecordedLink,
    RecordedMig,
    Scenario,
    Tenant,
    load_scenario,
    scenario_names,
)
from sim.nvml.dispatch import NOT_SIMULATED, THEMES
from sim.study.runreport import Keys, RunReport

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic.fields import FieldInfo

_PARTS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("The scenario", Scenario),
    ("gpus", GpuGroup),
    ("recorded", RecordedGpu),
    ("recorded.mig", RecordedMig),
    ("calibrations", Calibration),
    ("slice_us", MeasuredSlices),
    ("switch_us", MeasuredSwitches),
    ("figure", Spread),
    ("mps", MeasuredMps),
    ("links", RecordedLink),
    ("pods", Pods),
    ("tenants", Tenant),
    ("memory", MemoryUse),
    ("faults", TimedFault),
    ("repeat", Repeat),
    ("failures", Failures),
    ("lemons", Lemons),
    ("repair", Repair),
)


def scenario_reference() -> str:
    blocks = [_section(f"### {title}", model) for title, model in _PARTS]
    blocks.append("### Workloads")
    blocks += [_section(f"#### {_kind(model)}", model) for model in _members(Workload)]
    blocks.append(_section("#### diurnal", Diurnal))
    blocks.append("### Faults of a GPU")
    blocks += [_section(f"#### {_kind(model)}", model) for model in _members(GpuFault)]
    blocks.append("### Faults of the node")
    blocks += [_section(f"#### {_kind(model)}", model) for model in _members(NodeFault)]
    return "\n\n".join(blocks)


def gallery() -> str:
    rows = ["| scenario | GPUs | what it is about |", "|---|---|---|"]
    for name in scenario_names():
        scenario = load_scenario(name)
        gpus = ", ".join(f"{group.count} x {group.model}" for group in scenario.gpus)
        rows.append(f"| `{name}` | {gpus} | {' '.join(scenario.description.split())} |")
    return "\n".join(rows)


def _section(title: str, model: type[BaseModel]) -> str:
    text = f"{title}\n\n{inspect.cleandoc(model.__doc__ or '')}"
    rows = [row for name, field in model.model_fields.items() if (row := _row(name, field))]
    if not rows:
        return text
    return "\n".join((text, "", "| key | type | default |", "|---|---|---|", *rows))


def _row(name: str, field: FieldInfo) -> str:
    if name == "kind":
        return ""
    return f"| `{name}` | {_spelled(field.annotation)} | {_default(field)} |"


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "-"
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value is None or isinstance(value, BaseModel) or value == "":
        return "-"
    return f"`{value}`"


def _spelled(annotation: object) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin is Annotated:
        return _spelled(arguments[0])
    if origin in (list, tuple):
        return f"list of {_spelled(arguments[0])}"
    if origin is dict:
        return "mapping"
    if origin in (Union, types.UnionType):
        kinds = [one for one in arguments if one is not type(None)]
        if all(
            isinstance(one, type) and "kind" in getattr(one, "model_fields", {}) for one in kinds
        ):
            return "a kind of it, below"
        return " or ".join(_spelled(one) for one in kinds)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return next((title for title, model in _PARTS if model is annotation), annotation.__name__)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{one.value}`" for one in annotation)
    names = {bool: "bool", int: "int", float: "number", str: "string"}
    return names.get(annotation, "-") if isinstance(annotation, type) else "-"


def _kind(model: type[BaseModel]) -> str:
    return str(model.model_fields["kind"].default)


def _members(union: object) -> Iterator[type[BaseModel]]:
    if get_origin(union) is Annotated:
        union = get_args(union)[0]
    yield from get_args(union)


def function_table() -> str:
    """The simulated NVML functions; those with the same response share a row."""
    lines = ["| functions | response | |", "|---|---|---|"]
    for theme in THEMES:
        rows: dict[tuple[str, str], list[str]] = {}
        for one in theme:
            rows.setdefault((one.source.value, one.note), []).append(one.name)
        lines.extend(
            f"| {_names(names)} | {response} | {note} |" for (response, note), names in rows.items()
        )
    lines.append(
        f"| the other {len(NOT_SIMULATED)} that the Python binding knows | not supported | |"
    )
    return "\n".join(lines)


def _names(names: list[str]) -> str:
    """Names with their versions behind them: `nvmlDeviceGetCount` (also `_v2`)."""
    versions: dict[str, list[str]] = {}
    for name in names:
        plain, _, version = name.partition("_v")
        versions.setdefault(plain, []).append(version and f"_v{version}")
    return ", ".join(_named(plain, found) for plain, found in versions.items())


def _named(plain: str, versions: list[str]) -> str:
    first, *others = sorted(versions)
    also = f" (also {', '.join(f'`{one}`' for one in others)})" if others else ""
    return f"`{plain}{first}`{also}"


def group_table() -> str:
    """The groups by which a fault names functions of NVML."""
    rows = (
        f"| `{group}` | {', '.join(f'`{name}`' for name in names)} |"
        for group, names in GROUPS.items()
    )
    return "\n".join(["| group | functions |", "|---|---|", *rows])


def call_table() -> str:
    """What a failed call means: by what it reads, and by its code."""
    codes = [code for code in Code if code is not Code.SUCCESS]
    lines = ["| call | without it | code | meaning |", "|---|---|---|---|"]
    for role in Role:
        calls = [call for call in CALLS.values() if call.role is role]
        for call in calls:
            by_meaning: dict[Meaning, list[Code]] = {}
            for code in codes:
                by_meaning.setdefault(meaning(call, code), []).append(code)
            for what, found in by_meaning.items():
                lines.append(
                    f"| `{call.function}` | {call.value} unknown | {_codes(found, codes)} "
                    f"| {what.value} |"
                )
    return "\n".join(lines)


def _codes(found: Sequence[Code], codes: Sequence[Code]) -> str:
    if len(found) == len(codes):
        return "any"
    if len(found) > len(codes) / 2:
        return "any other"
    return ", ".join(f"{code.name} ({code.value})" for code in found)


def key_table() -> str:
    """Every key with its meaning, each once, as a table for the documentation."""
    return "\n".join(["| key | meaning |", "|---|---|", *_rows(RunReport, "", set())])


def _rows(part: type[Keys], prefix: str, seen: set[str]) -> list[str]:
    rows: list[str] = []
    for name, key in part.model_fields.items():
        inner = next(
            (one for one in (key.annotation, *get_args(key.annotation)) if _is_part(one)), None
        )
        path = f"{prefix}{name}"
        if f"{name}: {key.description}" not in seen:
            rows.append(f"| `{path}` | {key.description} |")
            seen.add(f"{name}: {key.description}")
        if inner is not None:
            rows.extend(_rows(inner, f"{path}{'[]' if _is_list(key.annotation) else ''}.", seen))
    return rows


def _is_part(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Keys)


def _is_list(annotation: object) -> bool:
    return get_origin(annotation) is list
