"""gRPC on HTTP/2: request headers, messages in DATA, statuses as header blocks.

Written by gRPC's protocol description (PROTOCOL-HTTP2.md); where it leaves room, grpcio's server is
followed to the letter of its messages, so that a client sees no difference.
"""

from __future__ import annotations

import math
import re
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from gpuplugin.rpc.h2.headers import NO_TABLE, plain_block
from gpuplugin.rpc.services import MAX_REQUEST_BYTES, RpcCode, RpcError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuplugin.rpc.h2.headers import Header

MAX_HEADERS_BYTES = 16 * 1024
"""Headers of one request, each counted with 32 bytes on top (RFC 9113, section 6.5.2)."""
MAX_STATUS_TEXT_BYTES = 4096
"""Error texts are cut there, encoded: peers refuse headers of more than 8 to 16 KiB."""
PREFIX_BYTES = 5

_CONTENT_TYPE = b"application/grpc"
_CONTENT_TYPES = re.compile(_CONTENT_TYPE + rb"(\Z|[+;])", re.IGNORECASE)
_REQUIRED = {b":method", b":scheme", b":path"}
_FORBIDDEN = re.compile(
    rb"|.*[A-Z].*|connection|keep-alive|proxy-connection|transfer-encoding|upgrade", re.DOTALL
)
_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])", re.ASCII)
_UNITS_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_UNENCODED = "".join(set(string.printable) - set(string.whitespace) - {"%"}) + " "


def response_block(http_status: bytes = b"200") -> bytes:
    """The headers that begin a response, or with a status after them are all of it."""
    return NO_TABLE + plain_block([(b":status", http_status), (b"content-type", _CONTENT_TYPE)])


def status_block(code: int, text: str = "") -> bytes:
    encoded = quote(text, safe=_UNENCODED, errors="replace")
    if len(encoded) > MAX_STATUS_TEXT_BYTES:
        # A sequence such as %C3%A4 that is cut through decodes to a replacement character.
        encoded = re.sub(r"%.?\Z", "", encoded[:MAX_STATUS_TEXT_BYTES])
    message = [(b"grpc-message", encoded.encode())] if encoded else []
    return plain_block([(b"grpc-status", b"%d" % code), *message])


RESPONSE_BLOCK = response_block()
OK_BLOCK = status_block(RpcCode.OK)


@dataclass(frozen=True, slots=True)
class Head:
    path: str
    timeout_s: float = math.inf
    refusal: bytes = b""
    """The whole response as a header block, if no handler should be called."""


def read_head(headers: Sequence[Header]) -> Head | None:
    """Parse a request's headers; None if HTTP/2 forbids such headers."""
    fields = dict(headers)
    if not _well_formed([name for name, _ in headers]) or not fields[b":path"]:
        return None
    path = fields[b":path"].decode(errors="replace")
    timeout_s = read_timeout(fields[b"grpc-timeout"]) if b"grpc-timeout" in fields else math.inf
    size = sum(len(name) + len(value) + 32 for name, value in headers)
    foreign = not _CONTENT_TYPES.match(fields.get(b"content-type", b""))
    coded = fields.get(b"grpc-encoding", b"identity") != b"identity"
    refusals = (
        (size > MAX_HEADERS_BYTES, b"200", RpcCode.RESOURCE_EXHAUSTED, "too large headers"),
        (fields[b":method"] != b"POST", b"405", RpcCode.INTERNAL, "gRPC calls are made by POST"),
        (foreign, b"415", RpcCode.INVALID_ARGUMENT, "the content-type is not application/grpc"),
        (coded, b"200", RpcCode.UNIMPLEMENTED, "compressed messages are not understood"),
        (timeout_s is None, b"200", RpcCode.INTERNAL, "Error parsing 'grpc-timeout' metadata"),
    )
    for refused, http_status, code, text in refusals:
        if refused:
            accepted = plain_block([(b"grpc-accept-encoding", b"identity")])
            refusal = response_block(http_status) + accepted + status_block(code, text)
            return Head(path, refusal=refusal)
    return Head(path, timeout_s or 0.0)


def _well_formed(names: list[bytes]) -> bool:
    """True for names that HTTP/2 allows in this order (RFC 9113, sections 8.2 and 8.3)."""
    pseudo = [name for name in names if name[:1] == b":"]
    once = len(pseudo) == len(set(pseudo)) and names[: len(pseudo)] == pseudo
    known = _REQUIRED <= set(pseudo) <= _REQUIRED | {b":authority"}
    return once and known and not any(map(_FORBIDDEN.fullmatch, names))


def read_timeout(value: bytes) -> float | None:
    """Seconds in a grpc-timeout; None for one that is malformed."""
    match = _TIMEOUT.fullmatch(value)
    return int(match[1]) * _UNITS_S[match[2]] if match else None


def message_prefix(length: int) -> bytes:
    """What stands before an uncompressed message of `length` bytes."""
    return b"\x00" + length.to_bytes(4, "big")


def read_message(body: bytes | bytearray, limit_bytes: int = MAX_REQUEST_BYTES) -> bytes | None:
    """The first whole message, None if incomplete; raises `RpcError` if compressed or too long."""
    if len(body) < PREFIX_BYTES:
        return None
    if body[0]:
        raise RpcError(RpcCode.INTERNAL, "Compression bit set but no encoding configured")
    length = int.from_bytes(body[1:PREFIX_BYTES], "big")
    if length > limit_bytes:
        text = f"SERVER: Received message larger than max ({length} vs. {limit_bytes})"
        raise RpcError(RpcCode.RESOURCE_EXHAUSTED, text)
    end = PREFIX_BYTES + length
    return bytes(memoryview(body)[PREFIX_BYTES:end]) if len(body) >= end else None
