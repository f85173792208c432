"""The reference of everything that can be configured, as Markdown, from the code itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuplugin.config.options import OPTIONS
from gpuplugin.config.settings import DaemonSettings, Settings
from gpuplugin.config.shape import REQUIRED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpuplugin.config.option import Option
    from gpuplugin.config.shape import Key, Section

_BY_PATH = {option.path: option for option in OPTIONS}


def file_table() -> str:
    """Every key of the file with type, default and meaning."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for path, name, key in _leaves(Settings, "", ()):
        option = _BY_PATH.get(path)
        meaning = key.meaning or (option.help if option else "")
        cells = (f"`{name}`", key.form.spelled, _default(key), meaning)
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
    kind: type[Section], prefix: str, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], str, Key]]:
    """Keys that hold values, as (path, written form, key)."""
    for name, key in kind.keys.items():
        if not path and name == "daemon":
            continue
        inner = key.form.section
        if inner is None:
            yield (*path, name), f"{prefix}{name}", key
        else:
            mark = "[]." if key.form.many else "."
            yield from _leaves(inner, f"{prefix}{name}{mark}", (*path, name))


def _default(key: Key) -> str:
    value = key.default
    if value is REQUIRED:
        return "required"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value is None or value in ("", []):
        return "-"
    return f"`{', '.join(value)}`" if isinstance(value, list) else f"`{value}`"


def _daemon_default(option: Option) -> str:
    if option.path[0] != "daemon":
        return ""
    text = _default(DaemonSettings.keys[option.path[1]])
    return "" if text in ("-", "required") else f"; default {text}"
