"""The real process, killed between any two steps of what it does for a claim."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import grpc
import pytest

from gpuplugin.core.dra.claims import decoded
from tests.component.dranode import dra_flags
from tests.component.waiting import DEADLINE_S
from tests.conformance.engines.conftest import ENGINES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gpuplugin.kubelet.proto import dra_pb2 as pb
    from tests.component.dranode import DraNode, Kubelet

EXCLUSIVE = "version: v1\nsharing: {}\n"
LEAST_STEPS = {"prepare": 5, "unprepare": 4}
"""Two files are written to prepare, and synced; one is removed and one written to undo that."""


@contextmanager
def running(node: DraNode, config: Path, engine: str) -> Iterator[subprocess.Popen[bytes]]:
    """The plugin as a process of its own, which is killed at the end if it still runs."""
    flags = {
        **dra_flags(node.folder, rpc_engine=engine),
        "--backend": "sim",
        "--kubelet-dir": str(node.folder),
        "--listen-address": "127.0.0.1:0",
        "--config-file": str(config),
    }
    command = [sys.executable, "-m", "tests.component.crashing", str(node.folder), "run"]
    arguments = [text for flag in flags.items() for text in flag]
    process = subprocess.Popen([*command, *arguments], env=dict(os.environ))
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def attempt(kubelet: Kubelet, work: str, claim: pb.Claim) -> bool:
    """Prepare or unprepare a claim; False if the process was killed over it."""
    try:
        if work == "prepare":
            kubelet.prepared(claim)
        else:
            assert kubelet.unprepare(claim) == {claim.uid: ""}
    except grpc.RpcError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("work", LEAST_STEPS)
def test_a_kill_between_any_two_steps_leaks_nothing_and_grants_nothing_twice(
    tmp_path: Path, node: DraNode, work: str, engine: str
) -> None:
    config, trigger = tmp_path / "config.yaml", node.folder / "crash"
    config.write_text(EXCLUSIVE)
    step, killed = 0, True
    while killed:
        with running(node, config, engine) as process, node.connect() as kubelet:
            device = node.device(0)
            claim = node.allocate(device)
            if work == "unprepare":
                kubelet.prepared(claim)
            trigger.write_text(str(step))
            killed = not attempt(kubelet, work, claim)
            if killed:
                assert process.wait(DEADLINE_S) < 0
        trigger.unlink()
        with running(node, config, engine), node.connect() as kubelet:
            name = device["name"]
            if work == "prepare":
                assert kubelet.prepared(claim).device_name == name
                assert decoded(node.claims_file.read_text()).taken() == {name: 1}
                assert node.spec(claim)["devices"]
            assert kubelet.unprepare(claim) == {claim.uid: ""}
            other = node.allocate(device)
            kubelet.prepared(other)
            assert [path.name for path in node.specs.iterdir()] == [node.spec_path(other).name]
            assert set(decoded(node.claims_file.read_text()).by_uid) == {other.uid}
            assert kubelet.unprepare(other) == {other.uid: ""}
        assert list(node.specs.iterdir()) == []
        assert list(node.claims_file.parent.glob(".*")) == []
        step += 1
    assert step >= LEAST_STEPS[work], "there were fewer steps than the work has"
