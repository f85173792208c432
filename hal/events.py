"""What a backend reports between two calls of `Backend.wait_events`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class XidError:
    """The driver reported an Xid.

    `uuid` is None where the driver could not say which GPU it was. For MIG, `gpu_instance` and
    `compute_instance` name the instance; None means the whole GPU.
    """

    uuid: str | None
    xid: int
    gpu_instance: int | None = None
    compute_instance: int | None = None


@dataclass(frozen=True, slots=True)
class EccError:
    """An ECC event: `uncorrectable` for a double-bit error, else a corrected single-bit one."""

    uuid: str | None
    uncorrectable: bool


@dataclass(frozen=True, slots=True)
class GpuDisappeared:
    """The GPU stopped answering or was removed."""

    uuid: str


@dataclass(frozen=True, slots=True)
class GpuAppeared:
    """A GPU that was not there before, or was lost, answers now."""

    uuid: str


Event: TypeAlias = XidError | EccError | GpuDisappeared | GpuAppeared
