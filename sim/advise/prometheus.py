"""Asks a Prometheus about pods on GPUs: this plugin's metrics, or dcgm-exporter's.

For their history, and for what became of an advice.
"""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

from hal import GIB
from sim.advise.check import GpuSeen, PodSeen, Seen
from sim.advise.history import CannotRead, History, PodSeries
from sim.advise.workload import HOUR_S
from sim.study.usage import owner_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

TIMEOUT_S = 60.0
LEAST_STEP_S = 15.0
MOST_POINTS = 10_000
"""Of one series; a Prometheus refuses more than 11,000."""

SM, MEMORY = "gpuplugin_pod_sm_ratio", "gpuplugin_pod_memory_bytes"
CONTENDING = "gpuplugin_gpu_contending_tenants"
REPLICAS_OF = "gpuplugin_gpu_replicas"
DCGM_BUSY = ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", "DCGM_FI_DEV_GPU_UTIL")
"""A share, and a percentage."""
DCGM_MEMORY = "DCGM_FI_DEV_FB_USED"

_MIB = 1024.0**2


def history(
    url: str, since_s: float, selector: str = "", now_s: float | None = None
) -> tuple[History, list[str]]:
    """The last `since_s` seconds, and notes on what is not in it; raises `CannotRead`.

    `selector` are matchers of PromQL without their braces, such as `namespace="ml"`.
    """
    end_s = time.time() if now_s is None else now_s
    step_s = max(LEAST_STEP_S, math.ceil(since_s / MOST_POINTS))
    # Whole steps, so that moments of several queries are the same.
    end_s = end_s // step_s * step_s
    start_s = end_s - since_s // step_s * step_s

    def ask(metric: str) -> list[tuple[Mapping[str, str], list[tuple[float, float]]]]:
        return list(_series(url, f"{metric}{{{selector}}}", start_s, end_s, step_s))

    sm = _pods(ask(SM), 1.0)
    if sm:
        contending = {
            (labels.get("uuid", ""), at_s): value
            for labels, samples in _series(url, CONTENDING, start_s, end_s, step_s)
            for at_s, value in samples
        }
        return History(sm, _pods(ask(MEMORY), 1.0), contending, step_s), []
    return _dcgm(ask, step_s, url, since_s)


def _dcgm(
    ask: Callable[[str], list[tuple[Mapping[str, str], list[tuple[float, float]]]]],
    step_s: float,
    url: str,
    since_s: float,
) -> tuple[History, list[str]]:
    for metric, scale in zip(DCGM_BUSY, (1.0, 0.01), strict=True):
        if busy := _pods(ask(metric), scale):
            lost = (
                f"From dcgm-exporter's {metric}, which knows GPUs and not pods: of a shared GPU "
                "each pod shows what all of them did, and held, together. For shared GPUs use this "
                "plugin's metrics."
            )
            return History(busy, _pods(ask(DCGM_MEMORY), _MIB), {}, step_s), [lost]
    raise CannotRead(
        f"{url} has neither {SM} nor {' or '.join(DCGM_BUSY)} with a pod in the last "
        f"{since_s / 86400:.3g} days: is the plugin scraped, with its component pod-metrics?"
    )


def _pods(
    found: Sequence[tuple[Mapping[str, str], list[tuple[float, float]]]], scale: float
) -> list[PodSeries]:
    """Series that name a pod; processes outside of pods do not."""
    made = []
    for labels, samples in found:
        namespace, pod, uuid = _pod_of(labels)
        if pod and uuid:
            scaled = [(at_s, scale * value) for at_s, value in samples]
            made.append(PodSeries(namespace, pod, uuid, scaled))
    return made


def _series(
    url: str, query: str, start_s: float, end_s: float, step_s: float
) -> Iterator[tuple[Mapping[str, str], list[tuple[float, float]]]]:
    """Labels and samples of each series; values that are no numbers are left out."""
    answer = _answer(url, query, start_s, end_s, step_s)
    data = answer.get("data")
    result = data.get("result") if isinstance(data, dict) else None
    if not isinstance(result, list):
        raise CannotRead(f"{url} answers {query} with something that is no matrix")
    for one in result:
        labels, values = one["metric"], one["values"]
        samples = [(float(at_s), float(value)) for at_s, value in values]
        yield labels, [(at_s, value) for at_s, value in samples if math.isfinite(value)]


def _answer(
    url: str, query: str, start_s: float, end_s: float, step_s: float
) -> Mapping[str, object]:
    if urlsplit(url).scheme not in ("http", "https"):
        raise CannotRead(f"{url} is no address of a Prometheus: write http://HOST:PORT")
    wanted = {"query": query, "start": start_s, "end": end_s, "step": step_s}
    body = urlencode(wanted).encode()
    request = Request(f"{url.rstrip('/')}/api/v1/query_range", data=body)  # noqa: S310 - see above
    try:
        with urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310 - the same
            answer: object = json.load(response)
    except HTTPError as error:
        text = error.read(2000).decode(errors="replace")
        raise CannotRead(f"{url} refuses {query}: {error.code}: {text}") from error
    except (URLError, OSError, ValueError) as error:
        raise CannotRead(f"{url} cannot be asked: {error}") from error
    if not isinstance(answer, dict) or answer.get("status") != "success":
        raise CannotRead(f"{url} answers {query} without success: {str(answer)[:300]}")
    return answer


_WAITING = (
    "sum(kube_pod_status_unschedulable and on (namespace, pod) "
    'kube_pod_container_resource_requests{resource=~"nvidia_com_.*"}) or '
    "vector(0) and on () (count(kube_pod_status_phase) > 0)"
)
"""Of kube-state-metrics: pods that ask for a GPU and that the scheduler finds no node for."""
_NEARLY_FULL_BYTES = 2**29
"""So little free memory counts as none: the next allocation of a program is larger."""
_WEEK_S = 7 * 86400.0


def seen_since(url: str, since_s: float, selector: str = "", now_s: float | None = None) -> Seen:
    """Means of the last `since_s` seconds, made by the Prometheus; raises `CannotRead`.

    `selector` is for series of pods; the GPUs are those that there are.
    """
    end_s = time.time() if now_s is None else now_s
    span = f"[{max(1, round(since_s))}s]"

    def ask(query: str) -> list[tuple[Mapping[str, str], float]]:
        found = _series(url, query, end_s, end_s, LEAST_STEP_S)
        return [(labels, samples[-1][1]) for labels, samples in found if samples]

    def of_gpus(query: str) -> Mapping[str, float]:
        return {labels.get("uuid", ""): value for labels, value in ask(query)}

    def mean(metric: str) -> Mapping[str, float]:
        return of_gpus(f"avg_over_time({metric}{span})")

    samples = ask(f"count_over_time({SM}{{{selector}}}{span})")
    shares = {
        _pod_of(labels): value for labels, value in ask(f"avg_over_time({SM}{{{selector}}}{span})")
    }
    pods = [
        PodSeen(namespace, owner_of(pod), uuid, count, shares[namespace, pod, uuid])
        for labels, count in samples
        for namespace, pod, uuid in [_pod_of(labels)]
        if pod and (namespace, pod, uuid) in shares
    ]
    replicas = [of_gpus(f"{how}_over_time({REPLICAS_OF}{span})") for how in ("min", "max", "last")]
    utilization, tenants, contending = (
        mean(f"gpuplugin_gpu_{what}")
        for what in ("utilization_ratio", "tenants", "contending_tenants")
    )
    used = "gpuplugin_gpu_memory_used_bytes"
    memory, most = mean(used), of_gpus(f"max_over_time({used}{span})")
    free = f"min_over_time(gpuplugin_gpu_memory_headroom_bytes[1h]) < bool {_NEARLY_FULL_BYTES}"
    hours = max(1, round(since_s / HOUR_S))
    short = of_gpus(f"sum_over_time(({free})[{hours}h:1h])")
    full = of_gpus(
        f"avg_over_time((gpuplugin_gpu_replicas_allocated >= bool {REPLICAS_OF}){span[:-1]}:1m])"
    )
    waiting = [value for _, value in ask(f"avg_over_time(({_WAITING}){span[:-1]}:1m])")]
    gpus = {
        uuid: GpuSeen(
            replicas=_newest_last([round(one[uuid]) for one in replicas if uuid in one]),
            utilization=utilization.get(uuid),
            tenants=tenants.get(uuid),
            contending=contending.get(uuid),
            memory_mean_gib=None if uuid not in memory else memory[uuid] / GIB,
            memory_most_gib=None if uuid not in most else most[uuid] / GIB,
            short_per_week=None if uuid not in short else short[uuid] * _WEEK_S / (hours * HOUR_S),
            full_share=full.get(uuid),
        )
        for uuid in replicas[-1]
    }
    return Seen(since_s, gpus, pods, sum(waiting) if waiting else None)


def _newest_last(values: Sequence[int]) -> tuple[int, ...]:
    """Each value once, where it comes last."""
    return tuple(reversed(dict.fromkeys(reversed(values))))


def _pod_of(labels: Mapping[str, str]) -> tuple[str, str, str]:
    """Namespace, pod and GPU; a scrape with labels of its own calls the target's exported_*."""
    pod = labels.get("exported_pod") or labels.get("pod") or ""
    namespace = labels.get("exported_namespace") or labels.get("namespace") or ""
    return namespace, pod, labels.get("uuid") or labels.get("UUID") or ""
