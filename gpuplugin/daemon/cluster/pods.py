"""Which pod holds which devices, and which pod a process belongs to. What follows: `core.usage`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gpuplugin.core.usage import ClaimUse, Holding, PodName
from gpuplugin.kubelet.protowire import NotAMessage, Received
from gpuplugin.rpc.client import CallFailed, unary_call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

METHOD = "/v1.PodResourcesLister/List"
_ALL = b""
"""A ListPodResourcesRequest, which has no fields."""
_MAX_RESPONSE_BYTES = 16 * 1024 * 1024
"""The kubelet's own clients allow as much (podresources client.go)."""


class PodResourcesUnavailable(Exception):
    """The kubelet's pod-resources API cannot be used; the text names the reason and the remedy."""


class PodResources:
    """Calls at the kubelet's socket, each on a connection of its own; blocks.

    `of_claims` makes holdings of devices of claims.
    """

    def __init__(
        self,
        socket: Path,
        timeout_s: float,
        of_claims: Callable[[Iterable[ClaimUse]], Iterable[Holding]],
    ) -> None:
        self._socket = socket
        self._timeout_s = timeout_s
        self._of_claims = of_claims

    def holdings(self) -> tuple[Holding, ...]:
        """The devices of all containers on the node; raises `PodResourcesUnavailable`."""
        _check(self._socket)
        try:
            data = unary_call(self._socket, METHOD, _ALL, self._timeout_s, _MAX_RESPONSE_BYTES)
            counted, claims = read_holdings(data)
        except (CallFailed, NotAMessage) as error:
            raise PodResourcesUnavailable(f"{self._socket}: {error}") from error
        return (*counted, *self._of_claims(claims))


def read_holdings(data: bytes) -> tuple[list[Holding], list[ClaimUse]]:
    """What is in a ListPodResourcesResponse; raises `NotAMessage`.

    Field numbers are those of podresources.proto.
    """
    counted: list[Holding] = []
    claims: list[ClaimUse] = []
    for pod in Received(data).messages(1):
        name = PodName(namespace=pod.text(2), name=pod.text(1))
        for container in pod.messages(3):
            container_name = container.text(1)
            counted += (
                Holding(name, container_name, devices.text(1), tuple(devices.texts(2)))
                for devices in container.messages(2)
            )
            claims += (
                ClaimUse(
                    name,
                    container_name,
                    claim.text(3),
                    claim.text(2),
                    one.text(2),
                    one.text(4),
                    one.text(5),
                )
                for claim in container.messages(5)
                for one in claim.messages(4)
            )
    return counted, claims


def _check(socket: Path) -> None:
    """Name the cause of what gRPC would only call unavailable."""
    try:
        socket.lstat()
    except OSError as error:
        raise PodResourcesUnavailable(
            f"{socket}: {error.strerror}; mount the folder into the plugin's container, "
            "readable by its user"
        ) from error


_MAX_CGROUP_BYTES = 64 * 1024


class CgroupsUnreadable(Exception):
    """Processes of other containers are not visible; the text names the remedy."""


class PodIdentities:
    """Finds the pods of processes; `logs` is the kubelet's folder of logs, `proc` the host's."""

    def __init__(self, proc: Path, logs: Path) -> None:
        self._proc = proc
        self._logs = logs
        self._names: dict[str, PodName] = {}

    def pods_of(self, pids: frozenset[int]) -> dict[int, PodName | None]:
        """The pod of each process that still runs, None if unknown; raises `CgroupsUnreadable`."""
        uids = {pid: uid for pid in pids if (uid := self._uid_of(pid)) is not None}
        if pids and not uids:
            raise CgroupsUnreadable(
                f"none of {len(pids)} GPU processes is in {self._proc}: "
                "run the plugin with hostPID: true"
            )
        wanted = {uid for uid in uids.values() if uid}
        if wanted - self._names.keys():
            self._names = self._read_names()
        if wanted and not self._names:
            raise CgroupsUnreadable(
                f"{self._logs} names no pod: mount the host's /var/log/pods there, read-only"
            )
        return {pid: self._names.get(uid) for pid, uid in uids.items()}

    def _uid_of(self, pid: int) -> str | None:
        """The UID of a process's pod, "" if it is in none; None if the process is not seen."""
        try:
            with (self._proc / str(pid) / "cgroup").open("rb") as stream:
                text = stream.read(_MAX_CGROUP_BYTES).decode(errors="replace")
        except OSError:
            return None
        return pod_uid(text)

    def _read_names(self) -> dict[str, PodName]:
        try:
            names = [entry.name for entry in self._logs.iterdir()]
        except OSError:
            return {}
        # Neither a namespace nor a pod's name can hold an underscore.
        parts = (name.split("_") for name in names)
        return {part[2]: PodName(part[0], part[1]) for part in parts if len(part) == 3}


# Kubelets name the cgroup of a pod after the pod's UID, behind the word `pod`. The forms differ by
# cgroup version, driver (systemd or cgroupfs) and runtime. systemd's unit names cannot hold a dash
# that means one: the UID's are underscores there. Static pods have a hash of 32 digits.
_POD = re.compile(
    r"(?:^|[/-])pod"
    r"([0-9a-f]{8}([-_])[0-9a-f]{4}\2[0-9a-f]{4}\2[0-9a-f]{4}\2[0-9a-f]{12}|[0-9a-f]{32})"
    r"(?=$|[/.:])"
)
_KUBE = re.compile(r"(?:^|[/-])kubepods(?=$|[/.-])")


def pod_uid(cgroup: str) -> str:
    """The UID of a process's pod by its /proc/PID/cgroup; "" if it is in no pod.

    With cgroup v1 each controller has a line; the first one that names a pod counts.
    """
    for line in cgroup.splitlines():
        _, _, path = line.partition(":")[2].partition(":")
        pods = list(_POD.finditer(path))
        # A kubelet of its own inside a container (kind) has its pods below the outer one: the last
        # name is the nearest. In a cgroup namespace the root above the pod may be hidden.
        if pods and (_KUBE.search(path) or path.startswith("/../")):
            return pods[-1][1].replace("_", "-")
    return ""
