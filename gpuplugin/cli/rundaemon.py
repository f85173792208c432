"""The daemon as a command: its settings, its backend, and its exit status."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import sys
import threading
from importlib import import_module
from typing import TYPE_CHECKING

from gpuplugin.cli.backends import BackendError, make_backend
from gpuplugin.config.loaded import ConfigError, Loaded, Reading
from gpuplugin.daemon.app import run as run_daemon
from gpuplugin.daemon.cluster.nodeconfig import node_choice
from gpuplugin.daemon.frontdoor import load_front_door
from gpuplugin.daemon.logs import set_up_logging
from gpuplugin.daemon.tasks import Fatal
from gpuplugin.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

_LIBRARIES = {
    "nvml": "hal.nvml.binding",
    "fast": "gpuplugin.rpc.fast",
    "grpcio": "gpuplugin.rpc.grpcio_engine",
}
"""What a backend or RPC engine needs, beside what every daemon has loaded."""

log = logging.getLogger("gpuplugin")


def run(arguments: Sequence[str], reading: Reading) -> int:
    """Run with the configuration that a child reads meanwhile; see `gpuplugin.cli.run`."""

    def load(config_file: str | None = None) -> Loaded:
        """Load the configuration again, with `config_file` in place of the user's."""
        instead = [] if config_file is None else ["--config-file", config_file]
        return Reading("gpuplugin.cli.run", [*arguments, *instead]).result()

    faulthandler.enable()  # a driver's library that crashes leaves the stacks of all threads
    threading.excepthook = _thread_failed
    try:
        loaded = reading.result()
        set_up_logging(loaded.settings.daemon.log_level, loaded.settings.daemon.log_format)
        choice = node_choice(loaded.settings, load)
        if choice is not None:
            loaded = choice.load_first()
    except ConfigError as error:
        print(f"gpuplugin: the configuration cannot be used:\n{error}", file=sys.stderr)
        return 1
    settings = loaded.settings
    # Before anything serves: nothing is imported in a thread, or while one serves.
    for name in (settings.daemon.backend, settings.daemon.rpc_engine):
        if name in _LIBRARIES:
            import_module(_LIBRARIES[name])
    try:
        load_front_door(settings)
    except Fatal as fatal:
        log.error("%s", fatal, extra={"event": "fatal"})  # noqa: TRY400 - the text says it all
        return 1
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
            reload = load if choice is None else choice.load
            return asyncio.run(run_daemon(loaded, reload, backend, VERSION, choice))
    except BackendError as error:
        log.error("%s", error, extra={"event": "fatal"})  # noqa: TRY400 - the text says it all
        return 1


def _thread_failed(what: threading.ExceptHookArgs) -> None:
    """A thread ended by an error: the log has it, with everything else."""
    name = what.thread.name if what.thread else "?"
    error = what.exc_value or what.exc_type()
    log.error("the thread %s failed", name, exc_info=error, extra={"event": "thread-failed"})
