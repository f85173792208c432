"""Slices: what is written, seen by an API server that applies it and by a scheduler that reads."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.core.dra.claims import ClaimRef, Claims, Result
from gpuplugin.core.dra.devices import MIB, Offer, Taint
from gpuplugin.core.dra.slices import (
    DEVICES_PER_SLICE,
    GATES,
    Arranged,
    Create,
    Delete,
    Order,
    Pool,
    Stored,
    Update,
    Write,
    arranged,
    dropped_gates,
    in_order,
    kept_shared,
    stored_replicas,
    trial_spec,
    writes,
)

if TYPE_CHECKING:
    from gpuplugin.core.jsonobject import JsonObject

DRIVER = "gpu.gpuplugin.dev"
POOL = Pool(DRIVER, "node-1")
SICK = (Taint("gpu.gpuplugin.dev/xid", "79", "NoSchedule"),)


def offer(number: int, replicas: int = 10, taints: tuple[Taint, ...] = ()) -> Offer:
    return Offer(
        f"gpu-{number}", (f"GPU-{number}", None), "nvidia.com/gpu", replicas, 80 * 1024**3,
        {"uuid": f"GPU-{number}"}, taints,
    )  # fmt: skip


def pool(stored: Stored) -> dict[str, int]:
    found = stored.spec["pool"]
    assert isinstance(found, dict)
    return found


@dataclass
class Server:
    """The slices of an API server, and every state on the way that a scheduler could have seen."""

    slices: dict[str, Stored] = field(default_factory=dict)
    version: int = 0

    def apply(self, made: tuple[Write, ...]) -> None:
        for write in made:
            self.version += 1
            match write:
                case Create(name=name, spec=spec):
                    assert name not in self.slices
                    self._store(name, f"uid-{self.version}", spec)
                case Update(stored=stored, spec=spec):
                    assert self.slices[stored.name].resource_version == stored.resource_version
                    self._store(stored.name, stored.uid, spec)
                case Delete(stored=stored):
                    del self.slices[stored.name]
            self.check()

    def _store(self, name: str, uid: str, spec: JsonObject) -> None:
        spec = copy.deepcopy(spec)
        for device in self.devices_of(spec):
            for taint in device.get("taints", []):
                taint.setdefault("timeAdded", f"at-{self.version}")
        spec = json.loads(re.sub(r'"(\d+)000"', r'"\1k"', json.dumps(spec)))  # as it has quantities
        stored = Stored(name, uid, str(self.version), spec)
        generation = pool(stored)["generation"]
        assert all(generation >= pool(one)["generation"] for one in self.slices.values())
        self.slices[name] = stored

    @staticmethod
    def devices_of(spec: JsonObject) -> list[dict[str, list[dict[str, object]]]]:
        devices = spec["devices"]
        assert isinstance(devices, list)
        return devices

    def check(self) -> None:
        """What a scheduler allocates from at any moment has no device twice, and is whole."""
        names = self.seen()
        assert len(names) == len(set(names))

    def seen(self) -> list[object]:
        """Devices that a scheduler sees: those of the newest generation, once it is complete."""
        stored = sorted(self.slices.values(), key=lambda one: one.name)
        newest = max((pool(one)["generation"] for one in stored), default=0)
        chosen = [one for one in stored if pool(one)["generation"] == newest]
        if not chosen or len(chosen) != pool(chosen[0])["resourceSliceCount"]:
            return []
        return [device["name"] for one in chosen for device in self.devices_of(one.spec)]

    def publish(self, offers: tuple[Offer, ...]) -> tuple[Write, ...]:
        made = writes(offers, POOL, self.slices.values())
        self.apply(made)
        return made


def test_the_first_publication_and_then_nothing() -> None:
    server = Server()
    made = server.publish((offer(0), offer(1)))
    assert [type(write) for write in made] == [Create]
    assert server.seen() == ["gpu-0", "gpu-1"]
    assert server.publish((offer(0), offer(1))) == ()


def test_a_node_without_gpus_has_an_empty_slice() -> None:
    server = Server()
    server.publish(())
    (stored,) = server.slices.values()
    assert stored.spec["devices"] == []
    assert server.publish(()) == ()


def test_a_fault_is_an_update_in_place_and_keeps_the_times_of_other_taints() -> None:
    server = Server()
    server.publish((offer(0, taints=SICK), offer(1)))
    (before,) = server.slices.values()
    (update,) = server.publish((offer(0, taints=SICK), offer(1, taints=SICK)))
    assert isinstance(update, Update)
    assert update.spec["pool"] == before.spec["pool"]
    first, second = server.devices_of(next(iter(server.slices.values())).spec)
    assert first["taints"][0]["timeAdded"] == "at-1"
    assert second["taints"][0]["timeAdded"] == "at-2"


def test_slices_that_were_wiped_are_restored() -> None:
    server = Server()
    offers = tuple(map(offer, range(DEVICES_PER_SLICE + 1)))
    server.publish(offers)
    for wiped in (*server.slices, None):
        if wiped is None:
            server.slices.clear()
        else:
            del server.slices[wiped]
        server.publish(offers)
        assert server.seen() == [one.name for one in offers]


@given(
    states=st.lists(
        st.lists(
            st.tuples(st.integers(0, 149), st.integers(1, 3), st.booleans()),
            max_size=140,
            unique_by=lambda one: one[0],
        ),
        min_size=1,
        max_size=5,
    )
)
def test_whatever_changes_the_server_has_it_in_one_turn(
    states: list[list[tuple[int, int, bool]]],
) -> None:
    server = Server()
    for state in states:
        offers = tuple(
            offer(number, replicas, SICK if sick else ()) for number, replicas, sick in state
        )
        server.publish(offers)
        assert server.seen() == [one.name for one in offers]
        assert server.publish(offers) == ()
        for stored in server.slices.values():
            assert len(server.devices_of(stored.spec)) <= DEVICES_PER_SLICE
        assert stored_replicas(server.slices.values()) == {one.name: one.replicas for one in offers}


def test_the_order_follows_the_policy() -> None:
    offers = tuple(map(offer, range(4)))
    taken = {"gpu-1": 3, "gpu-2": 7}
    packed = [one.name for one in in_order(offers, taken, "packed")]
    distributed = [one.name for one in in_order(offers, taken, "distributed")]
    assert packed == ["gpu-2", "gpu-1", "gpu-0", "gpu-3"]
    assert distributed == ["gpu-0", "gpu-3", "gpu-1", "gpu-2"]


@pytest.mark.parametrize(
    ("wanted", "now", "out", "expected"),
    [
        (1, 10, 3, 10),
        (1, 10, 0, 1),
        (1, 0, 0, 1),
        (4, 10, 9, 4),
        (10, 1, 1, 10),
        (1, 1, 1, 2),
        (1, 0, 5, 5),
    ],
)
def test_sharing_is_never_turned_off_while_shares_are_out(
    wanted: int, now: int, out: int, expected: int
) -> None:
    assert kept_shared(replace(offer(0), replicas=wanted), now, out) == expected


def test_what_a_server_dropped_names_the_gate() -> None:
    server = Server()
    server.publish((offer(0, taints=SICK),))
    (stored,) = server.slices.values()
    sent = copy.deepcopy(stored.spec)
    (device,) = server.devices_of(stored.spec)
    assert dropped_gates(sent, stored.spec) == frozenset()
    del device["taints"]
    assert dropped_gates(sent, stored.spec) == {"DRADeviceTaints"}
    del device["allowMultipleAllocations"]
    assert dropped_gates(sent, stored.spec) == {"DRADeviceTaints", "DRAConsumableCapacity"}


def test_names_of_slices_fit_whatever_the_node_is_called() -> None:
    long = Pool("gpu.gpuplugin.dev", "n" * 250)
    assert len(long.slice_name(3)) <= 253
    assert long.slice_name(3) != long.slice_name(4)
    assert POOL.slice_name(0) == "node-1-gpu.gpuplugin.dev-0"


def test_a_slice_has_64_devices_at_most_which_is_what_taints_leave() -> None:
    def created(count: int) -> list[int]:
        made = writes([offer(number) for number in range(count)], POOL, ())
        return [len(one.spec["devices"]) for one in made if isinstance(one, Create)]  # type: ignore[arg-type]

    assert created(64) == [64]
    assert created(65) == [64, 1]


def claims_of(*held: Result, uid: str = "uid") -> Claims:
    ref = ClaimRef("default", uid, uid)
    return Claims("boot").started(ref, held, {one.name: one for one in map(offer, range(3))})


@pytest.mark.parametrize(("order", "expected"), [("packed", [1, 0, 2]), ("distributed", [0, 2, 1])])
def test_a_gpu_whose_shares_are_out_stays_shared(order: Order, expected: list[int]) -> None:
    claims = claims_of(Result("gpu", "node-1", "gpu-1", "share", 3))
    wanted = [offer(number, replicas=1) for number in range(3)]
    found = arranged(wanted, claims, {"gpu-1": 10}, order)
    assert [(one.name, one.replicas) for one in found.offers] == [
        (f"gpu-{number}", 10 if number == 1 else 1) for number in expected
    ]
    assert found.kept == {"gpu-1"}
    assert arranged(wanted, Claims("boot"), {"gpu-1": 10}, order) == Arranged(tuple(wanted))


def test_what_is_offered_is_read_from_what_is_stored() -> None:
    server = Server()
    server.apply(writes([offer(0, 10), offer(1, 1), offer(2, 3), offer(3, 2000)], POOL, []))
    found = stored_replicas(server.slices.values())
    assert found == {"gpu-0": 10, "gpu-1": 1, "gpu-2": 3, "gpu-3": 2000}
    assert stored_replicas([]) == {}


@pytest.mark.parametrize("replicas", [1000, 20_000, 1001])
def test_what_the_server_writes_in_another_way_is_the_same(replicas: int) -> None:
    """It has 1000 as 1k: such a slice would be written again and again, and not be understood."""
    server = Server()
    offers = (replace(offer(0, replicas), memory_bytes=16_000 * MIB),)
    server.publish(offers)
    assert server.publish(offers) == ()
    assert stored_replicas(server.slices.values()) == {"gpu-0": replicas}


def test_a_trial_uses_all_that_an_api_server_may_drop() -> None:
    trial = trial_spec(POOL)
    assert dropped_gates(trial, trial) == frozenset()
    assert dropped_gates(trial, {"driver": DRIVER}) == frozenset(GATES.values())
    assert trial["nodeName"] == "node-1"
    assert trial["pool"] == {"name": "node-1", "generation": 0, "resourceSliceCount": 1}
