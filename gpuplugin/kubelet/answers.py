"""Responses that are joined from pieces which were serialised when the inventory changed.

Only what is certain is answered here: requests for known devices that may be granted. For anything
else the functions return None, and the library parses the request (`requests`).

A request is split at the tag of its device ids. A piece that is the length and the text of a known
device stands for it, because no such piece contains the tag: if all pieces are such, the request is
what protobuf would make of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from itertools import chain, compress
from operator import or_
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from gpuplugin.core.injection import VISIBLE_DEVICES, annotation, inject, runtime_id
from gpuplugin.core.preference import best_of, free_of_gpus, needs_distinct_gpus, take_free
from gpuplugin.core.sharing import is_replica_id
from gpuplugin.kubelet.protowire import entry, message, number, text, varint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gpuplugin.core.injection import DeviceNode, Injection, InjectionPlan, Mount
    from gpuplugin.core.inventory import Device, Resource
    from gpuplugin.core.preference import ChoiceMethod, PolicyName, PreferenceIndex

_TAG = b"\x0a"
"""Field 1, a text or message: a container of a request, a device id of a container."""
_SIZE_TAG = 0x18
"""Field 3, a number: how many devices are to be preferred."""
_ONE_BYTE = 0x80
_MOST_LENGTH_BITS = 28
_MOST_CONTAINERS = 100
_LONGEST_BYTES = 64 * 1024
_LENGTHS_BYTES = 16
_SIZE_BYTES = 2
"""Of the field for the size of a request, at its end."""
_MOST_PLACED = 128
"""Devices whose layouts take a quarter of a MiB; there is one for each number of ids."""
_MOST = 3 / 4
"""From this part of the devices on, it is faster to look for those that are not available."""
_VISIBLE = text(1, VISIBLE_DEVICES) + b"\x12"
"""An entry of a map up to the length of its value."""
_VISIBLE_BYTES = len(_VISIBLE)


@dataclass(frozen=True, slots=True, eq=False)
class UnitPart:
    """What one GPU or MIG device adds to the response of a container; its replicas share it."""

    gpu_uuid: str
    runtime_id: str
    name: bytes
    """The same, serialised."""
    mounts: bytes
    nodes: tuple[bytes, ...]
    cdi_devices: bytes


@dataclass(frozen=True, slots=True)
class ContainerParts:
    """What containers of a resource get whatever their devices, serialised.

    What the strategies in force do not use is empty.
    """

    resource: str
    plan: InjectionPlan
    envs: bytes
    """All but the list of devices, which is the last one by name."""
    names_devices: bool
    """Whether that list has the devices; with mounts it is the same for all."""
    mounts: bytes
    first_nodes: tuple[bytes, ...]
    last_nodes: tuple[bytes, ...]
    annotates: bool
    cdi_devices: bytes
    names_only: bool
    """True if there is nothing but variables."""

    @classmethod
    def of(cls, resource: str, plan: InjectionPlan) -> ContainerParts:
        """Take apart what a container without devices would get."""
        bare = inject(resource, (), plan)
        envs = dict(bare.envs)
        names_devices = envs.get(VISIBLE_DEVICES) == ""
        if names_devices:
            del envs[VISIBLE_DEVICES]
        nodes = tuple(map(_node, bare.nodes))
        controls = len(dict.fromkeys(plan.control_nodes)) if nodes else 0
        return cls(
            resource=resource,
            plan=plan,
            envs=_envs(envs),
            names_devices=names_devices,
            mounts=b"".join(map(_mount, bare.mounts)),
            first_nodes=nodes[:controls],
            last_nodes=nodes[controls:],
            annotates="cdi-annotations" in plan.strategies,
            cdi_devices=b"".join(map(_cdi_device, bare.cdi_devices)),
            names_only=plan.strategies == {"envvar"}
            and not plan.pass_device_specs
            and not plan.extras.mounts,
        )

    def unit(self, device: Device) -> UnitPart:
        bare = inject(self.resource, (), self.plan)
        one = inject(self.resource, (device,), self.plan)
        return UnitPart(
            gpu_uuid=device.gpu_uuid,
            runtime_id=runtime_id(device, self.plan),
            name=runtime_id(device, self.plan).encode(),
            mounts=b"".join(_mount(mount) for mount in one.mounts if mount not in bare.mounts),
            nodes=tuple(_node(node) for node in one.nodes if node not in bare.nodes),
            cdi_devices=b"".join(
                _cdi_device(name) for name in one.cdi_devices if name not in bare.cdi_devices
            ),
        )

    def response(self, units: Iterable[UnitPart]) -> bytes:
        """A serialised AllocateResponse for one container that gets these, repeats counted once.

        It is what `inject` says for the same devices. Responses of containers concatenate to that
        of a request (proto3 encoding).
        """
        each = dict.fromkeys(units)
        if self.names_only:
            return self.named([unit.name for unit in each])
        ids = [unit.runtime_id for unit in each]
        nodes = chain(self.first_nodes, *(unit.nodes for unit in each), self.last_nodes)
        names = entry(1, VISIBLE_DEVICES, ",".join(ids)) if self.names_devices else b""
        noted = entry(4, *annotation(self.resource, ids, self.plan)) if self.annotates else b""
        parts = (
            self.envs,
            names,
            *(unit.mounts for unit in each),
            self.mounts,
            *dict.fromkeys(nodes),
            noted,
            *(unit.cdi_devices for unit in each),
            self.cdi_devices,
        )
        return message(1, b"".join(parts))

    def named(self, names: Iterable[bytes]) -> bytes:
        """The same where names are all that devices add: three messages in one another."""
        value = b",".join(dict.fromkeys(names))
        size = varint(len(value))
        entry_bytes = _VISIBLE_BYTES + len(size) + len(value)
        entry_size = varint(entry_bytes)
        content_size = varint(len(self.envs) + 1 + len(entry_size) + entry_bytes)
        return b"".join((_TAG, content_size, self.envs, _TAG, entry_size, _VISIBLE, size, value))


@dataclass(frozen=True, slots=True)
class AllocateAnswers:
    """Responses to Allocate of known devices.

    `lone` has them by the whole request for one device. `names` and `units` are by what follows the
    tag of a device id: names where nothing else is needed, else units. `several` is true if a
    container may have more than one device, which are on distinct GPUs if `distinct`.
    """

    lone: Mapping[bytes, bytes]
    names: Mapping[bytes, bytes]
    units: Mapping[bytes, UnitPart]
    several: bool
    distinct: bool
    parts: ContainerParts

    @classmethod
    def of(cls, resource: Resource, plan: InjectionPlan, policy: PolicyName) -> AllocateAnswers:
        parts = ContainerParts.of(resource.name, plan)
        # Replicas of a device are the same to a container, so they share everything.
        by_uuid = {
            device.uuid: parts.unit(device)
            for device in {device.uuid: device for device in resource.devices}.values()
        }
        alone = {unit: parts.response([unit]) for unit in by_uuid.values()}
        by_key = {_key(device.id): by_uuid[device.uuid] for device in resource.devices}
        shared = any(device.replica is not None for device in resource.devices)
        distinct = needs_distinct_gpus(policy)
        names_only = parts.names_only and not distinct
        return cls(
            lone={message(1, _TAG + key): alone[unit] for key, unit in by_key.items()},
            names={key: unit.name for key, unit in by_key.items()} if names_only else {},
            units={} if names_only else by_key,
            several=not (shared and resource.fail_requests_greater_than_one),
            distinct=distinct,
            parts=parts,
        )

    def response(self, request: bytes) -> bytes | None:
        """The serialised AllocateResponse to a serialised request."""
        if len(request) > _LONGEST_BYTES:
            return None
        if begin := _container_at(request):
            return self._of_container(request[begin:])
        responses = []
        for field in _fields(request):
            response = self.lone.get(field)
            if response is None:
                begin = _container_at(field)
                response = self._of_container(field[begin:]) if begin else None
            if response is None:
                return None
            responses.append(response)
        return b"".join(responses) or None

    def _of_container(self, body: bytes) -> bytes | None:
        keys = body.split(_TAG)
        if keys[0] or len(keys) < 2 or (len(keys) > 2 and not self.several):
            return None
        del keys[0]
        try:
            if self.names:
                return self.parts.named(map(self.names.__getitem__, keys))
            units = list(map(self.units.__getitem__, keys))
        except KeyError:
            return None
        if self.distinct and len({unit.gpu_uuid for unit in units}) < len(units):
            return None
        return self.parts.response(units)


class Layout(NamedTuple):
    """A request for some of so many devices: how it begins, and where the ids are after that."""

    head: bytes
    begin: int
    ids: Struct

    @classmethod
    def of(cls, count: int, id_bytes: int) -> Layout:
        head = _TAG + varint(count * id_bytes + _SIZE_BYTES)
        return cls(head, len(head), Struct(f"{id_bytes}s" * count))

    @property
    def request_bytes(self) -> int:
        return self.begin + self.ids.size + _SIZE_BYTES


@dataclass(frozen=True, slots=True)
class PreferredAnswers:
    """Responses to GetPreferredAllocation of known, distinct devices, none of them a must.

    A few devices whose ids are equally long are found at places that are known, others by the tags
    of their ids. `ids` are the ids as a request has them, by rank; `ranks` and `known` are by
    the same, or by what follows the tag.
    """

    ids: Sequence[bytes]
    ranks: Mapping[bytes, int]
    known: frozenset[bytes]
    sets: Mapping[bytes, int]
    """The set of one GPU that each device stands for, by rank; empty unless all are such."""
    layouts: Mapping[int, Layout]
    """By the length of a request; empty if tags are looked for."""
    longest_bytes: int
    """Of a request that can be answered here; 0 if none can."""
    policy: PolicyName
    index: PreferenceIndex

    @classmethod
    def of(cls, policy: PolicyName, index: PreferenceIndex) -> PreferredAnswers:
        keys = list(map(_key, index.ids))
        sets = tuple(index.lone.values()) if len(index.lone) == len(keys) else ()
        # For some of many whole GPUs, or some beside replicas, links decide in another way.
        plain = not index.whole_gpus or all(map(is_replica_id, index.ids))
        usable = bool(sets or plain)
        ids = [_TAG + key for key in keys]
        widths = set(map(len, ids))
        placed = len(widths) == 1 and len(ids) <= _MOST_PLACED
        found_by = ids if placed else keys
        layouts = [Layout.of(n + 1, max(widths)) for n in range(len(ids))] if placed else []
        ranks = {key: rank for rank, key in enumerate(found_by)} if usable else {}
        return cls(
            ids=ids,
            ranks=ranks,
            known=frozenset(ranks),
            sets=dict(zip(found_by, sets, strict=True)) if sets else {},
            layouts={layout.request_bytes: layout for layout in layouts},
            longest_bytes=sum(map(len, ids)) + _LENGTHS_BYTES if usable else 0,
            policy=policy,
            index=index,
        )

    def response(self, request: bytes) -> tuple[bytes, ChoiceMethod] | None:
        """The serialised response to a serialised request of one container, and how it was chosen.

        The size comes last, and is one byte from 1 to 127.
        """
        if not _SIZE_BYTES < len(request) <= self.longest_bytes or request[-2] != _SIZE_TAG:
            return None
        size = request[-1]
        keys = self._keys(request)
        if not keys or not 0 < size < _ONE_BYTE:
            return None
        chosen = self._linked(keys, size) if self.sets else self._plain(keys, size)
        if chosen is None:
            return None
        return message(1, b"".join(chosen)), "exact" if self.sets else "plain"

    def _keys(self, request: bytes) -> Sequence[bytes] | None:
        """What may be known devices; None if there is anything else, or more than a container."""
        if self.layouts:
            layout = self.layouts.get(len(request))
            if layout is None or not request.startswith(layout.head):
                return None
            return layout.ids.unpack_from(request, layout.begin)
        begin = _container_at(request)
        if not begin:
            return None
        keys = request[begin:-_SIZE_BYTES].split(_TAG)
        return None if keys.pop(0) else keys

    def _linked(self, keys: Sequence[bytes], size: int) -> Iterable[bytes] | None:
        sets, table = self.sets, self.index.sets
        try:
            free = reduce(or_, map(sets.__getitem__, keys))
        except KeyError:
            return None
        if table is None:
            return None
        return compress(self.ids, map(best_of(table, free, size).__and__, sets.values()))

    def _plain(self, keys: Sequence[bytes], size: int) -> Iterable[bytes] | None:
        ranks, index, count = self.ranks, self.index, len(self.ids)
        if len(keys) < _MOST * count:
            free = bytearray(count)
            try:
                for key in keys:
                    free[ranks[key]] = 1
            except KeyError:
                return None
            left = free_of_gpus(index, free)
        else:
            missing = self.known.difference(keys)
            if len(keys) + len(missing) != count:  # some are unknown, or repeats
                return None
            free = bytearray(b"\x01") * count
            left = list(index.gpu_size)
            for key in missing:
                rank = ranks[key]
                free[rank] = 0
                left[index.gpu_of[rank]] -= 1
        taken = take_free(self.policy, index, free, left, size)
        return map(self.ids.__getitem__, taken)


def _key(device_id: str) -> bytes:
    """A device id in a request, without its tag: the length and the text."""
    return message(1, device_id.encode())[1:]


def _container_at(request: bytes) -> int:
    """Where the container of a request begins that has one and nothing else; 0 for any other."""
    size = len(request)
    begin = 2 if size < 2 + _ONE_BYTE else 3 if size < 3 + _ONE_BYTE**2 else 4
    return begin if request[:begin] == _TAG + varint(size - begin) else 0


def _fields(request: bytes) -> Sequence[bytes]:
    """The containers of a request with their tags; none if it has anything else, or very many.

    The last one may be cut off.
    """
    found: list[bytes] = []
    at, end = 0, len(request)
    while at < end:
        if request[at] != _TAG[0] or len(found) == _MOST_CONTAINERS:
            return ()
        begin, length, shift, byte = at, 0, 0, _ONE_BYTE
        while byte >= _ONE_BYTE:
            at += 1
            if at >= end or shift > _MOST_LENGTH_BITS:
                return ()
            byte = request[at]
            length |= (byte & 0x7F) << shift
            shift += 7
        at += 1 + length
        found.append(request[begin:at])
    return found


def container_response(injection: Injection) -> bytes:
    """A ContainerAllocateResponse; maps in the order of their keys."""
    return b"".join(
        (
            _envs(dict(injection.envs)),
            *map(_mount, injection.mounts),
            *map(_node, injection.nodes),
            *(entry(4, *one) for one in sorted(dict(injection.annotations).items())),
            *map(_cdi_device, injection.cdi_devices),
        )
    )


def _envs(envs: Mapping[str, str]) -> bytes:
    return b"".join(entry(1, *one) for one in sorted(envs.items()))


def _mount(one: Mount) -> bytes:
    return message(2, text(1, one.container_path) + text(2, one.host_path) + number(3, 1))


def _node(one: DeviceNode) -> bytes:
    return message(3, text(1, one.container_path) + text(2, one.host_path) + text(3, "rw"))


def _cdi_device(name: str) -> bytes:
    return message(5, text(1, name))
