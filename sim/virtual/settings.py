"""The plugin's settings for a run in virtual time: the user's, or those of the scenario."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from gpuplugin.config.load import load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuplugin.config.options import Option
    from gpuplugin.config.schema import Settings
    from sim.scenario import Scenario


def settings_for(
    scenario: Scenario,
    flags: Mapping[Option, str],
    environment: Mapping[str, str],
    config_file: str | None,
) -> Settings:
    """Flags win over variables, these over the file; a file of the user's over the scenario's.

    Raises:
        gpuplugin.config.load.ConfigError: with every problem.
    """
    if config_file or scenario.config is None:
        return load_settings(flags, environment, config_file).settings
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{scenario.name}-config.yaml"
        file.write_text(yaml.safe_dump(scenario.config), encoding="utf-8")
        return load_settings(flags, environment, str(file)).settings
