"""Reads an answer's headers, and knows an answer again that repeats the bytes of the one before.

Both rest on HPACK's tables: a block that changes no table means the same until another one does.
Which frames an answer has, and whose it is, is known in `client`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hpack import Decoder

from benchmarks import http2
from benchmarks.http2 import Flag, Kind

if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST_BYTES = 64 * 1024
"""A longer answer is not kept to be recognised."""


class HeaderReader:
    """Decodes blocks of headers; `on_change` is told whenever one changed a table."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._decoder = Decoder()
        self._on_change = on_change
        self._known: dict[bytes, dict[str, str]] = {}

    def fields(self, block: bytes) -> dict[str, str]:
        """Fields of a block; one that changes no table is decoded once.

        Raises:
            hpack.HPACKError: it cannot be read.
        """
        found = self._known.get(block)
        if found is not None:
            return found
        pairs = self._decoder.decode(block)
        fields = {_text(name): _text(value) for name, value in pairs}
        if http2.leaves_tables_alone(block):
            self._known[block] = fields
        else:
            self._known.clear()
            self._on_change()
        return fields


@dataclass(slots=True)
class _Sighting:
    """Frames of one stream that stand side by side: where they begin, and where its ids stand."""

    stream_id: int = 0
    begins: int = 0
    ids: list[int] = field(default_factory=list)


class Repeats:
    """The last whole answer, to recognise one that differs from it by its stream alone."""

    def __init__(self) -> None:
        self._sighting = _Sighting()
        self.parts: tuple[bytes, ...] = ()
        """The bytes around the numbers of its stream; none if there is no such answer."""
        self.message = b""

    @property
    def known(self) -> bool:
        """True if there is an answer to be recognised."""
        return bool(self.parts)

    def forget(self) -> None:
        """The tables have changed: the same bytes may mean something else."""
        self.parts = ()

    def of(self, stream: bytes) -> bytes:
        """The answer as it would be on another stream, whose id this is as bytes."""
        return stream.join(self.parts)

    def begin(self) -> None:
        """Other bytes are read from now on."""
        self._sighting = _Sighting()

    def saw(self, head: http2.FrameHeader, at: int) -> None:
        """A frame begins at this place of the bytes."""
        sighting = self._sighting
        if sighting.stream_id != head.stream_id or not head.stream_id:
            sighting.stream_id, sighting.begins, sighting.ids = head.stream_id, at, []
        sighting.ids.append(at + 5)

    def learn(self, data: bytes, message: bytes) -> None:
        """Keep the answer that ends with the frame seen last, if it stands whole in `data`."""
        sighting = self._sighting
        heads = [http2.frame_header(data, place - 5) for place in sighting.ids]
        first, last = heads[0], heads[-1]
        if first.kind != Kind.HEADERS or first.flags & Flag.END_STREAM:
            return
        if len(message) > _LONGEST_BYTES or not all(
            self._is_plain(data, head, place)
            for head, place in zip(heads, sighting.ids, strict=True)
        ):
            return
        begins = [sighting.begins, *(place + 4 for place in sighting.ids)]
        ends = [*sighting.ids, sighting.ids[-1] + 4 + last.length]
        self.parts = tuple(data[begin:end] for begin, end in zip(begins, ends, strict=True))
        self.message = message

    @staticmethod
    def _is_plain(data: bytes, head: http2.FrameHeader, place: int) -> bool:
        """True for a frame of data, and for headers that change no table."""
        if head.kind != Kind.HEADERS:
            return head.kind == Kind.DATA
        return http2.leaves_tables_alone(data[place + 4 : place + 4 + head.length])


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode(errors="replace")
