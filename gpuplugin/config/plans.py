"""From settings to the plans of the core: what the configuration means for devices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.config.values import XID_WORDS
from gpuplugin.core.faults import XidPolicy
from gpuplugin.core.health import HealthPolicy
from gpuplugin.core.injection import Extras, InjectionPlan, Mount, imex_channel_node
from gpuplugin.core.inventory import Plan
from gpuplugin.core.sharing import GpuFilter, NamePattern, SharedResource, TimeSlicing
from hal import TimeSliceLevel

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from gpuplugin.config.settings import Settings

CONTROL_NODES = (
    "/dev/nvidiactl",
    "/dev/nvidia-uvm",
    "/dev/nvidia-uvm-tools",
    "/dev/nvidia-modeset",
)
"""Nodes that every container with a GPU needs, as far as the node has them."""

STAND_IN_NODE = "/dev/null"
"""A runtime starts no container with a device node that its host has not."""


SIMULATED_DRIVER = "/usr/local/nvidia"
"""Where a container has the files of a simulated driver: images of CUDA name it in their paths."""


def inventory_plan(settings: Settings) -> Plan:
    return Plan(
        sharing=sharing_plan(settings),
        mig_strategy=settings.flags.mig_strategy,
        gpu_names=tuple(NamePattern(one.pattern, one.name) for one in settings.resources.gpus),
        mig_names=tuple(NamePattern(one.pattern, one.name) for one in settings.resources.mig),
        gpu_filter=GpuFilter(tuple(settings.gpus.include), tuple(settings.gpus.exclude)),
    )


def sharing_plan(settings: Settings) -> TimeSlicing:
    section = settings.sharing.time_slicing
    if section is None:
        return TimeSlicing()
    return TimeSlicing(
        resources=tuple(
            SharedResource(one.name, one.replicas, one.devices, one.rename)
            for one in section.resources
        ),
        rename_by_default=section.rename_by_default,
        fail_requests_greater_than_one=section.fail_requests_greater_than_one,
        interval=TimeSliceLevel[section.interval.upper()] if section.interval else None,
    )


def injection_plan(
    settings: Settings,
    existing_nodes: Collection[str],
    *,
    features_present: Collection[str] | None = None,
) -> InjectionPlan:
    """What containers get.

    `existing_nodes` are the device nodes that this node has; `features_present` the features
    (`gdrcopy`, `gds`, `mofed`) that have some, None for all of them.
    """
    flags = settings.flags
    features = {
        "gdrcopy": flags.gdrcopy_enabled,
        "gds": flags.gds_enabled,
        "mofed": flags.mofed_enabled,
    }
    enabled = tuple(name for name, on in features.items() if on)
    present = enabled if features_present is None else features_present
    return InjectionPlan(
        strategies=frozenset(flags.plugin.device_list_strategy),
        id_strategy=flags.plugin.device_id_strategy,
        pass_device_specs=flags.plugin.pass_device_specs,
        dev_root=flags.nvidia_dev_root or flags.nvidia_driver_root,
        control_nodes=tuple(node for node in CONTROL_NODES if node in existing_nodes),
        imex_channels=tuple(
            channel
            for channel in settings.imex.channel_ids
            if imex_channel_node(channel) in existing_nodes
        ),
        features=enabled,
        absent_features=frozenset(enabled).difference(present),
        cdi_annotation_prefix=flags.plugin.cdi_annotation_prefix,
        stand_in_node=STAND_IN_NODE if settings.daemon.backend == "sim" else "",
        extras=pod_extras(settings),
    )


def pod_extras(settings: Settings) -> Extras:
    """What pods with simulated GPUs get of the folder that the node fills for them.

    The program is where every image looks for programs, as NVIDIA's runtime puts it: a PATH of ours
    would replace that of the image.
    """
    folder = settings.daemon.pod_files
    if settings.daemon.backend != "sim" or not folder:
        return Extras()
    return Extras(
        envs=(
            ("GPUPLUGIN_SIM_NVML", f"{SIMULATED_DRIVER}/run/nvml.sock"),
            ("LD_LIBRARY_PATH", f"{SIMULATED_DRIVER}/lib64"),
        ),
        mounts=(
            Mount(SIMULATED_DRIVER, folder),
            Mount("/usr/bin/nvidia-smi", f"{folder}/bin/nvidia-smi"),
        ),
    )


def driver_root(settings: Settings) -> Path:
    """Where to look for the driver's files: in a container, where the host's root is mounted."""
    mounted = Path(settings.flags.plugin.container_driver_root)
    return mounted if mounted.is_dir() else Path(settings.flags.nvidia_driver_root)


def health_policy(settings: Settings) -> HealthPolicy:
    """Which faults make a GPU Unhealthy, and for how long."""
    health = settings.health
    ignored, fatal = health.ignore_xids, health.fatal_xids
    return HealthPolicy(
        quiet_period_s=health.quiet_period,
        quiet_period_cap_s=max(health.quiet_period_cap, health.quiet_period),
        flap_memory_s=health.flap_memory,
        xids=XidPolicy(
            ignored=_numbers(ignored),
            fatal=_numbers(fatal),
            all_ignored=not XID_WORDS.isdisjoint(ignored),
            all_fatal=not XID_WORDS.isdisjoint(fatal),
        ),
        hardware_checks="all" not in ignored,
        fabric_check=health.fabric_check,
        confidential_check=health.confidential_check,
    )


def _numbers(terms: Iterable[int | str]) -> frozenset[int]:
    return frozenset(term for term in terms if isinstance(term, int))
