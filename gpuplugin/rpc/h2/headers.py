"""Header blocks (HPACK, RFC 7541): reading them, and not reading them twice; plain ones written.

What the headers mean is decided in `grpcwire`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from hpack import Decoder, Encoder, HPACKError, OversizedHeaderListError

from gpuplugin.rpc.h2.frames import ErrorCode, H2Error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import TypeAlias

    Header: TypeAlias = tuple[bytes, bytes]

MAX_LIST_BYTES = 65_536
"""Headers that decode to more than this end the connection: the table cannot be followed then."""

MAX_CACHED_BLOCKS = 64
MAX_CACHED_BLOCK_BYTES = 1024

NO_TABLE = b"\x20"
"""A size update to 0 (RFC 7541, section 6.3), for the first block that a peer gets.

A peer that takes less than the usual table back requires one, though nothing here is ever indexed.
"""

T = TypeVar("T")


class BlockReader(Generic[T]):
    """Reads the header blocks of one connection, in the order in which they come.

    `understand` makes of a list of headers whatever the caller needs, and must depend on nothing
    else. Its results are kept by the bytes of their blocks, because a client sends the same few
    blocks over and over. This is right for these reasons:

    - What a block decodes to, and what it leaves in the dynamic table, follow from its bytes and
      from the table before it, and from nothing else.
    - Only blocks that left the table as it was are kept. Met again with the same table, such a
      block decodes to the same and again leaves the table as it was, so skipping it loses nothing.
    - Whatever changes the table is seen, because it is compared with what it was, and every kept
      block is forgotten then. So a kept block was read with the very table that there is now.
    - A block that changes the table is never kept, so it is always decoded.
    """

    def __init__(self, understand: Callable[[Sequence[Header]], T]) -> None:
        self._understand = understand
        self._decoder = Decoder(MAX_LIST_BYTES)
        self.seen: dict[bytes, T] = {}
        """What was made of the blocks that are kept: one that is found here counts as read."""

    def read(self, block: bytes) -> T:
        """What `understand` makes of a block; raises `H2Error` if it is broken or too large."""
        known = self.seen.get(block)
        if known is not None:
            return known
        before = self._table()
        try:
            headers = [(one[0], one[1]) for one in self._decoder.decode(block, raw=True)]
        except OversizedHeaderListError as error:
            raise H2Error(ErrorCode.ENHANCE_YOUR_CALM, "too many headers") from error
        except HPACKError as error:
            raise H2Error(ErrorCode.COMPRESSION_ERROR, "a broken header block") from error
        meaning = self._understand(headers)
        changed = self._table() != before
        if changed or len(self.seen) >= MAX_CACHED_BLOCKS:
            self.seen.clear()
        if not changed and len(block) <= MAX_CACHED_BLOCK_BYTES:
            self.seen[block] = meaning
        return meaning

    def _table(self) -> tuple[int, tuple[tuple[bytes, bytes], ...]]:
        table = self._decoder.header_table
        return table.maxsize, tuple(table.dynamic_entries)


def plain_block(headers: Iterable[Header]) -> bytes:
    """A block that is right whatever the peer's table is, and leaves it: nothing is indexed."""
    never_indexed = [(name, value, True) for name, value in headers]
    return Encoder().encode(never_indexed, huffman=False)
