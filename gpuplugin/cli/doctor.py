"""`gpuplugin doctor`: checks a node and says what to do. The checks are in `gpuplugin.doctor`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.cli.backends import BackendError, make_backend
from gpuplugin.cli.options import given_options
from gpuplugin.cli.text import terminal, watched
from gpuplugin.config.document import Document
from gpuplugin.config.load import load_settings
from gpuplugin.config.loaded import ConfigError
from gpuplugin.config.options import OPTIONS
from gpuplugin.doctor.checks import CHECKS
from gpuplugin.doctor.collect import CONFIG_PLACES, collect
from gpuplugin.doctor.collect.driver import collect_hardware
from gpuplugin.doctor.collect.host import HostRoot
from gpuplugin.doctor.collect.plugin import collect_plugin
from gpuplugin.doctor.facts import ConfigFacts, Failure, HardwareFacts
from gpuplugin.doctor.verdict import EXIT_STATUS, as_json, as_text, diagnose, worst

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from gpuplugin.config.options import Option
    from gpuplugin.config.settings import Settings
    from gpuplugin.doctor.facts import PluginFacts


WATCH_S = 10.0
_OF_PLUGIN = (
    "allocation",
    "draDriverName",
    "nodeName",
    "backend",
    "scenario",
    "registration",
    "kubeletSocket",
    "listenAddress",
    "cdiRoot",
)
"""Options that a running plugin tells of itself, where the user says nothing else."""


def doctor(parsed: argparse.Namespace) -> int:
    """Check the node; 0 all well, 1 warnings, 3 failures."""
    return watched(lambda: _diagnosis(parsed), WATCH_S if parsed.watch else 0)


def _diagnosis(parsed: argparse.Namespace) -> tuple[int, str]:
    root = Path(parsed.root).absolute()
    host = HostRoot(root)
    daemon = _as_far_as_possible(parsed).daemon
    plugin = collect_plugin(host, str(daemon.kubelet_dir), daemon.listen_address)
    config = _configuration(parsed, host, plugin)
    hardware = _hardware(config.settings, root, parsed.timeout)
    facts = collect(host, config, hardware, plugin, parsed.plugin_uid)
    findings = diagnose(facts, CHECKS)
    asked = plugin.source or f"no plugin ({plugin.problem})"
    status = EXIT_STATUS[worst(findings)]
    if parsed.json:
        return status, as_json(findings, asked)
    header = f"asked: {asked}; GPUs: {hardware.backend}; kubelet: {daemon.kubelet_dir}"
    return status, as_text(findings, header, *terminal())


def _configuration(parsed: argparse.Namespace, host: HostRoot, plugin: PluginFacts) -> ConfigFacts:
    """The configuration, or the defaults with what is wrong with the given one.

    Without a file it is the one that the running plugin has in force.
    """
    flags, document, source = given_options(parsed), None, ""
    if plugin.config is not None:
        flags = _of_plugin(plugin.config) | flags
        data = {key: value for key, value in plugin.config.items() if key != "daemon"}
        source = f"the running plugin's ({plugin.config_source})"
        document = Document(source, data, {})
    is_told = parsed.config_file or document
    unread = () if is_told else tuple(host.existing(CONFIG_PLACES))
    try:
        loaded = load_settings(flags, os.environ, parsed.config_file, document)
    except ConfigError as error:
        return ConfigFacts(
            source=parsed.config_file or source or "flags and variables",
            settings=_as_far_as_possible(parsed),
            problems=tuple(str(problem) for problem in error.problems),
            warnings=tuple(str(warning) for warning in error.warnings),
            unread=unread,
        )
    warnings = tuple(str(warning) for warning in loaded.warnings)
    return ConfigFacts(loaded.source, loaded.settings, warnings=warnings, unread=unread)


def _of_plugin(config: Mapping[str, object]) -> dict[Option, str]:
    """The plugin's options, but for those that variables set here."""
    daemon = config.get("daemon")
    told = daemon if isinstance(daemon, dict) else {}
    return {
        option: str(told[option.path[-1]])
        for option in OPTIONS
        if option.path[0] == "daemon"
        and option.path[-1] in _OF_PLUGIN
        and told.get(option.path[-1]) is not None
        and not any(name in os.environ for name in option.variables)
    }


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
