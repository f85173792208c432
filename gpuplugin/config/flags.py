"""`flags` and `imex` of the file: the options of NVIDIA's plugin, with its names and defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from gpuplugin.config.section import Integer, SecondsOrInfinite, Section
from gpuplugin.core.words import IdStrategy, MigStrategy, PolicyName, Strategy


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _no_tegra(value: str) -> str:
    if value == "tegra":
        raise ValueError("Tegra is not supported; use 'auto' or 'nvml'")
    return value


def _imex_channels(value: list[int]) -> list[int]:
    if value not in ([], [0]):
        raise ValueError(f"must be [] or [0], found {value!r}")
    return value


class PluginFlags(Section):
    """flags.plugin."""

    pass_device_specs: bool = False
    device_list_strategy: Annotated[list[Strategy], BeforeValidator(_listed)] = ["envvar"]
    device_id_strategy: Annotated[IdStrategy, Field(alias="deviceIDStrategy")] = "uuid"
    cdi_annotation_prefix: str = "cdi.k8s.io/"
    nvidia_ctk_path: Annotated[str, Field(alias="nvidiaCTKPath")] = "/usr/bin/nvidia-ctk"
    container_driver_root: str = "/driver-root"
    shared_devices_allocation_policy: PolicyName = "distributed"


class GfdFlags(Section):
    """flags.gfd: options of GPU feature discovery, which is not part of this plugin."""

    oneshot: bool = False
    """read, and of no effect here"""
    no_timestamp: bool = False
    """read, and of no effect here"""
    sleep_interval: SecondsOrInfinite = 60.0
    """read, and of no effect here"""
    output_file: str = "/etc/kubernetes/node-feature-discovery/features.d/gfd"
    """read, and of no effect here"""
    machine_type_file: str = "/sys/class/dmi/id/product_name"
    """read, and of no effect here"""
    use_node_feature_api: Annotated[bool, Field(alias="useNodeFeatureAPI")] = True
    """read, and of no effect here"""


class Flags(Section):
    """flags."""

    mig_strategy: MigStrategy = "none"
    fail_on_init_error: bool = False
    nvidia_driver_root: str = "/"
    nvidia_dev_root: str = ""
    gdrcopy_enabled: bool = False
    gds_enabled: bool = False
    mofed_enabled: bool = False
    mps_root: str = ""
    device_discovery_strategy: Annotated[
        Literal["auto", "nvml", "tegra"], AfterValidator(_no_tegra)
    ] = "auto"
    plugin: PluginFlags = PluginFlags()
    gfd: GfdFlags = GfdFlags()


class ImexSection(Section):
    """imex."""

    channel_ids: Annotated[
        list[Integer], Field(alias="channelIDs"), AfterValidator(_imex_channels)
    ] = []
    required: bool = False
