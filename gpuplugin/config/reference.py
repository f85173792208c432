"""The reference of everything that can be configured, as Markdown, from the code itself."""

from __future__ import annotations

import ast
import inspect
import types
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from gpuplugin.config.options import OPTIONS
from gpuplugin.config.schema import Schema
from gpuplugin.config.unknown import fields_by_key, model_of
from gpuplugin.core.sharing import Selection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from gpuplugin.config.option import Option

_BY_PATH = {option.path: option for option in OPTIONS}
_DURATIONS = (
    "quietPeriod", "quietPeriodCap", "flapMemory", "probeInterval", "blindAfter", "sleepInterval"
)  # fmt: skip
_XIDS = ("ignoreXids", "fatalXids")
_RESOURCE_NAMES = frozenset({"name", "rename"})


def file_table() -> str:
    """Every key of the file with type, default and meaning."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for path, name, field, said in _leaves(Schema, "", ()):
        option = _BY_PATH.get(path)
        meaning = said or (option.help if option else "")
        cells = (f"`{name}`", _type(path[-1], field), _default(path[-1], field), meaning)
        rows.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(rows)


def option_table() -> str:
    """Every flag with its variable, its key in the file, and its meaning."""
    rows = ["| flag | variable | key in the file | meaning |", "|---|---|---|---|"]
    for option in OPTIONS:
        key = "-" if option.path[0] == "daemon" else f"`{'.'.join(option.path)}`"
        choices = f" ({', '.join(option.choices)})" if option.choices else ""
        cells = (
            ", ".join(f"`{flag}`" for flag in option.flags),
            ", ".join(f"`{variable}`" for variable in option.variables),
            key,
            f"{option.help}{choices}{_daemon_default(option)}",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _leaves(
    model: type[BaseModel], prefix: str, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], str, FieldInfo, str]]:
    """Keys that hold values, as (path, written form, field, what its docstring says)."""
    said = _docstrings(model)
    names = {field.alias or name: name for name, field in model.model_fields.items()}
    for key, field in fields_by_key(model).items():
        if not path and key == "daemon":
            continue
        inner = model_of(field)
        name = f"{prefix}{key}"
        if inner is None:
            yield (*path, key), name, field, said.get(names[key], "")
        else:
            mark = "[]." if get_origin(field.annotation) is list else "."
            yield from _leaves(inner, f"{name}{mark}", (*path, key))


def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The texts below the fields of a class, from its source.

    pydantic can do this for every class as it is made, but then the daemon pays for it at start.
    """
    (tree,) = ast.parse(inspect.getsource(model)).body
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _type(key: str, field: FieldInfo) -> str:
    if key in _DURATIONS:
        return "duration"
    if key in _RESOURCE_NAMES:
        return "resource name"
    if key in _XIDS:
        return "list of Xids, `xids` or `all`"
    if key == "devices":
        return "`all`, int or list"
    return _spelled(field.annotation)


def _spelled(annotation: object) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin is Annotated:
        return _spelled(arguments[0])
    if origin is list:
        return f"list of {_spelled(arguments[0])}"
    if origin in (Union, types.UnionType):
        return " or ".join(_spelled(one) for one in arguments if one is not type(None))
    names = {bool: "bool", int: "int", str: "string", type(None): "-"}
    return names.get(annotation, "-") if isinstance(annotation, type) else "-"


def _default(key: str, field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, Selection):
        return "`all`"
    if key in _DURATIONS:
        return f"`{value:g}s`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value is None or value in ("", []):
        return "-"
    return f"`{', '.join(value)}`" if isinstance(value, list) else f"`{value}`"


def _daemon_default(option: Option) -> str:
    if option.path[0] != "daemon":
        return ""
    model = model_of(fields_by_key(Schema)["daemon"])
    field = None if model is None else fields_by_key(model)[option.path[1]]
    text = "-" if field is None else _default(option.path[1], field)
    return "" if text in ("-", "required") else f"; default {text}"
