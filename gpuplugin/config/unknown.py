"""Keys that nothing reads, each with the nearest one that something does; misshapen sections."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gpuplugin.config.document import KeyPath
    from gpuplugin.config.shape import Section

_NOT_IN_FILE = frozenset({"daemon"})


def unknown_keys(
    data: Mapping[str, object], kind: type[Section]
) -> tuple[tuple[KeyPath, str], ...]:
    """Every key that `kind` does not read, with what to tell the user."""
    known = tuple(_known_paths(kind, ()))
    return tuple(_walk(data, kind, (), known))


def misshapen(data: Mapping[str, object], kind: type[Section]) -> Iterator[KeyPath]:
    """Sections that are no mappings; null counts as absent."""
    for key, value in data.items():
        known = kind.keys.get(key)
        if known is None or known.form.section is None or known.form.many or value is None:
            continue
        if isinstance(value, dict):
            yield from ((key, *path) for path in misshapen(value, known.form.section))
        else:
            yield (key,)


def _walk(
    data: Mapping[str, object], kind: type[Section], path: KeyPath, known: tuple[str, ...]
) -> Iterator[tuple[KeyPath, str]]:
    keys = kind.keys
    if not path:
        keys = {key: one for key, one in keys.items() if key not in _NOT_IN_FILE}
    for key, value in data.items():
        here = (*path, key)
        if key not in keys:
            yield here, _explain(here, known)
            continue
        inner = keys[key].form.section
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


def _known_paths(kind: type[Section], path: tuple[str, ...]) -> Iterator[str]:
    for key, one in kind.keys.items():
        if not path and key in _NOT_IN_FILE:
            continue
        here = (*path, key)
        yield ".".join(here)
        if one.form.section is not None:
            yield from _known_paths(one.form.section, here)
