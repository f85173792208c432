"""Which pod a process belongs to, read from the text of its /proc/PID/cgroup. Pure.

Kubelets name the cgroup of a pod after the pod's UID, and runtimes the cgroup in it after the
container. The forms differ by cgroup version, driver (systemd or cgroupfs) and runtime; all of
them hold the UID behind the word `pod` and an id of 64 hexadecimal digits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# systemd's unit names cannot hold a dash that means one: the UID's are underscores there. Static
# pods have a hash of 32 digits.
_POD = re.compile(
    r"(?:^|[/-])pod"
    r"([0-9a-f]{8}([-_])[0-9a-f]{4}\2[0-9a-f]{4}\2[0-9a-f]{4}\2[0-9a-f]{12}|[0-9a-f]{32})"
    r"(?=$|[/.:])"
)
_CONTAINER = re.compile(r"(?:^|[/:-])([0-9a-f]{64})(?=$|[/.])")
_KUBE = re.compile(r"(?:^|[/-])kubepods(?=$|[/.-])")


@dataclass(frozen=True, slots=True)
class PodCgroup:
    """A pod's UID, and the id that the container runtime gave to the container ("" if not told)."""

    pod_uid: str
    container_id: str


def pod_cgroup(text: str) -> PodCgroup | None:
    """The pod of a process by its /proc/PID/cgroup; None if it is in no pod.

    With cgroup v1 each controller has a line; the first one that names a pod counts.
    """
    for line in text.splitlines():
        _, _, path = line.partition(":")[2].partition(":")
        found = _pod_of(path)
        if found is not None:
            return found
    return None


def _pod_of(path: str) -> PodCgroup | None:
    pods = list(_POD.finditer(path))
    # A kubelet of its own inside a container (kind) has its pods below the outer one: the last
    # name is the nearest. From inside a cgroup namespace the root above the pod may be hidden.
    if not pods or not (_KUBE.search(path) or path.startswith("/../")):
        return None
    uid = pods[-1][1].replace("_", "-")
    containers = _CONTAINER.findall(path, pods[-1].end())
    return PodCgroup(uid, containers[0] if containers else "")
