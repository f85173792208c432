"""`gpuplugin sim share` as a user runs it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import gpuplugin

if TYPE_CHECKING:
    from tests.e2e.conftest import Command

A100 = ("sim", "share", "--model", "a100-sxm4-80gb")
THREE = (*A100, "--clients", "3", "--busy-ms", "88.15")


def test_it_prints_a_table_and_one_sentence() -> None:
    result = gpuplugin(*THREE)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("3 clients on a100-sxm4-80gb, time-slicing: 88.15 ms of GPU work")
    assert lines[2].split() == ["alone", "shared"]
    assert lines[3].split() == ["slowdown", "1.00", "3.32"]
    assert lines[-1] == (
        "Each of 3 clients takes 3.3 times as long as alone; "
        "10 % of the GPU's time goes into switching."
    )


def test_its_json_has_these_keys() -> None:
    result = gpuplugin(*THREE, "--json")
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert list(figures) == [
        "inputs",
        "slowdown_mean",
        "latency_ms",
        "throughput_per_client_per_s",
        "gpu_utilization",
        "switch_loss",
        "oom",
    ]
    assert list(figures["latency_ms"]) == ["p50", "p95", "p99", "mean"]
    assert figures["inputs"] == {
        "model": "a100-sxm4-80gb",
        "clients": 3,
        "busy_ms": 88.15,
        "idle_ms": 0.0,
        "occupancy": 1.0,
        "memory_gib": 0.0,
        "mechanism": "time-slicing",
        "level": None,
        "seed": 0,
        "mps_share": None,
    }
    assert figures["slowdown_mean"] == pytest.approx(3.33, rel=0.03)
    assert figures["gpu_utilization"] + figures["switch_loss"] == pytest.approx(1)
    assert figures["oom"] == 0


def test_a_client_without_memory_is_named_with_those_who_hold_it() -> None:
    arguments = (*THREE, "--memory-gib", "30")
    text = gpuplugin(*arguments).stdout
    assert "Out of memory: client 1 asked for 30.3 GiB, 18.6 GiB were free; " in text
    assert "clients 0, 2 held 30.3 GiB each. It did not run.\nEach of 2 clients takes" in text

    result = gpuplugin(*arguments, "--json")
    assert json.loads(result.stdout)["oom"] == 1
    assert "Out of memory: client 1" in result.stderr


def test_where_nobody_fits_json_has_null() -> None:
    result = gpuplugin(*THREE, "--memory-gib", "500", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["slowdown_mean"] is None
    text = gpuplugin(*THREE, "--memory-gib", "500").stdout
    assert text.endswith("No client ran: none got its memory.\n")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--mechanism", "mps", "--mps-share", "0"), "takes no longer than alone; nothing goes"),
        (
            ("--mechanism", "mps", "--mps-share", "0.43"),
            "takes 1.86 times as long as alone; nothing",
        ),
        (("--mechanism", "exclusive"), "takes 3.0 times as long as alone; nothing goes"),
        (("--mechanism", "mig", "--occupancy", "0.2"), "3 devices of 2g.20gb, one for each client"),
        (("--level", "long"), "The length of the slice is assumed"),
        (("--level", "default"), "10 % of the GPU's time"),
        (("--idle-ms", "1000000"), "takes no longer than alone; less than 1 % of the GPU's time"),
    ],
)
def test_what_the_text_says_of_each_way(
    command: Command, arguments: tuple[str, ...], text: str
) -> None:
    result = command(*THREE, *arguments)
    assert result.returncode == 0, result.stderr
    assert text in result.stdout


def test_clients_that_share_a_mig_device_are_told_so() -> None:
    result = gpuplugin(*A100, "--clients", "9", "--busy-ms", "5", "--mechanism", "mig")
    assert "the 9 clients share them, by time slicing" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--mechanism", "mps", "--level", "short"), "leave --level out"),
        (("--mechanism", "mig", "--model", "l4"), "l4 has no MIG; take one of: a100-sxm4-40gb"),
        (("--model", "rtx6090"), "no GPU model is called 'rtx6090'; known: a10,"),
        (("--occupancy", "2"), "--occupancy is 2: give a number from 0 to 1"),
        (("--clients", "many"), "must be whole numbers from 1 on"),
        (("--level", "tiny"), "invalid choice: 'tiny'"),
    ],
)
def test_wrong_values_are_refused_with_what_to_do(
    command: Command, arguments: tuple[str, ...], text: str
) -> None:
    result = command(*THREE, *arguments)
    assert result.returncode == 2
    assert text in result.stderr
    assert result.stdout == ""


@pytest.mark.slow
def test_several_numbers_of_clients_have_a_row_each() -> None:
    arguments = ("sim", "share", "--model", "l4", "--busy-ms", "15", "--memory-gib", "7")
    result = gpuplugin(*arguments, "--clients", "1,2,4")
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if line[:1].isdigit()]
    assert [row[:2] for row in rows] == [["1", "0"], ["2", "0"], ["4", "1"]]
    assert "GAIN: what all of them get done together" in result.stdout
    several = json.loads(gpuplugin(*arguments, "--clients", "1,2,4", "--json").stdout)
    assert several[1] == json.loads(gpuplugin(*arguments, "--clients", "2", "--json").stdout)


@pytest.mark.parametrize("clients", ["0", "2,", "1,x", "-1"])
def test_what_is_no_number_of_clients(command: Command, clients: str) -> None:
    result = command(*A100, "--busy-ms", "5", f"--clients={clients}")
    assert result.returncode == 2
    assert "whole numbers from 1 on" in result.stderr
