"""Checks of allocation by DRA: the cluster's side of it, as its API server has it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gpuplugin.core.dra.devices import device_names
from gpuplugin.doctor.checks.configuration import resources
from gpuplugin.doctor.verdict import Verdict, fail, failed, found, skipped, warn, well

if TYPE_CHECKING:
    from gpuplugin.doctor.facts import ClusterFacts, Facts
    from gpuplugin.doctor.verdict import Problem

_OTHER_WAY = "GPUs are given out by the device-plugin API"
_SINCE, _WITHOUT_GATES = (1, 34), (1, 36)
_PAGE = "docs/dra.md"


def dra_api(facts: Facts) -> Verdict:
    """The API server serves resource.k8s.io/v1, and the kubelet is of a version that uses it."""
    if not facts.dra:
        return skipped(_OTHER_WAY)
    cluster = facts.cluster
    if cluster is None or cluster.problem:
        reason = cluster.problem if cluster is not None else "it was not asked"
        return skipped(f"the API server says nothing: {reason}")
    if not cluster.served:
        return failed(
            "the API server does not serve resource.k8s.io/v1",
            cluster.server,
            "Upgrade to Kubernetes 1.36 (1.34 with feature gates), or use --allocation "
            "device-plugin",
        )
    version = _version(cluster.kubelet_version)
    if version and version < _SINCE:
        return failed(
            f"the kubelet is of version {cluster.kubelet_version}",
            facts.settings.daemon.node_name,
            "Upgrade the node to 1.36 (1.34 with feature gates), or use --allocation device-plugin",
        )
    return well(f"{cluster.server}, kubelet {cluster.kubelet_version or 'of unknown version'}")


def dra_gates(facts: Facts) -> Verdict:
    """No feature gate is off that drops shares, taints or extended resources."""
    cluster = _asked(facts)
    if isinstance(cluster, Verdict):
        return cluster
    if cluster.gates_off is None:
        return skipped(_denied(cluster, "gates"))
    problems = [
        fail(
            f"the API server drops what needs the feature gate {gate}",
            cluster.server,
            f"Switch it on for kube-apiserver, kube-controller-manager, kube-scheduler and every "
            f"kubelet, or upgrade to 1.36 ({_PAGE})",
        )
        for gate in sorted(cluster.gates_off)
    ]
    version = _version(cluster.kubelet_version)
    if version and version < _WITHOUT_GATES and not problems:
        problems.append(
            warn(
                f"the kubelet is {cluster.kubelet_version}: unmodified pods need its feature gate "
                "DRAExtendedResource",
                facts.settings.daemon.node_name,
                f"Switch it on, or upgrade to 1.36 ({_PAGE})",
            )
        )
    return found(problems, "nothing that is published is dropped")


def dra_rights(facts: Facts) -> Verdict:
    """This user may read claims and write slices; in the plugin's pod it is the plugin."""
    cluster = _asked(facts)
    if isinstance(cluster, Verdict):
        return cluster
    if cluster.rights is None:
        return skipped(_denied(cluster, "rights"))
    missing = [right for right, allowed in cluster.rights.items() if not allowed]
    if missing:
        return failed(
            f"no right to {', '.join(missing)} of resource.k8s.io",
            cluster.server,
            "Bind the ClusterRole of deploy/kustomize/components/dra to the plugin's service "
            "account. Where this is not the plugin's pod, it is your own user that lacks them",
        )
    return well("claims may be read, slices be written")


def dra_class(facts: Facts) -> Verdict:
    """Each resource of the configuration has a DeviceClass by which pods get it."""
    cluster = _asked(facts)
    if isinstance(cluster, Verdict):
        return cluster
    if cluster.classes is None:
        return skipped(_denied(cluster, "DeviceClasses"))
    driver = facts.settings.daemon.dra_driver_name
    problems: list[Problem] = []
    for resource in resources(facts):
        named = [one for one in cluster.classes if one.extended_resource == resource]
        ours = [one for one in named if one.selects(driver)]
        if not ours:
            problems.append(
                warn(
                    f"no DeviceClass of {driver} has extendedResourceName: {resource}; pods that "
                    "ask for it wait, and only claims get a GPU",
                    cluster.server,
                    "Apply deploy/kustomize/components/dra/deviceclasses.yaml, or a class of your "
                    "own; up to 1.35 the field is dropped without the feature gate "
                    "DRAExtendedResource",
                )
            )
        elif named[0] is not ours[0]:
            problems.append(
                fail(
                    f"pods that ask for {resource} get what DeviceClass {named[0].name} selects, "
                    f"not {ours[0].name}: the newest one counts",
                    cluster.server,
                    f"Take extendedResourceName from {named[0].name}, or delete that class",
                )
            )
    return found(problems, "every resource has its class")


def dra_slices(facts: Facts) -> Verdict:
    """The stored ResourceSlices of the node are complete, with the shares of the configuration."""
    cluster = _asked(facts)
    if isinstance(cluster, Verdict):
        return cluster
    if cluster.slices is None:
        return skipped(_denied(cluster, "ResourceSlices"))
    node, driver = facts.settings.daemon.node_name, facts.settings.daemon.dra_driver_name
    where = f"ResourceSlices of {driver} on {node}"
    if not cluster.slices:
        return failed(
            f"there is no ResourceSlice of {driver} for this node: no pod gets a GPU here",
            where,
            "See the check plugin-ready, part slices; the kubelet deletes slices of a driver that "
            "is gone for 30 s",
        )
    newest = max(one.generation for one in cluster.slices)
    now = [one for one in cluster.slices if one.generation == newest]
    problems: list[Problem] = []
    if len(now) != now[0].count:
        problems.append(
            fail(
                f"the pool has {len(now)} of {now[0].count} slices: the scheduler passes it over",
                where,
                "Wait a moment: the plugin publishes them; else see its part slices",
            )
        )
    replicas = {name: count for one in now for name, count in one.replicas.items()}
    wanted = _wanted(facts)
    problems += [
        warn(
            f"device {name} is offered with {replicas.get(name, 0)} shares, the configuration has "
            f"{count}",
            where,
            "Right while shares are out of a GPU that is no longer to be shared, and while a "
            "device plugin offers the resource; else see the plugin's parts slices and claims",
        )
        for name, count in wanted.items()
        if replicas.get(name, 0) != count
    ]
    tainted = sum(len(one.tainted) for one in now)
    return found(
        problems,
        f"{len(replicas)} devices, {sum(replicas.values())} shares, {tainted} devices with a taint",
    )


def dra_one_way(facts: Facts) -> Verdict:
    """No device plugin offers on this node what DRA offers, too."""
    if not facts.dra:
        return skipped(_OTHER_WAY)
    cluster = facts.cluster
    problems: list[Problem] = []
    for resource in resources(facts):
        stem = f"nvidia-{resource.rpartition('/')[2]}.sock"
        problems += [
            fail(
                f"a device plugin serves {resource} beside DRA: one GPU is given out twice",
                socket.path,
                "Remove it from this node (docs/migrating-to-dra.md)",
            )
            for socket in facts.kubelet.others
            if socket.live and socket.path.rpartition("/")[2] == stem
        ]
        allocatable = (cluster.allocatable if cluster is not None else None) or {}
        if allocatable.get(resource, "0") != "0":
            problems.append(
                fail(
                    f"the node has {resource}: {allocatable[resource]} of a device plugin, which "
                    "the scheduler takes first",
                    f"status.allocatable of node {facts.settings.daemon.node_name}",
                    "Remove that plugin from this node: the kubelet sets the count to 0 then "
                    "(docs/migrating-to-dra.md)",
                )
            )
    if problems:
        return found(problems, "")
    if cluster is None or cluster.allocatable is None:
        return skipped("the node's allocatable resources are not known; no socket of another")
    return well("no device plugin offers these resources here")


def _asked(facts: Facts) -> ClusterFacts | Verdict:
    """What the API server told, or why there is nothing to judge."""
    if not facts.dra:
        return skipped(_OTHER_WAY)
    cluster = facts.cluster
    if cluster is None or cluster.problem or not cluster.served:
        return skipped("see dra-api")
    return cluster


def _denied(cluster: ClusterFacts, what: str) -> str:
    reason = next((one for one in cluster.denied if one.startswith(what)), what)
    return f"not to be read by this user: {reason}"


def _wanted(facts: Facts) -> dict[str, int]:
    """Devices by name, with the shares that the configuration gives them."""
    devices = [one for each in resources(facts).values() for one in each]
    names = device_names(device.uuid for device, _ in devices)
    return {names[device.uuid]: replicas for device, replicas in devices}


def _version(text: str) -> tuple[int, int] | None:
    match = re.match(r"v?(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None
