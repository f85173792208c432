"""Series of calls: counted with their code, in flight while they are answered."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus

from gpuplugin.daemon.http.exposition import families
from gpuplugin.daemon.http.metrics import Metrics
from gpuplugin.daemon.http.textformat import OPENMETRICS, TEXT, Family, chosen_format, encoded
from gpuplugin.rpc.services import RpcCode, RpcError, Service
from tests.unit.builders import EMPTY_VIEW

RESOURCE = "nvidia.com/gpu"


def sample_value(metrics: Metrics, name: str, labels: dict[str, str]) -> float | None:
    samples = (one for family in families(metrics, EMPTY_VIEW) for one in family.samples)
    return next((value for found, has, value in samples if (found, has) == (name, labels)), None)


def in_flight(metrics: Metrics, method: str) -> float | None:
    return sample_value(
        metrics, "gpuplugin_rpc_in_flight", {"resource": RESOURCE, "method": method}
    )


def calls(metrics: Metrics, method: str, code: str) -> float | None:
    return sample_value(
        metrics,
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
    return sample_value(
        metrics, "gpuplugin_preferences_total", {"resource": resource, "method": method}
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


@given(st.text(max_size=20), st.text(max_size=20), st.floats(allow_nan=False), st.booleans())
def test_prometheuss_own_reader_reads_what_was_written(
    text: str, label: str, value: float, is_open: bool
) -> None:
    gauge, counter, info = (
        Family("a", text),
        Family("b", text, "counter"),
        Family("c", text, "info"),
    )
    gauge.add(value, {"x": label, "a": "1"})
    counter.add(abs(value))
    info.add(1, {"x": label})
    times = Family("d_seconds", text, "histogram")
    times.add_histogram((0.5, 2.0), (1, 2, 3), 4.5, method=label)
    form = OPENMETRICS if is_open else TEXT
    parse = parse_openmetrics if is_open else parse_prometheus

    read = [one for family in parse(encoded([gauge, counter, info, times], form).decode())
            for one in family.samples]  # fmt: skip

    found = {(one.name, tuple(sorted(one.labels.items()))): one.value for one in read}
    assert found == {
        ("a", (("a", "1"), ("x", label))): value,
        ("b_total", ()): abs(value),
        ("c_info", (("x", label),)): 1,
        ("d_seconds_bucket", (("le", "0.5"), ("method", label))): 1,
        ("d_seconds_bucket", (("le", "2.0"), ("method", label))): 3,
        ("d_seconds_bucket", (("le", "+Inf"), ("method", label))): 6,
        ("d_seconds_count", (("method", label),)): 6,
        ("d_seconds_sum", (("method", label),)): 4.5,
    }


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/plain;version=0.0.4", TEXT),
        ("application/openmetrics-text;version=0.0.1,text/plain", TEXT),
        ("application/openmetrics-text", OPENMETRICS),
        ("text/plain;q=0.3, application/openmetrics-text; version=1.0.0; q=0.6", OPENMETRICS),
    ],
)
def test_the_format_is_one_that_is_accepted(accept: str, form: str) -> None:
    assert chosen_format(accept) == form
