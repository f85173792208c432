"""The last Xids of each GPU, those that are no fault included: what a person wants to see. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from hal import XidError

MAX_CODES = 5
"""Codes that are kept for one GPU: those that were reported last."""


@dataclass(frozen=True, slots=True)
class XidCount:
    """How often a code was reported since the GPU is listed, and when it was last."""

    code: int
    count: int
    last_s: float


XidLog: TypeAlias = "Mapping[str, tuple[XidCount, ...]]"
"""By the UUID of the GPU, the newest first."""


def logged(log: XidLog, event: XidError, now_s: float) -> XidLog:
    """The log with an Xid; one of which the driver does not name the GPU is left out."""
    if event.uuid is None:
        return log
    known = log.get(event.uuid, ())
    mine = next((one for one in known if one.code == event.xid), XidCount(event.xid, 0, now_s))
    mine = replace(mine, count=mine.count + 1, last_s=now_s)
    others = [one for one in known if one.code != event.xid]
    return MappingProxyType({**log, event.uuid: (mine, *others)[:MAX_CODES]})


def log_of(log: XidLog, uuids: Collection[str]) -> XidLog:
    """The log of these GPUs alone."""
    return MappingProxyType({uuid: kept for uuid, kept in log.items() if uuid in uuids})
