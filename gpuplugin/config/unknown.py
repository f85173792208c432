"""Keys that nothing reads, each with the nearest one that something does; misshapen sections."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args, get_origin

from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic.fields import FieldInfo

    from gpuplugin.config.document import KeyPath

_NOT_IN_FILE = frozenset({"daemon"})


def unknown_keys(
    data: Mapping[str, object], model: type[BaseModel]
) -> tuple[tuple[KeyPath, str], ...]:
    """Every key that `model` does not read, with what to tell the user."""
    known = tuple(_known_paths(model, ()))
    return tuple(_walk(data, model, (), known))


def misshapen(data: Mapping[str, object], model: type[BaseModel]) -> Iterator[KeyPath]:
    """Sections that are no mappings; null counts as absent."""
    for key, value in data.items():
        field = fields_by_key(model).get(key)
        inner = None if field is None else model_of(field)
        if inner is None or value is None or (field is not None and _is_list(field)):
            continue
        if isinstance(value, dict):
            yield from ((key, *path) for path in misshapen(value, inner))
        else:
            yield (key,)


def _walk(
    data: Mapping[str, object], model: type[BaseModel], path: KeyPath, known: tuple[str, ...]
) -> Iterator[tuple[KeyPath, str]]:
    fields = fields_by_key(model)
    if not path:
        fields = {key: field for key, field in fields.items() if key not in _NOT_IN_FILE}
    for key, value in data.items():
        here = (*path, key)
        field = fields.get(key)
        if field is None:
            yield here, _explain(here, known)
            continue
        inner = model_of(field)
        if inner is None:
            continue
        if isinstance(value, dict):
            yield from _walk(value, inner, here, known)
        elif isinstance(value, list):
            for position, item in enumerate(value):
                if isinstance(item, dict):
                    yield from _walk(item, inner, (*here, position), known)


def _explain(path: KeyPath, known: tuple[str, ...]) -> str:
    names = tuple(str(part) for part in path if not isinstance(part, int))
    wanted = ".".join(names)
    import difflib  # nobody needs it for a file that is right

    same_name = [path for path in known if path.rpartition(".")[2].lower() == names[-1].lower()]
    nearest = same_name or difflib.get_close_matches(wanted, known, n=1, cutoff=0.7)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"is not a known key and has no effect{hint}"


def _known_paths(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[str]:
    for key, field in fields_by_key(model).items():
        if not path and key in _NOT_IN_FILE:
            continue
        here = (*path, key)
        yield ".".join(here)
        inner = model_of(field)
        if inner is not None:
            yield from _known_paths(inner, here)


def fields_by_key(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a model by their keys in the file."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def model_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model in an annotation such as `X`, `X | None` or `list[X]`."""
    for candidate in (field.annotation, *get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _is_list(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is list
