"""The advice in words: one sentence, why, what it rests on, and the configuration to apply."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import yaml

from gpuplugin.core.inventory import GPU_RESOURCE
from hal import TimeSliceLevel
from sim.gpu.profiles import slices_from
from sim.study.sentences import counted, listed, number, percent
from sim.study.share import Mechanism

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sim.advise.advice import Advice, Row


def sentence(advice: Advice) -> str:
    """The answer, and what keeps it from being more."""
    plan = advice.plan
    row, more = advice.row, next((row for row in advice.rows if not row.keeps), None)
    if row is None:
        reason = _reason(advice, more) if more is not None else ""
        return f"Not even one pod on a GPU keeps the goals: {reason}."
    what = "Do not share" if row.replicas == 1 else f"Make {row.replicas} replicas of"
    text = f"{what} {_gpus(advice)}"
    if more is not None:
        return f"{text}: with {more.replicas}, {_reason(advice, more)}."
    enough = max(row.sharing for row in advice.rows)
    pods = counted(plan.count, "pod")
    return (
        f"{text}: the {pods} keep the goals together, and {counted(enough, 'replica')} of each GPU "
        "would do for them; what more pods would cost was not tried."
    )


def remarks(advice: Advice) -> list[str]:
    """What else there is to say: who is left out, utilisation, other mechanisms, assumptions."""
    return [*_left_out(advice), *_idle(advice), *_others(advice), *_assumed(advice)]


def confidence(advice: Advice) -> list[str]:
    """How far this can be trusted: which mechanism on which model somebody ever measured."""
    plan = advice.plan
    profile = plan.profile
    lines = []
    match plan.mechanism:
        case Mechanism.MPS:
            lines.append(
                "MPS is modelled by one number for each workload. It was fitted to two published "
                "families of measurements; for your workloads it is assumed."
            )
        case Mechanism.MIG:
            lines.append(
                "MIG devices are taken as GPUs with fewer SMs; no measurement was compared."
            )
        case _:
            lines.append(
                "Time slicing agrees within 4 % with published runs on A100, RTX 4090 and "
                "RTX 5090, and was partly fitted to most of them."
            )
            lines.append(slices_from(plan.model, profile))
            if (
                plan.level is not TimeSliceLevel.DEFAULT
                and profile.time_slice.of_level(plan.level) is None
            ):
                lines.append(
                    "The length of the slice is assumed: NVIDIA publishes none for this level."
                )
    lines.append(
        "Not in the model: memory bandwidth and caches that pods take from each other between "
        "slices, copies, and the CPU."
    )
    return lines


def configuration(advice: Advice) -> str:
    """The plugin's configuration for it, as YAML; empty where there is none to give."""
    plan = advice.plan
    if not advice.replicas or plan.mechanism is not Mechanism.TIME_SLICING:
        return ""
    slicing: dict[str, object] = {
        "resources": [{"name": GPU_RESOURCE, "replicas": advice.replicas}]
    }
    if plan.level is not TimeSliceLevel.DEFAULT:
        slicing["interval"] = plan.level.name.title()
    return yaml.safe_dump({"version": "v1", "sharing": {"timeSlicing": slicing}}, sort_keys=False)


def _gpus(advice: Advice) -> str:
    plan = advice.plan
    profile = plan.profile
    return f"the {profile.product}" if plan.gpus == 1 else f"each {profile.product}"


def _reason(advice: Advice, row: Row) -> str:
    goals = advice.plan.goals
    if row.refused:
        return f"the memory of {percent(row.refused)} of the pods does not fit"
    if row.ooms_per_week > goals.ooms_per_week:
        often = (
            "about once an hour or more"
            if row.ooms_per_week >= 100
            else (f"{number(row.ooms_per_week)} times a week")
        )
        return f"memory runs out {often}"
    if row.p95 is None:
        return "no request is done"
    return (
        f"95 of 100 requests of {row.worst} take up to {row.p95:.2f} times as long as alone, "
        f"and the goal is {goals.slowdown_p95:g}"
    )


def _left_out(advice: Advice) -> Iterator[str]:
    plan, row = advice.plan, advice.row
    if row is not None and row.left_out:
        need = math.ceil(plan.count / row.replicas)
        yield (
            f"{row.left_out} of {plan.count} pods get no replica on "
            f"{counted(plan.gpus, 'GPU')} and wait: all of them need {counted(need, 'GPU')}."
        )


def _idle(advice: Advice) -> Iterator[str]:
    row, goals = advice.row, advice.plan.goals
    if row is not None and row.utilization < goals.min_utilization:
        more = next((row for row in advice.rows if not row.keeps), None)
        if more is None:
            why = "there is no more work for it"
        elif more.refused or more.ooms_per_week > goals.ooms_per_week:
            why = "memory is in the way"
        else:
            why = "the goal for slowdown is in the way"
        yield (
            f"The GPU is busy for {percent(row.utilization)} of the time then, less than the "
            f"{percent(goals.min_utilization)} that you want: {why}."
        )


def _others(advice: Advice) -> Iterator[str]:
    for mechanism, replicas in advice.others.items():
        what = {
            Mechanism.MPS: "By MPS",
            Mechanism.MIG: "By MIG devices",
            Mechanism.TIME_SLICING: "By time slicing",
        }[mechanism]
        price = {
            Mechanism.MPS: " A fault of one ends all of them.",
            Mechanism.MIG: " Each has memory of its own, and faults stay with one.",
            Mechanism.TIME_SLICING: "",
        }[mechanism]
        many = counted(advice.plan.sharing(replicas), "pod") if replicas else "no pod"
        yield f"{what} {many} would share a GPU within the same goals.{price}"


def _assumed(advice: Advice) -> Iterator[str]:
    """What the answer depends on, and what it does not."""
    differs = [one for one in advice.assumptions if one.replicas != advice.replicas]
    same = list(dict.fromkeys(one.what for one in advice.assumptions if one not in differs))
    for one in differs:
        yield f"If {one.what} were {one.otherwise}, it would be {one.replicas or 'none'}."
    same = [what for what in same if all(one.what != what for one in differs)]
    if same:
        yield f"It does not depend on what is assumed of {listed(same)}."
