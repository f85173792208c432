"""The daemon as a command: its settings, its backend, and its exit status."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING

from gpuplugin.cli.backends import BackendError, make_backend
from gpuplugin.cli.options import load_apart
from gpuplugin.config.loaded import ConfigError
from gpuplugin.daemon.app import run as run_daemon
from gpuplugin.daemon.cluster.nodeconfig import node_choice
from gpuplugin.daemon.logs import set_up_logging
from gpuplugin.version import VERSION

if TYPE_CHECKING:
    import argparse

    from gpuplugin.config.apart import Reading

log = logging.getLogger("gpuplugin")


def run(parsed: argparse.Namespace, reading: Reading) -> int:
    """Run with the configuration that is being read; see `gpuplugin.cli.run`."""
    try:
        loaded = reading.result()
        set_up_logging(loaded.settings.daemon.log_level, loaded.settings.daemon.log_format)
        choice = node_choice(loaded.settings, lambda file: load_apart(parsed, file).result())
        if choice is not None:
            loaded = choice.load_first()
    except ConfigError as error:
        print(f"gpuplugin: the configuration cannot be used:\n{error}", file=sys.stderr)
        return 1
    settings = loaded.settings
    log.info(
        "gpuplugin %s, configuration from %s",
        VERSION,
        loaded.source,
        extra={
            "event": "start",
            "backend": settings.daemon.backend,
            "registration": settings.daemon.way_of_registration,
            "kubelet_dir": str(settings.daemon.kubelet_dir),
        },
    )
    for warning in loaded.warnings:
        log.warning("%s", warning, extra={"event": "config-warning"})
    try:
        with make_backend(settings, control=True) as backend:
            read = (lambda: load_apart(parsed).result()) if choice is None else choice.load
            return asyncio.run(run_daemon(loaded, read, backend, VERSION, choice))
    except BackendError as error:
        log.error("%s", error, extra={"event": "fatal"})  # noqa: TRY400 - the text says it all
        return 1
