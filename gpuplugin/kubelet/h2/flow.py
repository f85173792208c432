"""What waits to be sent on a connection, and how much of it the peer's windows take.

Whole frames go first, then answers, then lists: a list of 4 MiB for a slow reader delays no answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuplugin.kubelet.h2.frames import (
    DATA,
    DEFAULT_FRAME_BYTES,
    DEFAULT_WINDOW_BYTES,
    LARGEST_WINDOW_BYTES,
    ConnectionFault,
    ErrorCode,
    StreamFault,
    frame_head,
)

if TYPE_CHECKING:
    from collections.abc import Callable

NOTHING = memoryview(b"")
RESERVE_BYTES = 16 * 1024
"""Lists leave so much of the connection's window to answers. Peers grant more long before that."""


class Outgoing:
    """The sending half of a stream: at most one message that waits or is partly sent."""

    __slots__ = ("is_list", "rest", "stream_id", "trailers", "window")

    def __init__(self, stream_id: int, window: int, *, is_list: bool = False) -> None:
        self.stream_id = stream_id
        self.window = window
        self.is_list = is_list
        self.rest = NOTHING
        self.trailers = b""
        """Frames that follow the message at once."""

    def widen(self, more_bytes: int) -> None:
        """The peer grants more, or less after it changed its settings.

        Raises:
            StreamFault: the window is larger than HTTP/2 allows.
        """
        self.window += more_bytes
        if self.window > LARGEST_WINDOW_BYTES:
            raise StreamFault(self.stream_id, ErrorCode.FLOW_CONTROL_ERROR)


class Outbox:
    """Everything that one connection has to send; `on_sent` is told when a message has left."""

    def __init__(self, on_sent: Callable[[Outgoing], None]) -> None:
        self.window = DEFAULT_WINDOW_BYTES
        self.reserve = RESERVE_BYTES
        self._on_sent = on_sent
        self._frames: list[bytes | memoryview] = []
        self._answers: dict[int, Outgoing] = {}
        self._lists: dict[int, Outgoing] = {}

    def put(self, frames: bytes) -> None:
        """Send frames that no window limits."""
        self._frames.append(frames)

    def send(self, stream: Outgoing, data: bytes, trailers: bytes = b"") -> None:
        """Send `data`, which is not empty, in DATA frames as the windows allow, then `trailers`."""
        stream.rest = memoryview(data)
        stream.trailers = trailers
        (self._lists if stream.is_list else self._answers)[stream.stream_id] = stream

    def forget(self, stream: Outgoing) -> None:
        """Send no more of a stream's message."""
        self._answers.pop(stream.stream_id, None)
        self._lists.pop(stream.stream_id, None)

    def widen(self, more_bytes: int) -> None:
        """The peer grants more for the whole connection.

        Raises:
            ConnectionFault: the window is larger than HTTP/2 allows.
        """
        self.window += more_bytes
        self.reserve = RESERVE_BYTES
        if self.window > LARGEST_WINDOW_BYTES:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "the window is too large")

    @property
    def held_back(self) -> bool:
        """True if a list waits for nothing but the reserve."""
        lists = self._lists.values()
        return 0 < self.window <= self.reserve and any(one.window > 0 for one in lists)

    @property
    def waiting_bytes(self) -> int:
        """Bytes that wait, lists not counted."""
        answers = sum(len(one.rest) for one in self._answers.values())
        return answers + sum(len(one) for one in self._frames)

    def take(self, limit_bytes: int) -> bytes:
        """What may be sent now: all whole frames, and DATA frames up to about `limit_bytes`."""
        parts = self._frames
        if not (parts or self._answers or self._lists):
            return b""
        self._frames = []
        if self._answers:
            limit_bytes -= self._fill(parts, self._answers, limit_bytes, 0)
        if self._lists:
            self._fill(parts, self._lists, limit_bytes, self.reserve)
        return b"".join(parts)

    def _fill(
        self,
        parts: list[bytes | memoryview],
        queue: dict[int, Outgoing],
        limit_bytes: int,
        reserve: int,
    ) -> int:
        """Append DATA frames of the streams in `queue` in turns; returns how many bytes of data."""
        filled = 0
        while filled < limit_bytes and (room := self.window - reserve) > 0:
            stream = next((one for one in queue.values() if one.window > 0), None)
            if stream is None:
                break
            chunk = stream.rest[: min(DEFAULT_FRAME_BYTES, room, stream.window)]
            size = len(chunk)
            parts += (frame_head(size, DATA, 0, stream.stream_id), chunk)
            stream.rest = stream.rest[size:]
            stream.window -= size
            self.window -= size
            filled += size
            del queue[stream.stream_id]
            if stream.rest:
                queue[stream.stream_id] = stream
            else:
                parts.append(stream.trailers)
                self._on_sent(stream)
        return filled
