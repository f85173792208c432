"""Small parts of the benchmarks: turns, command lines of plugins, made-up GPUs, processes."""

from __future__ import annotations

import random
import subprocess
import sys
from importlib import import_module
from itertools import combinations

import pytest

from benchmarks import SUITES
from benchmarks.calls import Subject, in_turns
from benchmarks.devices import (
    TOPOLOGIES,
    allocate_request,
    healthy_ids,
    links_of,
    made_up_gpus,
    plugin_for,
    uuid_of,
)
from benchmarks.machine import cpu_s, processes_of, resident_mib, this_machine
from benchmarks.plugins import own_plugin, spec_from
from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb


def test_turns_give_each_subject_its_rounds_in_changing_order() -> None:
    order: list[str] = []

    def subject(name: str) -> Subject:
        def sample() -> list[float]:
            order.append(name)
            return [float(len(order))]

        return Subject(name, sample)

    shares: list[float] = []
    found = in_turns([subject(name) for name in "abc"], 20, random.Random(1), shares.append)
    assert {name: len(rounds) for name, rounds in found.items()} == {"a": 20, "b": 20, "c": 20}
    by_round = [tuple(order[at : at + 3]) for at in range(0, 60, 3)]
    assert {tuple(sorted(one)) for one in by_round} == {("a", "b", "c")}
    assert len(set(by_round)) > 3
    assert shares[-1] == 1


def test_a_plugin_is_a_name_and_a_command() -> None:
    spec = spec_from("nv=/bin/plugin --dir {kubelet_dir} 'a b'", frozenset({"nv"}))
    assert (spec.name, spec.private, spec.engine) == ("nv", True, None)
    assert spec.command == ("/bin/plugin", "--dir", "{kubelet_dir}", "a b")
    for wrong in ("nv", "nv=", "=cmd", "nv='open"):
        with pytest.raises(ValueError, match=r"NAME=COMMAND|quotation"):
            spec_from(wrong)
    with pytest.raises(ValueError, match="the kubelet of this machine"):
        spec_from("nv=/bin/plugin")


def test_our_own_plugin_runs_as_in_production() -> None:
    assert own_plugin("grpcio", "nvml").name == "gpuplugin/grpcio"
    spec = own_plugin("fast", "nvml")
    assert spec.name == "gpuplugin"
    assert "--backend nvml" in " ".join(spec.command)
    assert "--metrics-interval" not in spec.command


@pytest.mark.parametrize(("gpus", "replicas"), [(8, 1), (8, 10), (16, 1)])
def test_made_up_gpus_are_served(gpus: int, replicas: int) -> None:
    plugin = plugin_for(gpus, replicas, "nvlink")
    ids = list(plugin.snapshot.devices)
    assert len(ids) == gpus * replicas
    answer = pb.AllocateResponse.FromString(plugin.allocate(allocate_request([ids[-1]])))
    envs = dict(answer.container_responses[0].envs)
    assert envs == {"NVIDIA_VISIBLE_DEVICES": ids[-1].partition("::")[0]}
    subscription = plugin.list_and_watch(lambda: None)
    assert healthy_ids(subscription.take() or b"") == ids


def test_a_cube_mesh_gives_each_gpu_six_links() -> None:
    links = links_of(8, "nvlink")
    for index in range(8):
        mine = [link.nvlinks for (one, _), link in links.items() if one == uuid_of(index)]
        assert sum(mine) == 6
    assert all(link.nvlinks == 0 for link in links_of(8, "pcie").values())
    for topology in TOPOLOGIES:
        found = links_of(16, topology)
        pairs = combinations([gpu.uuid for gpu in made_up_gpus(16)], 2)
        assert all(found[one, other] == found[other, one] for one, other in pairs)


def test_processes_of_a_group_and_what_they_use() -> None:
    code = "import sys; sum(range(3_000_000)); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert processes_of(process.pid) == [process.pid]
        assert 1 < resident_mib([process.pid]) < 1000
        assert 0.001 < cpu_s([process.pid]) < 60
        process.communicate()
    assert processes_of(process.pid) == []
    assert (resident_mib([process.pid]), cpu_s([process.pid])) == (0, 0)
    assert this_machine().cores >= 1


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_is_a_module_that_measures(suite: str) -> None:
    assert callable(import_module(f"benchmarks.suites.{suite}").measure)
