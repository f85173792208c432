"""Asks a Prometheus for the history of pods on GPUs: this plugin's metrics, or dcgm-exporter's."""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

from sim.advise.history import CannotRead, History, PodSeries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

TIMEOUT_S = 60.0
LEAST_STEP_S = 15.0
MOST_POINTS = 10_000
"""Of one series; a Prometheus refuses more than 11,000."""

SM, MEMORY = "gpuplugin_pod_sm_ratio", "gpuplugin_pod_memory_bytes"
CONTENDING = "gpuplugin_gpu_contending_tenants"
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
        # A scrape that has labels of its own calls those of the target exported_*.
        pod = labels.get("exported_pod") or labels.get("pod") or ""
        namespace = labels.get("exported_namespace") or labels.get("namespace") or ""
        uuid = labels.get("uuid") or labels.get("UUID") or ""
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
