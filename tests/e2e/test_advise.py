"""`gpuplugin advise` as a process."""

from __future__ import annotations

import json
import re
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import parse_qs

import pytest

from tests.e2e.conftest import gpuplugin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.conftest import Command

API = ("advise", "--workload", "api:15/100/2:8", "--model", "l4")


def test_the_answer_comes_first_and_the_configuration_last() -> None:
    result = gpuplugin(*API, "--slowdown-p95", "4")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Make 4 replicas of the NVIDIA L4: with 6, 95 of 100 requests")
    assert lines[-1] == "      replicas: 4"
    (chosen,) = (line.split() for line in lines if line.startswith("4 <"))
    assert chosen[-1] == "kept"


@pytest.mark.slow
def test_the_page_and_the_json_say_the_same(tmp_path: Path) -> None:
    page = tmp_path / "advice.html"
    result = gpuplugin(*API, "--slowdown-p95", "4", "--json", "--html", str(page))
    assert result.returncode == 0, result.stderr
    advice = json.loads(result.stdout)
    assert advice["replicas"] == 4
    assert [row["replicas"] for row in advice["rows"]] == [1, 2, 3, 4, 6, 8, 10, 16, 20]
    assert set(advice["others"]) == {"mps"}
    text = page.read_text()
    assert advice["sentence"] in text
    assert "replicas: 4" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "l4"), "no workload: give --workload, --record"),
        (("--workload", "api", "--model", "l4"), "write NAME:BUSY-MS/PERIOD-MS/GIB"),
        (("--workload", "notebook", "--model", "nope"), "no GPU model is called 'nope'"),
        (("--workload", "notebook", "--model", "l4", "--gpus", "0"), "--gpus is 0"),
        (("--workload", "notebook", "--model", "l4", "--mechanism", "mig"), "l4 has no MIG"),
        (("--workload", "notebook", "--model", "l4", "--slowdown-p95", "nan"), "--slowdown-p95"),
        (("--workload", "notebook", "--model", "l4", "--html", "/"), "/ cannot be written"),
        (("--workload", "notebook"), "no GPU model: give --model"),
        (("--check", "x.json"), "--check needs --prometheus"),
        (("--check", "/no/x.json", "--prometheus", "http://x"), "/no/x.json cannot be read"),
        (("--record", "/no/x.yaml", "--model", "l4"), "/no/x.yaml cannot be read"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    command: Command, arguments: tuple[str, ...], said: str
) -> None:
    result = command("advise", *arguments)
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert said in line


class _Answers(BaseHTTPRequestHandler):
    """A Prometheus that knows two pods of one Deployment for an hour; queries are noted."""

    metric = "gpuplugin_pod_sm_ratio"
    asked: ClassVar[list[dict[str, list[str]]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        wanted = parse_qs(body)
        self.asked.append(wanted)
        query = wanted["query"][0]
        start, end, step = (float(wanted[key][0]) for key in ("start", "end", "step"))
        moments = [start + step * number for number in range(int((end - start) / step) + 1)]
        result = [
            {"metric": labels, "values": [[at, str(value)] for at in moments]}
            for labels, value in self.answer(query)
        ]
        text = json.dumps({"status": "success", "data": {"result": result}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def answer(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Labels and constant values of the series of a query."""
        value = {self.metric: 0.3, "gpuplugin_pod_memory_bytes": 2.0 * 2**30}.get(
            query.partition("{")[0]
        )
        pods = ["api-7d9f8b6c5d-x2x4z", "api-7d9f8b6c5d-abcde"] if value is not None else []
        return [({"namespace": "ml", "pod": pod, "uuid": "GPU-0"}, value or 0.0) for pod in pods]

    def log_message(self, *_arguments: object) -> None:
        pass


@contextmanager
def prometheus(handler: type[_Answers] = _Answers) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def test_workloads_come_from_the_history_of_a_prometheus() -> None:
    with prometheus() as url:
        result = gpuplugin(
            "advise", "--model", "l4", "--prometheus", url, "--since", "1h", "--json",
            "--selector", 'namespace="ml"', "--slowdown-p95", "3",
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    advice = json.loads(result.stdout)
    assert advice["rows"][1]["worst"] == "ml/api"
    (workload,) = advice["workloads"]
    assert (workload["name"], workload["count"], workload["source"]) == ("ml/api", 2, "prometheus")
    assert workload["busy_ms"] / workload["period_ms"] == pytest.approx(0.3)
    assert workload["assumed"] == ["arrival", "busy_ms", "mps_share", "occupancy"]
    assert datetime.now(UTC) - datetime.fromisoformat(advice["made_at"]) < timedelta(minutes=5)
    about, note = advice["history"]
    assert about.startswith("Prometheus, 60 minutes at 15 s: shows")
    assert note.startswith("ml/api: 2 pods at once, active for 100 % of the time in spans of")
    assert "holds 2 to 2 GiB" in note
    assert _Answers.asked[0]["query"] == ['gpuplugin_pod_sm_ratio{namespace="ml"}']


@pytest.mark.slow
def test_a_history_of_dcgm_exporter_says_what_is_lost() -> None:
    class Dcgm(_Answers):
        metric = "DCGM_FI_PROF_GR_ENGINE_ACTIVE"

    with prometheus(Dcgm) as url:
        result = gpuplugin("advise", "--model", "l4", "--prometheus", url, "--since", "1h")
    assert result.returncode == 0, result.stderr
    assert "which knows GPUs and not pods" in result.stdout


@pytest.mark.slow
def test_a_prometheus_without_such_metrics_or_that_is_none() -> None:
    class Nothing(_Answers):
        metric = "up"

    with prometheus(Nothing) as url:
        empty = gpuplugin("advise", "--model", "l4", "--prometheus", url, "--since", "1h")
    assert empty.returncode == 1
    assert "has neither gpuplugin_pod_sm_ratio nor" in empty.stderr
    for address, said in (
        ("http://127.0.0.1:1", "cannot be asked"),
        ("file:///etc/passwd", "is no address of a Prometheus"),
    ):
        result = gpuplugin("advise", "--model", "l4", "--prometheus", address)
        assert (result.returncode, said in result.stderr) == (1, True)


@pytest.mark.slow
def test_an_advice_is_checked_against_what_is_seen_since(tmp_path: Path) -> None:
    class Since(_Answers):
        asked: ClassVar[list[dict[str, list[str]]]] = []
        of_gpus: ClassVar[dict[str, float]] = {
            "gpu_replicas{": 2, "utilization": 0.2, "tenants": 2, "memory_used": 5 * 2.0**30,
            "allocated": 1, "headroom": 0,
        }  # fmt: skip

        def answer(self, query: str) -> list[tuple[dict[str, str], float]]:
            if "gpuplugin_pod_sm_ratio" in query:
                labels = {"namespace": "ml", "pod": "api-7d9f8b6c5d-x2x4z", "uuid": "GPU-0"}
                return [(labels, 40 if query.startswith("count") else 0.1)]
            found = [value for part, value in self.of_gpus.items() if part in f"{query}{{"]
            if "gpu_replicas[" in query:
                # It was 4, and is 2 now.
                found = [4.0 if query.startswith("max") else 2.0]
            return [({"uuid": "GPU-0"}, found[0])] if found else []

    row = {
        "replicas": 2, "sharing": 2, "p95": 1.9, "ooms_per_week": 0, "left_out": 0,
        "utilization": 0.3, "contending": 2, "memory_mean_gib": 5, "memory_most_gib": 5,
        "sm_shares": {"api": 0.15},
    }  # fmt: skip
    advice = {
        "model": "l4", "replicas": 2, "gpus": 1, "mechanism": "time-slicing", "rows": [row],
        "made_at": (datetime.now(UTC) - timedelta(hours=3)).isoformat(),
        "workloads": [{"name": "api", "count": 2}],
    }  # fmt: skip
    file = tmp_path / "advice.json"
    file.write_text(json.dumps(advice))
    with prometheus(Since) as url:
        result = gpuplugin("advise", "--check", str(file), "--prometheus", url)
        assert result.returncode == 0, result.stderr
        first, _, header, *rows = result.stdout.splitlines()
        assert first.startswith("In 3 hours on 1 GPU with 2 replicas each 5 of 7 predictions were")
        assert header.split()[:2] == ["PREDICTED", "SEEN"]
        assert any(one.split() == ["utilisation", "30", "%", "20", "%", "+50", "%"] for one in rows)
        assert any("There were 2 and 4 replicas of a GPU" in one for one in rows)
        assert any("how long requests took" in one for one in rows)
        assert re.search(r"\[108\d\ds\]", Since.asked[0]["query"][0])
        file.write_text(json.dumps({**advice, "workloads": [{"name": "other", "count": 2}]}))
        result = gpuplugin("advise", "--check", str(file), "--prometheus", url, "--since", "1h")
    assert (result.returncode, result.stdout) == (1, "")
    assert "no pod of other was seen on a GPU in 60 minutes" in result.stderr
