"""Prometheus and its tools as programs; tests are skipped where they are not installed."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/rules.yaml"
DASHBOARD = ROOT / "deploy/grafana/dashboard.py"

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus and promtool are not installed (Debian: prometheus)",
)


def rule_groups() -> list[dict[str, object]]:
    """The groups of the PrometheusRule, as a rule file has them."""
    groups: list[dict[str, object]] = yaml.safe_load(RULES.read_text())["spec"]["groups"]
    return groups


def alerts() -> dict[str, dict[str, object]]:
    """Every alert by its name."""
    found: dict[str, dict[str, object]] = {}
    for group in rule_groups():
        rules = group["rules"]
        assert isinstance(rules, list)
        found |= {rule["alert"]: rule for rule in rules}
    return found


def condition(alert: dict[str, object]) -> str:
    """What an alert compares, without the comparison: it has a value whether it fires or not."""
    return re.sub(r"\s(==|<|>)\s[0-9.]+$", "", str(alert["expr"]))


def dashboard() -> ModuleType:
    """The module that writes the dashboard."""
    spec = importlib.util.spec_from_file_location("dashboard", DASHBOARD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look for their module by name.
    sys.modules["dashboard"] = module
    spec.loader.exec_module(module)
    return module


def promtool(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool."""
    return subprocess.run(
        ["promtool", *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Prometheus:
    """A running Prometheus."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._base = f"{self.url}/api/v1"

    def query(self, expression: str) -> list[dict[str, object]]:
        """The instant vector of an expression now."""
        data = self._get("query", query=expression)
        result = data["result"]
        assert isinstance(result, list)
        return result

    def firing(self) -> set[str]:
        """Names of alerts that fire."""
        found = self._get("alerts")["alerts"]
        assert isinstance(found, list)
        return {one["labels"]["alertname"] for one in found if one["state"] == "firing"}

    def ready(self) -> bool:
        """Whether it answers."""
        try:
            self._get("query", query="1")
        except OSError:
            return False
        return True

    def _get(self, path: str, **parameters: str) -> dict[str, object]:
        url = f"{self._base}/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - an address of ours
            body = json.load(answer)
        assert body["status"] == "success", body
        data: dict[str, object] = body["data"]
        return data


@contextmanager
def running_prometheus(folder: Path, target_port: int) -> Iterator[Prometheus]:
    """A Prometheus that scrapes one port each second; alerts wait for nothing."""
    groups = rule_groups()
    for group in groups:
        group["interval"] = "1s"
        rules = group["rules"]
        assert isinstance(rules, list)
        for rule in rules:
            rule["for"] = "0s"
    (folder / "rules.yml").write_text(yaml.safe_dump({"groups": groups}))
    job = {
        "job_name": "gpuplugin",
        "static_configs": [
            {"targets": [f"127.0.0.1:{target_port}"], "labels": {"cluster": "simulated"}}
        ],
    }
    (folder / "prometheus.yml").write_text(
        yaml.safe_dump(
            {
                "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
                "rule_files": ["rules.yml"],
                "scrape_configs": [job],
            }
        )
    )
    with serving_prometheus(folder) as server:
        yield server


@contextmanager
def serving_prometheus(folder: Path) -> Iterator[Prometheus]:
    """A Prometheus with the configuration and the data of a folder."""
    process, server = _started(folder) or _started(folder) or _started(folder) or (None, None)
    assert process is not None, "prometheus ended, three times"
    assert server is not None
    try:
        yield server
    finally:
        process.terminate()
        process.wait(20)


def _started(folder: Path) -> tuple[subprocess.Popen[bytes], Prometheus] | None:
    """None if it ended: somebody else may have taken the port that was free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        ],
    )
    server = Prometheus(port)
    deadline_s = time.monotonic() + 30
    while process.poll() is None:
        if server.ready():
            return process, server
        if time.monotonic() > deadline_s:
            process.kill()
            process.wait(20)
        time.sleep(0.1)
    return None
