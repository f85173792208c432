"""Follows the configuration file: a valid change is applied, an invalid one is logged and ignored.

The content is compared, not names or times, so a swapped ConfigMap link is a change and a touched
file is none. SIGHUP reads the file at once, changed or not.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.config.loaded import CHANGE_REFUSED, TIMEOUT_S, ConfigError, read_file
from gpuplugin.core.node import ConfigurationMisfit
from gpuplugin.daemon.calls import HalThread
from gpuplugin.daemon.logs import log_fact
from gpuplugin.daemon.tasks import wait_period_or
from hal import HalHung

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gpuplugin.config.loaded import Loaded
    from gpuplugin.daemon.files import FileWatch
    from gpuplugin.daemon.http.metrics import Metrics
    from gpuplugin.daemon.status import StatusBoard

POLL_S = 2.0
LOOK_TIMEOUT_S = 10.0
LOAD_TIMEOUT_S = 2 * TIMEOUT_S + LOOK_TIMEOUT_S
"""More than the readers of a label's choice take, who have deadlines of their own."""
COMPONENT = "config"

log = logging.getLogger(__name__)


_UNSURE = b"it changed while it was read"


class Reloader:
    """The task that applies changed configurations.

    `load` reads all layers anew and raises `ConfigError`; `adopt` puts settings in force and
    raises `ConfigurationMisfit` if the node cannot have them. In `folder` are files to choose from:
    one that is added or removed is a change, too. Without `files` it looks every `POLL_S`.
    """

    def __init__(
        self,
        first: Loaded,
        load: Callable[[], Loaded],
        adopt: Callable[[Loaded], Awaitable[None]],
        status: StatusBoard,
        metrics: Metrics,
        folder: Path | None = None,
        files: FileWatch | None = None,
    ) -> None:
        self._folder = folder
        self._files = files
        self._look_s = POLL_S
        self._in_force = first
        self._load = load
        self._adopt = adopt
        self._status = status
        self._metrics = metrics
        self._thread = HalThread("config")
        self._turn = asyncio.Event()
        self._requested = False
        self._accepted()

    def request(self) -> None:
        """Read the file at the next turn of the loop, changed or not (SIGHUP)."""
        self._requested = True
        self._turn.set()

    async def run(self) -> None:
        """Follow the file until cancelled.

        A change counts once it stood still for a poll: a file is often emptied before it is
        written, and an empty one is valid.
        """
        try:
            seen = moving = await self._catch_up()
            while True:
                requested = await self._pause(moves=moving != seen)
                now = await self._fingerprint()
                if requested or (now != seen and now == moving):
                    await self._reload()
                    seen = await self._seen(now)
                moving = now
        finally:
            self._thread.close()

    async def _catch_up(self) -> bytes | None:
        """Apply what changed since the start; returns the fingerprint.

        A while after the start, which needs the processor for the kubelet.
        """
        requested = await self._pause(moves=True)
        seen = await self._fingerprint()
        if requested or seen is not None:
            await self._reload(only_if_other=not requested)
            seen = await self._seen(seen)
        return seen

    async def _seen(self, before: bytes | None) -> bytes | None:
        """The fingerprint of what was just loaded, or one that no file has where that is not sure.

        A file that changed meanwhile, and is changed back, would count as seen otherwise.
        """
        return before if await self._fingerprint() == before else _UNSURE

    async def _pause(self, *, moves: bool) -> bool:
        """Wait for the next look, a whole `POLL_S` if the file moves; True if it was requested."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + (POLL_S if moves else self._look_s)
        while not self._requested and loop.time() < due_s:
            await wait_period_or(self._turn, POLL_S if moves else self._look_s)
            if not moves:
                break
        requested, self._requested = self._requested, False
        return requested

    async def _fingerprint(self) -> bytes | None:
        """The content of the file and the folder's names; None without a readable file."""
        if self._in_force.file is None and self._folder is None:
            return None
        try:
            return await self._thread.call(LOOK_TIMEOUT_S, self._look, self._in_force.file)
        except HalHung:
            return None

    def _look(self, path: str | None) -> bytes | None:
        """In a thread: the file may be on a network."""
        folders = [self._folder] if self._folder else []
        if path:
            folders += [Path(path).parent, Path(path).resolve().parent]
        if self._files is not None:
            self._look_s = self._files.follow(folders, self._turn)  # before the look
        found: list[bytes] = []
        try:
            if self._folder:
                found += map(os.fsencode, sorted(os.listdir(self._folder)))  # noqa: PTH208
            found.append(read_file(Path(path)) if path else b"")
        except OSError:
            return None
        except ConfigError as error:  # it is there, and reading it says what is wrong with it
            found.append(str(error).encode())
        return b"\0".join(found)

    async def _reload(self, *, only_if_other: bool = False) -> None:
        try:
            loaded = await self._thread.call(LOAD_TIMEOUT_S, self._load)
            if loaded.blank and not self._in_force.blank:
                self._refused(f"{loaded.file} is empty; write {{}} to share nothing")
                return
            if only_if_other and loaded.settings == self._in_force.settings:
                return
            await self._adopt(loaded)
        except (ConfigError, ConfigurationMisfit) as error:
            self._refused(str(error))
            return
        except Exception as error:  # whatever it is, the node must go on with what it has
            log.exception("reading the configuration failed", extra={"event": "config-failed"})
            self._refused(f"{type(error).__name__}: {error}")
            return
        self._in_force = loaded
        self._accepted()
        self._metrics.config_reloads.labels("accepted").inc()
        for warning in loaded.warnings:
            log.warning("%s", warning, extra={"event": "config-warning"})
        text = f"the configuration from {loaded.source} is in force"
        log_fact(log, logging.INFO, "config-reloaded", text)

    def _accepted(self) -> None:
        self._metrics.config_good.set(1)
        self._metrics.config_good_since.set_to_current_time()
        self._status.set(COMPONENT, f"in force: {self._in_force.source}", ok=True)

    def _refused(self, why: str) -> None:
        """The last good configuration stays in force; the node stays ready."""
        self._metrics.config_reloads.labels("refused").inc()
        self._metrics.config_good.set(0)
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        text = f"{CHANGE_REFUSED} at {when}, the last good one stays in force: {why}"
        self._status.set(COMPONENT, text, ok=True)
        text = "the changed configuration cannot be used, the last good one stays in force"
        log_fact(log, logging.ERROR, "config-refused", f"{text}: {why}")
