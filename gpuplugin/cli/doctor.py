"""`gpuplugin doctor`: checks a node and says what to do. The checks are in `gpuplugin.doctor`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.cli.backends import BackendError, make_backend
from gpuplugin.cli.options import given_options
from gpuplugin.config.load import load_settings
from gpuplugin.config.loaded import ConfigError
from gpuplugin.doctor.checks import CHECKS
from gpuplugin.doctor.collect import CONFIG_PLACES, collect
from gpuplugin.doctor.collect.driver import collect_hardware
from gpuplugin.doctor.collect.host import HostRoot
from gpuplugin.doctor.facts import ConfigFacts, Failure, HardwareFacts
from gpuplugin.doctor.verdict import EXIT_STATUS, as_json, as_text, diagnose, worst

if TYPE_CHECKING:
    import argparse

    from gpuplugin.config.settings import Settings


def doctor(parsed: argparse.Namespace) -> int:
    """Check the node; 0 all well, 1 warnings, 3 failures."""
    root = Path(parsed.root).absolute()
    host = HostRoot(root)
    config = _configuration(parsed, host)
    hardware = _hardware(config.settings, root, parsed.timeout)
    findings = diagnose(collect(host, config, hardware, parsed.plugin_uid), CHECKS)
    print(as_json(findings) if parsed.json else as_text(findings))
    return EXIT_STATUS[worst(findings)]


def _configuration(parsed: argparse.Namespace, host: HostRoot) -> ConfigFacts:
    """The configuration, or the defaults with what is wrong with the given one."""
    unread = () if parsed.config_file else tuple(host.existing(CONFIG_PLACES))
    try:
        loaded = load_settings(given_options(parsed), os.environ, parsed.config_file)
    except ConfigError as error:
        return ConfigFacts(
            source=parsed.config_file or "flags and variables",
            settings=_as_far_as_possible(parsed),
            problems=tuple(str(problem) for problem in error.problems),
            unread=unread,
        )
    warnings = tuple(str(warning) for warning in loaded.warnings)
    return ConfigFacts(loaded.source, loaded.settings, warnings=warnings, unread=unread)


def _as_far_as_possible(parsed: argparse.Namespace) -> Settings:
    """Flags and variables without the file if they are sound, else flags, else the defaults."""
    for flags, environment in ((given_options(parsed), os.environ), (given_options(parsed), {})):
        try:
            return load_settings(flags, environment, None).settings
        except ConfigError:
            continue
    return load_settings({}, {}, None).settings


def _hardware(settings: Settings, root: Path, budget_s: float) -> HardwareFacts:
    name = settings.daemon.backend
    try:
        with make_backend(settings, control=False, host=root) as backend:
            return collect_hardware(backend, name, budget_s)
    except BackendError as error:
        return HardwareFacts(name, failure=Failure.OTHER, cause=str(error))
