"""`gpuplugin top`: GPUs, replicas and pods of a node, live, from the plugin that runs there."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from gpuplugin.cli.health import ask_daemon
from gpuplugin.cli.options import load
from gpuplugin.cli.text import fail
from gpuplugin.config.loaded import ConfigError
from gpuplugin.daemon.serving.sockets import KubeletDirs
from gpuplugin.linesocket import ControlError

if TYPE_CHECKING:
    import argparse

LEAST_INTERVAL_S = 0.2


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class PodName(_Part):
    namespace: str
    name: str


class Tenant(_Part):
    index: str
    pod: PodName | None
    container: str
    replicas: int
    memory_bytes: int | None
    sm_share: float | None
    fair_memory_bytes: int | None

    @property
    def over_fair_share(self) -> bool:
        used, fair = self.memory_bytes, self.fair_memory_bytes
        return used is not None and fair is not None and used > fair


class Unit(_Part):
    """A GPU or MIG device."""

    index: str
    product: str
    state: str
    reason: str
    action: str
    usable: bool
    gone: bool
    replicas: int
    allocated: int | None
    tenants: list[Tenant]
    utilization: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    temperature_c: float | None
    power_w: float | None
    throttled: str


class Call(_Part):
    age_s: float
    resource: str
    devices: list[str]
    error: str


class Page(_Part):
    """What the daemon says of its node; see `gpuplugin.daemon.http.pageview`."""

    node: str
    summary: str
    tone: str
    counts: str
    problems: dict[str, str]
    """Components that are not ok, with the reason."""
    units: list[Unit]
    calls: list[Call]
    unseen: dict[str, str]


def top(parsed: argparse.Namespace) -> int:
    """Show the node until Ctrl-C; 1 if no daemon answers."""
    try:
        dirs = KubeletDirs(load(parsed).settings.daemon.kubelet_dir)
        page = _page(dirs)
        if parsed.json:
            print(page.model_dump_json(indent=2))
            return 0
        return _show(page, dirs, parsed)
    except (ConfigError, ControlError) as error:
        return fail(error)
    except KeyboardInterrupt:
        return 0


def _page(dirs: KubeletDirs) -> Page:
    return Page.model_validate(ask_daemon(dirs, {"page": True}))


def _show(page: Page, dirs: KubeletDirs, parsed: argparse.Namespace) -> int:
    try:
        from rich.console import Console
        from rich.live import Live

        from gpuplugin.cli.topscreen import screen
    except ModuleNotFoundError as error:
        if error.name != "rich":
            raise
        return fail("top needs a library: pip install 'gpuplugin[cli]' (--json works without)")
    console = Console(highlight=False)
    if parsed.once or not sys.stdout.isatty():
        console.print(screen(page, console.width, None))
        return 0
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(screen(page, console.width, console.height), refresh=True)
            time.sleep(max(LEAST_INTERVAL_S, parsed.interval))
            page = _page(dirs)
