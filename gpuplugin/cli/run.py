"""`gpuplugin run`: the daemon."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING

from gpuplugin.cli.backends import BackendError, make_backend
from gpuplugin.cli.options import load
from gpuplugin.config.load import ConfigError
from gpuplugin.daemon.app import run as run_daemon
from gpuplugin.daemon.logs import set_up_logging
from gpuplugin.version import VERSION

if TYPE_CHECKING:
    import argparse

log = logging.getLogger("gpuplugin")


def run(parsed: argparse.Namespace) -> int:
    """Run until a signal; 0 then, 1 if the daemon could not start."""
    try:
        loaded = load(parsed)
    except ConfigError as error:
        print(f"gpuplugin: the configuration cannot be used:\n{error}", file=sys.stderr)
        return 1
    settings = loaded.settings
    set_up_logging(settings.daemon.log_level, settings.daemon.log_format)
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
            return asyncio.run(run_daemon(loaded, lambda: load(parsed), backend, VERSION))
    except BackendError as error:
        log.error("%s", error, extra={"event": "fatal"})  # noqa: TRY400 - the text says it all
        return 1
