"""Claims of a DRA driver over its gRPC services: prepared, undone, remembered after crashes."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from gpuplugin.core.cdi import CdiHost
from gpuplugin.core.dra.claims import ClaimError, ClaimRef, Claims, Result, decoded
from gpuplugin.core.dra.devices import Offer, Taint
from gpuplugin.core.injection import InjectionPlan
from gpuplugin.daemon.dra.claimstore import FILE, ClaimStore
from gpuplugin.daemon.dra.claimwork import (
    CDI_KIND,
    CDI_VENDOR,
    ClaimKeeper,
    Offered,
    claims_of_specs,
)
from gpuplugin.daemon.wholefiles import write_whole
from gpuplugin.kubelet.draplugin import DraPlugin, health_message
from gpuplugin.kubelet.proto import dra_pb2 as pb
from gpuplugin.rpc.client import CallFailed, Connection, Method
from hal import TimeSliceLevel
from hal.driverfiles import DriverFiles
from tests.component.waiting import eventually
from tests.conformance.engines.conftest import ENGINES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from gpuplugin.core.dra.claims import HeldDevice
    from gpuplugin.core.jsonobject import JsonObject

DRIVER = "gpu.gpuplugin.dev"
PACKAGE = "k8s.io.kubelet.pkg.apis.dra"
PREPARE = Method.of(f"/{PACKAGE}.v1.DRAPlugin/NodePrepareResources")
PREPARE_BETA = Method.of(f"/{PACKAGE}.v1beta1.DRAPlugin/NodePrepareResources")
UNPREPARE = Method.of(f"/{PACKAGE}.v1.DRAPlugin/NodeUnprepareResources")
HEALTH = Method.of("/v1alpha1.DRAResourceHealth/NodeWatchResources")
TIMEOUT_S = 10.0
NO_WAIT_S = 0.0
OFFERS = {
    name: Offer(
        name, (f"GPU-{name}", None), "nvidia.com/gpu", replicas, None, nodes=("/dev/nvidia0",)
    )
    for name, replicas in (("gpu-shared", 10), ("gpu-whole", 1))
}
OFFERED = Offered(OFFERS, InjectionPlan(), CdiHost("/", DriverFiles()))


class Cluster:
    """ResourceClaims as the API server has them."""

    def __init__(self) -> None:
        self.claims: dict[str, JsonObject] = {}

    def allocate(
        self, uid: str, device: str = "gpu-shared", shares: int = 1, interval: str = ""
    ) -> pb.Claim:
        result: dict[str, object] = {
            "request": "gpu", "driver": DRIVER, "pool": "node-1", "device": device,
        }  # fmt: skip
        if device == "gpu-shared":
            result |= {"shareID": f"share-{uid}", "consumedCapacity": {"shares": str(shares)}}
        self.claims[uid] = {
            "metadata": {"namespace": "default", "name": uid, "uid": uid},
            "status": {
                "allocation": {"devices": {"results": [result], "config": config(interval)}}
            },
        }
        return pb.Claim(namespace="default", name=uid, uid=uid)

    def read(self, ref: ClaimRef) -> JsonObject:
        try:
            return self.claims[ref.name]
        except KeyError:
            raise ClaimError(f"claim {ref.namespace}/{ref.name} does not exist") from None


def config(interval: str) -> list[JsonObject]:
    """The opaque configuration of a claim that asks for a time slice, or none."""
    if not interval:
        return []
    sharing = {"strategy": "TimeSlicing", "timeSlicingConfig": {"interval": interval}}
    parameters = {
        "apiVersion": "resource.nvidia.com/v1beta1", "kind": "GpuConfig", "sharing": sharing,
    }  # fmt: skip
    opaque = {"driver": DRIVER, "parameters": parameters}
    return [{"source": "FromClaim", "requests": [], "opaque": opaque}]


class Driver:
    """What a plugin's process has: files in two folders, and nothing else that stays."""

    def __init__(self, folder: Path, cluster: Cluster, boot_id: str = "boot") -> None:
        self.specs = folder / "cdi"
        self.folder = folder / "plugin"
        self.offered: Offered | None = OFFERED
        self.time_slices: dict[str, TimeSliceLevel] = {}
        self.refusal = ""
        self.store = ClaimStore(
            self.folder, boot_id, lambda: claims_of_specs(self.specs, DRIVER, boot_id)
        )
        self.keeper = ClaimKeeper(
            DRIVER,
            self.store,
            self.specs,
            lambda: self.offered,
            cluster.read,
            self.set_time_slices,
        )

    def set_time_slices(
        self, levels: Mapping[str, TimeSliceLevel], wait_s: float
    ) -> dict[str, str]:
        assert wait_s >= 0
        self.time_slices = {**levels}
        return {uuid: self.refusal for uuid in levels if self.refusal}

    def prepare(self, claim: pb.Claim) -> Sequence[HeldDevice]:
        return self.keeper.prepare(named(claim), NO_WAIT_S)

    def spec(self, uid: str) -> Path:
        return self.specs / f"{CDI_VENDOR}-claim-{uid}.json"

    @property
    def remembered(self) -> Claims:
        return decoded((self.folder / FILE).read_text())


def named(claim: pb.Claim) -> ClaimRef:
    return ClaimRef(claim.namespace, claim.name, claim.uid)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def driver(tmp_path: Path, cluster: Cluster) -> Driver:
    return Driver(tmp_path, cluster)


@contextmanager
def serving(driver: Driver, engine: str = "fast") -> Iterator[Connection]:
    """A connection to the driver's services."""
    with TemporaryDirectory(prefix="gp") as folder:
        plugin = DraPlugin(driver.keeper)
        server = ENGINES[engine]().serve(Path(folder) / "dra.sock", plugin.services())
        try:
            with Connection(Path(folder) / "dra.sock", TIMEOUT_S) as connection:
                yield connection
        finally:
            plugin.health.end_streams()
            server.stop(1)


def prepared(
    connection: Connection, *claims: pb.Claim, method: Method = PREPARE
) -> dict[str, pb.NodePrepareResourceResponse]:
    request = pb.NodePrepareResourcesRequest(claims=claims).SerializeToString()
    return dict(pb.NodePrepareResourcesResponse.FromString(connection.call(method, request)).claims)


def undone(connection: Connection, *claims: pb.Claim) -> dict[str, str]:
    request = pb.NodeUnprepareResourcesRequest(claims=claims).SerializeToString()
    response = pb.NodeUnprepareResourcesResponse.FromString(connection.call(UNPREPARE, request))
    return {uid: one.error for uid, one in response.claims.items()}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", [PREPARE, PREPARE_BETA])
def test_a_claim_is_prepared_and_undone(
    driver: Driver, cluster: Cluster, engine: str, method: Method
) -> None:
    claim = cluster.allocate("u-1", shares=2)
    with serving(driver, engine) as connection:
        (device,) = prepared(connection, claim, method=method)["u-1"].devices
        assert device == pb.Device(
            request_names=["gpu"], pool_name="node-1", device_name="gpu-shared",
            cdi_device_ids=[f"{CDI_KIND}=u-1-gpu-shared"], share_id="share-u-1",
        )  # fmt: skip
        spec = json.loads(driver.spec("u-1").read_text())
        assert spec["kind"] == CDI_KIND
        assert spec["devices"] == [
            {
                "name": "u-1-gpu-shared",
                "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0"}]},
            }
        ]
        assert driver.remembered.taken() == {"gpu-shared": 2}
        again = prepared(connection, claim)["u-1"].devices
        assert list(again) == [device]
        assert undone(connection, claim) == {"u-1": ""}
        assert not driver.spec("u-1").exists()
        assert driver.remembered.by_uid == {}
        assert undone(connection, claim) == {"u-1": ""}, "one that is not known is no mistake"


def test_every_claim_of_a_call_has_an_answer_of_its_own(driver: Driver, cluster: Cluster) -> None:
    good = cluster.allocate("good")
    gone = pb.Claim(namespace="default", name="gone", uid="gone")
    odd = pb.Claim(namespace="default", name="odd", uid="../../odd")
    with serving(driver) as connection:
        assert prepared(connection) == {}
        responses = prepared(connection, good, gone, odd)
    assert len(responses["good"].devices) == 1
    assert "default/gone does not exist" in responses["gone"].error
    assert "is no UID" in responses["../../odd"].error


def test_what_is_no_request_is_refused(driver: Driver) -> None:
    with serving(driver) as connection, pytest.raises(CallFailed, match="INVALID_ARGUMENT"):
        connection.call(PREPARE, b"\xff\xff")


def test_claims_of_different_pods_wait_for_nobody(driver: Driver, cluster: Cluster) -> None:
    """One whose claim cannot be read yet holds up nobody else."""
    waiting, reading = threading.Event(), threading.Event()
    slow, quick = cluster.allocate("slow"), cluster.allocate("quick")

    def read(ref: ClaimRef) -> JsonObject:
        if ref.uid == "slow":
            reading.set()
            assert waiting.wait(TIMEOUT_S)
        return cluster.read(ref)

    keeper = ClaimKeeper(
        DRIVER, ClaimStore(driver.folder, "boot", lambda: Claims("boot")), driver.specs,
        lambda: OFFERED, read, driver.set_time_slices,
    )  # fmt: skip
    with ThreadPoolExecutor(1) as pool:
        held_up = pool.submit(keeper.prepare, named(slow), NO_WAIT_S)
        assert reading.wait(TIMEOUT_S)
        assert len(keeper.prepare(named(quick), NO_WAIT_S)) == 1
        waiting.set()
        assert len(held_up.result(TIMEOUT_S)) == 1


def test_of_many_at_once_no_more_get_shares_than_there_are(
    driver: Driver, cluster: Cluster
) -> None:
    claims = [cluster.allocate(f"u-{number}") for number in range(30)]

    def prepare(claim: pb.Claim) -> bool:
        try:
            driver.prepare(claim)
        except ClaimError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        granted = sum(pool.map(prepare, claims))
    assert granted == 10
    assert driver.remembered.taken() == {"gpu-shared": 10}
    assert len(list(driver.specs.iterdir())) == 10


def test_claims_that_come_together_are_written_together(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has what came before it, an error is that of its own change, and the disk is spared."""
    writes, entered, going_on = [0], threading.Event(), threading.Event()

    def slow(path: Path, text: str, mode: int, *, synced: bool) -> None:
        writes[0] += 1
        entered.set()
        assert going_on.wait(TIMEOUT_S)
        write_whole(path, text, mode, synced=synced)

    def refused(_now: Claims) -> Claims:
        raise ClaimError("no")

    monkeypatch.setattr("gpuplugin.daemon.dra.claimstore.write_whole", slow)
    store = driver.store
    results = [Result("gpu", "node-1", "gpu-shared", "", 1)]

    def start(number: int) -> Claims:
        ref = ClaimRef("default", f"c-{number}", f"u-{number}")
        return store.change(lambda now: now.started(ref, results, OFFERS))

    with ThreadPoolExecutor(10) as threads:
        first = threads.submit(start, 0)
        assert entered.wait(TIMEOUT_S)
        others = [threads.submit(start, number) for number in range(1, 8)]
        failing = threads.submit(store.change, refused)
        eventually(lambda: store.waiting == 8)
        going_on.set()
        assert set(first.result(TIMEOUT_S).by_uid) == {"u-0"}
        for number, one in enumerate(others, 1):
            assert f"u-{number}" in one.result(TIMEOUT_S).by_uid
        with pytest.raises(ClaimError, match="no"):
            failing.result(TIMEOUT_S)
    assert writes == [2]
    assert driver.remembered.taken() == {"gpu-shared": 8}


def test_a_disk_that_is_full_leaves_the_claims_as_they_were(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object, **_named: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("gpuplugin.daemon.dra.claimstore.write_whole", full)
    with pytest.raises(OSError, match="No space"):
        driver.store.change(lambda now: now.rebooted("other"))
    assert driver.store.claims == Claims("boot")


def test_two_instances_share_what_they_know(tmp_path: Path, cluster: Cluster) -> None:
    """As during an upgrade: the new one knows what the old one prepared, and the reverse."""
    old, new = Driver(tmp_path, cluster), Driver(tmp_path, cluster)
    first, second = cluster.allocate("u-1", "gpu-whole"), cluster.allocate("u-2", "gpu-whole")
    old.prepare(first)
    with pytest.raises(ClaimError, match="has all of it"):
        new.prepare(second)
    new.keeper.unprepare(named(first))
    old.prepare(second)
    assert set(new.remembered.by_uid) == {"u-2"}


def test_what_one_instance_undoes_another_does_not_bring_back(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """During an upgrade: a spec is missing because it was just removed, not because it is lost."""
    old, new = Driver(tmp_path, cluster), Driver(tmp_path, cluster)
    claim = cluster.allocate("u-1")
    old.prepare(claim)
    old.spec("u-1").unlink()
    with ThreadPoolExecutor(1) as threads:
        undoing: list[Future[None]] = []

        def slowly(path: Path, text: str, mode: int, *, synced: bool) -> None:
            if not undoing:
                undoing.append(threads.submit(new.keeper.unprepare, named(claim)))
                wait(undoing, 0.5)  # all the time that it would take
            write_whole(path, text, mode, synced=synced)

        monkeypatch.setattr("gpuplugin.daemon.dra.claimwork.write_whole", slowly)
        assert old.keeper.restore() == ()
        undoing[0].result(TIMEOUT_S)
    assert not old.spec("u-1").exists()
    assert old.remembered.by_uid == {}


def test_a_restart_writes_specs_that_are_missing(tmp_path: Path, cluster: Cluster) -> None:
    claim = cluster.allocate("u-1")
    driver = Driver(tmp_path, cluster)
    driver.prepare(claim)
    driver.spec("u-1").unlink()
    Driver(tmp_path, cluster).keeper.restore()
    assert driver.spec("u-1").exists()


def test_a_claim_that_cannot_be_set_up_again_holds_up_no_other(
    tmp_path: Path, cluster: Cluster
) -> None:
    """Its GPU is gone, and with it the device node that the spec would name."""
    driver = Driver(tmp_path, cluster)
    gone, kept = cluster.allocate("u-1", "gpu-whole"), cluster.allocate("u-2")
    for claim in (gone, kept):
        driver.prepare(claim)
        driver.spec(claim.uid).unlink()
    after = Driver(tmp_path, cluster)
    after.offered = replace(OFFERED, offers={"gpu-shared": OFFERS["gpu-shared"]})
    (problem,) = after.keeper.restore()
    assert "default/u-1" in problem
    assert "has no device node on this node now" in problem
    assert driver.spec("u-2").exists()
    after.keeper.unprepare(named(gone))
    assert after.keeper.restore() == ()


def test_after_a_reboot_prepare_does_its_work_again(tmp_path: Path, cluster: Cluster) -> None:
    claim = cluster.allocate("u-1", "gpu-whole")
    driver = Driver(tmp_path, cluster, "one")
    driver.prepare(claim)
    driver.spec("u-1").unlink()
    rebooted = Driver(tmp_path, cluster, "two")
    rebooted.keeper.restore()
    assert not driver.spec("u-1").exists(), "its pod has not been started again"
    rebooted.prepare(claim)
    assert driver.spec("u-1").exists()
    assert rebooted.remembered.boot_id == "two"


@pytest.mark.parametrize("broken", ["", "{", '{"version": 9}', "\0\xff", "[" * 100_000])
def test_a_broken_file_is_no_reason_to_end(tmp_path: Path, cluster: Cluster, broken: str) -> None:
    """Its claims are known by their specs: nothing is given out twice, and Unprepare works."""
    driver = Driver(tmp_path, cluster)
    first = cluster.allocate("u-1", "gpu-whole")
    held = driver.prepare(first)
    remembered = driver.remembered
    (driver.folder / FILE).write_bytes(broken.encode("latin-1"))
    after = Driver(tmp_path, cluster)
    with pytest.raises(ClaimError, match="has all of it"):
        after.prepare(cluster.allocate("u-2", "gpu-whole"))
    assert after.prepare(first) == held
    assert len(after.prepare(cluster.allocate("u-3"))) == 1
    assert after.remembered.without("u-3") == remembered
    after.keeper.unprepare(named(first))
    assert set(after.remembered.by_uid) == {"u-3"}
    assert len(after.prepare(cluster.allocate("u-2", "gpu-whole"))) == 1


def test_two_writes_within_a_tick_of_the_files_clock_are_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second one may have the inode of the file before both, and its time."""

    def timeless(path: Path) -> tuple[int, int, int] | None:
        with suppress(OSError):
            return path.stat().st_dev, path.stat().st_ino, 0
        return None

    def stat(descriptor: int) -> SimpleNamespace:
        status = fstat(descriptor)
        return SimpleNamespace(st_dev=status.st_dev, st_ino=status.st_ino, st_ctime_ns=0)

    def started(number: int) -> Callable[[Claims], Claims]:
        ref, result = (
            ClaimRef("default", f"c{number}", f"u{number}"),
            Result("r", "n", "gpu-shared"),
        )
        return lambda now: now.started(ref, [replace(result, shares=1)], OFFERS)

    fstat = os.fstat
    with TemporaryDirectory(dir="/var/tmp") as name:  # in memory, inodes do not come back
        one, other = (ClaimStore(Path(name), "boot", lambda: Claims("boot")) for _ in range(2))
        with monkeypatch.context() as patch:
            patch.setattr("gpuplugin.daemon.dra.claimstore.identity", timeless)
            patch.setattr(os, "fstat", stat)
            one.change(started(1))
            for number in (2, 3):
                other.change(started(number))
            assert set(one.claims.by_uid) == {"u1", "u2", "u3"}


@pytest.mark.parametrize("odd", ["", "[]", '{"annotations": 1}', "[" * 100_000])
def test_a_spec_of_nobody_keeps_no_claim_from_being_found(
    driver: Driver, tmp_path: Path, cluster: Cluster, odd: str
) -> None:
    claim = cluster.allocate("u-1")
    held = driver.prepare(claim)
    driver.spec("odd").write_text(odd)
    (driver.folder / FILE).unlink()
    assert Driver(tmp_path, cluster).prepare(claim) == held


def test_a_time_slice_is_set_kept_over_a_restart_and_undone(
    tmp_path: Path, cluster: Cluster
) -> None:
    driver = Driver(tmp_path, cluster)
    first, plain = cluster.allocate("u-1", interval="Long"), cluster.allocate("u-2")
    driver.prepare(first)
    assert driver.time_slices == {"GPU-gpu-shared": TimeSliceLevel.LONG}
    driver.prepare(plain)
    with pytest.raises(ClaimError, match="time slice is Long for claim default/u-1"):
        driver.prepare(cluster.allocate("u-3", interval="Short"))
    after = Driver(tmp_path, cluster)
    after.keeper.restore()
    assert after.time_slices == {"GPU-gpu-shared": TimeSliceLevel.LONG}
    after.keeper.unprepare(named(first))
    assert after.time_slices == {}
    after.prepare(cluster.allocate("u-4", interval="Short"))
    assert after.time_slices == {"GPU-gpu-shared": TimeSliceLevel.SHORT}


def test_a_claim_whose_time_slice_cannot_be_set_leaves_nothing_behind(
    driver: Driver, cluster: Cluster
) -> None:
    driver.refusal = "Insufficient Permissions"
    with pytest.raises(ClaimError, match="cannot be set: GPU GPU-gpu-shared: Insuff"):
        driver.prepare(cluster.allocate("u-1", interval="Long"))
    assert driver.remembered.by_uid == {}
    assert driver.time_slices == {}
    assert not driver.spec("u-1").exists()


STEPS = ("open", "os.rename", "os.remove")
CRASHED, DONE = 9, 0


def crash_at(step: int, folder: Path, work: ClaimKeeper, claim: pb.Claim, *, undo: bool) -> int:
    """Do the work in a process that is gone before its `step`-th step on files; its exit status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = step

    def before(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in STEPS and str(arguments[0]).startswith(str(folder)):
            left -= 1
            if left < 0:
                os._exit(CRASHED)

    sys.addaudithook(before)
    if undo:
        work.unprepare(named(claim))
    else:
        work.prepare(named(claim), NO_WAIT_S)
    os._exit(DONE)


@pytest.mark.parametrize("then", ["prepare", "unprepare"])
@pytest.mark.parametrize("during", ["prepare", "unprepare"])
def test_a_crash_between_any_two_steps_leaves_nothing_behind(
    tmp_path: Path, cluster: Cluster, during: str, then: str
) -> None:
    claim, other = cluster.allocate("u-1", "gpu-whole"), cluster.allocate("u-2", "gpu-whole")
    status, step = CRASHED, 0
    while status == CRASHED:
        folder = tmp_path / str(step)
        driver = Driver(folder, cluster)
        driver.prepare(cluster.allocate("u-0"))  # without a file, specs tell of all claims
        if during == "unprepare":
            driver.prepare(claim)
        status = crash_at(step, folder, driver.keeper, claim, undo=during == "unprepare")
        after = Driver(folder, cluster)
        after.keeper.restore()
        if then == "prepare":
            assert len(after.prepare(claim)) == 1
            assert after.spec("u-1").exists()
            with pytest.raises(ClaimError, match="has all of it"):
                after.prepare(other)
        after.keeper.unprepare(named(claim))
        assert not after.spec("u-1").exists()
        assert len(after.prepare(other)) == 1
        assert set(after.remembered.by_uid) == {"u-0", "u-2"}
        step += 1
    assert status == DONE
    assert step > 5, "there were fewer steps than the work has"


def test_the_health_stream_sends_every_device_to_each_watcher(
    driver: Driver,
) -> None:
    sick = Offer(
        "gpu-sick", ("GPU-sick", None), "nvidia.com/gpu", 4, None,
        taints=(Taint(f"{DRIVER}/xid", "79", "NoSchedule"),),
    )  # fmt: skip
    message = health_message([OFFERS["gpu-whole"], sick], "node-1", 1_700_000_000)
    devices = pb.NodeWatchResourcesResponse.FromString(message).devices
    assert [(one.device.device_name, one.health, one.message) for one in devices] == [
        ("gpu-whole", pb.HEALTHY, ""),
        ("gpu-sick", pb.UNHEALTHY, "xid 79"),
    ]
    assert {one.device.pool_name for one in devices} == {"node-1"}
    assert {one.health_check_timeout_seconds for one in devices} == {30}
    with TemporaryDirectory(prefix="gp") as folder:
        plugin = DraPlugin(driver.keeper)
        server = ENGINES["fast"]().serve(Path(folder) / "dra.sock", plugin.services())
        plugin.health.publish(message)
        try:
            with Connection(Path(folder) / "dra.sock", TIMEOUT_S) as connection:
                call = connection.start(HEALTH, b"", streaming=True)
                assert connection.next_response(call) == message
        finally:
            plugin.health.end_streams()
            server.stop(1)
