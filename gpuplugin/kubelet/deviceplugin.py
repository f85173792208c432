"""The device plugin service of one resource (v1beta1), as bytes -> bytes handlers.

Two laws hold here: GetPreferredAllocation never fails, and no call waits on hardware. Handlers read
one immutable snapshot; the daemon swaps it in a single assignment.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from gpuplugin.core.allocation import AllocationError, check_request
from gpuplugin.core.preference import needs_distinct_gpus, prefer
from gpuplugin.kubelet.protowire import number
from gpuplugin.kubelet.requests import allocate_containers, preferred_response
from gpuplugin.kubelet.snapshot import ServingPlan, snapshot_of
from gpuplugin.rpc import RpcCode, RpcError, Service
from gpuplugin.rpc.publication import Publication

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gpuplugin.core.nodeview import NodeView
    from gpuplugin.kubelet.requests import PreferenceRequest
    from gpuplugin.kubelet.snapshot import IsHealthy, ResourceSnapshot
    from gpuplugin.rpc import Subscription

SERVICE_NAME = "v1beta1.DevicePlugin"
API_VERSION = "v1beta1"
RECENT_CALLS = 20
_RECENT_BYTES = 64 * 1024
MAX_STREAMS = 32
"""ListAndWatch streams at a time; the kubelet needs one, two while it reconnects."""

OPTIONS = number(2, 1)
"""A DevicePluginOptions: no PreStartContainer, but GetPreferredAllocation."""
_EMPTY = b""

log = logging.getLogger(__name__)


class RecentCall(NamedTuple):
    """An Allocate call: when (seconds since the epoch), the request, "" or the error."""

    at_s: float
    request: bytes
    error: str


class DevicePlugin:
    """Handlers for one resource; `devices` is the published device list.

    `on_choice` is called with the method of every preferred allocation, in any thread.
    """

    def __init__(
        self, snapshot: ResourceSnapshot, on_choice: Callable[[str], None] = lambda _method: None
    ) -> None:
        self.snapshot = snapshot
        self._on_choice = on_choice
        self.devices = Publication()
        self._recent: deque[tuple[float, bytes, str]] = deque(maxlen=RECENT_CALLS)

    @property
    def recent(self) -> list[RecentCall]:
        return [RecentCall(*call) for call in tuple(self._recent)]

    def update(self, snapshot: ResourceSnapshot, is_healthy: IsHealthy) -> bool:
        """Serve `snapshot` from now on; True if the list changed and streams get it."""
        self.snapshot = snapshot
        return self.devices.publish(snapshot.device_list(is_healthy))

    def service(self) -> Service:
        return Service(
            name=SERVICE_NAME,
            unary={
                "GetDevicePluginOptions": self.options,
                "GetPreferredAllocation": self.preferred_allocation,
                "Allocate": self.allocate,
                "PreStartContainer": self.pre_start_container,
            },
            streams={"ListAndWatch": self.list_and_watch},
        )

    def options(self, _request: bytes) -> bytes:
        return OPTIONS

    def pre_start_container(self, _request: bytes) -> bytes:
        """PreStartContainer: nothing to do; the options do not require it."""
        return _EMPTY

    def list_and_watch(self, wake: Callable[[], None]) -> Subscription:
        if self.devices.open_streams >= MAX_STREAMS:
            # Of too many clients, not the one that has watched for longest: it is the kubelet.
            log.warning("%d device lists are watched: ending one for a new one", MAX_STREAMS)
            self.devices.end_newest()
        return self.devices.subscribe(wake)

    def allocate(self, request: bytes) -> bytes:
        """Allocate: one response per container, in the order of the request."""
        snapshot = self.snapshot
        lone = snapshot.lone_responses.get(request)
        if lone is not None:  # so the request is short
            self._recent.append((time.time(), request, ""))
            return lone
        joined = snapshot.allocate.response(request)
        if joined is not None:
            self._remember(request, "")
            return joined
        containers = allocate_containers(request)
        try:
            response = b"".join(
                _allocate_container(snapshot, device_ids) for device_ids in containers
            )
        except AllocationError as error:
            self._remember(request, str(error))
            raise RpcError(RpcCode.INVALID_ARGUMENT, str(error)) from error
        self._remember(request, "")
        return response

    def _remember(self, request: bytes, error: str) -> None:
        """Keep the call as it came: it is parsed only when it is shown."""
        kept = request if len(request) <= _RECENT_BYTES else b""
        self._recent.append((time.time(), kept, error))

    def preferred_allocation(self, request: bytes) -> bytes:
        """GetPreferredAllocation: one choice per container; never fails on a readable request."""
        snapshot = self.snapshot
        try:
            joined = snapshot.preferred.response(request)
        except Exception:  # as in `_prefer`, which answers now
            log.exception("a preferred allocation cannot be joined")
            joined = None
        if joined is None:
            return preferred_response(request, partial(self._prefer, snapshot))
        response, method = joined
        self._on_choice(method)
        return response

    def _prefer(self, snapshot: ResourceSnapshot, request: PreferenceRequest) -> tuple[str, ...]:
        available, must_include, size = request
        try:
            choice = prefer(
                snapshot.plan.policy,
                snapshot.preference,
                available,
                must_include,
                size,
            )
        except (
            Exception
        ):  # An error here would fail every new pod of the node: a plain choice serves.
            log.exception("preference policy failed; the first available devices are preferred")
            plain = dict.fromkeys((*must_include, *available))
            return tuple(plain)[: max(size, len(set(must_include)))]
        self._on_choice(choice.method)
        return choice.ids


def _allocate_container(snapshot: ResourceSnapshot, device_ids: Sequence[str]) -> bytes:
    """Serialised responses of containers concatenate to that of the request (proto3 encoding)."""
    distinct = needs_distinct_gpus(snapshot.plan.policy)
    devices = check_request(snapshot.resource, snapshot.devices, device_ids, distinct=distinct)
    return snapshot.allocate_response(devices)


@dataclass(frozen=True, slots=True)
class Applied:
    """What a view changed: resources with another list, plugins that came or went."""

    lists: tuple[str, ...]
    added: tuple[str, ...]
    removed: Mapping[str, DevicePlugin]


class DevicePlugins:
    """`by_resource` is swapped in one assignment; `choices_of` makes what counts preferences."""

    def __init__(
        self,
        choices_of: Callable[[str], Callable[[str], None]] = lambda _name: lambda _method: None,
    ) -> None:
        self.by_resource: Mapping[str, DevicePlugin] = MappingProxyType({})
        self._choices_of = choices_of
        self._snapshots: dict[str, ResourceSnapshot] = {}
        self._made_of: tuple[object, ...] = ()

    def apply(self, view: NodeView) -> Applied:
        """Serve `view` from now on, and send lists where they differ."""
        made_of = (view.inventory, view.plan, view.links)
        if len(made_of) != len(self._made_of) or any(
            new is not old for new, old in zip(made_of, self._made_of, strict=True)
        ):
            serving = ServingPlan(view.plan.injection, view.plan.policy, view.links)
            self._snapshots = {
                resource.name: snapshot_of(resource, serving)
                for resource in view.inventory.resources
            }
            self._made_of = made_of
        before = self.by_resource
        self.by_resource = MappingProxyType(
            {
                name: before.get(name) or DevicePlugin(snapshot, self._choices_of(name))
                for name, snapshot in self._snapshots.items()
            }
        )
        return Applied(
            lists=tuple(
                name
                for name, plugin in self.by_resource.items()
                if plugin.update(self._snapshots[name], view.healthy)
            ),
            added=tuple(name for name in self.by_resource if name not in before),
            removed=MappingProxyType(
                {name: before[name] for name in before if name not in self.by_resource}
            ),
        )
