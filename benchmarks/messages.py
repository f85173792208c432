"""gRPC messages out of the data of a stream. Whose data it is, and how it came, is `wire`'s."""

from __future__ import annotations

from collections import deque

from benchmarks import http2


class Messages(deque[bytes]):
    """The whole messages of a stream that nobody has taken yet, and the rest of its data.

    A long one is put together once, when it is whole: a buffer that grows with each piece costs
    several times as much.
    """

    # Of the message under way. There is no constructor: each call has one of these, and few of
    # them are ever fed, because most answers are known again as a whole.
    _prefix = b""
    _missing_bytes = 0
    _pieces: list[bytes]

    def feed(self, data: bytes) -> None:
        """More data came.

        Raises:
            ValueError: a message is compressed.
        """
        while data:
            if len(self._prefix) < http2.MESSAGE_PREFIX_BYTES:
                wanted = http2.MESSAGE_PREFIX_BYTES - len(self._prefix)
                self._prefix, data = self._prefix + data[:wanted], data[wanted:]
                if len(self._prefix) < http2.MESSAGE_PREFIX_BYTES:
                    return
                compressed, self._missing_bytes = http2.message_length(self._prefix)
                if compressed:
                    raise ValueError("a compressed message, unasked")
                self._pieces = []
            piece, data = data[: self._missing_bytes], data[self._missing_bytes :]
            self._pieces.append(piece)
            self._missing_bytes -= len(piece)
            if not self._missing_bytes:
                self.append(b"".join(self._pieces))
                self._prefix = b""
