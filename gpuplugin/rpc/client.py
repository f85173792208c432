"""One gRPC call on a unix socket without grpcio: enough for Register on the kubelet's socket.

The protocol's parts are those of `h2`; a connection serves one call and is closed.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING
from urllib.parse import unquote

from gpuplugin.rpc.h2 import frames, grpcwire
from gpuplugin.rpc.h2.flow import Outbox, Outgoing
from gpuplugin.rpc.h2.frames import ErrorCode, Fault
from gpuplugin.rpc.h2.headers import MAX_LIST_BYTES, BlockReader, plain_block
from gpuplugin.rpc.services import MAX_MESSAGE_BYTES, RpcCode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gpuplugin.rpc.h2.headers import Header

_STREAM = 1
_READ_BYTES = 64 * 1024


class CallFailed(Exception):
    """A call without an answer: the gRPC status code (a number) and what the server said."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{_name(code)}: {message}")
        self.code = code
        self.message = message


def _name(code: int) -> str:
    try:
        return RpcCode(code).name
    except ValueError:
        return f"code {code}"


class UnaryCall:
    """The call as bytes in, bytes out: send what `output` gives, `receive` what comes back."""

    def __init__(
        self, method: str, request: bytes, timeout_s: float, max_answer_bytes: int
    ) -> None:
        self.answer: bytes | None = None
        """The answer's bytes once the call has ended well."""
        self._max_answer_bytes = max_answer_bytes
        self._outbox = Outbox(lambda _: None)
        self._stream = Outgoing(_STREAM, frames.DEFAULT_WINDOW_BYTES)
        self._initial_window = frames.DEFAULT_WINDOW_BYTES
        self._blocks = BlockReader(tuple)
        self._rest = b""
        self._block = bytearray()
        self._block_flags = 0
        self._body = bytearray()
        headers = plain_block(
            [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", method.encode()),
                (b":authority", b"localhost"),
                (b"content-type", b"application/grpc"),
                (b"te", b"trailers"),
                (b"grpc-timeout", write_timeout(timeout_s)),
            ]
        )
        # More than the largest answer that is taken, so no more needs to be granted.
        window_bytes = 2 * max_answer_bytes
        settings = {frames.ENABLE_PUSH: 0, frames.INITIAL_WINDOW_SIZE: window_bytes}
        self._outbox.put(frames.PREFACE + frames.settings(settings))
        self._outbox.put(frames.numbers(frames.WINDOW_UPDATE, 0, window_bytes))
        self._outbox.put(frames.frame(frames.HEADERS, frames.END_HEADERS, _STREAM, headers))
        body = grpcwire.message_prefix(len(request)) + request
        self._outbox.send(
            self._stream, body, frames.frame(frames.DATA, frames.END_STREAM, _STREAM, b"")
        )

    def output(self) -> bytes:
        """What can be sent now."""
        return self._outbox.take(frames.MOST_31_BITS)

    def receive(self, data: bytes) -> None:
        """Take what the server sent; no bytes mean that it has closed the connection.

        Raises:
            CallFailed: the call has ended without an answer.
        """
        if not data:
            raise CallFailed(RpcCode.UNAVAILABLE, "the server closed the connection")
        data = self._rest + data
        at = 0
        try:
            while self.answer is None and (found := frames.first(data, at)) is not None:
                kind, flags, stream_id, payload, at = found
                self._take(kind, flags, stream_id, payload)
        except Fault as fault:
            raise CallFailed(RpcCode.INTERNAL, f"the server broke HTTP/2: {fault}") from fault
        self._rest = data[at:]

    def _take(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        frames.check(kind, stream_id, payload)
        match kind:
            case frames.HEADERS:
                self._block_flags = flags
                self._block = bytearray(frames.header_block(flags, payload))
                self._take_headers(flags)
            case frames.CONTINUATION:
                self._block += payload
                self._take_headers(flags)
            case frames.DATA:
                self._take_data(flags, payload)
            case frames.RST_STREAM:
                self._was_reset(int.from_bytes(payload, "big"))
            case frames.GOAWAY if payload[:4] < frames.U32.pack(_STREAM):
                text = payload[8:].decode(errors="replace")
                raise CallFailed(RpcCode.UNAVAILABLE, f"the server is going away: {text}")
            case frames.WINDOW_UPDATE:
                more = int.from_bytes(payload, "big") & frames.MOST_31_BITS
                (self._stream if stream_id else self._outbox).widen(more)
            case frames.SETTINGS | frames.PING if not flags & frames.ACK:
                self._acknowledge(kind, payload)

    def _acknowledge(self, kind: int, payload: bytes) -> None:
        if kind == frames.PING:
            self._outbox.put(frames.frame(frames.PING, frames.ACK, 0, payload))
            return
        size = frames.read_settings(payload).get(frames.INITIAL_WINDOW_SIZE)
        if size is not None:
            self._stream.widen(size - self._initial_window)
            self._initial_window = size
        self._outbox.put(frames.SETTINGS_ACK)

    def _take_data(self, flags: int, payload: bytes) -> None:
        self._body += frames.unpadded(flags, payload)
        if len(self._body) > grpcwire.PREFIX_BYTES + self._max_answer_bytes:
            raise CallFailed(RpcCode.RESOURCE_EXHAUSTED, "too large an answer")
        if flags & frames.END_STREAM:
            raise CallFailed(RpcCode.INTERNAL, "the answer ended without a status")

    def _take_headers(self, flags: int) -> None:
        if len(self._block) > MAX_LIST_BYTES:
            raise Fault(ErrorCode.ENHANCE_YOUR_CALM, "too large a header block")
        if not flags & frames.END_HEADERS:
            return
        status = read_status(self._blocks.read(bytes(self._block)))
        if not self._block_flags & frames.END_STREAM:
            return
        if status is None:
            raise CallFailed(RpcCode.INTERNAL, "the answer ended without a status")
        code, text = status
        if code != RpcCode.OK:
            raise CallFailed(code, text)
        self.answer = self._message()

    def _message(self) -> bytes:
        size = int.from_bytes(self._body[1 : grpcwire.PREFIX_BYTES], "big")
        message = bytes(self._body[grpcwire.PREFIX_BYTES :])
        if len(self._body) < grpcwire.PREFIX_BYTES or self._body[0] or len(message) != size:
            raise CallFailed(RpcCode.INTERNAL, "the answer is not one uncompressed message")
        return message

    def _was_reset(self, code: int) -> None:
        refused = code == ErrorCode.REFUSED_STREAM
        raise CallFailed(
            RpcCode.UNAVAILABLE if refused else RpcCode.INTERNAL,
            f"the server ended the call with HTTP/2 error {code}",
        )


def unary_call(
    socket_path: Path,
    method: str,
    request: bytes,
    timeout_s: float,
    max_answer_bytes: int = MAX_MESSAGE_BYTES,
) -> bytes:
    """Call `method` (`/package.Service/Method`) and wait for the answer's bytes.

    Raises:
        CallFailed: the server's status, or UNAVAILABLE and DEADLINE_EXCEEDED made here.
    """
    deadline_s = time.monotonic() + timeout_s
    call = UnaryCall(method, request, timeout_s, max_answer_bytes)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.settimeout(timeout_s)
            peer.connect(str(socket_path))
            while call.answer is None:
                peer.sendall(call.output())
                peer.settimeout(max(deadline_s - time.monotonic(), 1e-6))
                call.receive(peer.recv(_READ_BYTES))
    except TimeoutError as error:
        raise CallFailed(RpcCode.DEADLINE_EXCEEDED, f"no answer in {timeout_s:g} s") from error
    except OSError as error:
        raise CallFailed(RpcCode.UNAVAILABLE, f"cannot use {socket_path}: {error}") from error
    return call.answer


async def unary_call_async(
    socket_path: Path, method: str, request: bytes, timeout_s: float
) -> bytes:
    """The same on the event loop; a cancellation ends the call at once.

    Raises:
        CallFailed: as `unary_call`.
    """
    call = UnaryCall(method, request, timeout_s, MAX_MESSAGE_BYTES)
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(str(socket_path))
            try:
                while call.answer is None:
                    writer.write(call.output())
                    await writer.drain()
                    call.receive(await reader.read(_READ_BYTES))
            finally:
                writer.close()
    except TimeoutError as error:
        raise CallFailed(RpcCode.DEADLINE_EXCEEDED, f"no answer in {timeout_s:g} s") from error
    except OSError as error:
        raise CallFailed(RpcCode.UNAVAILABLE, f"cannot use {socket_path}: {error}") from error
    return call.answer


def write_timeout(timeout_s: float) -> bytes:
    """The value of a grpc-timeout, rounded down to what eight digits can say."""
    timeout_us = max(int(timeout_s * 1e6), 0)
    return b"%du" % timeout_us if timeout_us < 10**8 else b"%dS" % min(timeout_s, 99_999_999)


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
