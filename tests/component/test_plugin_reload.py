"""Changes of the configuration while the plugin runs, over real sockets."""

from __future__ import annotations

import os
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING

import grpc
import pytest

from gpuplugin.daemon import app
from gpuplugin.daemon.plans import node_plan, remove_unwanted_specs
from gpuplugin.doctor.collect.host import HostRoot
from gpuplugin.doctor.collect.plugin import collect_plugin
from hal import Link, LinkKind
from sim.kubelet.pods import Phase, simple_pod
from tests.component.fakedriver import FakeDriver
from tests.component.running import (
    RESOURCE,
    PluginProcess,
    allocate_request,
    settings_for,
    status_of,
)
from tests.component.waiting import DEADLINE_S, eventually
from tests.unit.doctor.nodes import verdict, well

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gpuplugin.config.settings import Settings
    from sim.kubelet import Kubelet
    from tests.component.conftest import MakeHardware
    from tests.component.following import Follow
    from tests.component.running import Hardware

MODEL = "h100-sxm5-80gb"
MIG = {
    "gpus": [
        {"model": MODEL, "mig": ["1g.10gb"] * 7},
        {"model": MODEL, "mig": ["3g.40gb", "2g.20gb", "1g.10gb"]},
        {"model": MODEL},
    ]
}
"""The shipped scenario `mig`."""


def shared(
    replicas: object, *, policy: str = "distributed", more: str = "", entry: str = ""
) -> str:
    """A file that shares every GPU; requests for more than one are granted."""
    return (
        f"flags: {{plugin: {{sharedDevicesAllocationPolicy: {policy}}}}}\n"
        f"sharing: {{timeSlicing: {{{more} resources: "
        f"[{{name: gpu, replicas: {replicas}{entry}}}]}}}}\n"
    )


def mig(strategy: str, sharing: str = "") -> str:
    text = f"flags: {{migStrategy: {strategy}}}\n"
    return f"{text}sharing: {{timeSlicing: {{resources: [{sharing}]}}}}\n" if sharing else text


def wait(kubelet: Kubelet, amounts: Mapping[str, int]) -> None:
    """Until the kubelet can hand out exactly this."""
    kubelet.wait_until(
        lambda node: (
            {name: one.allocatable for name, one in node.amounts.items() if one.capacity}
            == dict(amounts)
        ),
        DEADLINE_S,
    )


def gpus_of(device_ids: Sequence[str]) -> Counter[str]:
    return Counter(one.partition("::")[0] for one in device_ids)


# Replicas and names


def test_fewer_replicas_and_more_again(
    kubelet: Kubelet, make_hardware: MakeHardware, follow: Follow
) -> None:
    hardware = make_hardware(2)
    plugin = follow(hardware.backend, shared(10))
    wait(kubelet, {RESOURCE: 20})
    sockets = plugin.sockets()
    plugin.rewrite(shared(4))
    wait(kubelet, {RESOURCE: 8})
    left = {one for gpu in range(2) for one in hardware.replicas(gpu, 4)}
    assert set(kubelet.view().devices[RESOURCE]) == left
    plugin.rewrite(shared(12))
    wait(kubelet, {RESOURCE: 24})
    assert plugin.sockets() == sockets
    assert plugin.metric("gpuplugin_registrations_total", result="accepted") == 1


def test_renames_and_back(kubelet: Kubelet, make_hardware: MakeHardware, follow: Follow) -> None:
    plugin = follow(make_hardware(2).backend, shared(4))
    wait(kubelet, {RESOURCE: 8})
    for text, name in (
        (shared(4, more="renameByDefault: true,"), f"{RESOURCE}.shared"),
        (shared(4, entry=", rename: small"), "nvidia.com/small"),
    ):
        plugin.rewrite(text)
        wait(kubelet, {name: 8})
        eventually(lambda: len(plugin.sockets()) == 1)
        eventually(lambda: plugin.ready)
        assert plugin.devices() == 0
        assert kubelet.run_pod(simple_pod("one", {name: 1})).phase is Phase.RUNNING
        kubelet.delete_pod("one")
    plugin.rewrite(shared(4))
    wait(kubelet, {RESOURCE: 8})


# Policies


def test_packed_fills_a_gpu_and_distributed_evens_out(
    kubelet: Kubelet, make_hardware: MakeHardware, follow: Follow
) -> None:
    plugin = follow(make_hardware(2).backend, shared(4, policy="packed"))
    wait(kubelet, {RESOURCE: 8})

    def run(name: str) -> str:
        (grant,) = kubelet.run_pod(simple_pod(name, {RESOURCE: 1})).grants
        return grant.envs["NVIDIA_VISIBLE_DEVICES"]

    packed = {run(f"packed-{number}") for number in range(3)}
    assert len(packed) == 1
    plugin.rewrite(shared(4, policy="distributed"))
    others = [run(f"distributed-{number}") for number in range(3)]
    assert packed.isdisjoint(others)
    assert plugin.metric("gpuplugin_preferences_total", method="plain") == 6


def free_replicas(hardware: Hardware) -> tuple[str, ...]:
    """Much is free of GPU 1 and little of GPU 0."""
    return (*hardware.replicas(0, 6)[5:], *hardware.replicas(1, 6))


def test_which_gpus_a_request_for_two_gets(make_hardware: MakeHardware, follow: Follow) -> None:
    """`packed` has no more than one to give of the fuller GPU; `distributed` goes by history."""
    hardware = make_hardware(2)
    free = free_replicas(hardware)
    plugin = follow(hardware.backend, "version: v1\n", "none")
    for policy, distinct in (
        ("distributed", 1),
        ("packed", 2),
        ("spread", 2),
        ("spread-strict", 2),
    ):
        plugin.rewrite(shared(6, policy=policy))
        chosen = plugin.prefer(free, 2)
        assert len(gpus_of(chosen)) == distinct, policy
        # The first choice tells packed from spread.
        first = hardware.uuids[0 if policy == "packed" else 1]
        assert chosen[0].partition("::")[0] == first, policy


def test_a_pod_with_two_replicas_has_two_gpus(
    kubelet: Kubelet, make_hardware: MakeHardware, follow: Follow
) -> None:
    plugin = follow(make_hardware(2).backend, shared(4, policy="spread"))
    wait(kubelet, {RESOURCE: 8})
    for number in range(4):
        if number == 2:
            plugin.rewrite(shared(4, policy="spread-strict"))
        status = kubelet.run_pod(simple_pod(f"pod-{number}", {RESOURCE: 2}))
        assert status.phase is Phase.RUNNING
        assert set(gpus_of(status.grants[0].device_ids).values()) == {1}


def test_strictly_spread_refuses_two_replicas_of_a_gpu_and_only_that(
    make_hardware: MakeHardware, follow: Follow
) -> None:
    hardware = make_hardware(2)
    plugin = follow(hardware.backend, shared(4, policy="spread-strict"), "none")
    one, other = hardware.replicas(0)[:2]
    with pytest.raises(grpc.RpcError) as refused:
        plugin.call("Allocate", allocate_request((one, other)))
    assert status_of(refused.value) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        (
            f'invalid allocation request for "{RESOURCE}": invalid request: 2 replicas must be on '
            f"distinct GPUs (policy spread-strict); found 2 on {hardware.uuids[0]}"
        ),
    )
    plugin.call("Allocate", allocate_request((one, hardware.replicas(1)[0])))
    plugin.call("Allocate", allocate_request((one,), (other,)))
    # What is strict is the policy that is in force now.
    plugin.rewrite(shared(4, policy="spread"))
    plugin.call("Allocate", allocate_request((one, other)))


# Whole GPUs


class Linked(FakeDriver):
    """Four GPUs, of which 0 and 3, and 1 and 2, are linked."""

    def __init__(self) -> None:
        super().__init__(4)

    def links(self) -> Mapping[tuple[str, str], Link]:
        return {
            (one.uuid, other.uuid): Link(
                LinkKind.SAME_CPU, 4 if one.index + other.index == 3 else 0
            )
            for one, other in permutations(self.listed, 2)
        }


def test_a_request_for_two_whole_gpus_gets_a_linked_pair(kubelet: Kubelet, follow: Follow) -> None:
    driver = Linked()
    plugin = follow(driver, "version: v1\n")
    wait(kubelet, {RESOURCE: 4})
    index = {gpu.uuid: gpu.index for gpu in driver.listed}
    pairs = set()
    for name in ("one", "two"):
        (grant,) = kubelet.run_pod(simple_pod(name, {RESOURCE: 2})).grants
        pairs.add(frozenset(index[one] for one in grant.device_ids))
    assert pairs == {frozenset({0, 3}), frozenset({1, 2})}
    assert plugin.metric("gpuplugin_preferences_total", method="exact") >= 1
    assert plugin.metric("gpuplugin_preferences_total", method="plain") == 0


def test_preferences_are_counted_by_method_and_resource(follow: Follow) -> None:
    driver = Linked()
    plugin = follow(driver, "version: v1\n", "none")
    uuids = [gpu.uuid for gpu in driver.listed]

    def counted(method: str) -> float:
        return plugin.metric("gpuplugin_preferences_total", resource=RESOURCE, method=method)

    for size in (1, 2, 4):
        assert len(plugin.prefer(uuids, size)) == size
    assert (counted("exact"), counted("plain")) == (3, 0)
    plugin.rewrite(shared(2, policy="spread"))
    plugin.prefer([f"{uuids[0]}::0", f"{uuids[1]}::0"], 1)
    assert (counted("exact"), counted("plain")) == (3, 1)


# MIG

MIXED = {
    RESOURCE: 1,
    "nvidia.com/mig-1g.10gb": 8,
    "nvidia.com/mig-2g.20gb": 1,
    "nvidia.com/mig-3g.40gb": 1,
}


def test_mig_strategies_while_it_runs(
    kubelet: Kubelet, make_hardware: MakeHardware, follow: Follow
) -> None:
    plugin = follow(make_hardware(1, **MIG).backend, mig("none"))
    wait(kubelet, {RESOURCE: 3})
    plugin.rewrite(mig("mixed"))
    wait(kubelet, MIXED)
    (grant,) = kubelet.run_pod(simple_pod("slice", {"nvidia.com/mig-2g.20gb": 1})).grants
    assert grant.envs["NVIDIA_VISIBLE_DEVICES"].startswith("MIG-")
    kubelet.delete_pod("slice")
    plugin.rewrite(mig("none"))
    wait(kubelet, {RESOURCE: 3})


def test_a_list_that_a_change_leaves_as_it_was_is_not_sent_again(
    kubelet: Kubelet, make_hardware: MakeHardware, follow: Follow
) -> None:
    plugin = follow(make_hardware(1, **MIG).backend, mig("mixed"))
    wait(kubelet, MIXED)
    before = {name: (kubelet.view().list_updates[name], plugin.updates(name)) for name in MIXED}
    sockets = plugin.sockets()
    changed = "nvidia.com/mig-1g.10gb"
    plugin.rewrite(mig("mixed", "{name: mig-1g.10gb, replicas: 3}"))
    wait(kubelet, {**MIXED, changed: 24})
    after = {name: (kubelet.view().list_updates[name], plugin.updates(name)) for name in MIXED}
    assert after[changed] == (before[changed][0] + 1, before[changed][1] + 1)
    assert {name: count for name, count in after.items() if name != changed} == {
        name: count for name, count in before.items() if name != changed
    }
    assert plugin.sockets() == sockets


def test_single_on_unlike_gpus_is_not_ready_until_the_file_is_good(
    kubelet: Kubelet, make_hardware: MakeHardware, follow: Follow
) -> None:
    plugin = follow(make_hardware(1, **MIG).backend, mig("single"))
    eventually(
        lambda: "MIG strategy single: GPUs 2 are not in MIG mode" in plugin.part("inventory")
    )
    assert not plugin.ready
    assert plugin.sockets() == ()
    assert kubelet.view().amounts == {}
    plugin.rewrite(mig("mixed"))
    wait(kubelet, MIXED)
    eventually(lambda: plugin.ready)


def test_single_on_unlike_gpus_keeps_what_is_served(
    kubelet: Kubelet, make_hardware: MakeHardware, follow: Follow
) -> None:
    plugin = follow(make_hardware(1, **MIG).backend, mig("mixed"))
    wait(kubelet, MIXED)
    eventually(lambda: plugin.ready)
    words = plugin.spoil(mig("single"))
    assert "the last good one stays in force: MIG strategy single" in words
    assert plugin.ready
    wait(kubelet, MIXED)


def test_single_on_like_gpus(kubelet: Kubelet, make_hardware: MakeHardware, follow: Follow) -> None:
    alike = {"gpus": [{"model": MODEL, "count": 2, "mig": ["3g.40gb", "3g.40gb"]}]}
    plugin = follow(make_hardware(1, **alike).backend, mig("single"))
    wait(kubelet, {RESOURCE: 4})
    plugin.rewrite(mig("single", "{name: gpu, replicas: 2}"))
    wait(kubelet, {RESOURCE: 8})


# Which GPUs


def test_gpus_are_included_and_excluded(
    kubelet: Kubelet, make_hardware: MakeHardware, follow: Follow
) -> None:
    hardware = make_hardware(4)
    plugin = follow(hardware.backend, "gpus: {include: ['0', '1']}\n")
    wait(kubelet, {RESOURCE: 2})
    plugin.rewrite(f"gpus: {{exclude: ['{hardware.uuids[2]}']}}\n")
    wait(kubelet, {RESOURCE: 3})
    assert set(kubelet.view().devices[RESOURCE]) == {hardware.uuids[at] for at in (0, 1, 3)}
    plugin.rewrite("gpus: {include: ['0', '3'], exclude: ['0']}\n")
    wait(kubelet, {RESOURCE: 1})
    assert set(kubelet.view().devices[RESOURCE]) == {hardware.uuids[3]}
    plugin.rewrite("gpus: {exclude: ['*']}\n")
    wait(kubelet, {})
    eventually(lambda: not plugin.ready)
    plugin.rewrite("version: v1\n")
    wait(kubelet, {RESOURCE: 4})
    eventually(lambda: plugin.ready)


def test_a_bad_gpu_that_is_left_out_is_no_concern_of_whoever_watches(
    kubelet: Kubelet, make_hardware: MakeHardware, follow: Follow
) -> None:
    hardware = make_hardware(2)
    plugin = follow(hardware.backend, "gpus: {exclude: ['1']}\n")
    wait(kubelet, {RESOURCE: 1})
    hardware.row_remap(1, failed=True)
    hardware.xid(1, 62)

    def seen() -> set[str]:
        return {one.labels["gpu"] for name in SEEN for one in plugin.samples(f"gpuplugin_{name}")}

    eventually(lambda: plugin.metric("gpuplugin_xid_events_total", gpu="1", xid="62") == 1)
    hardware.wait_for_probes(1, 3)
    assert seen() == {"0"}
    plugin.rewrite("version: v1\n")
    bad = {"gpu": "1", "state": "Unhealthy"}
    assert plugin.metric("gpuplugin_gpu_health", **bad) == 1, "it is watched all the same"
    eventually(lambda: plugin.metric("gpuplugin_gpu_row_remap", gpu="1", state="failed") == 1)
    plugin.rewrite("gpus: {exclude: ['1']}\n")
    assert seen() == {"0"}


SEEN = (
    "gpu_health",
    "gpu_health_transitions_total",
    "gpu_row_remap",
    "gpu_unhealthy_seconds_total",
)


# Files that cannot be used


BAD = (
    ("a: [", "config.yaml:"),
    (shared("many"), "sharing.timeSlicing.resources[0].replicas"),
    ("version: v2\n", "version: must be 'v1'"),
    ("any: |-\n" + indent(shared(4), "  "), "the configuration is under any (line 1)"),
    ("replicaCount: 3\n", "no key of a configuration"),
    (shared(70_000), "replicas to at most 6"),
    ("", "is empty; write {} to share nothing"),
    ("# later\n", "is empty; write {} to share nothing"),
    (None, "cannot be read: No such file"),
)


def test_a_bad_file_changes_nothing_and_a_good_one_is_taken_over_again(
    kubelet: Kubelet, make_hardware: MakeHardware, follow: Follow
) -> None:
    plugin = follow(make_hardware(1).backend, shared(10))
    wait(kubelet, {RESOURCE: 10})
    eventually(lambda: plugin.ready)
    updates, sockets = plugin.updates(), plugin.sockets()
    for text, words in BAD:
        told = plugin.spoil(text)
        assert words in told
        assert "a change was refused" in told
        assert plugin.ready
        assert (plugin.updates(), plugin.sockets()) == (updates, sockets)
        assert kubelet.run_pod(simple_pod("one", {RESOURCE: 1})).phase is Phase.RUNNING
        kubelet.delete_pod("one")
        wait(kubelet, {RESOURCE: 10})

        plugin.rewrite(shared(10))  # the very same: refused once, it is in force again
        assert plugin.metric("gpuplugin_config_last_reload_successful") == 1
        assert "a change was refused" not in plugin.part("config")
        assert plugin.updates() == updates
    plugin.rewrite(shared(3))
    wait(kubelet, {RESOURCE: 3})


def test_a_bad_file_after_another_is_told_anew(make_hardware: MakeHardware, follow: Follow) -> None:
    plugin = follow(make_hardware(1).backend, shared(2), "none")
    eventually(lambda: plugin.devices() == 2)
    assert "triple" in plugin.spoil("flags: {migStrategy: triple}\n")
    assert "quadruple" in plugin.spoil("flags: {migStrategy: quadruple}\n")
    assert plugin.devices() == 2

    folder = str(plugin.settings.daemon.kubelet_dir)
    told = collect_plugin(HostRoot(Path("/")), folder, "127.0.0.1:1")
    (problem,) = verdict("config-in-force", replace(well(), plugin=told)).problems
    assert "quadruple" in problem.what


@pytest.mark.parametrize("kind", ["pipe", "null device", "sparse"])
def test_what_is_no_file_holds_up_nothing(
    make_hardware: MakeHardware, follow: Follow, kind: str, tmp_path: Path
) -> None:
    plugin = follow(make_hardware(8).backend, shared(10))
    eventually(lambda: plugin.devices() == 80)
    fresh = tmp_path / "fresh"
    match kind:
        case "pipe":
            os.mkfifo(fresh)
        case "null device":
            fresh.symlink_to("/dev/null")
        case "sparse":
            with fresh.open("wb") as stream:
                stream.truncate(1024**3)
    before = plugin.metric("gpuplugin_config_reloads_total", result="refused")
    fresh.replace(plugin.file)
    eventually(lambda: plugin.metric("gpuplugin_config_reloads_total", result="refused") > before)
    assert plugin.devices() == 80
    assert plugin.get("/health").status == 200


@pytest.mark.parametrize("interval", ["0", "1h"])
def test_a_shorter_interval_of_probes_counts_at_once(
    hardware: Hardware, kubelet_dir: Path, interval: str
) -> None:
    flags = {"--health-probe-interval": interval, "--registration": "none"}

    def settings() -> Settings:
        return settings_for(kubelet_dir, flags)

    def probes() -> int:
        return sum(hardware.backend.probes.values())

    with PluginProcess(settings(), hardware.backend, settings) as plugin:
        eventually(lambda: plugin.ready)
        before = probes()
        flags["--health-probe-interval"] = "20ms"
        plugin.reload()
        eventually(lambda: probes() >= before + 2 * len(hardware.uuids))


# A driver that comes back meanwhile


class Gate:
    """Holds up the first call that comes once it is `shut`."""

    def __init__(self, function: Callable[[Settings], object]) -> None:
        self._function = function
        self.shut, self._passed, self._open = (threading.Event() for _ in range(3))

    def __call__(self, settings: Settings) -> object:
        result = self._function(settings)
        if self.shut.is_set() and not self._passed.is_set():
            self._passed.set()
            assert self._open.wait(DEADLINE_S)
        return result

    def wait(self) -> None:
        assert self._passed.wait(DEADLINE_S)

    def open(self) -> None:
        self._open.set()


def test_a_driver_that_comes_back_while_a_change_is_applied_does_not_undo_it(
    hardware: Hardware, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(remove_unwanted_specs)
    monkeypatch.setattr(app, "remove_unwanted_specs", gate)
    plugin = follow(hardware.backend, shared(2), "none", {"--health-blind-after": "200ms"})
    eventually(lambda: plugin.devices() == 16)
    gate.shut.set()
    plugin.swap(shared(4))
    gate.wait()
    hardware.driver_down()
    eventually(lambda: plugin.devices() == 0)
    hardware.driver_up()
    eventually(lambda: plugin.devices() > 0)
    gate.open()
    eventually(lambda: plugin.devices() == 32)


def test_a_change_while_a_driver_comes_back_is_not_undone(
    hardware: Hardware, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the old settings mean on the machine was found out before, and comes too late."""
    gate = Gate(node_plan)
    monkeypatch.setattr(app, "node_plan", gate)
    plugin = follow(hardware.backend, shared(2), "none", {"--health-blind-after": "200ms"})
    eventually(lambda: plugin.devices() == 16)
    hardware.driver_down()
    eventually(lambda: plugin.devices() == 0)
    gate.shut.set()
    hardware.driver_up()
    gate.wait()
    plugin.swap(shared(4))
    with suppress(AssertionError):  # it may come into force now, or has to wait
        eventually(plugin.reloads, 0.5)
    gate.open()
    eventually(plugin.reloads)
    eventually(lambda: plugin.devices() == 32)
