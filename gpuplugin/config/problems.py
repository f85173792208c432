"""What is wrong with data by its pydantic model: each problem with its key, line and nearest key.

For every file of ours: the configuration, scenarios, pods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from gpuplugin.config.loaded import MAX_PROBLEMS, ConfigError, Problem
from gpuplugin.config.values import hint, shortened, unfit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

    from gpuplugin.config.document import Document, KeyPath

M = TypeVar("M", bound=BaseModel)

MAPPING = "must be a mapping of keys"
_TEXTS = {
    "missing": "is required",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "string_type": "must be text",
    "list_type": "must be a list",
    "model_type": MAPPING,
    "model_attributes_type": MAPPING,
    "dict_type": MAPPING,
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "greater_than": "must be above {gt}",
    "less_than": "must be below {lt}",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "extra_forbidden": "is not a known key",
    "union_tag_invalid": "{discriminator} must be one of {expected_tags}",
    "union_tag_not_found": "the key {discriminator} is required",
}
"""The texts of pydantic's errors, by their type."""
_SAID_WITHOUT_VALUE = ("missing", "extra_forbidden", "union_tag_not_found", "union_tag_invalid")


def dotted(path: KeyPath) -> str:
    """`sharing.timeSlicing.resources[0].replicas`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return shortened(text.removeprefix("."))


def models_of(annotation: object) -> Iterator[type[BaseModel]]:
    """The models in a type: of a section, of the entries of a list, or of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_of(inner)


def keys(
    model: type[BaseModel], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Every key and section, by its path in the file's spelling."""
    for name, field in model.model_fields.items():
        here = (*path, field.alias or name)
        yield here, field
        for inner in models_of(field.annotation):
            yield from keys(inner, here)


def nearest(path: KeyPath, known: Sequence[str]) -> str:
    """Which known key may be meant by an unknown one, as the end of a sentence; or nothing."""
    from difflib import get_close_matches  # a file that is right needs it not

    names = [str(part) for part in path if not isinstance(part, int)]
    same_name = [one for one in known if one.rpartition(".")[2].lower() == names[-1].lower()]
    outer = {".".join(names[:length]) for length in range(len(names))}
    others = [one for one in known if one not in outer]
    near = same_name or get_close_matches(".".join(names), others, n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else ""


def message(error: ErrorDetails) -> str:
    """What pydantic found, in our words."""
    context, value = error.get("ctx", {}), error["input"]
    template = hint([value]) if isinstance(value, str) and "{{" in value else ""
    if "error" in context:
        return f"{context['error']}{template}"
    text = _TEXTS.get(error["type"], "").format(**context)
    text = text or error["msg"].replace("Input should", "must")
    if error["type"] in _SAID_WITHOUT_VALUE:
        return text
    cause = hint([value]) if text == MAPPING and isinstance(value, str) else ""
    return f"{unfit(value, text)}{cause or template}"


def checked(document: Document, model: type[M]) -> M:
    """The document as a model; an unknown key that the model forbids is a problem like others.

    Raises:
        ConfigError: with every problem.
    """
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise ConfigError(tuple(_problems(error, document, model))) from None


def misspelt(document: Document, model: type[BaseModel]) -> Iterator[Problem]:
    """Keys that the model ignores, each nearly one that it knows and the document lacks."""
    from difflib import get_close_matches

    known = {path for path, _ in keys(model)}
    sections = {path[:-1] for path in known}
    for path in document.lines:
        *outer, name = (part for part in path if isinstance(part, str))
        here = tuple(outer)
        if isinstance(path[-1], int) or here not in sections or (*here, name) in known:
            continue
        absent = [
            one[-1]
            for one in known
            if one[:-1] == here and (*path[:-1], one[-1]) not in document.lines
        ]
        if near := get_close_matches(name, absent, n=1, cutoff=0.75):
            text = f"is not a known key; did you mean {near[0]}?"
            yield Problem(document.where(path), dotted(path), text)


def _problems(
    error: ValidationError, document: Document, model: type[BaseModel]
) -> Iterable[Problem]:
    known = [".".join(path) for path, _ in keys(model)]
    texts: dict[KeyPath, list[str]] = {}
    for one in error.errors(include_url=False):
        path = _written(one["loc"], document.data)
        text = message(one)
        if one["type"] == "extra_forbidden" and len(texts) < MAX_PROBLEMS:
            text += nearest(path, known)
        texts.setdefault(path, []).append(text)
    for path, several in texts.items():
        text = "; or ".join(dict.fromkeys(several))
        yield Problem(document.where(path), dotted(path), text)


def _written(location: tuple[int | str, ...], data: object) -> KeyPath:
    """The path of a value as the document has it: pydantic's has the names of union members."""
    path: list[int | str] = []
    for position, part in enumerate(location):
        if isinstance(data, dict) and (part in data or position == len(location) - 1):
            path.append(part)
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            path.append(part)
            data = data[part]
    return tuple(path)
