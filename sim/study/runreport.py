"""The report of a run: every key of the JSON of `gpuplugin sim run --report`, with its meaning."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Keys(BaseModel):
    """A part of a report; null is unknown, never a number in place of one."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Spread(Keys):
    """Milliseconds over all requests. A percentile is the value that so many do not exceed."""

    mean: float
    """the mean"""
    p50: float
    """half of the requests took no longer"""
    p95: float
    """95 of 100 took no longer"""
    p99: float
    """99 of 100 took no longer"""
    max: float
    """the longest"""


class Service(Keys):
    """How requests were served: those of one tenant, or of all tenants of a kind."""

    kind: str
    """name of the tenants without the number at the end"""
    served: int
    """requests that were done"""
    running_s: float
    """seconds in which it ran, added up over tenants and restarts"""
    throughput_per_s: float | None
    """requests done per second of `running_s`: the rate of one tenant"""
    gpu_share: float | None
    """share of `running_s` in which its kernels ran"""
    slowdown: float | None
    """mean of latency divided by what the request takes alone; 1 is as if alone"""
    speed: float | None
    """work alone divided by latency, each added up: throughput against alone; 1 is as if alone"""
    alone_ms: float | None
    """what half of the requests do not exceed alone on the GPU"""
    latency_ms: Spread | None
    """from the coming of a request to its end"""
    wait_ms: Spread | None
    """latency less the work alone: own queue, others' slices, switches, lower clocks"""
    ooms: int
    """allocations that did not fit"""
    restarts: int
    """how often a container was restarted"""
    ended: dict[str, int]
    """why tenants ended, and how often"""


class TenantReport(Service):
    """One tenant on one GPU or MIG device, over all its restarts."""

    name: str
    """the pod's or tenant's name"""
    gpu: str
    """UUID of its GPU or MIG device; empty for a pod that never had one"""


class Deprived(Keys):
    """A tenant that wanted to work and had no request served, or a pod without devices."""

    name: str
    """the pod's or tenant's name"""
    kind: str
    """the name without the number at the end"""
    why: Literal["waited", "refused", "memory", "fault", "starved"]
    """`waited`: for devices, to the end; `refused`: its admissions failed; `memory`: what it asked
    for did not fit; `fault`: it was ended; `starved`: it had work, none of which was done"""
    for_s: float
    """seconds from its coming to the end of the run, or of its life"""


class KindReport(Service):
    tenants: int
    """how many there were, those without devices included"""
    deprived: int
    """how many of them got nothing: see `deprived`"""
    gpus: int
    """on how many GPUs they ran"""
    latency_curve: list[tuple[float, float]]
    """[share of requests, milliseconds that so many did not exceed], rising"""
    neighbours: dict[str, float]
    """share of the time of its GPUs that the other tenants took, by their kind, most first"""


class GpuReport(Keys):
    """One GPU."""

    label: str
    """its index; one that was replaced has a letter behind it"""
    index: int
    """its index"""
    uuid: str
    """its UUID"""
    product: str
    """its model"""
    tenants: int
    """tenants that ran on it or on its MIG devices"""
    served: int
    """their requests that were done"""
    utilization: float | None
    """share of the run in which a kernel ran; with MIG or constant loads: mean of the readings"""
    switching_share: float | None
    """share of the time with work that was lost to context switches"""
    fairness: float | None
    """Jain's index over `speed` of its tenants that had work, 0 where none was done: 1 all alike,
    1/n one has it all"""
    memory_bytes: int
    """its memory"""
    memory_peak_bytes: int | None
    """the most that was in use at a reading"""
    temperature_max_c: float | None
    """the highest reading"""
    clock_min_share: float | None
    """the lowest clock at a reading, of full clocks; below 1 it was throttled"""
    ooms: int
    """allocations on it that did not fit"""
    unhealthy_s: float
    """seconds in which it was not Healthy"""
    faults: int
    """how often it became Unhealthy"""
    thermal_shutdowns: int
    """how often it was at its shutdown temperature, by heat or as a fault"""


class PodsReport(Keys):
    created: int
    """pods that came"""
    waited: int
    """of those that got devices, how many waited for them longer than a second"""
    wait_max_s: float | None
    """the longest of these waits in seconds"""
    never_started: int
    """pods that had no devices at the end"""
    refused: int
    """admissions that failed"""


class RunReport(Keys):
    scenario: str
    """name of the scenario"""
    seed: int
    """its seed"""
    until_s: float
    """seconds of model time"""
    window_at_s: float
    """from when on 0.1 s of slices were noted for pictures"""
    slices_from: list[str]
    """where the slices and switches of each model come from, in words"""
    gpus: list[GpuReport]
    """by index"""
    kinds: list[KindReport]
    """by GPU time, most first"""
    tenants: list[TenantReport]
    """by name; keys as in `kinds[]`, from `kind` to `ended`, and these"""
    utilization: float | None
    """mean over the GPUs"""
    switching_share: float | None
    """share of the time with work, of all GPUs, that was lost to context switches"""
    fairness: float | None
    """Jain's index over `speed` of all tenants, 0 for each one in `deprived`"""
    deprived: list[Deprived]
    """who got nothing, by name"""
    ooms: int
    """allocations that did not fit"""
    xids: dict[int, int]
    """Xids of GPUs, and how often each was reported"""
    restarts: int
    """containers that were restarted"""
    unavailable_replica_hours: float
    """devices that were listed and not healthy, times hours"""
    pods: PodsReport
    """how pods got their devices"""
    facts: dict[str, int]
    """lines of the event log, by kind"""
