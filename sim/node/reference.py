"""The reference of everything that a scenario may say, as Markdown, from the models themselves."""

from __future__ import annotations

import inspect
import types
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from sim.gpu.failures import Failures, Lemons, Repair
from sim.gpu.faults import GpuHappening, NodeHappening, Repeat, TimedHappening
from sim.gpu.workloads.models import Diurnal, MemoryUse, Workload
from sim.node.recorded import RecordedGpu, RecordedMig
from sim.node.scenario import (
    GpuGroup,
    Pods,
    RecordedLink,
    Scenario,
    Tenant,
    load_scenario,
    scenario_names,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

_PARTS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("The scenario", Scenario),
    ("gpus", GpuGroup),
    ("recorded", RecordedGpu),
    ("recorded.mig", RecordedMig),
    ("links", RecordedLink),
    ("pods", Pods),
    ("tenants", Tenant),
    ("memory", MemoryUse),
    ("happenings", TimedHappening),
    ("repeat", Repeat),
    ("failures", Failures),
    ("lemons", Lemons),
    ("repair", Repair),
)


def scenario_reference() -> str:
    """Every part with its keys, then the kinds of workloads and happenings."""
    blocks = [_section(f"### {title}", model) for title, model in _PARTS]
    blocks.append("### Workloads")
    blocks += [_section(f"#### {_kind(model)}", model) for model in _members(Workload)]
    blocks.append(_section("#### diurnal", Diurnal))
    blocks.append("### What can befall a GPU")
    blocks += [_section(f"#### {_kind(model)}", model) for model in _members(GpuHappening)]
    blocks.append("### What can befall the node")
    blocks += [_section(f"#### {_kind(model)}", model) for model in _members(NodeHappening)]
    return "\n\n".join(blocks)


def gallery() -> str:
    """The shipped scenarios, with what each is about."""
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
    """The models of a union, through its annotations."""
    if get_origin(union) is Annotated:
        union = get_args(union)[0]
    yield from get_args(union)
