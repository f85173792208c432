"""What may be configured, with types and defaults. Names in the file are the aliases.

`flags`, `sharing` and `health` can stand in the file; `daemon` comes from flags and variables only.
Settings of NVIDIA's plugin that this version cannot honour are refused, never silently dropped.
"""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic reads the annotation
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic_settings import BaseSettings, SettingsConfigDict

from gpuplugin.config.values import full_resource_name, parse_duration_s
from gpuplugin.core.health import HealthPolicy
from gpuplugin.core.sharing import TimeSlicing


class Section(BaseModel):
    """A part of the configuration: camelCase in the file, strict types, immutable."""

    model_config = ConfigDict(
        alias_generator=to_camel, extra="ignore", frozen=True, strict=True, validate_default=False
    )


def _integral(value: object) -> object:
    """YAML's 2.0 counts as 2, as it does for NVIDIA's plugin."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _seconds(value: object) -> object:
    return parse_duration_s(value) if isinstance(value, str) else value


def _only_envvar(value: object) -> object:
    """A string or a list of strings in the file; the one strategy that this version has."""
    strategies = [value] if isinstance(value, str) else value
    if strategies != ["envvar"]:
        raise ValueError(f"must be 'envvar' (in this version), found {value!r}")
    return ("envvar",)


def _no_mps(value: object) -> object:
    if value is not None:
        raise ValueError("sharing by MPS is not supported yet; use sharing.timeSlicing")
    return value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]


class TimeSlicingResource(Section):
    """One entry of sharing.timeSlicing.resources."""

    name: Annotated[str, AfterValidator(full_resource_name)]
    replicas: Annotated[int, BeforeValidator(_integral), Field(ge=1)]


class TimeSlicingSection(Section):
    """sharing.timeSlicing."""

    rename_by_default: bool = False
    fail_requests_greater_than_one: bool = False
    resources: Annotated[list[TimeSlicingResource], Field(min_length=1)]


class SharingSection(Section):
    """sharing."""

    time_slicing: TimeSlicingSection | None = None
    mps: Annotated[None, BeforeValidator(_no_mps)] = None


class PluginFlags(Section):
    """flags.plugin."""

    container_driver_root: str = "/driver-root"
    pass_device_specs: Literal[False] = False
    device_list_strategy: Annotated[tuple[Literal["envvar"]], BeforeValidator(_only_envvar)] = (
        "envvar",
    )
    device_id_strategy: Annotated[Literal["uuid"], Field(alias="deviceIDStrategy")] = "uuid"
    shared_devices_allocation_policy: Literal["distributed"] = "distributed"


class Flags(Section):
    """flags."""

    mig_strategy: Literal["none"] = "none"
    fail_on_init_error: bool = False
    nvidia_driver_root: str = "/"
    plugin: PluginFlags = PluginFlags()


class HealthSection(Section):
    """health: how soon a GPU that failed is used again."""

    quiet_period: Seconds = 30.0
    quiet_period_cap: Seconds = 1800.0
    probe_interval: Seconds = 5.0


class DaemonOptions(Section):
    """How the daemon runs; not part of the file."""

    backend: Literal["nvml", "sim"] = "nvml"
    scenario: str = "default"
    kubelet_dir: Annotated[Path, Field(strict=False)]
    registration: Literal["watcher", "classic", "none"] = "watcher"
    listen_address: str = "0.0.0.0:2112"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"


class Settings(BaseSettings):
    """The whole configuration, after all layers."""

    model_config = SettingsConfigDict(
        alias_generator=to_camel, extra="ignore", frozen=True, strict=True
    )

    version: Literal["v1"] = "v1"
    flags: Flags = Flags()
    sharing: SharingSection = SharingSection()
    health: HealthSection = HealthSection()
    daemon: DaemonOptions

    def time_slicing(self) -> TimeSlicing:
        """The sharing plan, as the inventory needs it."""
        section = self.sharing.time_slicing
        if section is None:
            return TimeSlicing()
        return TimeSlicing(
            replicas={entry.name: entry.replicas for entry in section.resources},
            rename_by_default=section.rename_by_default,
            fail_requests_greater_than_one=section.fail_requests_greater_than_one,
        )

    def health_policy(self) -> HealthPolicy:
        """The patience of the health machine."""
        return HealthPolicy(
            quiet_period_s=self.health.quiet_period,
            quiet_period_cap_s=max(self.health.quiet_period_cap, self.health.quiet_period),
        )
