"""What a container gets for the devices it was allocated, independent of the wire format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

VISIBLE_DEVICES = "NVIDIA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Injection:
    """Environment variables for one container, as (name, value) in a fixed order."""

    envs: tuple[tuple[str, str], ...] = ()


def inject_envvar(uuids: Sequence[str]) -> Injection:
    """The `envvar` strategy: the runtime reads the UUIDs from NVIDIA_VISIBLE_DEVICES."""
    return Injection(envs=((VISIBLE_DEVICES, ",".join(uuids)),))
