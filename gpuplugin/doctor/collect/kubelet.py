"""Collects facts of the kubelet: its folder, its sockets and those of plugins, its checkpoint."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import TYPE_CHECKING

import yaml

from gpuplugin.daemon.control import SOCKET_NAME
from gpuplugin.doctor.collect.host import collect_socket
from gpuplugin.doctor.facts import KubeletFacts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuplugin.doctor.collect.host import HostRoot
    from gpuplugin.doctor.facts import SocketFact

KNOWN_ROOTS = (
    "/var/lib/kubelet",
    "/var/lib/k0s/kubelet",
    "/var/snap/microk8s/common/var/lib/kubelet",
    "/var/lib/rancher/k3s/agent/kubelet",
    "/var/lib/rancher/rke2/agent/kubelet",
    "/opt/rke/var/lib/kubelet",
    "/var/vcap/data/kubelet",
)
"""The usual folder, and those of k0s, MicroK8s, older k3s and RKE, and PKS."""
_KUBELET = "kubelet.sock"


def collect_kubelet(host: HostRoot, root: str, other_socket: str | None) -> KubeletFacts:
    root = root.rstrip("/") or "/"
    configured_root = _configured_root(host)
    plugins, registry = f"{root}/device-plugins", f"{root}/plugins_registry"
    if root == configured_root and not host.exists(f"{plugins}/{_KUBELET}"):
        plugins = f"{KNOWN_ROOTS[0]}/device-plugins"
    own_folder = f"{registry}/gpuplugin"
    socket = collect_socket(host, other_socket or f"{plugins}/{_KUBELET}", grpc=True)
    return KubeletFacts(
        root=root,
        folder=host.fact(root),
        device_plugins=host.fact(plugins),
        registry=host.fact(registry),
        own_folder=host.fact(own_folder),
        hidden=is_hidden(host, root),
        socket=socket,
        elsewhere=tuple(
            one
            for one in KNOWN_ROOTS
            if host.at(one) != host.at(root) and host.exists(f"{one}/device-plugins/{_KUBELET}")
        ),
        configured_root=configured_root,
        own_sockets=(
            *_sockets(host, own_folder, "gpuplugin-*.sock"),
            *_sockets(host, plugins, "gpuplugin-*.sock"),
        ),
        others=tuple(
            one
            for one in _sockets(host, plugins, "*.sock")
            if not one.path.endswith(f"/{_KUBELET}") and "/gpuplugin-" not in one.path
        ),
        registered=_registered(host, f"{plugins}/kubelet_internal_checkpoint"),
        cgroup_driver=_cgroup_driver(host, root),
    )


def is_hidden(host: HostRoot, root: str) -> bool:
    """True if this user may not see all that a plugin puts below a kubelet's folder."""
    folders = ("", "/device-plugins", "/plugins_registry", "/plugins_registry/gpuplugin")
    return any(host.hides(f"{root}{folder}") for folder in folders)


def control_sockets(host: HostRoot, root: str) -> tuple[SocketFact, ...]:
    """The running plugin's control sockets, by either way of registration."""
    folders = (f"{root}/plugins_registry/gpuplugin", f"{root}/device-plugins")
    paths = [f"{folder}/{SOCKET_NAME}" for folder in folders]
    return tuple(collect_socket(host, path, grpc=False) for path in host.existing(tuple(paths)))


def _sockets(host: HostRoot, folder: str, pattern: str) -> tuple[SocketFact, ...]:
    return tuple(collect_socket(host, path, grpc=False) for path in host.names(folder, pattern))


def _configured_root(host: HostRoot) -> str:
    """--root-dir of a kubelet among the processes; empty if there is none."""
    for process in host.names("/proc", "[0-9]*"):
        words = (host.text(f"{process}/cmdline") or "").split("\0")
        if words[0].rpartition("/")[2] != "kubelet":
            continue
        for position, word in enumerate(words):
            if word.startswith("--root-dir="):
                return word.partition("=")[2].rstrip("/")
            if word == "--root-dir" and position + 1 < len(words):
                return words[position + 1].rstrip("/")
    return ""


def _registered(host: HostRoot, path: str) -> Mapping[str, int] | None:
    """Devices by resource in the kubelet's checkpoint; None if it cannot be read."""
    try:
        checkpoint: object = json.loads(host.text(path) or "")
    except ValueError:
        return None
    devices = _child(_child(checkpoint, "Data"), "RegisteredDevices")
    if not isinstance(devices, dict):
        return None
    return MappingProxyType({str(name): len(ids or ()) for name, ids in devices.items()})


def _cgroup_driver(host: HostRoot, root: str) -> str:
    try:
        config: object = yaml.safe_load(host.text(f"{root}/config.yaml") or "")
    except yaml.YAMLError:
        return ""
    found = _child(config, "cgroupDriver")
    return found if isinstance(found, str) else ""


def _child(value: object, key: str) -> object:
    return value.get(key) if isinstance(value, dict) else None
