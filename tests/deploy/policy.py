"""What the plugin may do on a node and in the cluster, read from rendered objects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.deploy.rendering import of_kind, plugin_of, pod_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.deploy.rendering import Object

OWN_FOLDER = "plugins_registry/gpuplugin"
OWN_GROUP = 2000002112


@dataclass(frozen=True, slots=True)
class Rights:
    """Everything beyond an ordinary container without any right."""

    root: bool = False
    privileged: bool = False
    sys_admin: bool = False
    host_pid: bool = False
    selinux: bool = False
    """Without SELinux's rules: spc_t."""
    writable: frozenset[str] = field(default_factory=frozenset)
    """Paths of the host, without the folder of the plugin's own."""
    readable: frozenset[str] = field(default_factory=frozenset)
    group: bool = False
    """A group of the plugin's own beside the user's, for folders that stay root's."""
    token: bool = False
    api: frozenset[str] = field(default_factory=frozenset)
    """`verb resource`, with the namespace of a Role behind it."""


def rights_of(found: Iterable[Object]) -> Rights:
    """The rights of the plugin's pods."""
    every = list(found)
    pod, container = pod_of(every), plugin_of(every)
    security = container["securityContext"]
    paths = {one["name"]: one["hostPath"]["path"] for one in pod["volumes"] if "hostPath" in one}
    mounted = {
        paths[one["name"]]: one.get("readOnly", False)
        for one in container["volumeMounts"]
        if one["name"] in paths
    }
    return Rights(
        root=security["runAsUser"] == 0,
        privileged=security.get("privileged", False),
        sys_admin=(security.get("capabilities") or {}).get("add") == ["SYS_ADMIN"],
        host_pid=pod.get("hostPID", False),
        selinux=pod["securityContext"].get("seLinuxOptions") == {"type": "spc_t"},
        writable=frozenset(
            path for path, only in mounted.items() if not only and not path.endswith(OWN_FOLDER)
        ),
        readable=frozenset(path for path, only in mounted.items() if only),
        group=pod["securityContext"].get("supplementalGroups") == [OWN_GROUP],
        token=pod["automountServiceAccountToken"],
        api=frozenset(_verbs(every)),
    )


def _verbs(found: list[Object]) -> Iterable[str]:
    for role in (*of_kind(found, "ClusterRole"), *of_kind(found, "Role")):
        place = role["metadata"].get("namespace")
        for rule in role["rules"]:
            assert rule.keys() - {"resourceNames"} == {"apiGroups", "resources", "verbs"}
            assert len(rule["apiGroups"]) == 1
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    yield f"{verb} {resource}" + (f" in {place}" if place else "")
