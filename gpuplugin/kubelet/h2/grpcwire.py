"""gRPC on HTTP/2: what request headers ask for, messages in DATA, statuses as header blocks.

Written by gRPC's protocol description (PROTOCOL-HTTP2.md); where it leaves room, grpcio's server is
followed to the letter of its messages, so that a client sees no difference.
"""

from __future__ import annotations

import math
import re
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from gpuplugin.kubelet.h2.headers import plain_block
from gpuplugin.kubelet.rpc import RpcCode, RpcError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpuplugin.kubelet.h2.headers import Header

MAX_REQUEST_BYTES = 16 * 1024 * 1024
MAX_HEADERS_BYTES = 16 * 1024
"""Headers of one request, each counted with 32 bytes on top (RFC 9113, section 6.5.2)."""
MAX_STATUS_TEXT_BYTES = 4096
"""Error texts are cut there, encoded: peers refuse headers of more than 8 to 16 KiB."""
PREFIX_BYTES = 5

_CONTENT_TYPE = b"application/grpc"
_PSEUDO = frozenset((b":method", b":scheme", b":path", b":authority"))
_OF_CONNECTION = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_UPPER = re.compile(rb"[A-Z]")
_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])", re.ASCII)
_UNITS_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_UNENCODED = "".join(set(string.printable) - set(string.whitespace) - {"%"}) + " "


def _status_headers(code: int, text: str) -> list[Header]:
    encoded = quote(text, safe=_UNENCODED, errors="replace")
    if len(encoded) > MAX_STATUS_TEXT_BYTES:
        # A sequence such as %C3%A4 that is cut through decodes to a replacement character.
        encoded = re.sub(r"%.?\Z", "", encoded[:MAX_STATUS_TEXT_BYTES])
    message = [(b"grpc-message", encoded.encode())] if encoded else []
    return [(b"grpc-status", b"%d" % code), *message]


def trailers_block(code: int, text: str = "") -> bytes:
    """The trailers that end an answer whose headers were sent."""
    return plain_block(_status_headers(code, text))


def refusal_block(code: int, text: str, *, http_status: bytes = b"200") -> bytes:
    """Headers that are the whole answer."""
    head = [(b":status", http_status), (b"content-type", _CONTENT_TYPE)]
    return plain_block([*head, *_status_headers(code, text)])


ANSWER_BLOCK = plain_block([(b":status", b"200"), (b"content-type", _CONTENT_TYPE)])
OK_BLOCK = trailers_block(RpcCode.OK)


@dataclass(frozen=True, slots=True)
class Head:
    """What the headers of a request ask for."""

    path: bytes = b""
    timeout_s: float = math.inf
    refusal: bytes = b""
    """The whole answer as a header block, if no handler should be asked."""
    malformed: bool = False
    """True if HTTP/2 forbids such headers."""

    @property
    def plain(self) -> bool:
        """True if there is a path and nothing else to be seen to."""
        return not self.malformed and not self.refusal and self.timeout_s == math.inf


def read_head(headers: Sequence[Header]) -> Head:
    """What a request's headers ask for."""
    fields = _fields(headers)
    if fields is None or not {b":method", b":scheme", b":path"} <= fields.keys():
        return Head(malformed=True)
    if not fields[b":path"]:
        return Head(malformed=True)
    if sum(len(name) + len(value) + 32 for name, value in headers) > MAX_HEADERS_BYTES:
        text = f"the request's headers are larger than {MAX_HEADERS_BYTES} bytes"
        return Head(refusal=refusal_block(RpcCode.RESOURCE_EXHAUSTED, text))
    timeout = fields.get(b"grpc-timeout")
    timeout_s = math.inf if timeout is None else read_timeout(timeout)
    refusal = _refusal(fields)
    if timeout_s is None:
        timeout_s = math.inf
        refusal = refusal or refusal_block(
            RpcCode.INTERNAL, "Error parsing 'grpc-timeout' metadata"
        )
    return Head(fields[b":path"], timeout_s, refusal)


def _fields(headers: Sequence[Header]) -> dict[bytes, bytes] | None:
    """Headers by name; None if HTTP/2 forbids them (RFC 9113, sections 8.2 and 8.3)."""
    fields: dict[bytes, bytes] = {}
    regular = False
    for name, value in headers:
        if name[:1] == b":":
            if regular or name not in _PSEUDO or name in fields:
                return None
        else:
            regular = True
            if not name or _UPPER.search(name) or name in _OF_CONNECTION:
                return None
        fields[name] = value
    return fields


def _refusal(fields: Mapping[bytes, bytes]) -> bytes:
    if fields[b":method"] != b"POST":
        return refusal_block(RpcCode.INTERNAL, "gRPC calls are made by POST", http_status=b"405")
    kind = fields.get(b"content-type", b"").lower()
    if kind[:16] != _CONTENT_TYPE or kind[16:17] not in (b"", b"+", b";"):
        text = "the content-type is not application/grpc"
        return refusal_block(RpcCode.INVALID_ARGUMENT, text, http_status=b"415")
    encoding = fields.get(b"grpc-encoding", b"identity")
    if encoding != b"identity":
        text = f"messages compressed by {encoding.decode(errors='replace')} are not understood"
        refusal = refusal_block(RpcCode.UNIMPLEMENTED, text)
        return refusal + plain_block([(b"grpc-accept-encoding", b"identity")])
    return b""


def read_timeout(value: bytes) -> float | None:
    """Seconds in a grpc-timeout; None for one that is malformed."""
    match = _TIMEOUT.fullmatch(value)
    return int(match[1]) * _UNITS_S[match[2]] if match else None


def write_timeout(timeout_s: float) -> bytes:
    """The value of a grpc-timeout, rounded down to what eight digits can say."""
    timeout_us = max(int(timeout_s * 1e6), 0)
    return b"%du" % timeout_us if timeout_us < 10**8 else b"%dS" % min(timeout_s, 99_999_999)


def message_prefix(length: int) -> bytes:
    """What stands before an uncompressed message of `length` bytes."""
    return b"\x00" + length.to_bytes(4, "big")


def read_message(body: bytes | bytearray, limit_bytes: int = MAX_REQUEST_BYTES) -> bytes | None:
    """The first message in `body`, or None if it is not there as a whole yet.

    Raises:
        RpcError: the message is compressed or longer than `limit_bytes`.
    """
    if len(body) < PREFIX_BYTES:
        return None
    if body[0]:
        raise RpcError(RpcCode.INTERNAL, "Compression bit set but no encoding configured")
    length = int.from_bytes(body[1:PREFIX_BYTES], "big")
    if length > limit_bytes:
        text = f"SERVER: Received message larger than max ({length} vs. {limit_bytes})"
        raise RpcError(RpcCode.RESOURCE_EXHAUSTED, text)
    end = PREFIX_BYTES + length
    return bytes(body[PREFIX_BYTES:end]) if len(body) >= end else None


def read_status(headers: Sequence[Header]) -> tuple[int, str] | None:
    """Code and text in an answer's headers or trailers; None if there is no status yet.

    An HTTP status other than 200 without a gRPC one counts as UNKNOWN.
    """
    fields = dict(headers)
    code, status = fields.get(b"grpc-status"), fields.get(b":status", b"200")
    if code is None:
        return None if status == b"200" else (RpcCode.UNKNOWN, f"HTTP status {status.decode()}")
    text = unquote(fields.get(b"grpc-message", b"").decode(errors="replace"), errors="replace")
    return int(code) if code.isdigit() else RpcCode.UNKNOWN, text
