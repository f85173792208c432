"""What a configuration means on this very machine: plans, and the device nodes that there are."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from gpuplugin.config.plans import CONTROL_NODES, health_policy, injection_plan, inventory_plan
from gpuplugin.core.injection import imex_channel_node
from gpuplugin.core.node import ConfigurationMisfit
from gpuplugin.core.nodeview import NodePlan
from gpuplugin.core.watch import WatchPlan
from gpuplugin.daemon.serving.cdi import cdi_host, cdi_writer, present_features, remove_specs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuplugin.config.settings import Settings

_PCIE_ROOT = re.compile(r"pci[0-9a-f]{4}:[0-9a-f]{2}(?=/)")

log = logging.getLogger(__name__)


def node_plan(settings: Settings) -> NodePlan:
    """Reads files, so it blocks; raises `ConfigurationMisfit` without a required IMEX channel."""
    nodes = existing_nodes(settings)
    plan = injection_plan(settings, nodes, features_present=present_features(settings))
    missing = [one for one in settings.imex.channel_ids if imex_channel_node(one) not in nodes]
    if missing:
        text = f"IMEX channel {missing[0]} has no device node {imex_channel_node(missing[0])}"
        if settings.imex.required:
            raise ConfigurationMisfit(f"{text}; start the IMEX service, or unset imex.required")
        log.warning("%s: it is left out", text, extra={"event": "imex-missing"})
    dra = None
    if settings.daemon.allocation == "dra":
        plan = replace(plan, strategies=frozenset())  # each claim has a spec of its own
        from gpuplugin.core.dra.devices import DraPlan  # the front door has loaded it

        roots = pcie_roots(settings.daemon.sysfs_root)
        dra = DraPlan(cdi_host(settings, plan), roots, settings.health.evict_lost)
    return NodePlan(
        inventory=inventory_plan(settings),
        injection=plan,
        policy=settings.flags.plugin.shared_devices_allocation_policy,
        health=health_policy(settings),
        specs=cdi_writer(settings, plan) if plan.uses_cdi else None,
        dra=dra,
    )


def pcie_roots(sysfs_root: Path) -> Mapping[str, str]:
    """The PCIe root complex of each PCI device by its bus id, as sysfs has them; or none."""
    roots: dict[str, str] = {}
    try:
        for link in (sysfs_root / "bus/pci/devices").iterdir():
            if found := _PCIE_ROOT.search(str(link.readlink())):
                roots[link.name] = found[0]
    except OSError as error:
        log.debug("PCIe roots are not known: %s", error, extra={"event": "pcie-roots"})
    return MappingProxyType(roots)


def watch_plan(settings: Settings) -> WatchPlan:
    return WatchPlan(
        probe_interval_s=settings.health.probe_interval,
        blind_after_s=settings.health.blind_after,
        watch_events=health_policy(settings).needs_events,
    )


def warn_of_exposure(settings: Settings) -> None:
    """Warn once of what the envvar strategy leaves open."""
    if settings.daemon.allocation == "dra":
        return
    if "envvar" in settings.flags.plugin.device_list_strategy:
        log.warning(
            "device list strategy envvar: a container that requests no GPU may still see all of "
            "them if its image sets NVIDIA_VISIBLE_DEVICES; use cdi-cri, or volume-mounts with "
            "accept-nvidia-visible-devices-envvar-when-unprivileged=false in the runtime",
            extra={"event": "envvar-exposure"},
        )


def remove_unwanted_specs(settings: Settings) -> None:
    """Without CDI, specs of an earlier configuration go; if they cannot, they do no harm."""
    if settings.daemon.allocation == "dra":
        return  # pods that were started by the device plugin may still need them
    if {"cdi-cri", "cdi-annotations"} & set(settings.flags.plugin.device_list_strategy):
        return
    try:
        remove_specs(settings.daemon.cdi_root)
    except OSError as error:
        log.warning("old CDI specs cannot be removed: %s", error, extra={"event": "cdi-stale"})


def existing_nodes(settings: Settings) -> frozenset[str]:
    """The driver's device nodes that this machine has; a simulated node has all of them."""
    wanted = (*CONTROL_NODES, *(imex_channel_node(one) for one in settings.imex.channel_ids))
    if settings.daemon.backend == "sim":
        return frozenset(wanted)
    return frozenset(node for node in wanted if Path(node).exists())
