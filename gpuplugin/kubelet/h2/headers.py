"""Header blocks (HPACK, RFC 7541): reading them, and not reading them twice; plain ones written.

What the headers say is not looked at here: `grpcwire` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from hpack import Decoder, HPACKError, OversizedHeaderListError
from hpack.table import HeaderTable

from gpuplugin.kubelet.h2.frames import ConnectionFault, ErrorCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import TypeAlias

    Header: TypeAlias = tuple[bytes, bytes]

MAX_LIST_BYTES = 65_536
"""Headers that decode to more than this end the connection: the table cannot be followed then."""

MAX_CACHED_BLOCKS = 64
MAX_CACHED_BLOCK_BYTES = 1024

T = TypeVar("T")


class BlockReader(Generic[T]):
    """Reads the header blocks of one connection, in the order in which they come.

    `understand` makes of a list of headers whatever the caller needs, and must depend on nothing
    else. Its results are kept by the bytes of their blocks, because a client sends the same few
    blocks over and over. This is right for these reasons:

    - What a block says, and what it leaves in the dynamic table, follow from its bytes and from
      the table before it, and from nothing else.
    - Only blocks that left the table as it was are kept. Met again with the same table, such a
      block says the same and again leaves the table as it was, so skipping it loses nothing.
    - Whatever changes the table (an entry put in, even one too large to stay; a change of size)
      shows in `_WatchedTable.state`, and every kept block is forgotten then. So a kept block was
      read with the very table that there is now.
    - A block that changes the table is never kept, so it is always decoded.
    """

    def __init__(self, understand: Callable[[Sequence[Header]], T]) -> None:
        self._understand = understand
        self._table = _WatchedTable()
        self._decoder = Decoder(MAX_LIST_BYTES)
        self._decoder.header_table = self._table
        self._seen: dict[bytes, T] = {}

    def read(self, block: bytes) -> T:
        """What `understand` makes of the headers in `block`.

        Raises:
            ConnectionFault: COMPRESSION_ERROR for a block that cannot be decoded,
                ENHANCE_YOUR_CALM for more than `MAX_LIST_BYTES` of headers.
        """
        known = self.known(block)
        if known is not None:
            return known
        before = self._table.state
        try:
            headers = [(one[0], one[1]) for one in self._decoder.decode(block, raw=True)]
        except OversizedHeaderListError as error:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many headers") from error
        except HPACKError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "a broken header block") from error
        meaning = self._understand(headers)
        if self._table.state != before:
            self._seen.clear()
        elif len(block) <= MAX_CACHED_BLOCK_BYTES:
            if len(self._seen) >= MAX_CACHED_BLOCKS:
                self._seen.clear()
            self._seen[block] = meaning
        return meaning

    def known(self, block: bytes) -> T | None:
        """The same without decoding, if the block is kept; it counts as read then."""
        return self._seen.get(block)

    @property
    def kept_blocks(self) -> int:
        """How many blocks would not be decoded if they came again."""
        return len(self._seen)


class _WatchedTable(HeaderTable):
    """A dynamic table that counts what is put into it."""

    def __init__(self) -> None:
        super().__init__()
        self._added = 0

    def add(self, name: bytes, value: bytes) -> None:
        self._added += 1
        super().add(name, value)

    @property
    def state(self) -> tuple[int, int, int]:
        """Equal before and after a block if and only if the block left the table as it was.

        Where nothing is put in, a table can only lose entries or get another size.
        """
        return self._added, len(self.dynamic_entries), self.maxsize


def plain_block(headers: Iterable[Header]) -> bytes:
    """A block of literals without Huffman coding or indexing: right whatever the peer's table is.

    Names and values must be shorter than 16,511 bytes.
    """
    return b"".join(
        b"\x00" + _length(len(name)) + name + _length(len(value)) + value for name, value in headers
    )


def _length(length: int) -> bytes:
    """An HPACK integer with a prefix of seven bits, up to three bytes (RFC 7541, section 5.1)."""
    if length < 127:
        return bytes((length,))
    rest = length - 127
    if rest < 128:
        return bytes((127, rest))
    return bytes((127, rest & 0x7F | 0x80, rest >> 7))
