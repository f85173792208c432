"""Collects facts of container runtimes: containerd and CRI-O, NVIDIA's toolkit, CDI specs."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import yaml

from gpuplugin.doctor.facts import CdiSpec, RuntimeConfig, RuntimeFacts, ToolkitConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpuplugin.doctor.collect.host import HostRoot

CONTAINERD = (
    "/etc/containerd/config.toml",
    "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
    "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
    "/etc/k0s/containerd.toml",
    "/run/k0s/containerd-cri.toml",
    "/var/snap/microk8s/current/args/containerd.toml",
    "/etc/cri/conf.d/cri.toml",
)
"""Configurations of containerd; the last is that of Talos, which merges the parts beside it."""
_CONTAINERD_PARTS = ("/etc/containerd/conf.d", "/etc/k0s/containerd.d")
CRIO = "/etc/crio/crio.conf"
_CRIO_PARTS = "/etc/crio/crio.conf.d"
TOOLKIT = "/etc/nvidia-container-runtime/config.toml"
_CRI_SECTIONS = ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime")


def collect_runtime(host: HostRoot, cdi_folder: str) -> RuntimeFacts:
    """The runtimes of the node, and the CDI specs in the plugin's folder and in the usual ones."""
    configs = [*_containerd(host), *_crio(host)]
    folders = dict.fromkeys((cdi_folder, "/etc/cdi", "/var/run/cdi"))
    places = {host.at(folder): folder for folder in reversed(folders)}
    return RuntimeFacts(
        configs=tuple(configs),
        toolkit=_toolkit(host),
        cdi_folder=host.fact(cdi_folder),
        specs=tuple(spec for folder in sorted(places.values()) for spec in _specs(host, folder)),
    )


def _containerd(host: HostRoot) -> Iterator[RuntimeConfig]:
    for path in host.existing(CONTAINERD):
        if "cri" in _words(_toml(host.text(path))[0], "disabled_plugins"):
            continue  # Docker's own: it serves no kubelet
        # k3s, RKE2 and MicroK8s have no parts; the parts of others are beside the file.
        parts = [
            part
            for folder in _CONTAINERD_PARTS
            if folder.startswith(path.rpartition("/")[0])
            for part in host.names(folder, "*.toml")
        ]
        config = RuntimeConfig("containerd", path)
        for file in (path, *parts):
            config = _merged(config, file, host.text(file))
        yield config


def _merged(config: RuntimeConfig, path: str, text: str | None) -> RuntimeConfig:
    document, problem = _toml(text)
    if problem:
        return replace(config, problem=f"{path}: {problem}")
    plugins = _table(document, "plugins")
    for name in _CRI_SECTIONS:
        section = _table(plugins, name)
        containerd = _table(section, "containerd")
        runtimes = _table(containerd, "runtimes")
        options = {one: _table(_table(runtimes, one), "options") for one in runtimes}
        handlers = {one: _word(option, "BinaryName") for one, option in options.items()}
        cgroups = [
            bool(option["SystemdCgroup"])
            for option in options.values()
            if "SystemdCgroup" in option
        ]
        config = replace(
            config,
            handlers=MappingProxyType({**config.handlers, **handlers}),
            default_handler=_word(containerd, "default_runtime_name") or config.default_handler,
            cdi=bool(section["enable_cdi"]) if "enable_cdi" in section else config.cdi,
            cdi_folders=_words(section, "cdi_spec_dirs") or config.cdi_folders,
            systemd_cgroup=any(cgroups) if cgroups else config.systemd_cgroup,
        )
    version = document.get("version")
    return replace(config, version=version) if isinstance(version, int) else config


def _crio(host: HostRoot) -> Iterator[RuntimeConfig]:
    files = [*host.existing((CRIO,)), *host.names(_CRIO_PARTS, "*")]
    if not files:
        return
    config = RuntimeConfig("crio", CRIO if files[0] == CRIO else _CRIO_PARTS, cdi=True)
    for file in files:
        document, problem = _toml(host.text(file))
        if problem:
            config = replace(config, problem=f"{file}: {problem}")
            continue
        section = _table(_table(document, "crio"), "runtime")
        runtimes = _table(section, "runtimes")
        handlers = {one: _word(_table(runtimes, one), "runtime_path") for one in runtimes}
        manager = _word(section, "cgroup_manager")
        config = replace(
            config,
            handlers=MappingProxyType({**config.handlers, **handlers}),
            default_handler=_word(section, "default_runtime") or config.default_handler,
            cdi_folders=_words(section, "cdi_spec_dirs") or config.cdi_folders,
            systemd_cgroup=manager == "systemd" if manager else config.systemd_cgroup,
        )
    yield config


def _toolkit(host: HostRoot) -> ToolkitConfig | None:
    if not host.exists(TOOLKIT):
        return None
    document, problem = _toml(host.text(TOOLKIT))
    variable = document.get("accept-nvidia-visible-devices-envvar-when-unprivileged", True)
    mounts = document.get("accept-nvidia-visible-devices-as-volume-mounts", False)
    return ToolkitConfig(TOOLKIT, bool(variable), bool(mounts), problem)


def _specs(host: HostRoot, folder: str) -> Iterator[CdiSpec]:
    for path in (*host.names(folder, "*.json"), *host.names(folder, "*.yaml")):
        text = host.text(path)
        if text is None:
            yield CdiSpec(path, problem="it cannot be read")
            continue
        try:
            value: object = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
        except (ValueError, yaml.YAMLError) as error:
            yield CdiSpec(path, problem=str(error).partition("\n")[0])
            continue
        yield _spec(host, path, value)


def _spec(host: HostRoot, path: str, value: object) -> CdiSpec:
    kind = _word(value, "kind")
    devices = _tables(value, "devices")
    if not kind or not devices:
        return CdiSpec(path, problem="it has no kind, or no devices")
    edits = [_table(one, "containerEdits") for one in (value, *devices)]
    sources = [
        _word(node, "hostPath") or _word(node, "path")
        for edit in edits
        for node in _tables(edit, "deviceNodes")
    ]
    sources += [_word(one, "hostPath") for edit in edits for one in _tables(edit, "mounts")]
    missing = tuple(one for one in dict.fromkeys(sources) if one and not host.exists(one))
    return CdiSpec(path, kind, tuple(_word(device, "name") for device in devices), missing)


def _toml(text: str | None) -> tuple[dict[str, object], str]:
    if text is None:
        return {}, "it cannot be read"
    try:
        return tomllib.loads(text), ""
    except tomllib.TOMLDecodeError as error:
        return {}, str(error)


def _table(value: object, key: str) -> dict[str, object]:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def _tables(value: object, key: str) -> list[object]:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []


def _word(value: object, key: str) -> str:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, str) else ""


def _words(value: object, key: str) -> tuple[str, ...]:
    return tuple(one for one in _tables(value, key) if isinstance(one, str))
