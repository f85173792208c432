"""`gpuplugin advise --check` with a real Prometheus, and metrics that the simulator made."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import gpuplugin
from tests.observability.backfill import backfilled, scrape_node
from tests.observability.tools import needs_prometheus

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [needs_prometheus, pytest.mark.slow]

HOURS = 2


def node(busy_ms: float, memory_gib: float) -> str:
    pods = "\n".join(
        f"  - {{name: api-{number}, gpu: 0, workload: {{kind: closed-loop, busy_ms: {busy_ms}, "
        f"idle_ms: {200 - busy_ms}}}, memory: {{start_gib: {memory_gib}}}}}"
        for number in range(4)
    )
    return f"gpus: [{{model: l4}}]\ntenants:\n{pods}\n"


def advice(file: Path, made_at_s: float) -> None:
    result = gpuplugin(
        "advise", "--workload", "api:30/200/2:4", "--model", "l4", "--slowdown-p95", "6", "--json"
    )
    assert result.returncode == 0, result.stderr
    made_at = datetime.fromtimestamp(made_at_s, UTC).isoformat()
    file.write_text(json.dumps({**json.loads(result.stdout), "made_at": made_at}))


def test_what_came_as_predicted_and_what_did_not(tmp_path: Path) -> None:
    """As advised, and then with requests that are half as long and twice as much memory."""
    now_s, file = time.time(), tmp_path / "advice.json"
    advice(file, now_s - 3600 * HOURS)
    checks = []
    for name, scenario in (("same", node(30, 2)), ("other", node(15, 4))):
        folder = tmp_path / name
        folder.mkdir()
        scrapes = scrape_node(scenario, now_s, 3600 * HOURS, 15, replicas=4)
        with backfilled(folder, scrapes) as prometheus:
            result = gpuplugin(
                "advise", "--check", str(file), "--prometheus", prometheus.url, "--json"
            )
        assert result.returncode == 0, result.stderr
        checks.append(json.loads(result.stdout))
    for found in checks:
        assert (found["gpus"], found["replicas"]) == (1, 4)
        assert found["length_s"] == pytest.approx(3600 * HOURS, abs=120)
    same, other = ({one["what"]: one for one in found["comparisons"]} for found in checks)
    for what in (
        "pods on a GPU",
        "utilisation",
        "share of the SMs of a pod of api",
        "memory, mean",
    ):
        assert abs(same[what]["off"]) < 0.1, what
    assert other["utilisation"]["off"] == pytest.approx(1.0, abs=0.25)
    assert other["share of the SMs of a pod of api"]["off"] == pytest.approx(1.0, abs=0.25)
    assert other["memory, most"]["off"] == pytest.approx(-0.45, abs=0.1)
    assert "furthest off is" in checks[1]["verdict"]
    assert any("kube-state-metrics" in note for note in checks[1]["notes"])
