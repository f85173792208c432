"""Messages, statuses and deadlines on the wire."""

from __future__ import annotations

import grpc
import pytest
from hpack import Decoder
from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.rpc import RpcCode, RpcError
from gpuplugin.rpc.h2 import grpcwire
from gpuplugin.rpc.h2.client import Method, read_status, write_timeout
from gpuplugin.rpc.services import MAX_REQUEST_BYTES


def _headers(block: bytes) -> list[tuple[bytes, bytes]]:
    return [(one[0], one[1]) for one in Decoder().decode(block, raw=True)]


def test_the_codes_are_those_of_grpc() -> None:
    grpcs = {one.name: one.value[0] for one in grpc.StatusCode}
    assert {name: int(code) for name, code in RpcCode.__members__.items()} == grpcs


def test_an_error_reads_as_its_message() -> None:
    assert str(RpcError(RpcCode.NOT_FOUND, "no such device")) == "no such device"


@given(st.integers(0, 16), st.text(max_size=100))
def test_a_status_is_read_as_it_was_written(code: int, text: str) -> None:
    expected = (code, text.encode("utf-8", "replace").decode())
    for before in (b"", grpcwire.response_block()):
        block = before + grpcwire.status_block(code, text)
        assert read_status(_headers(block)) == expected


@given(st.text("a\u00e4\u20ac%", min_size=1, max_size=7), st.integers(500, 3_000))
def test_a_long_status_text_is_cut_to_something_readable(piece: str, count: int) -> None:
    text = piece * count
    headers = _headers(grpcwire.status_block(3, text))
    encoded = dict(headers).get(b"grpc-message", b"")
    assert len(encoded) <= grpcwire.MAX_STATUS_TEXT_BYTES
    status = read_status(headers)
    assert status is not None
    assert text.startswith(status[1].rstrip("\ufffd"))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"0n", 0.0),
        (b"2H", 7200.0),
        (b"3M", 180.0),
        (b"99999999S", 99_999_999.0),
        (b"5m", 0.005),
        (b"7u", 7e-6),
        (b"8n", 8e-9),
    ],
)
def test_timeouts(value: bytes, seconds: float) -> None:
    assert grpcwire.read_timeout(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", [b"", b"1", b"S", b"123456789S", b"1s", b"-1S", b"1S ", b"\xd9\xa1S"]
)
def test_malformed_timeouts(value: bytes) -> None:
    assert grpcwire.read_timeout(value) is None


@given(st.floats(0, 1e9))
def test_a_timeout_is_read_as_it_was_written(seconds: float) -> None:
    written = write_timeout(seconds)
    read = grpcwire.read_timeout(written)
    assert read is not None
    assert read <= seconds + 1e-9
    assert read >= min(seconds, 99_999_999) - 1


@given(st.binary(max_size=50), st.binary(max_size=20), st.integers(0, 55))
def test_a_message_is_read_once_it_is_whole(message: bytes, more: bytes, cut: int) -> None:
    framed = grpcwire.message_prefix(len(message)) + message
    assert grpcwire.read_message(framed + more) == message
    if cut < len(framed):
        assert grpcwire.read_message(framed[:cut]) is None


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"\x01" + bytes(4), RpcCode.INTERNAL),
        (b"\x80" + bytes(4), RpcCode.INTERNAL),
        (grpcwire.message_prefix(MAX_REQUEST_BYTES + 1), RpcCode.RESOURCE_EXHAUSTED),
    ],
)
def test_messages_that_are_refused(body: bytes, code: RpcCode) -> None:
    with pytest.raises(RpcError) as caught:
        grpcwire.read_message(body)
    assert caught.value.code is code


def test_the_longest_message_is_not_refused() -> None:
    assert grpcwire.read_message(grpcwire.message_prefix(MAX_REQUEST_BYTES)) is None


def a_request(**more: int) -> list[tuple[bytes, bytes]]:
    """The headers of a call, with others of that many bytes by their names."""
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/a.B/C"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        *((name.encode(), bytes(size)) for name, size in more.items()),
    ]


def test_headers_are_limited_as_http2_counts_them() -> None:
    """By RFC 9113, section 6.5.2: 32 bytes more for each."""
    size = sum(len(name) + len(value) + 32 for name, value in a_request(rest=0))
    most = grpcwire.read_head(a_request(rest=grpcwire.MAX_HEADERS_BYTES - size))
    assert most == grpcwire.Head("/a.B/C")
    one_more = grpcwire.read_head(a_request(rest=grpcwire.MAX_HEADERS_BYTES - size + 1))
    assert one_more is not None
    status = read_status(_headers(one_more.refusal))
    assert status == (RpcCode.RESOURCE_EXHAUSTED, "too large headers")


@pytest.mark.parametrize(
    ("timeout_s", "value"),
    [(0.0, b"0u"), (-1.0, b"0u"), (1.5, b"1500000u"), (99.999, b"99999000u"), (100.5, b"100S")],
)
def test_a_client_sends_its_deadline(timeout_s: float, value: bytes) -> None:
    block = Method.of("/a.B/C", timeout_s).block
    assert dict(_headers(block))[b"grpc-timeout"] == value
    assert b"grpc-timeout" not in dict(_headers(Method.of("/a.B/C").block))
