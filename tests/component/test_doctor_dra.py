"""What the doctor reads of an API server, as a user who may read all, and as one who may not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gpuplugin.doctor.collect.cluster import collect_cluster
from sim.apiserver import NODES, ApiServer, Key
from sim.scheduler.claims import create_class
from tests.component.dranode import DRIVER, NODE, dra_flags
from tests.component.running import PluginProcess, settings_for
from tests.component.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.component.conftest import MakeHardware

GPU = "nvidia.com/gpu"
NODE_INFO = (
    "architecture", "bootID", "containerRuntimeVersion", "kernelVersion", "kubeProxyVersion",
    "machineID", "operatingSystem", "osImage", "systemUUID",
)  # fmt: skip
"""What the API requires of a node's information."""


@pytest.fixture
def server(kubelet_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with ApiServer([NODE]) as running:
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig(kubelet_dir)))
        yield running


def test_slices_classes_gates_and_rights_are_read_and_nothing_is_stored(
    server: ApiServer, kubelet_dir: Path, make_hardware: MakeHardware
) -> None:
    create_class(server.store, DRIVER, GPU, "mine")
    about = dict.fromkeys(NODE_INFO, "x") | {"kubeletVersion": "v1.36.2"}
    status = {"allocatable": {GPU: "0"}, "nodeInfo": about}
    server.store.patch(Key(NODES, NODE), {"status": status}, status=True)
    settings = settings_for(kubelet_dir, dra_flags(kubelet_dir))
    with PluginProcess(settings, make_hardware(2).backend):
        found = eventually(
            lambda: facts if (facts := collect_cluster(DRIVER, NODE)).slices else None
        )
        (one,) = found.slices or ()
        assert sorted(one.replicas.values()) == [10, 10]
        assert (one.count, one.tainted) == (1, frozenset())
        (made,) = found.classes or ()
        assert (made.name, made.extended_resource) == ("mine", GPU)
        assert made.selects(DRIVER)
        assert found.gates_off == frozenset()
        assert found.rights is not None
        assert all(found.rights.values())
        assert found.allocatable == {GPU: "0"}
        assert found.kubelet_version == "v1.36.2"
        assert found.denied == ()
        version = server.store.version
        collect_cluster(DRIVER, NODE)
        assert server.store.version == version


def test_what_a_user_may_not_read_is_said(server: ApiServer) -> None:
    server.denied |= {("list", "deviceclasses"), ("create", "resourceslices")}
    found = collect_cluster(DRIVER, NODE)
    assert (found.classes, found.gates_off, found.slices) == (None, None, ())
    assert [one.partition(":")[0] for one in found.denied] == ["DeviceClasses", "gates"]
    assert found.rights is not None
    assert not found.rights["create resourceslices"]


def test_gates_that_are_off_are_named(server: ApiServer) -> None:
    server.store.off.add("DRAConsumableCapacity")
    assert collect_cluster(DRIVER, NODE).gates_off == frozenset({"DRAConsumableCapacity"})


def test_without_a_cluster_the_reason_is_told(
    kubelet_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubelet_dir / "nothing"))
    monkeypatch.setenv("HOME", str(kubelet_dir))
    assert collect_cluster(DRIVER, NODE).problem
    with ApiServer([NODE]) as gone:
        monkeypatch.setenv("KUBECONFIG", str(gone.kubeconfig(kubelet_dir)))
    assert collect_cluster(DRIVER, NODE).problem
