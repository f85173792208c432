"""What the user wants shared, as the inventory needs it: no file format, no validation."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

GPU_RESOURCE = "nvidia.com/gpu"
"""The resource that whole GPUs are advertised as."""

SHARED_SUFFIX = ".shared"


@dataclass(frozen=True, slots=True)
class TimeSlicing:
    """Time slicing by resource name.

    `replicas` maps a full resource name to the replicas per device; a resource that is missing or
    has 1 is not shared. `rename_by_default` advertises a shared resource as `<name>.shared`.
    """

    replicas: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    rename_by_default: bool = False
    fail_requests_greater_than_one: bool = False

    def replicas_of(self, resource: str) -> int:
        """Replicas per device of `resource`; 1 means "not shared"."""
        return self.replicas.get(resource, 1)

    def advertised_name(self, resource: str) -> str:
        """The name under which the kubelet sees `resource`."""
        if self.rename_by_default and self.replicas_of(resource) > 1:
            return resource + SHARED_SUFFIX
        return resource
