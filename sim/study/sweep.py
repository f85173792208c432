"""A scenario in every combination of some settings, with several seeds each: what differs, and by
how much more than chance.

A setting is a key of the scenario, or one of a few names for what people vary: see `SHORT`.
"""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from gpuplugin.config.loaded import ConfigError
from gpuplugin.config.options import OPTIONS
from gpuplugin.core.node import ConfigurationMisfit
from sim.node.scenario import Scenario
from sim.study.report import report_of
from sim.virtual.run import VirtualRun
from sim.virtual.settings import settings_for, with_replicas

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from gpuplugin.config.settings import Settings
    from sim.study.runreport import RunReport

    Node: TypeAlias = "dict[str, object]"

SHORT: Mapping[str, str] = {
    "replicas": "of each GPU, in the plugin's configuration",
    "policy": "which replicas the plugin prefers: distributed, packed, spread or spread-strict",
    "mechanism": "of all GPUs: time-slicing, mps or exclusive",
    "model": "of all GPUs",
}
_POLICY = "--shared-devices-allocation-policy"
MOST_RUNS = 10_000

_T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Student's t for 95 % by degrees of freedom from 1 on, of any table of it; 1.96 beyond."""


class WrongSweep(ValueError):
    """The settings make no sweep; the text says which, and what to do."""


Value: TypeAlias = "str | int | float | bool | None"


@dataclass(frozen=True, slots=True)
class Setting:
    """A key and the values that it is to have."""

    key: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """One run, as plain values: it may be run in another process, or on another machine."""

    scenario: str
    """The scenario as JSON, seed included."""
    policy: str
    until_s: float


class Figures(BaseModel):
    """What one run showed, of all its tenants; null where there is nothing to tell."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    deprived: float
    """tenants that got nothing"""
    slowdown: float | None
    """mean slowdown of the kind of tenant that was slowed down most"""
    slowdown_p95: float | None
    """of the kind that suffered most: what 95 of 100 requests did not exceed, over a request
    alone"""
    waited: float
    """pods that waited for devices and got them"""
    wait_max_s: float
    """the longest of these waits in seconds"""
    ooms: float
    """allocations that did not fit"""
    utilization: float | None
    """share of the time in which a kernel ran, mean over the GPUs"""
    switching_share: float | None
    """share of the time with work that was lost to context switches"""
    fairness: float | None
    """Jain's index, who got nothing counts as 0"""
    served: float
    """requests that were done"""


FIGURES: tuple[str, ...] = tuple(Figures.model_fields)


class Estimate(BaseModel):
    """A figure over the seeds: its mean, and the 95 % interval of that (null with one seed)."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    mean: float
    low: float | None
    high: float | None


class Combination(BaseModel):
    """One combination of settings, and its figures over the seeds; null where no run has one."""

    model_config = ConfigDict(frozen=True)

    settings: dict[str, str | int | float | bool | None]
    figures: dict[str, Estimate | None]
    runs: list[Figures]


class SweepReport(BaseModel):
    """Nothing in it depends on where or how fast the runs were made."""

    model_config = ConfigDict(frozen=True)

    scenario: str
    until_s: float
    seeds: list[int]
    combinations: list[Combination]


def parsed_setting(text: str) -> Setting:
    """`key=a,b,c` with values as in YAML; raises `WrongSweep`."""
    key, equals, rest = text.partition("=")
    values = [part.strip() for part in rest.split(",")]
    if not equals or not key or not all(values):
        raise WrongSweep(f"--set {text}: write KEY=VALUE,VALUE,..., such as replicas=2,4,10")
    return Setting(key, tuple(map(_scalar, values)))


def combinations(settings: Sequence[Setting]) -> list[dict[str, Value]]:
    keys = [setting.key for setting in settings]
    if len(set(keys)) < len(keys):
        raise WrongSweep("a key is given by two --set: give all its values in one")
    every = itertools.product(*(setting.values for setting in settings))
    return [dict(zip(keys, values, strict=True)) for values in every]


def jobs(
    scenario: Scenario, chosen: Sequence[Mapping[str, Value]], seeds: Sequence[int], until_s: float
) -> list[Job]:
    """The runs, seed by seed within each combination; raises `WrongSweep` for what cannot be."""
    if len(chosen) * len(seeds) > MOST_RUNS:
        raise WrongSweep(f"{len(chosen) * len(seeds)} runs are more than {MOST_RUNS}")
    return [
        Job(changed.model_dump_json(exclude_unset=True), policy, until_s)
        for settings in chosen
        for changed, policy in [_changed(scenario, settings)]
        for changed in (changed.model_copy(update={"seed": seed}) for seed in seeds)
    ]


def run_job(job: Job) -> Figures:
    """Run it; a function of a module, for workers."""
    scenario = Scenario.model_validate_json(job.scenario)
    outcome = VirtualRun(scenario, _settings(scenario, job.policy), job.until_s).run()
    return figures_of(report_of(outcome))


def figures_of(report: RunReport) -> Figures:
    slowdowns = [kind.slowdown for kind in report.kinds if kind.slowdown is not None]
    tails = [
        kind.latency_ms.p95 / kind.alone_ms
        for kind in report.kinds
        if kind.latency_ms is not None and kind.alone_ms
    ]
    return Figures(
        deprived=len(report.deprived),
        slowdown=max(slowdowns, default=None),
        slowdown_p95=max(tails, default=None),
        waited=report.pods.waited,
        wait_max_s=report.pods.wait_max_s or 0.0,
        ooms=report.ooms,
        utilization=report.utilization,
        switching_share=report.switching_share,
        fairness=report.fairness,
        served=sum(kind.served for kind in report.kinds),
    )


def sweep_report(
    scenario: Scenario,
    chosen: Sequence[Mapping[str, Value]],
    seeds: Sequence[int],
    until_s: float,
    found: Sequence[Figures],
) -> SweepReport:
    """`found` are the results of `jobs`, in their order."""
    return SweepReport(
        scenario=scenario.name,
        until_s=until_s,
        seeds=list(seeds),
        combinations=[
            Combination(
                settings=dict(settings),
                figures={name: estimate([getattr(one, name) for one in runs]) for name in FIGURES},
                runs=list(runs),
            )
            for number, settings in enumerate(chosen)
            for runs in [found[number * len(seeds) : (number + 1) * len(seeds)]]
        ],
    )


def estimate(values: Iterable[float | None]) -> Estimate | None:
    """Mean and interval, by Student's t over the values that there are."""
    there = [float(value) for value in values if value is not None]
    if not there:
        return None
    mean = statistics.fmean(there)
    if len(there) == 1:
        return Estimate(mean=mean, low=None, high=None)
    freedom = len(there) - 1
    quantile = _T_975[freedom - 1] if freedom <= len(_T_975) else 1.96
    half = quantile * statistics.stdev(there) / math.sqrt(len(there))
    return Estimate(mean=mean, low=mean - half, high=mean + half)


def told(value: Estimate | None, shown: Callable[[float], str]) -> str:
    """`4.2 ± 0.3`, without the interval where there is none."""
    if value is None:
        return "-"
    if value.high is None or value.high == value.mean:
        return shown(value.mean)
    return f"{shown(value.mean)} ± {shown(value.high - value.mean)}"


def _scalar(text: str) -> Value:
    value: object = yaml.safe_load(text)
    if value is not None and not isinstance(value, str | int | float):
        raise WrongSweep(f"{text} is no plain value: numbers, words, true and false are")
    return value


def _changed(scenario: Scenario, settings: Mapping[str, Value]) -> tuple[Scenario, str]:
    """The scenario with these settings, and the plugin's policy, "" for the scenario's own."""
    tree: Node = scenario.model_dump(mode="json", exclude_unset=True)
    policy = ""
    for key, value in settings.items():
        match key:
            case "replicas":
                tree["config"] = with_replicas(tree.get("config"), value)
            case "policy":
                policy = str(value)
            case "mechanism" | "model":
                for group in _list(tree, "gpus"):
                    group[key] = value
            case _:
                _set(tree, key, value)
    try:
        changed = Scenario.model_validate(tree)
        _settings(changed, policy)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise WrongSweep(f"--set {_told(settings)}: {where}: {first['msg']}") from error
    except (ConfigError, ConfigurationMisfit) as error:
        raise WrongSweep(f"--set {_told(settings)}: {error}") from error
    return changed, policy


def _settings(scenario: Scenario, policy: str) -> Settings:
    by_flag = {option.flags[0]: option for option in OPTIONS}
    return settings_for(scenario, {by_flag[_POLICY]: policy} if policy else {}, {}, None)


def _set(tree: Node, key: str, value: Value) -> None:
    """Set `pods.NAME.key`, `tenants.NAME.key`, `gpus.NUMBER.key`, or a key of the scenario."""
    *path, last = key.split(".")
    node: object = tree
    for part in path:
        node = _child(node, part, key)
    if not isinstance(node, dict):
        raise WrongSweep(_no_such_key(key))
    node[last] = value


def _child(node: object, part: str, key: str) -> object:
    if isinstance(node, dict):
        if part not in node:
            raise WrongSweep(_no_such_key(key))
        return node[part]
    if isinstance(node, list):
        named = [one for one in node if isinstance(one, dict) and one.get("name") == part]
        if named:
            return named[0]
        if part.isdecimal() and int(part) < len(node):
            return node[int(part)]
    raise WrongSweep(_no_such_key(key))


def _no_such_key(key: str) -> str:
    return (
        f"--set {key}: the scenario has no such key; take one of {', '.join(SHORT)}, or a path "
        "such as pods.api.count or gpus.0.cooling"
    )


def _list(tree: Node, key: str) -> Iterable[Node]:
    found = tree.get(key)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _told(settings: Mapping[str, Value]) -> str:
    return " ".join(f"{key}={value}" for key, value in settings.items())
