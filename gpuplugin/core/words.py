"""The words that a configuration chooses from, where code has to know them. Nothing but names."""

from __future__ import annotations

from typing import Literal, TypeAlias

MigStrategy: TypeAlias = Literal["none", "single", "mixed"]
Strategy: TypeAlias = Literal["envvar", "volume-mounts", "cdi-annotations", "cdi-cri"]
IdStrategy: TypeAlias = Literal["uuid", "index"]
PolicyName: TypeAlias = Literal["distributed", "packed", "spread", "spread-strict"]
