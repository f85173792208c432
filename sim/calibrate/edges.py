"""What touches the machine, as a Protocol, and what it is asked for.

There are two edges, CUDA's (`sim.calibrate.cuda`) and the driver's (`sim.calibrate.driver`). Each
is in processes of its own (`sim.calibrate.child`), for a call that hangs must cost no more than its
process. So requests and answers are plain data.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal, Protocol, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from hal import TimeSliceLevel
from sim.calibrate.analysis import Stamps


class EdgeError(Exception):
    """The machine refused; the text says which call, and why."""


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Open(_Plain):
    """Make a context on the first device that CUDA shows."""

    do: Literal["open"] = "open"


class FreeBytes(_Plain):
    """The memory of the GPU that no process has."""

    do: Literal["free-bytes"] = "free-bytes"


class Stamp(_Plain):
    """Run the kernel for so long, with one warp, or with as many as the GPU holds (`full`)."""

    do: Literal["stamp"] = "stamp"
    span_ms: float
    full: bool


class Look(_Plain):
    """Find the GPU with this index or UUID, or the first that can be measured."""

    do: Literal["look"] = "look"
    gpu: str | None


class SetLevel(_Plain):
    """Set the time-slice level of contexts that are made from now on."""

    do: Literal["set-level"] = "set-level"
    uuid: str
    level: TimeSliceLevel


Request: TypeAlias = Annotated[
    Open | FreeBytes | Stamp | Look | SetLevel, Field(discriminator="do")
]


class Target(_Plain):
    """The GPU to measure. `model` is the shipped model that is closest to it.

    `others` is the number of processes that have a context on it already.
    """

    uuid: str
    index: int
    product: str
    model: str
    driver_version: str
    has_levels: bool
    others: int
    today: date


class Answer(_Plain):
    """What a request returned: `error` if it failed, nothing where there is nothing to tell."""

    error: str | None = None
    free_bytes: int | None = None
    stamps: Stamps | None = None
    target: Target | None = None


class Edge(Protocol):
    def answer(self, request: Request) -> Answer:
        """Do what is asked for; raises `EdgeError`."""
