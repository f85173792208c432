"""Kinds of workload, as a scenario writes them; validated, not run, here.

Times are what the work takes alone on the GPU at full clocks.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sim.gpu.faults import Part

Milliseconds = Annotated[float, Field(gt=0, le=86_400_000)]
Gap = Annotated[float, Field(ge=0, le=86_400_000)]
Rate = Annotated[float, Field(gt=0, le=1_000_000)]
Share = Annotated[float, Field(gt=0, le=1)]


class ClosedLoop(Part):
    """Work, a pause, work again: a client that waits for its answer. A pause of 0 saturates."""

    kind: Literal["closed-loop"] = "closed-loop"
    busy_ms: Milliseconds
    idle_ms: Gap = 0.0


class Diurnal(Part):
    """A rate that follows the day: 1 at `peak_hour`, `low` at the other end, a cosine between."""

    peak_hour: Annotated[float, Field(ge=0, lt=24)] = 15.0
    low: Share = 0.2


class OpenLoop(Part):
    """Requests that come whatever becomes of those before them, served one after the other.

    `arrivals`: `poisson`, or `regular`; each arrival brings `burst` requests.
    """

    kind: Literal["open-loop"] = "open-loop"
    busy_ms: Milliseconds
    per_s: Rate
    arrivals: Literal["poisson", "regular"] = "poisson"
    burst: Annotated[int, Field(ge=1, le=10_000)] = 1
    diurnal: Diurnal | None = None


class Training(Part):
    """Steps with a pause on the host after each; every so many steps a checkpoint off the GPU."""

    kind: Literal["training"] = "training"
    step_ms: Milliseconds
    pause_ms: Gap = 0.0
    checkpoint_every: Annotated[int, Field(ge=1)] | None = None
    checkpoint_s: Annotated[float, Field(ge=0)] = 30.0


class LlmDecode(Part):
    """A language model server with continuous batching.

    Requests come at `per_s` (Poisson). A prefill takes `prefill_ms_per_1000` for each thousand
    tokens of its prompt; then one step of `step_ms` makes a token for every request in the batch.
    Token counts are geometric with the given means.
    """

    kind: Literal["llm-decode"] = "llm-decode"
    per_s: Rate
    prompt_tokens: Annotated[int, Field(ge=1)] = 1000
    output_tokens: Annotated[int, Field(ge=1)] = 200
    prefill_ms_per_1000: Milliseconds = 60.0
    step_ms: Milliseconds = 15.0
    max_batch: Annotated[int, Field(ge=1, le=1024)] = 32


class DutyCycle(Part):
    """Busy for a share of each period."""

    kind: Literal["duty-cycle"] = "duty-cycle"
    period_ms: Milliseconds
    share: Share


class KernelTrace(Part):
    """Kernels at the times of a CSV file, with columns `start_ms` and `duration_ms`, repeated."""

    kind: Literal["kernel-trace"] = "kernel-trace"
    file: str
    repeat: bool = False


Workload = Annotated[
    ClosedLoop | OpenLoop | Training | LlmDecode | DutyCycle | KernelTrace,
    Field(discriminator="kind"),
]
"""What a tenant does on its GPU."""


class MemoryUse(Part):
    """What a tenant allocates at its start, and then.

    It grows by `grow_gib` every `every_s` up to `most_gib`. An allocation that fails is an error
    that the tenant survives (`on_oom: survive`) or that ends it (`die`).
    """

    start_gib: Annotated[float, Field(ge=0)] = 1.0
    grow_gib: Annotated[float, Field(ge=0)] = 0.0
    every_s: Annotated[float, Field(gt=0)] = 1.0
    most_gib: Annotated[float, Field(ge=0)] | None = None
    context_mib: Annotated[float, Field(ge=0)] = 300.0
    on_oom: Literal["die", "survive"] = "die"

    @model_validator(mode="after")
    def _grows_up_to_something(self) -> MemoryUse:
        if self.grow_gib and self.most_gib is None:
            raise ValueError("most_gib is needed where grow_gib is given: how far it grows")
        return self
