"""The whole stack in virtual time: what pods get, what faults cost, and that it repeats itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from hal import TimeSliceLevel
from sim.node.scenario import load_scenario, parse_scenario, scenario_names
from sim.virtual.run import Outcome, VirtualRun
from sim.virtual.settings import settings_for

if TYPE_CHECKING:
    from pathlib import Path

HOUR_NS = 3_600_000_000_000
LOOP = "{kind: closed-loop, busy_ms: 20, idle_ms: 20}"


class Ran:
    """A run of a scenario's text, and its event log."""

    def __init__(self, text: str, until_s: float, config_file: Path | None = None) -> None:
        scenario = parse_scenario(text, "test")
        self.lines: list[str] = []
        settings = settings_for(scenario, {}, {}, str(config_file) if config_file else None)
        self.run = VirtualRun(scenario, settings, until_s, self.lines.append)
        self.outcome: Outcome = self.run.run()
        self.facts: list[dict[str, Any]] = [json.loads(line) for line in self.lines]

    def of(self, kind: str, **keys: object) -> list[dict[str, Any]]:
        return [
            fact
            for fact in self.facts
            if fact["kind"] == kind and all(fact.get(key) == value for key, value in keys.items())
        ]

    def allocatable(self) -> list[tuple[float, int]]:
        """(seconds, allocatable) after each list."""
        return [(fact["t_ns"] / 1e9, fact["allocatable"]) for fact in self.of("list")]


def node(count: int, rest: str, model: str = "a100-sxm4-80gb") -> str:
    return f"gpus: [{{model: {model}, count: {count}}}]\n{rest}"


def pods(count: int, rest: str = "", loop: str = LOOP) -> str:
    return f"pods: [{{name: p, count: {count}, workload: {loop}{rest}}}]\n"


def test_pods_are_given_replicas_on_different_gpus() -> None:
    ran = Ran(node(2, pods(6)), 10)
    running = ran.of("pod", phase="Running")
    gpus = [fact["devices"][0].partition("::")[0] for fact in running]
    assert len(running) == 6
    assert {gpus.count(gpu) for gpu in set(gpus)} == {3}, "the plugin's own policy spreads them"
    assert ran.outcome.capacity == 20
    assert ran.outcome.list_updates == 1
    assert all(len(record.latency_ns) > 100 for record in ran.outcome.tenants)


def test_who_does_not_fit_waits_until_there_is_room() -> None:
    text = "pods:\n" + "".join(
        f"- {{name: {name}, count: {count}, start_s: {start}, lifetime_s: 50, workload: {LOOP}, "
        "memory: {start_gib: 1}}\n"
        for name, count, start in (("first", 10, 0), ("late", 3, 5))
    )
    ran = Ran(node(1, text), 200)
    late = [fact for fact in ran.of("pod", phase="Running") if fact["pod"].startswith("late")]
    assert [round(fact["t_ns"] / 1e9) for fact in late] == [50, 50, 50]
    waits_ns = [pod.placed_ns - pod.came_ns for pod in ran.outcome.pods if pod.placed_ns]
    assert max(waits_ns) == pytest.approx(45e9, rel=0.01)
    assert len(ran.of("pod", phase="Gone")) == 13


def test_a_lost_gpu_costs_its_replicas_until_it_is_well_again() -> None:
    faults = (
        "faults:\n- {at_s: 100, gpu: 1, what: {kind: xid, xid: 79}}\n"
        "- {at_s: 700, gpu: 1, what: {kind: recover}}\n"
    )
    ran = Ran(node(4, pods(8, loop=LOOP.replace("20", "200")) + faults), 1000)
    (start, lost, back) = ran.allocatable()
    assert (start[1], lost[1], back[1]) == (40, 30, 40)
    assert lost[0] == 100.0
    assert 730 <= back[0] <= 740, "seen by the next probe, then a quiet period of 30 s"
    hours = ran.outcome.unavailable_replica_ns / HOUR_NS
    assert hours == pytest.approx(10 * (back[0] - lost[0]) / 3600, rel=0.001)
    states = [(change.state, round(change.at_s)) for change in ran.outcome.changes]
    assert [state for state, _ in states] == ["Unhealthy", "Recovering", "Healthy"]
    assert ran.outcome.xids == {79: 1}
    ended = [record for record in ran.outcome.tenants if record.ended == "GPU lost"]
    assert len(ended) == 2
    again = [record for record in ran.outcome.tenants if record.started_ns > 700e9]
    assert {record.name for record in again} == {record.name for record in ended}, (
        "a pod keeps its device and begins anew when the GPU is back"
    )


@pytest.mark.parametrize("until_s", [600, 86_400, 604_800])
def test_a_gpu_is_unhealthy_for_as_long_however_seldom_samples_are_taken(until_s: int) -> None:
    faults = (
        "faults:\n- {at_s: 100, gpu: 0, what: {kind: lost}}\n"
        "- {at_s: 400, gpu: 0, what: {kind: recover}}\n"
    )
    ran = Ran(node(1, faults), until_s)
    ill, _, well = ran.outcome.changes
    (notes,) = ran.outcome.gpus
    assert notes.unhealthy_ns == pytest.approx((well.at_s - ill.at_s) * 1e9)


def test_an_application_error_ends_one_tenant_and_changes_no_list() -> None:
    ran = Ran(node(1, pods(3) + "faults: [{at_s: 50, gpu: 0, what: {kind: xid, xid: 31}}]"), 100)
    assert len(ran.allocatable()) == 1
    ended = [record for record in ran.outcome.tenants if record.ended]
    assert [record.ended for record in ended] == ["xid 31"]
    (again,) = [one for one in ran.outcome.tenants if one.started_ns > 50e9]
    assert again.started_ns == pytest.approx(60e9, rel=0.001), "restarted after 10 s"


def test_a_driver_that_hangs_blinds_the_node_and_ends_no_pod() -> None:
    ran = Ran(node(2, pods(4) + "faults: [{at_s: 60, what: {kind: driver-hang, for_s: 60}}]"), 300)
    assert [count for _, count in ran.allocatable()] == [20, 0, 20]
    blind_s = ran.allocatable()[1][0]
    assert 70 <= blind_s <= 80
    assert all(not record.ended for record in ran.outcome.tenants)


def test_a_replacement_is_listed_beside_the_lost_one() -> None:
    ran = Ran(node(2, pods(2) + "faults: [{at_s: 30, gpu: 0, what: {kind: replace}}]"), 100)
    last = ran.of("list")[-1]
    assert (last["capacity"], last["allocatable"]) == (30, 20)


def test_repartitioning_is_found_by_looking() -> None:
    text = (
        "config: {version: v1, flags: {migStrategy: mixed}}\n"
        "faults: [{at_s: 31, gpu: 0, what: {kind: repartition, mig: [1g.10gb, 1g.10gb]}}]"
    )
    ran = Ran(node(1, text), 100)
    small = ran.of("list", resource="nvidia.com/mig-1g.10gb")
    assert [fact["capacity"] for fact in small] == [2]
    assert small[0]["t_ns"] / 1e9 == 35.0
    assert ran.of("list", resource="nvidia.com/gpu")[-1]["capacity"] == 0


@pytest.mark.parametrize("there_and_back", [False, True])
def test_what_ran_before_a_repartition_counts(there_and_back: bool) -> None:
    text = (
        "tenants:\n- {name: a, gpu: 0, workload: {kind: closed-loop, busy_ms: 20}}\n"
        "- {name: b, gpu: 0, workload: {kind: closed-loop, busy_ms: 20}}\n"
        "faults:\n- {at_s: 50.001, gpu: 0, what: {kind: repartition, mig: [1g.10gb]}}\n"
    )
    if there_and_back:
        text += "- {at_s: 50.002, gpu: 0, what: {kind: repartition, mig: null}}\n"
    ran = Ran(node(1, text), 100)
    (gpu,) = ran.outcome.gpus
    assert gpu.active_ns == sum(record.busy_ns for record in ran.outcome.tenants)
    assert gpu.active_ns + gpu.switching_ns == pytest.approx(50.001e9, rel=1e-6)
    assert gpu.switching_ns / gpu.active_ns == pytest.approx(0.22 / 2.048, rel=0.02)
    assert gpu.uuid in gpu.places
    assert len(gpu.places) == 2


def test_a_reading_after_a_repartition_is_of_the_time_since() -> None:
    text = (
        "faults: [{at_s: 50.1, gpu: 0, what: {kind: repartition, mig: null}}]\n"
        "tenants: [{name: a, gpu: 0, start_s: 50.101, workload: {kind: closed-loop, busy_ms: 20}}]"
    )
    ran = Ran(node(1, text), 100)
    (gpu,) = ran.outcome.gpus
    after = [sample.utilization for sample in gpu.samples if sample.at_s > 50]
    assert min(after) > 0.99


def test_memory_of_tenants_with_one_name_adds_up() -> None:
    text = "".join(
        f"- {{name: twin, gpu: 0, workload: {LOOP}, memory: {{start_gib: {size}}}}}\n"
        for size in (3, 5)
    )
    ran = Ran(node(1, f"tenants:\n{text}"), 10)
    (gpu,) = ran.outcome.gpus
    last = gpu.samples[-1]
    assert last.tenants == 2
    assert last.memory_by_tenant == {"twin": (3 + 5) * 2**30 + 2 * 300 * 2**20}


def test_the_users_file_wins_over_the_scenarios(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("sharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 3}]}}\n")
    text = node(2, "config: {version: v1, flags: {migStrategy: none}}")
    assert Ran(text, 10).outcome.capacity == 2
    assert Ran(text, 10, file).outcome.capacity == 6


def test_slices_of_a_window_are_noted_without_changing_anything() -> None:
    text = node(1, pods(3))
    ran = Ran(text, 60)
    (gpu,) = ran.outcome.gpus
    assert gpu.slices
    assert {name for name, _ in gpu.slices} == {"p-0", "p-1", "p-2"}
    for (_, one), (_, other) in zip(gpu.slices, gpu.slices[1:], strict=False):
        assert one.end_ns <= other.start_ns, "one at a time"
    elsewhere = parse_scenario(text, "test")
    quiet: list[str] = []
    run = VirtualRun(
        elsewhere, settings_for(elsewhere, {}, {}, None), 60, quiet.append, [30.0, 59.0]
    )
    outcome = run.run()
    assert quiet == ran.lines
    assert [one.latency_ns for one in outcome.tenants] == [
        one.latency_ns for one in ran.outcome.tenants
    ]


def test_of_many_moments_that_is_kept_at_which_most_tenants_take_turns() -> None:
    """One works from the begin on, three from 20 s, two of them no longer at 40 s."""
    text = """
gpus: [{model: a100-sxm4-80gb}]
tenants:
  - {name: a, gpu: 0, workload: {kind: closed-loop, busy_ms: 50}, memory: {start_gib: 1}}
pods:
  - {name: p, count: 2, start_s: 20, lifetime_s: 10, workload: {kind: closed-loop, busy_ms: 50}}
"""
    scenario = parse_scenario(text, "test")
    settings = settings_for(scenario, {}, {}, None)
    moments = [5.0, 15.0, 25.0, 45.0]
    outcome = VirtualRun(scenario, settings, 60, windows_at_s=moments).run()
    assert outcome.window_at_s == 25.0
    (gpu,) = outcome.gpus
    assert {name for name, _ in gpu.slices} == {"a", "p-0", "p-1"}
    assert min(segment.start_ns for _, segment in gpu.slices) >= 25e9
    assert max(segment.end_ns for _, segment in gpu.slices) <= 25.1e9

    alone = VirtualRun(scenario, settings, 60, windows_at_s=[5.0, 15.0]).run()
    assert alone.window_at_s == 5.0
    assert {name for name, _ in alone.gpus[0].slices} == {"a"}


@pytest.mark.parametrize("name", scenario_names())
def test_every_shipped_scenario_runs_and_repeats_itself(name: str) -> None:
    until_s = {"production-week": 3600, "sixteen-gpus": 60}.get(name, 150)
    assert log_of(name, until_s) == log_of(name, until_s)


@pytest.mark.slow
@pytest.mark.parametrize("name", [one for one in scenario_names() if one != "production-week"])
def test_every_shipped_scenario_repeats_its_later_faults(name: str) -> None:
    assert log_of(name, 330) == log_of(name, 330)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_whole_week_repeats_itself() -> None:
    one, other = (log_of("production-week", 7 * 86400) for _ in range(2))
    assert one == other
    assert {json.loads(line)["kind"] for line in one.splitlines()} >= {
        "happening", "gpu-health", "list", "oom", "pod", "tenant-ended"
    }  # fmt: skip


def test_another_process_writes_the_same_log_and_report(tmp_path: Path) -> None:
    written = []
    for hash_seed in ("1", "2"):
        events, report = tmp_path / f"events-{hash_seed}", tmp_path / f"report-{hash_seed}"
        command = f"sim run mig --until 130s --quiet --events {events} --report {report}"
        subprocess.run(
            [sys.executable, "-m", "gpuplugin", *command.split()],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
        )
        written.append((events.read_bytes(), report.read_bytes()))
    assert written[0] == written[1]


def log_of(name: str, until_s: float) -> bytes:
    """The event log of a shipped scenario, as it would be in a file."""
    scenario = load_scenario(name)
    log: list[str] = []
    VirtualRun(scenario, settings_for(scenario, {}, {}, None), until_s, log.append).run()
    return "".join(f"{line}\n" for line in log).encode()


def test_another_seed_is_another_run() -> None:
    text = node(1, "pods: [{name: p, workload: {kind: open-loop, busy_ms: 5, per_s: 10}}]\n")
    one, other = (Ran(f"seed: {seed}\n{text}", 60).outcome for seed in (1, 2))
    assert one.tenants[0].latency_ns != other.tenants[0].latency_ns


# With DRA

DRA = "allocation: dra\n"
PACKED = (
    "config: {version: v1, flags: {plugin: {sharedDevicesAllocationPolicy: packed}}, "
    "sharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 10}]}}}\n"
)


def offered(ran: Ran) -> list[tuple[int, int]]:
    """(shares, shares without a taint) after each write of slices, without repetitions."""
    amounts = [(fact["capacity"], fact["allocatable"]) for fact in ran.of("slices")]
    return [one for at, one in enumerate(amounts) if at == 0 or one != amounts[at - 1]]


def test_pods_get_shares_by_claims_and_who_does_not_fit_waits() -> None:
    text = (
        DRA
        + PACKED
        + (f"pods: [{{name: p, count: 21, workload: {LOOP}, memory: {{start_gib: 1}}}}]\n")
    )
    ran = Ran(node(2, text), 30)
    running = ran.of("pod", phase="Running")
    devices = [fact["devices"][0] for fact in running]
    assert sorted(devices.count(one) for one in set(devices)) == [10, 10]
    assert devices[:10] == [devices[0]] * 10, "the first GPU is filled first"
    assert (len(ran.outcome.pods), ran.outcome.capacity) == (21, 20)
    waiting = [one for one in ran.outcome.pods if one.placed_ns is None]
    assert len(waiting) == 1


def test_the_order_of_devices_follows_the_shares_that_are_taken() -> None:
    groups = "".join(
        f"- {{name: p{number}, start_s: {5 * number}, workload: {LOOP}}}\n" for number in range(4)
    )
    ran = Ran(node(2, f"{DRA}pods:\n{groups}"), 30)
    devices = [fact["devices"][0] for fact in ran.of("pod", phase="Running")]
    assert devices == [*devices[:2]] * 2
    assert len(set(devices)) == 2, "the policy of the plugin distributes them"


def test_a_share_that_comes_back_is_given_out_again() -> None:
    text = DRA + (
        f"pods: [{{name: first, count: 10, lifetime_s: 50, workload: {LOOP}, memory: "
        f"{{start_gib: 1}}}}, {{name: late, count: 3, start_s: 5, workload: {LOOP}, memory: "
        "{start_gib: 1}}]\n"
    )
    ran = Ran(node(1, text), 100)
    late = [fact for fact in ran.of("pod", phase="Running") if fact["pod"].startswith("late")]
    assert [round(fact["t_ns"] / 1e9) for fact in late] == [50, 50, 50]


def test_a_fault_taints_its_gpu_and_pods_keep_running() -> None:
    faults = (
        "faults: [{at_s: 20, gpu: 0, what: {kind: xid, xid: 79}}, "
        "{at_s: 100, gpu: 0, what: {kind: recover}}]\n"
    )
    text = DRA + pods(2) + faults
    ran = Ran(node(2, text), 1000)
    assert offered(ran) == [(20, 20), (20, 10), (20, 20)]
    assert ran.of("pod", phase="Gone") == []
    assert ran.outcome.unavailable_replica_ns > 80 * 10 * 1_000_000_000


def test_the_kubelet_wipes_slices_at_its_start_and_they_are_back_at_once() -> None:
    ran = Ran(node(1, DRA), 2)
    times = [fact["t_ns"] for fact in ran.of("slices")]
    assert times == [0, 700_000_000]


def test_a_run_with_dra_repeats_itself() -> None:
    text = node(2, DRA + pods(25, ", lifetime_s: 7"))
    assert Ran(text, 60).lines == Ran(text, 60).lines


def test_two_are_two_gpus_and_a_renamed_resource_has_its_class() -> None:
    config = (
        "config: {version: v1, sharing: {timeSlicing: {resources: "
        "[{name: nvidia.com/gpu, rename: nvidia.com/gpu.shared, replicas: 3}]}}}\n"
    )
    text = (
        DRA
        + config
        + (
            f"pods: [{{name: p, count: 4, devices: 2, resource: nvidia.com/gpu.shared, "
            f"workload: {LOOP}, memory: {{start_gib: 1}}}}]\n"
        )
    )
    ran = Ran(node(2, text), 30)
    found = [fact["devices"] for fact in ran.of("pod", phase="Running")]
    assert [len(set(devices)) for devices in found] == [2, 2, 2]


def test_the_interval_of_the_file_is_the_time_slice_of_gpus_that_are_shared(
    tmp_path: Path,
) -> None:
    file = tmp_path / "config.yaml"
    entry = "{name: gpu, devices: [0], replicas: 4}"
    file.write_text(f"sharing: {{timeSlicing: {{interval: Long, resources: [{entry}]}}}}\n")
    text = node(2, "faults: [{at_s: 3, gpu: 0, what: {kind: xid, xid: 79}}]\n")
    for until_s in (1, 10):
        ran = Ran(text, until_s, file)
        levels = [gpu.time_slice for gpu in ran.run.node.present]
        assert levels == [TimeSliceLevel.LONG, TimeSliceLevel.DEFAULT]
    plain = Ran(node(2, ""), 1)
    assert {gpu.time_slice for gpu in plain.run.node.present} == {TimeSliceLevel.DEFAULT}
