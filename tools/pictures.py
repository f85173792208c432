"""Makes the pictures of the documents from the running program: `python -m tools.pictures`.

A simulated node with pods at work has some faults, Prometheus scrapes it, and a browser takes the
status page and the dashboard (`deploy/grafana/preview.py`). Needs Prometheus and Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parents[1]
DEADLINE_S = 60.0
SCENARIO = """\
name: shared-node
gpus: [{model: a100-sxm4-80gb, count: 4}]
pods:
- name: trainer
  count: 2
  workload: {kind: closed-loop, busy_ms: 15}
  memory: {start_gib: 30}
- name: notebook
  count: 3
  workload: {kind: open-loop, per_s: 10, busy_ms: 12}
  memory: {start_gib: 2}
- name: api
  count: 2
  workload: {kind: open-loop, per_s: 20, busy_ms: 20}
  memory: {start_gib: 6}
"""
FAULTS = (
    (0.3, "--gpu", "2", "--xid", "31"),
    (0.4, "--gpu", "1", "--xid", "79"),
    (0.6, "--gpu", "3", "--ecc", "corrected"),
    (0.7, "--gpu", "3", "--thermal-shutdown"),
)
"""When, as a share of the time, and what is injected."""
PROMETHEUS = """\
global: {{scrape_interval: 1s}}
scrape_configs:
- job_name: gpuplugin
  static_configs: [{{targets: ["127.0.0.1:{port}"], labels: {{cluster: simulated}}}}]
  relabel_configs: [{{target_label: instance, replacement: node-1}}]
"""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs", metavar="DIR")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gp")))
        port = stack.enter_context(_node(folder))
        server = stack.enter_context(_prometheus(folder, port))
        begin_s = time.monotonic()
        for share, *fault in FAULTS:
            _wait_until(begin_s + share * options.minutes * 60)
            _gpuplugin("sim", "inject", "--kubelet-dir", str(folder / "k"), *fault)
        _wait_until(begin_s + options.minutes * 60)
        _photograph(f"http://127.0.0.1:{port}/", options.out / "status-page.png", 1240, 1000)
        page = options.out / "dashboard.html"
        minutes = f"{options.minutes:g}"
        subprocess.run(
            [sys.executable, ROOT / "deploy/grafana/preview.py", "--prometheus", server,
             "--minutes", minutes, "--out", page],
            check=True,
        )  # fmt: skip
        _photograph(
            page.as_uri(), options.out / "dashboard.png", 1524, 2400, "--virtual-time-budget=4000"
        )
        page.unlink()


@contextmanager
def _node(folder: Path) -> Iterator[int]:
    """A simulated node with pods; the port of its page."""
    (folder / "node.yaml").write_text(SCENARIO)
    (folder / "k").mkdir()
    port = _free_port()
    command: list[str | Path] = [
        sys.executable, "-m", "gpuplugin", "sim", "up", folder / "node.yaml",
        "--kubelet-dir", folder / "k", "--listen-address", f"127.0.0.1:{port}",
    ]  # fmt: skip
    with _running(command):
        _wait_for(f"http://127.0.0.1:{port}/ready")
        yield port


@contextmanager
def _prometheus(folder: Path, target: int) -> Iterator[str]:
    """A Prometheus that scrapes the node each second; its address."""
    program = shutil.which("prometheus")
    if program is None:
        sys.exit("prometheus is not installed (Debian: prometheus)")
    (folder / "prometheus.yml").write_text(PROMETHEUS.format(port=target))
    port = _free_port()
    command: list[str | Path] = [
        program, f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with _running(command):
        _wait_for(f"http://127.0.0.1:{port}/-/ready")
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _running(command: Sequence[str | Path]) -> Iterator[None]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


def _photograph(url: str, picture: Path, width: int, height: int, *options: str) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"no browser: looked for {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory(prefix="gp") as profile:
        subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             "--no-first-run", "--disable-background-networking", *options,
             f"--user-data-dir={profile}", f"--window-size={width},{height}",
             f"--screenshot={picture}", url],
            check=True, capture_output=True, timeout=DEADLINE_S,
        )  # fmt: skip


def _gpuplugin(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "gpuplugin", *arguments], check=True, stdout=subprocess.DEVNULL
    )


def _wait_for(url: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - of this machine
                return
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.2)


def _wait_until(due_s: float) -> None:
    threading.Event().wait(max(0.0, due_s - time.monotonic()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
