"""Pods of a scenario as they come to and go from a kubelet stand-in, in real time.

What they do there is in `sim.node.podwork`; runs in virtual time have `sim.virtual.pods`.
"""

from __future__ import annotations

import heapq
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from sim.kubelet.pods import Phase, simple_pod

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim.kubelet import Kubelet
    from sim.node.scenario import Pods, Scenario

_TIDY_S = 1.0
"""A pod that the node refused is made anew this soon, as its controller would."""


@dataclass(order=True, slots=True)
class _Due:
    at_s: float
    number: int
    act: Callable[[float], None] = field(compare=False)


class PodArrivals:
    """Creates and deletes the scenario's pods from `start` on."""

    def __init__(self, kubelet: Kubelet, scenario: Scenario) -> None:
        self._kubelet = kubelet
        self._due: list[_Due] = []
        self._number = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pod-arrivals", daemon=True)
        for group in scenario.pods:
            self._plan(group, Random(f"{scenario.seed}/pods/{group.name}"))
        if scenario.pods:
            self._at(_TIDY_S, self._replace_refused)

    def start(self) -> None:
        """Let pods come."""
        self._thread.start()

    def stop(self) -> None:
        """Let no more come; those that are there stay."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        started_s = time.monotonic()
        while self._due:
            due = heapq.heappop(self._due)
            if self._stopping.wait(max(0.0, started_s + due.at_s - time.monotonic())):
                return
            due.act(due.at_s)

    def _at(self, at_s: float, act: Callable[[float], None]) -> None:
        self._number += 1
        heapq.heappush(self._due, _Due(at_s, self._number, act))

    def _plan(self, group: Pods, random: Random) -> None:
        if group.arrivals_per_hour is None:
            for number in range(group.count):
                self._at(group.start_s, partial(self._come, group, number, random))
            return
        rate_per_s = group.arrivals_per_hour / 3600
        number = 0

        def next_one(now_s: float) -> None:
            nonlocal number
            self._come(group, number, random, now_s)
            number += 1
            self._at(now_s + random.expovariate(rate_per_s), next_one)

        self._at(group.start_s + random.expovariate(rate_per_s), next_one)

    def _come(self, group: Pods, number: int, random: Random, now_s: float) -> None:
        name = f"{group.name}-{number}"
        with suppress(ValueError):  # one of this name is there already
            self._kubelet.create_pod(simple_pod(name, {group.resource: group.devices}))
        if group.lifetime_s is not None:
            life_s = group.lifetime_s
            if group.random_lifetime:
                life_s = random.expovariate(1 / life_s)
            self._at(now_s + life_s, lambda _now_s: self._go(name))

    def _go(self, name: str) -> None:
        with suppress(KeyError):
            self._kubelet.delete_pod(name)

    def _replace_refused(self, now_s: float) -> None:
        for key, view in self._kubelet.view().pods.items():
            if view.status.phase is Phase.FAILED:
                with suppress(KeyError, ValueError):
                    self._kubelet.delete_pod(key)
                    self._kubelet.create_pod(simple_pod(view.pod.name, view.pod.requests()))
        self._at(now_s + _TIDY_S, self._replace_refused)
