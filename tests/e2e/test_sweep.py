"""`gpuplugin sim sweep` as a process: on a pool, with processes that die, on a Dask cluster."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from sim.study.workers import CannotRunThere, Workers
from tests.component.waiting import eventually
from tests.e2e.conftest import gpuplugin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Command

SWEEP = ("sim", "sweep", "noisy-neighbour", "--set", "replicas=2,4", "--seeds", "2")
SHORT = (*SWEEP, "--until", "5s")


def test_the_text_names_settings_and_who_got_nothing() -> None:
    result = gpuplugin(*SWEEP, "--until", "61s")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("noisy-neighbour, 61 s of model time, 2 seeds each\n")
    header, two, four = (
        line for line in result.stdout.splitlines() if line.startswith(("REPLICAS", "2 ", "4 "))
    )
    assert re.match(r"REPLICAS +GOT NOTHING +SLOWDOWN +P95", header)
    assert re.match(r"2 +2 +\d", two)
    assert re.match(r"4 +0 +\d", four)
    assert "4 runs took" in result.stderr


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_processes() -> None:
    one, two = (gpuplugin(*SHORT, "--json", "--processes", count) for count in ("1", "2"))
    assert one.stdout == two.stdout
    report = json.loads(one.stdout)
    assert [one["settings"] for one in report["combinations"]] == [{"replicas": 2}, {"replicas": 4}]
    assert [len(one["runs"]) for one in report["combinations"]] == [2, 2]


@pytest.mark.slow
def test_the_page_has_all_of_it_and_fetches_nothing(tmp_path: Path) -> None:
    page = tmp_path / "sweep.html"
    result = gpuplugin(*SHORT, "--html", str(page))
    assert result.returncode == 0, result.stderr
    text = page.read_text()
    assert "noisy-neighbour: a sweep" in text
    assert "Tenants that got nothing" in text
    assert "default-src 'none'" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--set", "pods.nobody.count=1"), "the scenario has no such key"),
        (("--set", "policy=best"), "policy=best: "),
        (("--set", "policy"), "write KEY=VALUE"),
        (("--set", "policy=packed", "--seeds", "0"), "--seeds is 0: give a number from 1 to 1000"),
        (("--set", "policy=packed", "--until", "7x"), "--until: must be a duration"),
        (("--set", "policy=packed", "--html", "/"), "/ cannot be written: Is a directory"),
        (("--set", "policy=packed", "--dask", "tcp://127.0.0.1:1"), "no Dask scheduler answers at"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    command: Command, arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sim.study.workers.CONNECT_S", 0.5)
    result = command("sim", "sweep", "noisy-neighbour", "--until", "1s", *arguments)
    assert (result.returncode, result.stdout) == (1, "")
    assert said in result.stderr.splitlines()[-1]


def dies_once(item: tuple[str, int]) -> int:
    """Kill the process that runs it, but not if that was done before."""
    folder, number = item
    mark = Path(folder) / str(number)
    if number % 3 == 0 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def always_dies(_item: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.slow
def test_a_process_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    items = [(str(tmp_path), number) for number in range(1, 8)]
    shares: list[float] = []
    found = Workers(2).results(dies_once, items, shares.append)
    assert found == [number * number for number in range(1, 8)]
    assert shares[-1] == 1.0
    assert shares == sorted(shares)


@pytest.mark.slow
def test_processes_that_die_again_and_again_end_it() -> None:
    with pytest.raises(CannotRunThere, match="killed 4 times: is there enough memory"):
        Workers(1).results(always_dies, [1])


@contextmanager
def dask(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", *arguments],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(20)


@contextmanager
def cluster(workers: int) -> Iterator[tuple[str, list[subprocess.Popen[str]]]]:
    """A real scheduler and so many real workers on loopback."""
    with ExitStack() as stack:
        file = Path(stack.enter_context(TemporaryDirectory())) / "scheduler.json"
        at = ("--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
        stack.enter_context(dask("scheduler", *at, "--no-dashboard"))
        address = eventually(lambda: _address(file), 30)
        started = [
            stack.enter_context(
                dask("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard")
            )
            for _ in range(workers)
        ]
        yield address, started


def _address(file: Path) -> str | None:
    """What a scheduler wrote of itself, None if it has not yet."""
    try:
        address: str = json.loads(file.read_text())["address"]
    except (FileNotFoundError, ValueError):
        return None
    return address


def slow_square(number: int) -> int:
    time.sleep(0.2)
    return number * number


@pytest.mark.slow
def test_on_a_dask_cluster_the_results_are_the_same_bytes() -> None:
    here = gpuplugin(*SHORT, "--json")
    with cluster(2) as (address, _):
        there = eventually(lambda: _swept(address), 90)
    assert there == here.stdout


def _swept(address: str) -> str:
    return gpuplugin(*SHORT, "--json", "--dask", address).stdout


@pytest.mark.slow
def test_a_worker_of_a_dask_cluster_that_is_lost_loses_nothing() -> None:
    with cluster(2) as (address, (first, _)):
        eventually(lambda: _squares(address, 2) == [0, 1], 90)
        killed: list[float] = []

        def kill(share: float) -> None:
            if not killed and share > 0.2:
                killed.append(share)
                first.kill()

        found = Workers(dask=address).results(slow_square, list(range(20)), kill)
        assert killed
        assert found == [number * number for number in range(20)]


def _squares(address: str, count: int) -> list[int]:
    try:
        return Workers(dask=address).results(slow_square, list(range(count)))
    except CannotRunThere:  # the scheduler is not up yet
        return []
