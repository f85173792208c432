"""Header blocks: what is kept is right whatever the table does, and plain blocks are readable."""

from __future__ import annotations

import pytest
from hpack import Decoder, Encoder, HPACKError
from hypothesis import given
from hypothesis import strategies as st

from gpuplugin.rpc.h2.frames import ErrorCode, H2Error
from gpuplugin.rpc.h2.headers import (
    MAX_CACHED_BLOCK_BYTES,
    MAX_CACHED_BLOCKS,
    BlockReader,
    plain_block,
)

_names = st.sampled_from([b"x-a", b"x-b", b":path", b"te", b"grpc-timeout"])
_values = st.sampled_from([b"", b"1", b"2", b"trailers", b"y" * 60])
_lists = st.lists(st.tuples(_names, _values, st.booleans()), max_size=5)
_resize = st.sampled_from([None, None, None, 0, 40, 90, 200, 4096])


def _literal(name: bytes, value: bytes, first_byte: int) -> bytes:
    return bytes((first_byte, len(name))) + name + bytes((len(value),)) + value


@given(st.lists(st.tuples(_lists, _resize, st.booleans()), max_size=25))
def test_an_encoders_blocks_read_as_plain_decoding_reads_them(
    steps: list[tuple[list[tuple[bytes, bytes, bool]], int | None, bool]],
) -> None:
    encoder, decoder, reader = Encoder(), Decoder(), BlockReader(tuple)
    for headers, size, huffman in steps:
        if size is not None:
            encoder.header_table_size = size
        block = encoder.encode(headers, huffman=huffman)
        assert reader.read(block) == tuple(map(tuple, decoder.decode(block, raw=True)))


_fields = st.one_of(
    st.integers(1, 66).map(lambda index: bytes((0x80 | index,))),
    st.builds(_literal, _names, _values, st.sampled_from([0x40, 0x00, 0x10])),
    st.builds(
        lambda index, kind, value: bytes((kind | index, len(value))) + value,
        st.integers(1, 14),
        st.sampled_from([0x40, 0x00, 0x10]),
        _values,
    ),
)
_blocks = st.builds(
    lambda resizes, fields: b"".join(resizes) + b"".join(fields),
    st.lists(st.sampled_from([b"\x20", b"\x3e", b"\x3f\x21", b"\x3f\xe1\x1f"]), max_size=2),
    st.lists(_fields, max_size=4),
)


@given(st.lists(_blocks, min_size=1, max_size=4), st.data())
def test_blocks_that_come_again_and_again_read_as_plain_decoding_reads_them(
    blocks: list[bytes], data: st.DataObject
) -> None:
    """A few blocks in any order: ones that use the table, change it, empty it and resize it."""
    decoder, reader = Decoder(), BlockReader(tuple)
    for block in data.draw(st.lists(st.sampled_from(blocks), max_size=30)):
        try:
            expected = tuple(map(tuple, decoder.decode(block, raw=True)))
        except HPACKError:
            with pytest.raises(H2Error):
                reader.read(block)
            return
        assert reader.read(block) == expected


def test_a_block_that_leaves_the_table_is_kept_until_the_table_changes() -> None:
    encoder, reader = Encoder(), BlockReader(tuple)
    headers = [(b":path", b"/a"), (b"te", b"trailers")]
    first = encoder.encode(headers)
    reader.read(first)
    assert reader.seen.get(first) is None
    again = encoder.encode(headers)
    assert reader.read(again) is reader.read(again) is reader.seen.get(again)
    reader.read(encoder.encode([(b"x-new", b"1")]))
    assert reader.seen.get(again) is None


def test_an_entry_that_takes_the_place_of_another() -> None:
    """The table has room for one entry: neither its length nor its size tells that it changed."""
    reader = BlockReader(tuple)
    for value in (b"1", b"2", b"3"):
        reader.read(b"\x3f\x09" + _literal(b"x-a", value, 0x40))
        for _ in range(2):
            assert reader.read(b"\xbe") == ((b"x-a", value),)


def test_a_table_that_was_emptied_by_its_size() -> None:
    reader = BlockReader(tuple)
    reader.read(_literal(b"x-a", b"1", 0x40))
    reader.read(b"\xbe")
    reader.read(b"\x20\x3f\xe1\x1f")
    with pytest.raises(H2Error):
        reader.read(b"\xbe")


def test_few_and_short_blocks_are_kept() -> None:
    reader = BlockReader(tuple)
    blocks = [_literal(b"x", b"%d" % number, 0) for number in range(MAX_CACHED_BLOCKS * 3)]
    for block in blocks:
        reader.read(block)
        assert reader.seen.get(block) is not None
        assert sum(reader.seen.get(one) is not None for one in blocks) <= MAX_CACHED_BLOCKS
    long_block = plain_block([(b"x", b"y" * MAX_CACHED_BLOCK_BYTES)])
    reader.read(long_block)
    assert reader.seen.get(long_block) is None


def test_too_many_headers() -> None:
    with pytest.raises(H2Error) as caught:
        BlockReader(tuple).read(plain_block([(b"x", b"y" * 16_000)] * 5))
    assert caught.value.code is ErrorCode.ENHANCE_YOUR_CALM


def test_a_block_that_cannot_be_decoded() -> None:
    with pytest.raises(H2Error) as caught:
        BlockReader(tuple).read(b"\xff")
    assert caught.value.code is ErrorCode.COMPRESSION_ERROR


@given(st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=300)), max_size=4))
def test_plain_blocks_can_be_read(headers: list[tuple[bytes, bytes]]) -> None:
    assert list(map(tuple, Decoder().decode(plain_block(headers), raw=True))) == headers


@pytest.mark.parametrize("length", [126, 127, 128, 254, 255, 16_509, 16_510])
def test_lengths_of_a_plain_block(length: int) -> None:
    headers = [(b"x", b"y" * length)]
    assert list(map(tuple, Decoder().decode(plain_block(headers), raw=True))) == headers
