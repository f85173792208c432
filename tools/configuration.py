"""The reference of everything that can be configured, and the chart's schema, from the models."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple, cast

from gpuplugin.config.options import OPTIONS
from gpuplugin.config.settings import Settings
from sim.node.scenario import scenario_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpuplugin.config.options import Option

    Schema = dict[str, object]

_SPELLED = {"boolean": "bool", "integer": "int", "string": "string", "null": "-"}
_CHART_NAMES = {"policy": "sharedDevicesAllocationPolicy"}
"""Values of the chart that set an option of another name."""


class Key(NamedTuple):
    """A key that holds a value: its path, with `[]` after lists, and its schema."""

    path: str
    schema: Schema
    required: bool


def keys() -> Iterator[Key]:
    schema = Settings.model_json_schema(mode="serialization")  # defaults as a file spells them
    yield from _keys(schema, _mapping(schema["$defs"]), "")


def file_table() -> str:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key in keys():
        if not key.path.startswith("daemon."):
            default = "required" if key.required else _default(key.schema)
            cells = (f"`{key.path}`", _spelled(key.schema), default, _meaning(key.schema))
            rows.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(rows)


def option_table() -> str:
    schemas = {key.path: key.schema for key in keys()}
    rows = ["| flag | variable | key in the file | meaning |", "|---|---|---|---|"]
    for option in OPTIONS:
        path = ".".join(option.path)
        choices = f" ({', '.join(option.choices)})" if option.choices else ""
        default = _default(schemas[path])
        is_daemons = option.path[0] == "daemon"
        cells = (
            ", ".join(f"`{flag}`" for flag in option.flags),
            ", ".join(f"`{variable}`" for variable in option.variables),
            "-" if is_daemons else f"`{path}`",
            f"{option.help}{choices}"
            + (f"; default {default}" if is_daemons and default != "-" else ""),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def chart_schema(text: str) -> str:
    """The schema of the chart's values, with that of every option generated from its key."""
    schema = json.loads(text)
    schemas = {key.path: key.schema for key in keys()}
    by_name = {option.path[-1]: option for option in OPTIONS if _is_in_chart(option)}
    for name in schema["properties"]:
        option = by_name.get(_CHART_NAMES.get(name, name))
        if option is not None:
            schema["properties"][name] = _of_chart(schemas[".".join(option.path)])
    scenario = {"anyOf": [{"enum": scenario_names()}, {"type": "string", "pattern": "^/."}]}
    schema["properties"]["simulated"]["properties"]["scenario"] = scenario
    return json.dumps(schema, indent=2) + "\n"


def config_keys() -> str:
    """Every key of the file for the chart, which checks those of a ConfigMap that it makes.

    By the path in lower case, as the plugin compares them: `value`, or the keys that are below it.
    """
    below: dict[str, list[str]] = {}
    known: dict[str, str] = {}
    for key in keys():
        names = key.path.replace("[]", "").split(".")
        if names[0] == "daemon":
            continue
        for depth, name in enumerate(names):
            here = below.setdefault(".".join(names[:depth]), [])
            here += [] if name in here else [name]
        known[key.path.replace("[]", "").lower()] = "value"
    known |= {path.lower(): ", ".join(names) for path, names in below.items()}
    return json.dumps(known, indent=2, sort_keys=True) + "\n"


def _is_in_chart(option: Option) -> bool:
    return option.path[0] == "flags" or option.path[-1] == "logLevel"


def _of_chart(key: Schema) -> Schema:
    """A value of the chart may be null: then the option is not given."""
    if key.get("type") == "array":
        words = cast("list[str]", _mapping(key["items"])["enum"])
        one = f"({'|'.join(words)})"
        text = {"type": "string", "pattern": f"^{one}(,{one})*$"}
        return {"oneOf": [{"type": "null"}, text, {"type": "array", "items": {"enum": words}}]}
    choices = key.get("enum")
    return (
        {"enum": [*choices, None]} if isinstance(choices, list) else {"type": [key["type"], "null"]}
    )


def _keys(schema: Schema, definitions: Schema, prefix: str) -> Iterator[Key]:
    required = cast("list[str]", schema.get("required", []))
    for name, one in _mapping(schema["properties"]).items():
        key, path = _without_null(_mapping(one)), f"{prefix}{name}"
        items = _mapping(key.get("items", {}))
        reference = key.get("$ref") or items.get("$ref")
        if isinstance(reference, str):
            inner = _mapping(definitions[reference.rpartition("/")[2]])
            yield from _keys(inner, definitions, f"{path}[]." if "items" in key else f"{path}.")
        else:
            yield Key(path, key, name in required)


def _without_null(schema: Schema) -> Schema:
    """A key that may be null, as what it is otherwise."""
    kinds = schema.get("anyOf")
    return {**schema, **_mapping(kinds[0])} if isinstance(kinds, list) else schema


def _mapping(value: object) -> Schema:
    return cast("Schema", value)


def _spelled(schema: Schema) -> str:
    if "format" in schema:
        return str(schema["format"])
    words = schema.get("enum") or ([schema["const"]] if "const" in schema else None)
    if isinstance(words, list):
        return ", ".join(f"`{word}`" for word in words)
    if schema["type"] == "array":
        return f"list of {_spelled(_mapping(schema['items']))}"
    return _SPELLED[str(schema["type"])]


def _default(schema: Schema) -> str:
    value = schema.get("default")
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value is None or value in ("", []):
        return "-"
    return f"`{', '.join(value)}`" if isinstance(value, list) else f"`{value}`"


def _meaning(schema: Schema) -> str:
    return str(schema.get("description", ""))
