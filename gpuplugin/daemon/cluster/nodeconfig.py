"""The configuration that a label of the node chooses: which file it is, and when it changes."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gpuplugin.config.loaded import ConfigError, Problem
from gpuplugin.core.nodechoice import LabelUnreadable, UnknownName, choose
from gpuplugin.core.pacing import Backoff
from gpuplugin.daemon.logs import log_fact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gpuplugin.config.loaded import Loaded
    from gpuplugin.config.settings import Settings

COMPONENT = "node-label"
FIRST_PAUSE_S = 1.0
"""Before another watch; it begins with the label as it is then."""

log = logging.getLogger(__name__)


class LabelSource(Protocol):
    """Where the label comes from; calls block."""

    def read(self) -> str | None:
        """The label now, None if the node has none; raises `LabelUnreadable`."""

    def follow(self) -> Iterator[str | None]:
        """The label now and at each change, until the watch ends; raises `LabelUnreadable`."""


class LabelWatch:
    """The task; `label` is what was last read. Event loop only, but for its thread."""

    def __init__(self, source: LabelSource) -> None:
        self.label: str | None = None
        self._source = source

    def read_first(self) -> None:
        """Read it before anything is served: a node should not start with another's devices."""
        try:
            self.label = self._source.read()
        except LabelUnreadable as error:
            log_fact(log, logging.ERROR, "node-label-unreadable", str(error))

    async def run(self, changed: Callable[[], None], report: Callable[[str, bool], None]) -> None:
        """Call `changed` at each change, and `report` with the watch's state, and if it is ok."""
        loop = asyncio.get_running_loop()
        received: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        stop = threading.Event()

        def hand_on(message: str | Exception | None) -> None:
            if not stop.is_set():
                loop.call_soon_threadsafe(received.put_nowait, message)

        thread = threading.Thread(
            target=_follow, args=(self._source, hand_on, stop), name="node-label", daemon=True
        )
        thread.start()
        try:
            while True:
                message = await received.get()
                if isinstance(message, LabelUnreadable):
                    report(f"{message}; the configuration stays as it is", False)
                    continue
                if isinstance(message, Exception):
                    raise message
                text = f"the node's label: {message}"
                report("the node has no label that chooses" if message is None else text, True)
                if message != self.label:
                    self.label = message
                    changed()
        finally:
            stop.set()


def _follow(
    source: LabelSource,
    hand_on: Callable[[str | Exception | None], None],
    stop: threading.Event,
) -> None:
    """In the thread: watch, and start again when the watch ends.

    What ends the thread is handed on, too: nobody would follow the label any more.
    """
    backoff = Backoff(FIRST_PAUSE_S, 60.0)
    while not stop.is_set():
        try:
            for label in source.follow():
                backoff.reset()
                hand_on(label)
            pause_s = FIRST_PAUSE_S  # servers and proxies end watches now and then
        except LabelUnreadable as error:
            hand_on(error)
            pause_s = backoff.next_s()
        except Exception as error:  # noqa: BLE001 - raised by the task
            hand_on(error)
            return
        stop.wait(pause_s)


def config_names(folder: Path) -> frozenset[str]:
    """Files that a node may choose; raises `ConfigError` if the folder cannot be read."""
    try:
        return frozenset(
            entry.name
            for entry in folder.iterdir()
            if not entry.name.startswith("..") and entry.is_file()
        )
    except OSError as error:
        problem = Problem(str(folder), "", f"{error.strerror}: mount the ConfigMap there")
        raise ConfigError((problem,)) from error


class NodeChoice:
    """Reads what the node's label chooses; `read` reads one file, or the default."""

    def __init__(
        self, folder: Path, default: str, watch: LabelWatch, read: Callable[[str | None], Loaded]
    ) -> None:
        self.folder = folder
        self.watch = watch
        self._default = default
        self._read = read

    def load(self) -> Loaded:
        """Raises `ConfigError` if the label names no file, or the file is wrong."""
        return self._load(self.watch.label)

    def load_first(self) -> Loaded:
        """As `load`, but a bad label counts as none; raises `ConfigError` if that fails too."""
        self.watch.read_first()
        try:
            return self.load()
        except ConfigError as error:
            text = f"{error}; the node begins as if it had no label"
            log_fact(log, logging.ERROR, "config-refused", text)
            return self._load(None)

    def _load(self, label: str | None) -> Loaded:
        try:
            name = choose(label, self._default, config_names(self.folder))
        except UnknownName as error:
            raise ConfigError((Problem(str(self.folder), "", str(error)),)) from error
        return self._read(None if name is None else str(self.folder / name))


def node_choice(settings: Settings, read: Callable[[str | None], Loaded]) -> NodeChoice | None:
    """The choice, if the settings want one; raises `ConfigError` without a client or a cluster."""
    daemon = settings.daemon
    if not daemon.config_map_dir:
        return None
    try:
        from gpuplugin.daemon.cluster.kubeapi import NoCluster, NodeLabel
    except ImportError as error:
        text = f"{error}: pip install 'gpuplugin[kubernetes]'"
        raise ConfigError((Problem("--config-map-dir", "", text),)) from error
    try:
        source = NodeLabel(daemon.node_name)
    except NoCluster as error:
        raise ConfigError((Problem("--config-map-dir", "", str(error)),)) from error
    return NodeChoice(Path(daemon.config_map_dir), daemon.default_config, LabelWatch(source), read)
