"""The claims of pods on one node: made, allocated, reserved, and given back.

What the scheduler and the claim controller of Kubernetes 1.36 do, with the objects of a `Store`.
Claims of one pod are allocated one after the other, not all together.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING

from gpuplugin.core.jsonobject import JsonObject, objects, part
from sim.apiserver.rules import (
    AllocatedDevice,
    ClaimSpec,
    ClaimStatus,
    ClassSpec,
    DeviceRequest,
    quantity,
)
from sim.apiserver.store import (
    CLAIMS,
    CLASSES,
    PODS,
    SLICES,
    TEMPLATES,
    ApiProblem,
    Key,
    Selection,
)
from sim.scheduler.allocator import (
    CannotAllocate,
    DeviceId,
    Given,
    InUse,
    Wanted,
    allocate,
    listed_devices,
)
from sim.scheduler.selectors import SelectorFailed, UnsupportedSelector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sim.apiserver.store import Store
    from sim.kubelet.pods import Pod
    from sim.scheduler.allocator import Listed

POD_CLAIM = "resource.kubernetes.io/pod-claim-name"
SHARES = "shares"
"""The capacity of a shared GPU."""
EXTENDED_CLAIM = "resource.kubernetes.io/extended-resource-claim"
IMPLICIT = "deviceclass.resource.kubernetes.io/"
"""With the name of a class: a resource that every class has."""


class Unschedulable(Exception):
    """The pod has to wait; the text is that of its condition PodScheduled."""


@dataclass(frozen=True, slots=True)
class PlacedClaim:
    """A claim that is allocated to a pod.

    `uses` are the requests that each container gets, by its name; `uuids` are the attributes of
    that name of the devices, by pool and name.
    """

    namespace: str
    name: str
    uid: str
    pod_claim: str
    results: tuple[AllocatedDevice, ...]
    uses: Mapping[str, frozenset[str]]
    uuids: Mapping[tuple[str, str], str]

    @property
    def drivers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(result.driver for result in self.results))


@dataclass(frozen=True, slots=True)
class OfferedDevice:
    """A device of the node's ResourceSlices: `taken` of its `shares` are allocated to claims.

    A device that is not shared has one; `taints` are texts `key=value:effect`.
    """

    driver: str
    name: str
    uuid: str
    shares: int
    taken: int
    taints: tuple[str, ...] = ()


def create_class(store: Store, driver: str, resource: str, name: str = "") -> None:
    """A DeviceClass by which pods get a driver's devices as an extended resource.

    It selects by the attribute `resource`, which this project's driver publishes.
    """
    selector = (
        f"device.driver == '{driver}' && device.attributes['{driver}'].resource == '{resource}'"
    )
    spec: JsonObject = {
        "extendedResourceName": resource,
        "selectors": [{"cel": {"expression": selector}}],
    }
    store.create(Key(CLASSES, name or driver), {"spec": spec})


class ClaimScheduler:
    """Places pods on `node`; the caller sees to it that calls come one after the other."""

    def __init__(self, store: Store, node: str) -> None:
        self.store = store
        self.node = node
        self._ledger = _Ledger(store)
        self._devices: tuple[int, tuple[Listed, ...]] = (-1, ())
        self._classes: tuple[int, dict[str, ClassSpec], dict[str, str]] = (-1, {}, {})

    def create(self, pod: Pod) -> str:
        """Make the pod's object, and the claims of its templates; returns the pod's UID.

        Raises `ValueError` if there is a pod of this name, or a template is not there.
        """
        containers: list[object] = [
            {
                "name": one.name,
                "resources": {
                    "limits": {name: str(count) for name, count in one.limits.items()},
                    "claims": [_reference(name) for name in one.claims],
                },
            }
            for one in pod.containers
        ]
        claims: list[object] = [{"name": one.name} for one in pod.claims]
        body: JsonObject = {"spec": {"containers": containers, "resourceClaims": claims}}
        key = Key(PODS, pod.name, pod.namespace)
        try:
            made = self.store.create(key, body)
        except ApiProblem as problem:
            raise ValueError(str(problem)) from problem
        uid = str(part(made, "metadata")["uid"])
        try:
            for one in pod.claims:
                if one.template:
                    self._create_of_template(pod, uid, one.name, one.template)
        except ApiProblem as problem:
            self.store.delete(key)
            raise ValueError(str(problem)) from problem
        return uid

    def extended(self, resources: Iterable[str]) -> frozenset[str]:
        """Those of the resources that a DeviceClass stands for."""
        self._read_classes()
        return frozenset(one for one in resources if self._class_of(one) is not None)

    def place(self, pod: Pod, resources: frozenset[str]) -> tuple[PlacedClaim, ...]:
        """Allocate and reserve all claims of a pod; `resources` are got by claim as well.

        Raises `Unschedulable`; nothing is allocated then, unless objects are deleted meanwhile.
        """
        self._read_classes()
        self._ledger.follow()
        try:
            bodies = [(one.name, self._claim(pod, one.name)) for one in pod.claims]
            special = self._special_claim(pod, resources)
            if special is not None:
                bodies.append(("", special))
            allocated = self._allocated([body for _, body in bodies])
        except (CannotAllocate, SelectorFailed, UnsupportedSelector) as error:
            raise Unschedulable(
                f"0/1 nodes are available: 1 {error}. preemption: 0/1 nodes are available: "
                "1 Preemption is not helpful for scheduling."
            ) from error
        try:
            self.store.patch(Key(PODS, pod.name, pod.namespace), {"spec": {"nodeName": self.node}})
            return tuple(
                self._reserved(pod, name, body, allocation)
                for (name, body), allocation in zip(bodies, allocated, strict=True)
            )
        except ApiProblem as problem:  # somebody deleted it meanwhile
            raise Unschedulable(str(problem)) from problem

    def release(self, pod: Pod) -> None:
        """The pod is gone, and what it owned; what it shared is free once nobody uses it."""
        try:
            self.store.delete(Key(PODS, pod.name, pod.namespace))
        except ApiProblem:
            return
        for one in pod.claims:
            if not one.claim:
                continue
            key = Key(CLAIMS, one.claim, pod.namespace)
            with suppress(ApiProblem):  # it is gone
                status = part(self.store.get(key), "status")
                users = [
                    user for user in objects(status.get("reservedFor")) if user["uid"] != pod.uid
                ]
                # Without users nothing is left; drivers write their part of it meanwhile.
                left: JsonObject | None = {"reservedFor": users} if users else None
                self.store.patch(key, {"status": left}, status=True)

    def wipe(self, driver: str | None = None) -> None:
        """Delete the node's slices, of one driver or of all: the kubelet does that."""
        fields = {"spec.nodeName": self.node} | ({"spec.driver": driver} if driver else {})
        self.store.delete_all(Selection(SLICES, fields=fields))

    def devices(self) -> tuple[Listed, ...]:
        """The node's devices in the order in which they are tried."""
        version = self.store.version_of(SLICES)
        if self._devices[0] != version:
            _, bodies = self.store.select(Selection(SLICES))
            specs = ((str(part(one, "metadata")["name"]), part(one, "spec")) for one in bodies)
            self._devices = version, listed_devices(specs, self.node)
        return self._devices[1]

    def offered(self) -> tuple[OfferedDevice, ...]:
        """The node's devices with what is allocated of them."""
        self._ledger.follow()
        in_use = self._ledger.in_use
        return tuple(
            OfferedDevice(
                driver=one.id.driver,
                name=one.id.name,
                uuid=_uuid(one),
                shares=int(quantity(one.capacity[SHARES].value)) if SHARES in one.capacity else 1,
                taken=int(
                    in_use.consumed.get(one.id, {}).get(SHARES, 0) + (one.id in in_use.exclusive)
                ),
                taints=tuple(f"{taint.key}={taint.value}:{taint.effect}" for taint in one.taints),
            )
            for one in self.devices()
        )

    def _read_classes(self) -> None:
        version = self.store.version_of(CLASSES)
        if self._classes[0] == version:
            return
        _, bodies = self.store.select(Selection(CLASSES))
        # The newest class counts, and of two of one second the first by name.
        bodies.sort(key=lambda one: str(part(one, "metadata")["name"]), reverse=True)
        bodies.sort(key=lambda one: str(part(one, "metadata")["creationTimestamp"]))
        specs, extended = {}, {}
        for body in bodies:
            name = str(part(body, "metadata")["name"])
            specs[name] = ClassSpec.model_validate(part(body, "spec"))
            if resource := specs[name].extended_resource_name:
                extended[resource] = name
        self._classes = version, specs, extended

    def _class_of(self, resource: str) -> str | None:
        _, specs, extended = self._classes
        if resource.startswith(IMPLICIT):
            name = resource.removeprefix(IMPLICIT)
            return name if name in specs else None
        return extended.get(resource)

    def _create_of_template(self, pod: Pod, uid: str, name: str, template: str) -> None:
        found = self.store.get(Key(TEMPLATES, template, pod.namespace))
        inner = part(found, "spec")
        body: JsonObject = {
            "metadata": {
                **part(inner, "metadata"),
                "generateName": f"{pod.name}-{name}-",
                "annotations": {POD_CLAIM: name},
                "ownerReferences": [_owner(pod, uid)],
            },
            "spec": part(inner, "spec"),
        }
        self.store.create(Key(CLAIMS, "", pod.namespace), body)

    def _claim(self, pod: Pod, name: str) -> JsonObject:
        """The object of a claim that the pod names."""
        wanted = next(one for one in pod.claims if one.name == name)
        if wanted.claim:
            try:
                return self.store.get(Key(CLAIMS, wanted.claim, pod.namespace))
            except ApiProblem as problem:
                raise Unschedulable(f'resourceclaim "{wanted.claim}" not found') from problem
        _, found = self.store.select(Selection(CLAIMS, pod.namespace))
        for body in found:
            metadata = part(body, "metadata")
            owners = objects(metadata.get("ownerReferences"))
            mine = any(owner.get("uid") == pod.uid for owner in owners)
            if mine and part(metadata, "annotations").get(POD_CLAIM) == name:
                return body
        raise Unschedulable(f'pod has claim "{name}" that is not there: neither claim nor template')

    def _special_claim(self, pod: Pod, resources: frozenset[str]) -> JsonObject | None:
        """The claim behind a pod's extended resources, as it is to be made; None if it has none."""
        requests: list[object] = []
        mappings: list[object] = []
        for number, container in enumerate(pod.containers):
            for position, (resource, count) in enumerate(sorted(container.limits.items())):
                if resource not in resources or not count:
                    continue
                name = f"container-{number}-request-{position}"
                exactly = {
                    "deviceClassName": self._class_of(resource),
                    "allocationMode": "ExactCount",
                    "count": count,
                }
                requests.append({"name": name, "exactly": exactly})
                mappings.append(
                    {
                        "containerName": container.name,
                        "resourceName": resource,
                        "requestName": name,
                    }
                )
        if not requests:
            return None
        return {
            "metadata": {
                "generateName": f"{pod.name}-extended-resources-",
                "annotations": {EXTENDED_CLAIM: "true"},
                "ownerReferences": [_owner(pod, pod.uid)],
            },
            "spec": {"devices": {"requests": requests}},
            "mappings": mappings,
        }

    def _allocated(self, bodies: Iterable[JsonObject]) -> list[JsonObject]:
        """The allocation of each claim: the one it has, or a new one."""
        in_use = self._ledger.in_use
        result = []
        for body in bodies:
            known = part(body, "status").get("allocation")
            if isinstance(known, dict):
                self._check_node(known)
                result.append(known)
                continue
            spec = ClaimSpec.model_validate(part(body, "spec"))
            wanted = [self._wanted(request) for request in spec.devices.requests]
            given = allocate(wanted, self.devices(), in_use, spec.devices.constraints)
            in_use = in_use.plus(given)
            result.append(self._allocation(spec, given))
        return result

    def _check_node(self, allocation: JsonObject) -> None:
        terms = objects(part(allocation, "nodeSelector").get("nodeSelectorTerms"))
        fields = [one for term in terms for one in objects(term.get("matchFields"))]
        if fields and self.node not in str(fields[0].get("values")):
            raise CannotAllocate("node(s) didn't match the node affinity of an allocated claim")

    def _wanted(self, request: DeviceRequest) -> Wanted:
        exactly = request.exactly
        if exactly is None or exactly.admin_access:
            raise CannotAllocate(
                f"request {request.name}: the simulated scheduler knows neither firstAvailable nor "
                "adminAccess"
            )
        device_class = self._classes[1].get(exactly.device_class_name)
        if device_class is None:
            raise CannotAllocate(
                f"request {request.name}: device class {exactly.device_class_name} does not exist"
            )
        selectors = (*device_class.selectors, *exactly.selectors)
        amounts = exactly.capacity.requests if exactly.capacity else {}
        return Wanted(
            request.name,
            tuple(one.cel.expression for one in selectors),
            exactly.count if exactly.allocation_mode == "ExactCount" else None,
            MappingProxyType({name: quantity(value) for name, value in amounts.items()}),
            tuple(exactly.tolerations),
        )

    def _allocation(self, spec: ClaimSpec, given: Iterable[Given]) -> JsonObject:
        results: list[object] = []
        for one in given:
            result: JsonObject = {
                "request": one.request,
                "driver": one.device.driver,
                "pool": one.device.pool,
                "device": one.device.name,
            }
            if one.consumed is not None:
                result["shareID"] = self.store.new_uid()
                result["consumedCapacity"] = {
                    name: _as_text(amount) for name, amount in one.consumed.items()
                }
            results.append(result)
        term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [self.node]}]}
        return {
            "devices": {"results": results, "config": list(self._configuration(spec))},
            "nodeSelector": {"nodeSelectorTerms": [term]},
            "allocationTimestamp": self.store.time(),
        }

    def _configuration(self, spec: ClaimSpec) -> Iterator[JsonObject]:
        """Opaque parameters for drivers: those of the classes first, those of the claim last."""
        for request in spec.devices.requests:
            name = request.exactly.device_class_name if request.exactly else ""
            for one in self._classes[1][name].config:
                told = one.model_dump(by_alias=True, exclude_none=True)
                yield {**told, "source": "FromClass", "requests": [request.name]}
        for one in spec.devices.config:
            told = one.model_dump(by_alias=True, exclude_none=True)
            yield {**told, "source": "FromClaim"}

    def _reserved(
        self, pod: Pod, pod_claim: str, body: JsonObject, allocation: JsonObject
    ) -> PlacedClaim:
        """Write an allocation and its user; a claim of extended resources is made only now."""
        mappings = objects(body.pop("mappings", []))
        key = Key(CLAIMS, str(part(body, "metadata").get("name", "")), pod.namespace)
        if not key.name:
            body = self.store.create(key, body)
            key = Key(CLAIMS, str(part(body, "metadata")["name"]), pod.namespace)
            told: JsonObject = {"resourceClaimName": key.name, "requestMappings": mappings}
            self.store.patch(
                Key(PODS, pod.name, pod.namespace),
                {"status": {"extendedResourceClaimStatus": told}},
                status=True,
            )
        status = part(body, "status")
        user: JsonObject = {"resource": "pods", "name": pod.name, "uid": pod.uid}
        users = [one for one in objects(status.get("reservedFor")) if one.get("uid") != pod.uid]
        change: JsonObject = {"allocation": allocation, "reservedFor": [*users, user]}
        # Not the whole status, of which a driver may write its part meanwhile.
        stored = self.store.patch(key, {"status": change}, status=True)
        uid = str(part(stored, "metadata")["uid"])
        allocated = ClaimStatus.model_validate(stored["status"]).allocation
        results = tuple(allocated.devices.results) if allocated else ()
        uuids = {(one.id.pool, one.id.name): _uuid(one) for one in self.devices()}
        uses = _uses_of_mappings(mappings) if mappings else _uses(pod, pod_claim)
        return PlacedClaim(pod.namespace, key.name, uid, pod_claim, results, uses, uuids)


class _Ledger:
    """What all claims hold, kept up to date from the store's changes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._version = 0
        self._exclusive: Counter[DeviceId] = Counter()
        self._consumed: dict[DeviceId, dict[str, Decimal]] = {}

    @property
    def in_use(self) -> InUse:
        held = frozenset(device for device, count in self._exclusive.items() if count)
        return InUse(held, MappingProxyType(self._consumed))

    def follow(self) -> None:
        try:
            self._version, changes = self._store.changes(self._version)
        except ApiProblem:
            self._begin_again()
            return
        for change in changes:
            if change.resource is CLAIMS:
                self._add(change.before, -1)
                self._add(change.after, 1)

    def _begin_again(self) -> None:
        self._exclusive.clear()
        self._consumed.clear()
        self._version, bodies = self._store.select(Selection(CLAIMS))
        for body in bodies:
            self._add(body, 1)

    def _add(self, body: JsonObject | None, sign: int) -> None:
        allocation = part(part(body or {}, "status"), "allocation")
        for result in objects(part(allocation, "devices").get("results")):
            device = DeviceId(str(result["driver"]), str(result["pool"]), str(result["device"]))
            if "shareID" not in result:
                self._exclusive[device] += sign
                continue
            sums = self._consumed.setdefault(device, {})
            for name, value in part(result, "consumedCapacity").items():
                sums[name] = sums.get(name, Decimal(0)) + sign * quantity(str(value))


def _as_text(amount: Decimal) -> str:
    whole = amount.to_integral_value()
    return str(whole.quantize(Decimal(1))) if whole == amount else f"{amount * 1000:.0f}m"


def _uuid(device: Listed) -> str:
    return str(device.selectable.attributes.get(device.id.driver, {}).get("uuid", ""))


def _uses(pod: Pod, pod_claim: str) -> Mapping[str, frozenset[str]]:
    """The requests of a claim by container; none named means all."""
    uses: dict[str, frozenset[str]] = {}
    for container in pod.containers:
        for reference in container.claims:
            name, _, request = reference.partition("/")
            if name == pod_claim:
                named = frozenset([request] if request else [])
                uses[container.name] = uses.get(container.name, frozenset()) | named
    return MappingProxyType(uses)


def _uses_of_mappings(mappings: Iterable[JsonObject]) -> Mapping[str, frozenset[str]]:
    uses: dict[str, frozenset[str]] = {}
    for one in mappings:
        name = str(one["containerName"])
        uses[name] = uses.get(name, frozenset()) | {str(one["requestName"])}
    return MappingProxyType(uses)


def _reference(text: str) -> JsonObject:
    name, _, request = text.partition("/")
    found: JsonObject = {"name": name}
    return found | {"request": request} if request else found


def _owner(pod: Pod, uid: str) -> JsonObject:
    return {"apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": uid, "controller": True}
