"""Reads the openb trace of Alibaba's cluster: machines and pods."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


WHOLE_MILLI = 1000


class TraceError(Exception):
    """A file of the trace cannot be read; the text names the file, the line and the column."""


@dataclass(frozen=True, slots=True)
class FleetNode:
    """A machine with `gpus` GPUs of one `model`."""

    name: str
    cpu_milli: int
    memory_mib: int
    gpus: int
    model: str


@dataclass(frozen=True, slots=True)
class FleetPod:
    """A pod that wants `gpus` whole GPUs, or `share` (0 to 1) of one where `gpus` is 0.

    It came at `created_s` and lived for `life_s` in the trace. A `batch` pod ends when its work is
    done; any other when its time is up.
    """

    name: str
    cpu_milli: int
    memory_mib: int
    gpus: int
    share: float
    created_s: float
    life_s: float
    batch: bool


_T = TypeVar("_T")


def read_nodes(file: str) -> list[FleetNode]:
    """The machines with GPUs; raises `TraceError`."""
    return [node for node in _rows(file, _node) if node.gpus]


def read_pods(file: str) -> list[FleetPod]:
    """The pods that request a GPU or a part of one, by arrival; raises `TraceError`."""
    pods = [pod for pod in _rows(file, _pod) if pod.gpus or pod.share]
    return sorted(pods, key=lambda pod: (pod.created_s, pod.name))


def _node(row: Mapping[str, str]) -> FleetNode:
    return FleetNode(
        row["sn"], int(row["cpu_milli"]), int(row["memory_mib"]), int(row["gpu"]), row["model"]
    )


def _pod(row: Mapping[str, str]) -> FleetPod:
    count, milli = int(row["num_gpu"]), int(row["gpu_milli"])
    fraction = count == 1 and milli < WHOLE_MILLI
    created_s = float(row["creation_time"])
    return FleetPod(
        name=row["name"],
        cpu_milli=int(row["cpu_milli"]),
        memory_mib=int(row["memory_mib"]),
        gpus=0 if fraction else count,
        share=milli / WHOLE_MILLI if fraction else 0.0,
        created_s=created_s,
        life_s=max(1.0, float(row["deletion_time"]) - created_s),
        batch=row["qos"] == "BE",
    )


def _rows(file: str, parse: Callable[[Mapping[str, str]], _T]) -> list[_T]:
    found: list[_T] = []
    try:
        with Path(file).open(encoding="utf-8", newline="") as stream:
            found.extend(parse(row) for row in csv.DictReader(stream))
    except KeyError as error:
        raise TraceError(f"{file}: there is no column {error}; is it a file of openb?") from error
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{file}: {error}") from error
    except (ValueError, TypeError, csv.Error) as error:
        raise TraceError(f"{file}, line {len(found) + 2}: {error}") from error
    return found
