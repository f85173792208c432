"""What the user wants shared, as the inventory needs it: no file format, no validation."""

from __future__ import annotations

from dataclasses import dataclass

SHARED_SUFFIX = ".shared"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which devices of a resource are meant: all, the first `count`, or those named in `ids`.

    An id is a GPU index (`0`), a MIG index (`0:1`), a UUID of either, or the legacy MIG name
    `MIG-GPU-<uuid>/<gi>/<ci>`.
    """

    count: int | None = None
    ids: frozenset[str] | None = None

    @property
    def everything(self) -> bool:
        """True if no device is singled out."""
        return self.count is None and self.ids is None


@dataclass(frozen=True, slots=True)
class SharedResource:
    """One entry of the sharing configuration; `name` and `rename` are full resource names."""

    name: str
    replicas: int
    selection: Selection = Selection()
    rename: str | None = None


@dataclass(frozen=True, slots=True)
class TimeSlicing:
    """Time slicing by resource name; several entries may name the same resource."""

    resources: tuple[SharedResource, ...] = ()
    rename_by_default: bool = False
    fail_requests_greater_than_one: bool = False

    def advertised_name(self, entry: SharedResource) -> str:
        """The name under which the kubelet sees what `entry` shares."""
        if entry.rename is not None:
            return entry.rename
        if self.rename_by_default and entry.replicas > 1:
            return entry.name + SHARED_SUFFIX
        return entry.name
