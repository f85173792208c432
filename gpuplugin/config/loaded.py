"""What reading the configuration comes to: the settings, or everything that is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpuplugin.config.settings import Settings


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `where` it was written, the `key` path, and what to do."""

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.message) if part)


class ConfigError(Exception):
    """The configuration cannot be used; `problems` has everything that is wrong with it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Loaded:
    """Settings, where the file layer came from, and warnings that the user should see.

    `effective` is the whole configuration in the file's spelling, defaults included, and `daemon`
    with what no file may say.
    """

    settings: Settings
    source: str
    file: str | None
    warnings: tuple[Problem, ...]
    effective: Mapping[str, object] = field(default_factory=dict)
