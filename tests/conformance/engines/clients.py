"""gRPC clients of different make behind one face, for calls of bytes and streams of bytes."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import grpc
import grpc.aio
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)

from gpuplugin.rpc.client import CallFailed, Connection, Method
from gpuplugin.rpc.services import grpc_target
from tests.conformance.engines.rawh2 import grpc_message, request_headers

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

PATIENCE_S = 10.0
_UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))

T = TypeVar("T")


class Refused(Exception):
    """A call that ended with a status other than OK."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text


class Client(Protocol):
    def call(self, path: str, request: bytes, timeout_s: float | None = None) -> bytes: ...

    def watch(self, path: str) -> AbstractContextManager[Callable[[], bytes | None]]:
        """A stream; what it gives returns the next message, None at its end."""
        ...

    def close(self) -> None: ...


class GrpcioClient:
    def __init__(self, path: Path) -> None:
        self._channel = grpc.insecure_channel(grpc_target(path), options=_UNLIMITED)

    def call(self, path: str, request: bytes, timeout_s: float | None = None) -> bytes:
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(path)
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise _refused(error) from error

    @contextmanager
    def watch(self, path: str) -> Iterator[Callable[[], bytes | None]]:
        method: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(path)
        call = method(b"", timeout=PATIENCE_S)
        try:
            yield lambda: next(call, None)
        finally:
            call.cancel()

    def close(self) -> None:
        self._channel.close()


def _refused(error: grpc.RpcError) -> Refused:
    call: Any = error  # grpcio's errors are calls as well
    return Refused(call.code().value[0], call.details() or "")


class _Loop:
    """An event loop in a thread, for clients that want one."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class AioClient:
    def __init__(self, path: Path) -> None:
        self._loop = _Loop()
        self._channel = self._loop.do(self._open(path))

    async def _open(self, path: Path) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(grpc_target(path), options=_UNLIMITED)

    def call(self, path: str, request: bytes, timeout_s: float | None = None) -> bytes:
        return self._loop.do(self._call(path, request, timeout_s))

    async def _call(self, path: str, request: bytes, timeout_s: float | None) -> bytes:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(path)
        try:
            return await method(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise Refused(error.code().value[0], error.details() or "") from error

    @contextmanager
    def watch(self, path: str) -> Iterator[Callable[[], bytes | None]]:
        async def begin() -> Any:
            method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(
                path
            )
            return method(b"")

        async def read() -> bytes | None:
            message = await call.read()
            return None if message is grpc.aio.EOF else message

        async def cancel() -> None:
            call.cancel()

        call = self._loop.do(begin())
        try:
            yield lambda: self._loop.do(read())
        finally:
            self._loop.do(cancel())

    def close(self) -> None:
        self._loop.do(self._channel.close())
        self._loop.close()


class _BytesCodec:
    __content_subtype__ = "proto"

    def encode(self, message: bytes, message_type: object) -> bytes:
        return message

    def decode(self, data: bytes, message_type: object) -> bytes:
        return data


class GrpclibClient:
    def __init__(self, path: Path) -> None:
        self._loop = _Loop()
        self._channel = self._loop.do(self._open(path))

    async def _open(self, path: Path) -> Any:
        from grpclib.client import Channel

        return Channel(path=str(path), codec=_BytesCodec())

    def call(self, path: str, request: bytes, timeout_s: float | None = None) -> bytes:
        return self._loop.do(self._call(path, request, timeout_s))

    async def _call(self, path: str, request: bytes, timeout_s: float | None) -> bytes:
        from grpclib.const import Cardinality
        from grpclib.exceptions import GRPCError

        kind = Cardinality.UNARY_UNARY
        try:
            async with self._channel.request(path, kind, bytes, bytes, timeout=timeout_s) as stream:
                await stream.send_message(request, end=True)
                answer: bytes = await stream.recv_message()
        except GRPCError as error:
            raise Refused(error.status.value, error.message or "") from error
        return answer

    @contextmanager
    def watch(self, path: str) -> Iterator[Callable[[], bytes | None]]:
        from grpclib.const import Cardinality

        async def follow() -> None:
            async with self._channel.request(
                path, Cardinality.UNARY_STREAM, bytes, bytes
            ) as stream:
                await stream.send_message(b"", end=True)
                async for message in stream:
                    messages.put_nowait(message)
                messages.put_nowait(None)

        async def begin() -> asyncio.Task[None]:
            return asyncio.ensure_future(follow())

        async def cancel() -> None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        messages: asyncio.Queue[bytes | None] = asyncio.Queue()
        task = self._loop.do(begin())
        try:
            yield lambda: self._loop.do(messages.get())
        finally:
            self._loop.do(cancel())

    def close(self) -> None:
        async def end() -> None:
            self._channel.close()

        self._loop.do(end())
        self._loop.close()


class H2Client:
    """On the `h2` library, with its strict checks of what a server may send."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_S)
        self._socket.connect(str(path))
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._h2.initiate_connection()
        self._flush()
        self._fields: dict[int, dict[str, str]] = {}
        self._bodies: dict[int, bytearray] = {}
        self._ended: set[int] = set()

    def call(self, path: str, request: bytes, timeout_s: float | None = None) -> bytes:
        stream = self._begin(path, request, timeout_s)
        while stream not in self._ended:
            self._read()
        self._check(stream)
        return bytes(self._bodies[stream][5:])

    @contextmanager
    def watch(self, path: str) -> Iterator[Callable[[], bytes | None]]:
        stream = self._begin(path, b"", None)

        def read() -> bytes | None:
            body = self._bodies[stream]
            while len(body) < 5 or len(body) < 5 + int.from_bytes(body[1:5], "big"):
                if stream in self._ended:
                    self._check(stream)
                    return None
                self._read()
            end = 5 + int.from_bytes(body[1:5], "big")
            message = bytes(body[5:end])
            del body[:end]
            return message

        try:
            yield read
        finally:
            if stream not in self._ended:
                self._h2.reset_stream(stream, 8)
                self._flush()

    def close(self) -> None:
        self._socket.close()

    def _begin(self, path: str, request: bytes, timeout_s: float | None) -> int:
        stream = self._h2.get_next_available_stream_id()
        self._fields[stream] = {}
        self._bodies[stream] = bytearray()
        timeout = None if timeout_s is None else f"{int(timeout_s * 1e6)}u"
        self._h2.send_headers(stream, request_headers(path, grpc_timeout=timeout))
        body = grpc_message(request)
        while body and stream not in self._ended:
            room = self._h2.local_flow_control_window(stream)
            room = min(room, self._h2.max_outbound_frame_size)
            if room > 0:
                self._h2.send_data(stream, body[:room], end_stream=len(body) <= room)
                body = body[room:]
                self._flush()
            else:
                self._read()
        return stream

    def _check(self, stream: int) -> None:
        fields = self._fields[stream]
        code = int(fields["grpc-status"])
        if code:
            raise Refused(code, fields.get("grpc-message", ""))

    def _read(self) -> None:
        data = self._socket.recv(1 << 16)
        assert data, "the server closed the connection"
        for event in self._h2.receive_data(data):
            match event:
                case ResponseReceived() | TrailersReceived():
                    self._fields[event.stream_id] |= {str(k): str(v) for k, v in event.headers}
                case DataReceived():
                    self._bodies[event.stream_id] += event.data
                    self._h2.acknowledge_received_data(
                        event.flow_controlled_length, event.stream_id
                    )
                case StreamEnded() | StreamReset():
                    self._ended.add(event.stream_id)
                case ConnectionTerminated():
                    raise AssertionError(f"the server went away: {event}")
        self._flush()

    def _flush(self) -> None:
        self._socket.sendall(self._h2.data_to_send())


class OwnClient:
    """The project's own."""

    def __init__(self, path: Path) -> None:
        self._connection = Connection(path, PATIENCE_S, 16 * 1024 * 1024)

    def call(self, path: str, request: bytes, timeout_s: float | None = None) -> bytes:
        try:
            return self._connection.call(Method.of(path, timeout_s), request)
        except CallFailed as error:
            raise Refused(error.code, error.message) from error

    @contextmanager
    def watch(self, path: str) -> Iterator[Callable[[], bytes | None]]:
        call = self._connection.start(Method.of(path), b"", streaming=True)
        try:
            yield lambda: self._connection.next_response(call)
        finally:
            self._connection.cancel(call)

    def close(self) -> None:
        self._connection.close()


CLIENTS: dict[str, Callable[[Path], Client]] = {
    "grpcio": GrpcioClient,
    "grpcio-aio": AioClient,
    "grpclib": GrpclibClient,
    "h2": H2Client,
    "own": OwnClient,
}
