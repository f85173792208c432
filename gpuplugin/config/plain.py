"""From what was checked to plain values: the settings, without what checked them."""

from __future__ import annotations

from dataclasses import fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, cast

from pydantic import BaseModel

from gpuplugin.config import flags, schema, settings, sharing

if TYPE_CHECKING:
    from collections.abc import Mapping

PLAIN: Final[Mapping[type[BaseModel], type[Any]]] = MappingProxyType(
    {
        flags.PluginFlags: settings.PluginFlags,
        flags.GfdFlags: settings.GfdFlags,
        flags.Flags: settings.Flags,
        flags.ImexSection: settings.Imex,
        sharing.SharedResourceSection: settings.SharedEntry,
        sharing.TimeSlicingSection: settings.TimeSlicingSettings,
        sharing.SharingSection: settings.Sharing,
        sharing.NamePatternSection: settings.NamedPattern,
        sharing.ResourcesSection: settings.Resources,
        schema.HealthSection: settings.Health,
        schema.GpusSection: settings.Gpus,
        schema.DaemonSection: settings.DaemonSettings,
        schema.Schema: settings.Settings,
    }
)
"""The plain class of each section."""


def plain_settings(checked: schema.Schema) -> settings.Settings:
    """The settings that were checked."""
    return cast("settings.Settings", _plain(checked))


def _plain(value: object) -> object:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if not isinstance(value, BaseModel):
        return value
    made = PLAIN[type(value)]
    return made(**{field.name: _plain(getattr(value, field.name)) for field in fields(made)})
