"""Collects facts of Talos Linux: its version, extensions, and what they put on the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from gpuplugin.core.cdi import hook_programs
from gpuplugin.doctor.facts import TalosFacts

if TYPE_CHECKING:
    from gpuplugin.doctor.collect.host import HostRoot

_LINKER_CACHE = "/usr/local/glibc/etc/ld.so.cache"
"""The driver's own, up to 1.12."""


def collect_talos(host: HostRoot, configured_hook: str) -> TalosFacts | None:
    """None if the host's /etc/os-release is not that of Talos."""
    text = host.text("/etc/os-release") or ""
    release = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if release.get("ID") != "talos":
        return None
    cache = host.text(_LINKER_CACHE)
    return TalosFacts(
        version=release.get("VERSION_ID", "").strip('"'),
        extensions=_extensions(host),
        hook=_hook(host, configured_hook),
        bpf_jit_harden=(host.text("/proc/sys/net/core/bpf_jit_harden") or "").strip(),
        cache_names_driver=None if cache is None else "libnvidia-ml.so.1" in cache,
    )


def _hook(host: HostRoot, configured: str) -> str:
    """The one that the plugin finds: below a mounted root, absolute links lead nowhere."""
    programs = host.existing(hook_programs(configured))
    return next((path for path in programs if not host.link(path)), "")


def _extensions(host: HostRoot) -> frozenset[str] | None:
    """Names of those in the image; None if the list cannot be read."""
    text = host.text("/etc/extensions.yaml")
    if text is None:
        return None
    try:
        listed = yaml.safe_load(text)
        return frozenset(str(layer["metadata"]["name"]) for layer in listed["layers"])
    except (KeyError, TypeError, yaml.YAMLError):
        return None
