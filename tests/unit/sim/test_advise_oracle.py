"""Advice from histories that the simulator made, against the best number by brute force.

Each world has one or two kinds of pods on a GPU model, and a goal. The oracle runs a simulated node
with every number of them on one GPU for long, and reads the latencies of the tenants; nothing of
`sim.advise` is in it. Advice sees a recording of the same pods on GPUs of their own or with others,
and what a user knows beside it: how long requests are, and how they arrive.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from sim.advise.advice import REPLICAS, Goals, Plan, best, table_of
from sim.advise.history import Requests, workloads_of
from sim.advise.recordings import history_of
from sim.node.node import SimulatedNode
from sim.node.scenario import parse_scenario
from tests.unit.sim.inprocess import InProcess
from tests.unit.sim.virtualnode import record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sim.gpu.tenancy import TenantRecord

SEEDS = range(100, 120)
LEAST_RIGHT = 19
FLAT = 0.1
"""A neighbour counts as right where the truth is so near to the goal, as a share of it."""
REQUESTS = 10_000
DRAWS = 6
"""Which pods share a GPU is drawn so often, where they differ and not all fit."""
RECORDED_S = 300


@dataclass(frozen=True)
class Kind:
    name: str
    busy_ms: float
    period_ms: float
    jitter: float
    open_loop: bool
    memory_gib: float

    def tenant(self, gpu: int, start_s: float) -> str:
        work = (
            f"{{kind: open-loop, busy_ms: {self.busy_ms}, per_s: {1000 / self.period_ms}}}"
            if self.open_loop
            else f"{{kind: closed-loop, busy_ms: {self.busy_ms}, "
            f"idle_ms: {self.period_ms - self.busy_ms}, jitter: {self.jitter}}}"
        )
        return (
            f"  - {{name: {self.name}, gpu: {gpu}, start_s: {start_s:.3f}, workload: {work}, "
            f"memory: {{start_gib: {self.memory_gib}}}}}\n"
        )


@dataclass(frozen=True)
class World:
    seed: int
    model: str
    pods: tuple[Kind, ...]
    goal: float
    together: int
    """Pods on a GPU while the history is made."""


def world(seed: int) -> World:
    chance = random.Random(f"world/{seed}")
    model = chance.choice(["l4", "l40s", "a100-sxm4-80gb", "h100-sxm5-80gb"])
    open_loop, kinds = chance.random() < 0.4, chance.choice([1, 2])
    pods: list[Kind] = []
    for name in "ab"[:kinds]:
        busy_ms = round(10 ** chance.uniform(0.5, 2.2), 1)
        share = chance.uniform(0.03, 0.2 if open_loop else 0.4)
        jitter, memory_gib = chance.choice([0.3, 0.5, 1.0]), round(chance.uniform(0.5, 6), 1)
        kind = Kind(name, busy_ms, round(busy_ms / share, 1), jitter, open_loop, memory_gib)
        pods += [kind] * (chance.randint(3, 12) // kinds + 1)
    goal = round(chance.uniform(1.6, 4.5), 1)
    return World(seed, model, tuple(pods), goal, chance.choice([1, 2, 4]))


def scenario(world: World, places: Sequence[tuple[Kind, int]], seed: int) -> str:
    chance = random.Random(f"start/{world.seed}/{seed}")
    tenants = "".join(kind.tenant(gpu, chance.uniform(0, 5)) for kind, gpu in places)
    gpus = 1 + max(gpu for _, gpu in places)
    return f"seed: {seed}\ngpus: [{{model: {world.model}, count: {gpus}}}]\ntenants:\n{tenants}"


def simulated(world: World, pods: Sequence[Kind], requests: int, seed: int) -> list[TenantRecord]:
    per_s = sum(1000 / kind.period_ms for kind in pods)
    until_s = 5 + max(requests / per_s, 0.1 * max(kind.period_ms for kind in pods))
    node = SimulatedNode(parse_scenario(scenario(world, [(kind, 0) for kind in pods], seed), "x"))
    node.advance(until_s)
    return node.records


def p95(latencies: Sequence[int]) -> int:
    return sorted(latencies)[int(0.95 * len(latencies))]


def worst_p95(world: World, sharing: int, alone: Mapping[str, int]) -> float:
    """The slowdown at p95 of the kind that suffers most; infinite where memory runs out."""
    draws = 1 if len(set(world.pods)) == 1 or sharing == len(world.pods) else DRAWS
    latencies: dict[str, list[int]] = {}
    for draw in range(draws):
        chance = random.Random(f"{world.seed}/{sharing}/{draw}")
        pods = chance.sample(world.pods, sharing)
        for tenant in simulated(world, pods, REQUESTS // draws, draw):
            if tenant.ooms:
                return float("inf")
            latencies.setdefault(tenant.name, []).extend(tenant.latency_ns)
    return max(p95(latencies[name]) / alone[name] for name in latencies)


def oracle(world: World) -> tuple[int, dict[int, float]]:
    """The largest number of replicas that keeps the goal, and the slowdowns up to the next one."""
    alone = {
        kind.name: p95(simulated(world, [kind], REQUESTS // 4, 0)[0].latency_ns)
        for kind in dict.fromkeys(world.pods)
    }
    found, curve = 0, {}
    for replicas in REPLICAS:
        curve[replicas] = worst_p95(world, min(replicas, len(world.pods)), alone)
        if curve[replicas] > world.goal:
            return found, curve
        found = replicas
        if replicas >= len(world.pods):
            return REPLICAS[-1], curve  # more make no difference
    return found, curve


def advised(world: World, file: Path) -> int:
    places = [(kind, number // world.together) for number, kind in enumerate(world.pods)]
    record(scenario(world, places, 99), file, RECORDED_S)
    history, _ = history_of([str(file)])
    known = Requests(
        length_ms={kind.name: kind.busy_ms for kind in world.pods},
        arrival="open" if world.pods[0].open_loop else "closed",
    )
    workloads, _ = workloads_of(history, "workload", known, "recording")
    plan = Plan(world.model, tuple(workloads), Goals(slowdown_p95=world.goal), seed=world.seed)
    return best(table_of(plan, InProcess()))


def is_right(replicas: int, truth: int, curve: Mapping[int, float], goal: float) -> bool:
    if replicas == truth:
        return True
    order = (0, *REPLICAS)
    near = abs(order.index(replicas) - order.index(truth)) == 1
    return near and abs(curve.get(max(replicas, truth), 0.0) / goal - 1) <= FLAT


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_advice_names_the_best_number_in_19_of_20_worlds(tmp_path: Path) -> None:
    right, told = 0, []
    for seed in SEEDS:
        one = world(seed)
        truth, curve = oracle(one)
        found = advised(one, tmp_path / f"{seed}.yaml")
        good = is_right(found, truth, curve, one.goal)
        right += good
        told.append(
            f"seed {seed}: best {truth}, advised {found}{'' if good else ' (wrong)'}: {curve}"
        )
    assert right >= LEAST_RIGHT, "\n".join(told)
    assert len({line.partition("advised")[0] for line in told}) > 10, "the worlds are all alike"
