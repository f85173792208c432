"""Objects of an API server, and what it does with requests about them. No I/O; time is given.

What it does as a real one: resource versions and 409, generation, generateName, uids, status kept
apart from spec, selectors, a history for watches that ends (410), feature gates that drop fields,
the rules of resource.k8s.io/v1, and the removal of what is owned by something that is gone.
"""

from __future__ import annotations

import copy
import random
import threading
import uuid
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

from gpuplugin.core.jsonobject import JsonObject, objects, part
from sim.apiserver.rules import gates_off, invalid, invalid_update, without_gated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

HISTORY = 10_000
"""Changes that are remembered for watches."""
ChangeKind: TypeAlias = Literal["ADDED", "MODIFIED", "DELETED"]

_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"
_REASONS = {
    400: "BadRequest", 403: "Forbidden", 404: "NotFound", 405: "MethodNotAllowed", 409: "Conflict",
    410: "Expired", 415: "UnsupportedMediaType", 422: "Invalid", 429: "TooManyRequests",
    500: "InternalError", 503: "ServiceUnavailable",
}  # fmt: skip
_IDENTITY = ("uid", "resourceVersion")
_GIVEN = (
    *("name", "namespace", "uid", "creationTimestamp", "generation"),
    *("deletionTimestamp", "deletionGracePeriodSeconds"),
)
"""Metadata that no update changes."""
_MERGED_BY = {
    "conditions": "type", "addresses": "type", "containers": "name",
    "hostIPs": "ip", "podIPs": "ip",
}  # fmt: skip
"""The keys by which a strategic merge patch knows the entries of lists; it replaces others, such as
the taints of a node (patchMergeKey in k8s.io/api/core/v1, 1.36)."""


class ApiProblem(Exception):
    """A request that is refused; `code` is that of HTTP, `key` the object that it is about."""

    def __init__(self, code: int, message: str, reason: str = "", key: Key | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason or _REASONS.get(code, "Unknown")
        self._key = key

    def as_json(self) -> JsonObject:
        details: JsonObject = {}
        if (key := self._key) is not None:
            details = {"name": key.name, "group": key.resource.group, "kind": key.resource.plural}
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": self.reason,
            "details": details,
            "code": self.code,
        }


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of objects; `fields` are those beside name and namespace that lists are selected by.

    `has_status`: writes of an object leave its status alone, which has an address of its own.
    """

    group: str
    plural: str
    kind: str
    namespaced: bool
    has_status: bool = False
    fields: tuple[str, ...] = ()
    version: str = "v1"

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


DRA_GROUP = "resource.k8s.io"
LEASE_GROUP = "coordination.k8s.io"
NODES = Resource("", "nodes", "Node", namespaced=False, has_status=True)
PODS = Resource(
    "", "pods", "Pod", namespaced=True, has_status=True, fields=("spec.nodeName", "status.phase")
)
EVENTS = Resource(
    "",
    "events",
    "Event",
    namespaced=True,
    fields=(
        *(f"involvedObject.{name}" for name in ("kind", "name", "namespace", "uid")),
        *("reason", "type"),
    ),
)
LEASES = Resource(LEASE_GROUP, "leases", "Lease", namespaced=True)
SLICES = Resource(
    DRA_GROUP,
    "resourceslices",
    "ResourceSlice",
    namespaced=False,
    fields=("spec.nodeName", "spec.driver"),
)
CLAIMS = Resource(DRA_GROUP, "resourceclaims", "ResourceClaim", namespaced=True, has_status=True)
TEMPLATES = Resource(DRA_GROUP, "resourceclaimtemplates", "ResourceClaimTemplate", namespaced=True)
CLASSES = Resource(DRA_GROUP, "deviceclasses", "DeviceClass", namespaced=False)
FEATURES = Resource(
    "nfd.k8s-sigs.io", "nodefeatures", "NodeFeature", namespaced=True, version="v1alpha1"
)
RESOURCES = (NODES, PODS, EVENTS, LEASES, SLICES, CLAIMS, TEMPLATES, CLASSES, FEATURES)


@dataclass(frozen=True, slots=True)
class Key:
    """One object; `namespace` is empty for those of the cluster."""

    resource: Resource
    name: str
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class Selection:
    """Objects of a kind: in one namespace, with these fields and labels, or all.

    `unlike` are fields with a value that they must not have.
    """

    resource: Resource
    namespace: str = ""
    fields: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    unlike: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        known = {"metadata.name", "metadata.namespace", *self.resource.fields}
        if unknown := {*self.fields, *(path for path, _ in self.unlike)} - known:
            raise ApiProblem(400, f"field label not supported: {', '.join(sorted(unknown))}")

    def has(self, body: JsonObject) -> bool:
        metadata = part(body, "metadata")
        if self.namespace and metadata.get("namespace") != self.namespace:
            return False
        labels = metadata.get("labels")
        labels = labels if isinstance(labels, dict) else {}
        return (
            self.labels.items() <= labels.items()
            and all(_at(body, path) == value for path, value in self.fields.items())
            and all(_at(body, path) != value for path, value in self.unlike)
        )


@dataclass(frozen=True, slots=True)
class Change:
    """What happened at a version; `before` is None for a new object, `after` for one that is gone.

    Objects are those of the store: do not change them.
    """

    version: int
    resource: Resource
    before: JsonObject | None
    after: JsonObject | None

    def seen_by(self, selection: Selection) -> tuple[ChangeKind, JsonObject] | None:
        """The event that a watch of these objects gets, None for none."""
        if selection.resource is not self.resource:
            return None
        before = self.before if self.before and selection.has(self.before) else None
        after = self.after if self.after and selection.has(self.after) else None
        if after is not None:
            return ("ADDED" if before is None else "MODIFIED"), after
        if before is None:
            return None
        metadata = {**part(before, "metadata"), "resourceVersion": str(self.version)}
        return "DELETED", {**before, "metadata": metadata}


class Store:
    """All objects of a cluster; safe for threads.

    `minor` is that of Kubernetes 1.`minor`, which decides the feature gates that are off; `off` can
    be changed at any time. `seed` makes generated names and uids repeatable. `listeners` are told
    of each change, with the lock held: they must only wake somebody up.
    """

    def __init__(
        self,
        *,
        minor: int = 36,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        seed: int | str | None = None,
    ) -> None:
        self.minor = minor
        self.off = set(gates_off(minor))
        self.listeners: list[Callable[[], None]] = []
        self._now = now
        self._random = random.Random(seed)
        self._objects: dict[Key, JsonObject] = {}
        self._history: deque[Change] = deque(maxlen=HISTORY)
        self._oldest = 0
        self._version = 100
        self._versions: dict[Resource, int] = {}
        self._changed = threading.Condition(threading.RLock())

    def get(self, key: Key) -> JsonObject:
        """A copy of an object; raises `ApiProblem` 404."""
        with self._changed:
            return copy.deepcopy(self._known(key))

    def select(self, selection: Selection) -> tuple[int, list[JsonObject]]:
        """The version of this moment, and copies of the objects in the order of their names."""
        with self._changed:
            return self._version, copy.deepcopy(list(self._selected(selection)))

    def create(self, key: Key, body: JsonObject, *, dry_run: bool = False) -> JsonObject:
        """Raises `ApiProblem`: 409 if there is one of this name, 422 if it is not allowed.

        An empty name is made from `metadata.generateName`.
        """
        with self._changed:
            body = self._stored_of(key.resource, body)
            metadata = part(body, "metadata")
            if not key.name:
                key = Key(key.resource, self._named(metadata), key.namespace)
            if key in self._objects:
                text = f'{key.resource.qualified} "{key.name}" already exists'
                raise ApiProblem(409, text, "AlreadyExists")
            if key.resource in (CLAIMS, PODS):
                body.pop("status", None)
            if key.resource is PODS:
                body["status"] = {"phase": "Pending"}
            body["metadata"] = metadata | {
                "name": key.name,
                "uid": self.new_uid(),
                "creationTimestamp": self.time(),
                "generation": 1,
            }
            if key.namespace:
                part(body, "metadata")["namespace"] = key.namespace
            return self._keep(key, None, body, dry_run=dry_run)

    def replace(
        self, key: Key, body: JsonObject, *, status: bool = False, dry_run: bool = False
    ) -> JsonObject:
        """Raises `ApiProblem`: 404, 409 if it was changed meanwhile, 422 if it is not allowed."""
        with self._changed:
            before = self._known(key)
            known = part(before, "metadata")
            sent = part(body, "metadata")
            if any(sent.get(name) not in (None, "", known[name]) for name in _IDENTITY):
                raise ApiProblem(
                    409,
                    f'Operation cannot be fulfilled on {key.resource.qualified} "{key.name}": the '
                    "object has been modified; please apply your changes to the latest version "
                    "and try again",
                )
            new = self._stored_of(key.resource, body)
            if status:
                after = {**before, "metadata": dict(known), "status": new.get("status", {})}
            else:
                after = new
                if key.resource.has_status and "status" in before:
                    after["status"] = before["status"]
                after["metadata"] = {**part(new, "metadata")} | {
                    name: known[name] for name in _GIVEN if name in known
                }
            return self._keep(key, before, after, dry_run=dry_run)

    def patch(
        self,
        key: Key,
        patch: JsonObject,
        *,
        strategic: bool = False,
        status: bool = False,
        dry_run: bool = False,
    ) -> JsonObject:
        """A merge patch, or a strategic one, where conditions and the like are merged by key.

        Raises `ApiProblem` as `replace`.
        """
        with self._changed:
            before = self._known(key)
            merged = _merged(before, patch, strategic=strategic)
            return self.replace(key, merged, status=status, dry_run=dry_run)

    def delete(
        self, key: Key, preconditions: JsonObject | None = None, grace_s: int = 0
    ) -> JsonObject:
        """Remove an object and what it owns; raises `ApiProblem` 404, 409.

        A pod on a node that has not ended is only marked if `grace_s` is above 0: its kubelet
        removes it, with 0.
        """
        with self._changed:
            body = self._known(key)
            metadata = part(body, "metadata")
            for name, value in (preconditions or {}).items():
                if metadata.get(name) != value:
                    text = (
                        f"Precondition failed: {name} in precondition: {value}, "
                        f"{name} in object meta: {metadata.get(name)}"
                    )
                    raise ApiProblem(409, text)
            if grace_s and key.resource is PODS and _runs_on_a_node(body):
                return self._mark_deleted(key, body, grace_s)
            self._remove(key)
            return body

    def delete_all(self, selection: Selection) -> list[JsonObject]:
        with self._changed:
            bodies = list(self._selected(selection))
            for body in bodies:
                key = _key(selection.resource, body)
                if key in self._objects:
                    self._remove(key)
            return bodies

    def changes(self, since: int) -> tuple[int, tuple[Change, ...]]:
        """The version of this moment, and what happened after another one up to it, in order.

        Raises `ApiProblem` 410 if the other version is too old.
        """
        with self._changed:
            if since < self._oldest:
                raise ApiProblem(410, f"too old resource version: {since} ({self._oldest})")
            newer = tuple(change for change in self._history if change.version > since)
            return self._version, newer

    def wait(self, since: int, timeout_s: float) -> int:
        """Until something is newer than this version, or the time is over; the version then."""
        with self._changed:
            self._changed.wait_for(lambda: self._version > since, timeout_s)
            return self._version

    def wake(self) -> None:
        """Let all who wait look again."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    def forget(self) -> None:
        """Forget the history: watches that were at an earlier version cannot go on."""
        with self._changed:
            self._version += 1
            self._oldest = self._version
            self._history.clear()
            self._changed.notify_all()

    @property
    def version(self) -> int:
        with self._changed:
            return self._version

    def version_of(self, resource: Resource) -> int:
        """The version at which an object of this kind last changed."""
        with self._changed:
            return self._versions.get(resource, 0)

    def new_uid(self) -> str:
        with self._changed:
            return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def time(self, after_s: int = 0) -> str:
        """Now, or so many seconds later, as the API writes it."""
        at = self._now().astimezone(UTC) + timedelta(seconds=after_s)
        return at.strftime("%Y-%m-%dT%H:%M:%SZ")

    def _selected(self, selection: Selection) -> Iterator[JsonObject]:
        keys = sorted(
            (key for key in self._objects if key.resource is selection.resource),
            key=lambda key: (key.namespace, key.name),
        )
        return (self._objects[key] for key in keys if selection.has(self._objects[key]))

    def _known(self, key: Key) -> JsonObject:
        body = self._objects.get(key)
        if body is None:
            raise ApiProblem(404, f'{key.resource.qualified} "{key.name}" not found', key=key)
        return body

    def _keep(
        self, key: Key, before: JsonObject | None, after: JsonObject, *, dry_run: bool
    ) -> JsonObject:
        after |= {"apiVersion": key.resource.api_version, "kind": key.resource.kind}
        self._set_times(before, after)
        problems = invalid(key.resource.kind, after)
        if before is not None:
            problems += invalid_update(key.resource.kind, before, after)
        if problems:
            what = f'{key.resource.kind}.{key.resource.group} "{key.name}" is invalid'
            raise ApiProblem(422, f"{what}: {'; '.join(problems)}")
        metadata = part(after, "metadata")
        if before is not None:
            known = part(before, "metadata")
            metadata["resourceVersion"] = known["resourceVersion"]
            if after == before:
                return copy.deepcopy(before)
            if after.get("spec") != before.get("spec"):
                generation = known.get("generation")
                metadata["generation"] = (generation if isinstance(generation, int) else 0) + 1
        metadata["resourceVersion"] = str(self._version + 1)
        if not dry_run:
            self._version += 1
            self._objects[key] = after
            self._record(Change(self._version, key.resource, before, after))
        return copy.deepcopy(after)

    def _set_times(self, before: JsonObject | None, after: JsonObject) -> None:
        """A taint that brings no time gets that of this moment."""
        spec = part(after, "spec")
        for device in objects(spec.get("devices")):
            for taint in objects(device.get("taints")):
                taint.setdefault("timeAdded", self.time())

    def _mark_deleted(self, key: Key, body: JsonObject, grace_s: int) -> JsonObject:
        metadata = part(body, "metadata")
        if "deletionTimestamp" in metadata:
            return copy.deepcopy(body)
        marks = {"deletionTimestamp": self.time(grace_s), "deletionGracePeriodSeconds": grace_s}
        return self._keep(key, body, {**body, "metadata": metadata | marks}, dry_run=False)

    def _remove(self, key: Key) -> None:
        body = self._objects.pop(key)
        self._version += 1
        self._record(Change(self._version, key.resource, body, None))
        uid = part(body, "metadata")["uid"]
        owned = [
            other
            for other, dependent in self._objects.items()
            if any(
                owner.get("uid") == uid
                for owner in objects(part(dependent, "metadata").get("ownerReferences"))
            )
        ]
        for other in owned:
            if other in self._objects:
                self._remove(other)

    def _record(self, change: Change) -> None:
        if len(self._history) == HISTORY:
            self._oldest = self._history[0].version
        self._history.append(change)
        self._versions[change.resource] = change.version
        self._changed.notify_all()
        for listener in self.listeners:
            listener()

    def _stored_of(self, resource: Resource, body: JsonObject) -> JsonObject:
        """A copy of what was sent, without fields of features that are off."""
        body = copy.deepcopy(body)
        return without_gated(body, self.off) if resource.group == DRA_GROUP else body

    def _named(self, metadata: JsonObject) -> str:
        prefix = metadata.get("generateName")
        if not isinstance(prefix, str) or not prefix:
            raise ApiProblem(422, "metadata.name: Required value: name or generateName is required")
        return prefix + "".join(self._random.choices(_SUFFIX, k=5))


def _key(resource: Resource, body: JsonObject) -> Key:
    metadata = part(body, "metadata")
    namespace = str(metadata["namespace"]) if resource.namespaced else ""
    return Key(resource, str(metadata["name"]), namespace)


def _runs_on_a_node(pod: JsonObject) -> bool:
    ended = part(pod, "status").get("phase") in ("Succeeded", "Failed")
    return bool(_at(pod, "spec.nodeName")) and not ended


def _merged(before: JsonObject, patch: JsonObject, *, strategic: bool) -> JsonObject:
    result = copy.deepcopy(before)
    for name, value in patch.items():
        known = result.get(name)
        if value is None:
            result.pop(name, None)
        elif isinstance(value, dict):
            inner = known if isinstance(known, dict) else {}
            result[name] = _merged(inner, value, strategic=strategic)
        elif strategic and name in _MERGED_BY and isinstance(value, list):
            result[name] = _merged_list(_MERGED_BY[name], objects(known), objects(value))
        else:
            result[name] = value
    return result


def _merged_list(
    key: str, known: Iterable[JsonObject], patch: Iterable[JsonObject]
) -> list[JsonObject]:
    entries = {str(entry.get(key)): entry for entry in known}
    for entry in patch:
        if entry.get("$patch") == "replace":
            entries = {}
            continue
        name = str(entry.get(key))
        entries[name] = _merged(entries.get(name, {}), entry, strategic=True)
    return list(entries.values())


def _at(body: JsonObject, path: str) -> object:
    """The text at a path such as spec.nodeName, "" if there is none."""
    value: object = body
    for name in path.split("."):
        value = value.get(name, "") if isinstance(value, dict) else ""
    return value
