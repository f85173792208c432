"""The plugin's settings for a run in virtual time: the user's, or those of the scenario."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from gpuplugin.config.document import Document
from gpuplugin.config.load import load_settings
from gpuplugin.core.inventory import GPU_RESOURCE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuplugin.config.loaded import Loaded
    from gpuplugin.config.options import Option
    from gpuplugin.config.settings import Settings
    from sim.node.scenario import Scenario


def load_for(
    scenario: Scenario,
    flags: Mapping[Option, str],
    environment: Mapping[str, str],
    config_file: str | None,
) -> Loaded:
    """Flags over variables over the file, or without one the scenario's; raises `ConfigError`."""
    own = None
    if scenario.config is not None:
        # Lines are those of the scenario, which does not keep them: the key has to be enough.
        name = f"config of the scenario {scenario.name}"
        own = Document(name, MappingProxyType(scenario.config), MappingProxyType({}))
    return load_settings(flags, environment, config_file, own)


def settings_for(
    scenario: Scenario,
    flags: Mapping[Option, str],
    environment: Mapping[str, str],
    config_file: str | None,
) -> Settings:
    """The settings alone: see `load_for`."""
    return load_for(scenario, flags, environment, config_file).settings


def with_replicas(config: object, replicas: object) -> dict[str, object]:
    """The plugin's configuration, with all of its time slicing that is of whole GPUs set."""
    node: dict[str, object] = dict(config) if isinstance(config, dict) else {"version": "v1"}
    shared = node.get("sharing")
    sharing: dict[str, object] = dict(shared) if isinstance(shared, dict) else {}
    slicing = sharing.get("timeSlicing")
    before: dict[str, object] = dict(slicing) if isinstance(slicing, dict) else {}
    resources = before.get("resources")
    others = [
        one
        for one in (resources if isinstance(resources, list) else [])
        if not isinstance(one, dict) or one.get("name") != GPU_RESOURCE
    ]
    sharing["timeSlicing"] = {
        **before,
        "resources": [{"name": GPU_RESOURCE, "replicas": replicas}, *others],
    }
    return {**node, "sharing": sharing}
