"""What a configuration means on this very machine: plans, and the device nodes that there are."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.config.plans import CONTROL_NODES, health_policy, injection_plan, inventory_plan
from gpuplugin.core.injection import imex_channel_node
from gpuplugin.daemon.hardware.monitor import MonitorPlan
from gpuplugin.daemon.node import ConfigurationMisfit, NodePlans
from gpuplugin.daemon.serving.cdifiles import present_features, remove_specs

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpuplugin.config.settings import Settings
    from gpuplugin.core.injection import InjectionPlan
    from gpuplugin.core.inventory import Inventory

log = logging.getLogger(__name__)


def node_plans(settings: Settings) -> NodePlans:
    """The plans of a configuration.

    Raises:
        ConfigurationMisfit: an IMEX channel is required and this machine has none.
    """
    nodes = existing_nodes(settings)
    plan = injection_plan(settings, nodes, features_present=present_features(settings))
    missing = [one for one in settings.imex.channel_ids if imex_channel_node(one) not in nodes]
    if missing:
        text = f"IMEX channel {missing[0]} has no device node {imex_channel_node(missing[0])}"
        if settings.imex.required:
            raise ConfigurationMisfit(f"{text}; start the IMEX service, or unset imex.required")
        log.warning("%s: it is left out", text, extra={"event": "imex-missing"})
    return NodePlans(
        inventory=inventory_plan(settings),
        injection=plan,
        policy=settings.flags.plugin.shared_devices_allocation_policy,
        health=health_policy(settings),
        write_specs=_spec_writer(settings, plan) if plan.uses_cdi else _no_specs,
    )


def monitor_plan(settings: Settings) -> MonitorPlan:
    """How the hardware is watched."""
    return MonitorPlan(
        probe_interval_s=settings.health.probe_interval,
        blind_after_s=settings.health.blind_after,
        watch_events=health_policy(settings).needs_events,
    )


def warn_of_exposure(settings: Settings) -> None:
    """Say once what the envvar strategy leaves open."""
    if "envvar" in settings.flags.plugin.device_list_strategy:
        log.warning(
            "device list strategy envvar: a container that asks for no GPU may still see all of "
            "them if its image sets NVIDIA_VISIBLE_DEVICES; use cdi-cri, or volume-mounts with "
            "accept-nvidia-visible-devices-envvar-when-unprivileged=false in the runtime",
            extra={"event": "envvar-exposure"},
        )


def remove_unwanted_specs(settings: Settings) -> None:
    """Without CDI, specs of an earlier configuration go; if they cannot, they do no harm."""
    if {"cdi-cri", "cdi-annotations"} & set(settings.flags.plugin.device_list_strategy):
        return
    try:
        remove_specs(settings.daemon.cdi_root)
    except OSError as error:
        log.warning("old CDI specs cannot be removed: %s", error, extra={"event": "cdi-stale"})


def _spec_writer(settings: Settings, plan: InjectionPlan) -> Callable[[Inventory], None]:
    from gpuplugin.daemon.serving.cdiwriter import cdi_writer  # for those who use CDI

    return cdi_writer(settings, plan).write


def _no_specs(_inventory: Inventory) -> None:
    """Containers are not given CDI names."""


def existing_nodes(settings: Settings) -> frozenset[str]:
    """The driver's device nodes that this machine has; a simulated node has all of them."""
    wanted = (*CONTROL_NODES, *(imex_channel_node(one) for one in settings.imex.channel_ids))
    if settings.daemon.backend == "sim":
        return frozenset(wanted)
    return frozenset(node for node in wanted if Path(node).exists())
