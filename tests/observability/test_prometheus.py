"""Metrics, alerts and dashboard against the real Prometheus, over a simulated node at work."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import yaml

from gpuplugin.daemon.serving.sockets import KubeletDirs
from sim.gpu.faults import LostFault, Recovery, XidFault
from sim.kubelet import Kubelet, Phase, simple_pod
from sim.node.node import SimulatedNode
from sim.node.podwork import PodWork, scenario_work
from sim.node.realtime import RealTimeNode, SimBackend
from sim.node.scenario import load_scenario
from tests.component.conftest import short_folder
from tests.component.running import RESOURCE, PluginProcess, settings_for
from tests.component.waiting import eventually
from tests.e2e.conftest import gpuplugin
from tests.observability.alertcases import CASES, rule_tests
from tests.observability.tools import (
    ROOT,
    alerts,
    condition,
    dashboard,
    needs_prometheus,
    promtool,
    rule_groups,
    running_prometheus,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.observability.tools import Prometheus

pytestmark = [needs_prometheus, pytest.mark.slow, pytest.mark.timeout(180)]

WAIT_S = 60.0
RATE_WINDOW = "30s"


class Story:
    """The noisy-neighbour scenario in real time, with a kubelet and the plugin."""

    def __init__(self, kubelet_dir: Path, host: Path) -> None:
        self.scenario = load_scenario("noisy-neighbour")
        self.node = RealTimeNode(SimulatedNode(self.scenario))
        self.kubelet = Kubelet(kubelet_dir)
        self.work = PodWork(self.kubelet, self.node, host, scenario_work(self.scenario))
        settings = settings_for(
            kubelet_dir,
            {
                "--registration": "watcher",
                "--metrics-interval": "1s",
                "--health-quiet-period": "1s",
                "--health-probe-interval": "500ms",
                "--host-proc": str(self.work.proc),
                "--pod-logs": str(self.work.pod_logs),
            },
        )
        self.plugin = PluginProcess(settings, SimBackend(self.node))

    def start(self) -> None:
        self.kubelet.start()
        self.work.start()
        self.plugin.start()
        self.kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 10, WAIT_S)
        for group in self.scenario.pods:
            for number in range(group.count):
                pod = simple_pod(f"{group.name}-{number}", {RESOURCE: group.devices})
                assert self.kubelet.run_pod(pod).phase is Phase.RUNNING

    def stop(self) -> None:
        self.work.stop()
        self.plugin.stop()
        self.kubelet.stop()
        self.node.stop()

    def misfortunes(self) -> None:
        """Something for every counter: application errors, a lost GPU, restarts."""
        with self.node.update() as node:
            (gpu,) = node.present
            node.inject(gpu, XidFault(xid=31))
            node.inject(gpu, LostFault())
        self.kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 0, WAIT_S)
        with self.node.update() as node:
            node.inject(node.present[0], Recovery())
        self.kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 10, WAIT_S)
        self.kubelet.restart()
        self.kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 10, WAIT_S)
        for path in KubeletDirs(self.kubelet.dir).plugin_watcher.glob("gpuplugin-*.sock"):
            path.unlink()
        self.kubelet.wait_until(lambda node: node.allocatable(RESOURCE) == 10, WAIT_S)
        self.kubelet.run_pod(simple_pod(f"one-more-{len(self.kubelet.view().pods)}", {RESOURCE: 1}))


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with short_folder() as folder:
        story = Story(folder, tmp_path_factory.mktemp("host"))
        story.start()
        yield story
        story.stop()


@pytest.fixture(scope="module")
def prometheus(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    port = story.plugin.port
    assert port is not None
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), port) as server:
        eventually(lambda: server.query("gpuplugin_build_info"), WAIT_S)
        # A rate needs two samples: the counters of the first misfortune have one before it.
        eventually(
            lambda: server.query("count_over_time(gpuplugin_start_time_seconds[1m]) > 3"), WAIT_S
        )
        story.misfortunes()
        story.misfortunes()
        yield server


def test_the_metrics_are_as_prometheus_wants_them(story: Story) -> None:
    checked = promtool("check", "metrics", text=story.plugin.get("/metrics").body)
    ours = [line for line in checked.stderr.splitlines() if "gpuplugin" in line]
    assert ours == [], checked.stderr


def test_the_rules_are_clean(tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": rule_groups()}))
    checked = promtool("check", "rules", "--lint=all", "--lint-fatal", str(file))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_fires_when_it_should_and_not_else(tmp_path: Path) -> None:
    assert set(CASES) == set(alerts())
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": rule_groups()}))
    tests = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": rule_tests()}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests))
    tested = promtool("test", "rules", str(tmp_path / "tests.yml"))
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_has_its_chapter_in_the_runbook() -> None:
    chapters = re.findall(r"^## (\w+)$", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE)
    assert chapters == list(alerts())
    for name, alert in alerts().items():
        annotations = alert["annotations"]
        assert isinstance(annotations, dict)
        address = urlsplit(str(annotations["runbook_url"]))
        assert address.scheme == "https"
        assert address.path.endswith("/docs/runbook.md")
        assert address.fragment == name.lower()


def test_advice_from_its_history_names_the_workloads(prometheus: Prometheus) -> None:
    """Once a scrape has seen each of them at work."""

    def advised() -> list[str] | None:
        result = gpuplugin(
            "advise", "--model", "a100-sxm4-80gb", "--prometheus", prometheus.url, "--since", "2m",
            "--json",
        )  # fmt: skip
        history = json.loads(result.stdout)["history"] if result.returncode == 0 else []
        return history[1:] if len(history) == 3 else None

    api, trainer = eventually(advised, WAIT_S)
    assert re.match(r"default/api: [23] pods at once, active for ", api)
    assert re.match(r"default/trainer: 1 pod at once, active for ", trainer)


@pytest.mark.parametrize("expression", dashboard().expressions())
def test_every_expression_of_the_dashboard_has_data(
    prometheus: Prometheus, expression: str
) -> None:
    for variable, value in (
        ("$cluster", "simulated"),
        ("$node", ".*"),
        ("$gpu", ".*"),
        ("$namespace", ".*"),
        ("$pod", ".*"),
        ("$__rate_interval", RATE_WINDOW),
    ):
        expression = expression.replace(variable, value)
    assert eventually(lambda: prometheus.query(expression), WAIT_S)


OF_DRA = ("GpuClaimErrors", "GpuDevicesNotOffered")
"""Alerts on series that the node here, with a device plugin, has not."""


@pytest.mark.parametrize("name", [one for one in alerts() if one not in OF_DRA])
def test_every_condition_of_an_alert_has_a_value(prometheus: Prometheus, name: str) -> None:
    expression = condition(alerts()[name])
    assert expression != alerts()[name]["expr"], "a comparison was expected"
    if name == "GpuAllocationErrors":
        expression = expression.replace('code!="OK"', 'code="OK"')
    assert eventually(lambda: prometheus.query(expression), WAIT_S)


def test_the_hungry_pod_is_named_by_the_alert(prometheus: Prometheus) -> None:
    eventually(lambda: "GpuMemoryOverFairShare" in prometheus.firing(), WAIT_S)
    hungry = prometheus.query("gpuplugin_pod_memory_over_fair_share == 1")
    names = [one["metric"]["pod"] for one in hungry if isinstance(one["metric"], dict)]
    assert names == ["trainer-0"]
