"""Faults of simulated GPUs as the hardware layer shows them, timed by a scenario and by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hal import (
    EccError,
    GpuAppeared,
    GpuDisappeared,
    GpuLost,
    GpuState,
    RecoveryAction,
    ThrottleReason,
    TimeSliceLevel,
    XidError,
)
from sim.gpu.profiles import load_profile, model_names
from sim.node.injection import CannotInject
from tests.unit.sim.nodes import Story

MIG = "[{model: h100-sxm5-80gb, mig: [3g.40gb, 2g.20gb]}, {model: h100-sxm5-80gb}]"

both_ways = pytest.mark.parametrize("by_hand", [False, True], ids=["timed", "by hand"])


# Xids of MIG devices


@both_ways
def test_an_xid_of_a_mig_device_names_its_instances_and_kills_one_process(by_hand: bool) -> None:
    story = Story("{kind: xid, xid: 31, mig: 1}", gpus=MIG, by_hand=by_hand)
    uuid = story.uuids[0]
    device = story.hal.gpus()[0].mig_devices[1]

    (event,) = story.next()

    assert event == XidError(uuid, 31, device.gpu_instance, device.compute_instance)
    assert [process.name for process in story.hal.processes(uuid)] == ["two"]


@pytest.mark.parametrize("code", [46, 48, 63, 64, 79, 95])
def test_an_xid_of_a_mig_device_leaves_the_gpu_as_a_whole_alone(code: int) -> None:
    story = Story(f"{{kind: xid, xid: {code}, mig: 0}}", gpus=MIG)
    uuid = story.uuids[0]
    before = story.hal.probe(uuid), story.hal.gpus(), story.hal.processes(uuid)
    (event,) = story.next()

    assert isinstance(event, XidError)
    assert event.gpu_instance is not None
    assert (story.hal.probe(uuid), story.hal.gpus(), story.hal.processes(uuid)) == before


def test_an_xid_of_a_lost_gpu_names_no_instance() -> None:
    story = Story("{kind: lost}", "{kind: xid, xid: 31, mig: 0}", gpus=MIG)
    story.next()

    assert story.next() == (XidError(story.uuids[0], 31),)


# Row remaps and ECC errors


@both_ways
@pytest.mark.parametrize("failed", [False, True])
def test_a_row_remap_shows_in_the_probe_alone(failed: bool, by_hand: bool) -> None:
    story = Story(f"{{kind: row-remap, failed: {failed}}}", by_hand=by_hand)
    uuid = story.uuids[0]
    before = story.hal.probe(uuid)

    assert story.next() == ()
    expected = replace(before, row_remap_failed=failed, row_remap_pending=not failed)
    assert story.hal.probe(uuid) == expected
    assert story.hal.probe(uuid).clean is not failed


@pytest.mark.parametrize("way_back", ["plug", "recover"])
def test_only_a_recovery_ends_a_failed_row_remap(way_back: str) -> None:
    story = Story("{kind: row-remap, failed: true}", "{kind: row-remap}")
    story.next()
    story.next()
    if way_back == "plug":
        story.let("{kind: unplug}")
    story.let(f"{{kind: {way_back}}}")
    probe = story.hal.probe(story.uuids[0])

    assert not probe.row_remap_pending
    assert probe.row_remap_failed is (way_back == "plug")


@both_ways
@pytest.mark.parametrize("uncorrectable", [False, True])
def test_ecc_errors_found_at_once_are_one_event(uncorrectable: bool, by_hand: bool) -> None:
    story = Story(f"{{kind: ecc, uncorrectable: {uncorrectable}, count: 7}}", by_hand=by_hand)
    uuid = story.uuids[0]

    assert story.next() == (EccError(uuid, uncorrectable),)
    telemetry = story.hal.telemetry(uuid)
    counted = (telemetry.corrected_ecc, telemetry.uncorrectable_ecc)
    assert counted == ((0, 7) if uncorrectable else (7, 0))


# Thermal shutdown


@both_ways
def test_a_gpu_without_cooling_is_hot_for_a_while_and_then_lost(by_hand: bool) -> None:
    story = Story("{kind: thermal-shutdown, lost_after_s: 3.5}", by_hand=by_hand)
    uuid = story.uuids[0]
    assert not story.hal.probe(uuid).thermal_shutdown

    assert story.next() == ()
    hot, probe = story.hal.telemetry(uuid), story.hal.probe(uuid)
    assert hot.temperature_c == 95  # T.Limit reaches 0 at 87, and the shutdown is 8 beyond it
    assert hot.throttle_reasons is ThrottleReason.THERMAL_HARDWARE
    assert (hot.utilization, story.hal.processes(uuid)) == (0, ())
    assert (probe.reachable, probe.thermal_shutdown, probe.clean) == (True, True, False)
    story.at(13.4)
    assert story.hal.wait_events(0) == ()
    story.at(13.5)
    assert story.hal.wait_events(0) == (GpuDisappeared(uuid),)
    assert story.hal.gpus()[0].state is GpuState.LOST
    with pytest.raises(GpuLost):
        story.hal.telemetry(uuid)
    probe = story.hal.probe(uuid)
    assert (probe.reachable, probe.thermal_shutdown) == (False, False)


@pytest.mark.parametrize(
    ("model", "shutdown_c"),
    [("t4", 96), ("b200", 93), ("h200", 95), ("h100-pcie", 95)],
    ids=["absolute", "margin", "margin to nothing known", "nothing known"],
)
def test_the_shutdown_temperature_is_the_profiles_or_the_fallback(
    model: str, shutdown_c: float
) -> None:
    story = Story("{kind: thermal-shutdown}", gpus=f"[{{model: {model}}}]", rest="")
    story.next()

    assert story.hal.telemetry(story.uuids[0]).temperature_c == shutdown_c


@pytest.mark.parametrize("model", model_names())
def test_shutdown_is_above_all_that_a_busy_gpu_reaches(model: str) -> None:
    thermal = load_profile(model).thermal_c
    if thermal is not None and thermal.shutdown_c is not None:
        assert max(80, thermal.max_operating or 0) < thermal.shutdown_c < 110


def test_a_gpu_that_was_cooled_in_time_is_not_lost_later() -> None:
    story = Story("{kind: thermal-shutdown, lost_after_s: 5}", "{kind: lost}")
    uuid = story.uuids[0]
    story.next()
    story.at(14)
    story.let("{kind: recover}")
    cool = story.hal.telemetry(uuid)
    assert story.hal.probe(uuid).clean
    assert cool.temperature_c is not None
    assert cool.temperature_c < 80
    assert cool.throttle_reasons is ThrottleReason.IDLE

    story.at(16)
    assert story.hal.probe(uuid).clean
    story.let("{kind: thermal-shutdown, lost_after_s: 5}")
    story.at(20)
    assert story.hal.probe(uuid).reachable, "the second shutdown has a time of its own"
    story.at(21)
    assert not story.hal.probe(uuid).reachable


# Unplugged and plugged


@both_ways
def test_an_unplugged_gpu_is_listed_as_lost_and_back_when_plugged(by_hand: bool) -> None:
    story = Story("{kind: unplug}", "{kind: plug}", gpu="1", by_hand=by_hand)
    before, uuid = story.hal.gpus(), story.uuids[1]
    epoch = story.hal.probe(uuid).epoch

    assert story.next() == (GpuDisappeared(uuid),)
    listed = story.hal.gpus()
    assert listed == (before[0], replace(before[1], state=GpuState.LOST), before[2])
    assert not story.hal.probe(uuid).reachable
    assert all(uuid not in pair for pair in story.hal.links())
    with pytest.raises(GpuLost):
        story.hal.set_time_slice(uuid, TimeSliceLevel.LONG)

    assert story.next() == (GpuAppeared(uuid),)
    assert story.hal.gpus() == before
    assert story.hal.probe(uuid).clean
    assert story.hal.probe(uuid).epoch != epoch
    assert any(uuid in pair for pair in story.hal.links())


@both_ways
def test_nothing_but_plugging_reaches_an_unplugged_gpu(by_hand: bool) -> None:
    story = Story("{kind: unplug}", "{kind: recover}", "{kind: plug}", by_hand=by_hand)
    story.next()
    if by_hand:
        with pytest.raises(CannotInject, match="GPU 0 is unplugged: plug it or replace it"):
            story.next()
    else:
        assert story.next() == (), "what cannot happen at its time does not"
    assert story.hal.gpus()[0].state is GpuState.LOST
    assert story.next() == (GpuAppeared(story.uuids[0]),)


def test_plugging_cures_what_a_power_cycle_cures() -> None:
    story = Story("{kind: xid, xid: 79}", "{kind: unplug}", "{kind: plug}")
    uuid = story.uuids[0]
    story.next()
    assert story.next() == (), "it was gone already"
    assert story.next() == (GpuAppeared(uuid),)
    assert story.hal.probe(uuid).recovery_action is RecoveryAction.NONE


def test_a_gpu_in_its_slot_cannot_be_plugged() -> None:
    story = Story("{kind: lost}", "{kind: plug}")
    story.next()
    with pytest.raises(CannotInject, match="not unplugged; 'recover' brings"):
        story.next()


# Replaced


@both_ways
@pytest.mark.parametrize("first", ["", "{kind: unplug}", "{kind: lost}", "{kind: hang}"])
def test_a_replacement_takes_the_place_under_a_new_uuid(first: str, by_hand: bool) -> None:
    whats = [what for what in (first, "{kind: replace}") if what]
    story = Story(*whats, gpu="1", by_hand=by_hand)
    before, old = story.hal.gpus(), story.uuids[1]
    gone_already = first in ("{kind: unplug}", "{kind: lost}")
    if first:
        story.next()

    *disappeared, appeared = story.next()
    first_gpu, new, lost, last_gpu = story.hal.gpus()
    assert appeared == GpuAppeared(new.uuid)
    assert disappeared == ([] if gone_already else [GpuDisappeared(old)])
    assert new.uuid != old
    assert new == replace(before[1], uuid=new.uuid)
    assert lost == replace(before[1], state=GpuState.LOST)
    assert (first_gpu, last_gpu) == (before[0], before[2])
    assert story.hal.probe(new.uuid).clean
    assert story.hal.processes(new.uuid) == ()
    assert not story.hal.probe(old).reachable
    with pytest.raises(GpuLost):
        story.hal.telemetry(old)
    assert {uuid for pair in story.hal.links() for uuid in pair} == {
        before[0].uuid,
        new.uuid,
        before[2].uuid,
    }


def test_what_befalls_the_index_befalls_the_new_gpu_and_the_old_one_is_beyond_it() -> None:
    story = Story("{kind: replace}", gpus=MIG)
    old = story.hal.gpus()[0]
    story.next()
    new = story.hal.gpus()[0]
    story.let("{kind: xid, xid: 43}")

    assert story.hal.wait_events(0)[-1] == XidError(new.uuid, 43)
    for kind in ("recover", "plug", "replace", "lost"):
        with pytest.raises(CannotInject, match=f"was replaced by {new.uuid}: name that one, or 0"):
            story.let(f"{{kind: {kind}}}", old.uuid)
    assert [device.profile for device in new.mig_devices] == ["3g.40gb", "2g.20gb"]
    devices = {device.uuid for gpu in (old, new) for device in gpu.mig_devices}
    assert len(devices) == 4


def test_the_same_seed_gives_the_same_new_uuids() -> None:
    def uuids(seed: int) -> list[str]:
        whats = ("{kind: replace}", "{kind: replace}", "{kind: repartition, mig: [1g.10gb]}")
        story = Story(*whats, gpu="2", by_hand=False, rest=f"seed: {seed}")
        for _ in whats:
            story.next()
        gpus = story.hal.gpus()
        return [gpu.uuid for gpu in gpus] + [mig.uuid for gpu in gpus for mig in gpu.mig_devices]

    assert uuids(1) == uuids(1)
    assert len(set(uuids(1))) == 6
    assert not set(uuids(1)) & set(uuids(2))


def test_a_gpu_that_was_replaced_twice_leaves_two_lost_ones() -> None:
    story = Story("{kind: replace}", "{kind: replace}")
    story.next()
    story.next()
    states = [(gpu.index, gpu.state) for gpu in story.hal.gpus()]

    assert states == [
        (0, GpuState.OK),
        (0, GpuState.LOST),
        (0, GpuState.LOST),
        (1, GpuState.OK),
        (2, GpuState.OK),
    ]


# Repartitioned


@both_ways
def test_new_partitions_have_new_uuids_and_end_the_processes(by_hand: bool) -> None:
    story = Story(
        "{kind: repartition, mig: [1g.10gb, 1g.10gb, 4g.40gb]}",
        "{kind: repartition, mig: null}",
        gpus=MIG,
        by_hand=by_hand,
    )
    before, other = story.hal.gpus()
    story.next()
    cut, same = story.hal.gpus()

    assert [device.profile for device in cut.mig_devices] == ["1g.10gb", "1g.10gb", "4g.40gb"]
    assert not {device.uuid for device in cut.mig_devices} & {
        device.uuid for device in before.mig_devices
    }
    assert (cut.uuid, same) == (before.uuid, other)
    assert story.hal.processes(cut.uuid) == ()
    story.next()
    assert story.hal.gpus()[0] == replace(before, mig_enabled=False, mig_devices=())


@pytest.mark.parametrize(
    ("mig", "said"),
    [
        ("[9g.90gb]", "NVIDIA H100 80GB HBM3 has no MIG profile '9g.90gb'; known: 1g.10gb, "),
        ("[4g.40gb, 4g.40gb]", "take 8 slices, a GPU has 7"),
    ],
)
def test_partitions_that_cannot_be_change_nothing(mig: str, said: str) -> None:
    story = Story(f"{{kind: repartition, mig: {mig}}}", gpus=MIG)
    before = story.hal.gpus(), story.hal.processes(story.uuids[0])
    with pytest.raises(CannotInject, match=said):
        story.next()

    assert (story.hal.gpus(), story.hal.processes(story.uuids[0])) == before


def test_a_lost_gpu_cannot_be_partitioned() -> None:
    story = Story("{kind: lost}", "{kind: repartition, mig: []}")
    story.next()
    with pytest.raises(CannotInject, match="GPU 0 is lost: let it recover first"):
        story.next()


def test_an_xid_of_a_mig_device_that_is_not_there_is_refused() -> None:
    story = Story("{kind: xid, xid: 31, mig: 2}", gpus=MIG)
    with pytest.raises(CannotInject, match="no MIG device 2, only 2, counted from 0"):
        story.next()


# Several GPUs, several times


@pytest.mark.parametrize(("gpu", "hit"), [("[0, 2]", (0, 2)), ("all", (0, 1, 2)), ("1", (1,))])
def test_a_fault_applies_to_all_gpus_that_it_names(gpu: str, hit: tuple[int, ...]) -> None:
    story = Story("{kind: lost}", gpu=gpu, by_hand=False)

    assert story.next() == tuple(GpuDisappeared(story.uuids[index]) for index in hit)


def test_a_fault_repeats() -> None:
    story = Story(
        rest="faults: [{at_s: 5, gpu: 1, what: {kind: ecc}, repeat: {every_s: 2.5, times: 3}}]"
    )
    seen = []
    for half_second in range(60):
        story.at(half_second / 2)
        seen += [half_second / 2 for _ in story.hal.wait_events(0)]

    assert seen == [5, 7.5, 10]
