"""Small parts of the benchmarks: turns, command lines of plugins, made-up GPUs, processes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from itertools import combinations
from types import SimpleNamespace
from typing import TYPE_CHECKING, ClassVar, cast

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
from benchmarks.scrape import CALL_EVERY_S, paced, scraping
from benchmarks.servers import DidNotStart
from benchmarks.shapes import placements
from benchmarks.siege import _Repeated
from benchmarks.suites import claims
from gpuplugin.kubelet.proto import deviceplugin_pb2 as pb
from gpuplugin.kubelet.proto import dra_pb2 as pb_dra
from tests.component.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpuplugin.rpc.client import Connection


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


def test_calls_that_one_holds_up_count_from_when_they_were_due() -> None:
    number = 0

    def call() -> None:
        nonlocal number
        number += 1
        if number == 10:
            time.sleep(10 * CALL_EVERY_S)

    found = paced(call, 30)
    held_up = [took for took in found if took > CALL_EVERY_S * 1e6]
    assert len(found) == 30
    assert len(held_up) >= 5


def test_scrapes_begin_with_the_calls_that_they_are_beside() -> None:
    """Few calls take less than the time between two scrapes."""
    with _metrics() as port, scraping(port) as done:
        eventually(lambda: len(done) > 0)
    assert len(done) == 1


@contextmanager
def _metrics() -> Iterator[int]:
    class Empty(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Empty) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_a_claim_that_could_not_be_unprepared_is_no_figure() -> None:
    """A call that fails may be quicker than one that does something."""
    failed = pb_dra.NodeUnprepareResourcesResponse()
    failed.claims["uid"].error = "the disk is full"
    kubelet = SimpleNamespace(call=lambda _method, _request: failed.SerializeToString())
    with pytest.raises(DidNotStart, match="not unprepared: the disk is full"):
        claims._timed(cast("Connection", kubelet), claims._UNPREPARE, b"")


def test_a_call_that_ends_while_it_is_looked_at_is_not_the_slowest() -> None:
    class Ending:
        _slowest_ms = 3.0
        began_ns: ClassVar = iter((time.perf_counter_ns(), 0))

        @property
        def _began_ns(self) -> int:
            return next(self.began_ns)

    assert _Repeated.slowest_ms.fget(Ending()) < 1000  # type: ignore[attr-defined]


def test_where_there_is_one_core_nothing_is_called_two() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert placements() == ("one core",)
    finally:
        os.sched_setaffinity(0, before)


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
