"""What waits to be sent on a connection, and how much of it the peer's windows take.

Whole frames go first, then unary responses, then those of streams: 4 MiB for a slow reader of a
stream delay no response of a call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuplugin.rpc.h2 import frames
from gpuplugin.rpc.h2.frames import ErrorCode, H2Error

if TYPE_CHECKING:
    from collections.abc import Callable

NOTHING = memoryview(b"")
RESERVE_BYTES = 16 * 1024
"""Streams leave so much of the connection's window to calls. Peers grant more long before that."""


@dataclass(eq=False, slots=True)
class Window:
    """What the peer lets be sent on a stream, or on the connection (0)."""

    stream_id: int
    window: int

    def widen(self, more_bytes: int) -> None:
        """Add what the peer grants (negative: takes back); raises `H2Error` over HTTP/2's limit."""
        self.window += more_bytes
        if self.window > frames.MOST_31_BITS:
            raise H2Error(ErrorCode.FLOW_CONTROL_ERROR, "the window is too large", self.stream_id)


@dataclass(eq=False, slots=True)
class Outgoing(Window):
    """The sending half of a stream: at most one message that waits or is partly sent."""

    is_list: bool = False
    rest: memoryview = NOTHING
    trailers: bytes = b""
    """Frames that follow the message at once."""


class Outbox(Window):
    """Everything that one connection has to send; `on_sent` is called when a message has left."""

    def __init__(self, on_sent: Callable[[Outgoing], None]) -> None:
        super().__init__(0, frames.DEFAULT_WINDOW_BYTES)
        self.reserve = RESERVE_BYTES
        self._on_sent = on_sent
        self._frames: list[bytes | memoryview] = []
        self._waiting: dict[int, Outgoing] = {}

    def put(self, whole_frames: bytes) -> None:
        self._frames.append(whole_frames)

    def send(self, stream: Outgoing, data: bytes, trailers: bytes = b"") -> None:
        """Send `data`, which is not empty, in DATA frames as the windows allow, then `trailers`."""
        stream.rest = memoryview(data)
        stream.trailers = trailers
        self._waiting[stream.stream_id] = stream

    def forget(self, stream_id: int) -> None:
        self._waiting.pop(stream_id, None)

    @property
    def unsent(self) -> bool:
        """True if a message waits, or the rest of one."""
        return bool(self._waiting)

    @property
    def held_back(self) -> bool:
        """True if a list waits for nothing but the reserve."""
        lists = [one for one in self._waiting.values() if one.is_list and one.window > 0]
        return bool(lists) and 0 < self.window <= self.reserve

    @property
    def waiting_bytes(self) -> int:
        responses = sum(len(one.rest) for one in self._waiting.values() if not one.is_list)
        return responses + sum(len(one) for one in self._frames)

    def take(self, limit_bytes: int) -> bytes:
        """What may be sent now: all whole frames, and DATA frames up to about `limit_bytes`."""
        parts, self._frames = self._frames, []
        while self._waiting and limit_bytes > 0 and (stream := self._next()):
            chunk = stream.rest[: min(frames.DEFAULT_FRAME_BYTES, self._room(stream))]
            size = len(chunk)
            parts += (frames.frame_head(size, frames.DATA, 0, stream.stream_id), chunk)
            stream.rest = stream.rest[size:]
            stream.window -= size
            self.window -= size
            limit_bytes -= size
            del self._waiting[stream.stream_id]
            if stream.rest:
                self._waiting[stream.stream_id] = stream
            else:
                parts.append(stream.trailers)
                self._on_sent(stream)
        return b"".join(parts)

    def _next(self) -> Outgoing | None:
        """Whose turn it is of those with room in the windows: unary responses before streams."""
        ready = [one for one in self._waiting.values() if self._room(one) > 0]
        return min(ready, key=lambda one: one.is_list, default=None)

    def _room(self, stream: Outgoing) -> int:
        return min(stream.window, self.window - (self.reserve if stream.is_list else 0))
