"""A whole node with DRA: the daemon, a kubelet, an API server and a scheduler, all simulated.

Pods are unmodified: they ask for `nvidia.com/gpu`, as with the device plugin.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from gpuplugin.cli.health import ask_daemon
from gpuplugin.daemon.serving.sockets import KubeletDirs
from gpuplugin.linesocket import ControlError
from sim.apiserver import CLAIMS, CLASSES, SLICES, ApiServer, Key, Selection
from sim.gpu.faults import EccFault, Recovery, XidFault
from sim.kubelet import Container, Kubelet, Phase, Pod, PodClaim, simple_pod
from sim.node.scenario import Scenario
from sim.virtual.run import VirtualRun
from tests.component.cluster import devices, slices
from tests.component.dranode import DRIVER, NODE, dra_flags
from tests.component.running import Hardware, PluginProcess, settings_for
from tests.component.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sim.kubelet import NodeView
    from tests.component.conftest import MakeHardware

GPU = "nvidia.com/gpu"
GPUS, SHARES = 8, 10
CLASSES_FILE = Path(__file__).parents[2] / "deploy/kustomize/components/dra/deviceclasses.yaml"
"""As they are shipped."""


class Node:
    """A simulated node; `plugin` makes one more instance of the daemon."""

    def __init__(self, folder: Path, server: ApiServer, kubelet: Kubelet) -> None:
        self.folder = folder
        self.server = server
        self.kubelet = kubelet

    def plugin(
        self, hardware: Hardware, config: dict[str, object] | None = None, **flags: str
    ) -> PluginProcess:
        path = None
        if config is not None:
            path = self.folder / "config.yaml"
            path.write_text(yaml.safe_dump({"version": "v1", **config}))
        given = dra_flags(self.folder, **flags)
        settings = settings_for(self.folder, given, config_file=path)
        return PluginProcess(settings, hardware.backend)

    def published(self, count: int) -> None:
        eventually(lambda: len(devices(self.server)) == count and self.view().drivers)

    def view(self) -> NodeView:
        return self.kubelet.view()

    def create(self, name: str, count: int = 1) -> None:
        self.kubelet.create_pod(simple_pod(name, {GPU: count}))

    def running(self) -> list[str]:
        pods = self.view().pods.values()
        return [one.pod.name for one in pods if one.status.phase is Phase.RUNNING]

    def uuids(self, name: str) -> tuple[str, ...]:
        return self.view().pods[f"default/{name}"].status.uuids

    def shares_by_gpu(self) -> Counter[str]:
        return Counter(uuid for name in self.running() for uuid in self.uuids(name))

    def taints(self) -> dict[str, list[str]]:
        """Values of taints by the UUID of the GPU, without those that have none."""
        return {
            one["attributes"]["uuid"]["string"]: [taint["value"] for taint in one["taints"]]
            for one in devices(self.server)
            if one.get("taints")
        }

    def failures(self) -> list[str]:
        """Why pods that have their claims do not run."""
        pods = self.view().pods.values()
        return [one.status.message for one in pods if one.status.reason.startswith("Failed")]


@pytest.fixture
def node(kubelet_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    with ApiServer([NODE]) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(kubelet_dir)))
        for body in yaml.safe_load_all(CLASSES_FILE.read_text()):
            server.store.create(Key(CLASSES, body["metadata"]["name"]), body)
        with Kubelet(kubelet_dir, store=server.store, node=NODE) as kubelet:
            yield Node(kubelet_dir, server, kubelet)


def test_eighty_unmodified_pods_run_on_eight_gpus_and_one_more_waits(
    node: Node, hardware: Hardware
) -> None:
    with node.plugin(hardware):
        node.published(GPUS)
        for number in range(GPUS * SHARES + 1):
            node.create(f"pod-{number}")
        eventually(lambda: len(node.running()) == GPUS * SHARES, 60)
        assert node.shares_by_gpu() == dict.fromkeys(hardware.uuids, SHARES)
        (waiting,) = [one for one in node.view().pods.values() if not one.status.devices]
        assert "1 cannot allocate all claims" in waiting.status.message
        specs = list((node.folder / "cdi").glob("*.json"))
        assert len(specs) == GPUS * SHARES
        node.kubelet.delete_pod("pod-3")
        eventually(lambda: waiting.pod.name in node.running())
        for name in node.running():
            node.kubelet.delete_pod(name)
        eventually(lambda: not node.view().pods, 60)
        assert list((node.folder / "cdi").glob("*.json")) == []
        assert node.server.store.select(Selection(CLAIMS))[1] == []


def test_gpus_have_as_many_shares_as_the_file_says(node: Node, make_hardware: MakeHardware) -> None:
    hardware = make_hardware(3)
    resources = [
        {"name": GPU, "devices": [0], "replicas": 4},
        {"name": GPU, "devices": [1], "replicas": 2},
    ]
    with node.plugin(hardware, {"sharing": {"timeSlicing": {"resources": resources}}}):
        node.published(3)
        for number in range(8):
            node.create(f"pod-{number}")
        eventually(lambda: len(node.running()) == 7)
        shares = dict(zip(hardware.uuids, (4, 2, 1), strict=True))
        assert node.shares_by_gpu() == shares


def test_two_are_two_gpus(node: Node, make_hardware: MakeHardware) -> None:
    hardware = make_hardware(2)
    with node.plugin(hardware):
        node.published(2)
        node.create("two", 2)
        node.create("three", 3)
        eventually(lambda: node.running() == ["two"])
        assert set(node.uuids("two")) == set(hardware.uuids)
        eventually(lambda: node.view().pods["default/three"].status.reason == "Unschedulable")


@pytest.mark.parametrize(
    ("name", "runs"), [("shared.gpu.gpuplugin.dev", True), ("whole.gpu.gpuplugin.dev", False)]
)
def test_a_claim_of_a_shipped_class_shows_the_health_of_its_gpu(
    node: Node, make_hardware: MakeHardware, name: str, runs: bool
) -> None:
    hardware = make_hardware(1)
    request = {"name": "gpu", "exactly": {"deviceClassName": name}}
    body: dict[str, object] = {"spec": {"devices": {"requests": [request]}}}
    node.server.store.create(Key(CLAIMS, "mine", "default"), body)
    pod = Pod("one", (Container("main", {}, ("gpu",)),), claims=(PodClaim("gpu", "mine"),))
    with node.plugin(hardware):
        node.published(1)
        status = node.kubelet.run_pod(pod, DEADLINE_S)
        assert (status.phase is Phase.RUNNING) is runs
        if not runs:
            return

        def health() -> list[tuple[str, str]]:
            return [(one.name, one.health) for one in node.view().health["default/one"]]

        eventually(lambda: health() == [("claim:gpu", "Healthy")])
        hardware.xid(0, 79)
        eventually(lambda: health() == [("claim:gpu", "Unhealthy")])
        assert "79" in node.view().health["default/one"][0].message


def test_a_faulted_gpu_gets_no_new_pods_and_keeps_those_it_has(
    node: Node, make_hardware: MakeHardware
) -> None:
    hardware = make_hardware(2)
    first, second = hardware.uuids
    with node.plugin(hardware, health_quiet_period="1s"):
        node.published(2)
        node.create("before")
        eventually(lambda: node.running() == ["before"])
        (used,) = node.uuids("before")
        hardware.xid(hardware.uuids.index(used), 79)
        eventually(lambda: "79" in node.taints().get(used, ()))
        assert node.taints().keys() == {used}
        node.create("during")
        eventually(lambda: set(node.running()) == {"before", "during"})
        assert {*node.uuids("before"), *node.uuids("during")} == {first, second}
        node.create("both", 2)
        eventually(lambda: node.view().pods["default/both"].status.reason == "Unschedulable")
        hardware.recover(hardware.uuids.index(used))
        eventually(lambda: node.taints() == {})
        eventually(lambda: "both" in node.running())


def test_slices_are_back_within_two_seconds_of_a_kubelets_restart(
    node: Node, hardware: Hardware
) -> None:
    with node.plugin(hardware):
        node.published(GPUS)
        node.create("before")
        eventually(lambda: node.running() == ["before"])
        names = {one["metadata"]["name"] for one in slices(node.server)}
        version = node.server.store.version
        node.kubelet.restart()
        gone_s = back_s = 0.0
        deadline_s = time.monotonic() + DEADLINE_S
        while not back_s and time.monotonic() < deadline_s:
            node.server.store.wait(version, 0.5)
            version, changes = node.server.store.changes(version)
            for change in changes:
                if change.resource is SLICES and change.after is None:
                    gone_s, back_s = time.monotonic(), 0.0
                elif change.resource is SLICES and gone_s and change.before is None:
                    back_s = time.monotonic()
        assert back_s
        assert back_s - gone_s < 2.0
        assert names == {one["metadata"]["name"] for one in slices(node.server)}
        eventually(lambda: node.view().drivers)
        node.create("after")
        eventually(lambda: set(node.running()) == {"before", "after"})


def test_no_prepare_fails_while_one_instance_follows_another(
    node: Node, hardware: Hardware
) -> None:
    """An upgrade with maxSurge 1: the new one serves before the old one ends."""
    stop = threading.Event()
    made: list[int] = []

    def create() -> None:
        while not stop.wait(0.05) and len(made) < GPUS * SHARES:
            node.create(f"pod-{len(made)}")
            made.append(1)

    with node.plugin(hardware) as old, ExitStack() as stack:
        node.published(GPUS)
        new = stack.enter_context(node.plugin(hardware))
        eventually(lambda: len(node.view().drivers.get(DRIVER, ())) == 2)
        creator = threading.Thread(target=create)
        creator.start()
        eventually(lambda: len(node.running()) > 5)
        old.stop()
        eventually(lambda: len(node.view().drivers.get(DRIVER, ())) == 1)
        enough = len(made) + 10
        eventually(lambda: len(made) >= min(enough, GPUS * SHARES))
        stop.set()
        creator.join()
        eventually(lambda: len(node.running()) == len(made), 60)
        assert node.failures() == []
        assert new.metric("gpuplugin_dra_claims_total", result="error") == 0
        node.kubelet.delete_pod("pod-0")
        eventually(lambda: "pod-0" not in node.running())
        assert len(devices(node.server)) == GPUS, "slices stay"


def test_a_restart_and_a_reload_offer_what_pods_hold_as_before(
    node: Node, hardware: Hardware
) -> None:
    """Of GPUs that pods have by claims the scheduler knows: they are not withheld."""
    with node.plugin(hardware):
        node.published(GPUS)
        for number in range(3):
            node.create(f"pod-{number}")
        eventually(lambda: len(node.running()) == 3)
    with node.plugin(hardware) as plugin:
        eventually(lambda: "3 claims" in str(plugin.get("/ready").parts["claims"]["text"]))
        plugin.reload()
        reloads = {"result": "accepted"}
        eventually(lambda: plugin.metric("gpuplugin_config_reloads_total", **reloads) == 1)
        node.create("one-more")
        eventually(lambda: len(node.running()) == 4)
        assert node.taints() == {}
        assert "not offered" not in str(plugin.get("/ready").parts["inventory"]["text"])


def test_a_pod_that_is_deleted_while_its_driver_is_away_ends_later(
    node: Node, make_hardware: MakeHardware
) -> None:
    hardware = make_hardware(1)
    with node.plugin(hardware):
        node.published(1)
        node.create("one")
        eventually(lambda: node.running() == ["one"])
    node.kubelet.delete_pod("one")
    eventually(lambda: node.view().pods["default/one"].status.phase is Phase.TERMINATING)
    assert len(list((node.folder / "cdi").glob("*.json"))) == 1
    with node.plugin(hardware):
        eventually(lambda: not node.view().pods)
        assert list((node.folder / "cdi").glob("*.json")) == []


def test_the_same_faults_taint_the_same_in_virtual_time(
    node: Node, make_hardware: MakeHardware
) -> None:
    """Shares in all, and those on GPUs without a taint, after each change."""
    steps: list[dict[str, object]] = [
        {"kind": "xid", "xid": 31}, {"kind": "xid", "xid": 79}, {"kind": "recover"},
        {"kind": "ecc", "uncorrectable": True}, {"kind": "recover"},
    ]  # fmt: skip
    flags = {"--health-quiet-period": "1s", "--health-probe-interval": "200ms"}
    scenario = Scenario.model_validate(
        {
            "gpus": [{"model": "h100-sxm5-80gb", "count": 3}],
            "faults": [
                {"at_s": 20 * (number + 1), "gpu": 1, "what": what}
                for number, what in enumerate(steps)
            ],
            "allocation": "dra",
        }
    )
    lines: list[str] = []
    VirtualRun(scenario, settings_for(node.folder, flags), 200.0, lines.append).run()
    facts = [json.loads(line) for line in lines]
    expected = unrepeated(
        (fact["capacity"], fact["allocatable"]) for fact in facts if fact["kind"] == "slices"
    )
    hardware = make_hardware(3)
    seen: list[tuple[int, int]] = []
    node.server.store.listeners.append(lambda: seen.append(shares(node)))
    with node.plugin(hardware, health_quiet_period="1s", health_probe_interval="200ms"):
        node.published(3)
        for fault in scenario.faults:
            what = fault.what
            assert isinstance(what, XidFault | EccFault | Recovery)
            hardware.let(1, what)
            sick = what.kind == "ecc" or (what.kind == "xid" and what.xid == 79)
            eventually(lambda: shares(node) == ((30, 20) if sick else (30, 30)))  # noqa: B023
        assert unrepeated(one for one in seen if one[0]) == expected
    assert expected == [(30, 30), (30, 20), (30, 30), (30, 20), (30, 30)]


def shares(node: Node) -> tuple[int, int]:
    published = [
        (int(one["capacity"]["shares"]["value"]), not one.get("taints"))
        for one in devices(node.server)
    ]
    return sum(count for count, _ in published), sum(count for count, well in published if well)


def unrepeated(values: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    return [value for value, _ in groupby(values)]


# Who has what, as with the device plugin


def held_by(plugin: PluginProcess) -> dict[str, set[str]]:
    """Replicas by pod, as `gpuplugin_replica_info` has them."""
    found: dict[str, set[str]] = {}
    for one in plugin.samples("gpuplugin_replica_info"):
        found.setdefault(one.labels["pod"], set()).add(
            f"{one.labels['gpu']}::{one.labels['replica']}"
        )
    return found


def test_metrics_page_and_top_show_which_pod_has_which_share(
    node: Node, make_hardware: MakeHardware
) -> None:
    hardware = make_hardware(2)
    with node.plugin(hardware, metrics_interval="100ms") as plugin:
        node.published(2)
        names = [f"pod-{number}" for number in range(3)]
        for name in names:
            node.create(name)
        node.create("two", 2)
        eventually(lambda: len(node.running()) == 4)
        wanted = {name: len(node.uuids(name)) for name in (*names, "two")}
        eventually(lambda: {pod: len(one) for pod, one in held_by(plugin).items()} == wanted)
        assert len(set().union(*held_by(plugin).values())) == 5, "no two have one replica"
        allocated = plugin.metric("gpuplugin_gpu_replicas_allocated")
        assert allocated == sum(plugin.metric("gpuplugin_pod_replicas", pod=one) for one in wanted)
        page = plugin.get("/").body
        assert all(f"default/{name}" in page for name in wanted)

        dirs = KubeletDirs(node.folder)
        calls = ask_daemon(dirs, {"page": True})["calls"]
        assert isinstance(calls, list)
        assert {one["resource"].partition("-extended-")[0] for one in calls} == {
            f"default/{name}" for name in wanted
        }
        assert not [one for one in calls if one["error"]]

        node.kubelet.delete_pod("two")
        eventually(lambda: held_by(plugin).keys() == set(names))


def test_a_claim_that_was_prepared_again_is_counted_once(
    node: Node, make_hardware: MakeHardware
) -> None:
    """The kubelet lists its device twice then."""
    with node.plugin(make_hardware(1), metrics_interval="100ms") as plugin:
        node.published(1)
        node.create("one")
        eventually(lambda: node.running() == ["one"])
        eventually(lambda: plugin.metric("gpuplugin_gpu_replicas_allocated") == 1)
        prepared = plugin.metric("gpuplugin_dra_claims_total", operation="prepare")
        for _ in range(2):
            node.kubelet.restart()
            eventually(lambda: node.view().drivers)
            node.kubelet.renew_sandbox("one")
        eventually(
            lambda: plugin.metric("gpuplugin_dra_claims_total", operation="prepare") > prepared
        )
        eventually(lambda: plugin.samples("gpuplugin_replica_info"))
        assert len(plugin.samples("gpuplugin_replica_info")) == 1
        assert plugin.metric("gpuplugin_gpu_replicas_allocated") == 1
        assert plugin.metric("gpuplugin_pod_replicas", pod="one") == 1


def test_a_gpu_that_a_claim_holds_is_not_forgotten_without_the_kubelets_list(
    node: Node, make_hardware: MakeHardware
) -> None:
    hardware = make_hardware(2)
    with node.plugin(hardware, pod_metrics="false"):
        node.published(2)
        node.create("one")
        eventually(lambda: node.running() == ["one"])
        (uuid,) = node.uuids("one")
        hardware.unplug(hardware.uuids.index(uuid))

        def answer() -> str:
            try:
                ask_daemon(KubeletDirs(node.folder), {"forget": uuid})
            except ControlError as error:
                return "" if "responds" in str(error) else str(error)
            return "forgotten"

        assert "default/one-extended-resources-" in eventually(answer)
