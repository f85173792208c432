"""Series of calls: counted with their code, in flight while they are answered."""

from __future__ import annotations

import contextlib

from gpuplugin.daemon.http.exposition import make_registry
from gpuplugin.daemon.http.metrics import Metrics
from gpuplugin.rpc.services import RpcCode, RpcError, Service
from tests.unit.builders import EMPTY_VIEW

RESOURCE = "nvidia.com/gpu"


def in_flight(metrics: Metrics, method: str) -> float | None:
    return make_registry(metrics, lambda: EMPTY_VIEW).get_sample_value(
        "gpuplugin_rpc_in_flight", {"resource": RESOURCE, "method": method}
    )


def calls(metrics: Metrics, method: str, code: str) -> float | None:
    return make_registry(metrics, lambda: EMPTY_VIEW).get_sample_value(
        "gpuplugin_rpc_duration_seconds_count",
        {"resource": RESOURCE, "method": method, "code": code},
    )


def test_a_call_is_in_flight_while_it_is_answered_and_no_longer() -> None:
    metrics = Metrics()
    seen: list[float | None] = []

    def look(_request: bytes) -> bytes:
        seen.append(in_flight(metrics, "Look"))
        seen.append(in_flight(metrics, "Other"))
        return b""

    def refuse(_request: bytes) -> bytes:
        seen.append(in_flight(metrics, "Other"))
        raise RpcError(RpcCode.INVALID_ARGUMENT, "no")

    table = {"Look": look, "Other": refuse}
    service = metrics.calls[RESOURCE].wrap(Service("a.B", table, {}))
    service.unary["Look"](b"")
    with contextlib.suppress(RpcError):
        service.unary["Other"](b"")
    assert seen == [1, 0, 1]
    assert (in_flight(metrics, "Look"), in_flight(metrics, "Other")) == (0, 0)
    assert calls(metrics, "Look", "OK") == 1
    assert calls(metrics, "Other", "INVALID_ARGUMENT") == 1


def test_the_first_refusal_is_an_increase() -> None:
    """A series that begins with 1 is none to Prometheus."""
    metrics = Metrics()
    metrics.calls[RESOURCE].wrap(Service("a.B", {"Allocate": lambda _request: b""}, {}))
    assert calls(metrics, "Allocate", "INVALID_ARGUMENT") == 0


def test_the_series_of_a_resource_that_is_gone_end() -> None:
    metrics = Metrics()
    metrics.calls[RESOURCE].wrap(Service("a.B", {"Allocate": lambda _request: b""}, {}))
    assert calls(metrics, "Allocate", "OK") == 0
    metrics.forget_resource(RESOURCE)
    assert calls(metrics, "Allocate", "OK") is None
    assert in_flight(metrics, "Allocate") is None


def choices(metrics: Metrics, resource: str, method: str) -> float | None:
    return make_registry(metrics, lambda: EMPTY_VIEW).get_sample_value(
        "gpuplugin_preferences_total", {"resource": resource, "method": method}
    )


def test_choices_are_counted_by_resource_and_method() -> None:
    metrics = Metrics()
    count, other = metrics.choices_of(RESOURCE), metrics.choices_of("other")
    for method in ("exact", "plain", "exact"):
        count(method)
    other("plain")
    assert choices(metrics, RESOURCE, "exact") == 2
    assert choices(metrics, RESOURCE, "plain") == 1
    assert choices(metrics, "other", "plain") == 1
    assert choices(metrics, "other", "exact") is None


def test_choices_of_a_resource_that_comes_back_count_from_the_start() -> None:
    metrics = Metrics()
    metrics.choices_of(RESOURCE)("exact")
    metrics.forget_resource(RESOURCE)
    assert choices(metrics, RESOURCE, "exact") is None
    metrics.choices_of(RESOURCE)("exact")
    assert choices(metrics, RESOURCE, "exact") == 1
