"""The daemon's HTTP port: metrics in both formats, liveness, readiness, and clear failures."""

from __future__ import annotations

import asyncio
import errno
import itertools
import select
import socket
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus

from gpuplugin.daemon.http.server import (
    EXCHANGE_TIMEOUT_S,
    MAX_CONNECTIONS,
    HttpError,
    HttpServer,
)
from gpuplugin.daemon.http.textformat import Family
from gpuplugin.daemon.status import StatusBoard
from tests.component.fakedriver import FakeDriver
from tests.component.running import (
    RESOURCE,
    allocate_request,
    http_get,
    run_as_loaded,
    settings_for,
)
from tests.component.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.component.running import Hardware, PluginProcess

OPENMETRICS = "application/openmetrics-text"


def test_metrics_are_prometheus_text(lone_plugin: PluginProcess) -> None:
    answer = lone_plugin.get("/metrics")
    assert answer.status == 200
    assert answer.content_type.startswith("text/plain")
    families = {family.name: family for family in parse_prometheus(answer.body)}
    own = {name for name in families if name.startswith("gpuplugin_")}
    assert {"gpuplugin_devices", "gpuplugin_gpu_health", "gpuplugin_monitor_blind"} <= own
    assert all(families[name].documentation for name in own)
    assert "process_resident_memory_bytes" in families


def test_metrics_are_openmetrics_for_who_asks(lone_plugin: PluginProcess) -> None:
    answer = lone_plugin.get("/metrics", {"Accept": f"{OPENMETRICS};version=1.0.0"})
    assert answer.status == 200
    assert answer.content_type.startswith(OPENMETRICS)
    assert answer.body.endswith("# EOF\n")
    names = {family.name for family in parse_openmetrics(answer.body)}  # type: ignore[no-untyped-call]
    assert {"gpuplugin_devices", "gpuplugin_rpc_duration_seconds"} <= names


def test_metrics_count_what_there_is(lone_plugin: PluginProcess, lone_hardware: Hardware) -> None:
    assert lone_plugin.metric("gpuplugin_devices", resource=RESOURCE, health="Healthy") == 80
    assert lone_plugin.metric("gpuplugin_devices", resource=RESOURCE, health="Unhealthy") == 0
    assert lone_plugin.metric("gpuplugin_gpu_health", state="Healthy") == 8
    assert lone_plugin.metric("gpuplugin_list_bytes", resource=RESOURCE) > 80 * 40
    for uuid in lone_hardware.uuids:
        assert lone_plugin.metric("gpuplugin_gpu_health", uuid=uuid, state="Healthy") == 1


def test_calls_are_measured_by_method_and_code(
    lone_plugin: PluginProcess, lone_hardware: Hardware
) -> None:
    name = "gpuplugin_rpc_duration_seconds_count"
    labels = {"resource": RESOURCE, "method": "Allocate"}
    ok = lone_plugin.metric(name, **labels, code="OK")
    bad = lone_plugin.metric(name, **labels, code="INVALID_ARGUMENT")
    lone_plugin.call("Allocate", allocate_request(lone_hardware.replicas(0)[:1]))
    with pytest.raises(Exception, match="unknown device"):
        lone_plugin.call("Allocate", allocate_request(("GPU-none::0",)))
    assert lone_plugin.metric(name, **labels, code="OK") == ok + 1
    assert lone_plugin.metric(name, **labels, code="INVALID_ARGUMENT") == bad + 1


@pytest.mark.parametrize("path", ["/health", "/healthz"])
def test_health_tells_the_parts(lone_plugin: PluginProcess, path: str) -> None:
    answer = lone_plugin.get(path)
    assert (answer.status, answer.content_type) == (200, "application/json")
    parts = answer.parts
    assert {"event-loop", "monitor", "inventory", f"kubelet:{RESOURCE}"} <= set(parts)
    for part in parts.values():
        assert set(part) == {"ok", "text", "for_s", "ok_ago_s"}
    assert "watching 8 GPUs" in str(parts["monitor"]["text"])


@pytest.mark.parametrize("path", ["/ready", "/readyz"])
def test_ready_tells_the_parts(lone_plugin: PluginProcess, path: str) -> None:
    answer = lone_plugin.get(path)
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert all(part["ok"] for part in answer.parts.values())


def test_other_paths_are_not_found_and_the_right_ones_are_named(
    lone_plugin: PluginProcess,
) -> None:
    for path in ("/page", "/metrics/x", "/..", "/health%20"):
        answer = lone_plugin.get(path)
        assert answer.status == 404
        assert "/metrics, /health and /ready" in answer.body


def test_a_query_does_not_matter(lone_plugin: PluginProcess) -> None:
    assert lone_plugin.get("/ready?verbose=1").status == 200


def raw_exchange(port: int, request: bytes) -> tuple[int, bytes, bytes]:
    """Status, headers and body of the response to `request`, up to the end of the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as stream:
            head, _, body = stream.read().partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), head.lower(), body


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/", "/none"])
def test_head_has_the_headers_of_get_and_no_body(lone_plugin: PluginProcess, path: str) -> None:
    status, head, body = raw_exchange(lone_plugin.port, f"HEAD {path} HTTP/1.1\r\n\r\n".encode())
    assert (status, body) == (lone_plugin.get(path).status, b"")
    assert b"content-length: " in head


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get", "GETX"])
def test_other_methods_are_not_allowed(lone_plugin: PluginProcess, method: str) -> None:
    request = f"{method} /metrics HTTP/1.1\r\nContent-Length: 2\r\n\r\n{{}}".encode()
    status, head, _ = raw_exchange(lone_plugin.port, request)
    assert status == 405
    assert b"allow: get, head" in head


@pytest.mark.parametrize("line", [b"GET /health", b"\x00\xff", b"GET / x HTTP/1.1", b"GET / SSH-2"])
def test_what_is_no_request_is_refused(lone_plugin: PluginProcess, line: bytes) -> None:
    assert raw_exchange(lone_plugin.port, line + b"\r\n\r\n")[0] == 400


def test_headers_have_16_kib_all_together(lone_plugin: PluginProcess) -> None:
    def asked(size_bytes: int) -> int:
        line, field, end = b"GET /health HTTP/1.1\r\n", b"X-Padding: ", b"\r\n\r\n"
        padding = b"x" * (size_bytes - len(line) - len(field) - len(end))
        return raw_exchange(lone_plugin.port, line + field + padding + end)[0]

    assert asked(16 * 1024 - 4) == 200
    assert asked(17 * 1024) == 431


def test_a_whole_request_has_one_deadline(
    lone_plugin: PluginProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpuplugin.daemon.http.server.EXCHANGE_TIMEOUT_S", 0.5)
    began_s = time.monotonic()
    with socket.create_connection(("127.0.0.1", lone_plugin.port)) as slow:
        slow.settimeout(0.1)
        for byte in itertools.cycle(b"GET /health HTTP/1.1\r\nX: "):  # slow, but never still
            assert time.monotonic() - began_s < DEADLINE_S, "the connection stays open"
            try:
                slow.send(bytes([byte]))
                if not slow.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break


def test_a_new_connection_takes_the_place_of_an_old_one(lone_plugin: PluginProcess) -> None:
    with ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", lone_plugin.port)))
            for _ in range(100)
        ]
        for path in ("/health", "/ready", "/metrics"):
            asked_s = time.monotonic()
            assert lone_plugin.get(path).status == 200
            assert time.monotonic() - asked_s < EXCHANGE_TIMEOUT_S / 2, "it waits for no other"

        def closed() -> int:
            ready, _, _ = select.select(silent, [], [], 0)
            return len(ready)

        eventually(lambda: closed() >= len(silent) - MAX_CONNECTIONS)
        assert closed() < len(silent), "those that there is room for stay"


def test_clients_that_wait_for_a_page_do_not_push_out_one_that_still_sends() -> None:
    asked, made = threading.Semaphore(0), threading.Event()

    def page() -> str:
        asked.release()
        made.wait(DEADLINE_S)
        return ""

    server = HttpServer("127.0.0.1:0", StatusBoard(), tuple, page)

    def connected(request: bytes) -> socket.socket:
        client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 5))
        client.sendall(request)
        return client

    def has_ended(client: socket.socket) -> bool:
        return bool(select.select([client], [], [], 0)[0])

    try:
        with ExitStack() as stack:
            first = connected(b"GET / HTTP/1.1\r\n\r\n")
            assert asked.acquire(timeout=DEADLINE_S)
            probe = connected(b"GET /health HTTP/1.1\r\n")
            for _ in range(MAX_CONNECTIONS - 1):
                connected(b"GET / HTTP/1.1\r\n\r\n")
            eventually(lambda: has_ended(first) or has_ended(probe))
            probe.sendall(b"\r\n")
            assert probe.recv(100).startswith(b"HTTP/1.1 200 ")
            made.set()
    finally:
        made.set()
        server.close()


def test_a_client_that_sends_nothing_does_not_hold_up_others(lone_plugin: PluginProcess) -> None:
    with socket.create_connection(("127.0.0.1", lone_plugin.port)):
        assert lone_plugin.get("/health").status == 200


def test_a_loop_that_does_not_turn_is_neither_alive_nor_ready() -> None:
    status = StatusBoard()
    status.set("monitor", "fine", ok=True)
    assert status.liveness().ok
    status._beat_s -= StatusBoard.LOOP_DEAD_AFTER_S + 1
    server = HttpServer("127.0.0.1:0", status, tuple, str)
    try:
        answer = http_get("127.0.0.1", server.port, "/health")
        assert answer.status == 503
        assert answer.parts["event-loop"]["ok"] is False
        ready = http_get("127.0.0.1", server.port, "/ready")
        assert ready.status == 503, "what it shows is as old as the last turn"
        assert ready.parts["event-loop"]["ok"] is False
        status.beat()
        assert http_get("127.0.0.1", server.port, "/ready").status == 200
    finally:
        server.close()


def test_a_port_in_use_is_named_and_ends_the_start(
    kubelet_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = settings_for(kubelet_dir, {"--listen-address": address})
        assert asyncio.run(run_as_loaded(settings, FakeDriver())) == 1
    (record,) = [one for one in caplog.records if one.levelname == "ERROR"]
    assert address in record.getMessage()
    assert "in use" in record.getMessage()
    assert "--listen-address" in record.getMessage()


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1", "127.0.0.1:http", "", ":99999"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(HttpError, match="--listen-address"):
        HttpServer(address, StatusBoard(), tuple, str)


@pytest.mark.parametrize(
    ("address", "reached"),
    [
        ("[::1]:0", {"::1"}),
        ("[::]:0", {"::1", "127.0.0.1"}),
        # What the manifests have: in a cluster of IPv6 alone the kubelet's probes come so.
        ("0.0.0.0:0", {"::1", "127.0.0.1"}),
    ],
)
def test_ipv6_is_served_where_there_is_any(address: str, reached: set[str]) -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    server = HttpServer(address, StatusBoard(), tuple, str)
    try:
        for host in reached:
            assert http_get(host, server.port, "/metrics").status == 200
    finally:
        server.close()


def test_a_kernel_without_ipv6_is_served_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    create_server = socket.create_server

    def without(*args: object, family: int, **options: object) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return create_server(*args, family=family, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "create_server", without)
    server = HttpServer("0.0.0.0:0", StatusBoard(), tuple, str)
    try:
        assert http_get("127.0.0.1", server.port, "/metrics").status == 200
    finally:
        server.close()


def test_a_name_that_is_no_text_costs_one_character() -> None:
    """Variables and names of files have any bytes; Python keeps what is no text as surrogates."""
    name = b"node-\xff".decode(errors="surrogateescape")
    family = Family("node", "Its name.", "gauge")
    family.add(1, {"name": name})
    server = HttpServer("127.0.0.1:0", StatusBoard(), lambda: [family], lambda: f"<p>{name}")
    try:
        page, metrics = (http_get("127.0.0.1", server.port, path) for path in ("/", "/metrics"))
    finally:
        server.close()
    assert (page.status, page.body) == (200, "<p>node-?")
    assert metrics.status == 200
    assert 'node{name="node-?"} 1' in metrics.body


def test_the_port_is_free_after_the_end() -> None:
    server = HttpServer("127.0.0.1:0", StatusBoard(), tuple, str)
    port = server.port
    server.close()
    again = HttpServer(f"127.0.0.1:{port}", StatusBoard(), tuple, str)
    try:
        assert eventually(lambda: http_get("127.0.0.1", port, "/metrics").status) == 200
    finally:
        again.close()
