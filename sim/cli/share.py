"""`gpuplugin sim share`: what sharing a GPU costs, as a table and one sentence."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from gpuplugin.cli.text import fail, gib, table
from hal import TimeSliceLevel
from sim.cli.options import add_calibration, add_workers, given_calibration, workers_of
from sim.gpu.calibration import CannotUse
from sim.gpu.profiles import UnknownModel, slices_from
from sim.gpu.scheduler import NS_PER_MS
from sim.gpu.schedulers import usual_mps_share
from sim.study.share import Mechanism, SharePlan, WrongPlan
from sim.study.share import share as share_out
from sim.study.workers import CannotRunThere

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuplugin.cli.parser import Commands
    from sim.gpu.calibration import Calibration
    from sim.study.share import Refused, ShareResult

_SAME = 1.005
"""A slowdown below this is called none."""
_LEAST = 0.005
"""A share below this rounds to 0 %."""


def add(commands: Commands) -> None:
    share = commands.add_parser(
        "share",
        help="what sharing a GPU costs",
        description="Simulate equal clients on one GPU, each of which works, rests and begins "
        "anew, and print what sharing costs them.",
    )
    share.set_defaults(module="sim.cli.share", function="share", wrong_usage=share.error)
    share.add_argument("--model", required=True, help="GPU model, as scenarios call it")
    share.add_argument(
        "--clients",
        required=True,
        type=counts,
        metavar="N,...",
        help="how many; of several, a row each",
    )
    share.add_argument(
        "--busy-ms", required=True, type=float, metavar="B", help="GPU work of each, when alone"
    )
    share.add_argument(
        "--idle-ms",
        type=float,
        default=0.0,
        metavar="I",
        help="then off the GPU for so long on average, between half and one and a half times "
        "of it (default 0)",
    )
    fills = "how much of the GPU the work fills (default 1.0: all of it, the dearest to switch)"
    share.add_argument("--occupancy", type=float, default=1.0, metavar="0..1", help=fills)
    memory = "memory of each beside its context (default 0)"
    share.add_argument("--memory-gib", type=float, default=0.0, metavar="M", help=memory)
    names = [one.value for one in Mechanism]
    share.add_argument(
        "--mechanism", choices=names, default="time-slicing", help="default time-slicing"
    )
    share.add_argument(
        "--level",
        choices=[one.name.lower() for one in TimeSliceLevel],
        help="length of time slices as nvidia-smi compute-policy sets it; only that of default was "
        "ever measured",
    )
    slows = (
        "with MPS, by how much of its time alone a client slows each other one down: 1 + the "
        "shares of the others is the slowdown (default 0.59 times the occupancy)"
    )
    share.add_argument("--mps-share", type=float, metavar="0..1", help=slows)
    add_calibration(share)
    share.add_argument("--seed", type=int, default=0, metavar="S", help="default 0")
    add_workers(share)
    share.add_argument("--json", action="store_true", help="print JSON; of several, a list")


def counts(text: str) -> list[int]:
    """`1,2,4`: whole numbers from 1 on."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(
            f"must be whole numbers from 1 on, with commas between them, found {text!r}"
        )
    return [int(part) for part in parts]


def share(parsed: argparse.Namespace) -> int:
    try:
        calibration = given_calibration(parsed)
        plans = [_plan(parsed, clients, calibration) for clients in parsed.clients]
        results = (
            workers_of(parsed).results(share_out, plans) if plans[1:] else [share_out(plans[0])]
        )
    except (WrongPlan, UnknownModel) as error:
        parsed.wrong_usage(str(error))
        raise AssertionError from error
    except (CannotRunThere, CannotUse) as error:
        return fail(error)
    found = list(zip(plans, results, strict=True))
    if parsed.json:
        values = [as_json(plan, result) for plan, result in found]
        print(json.dumps(values if plans[1:] else values[0], indent=2))
        for line in (line for _, result in found for line in _out_of_memory(result)):
            print(f"gpuplugin: {line}", file=sys.stderr)
    else:
        print("\n".join(as_rows(found) if plans[1:] else as_text(*found[0])))
    return 0


def _plan(parsed: argparse.Namespace, clients: int, calibration: Calibration | None) -> SharePlan:
    return SharePlan(
        model=parsed.model,
        clients=clients,
        busy_ms=parsed.busy_ms,
        idle_ms=parsed.idle_ms,
        occupancy=parsed.occupancy,
        memory_gib=parsed.memory_gib,
        mechanism=Mechanism(parsed.mechanism),
        level=TimeSliceLevel[parsed.level.upper()] if parsed.level else None,
        seed=parsed.seed,
        mps_share=parsed.mps_share,
        calibration=calibration,
    )


def as_json(plan: SharePlan, result: ShareResult) -> dict[str, object]:
    """The figures, rounded, and the plan under `inputs`; null where no client ran."""
    inputs = asdict(replace(plan, calibration=None))
    del inputs["calibration"]
    if plan.calibration is not None:
        inputs["calibration"] = plan.calibration.model_dump(mode="json", exclude_none=True)
    inputs["mechanism"] = plan.mechanism.value
    inputs["level"] = plan.level.name.lower() if plan.level is not None else None
    return {
        "inputs": inputs,
        "slowdown_mean": _rounded(result.slowdown_mean),
        "latency_ms": {name: _rounded(value) for name, value in asdict(result.latency_ms).items()},
        "throughput_per_client_per_s": _rounded(result.throughput_per_client_per_s),
        "gpu_utilization": _rounded(result.gpu_utilization),
        "switch_loss": _rounded(result.switch_loss),
        "oom": result.oom,
    }


def as_text(plan: SharePlan, result: ShareResult) -> list[str]:
    """What was simulated, the figures beside those of a client alone, notes, one sentence."""
    latency, cycle_ms = result.latency_ms, plan.busy_ms + plan.idle_ms
    alone_ms = f"{plan.busy_ms:.2f}"
    rows = [
        ("slowdown", "1.00", _number(result.slowdown_mean)),
        ("latency mean, ms", alone_ms, _number(latency.mean)),
        ("latency p50, ms", alone_ms, _number(latency.p50)),
        ("latency p95, ms", alone_ms, _number(latency.p95)),
        ("latency p99, ms", alone_ms, _number(latency.p99)),
        (
            "throughput per client, 1/s",
            _number(1000 / cycle_ms),
            _number(result.throughput_per_client_per_s),
        ),
        (
            "GPU utilisation, %",
            f"{100 * plan.busy_ms / cycle_ms:.1f}",
            f"{100 * result.gpu_utilization:.1f}",
        ),
        ("lost to switching, %", "0.0", f"{100 * result.switch_loss:.1f}"),
        ("out of memory, clients", "0", str(result.oom)),
    ]
    notes = [*_notes(plan, result), *_out_of_memory(result)]
    return [
        _headline(plan),
        "",
        *table(("", "alone", "shared"), rows),
        "",
        *notes,
        _summary(plan, result),
    ]


def as_rows(found: Sequence[tuple[SharePlan, ShareResult]]) -> list[str]:
    """Several numbers of clients, each with a row; who did not run comes first."""
    header = (
        *("CLIENTS", "DID NOT RUN", "SLOWDOWN", "MEAN MS", "P50", "P95", "P99"),
        *("EACH /S", "TOGETHER /S", "GAIN", "UTILISATION", "SWITCHING"),
    )
    rows = []
    for plan, result in found:
        each, running = result.throughput_per_client_per_s, plan.clients - result.oom
        latency, together = result.latency_ms, each * running
        alone = 1000 / (plan.busy_ms + plan.idle_ms)
        rows.append(
            (
                str(plan.clients),
                str(result.oom),
                *(
                    _number(value)
                    for value in (
                        *(result.slowdown_mean, latency.mean, latency.p50, latency.p95),
                        *(latency.p99, each, together, together / alone),
                    )
                ),
                f"{100 * result.gpu_utilization:.0f} %",
                f"{100 * result.switch_loss:.1f} %",
            )
        )
    notes = dict.fromkeys(note for plan, result in found for note in _notes(plan, result))
    refused = [line for _, result in found for line in _out_of_memory(result)]
    plan = found[0][0]
    return [
        _headline(plan, "clients"),
        "",
        *table(header, rows),
        "",
        "GAIN: what all of them get done together, of what one alone does.",
        *notes,
        *refused,
    ]


def _headline(plan: SharePlan, who: str = "") -> str:
    many = who or (f"{plan.clients} clients" if plan.clients > 1 else "1 client")
    idle = f", then {plan.idle_ms:g} ms off the GPU" if plan.idle_ms else ", one after another"
    text = f"{many} on {plan.model}, {plan.mechanism}: {plan.busy_ms:g} ms of GPU work{idle}"
    if plan.mechanism is not Mechanism.TIME_SLICING:
        return text
    parameters = plan.slice_parameters
    switch_ns = parameters.switch_ns(plan.occupancy, plan.occupancy)
    return (
        f"{text}; slices of {parameters.slice_ns / NS_PER_MS:.3f} ms, "
        f"switches of {switch_ns / NS_PER_MS:.3f} ms"
    )


def _notes(plan: SharePlan, result: ShareResult) -> list[str]:
    notes = []
    profile, level = plan.profile, plan.level or TimeSliceLevel.DEFAULT
    if plan.mechanism is Mechanism.TIME_SLICING:
        notes.append(slices_from(plan.model, profile))
    if plan.mechanism is Mechanism.MPS and plan.clients > 1:
        notes.append(_mps_note(plan))
    if level is not TimeSliceLevel.DEFAULT and profile.time_slice.of_level(level) is None:
        notes.append("The length of the slice is assumed: NVIDIA publishes none for this level.")
    division = result.division
    if division.mig is not None:
        parts = len(division.parts)
        devices = f"{parts} devices" if parts > 1 else "one device"
        if len(division.parts[0].clients) == 1:
            notes.append(f"MIG: {devices} of {division.mig}, one for each client.")
        else:
            notes.append(
                f"MIG: there are no more than {devices} of {division.mig}: "
                f"the {plan.clients} clients share them, by time slicing."
            )
        notes.append("Utilisation and switching are means over these devices.")
    return notes


def _mps_note(plan: SharePlan) -> str:
    if plan.mps_share is not None:
        return f"MPS: each client adds {plan.mps_share:g} to the slowdown of each other one."
    if plan.calibration is not None and plan.calibration.mps is not None:
        measured = plan.calibration.mps
        return (
            f"The MPS share was measured on this GPU on {plan.calibration.measured_on}: "
            f"{measured.share:g}, with the command {measured.command!r}."
        )
    share = usual_mps_share(plan.occupancy)
    return (
        f"The MPS share is assumed: {share:.2g} for an occupancy of {plan.occupancy:g}. It was "
        "measured at 0.43 and 0.75 where workloads fill the GPU. Set --mps-share to the slowdown "
        "of two of your clients, less 1."
    )


def _out_of_memory(result: ShareResult) -> list[str]:
    if not result.refused:
        return []
    first, *others = result.refused
    more = f", nor did {len(others)} more" if others else ""
    text = (
        f"Out of memory: client {first.client} asked for {gib(first.asked_bytes)}, "
        f"{gib(first.free_bytes)} were free; {_holders(first)}. It did not run{more}."
    )
    return [text]


def _holders(refused: Refused) -> str:
    if not refused.holders:
        return "no other client held any"
    each = gib(max(refused.holders.values()))
    if len(refused.holders) == 1:
        return f"client {min(refused.holders)} held {each}"
    return f"clients {_ranges(sorted(refused.holders))} held {each} each"


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers in words, ascending: "0 to 3, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _summary(plan: SharePlan, result: ShareResult) -> str:
    slowdown, running = result.slowdown_mean, plan.clients - result.oom
    if slowdown is None:
        return "No client ran: none got its memory."
    who = (
        f"Each of {running} clients"
        if running > 1
        else "The one client that ran"
        if result.oom
        else "The one client"
    )
    if slowdown < _SAME:
        takes = "takes no longer than alone"
    else:
        takes = f"takes {slowdown:.{1 if slowdown >= 2 else 2}f} times as long as alone"
    if not result.switch_loss:
        return f"{who} {takes}; nothing goes into switching."
    percent = f"{100 * result.switch_loss:.0f} %"
    if result.switch_loss < _LEAST:
        percent = "less than 1 %"
    return f"{who} {takes}; {percent} of the GPU's time goes into switching."


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
