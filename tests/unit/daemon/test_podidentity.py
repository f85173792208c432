"""The pods of processes, by a host's files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gpuplugin.core.usage import PodName
from gpuplugin.daemon.cluster.pods import CgroupsUnreadable, PodIdentities

if TYPE_CHECKING:
    from pathlib import Path

UID = "0f7d3a52-91c4-4a0e-8d1b-5c2e7f6a9b10"
OTHER = "1f7d3a52-91c4-4a0e-8d1b-5c2e7f6a9b10"


class Host:
    """A host's /proc and /var/log/pods."""

    def __init__(self, root: Path) -> None:
        self.proc, self.logs = root / "proc", root / "logs"
        self.proc.mkdir()
        self.logs.mkdir()

    def process(self, pid: int, uid: str) -> None:
        (self.proc / str(pid)).mkdir()
        cgroup = f"0::/kubepods/burstable/pod{uid}/{'ab' * 32}" if uid else "0::/user.slice"
        (self.proc / str(pid) / "cgroup").write_text(cgroup)

    def pod(self, namespace: str, name: str, uid: str) -> None:
        (self.logs / f"{namespace}_{name}_{uid}").mkdir()

    def pods_of(self, *pids: int) -> dict[int, PodName | None]:
        return PodIdentities(self.proc, self.logs).pods_of(frozenset(pids))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_processes_are_found_in_their_pods(host: Host) -> None:
    host.process(7, UID)
    host.process(8, UID)
    host.process(9, "")
    host.pod("shop", "api-7f9", UID)
    (host.logs / "not-a-pod").mkdir()
    assert host.pods_of(7, 8, 9) == {
        7: PodName("shop", "api-7f9"),
        8: PodName("shop", "api-7f9"),
        9: None,
    }


def test_a_process_that_ended_is_left_out(host: Host) -> None:
    host.process(7, "")
    assert host.pods_of(7, 8) == {7: None}


def test_a_pod_that_comes_later_is_found(host: Host) -> None:
    identities = PodIdentities(host.proc, host.logs)
    host.process(7, UID)
    host.pod("a", "first", UID)
    assert identities.pods_of(frozenset({7})) == {7: PodName("a", "first")}
    host.process(8, OTHER)
    assert identities.pods_of(frozenset({7, 8}))[8] is None
    host.pod("a", "second", OTHER)
    assert identities.pods_of(frozenset({7, 8}))[8] == PodName("a", "second")


def test_no_process_is_nothing_to_see(host: Host) -> None:
    assert host.pods_of() == {}


def test_processes_that_cannot_be_seen_ask_for_hostpid(host: Host) -> None:
    with pytest.raises(CgroupsUnreadable, match=r"2 GPU processes .* hostPID: true"):
        host.pods_of(7, 8)


def test_names_that_cannot_be_seen_ask_for_the_folder(host: Host) -> None:
    host.process(7, UID)
    host.logs.rmdir()
    with pytest.raises(CgroupsUnreadable, match="mount the host's /var/log/pods"):
        host.pods_of(7)
