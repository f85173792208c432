"""Which file of a folder a node's label chooses: the rules of NVIDIA's config-manager. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

LABEL = "nvidia.com/device-plugin.config"
DEFAULT_NAME = "default"
_SUFFIXES = ("", ".yaml", ".yml")


class LabelUnreadable(Exception):
    """The node's label cannot be read; the text names the reason and the remedy."""


class UnknownName(Exception):
    """The label or the default names a file that there is not; the text lists the files."""


def choose(
    label: str | None, default: str, names: Collection[str], label_name: str = LABEL
) -> str | None:
    """The file for a node: by its label, else the default, else `default`, else the only one.

    A name may leave out `.yaml`. None if nothing chooses: the built-in configuration is meant.
    Raises UnknownName if what was named is not there.
    """
    for wanted, what in ((label, f"the label {label_name}"), (default, "--default-config")):
        if wanted:
            found = _find(wanted, names)
            if found is None:
                there = ", ".join(sorted(names)) or "none"
                raise UnknownName(f"{what} names {wanted!r}, and the files are: {there}")
            return found
    named = _find(DEFAULT_NAME, names)
    if named is not None:
        return named
    return next(iter(names)) if len(names) == 1 else None


def _find(wanted: str, names: Collection[str]) -> str | None:
    return next((wanted + suffix for suffix in _SUFFIXES if wanted + suffix in names), None)
