"""What Kubernetes 1.36 allows of resource.k8s.io/v1 objects, and its feature gates. Pure.

The models are what a GPU driver, the scheduler and DeviceClasses use; fields beyond them are kept
and not looked at.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from gpuplugin.core.jsonobject import JsonObject

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CONSUMABLE, TAINTS, EXTENDED = "DRAConsumableCapacity", "DRADeviceTaints", "DRAExtendedResource"
DEVICE_STATUS = "DRAResourceClaimDeviceStatus"
FIELDS: Mapping[str, frozenset[str]] = {
    CONSUMABLE: frozenset(
        {
            "allowMultipleAllocations", "requestPolicy", "consumedCapacity", "shareID",
            "distinctAttribute",
        }
    ),
    TAINTS: frozenset({"taints", "tolerations"}),
    EXTENDED: frozenset({"extendedResourceName", "extendedResourceClaimStatus"}),
}  # fmt: skip
"""The fields that an API server drops without a word while the gate is off."""

_OFF_BEFORE = {CONSUMABLE: 36, TAINTS: 36, EXTENDED: 36, DEVICE_STATUS: 33}
"""The minor version in which each gate came on by default."""

_SUFFIXES = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1),
    "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12),
    "P": Decimal(10**15), "E": Decimal(10**18),
    "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40),
    "Pi": Decimal(2**50), "Ei": Decimal(2**60),
}  # fmt: skip
_QUANTITY = re.compile(
    r"([+-]?(?:\d+\.?\d*|\.\d+))((?:[eE][+-]?\d{1,3})|[numkMGTPE]|[KMGTPE]i)?", re.ASCII
)
_SEMVER = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(-(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*)?"
    r"(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?",
    re.ASCII,
)
_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_MAX_DEVICES, _MAX_TAINTED = 128, 64


def gates_off(minor: int) -> frozenset[str]:
    """The gates that are off by default in Kubernetes 1.`minor`."""
    return frozenset(gate for gate, first in _OFF_BEFORE.items() if minor < first)


def without_gated(body: JsonObject, off: Iterable[str]) -> JsonObject:
    """The object as an API server stores it that has these gates off."""
    dropped = frozenset[str]().union(*(FIELDS.get(gate, frozenset()) for gate in off))
    result = {key: _without(value, dropped) for key, value in body.items()}
    status = result.get("status")
    if DEVICE_STATUS in off and isinstance(status, dict):
        result["status"] = {key: value for key, value in status.items() if key != "devices"}
    return result


def _without(value: object, dropped: frozenset[str]) -> object:
    match value:
        case dict():
            return {k: _without(inner, dropped) for k, inner in value.items() if k not in dropped}
        case list():
            return [_without(inner, dropped) for inner in value]
        case _:
            return value


def quantity(text: str) -> Decimal:
    """The number that a quantity such as `24Gi` or `1500m` stands for; raises `ValueError`."""
    found = _QUANTITY.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no quantity")
    number, suffix = found[1], found[2] or ""
    try:
        if suffix[:1] in ("e", "E") and len(suffix) > 1 and suffix != "Ei":
            return Decimal(number + suffix)
        return Decimal(number) * _SUFFIXES[suffix]
    except InvalidOperation as error:
        raise ValueError(f"{text!r} is no quantity") from error


def _is_quantity(text: str) -> str:
    if quantity(text) < 0:
        raise ValueError("must not be negative")
    return text


def _is_semver(text: str) -> str:
    if not _SEMVER.fullmatch(text):
        raise ValueError(f"{text!r} is no semantic version 2.0.0")
    return text


def _is_short(text: str) -> str:
    if len(text.encode()) > 64:
        raise ValueError("may have at most 64 bytes")
    return text


Quantity = Annotated[str, AfterValidator(_is_quantity)]
DnsLabel = Annotated[str, Field(pattern=rf"^{_LABEL}$", max_length=63)]
DriverName = Annotated[str, Field(pattern=rf"^{_LABEL}(\.{_LABEL})*$", max_length=63)]
PoolName = Annotated[str, Field(pattern=rf"^{_LABEL}(\.{_LABEL})*(/{_LABEL}(\.{_LABEL})*)*$")]
QualifiedName = Annotated[
    str, Field(pattern=r"^([a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?/)?[A-Za-z_][A-Za-z0-9_]{0,31}$")
]
LabelKey = Annotated[
    str,
    Field(
        pattern=r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
    ),
]
LabelValue = Annotated[
    str, Field(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)
]
ExtendedResource = Annotated[
    str,
    Field(pattern=rf"^{_LABEL}(\.{_LABEL})*/[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?$"),
]


class _Model(BaseModel):
    model_config = ConfigDict(
        extra="ignore", frozen=True, alias_generator=to_camel, populate_by_name=True, strict=True
    )


class Attribute(_Model):
    number: int | None = Field(None, alias="int")
    flag: bool | None = Field(None, alias="bool")
    string: Annotated[str, AfterValidator(_is_short)] | None = None
    version: Annotated[str, AfterValidator(_is_short), AfterValidator(_is_semver)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("exactly one of int, bool, string, version must be set")
        return self


class Range(_Model):
    min: Quantity
    max: Quantity | None = None
    step: Quantity | None = None


class RequestPolicy(_Model):
    default: Quantity | None = None
    valid_values: Annotated[list[Quantity], Field(max_length=10)] = []
    valid_range: Range | None = None


class Capacity(_Model):
    value: Quantity
    request_policy: RequestPolicy | None = None

    @model_validator(mode="after")
    def _policy(self) -> Self:
        policy = self.request_policy
        if policy is None:
            return self
        if policy.valid_values and policy.valid_range:
            raise ValueError("only one of validValues, validRange may be set")
        if policy.default is None and (policy.valid_values or policy.valid_range):
            raise ValueError("a default is required with validValues or validRange")
        values = [quantity(value) for value in policy.valid_values]
        if values != sorted(set(values)):
            raise ValueError("validValues must ascend")
        if values and quantity(policy.default or "") not in values:
            raise ValueError("the default must be one of validValues")
        if policy.valid_range is not None:
            _check_range(self.value, policy.default or "0", policy.valid_range)
        return self


def _check_range(value_text: str, default_text: str, valid: Range) -> None:
    value, default, least = quantity(value_text), quantity(default_text), quantity(valid.min)
    if least > value:
        raise ValueError(f"minimum {valid.min} is larger than capacity value: {value_text}")
    if default < least:
        raise ValueError(f"default {default_text} is less than the minimum {valid.min}")
    most = None if valid.max is None else quantity(valid.max)
    if most is not None:
        if most < least or most > value:
            raise ValueError(f"maximum {valid.max} is not between minimum and capacity value")
        if default > most:
            raise ValueError(f"default {default_text} is more than the maximum {valid.max}")
    if valid.step is not None:
        step = quantity(valid.step)
        if step <= 0:
            raise ValueError("step must be above 0")
        if least + step > value:
            text = f"one step {least + step} is larger than capacity value: {value_text}"
            raise ValueError(text)
        if (default - least) % step or (most is not None and (most - least) % step):
            raise ValueError(f"default and maximum must be a multiple of {valid.step} from minimum")


class Taint(_Model):
    key: LabelKey
    value: LabelValue = ""
    effect: Literal["None", "NoSchedule", "NoExecute"]
    time_added: str | None = None


class Device(_Model):
    name: DnsLabel
    attributes: dict[QualifiedName, Attribute] = {}
    capacity: dict[QualifiedName, Capacity] = {}
    allow_multiple_allocations: bool = False
    taints: Annotated[list[Taint], Field(max_length=16)] = []
    consumes_counters: list[JsonObject] = []

    @model_validator(mode="after")
    def _together(self) -> Self:
        if len(self.attributes) + len(self.capacity) > 32:
            raise ValueError("may have at most 32 attributes and capacities together")
        if not self.allow_multiple_allocations:
            for name, capacity in self.capacity.items():
                if capacity.request_policy is not None:
                    raise ValueError(
                        f"capacity {name}: requestPolicy needs allowMultipleAllocations: true"
                    )
        return self


class Pool(_Model):
    name: Annotated[PoolName, Field(max_length=253)]
    generation: Annotated[int, Field(ge=0)]
    resource_slice_count: Annotated[int, Field(ge=1)]


class SliceSpec(_Model):
    driver: DriverName
    pool: Pool
    node_name: str | None = None
    node_selector: JsonObject | None = None
    all_nodes: bool | None = None
    per_device_node_selection: bool | None = None
    shared_counters: list[JsonObject] = []
    devices: list[Device] = []

    @model_validator(mode="after")
    def _limits(self) -> Self:
        nodes = (self.node_name, self.node_selector, self.all_nodes, self.per_device_node_selection)
        if sum(map(bool, nodes)) != 1:
            raise ValueError(
                "exactly one of nodeName, nodeSelector, allNodes, perDeviceNodeSelection"
            )
        if self.shared_counters and self.devices:
            raise ValueError("sharedCounters and devices must not be in one slice")
        few = any(device.taints or device.consumes_counters for device in self.devices)
        most = _MAX_TAINTED if few else _MAX_DEVICES
        if len(self.devices) > most:
            raise ValueError(f"must have at most {most} devices")
        names = [device.name for device in self.devices]
        if len(set(names)) < len(names):
            raise ValueError("names of devices must be unique")
        return self


class Cel(_Model):
    expression: Annotated[str, Field(max_length=10 * 1024)]


class DeviceSelector(_Model):
    cel: Cel


class Opaque(_Model):
    driver: DriverName
    parameters: JsonObject


class Configuration(_Model):
    requests: list[str] = []
    opaque: Opaque | None = None


Selectors = Annotated[list[DeviceSelector], Field(max_length=32)]
Configurations = Annotated[list[Configuration], Field(max_length=32)]


class ClassSpec(_Model):
    selectors: Selectors = []
    config: Configurations = []
    extended_resource_name: ExtendedResource | None = None


class Toleration(_Model):
    key: str = ""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str = ""
    effect: Literal["", "None", "NoSchedule", "NoExecute"] = ""


class CapacityRequests(_Model):
    requests: dict[QualifiedName, Quantity] = {}


class ExactRequest(_Model):
    device_class_name: Annotated[str, Field(min_length=1)]
    selectors: Selectors = []
    allocation_mode: Literal["ExactCount", "All"] = "ExactCount"
    count: Annotated[int, Field(ge=1)] = 1
    admin_access: bool = False
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = []
    capacity: CapacityRequests | None = None


class DeviceRequest(_Model):
    name: DnsLabel
    exactly: ExactRequest | None = None
    first_available: Annotated[list[JsonObject], Field(max_length=8)] = []

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.exactly is None) == (not self.first_available):
            raise ValueError("exactly one of exactly, firstAvailable must be set")
        return self


class Constraint(_Model):
    requests: list[str] = []
    match_attribute: QualifiedName | None = None
    distinct_attribute: QualifiedName | None = None


class ClaimDevices(_Model):
    requests: Annotated[list[DeviceRequest], Field(max_length=32)] = []
    constraints: Annotated[list[Constraint], Field(max_length=32)] = []
    config: Configurations = []


class ClaimSpec(_Model):
    devices: ClaimDevices = ClaimDevices()


class AllocatedDevice(_Model):
    """A result of an allocation."""

    request: str
    driver: DriverName
    pool: str
    device: DnsLabel
    share_id: Annotated[str, Field(alias="shareID")] = ""
    consumed_capacity: dict[QualifiedName, Quantity] = {}
    admin_access: bool = False


class AllocatedDevices(_Model):
    results: Annotated[list[AllocatedDevice], Field(max_length=32)] = []


class Allocation(_Model):
    devices: AllocatedDevices = AllocatedDevices()


class Consumer(_Model):
    resource: str
    name: str
    uid: str


class DeviceStatus(_Model):
    driver: DriverName
    pool: str
    device: DnsLabel
    share_id: Annotated[str, Field(alias="shareID")] = ""
    conditions: Annotated[list[JsonObject], Field(max_length=8)] = []


class ClaimStatus(_Model):
    allocation: Allocation | None = None
    reserved_for: Annotated[list[Consumer], Field(max_length=256)] = []
    devices: list[DeviceStatus] = []

    @model_validator(mode="after")
    def _allocated(self) -> Self:
        results = self.allocation.devices.results if self.allocation else []
        known = {(one.driver, one.pool, one.device, one.share_id) for one in results}
        for one in self.devices:
            if (one.driver, one.pool, one.device, one.share_id) not in known:
                raise ValueError(f"devices: {one.device} is not among the allocated devices")
        if self.reserved_for and self.allocation is None:
            raise ValueError("reservedFor needs an allocation")
        return self


_SPECS: Mapping[str, type[_Model]] = {
    "ResourceSlice": SliceSpec,
    "DeviceClass": ClassSpec,
    "ResourceClaim": ClaimSpec,
}


def invalid(kind: str, body: JsonObject) -> list[str]:
    """What an API server refuses of an object of this kind, in words; empty if it is allowed."""
    problems = []
    if model := _SPECS.get(kind):
        problems += _problems(model, "spec", body.get("spec", {}))
    if kind == "ResourceClaim":
        problems += _problems(ClaimStatus, "status", body.get("status", {}))
    return problems


def invalid_update(kind: str, before: JsonObject, after: JsonObject) -> list[str]:
    """What may not be changed, and was."""
    old, new = before.get("spec"), after.get("spec")
    if kind == "ResourceClaim":
        problems = [] if old == new else ["spec: field is immutable"]
        allocated, now = _allocation(before), _allocation(after)
        if allocated and now and allocated != now:
            problems.append("status.allocation: field is immutable once set")
        return problems
    if kind == "ResourceSlice" and isinstance(old, dict) and isinstance(new, dict):
        return [
            f"spec.{field}: field is immutable"
            for field in ("driver", "nodeName")
            if old.get(field) != new.get(field)
        ]
    return []


def _allocation(claim: JsonObject) -> object:
    status = claim.get("status")
    return status.get("allocation") if isinstance(status, dict) else None


def _problems(model: type[_Model], where: str, content: object) -> list[str]:
    try:
        model.model_validate(content)
    except ValidationError as error:
        return [
            f"{'.'.join((where, *map(str, problem['loc'])))}: Invalid value: "
            f"{problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors()
        ]
    return []
