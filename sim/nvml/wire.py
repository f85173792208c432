"""Requests and answers as bytes; the layout is at the head of `library/stream.c`."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hal.nvml.api import Code
from sim.nvml.abi import PLACES, READ, WRITTEN, Kind
from sim.nvml.call import InsufficientSize, NvmlFailure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sim.nvml.abi import Argument, CType, Function, Response, Value

LENGTH = struct.Struct("=I")
HEAD = struct.Struct("=HH")
VALUE = struct.Struct("=Q")
HELLO = struct.Struct("=QQ")
CODE = struct.Struct("=i")
HELLO_FUNCTION = 0xFFFF
MOST_BYTES = 1 << 21
"""The longest request; the library limits each of its parts to half of that."""

NO_ROOM = (1 << 64) - 1


class NotARequest(Exception):
    """These bytes are no request of the library."""


@dataclass(frozen=True, slots=True)
class Given:
    """One argument as it came: a number, or the room behind a pointer and what was read there."""

    argument: Argument
    value: int
    data: bytes = b""

    @property
    def null(self) -> bool:
        return self.argument.kind is not Kind.NUMBER and self.value == NO_ROOM


def read_arguments(function: Function, body: bytes) -> tuple[Given, ...]:
    """The arguments, from what follows the head of a request; raises `NotARequest`."""
    return tuple(_read_arguments(function, body))


def _read_arguments(function: Function, body: bytes) -> Iterator[Given]:
    at = 0
    for argument in function.arguments:
        if len(body) - at < VALUE.size:
            raise NotARequest
        (value,) = VALUE.unpack_from(body, at)
        at += VALUE.size
        reads = argument.kind in READ or argument.kind is Kind.TEXT
        length = value if reads and value != NO_ROOM else 0
        if length > len(body) - at:
            raise NotARequest
        if argument.kind is not Kind.NUMBER and NO_ROOM != value > MOST_BYTES:
            raise NotARequest
        yield Given(argument, value, body[at : at + length])
        at += length
    if at != len(body):
        raise NotARequest


def numbers_of(given: Sequence[Given]) -> tuple[int, ...]:
    """What was passed by value, handles that are about a GPU left out."""
    return tuple(
        one.value
        for one in given
        if one.argument.kind is Kind.NUMBER and one.argument.ctype not in PLACES
    )


def texts_of(given: Sequence[Given]) -> tuple[str, ...]:
    return tuple(
        one.data.decode("utf-8", "replace") for one in given if one.argument.kind is Kind.TEXT
    )


def structures_of(given: Sequence[Given]) -> tuple[ctypes.Structure, ...]:
    """The structures that the caller filled; raises `NvmlFailure` for an unknown version."""
    found: list[ctypes.Structure] = []
    for one in given:
        argument = one.argument
        match argument.kind:
            case Kind.VERSIONED:
                (version,) = LENGTH.unpack_from(one.data)
                if version not in argument.versions:
                    raise NvmlFailure(Code.ARGUMENT_VERSION_MISMATCH)
                found.append(argument.versions[version].from_buffer_copy(one.data))
            case Kind.INOUT | Kind.INOUT_BY if issubclass(argument.ctype, ctypes.Structure):
                found.extend(
                    argument.ctype.from_buffer_copy(one.data, at)
                    for at in range(0, len(one.data), argument.size)
                )
    return tuple(found)


def check_pointers(given: Sequence[Given]) -> None:
    """Raise `NvmlFailure` for a NULL, except where it requests the length of an array."""
    for one in given:
        if not one.null:
            continue
        argument = one.argument
        asks = argument.kind is Kind.FILL or argument.asks
        if not asks and (argument.kind is not Kind.ARRAY or _count(given[argument.by]) > 0):
            raise NvmlFailure(Code.INVALID_ARGUMENT)


def _count(given: Given) -> int:
    return int(LENGTH.unpack(given.data)[0]) if given.data else 0


def response_bytes(given: Sequence[Given], response: Response) -> bytes:
    """The response of a call that succeeded; raises `NvmlFailure` without room for it."""
    values = list(response) if isinstance(response, tuple) else [response]
    written = [one for one in given if one.argument.kind in WRITTEN]
    rest = iter(values)
    value_of = {
        position: next(rest)
        for position, one in enumerate(written)
        if one.argument.kind is not Kind.COUNT
    }
    arrays = [
        value
        for position, value in value_of.items()
        if written[position].argument.kind is Kind.ARRAY
    ]
    parts = [CODE.pack(Code.SUCCESS)]
    for position, one in enumerate(written):
        if one.argument.kind is Kind.COUNT:
            parts += (LENGTH.pack(4), LENGTH.pack(_length(arrays[0])))
        elif not one.null:
            data = _bytes(one, value_of[position])
            parts += (LENGTH.pack(len(data)), data)
        elif one.argument.kind is Kind.ARRAY and not one.argument.asks:
            _bytes(one, value_of[position])  # fails if there is anything to tell
    return _framed(b"".join(parts))


def failure_bytes(given: Sequence[Given], failure: NvmlFailure) -> bytes:
    parts = [CODE.pack(failure.code)]
    for one in given:
        if one.argument.kind not in WRITTEN or one.null:
            continue
        if one.argument.kind is Kind.COUNT and isinstance(failure, InsufficientSize):
            parts += (LENGTH.pack(4), LENGTH.pack(failure.needed))
        else:
            parts.append(LENGTH.pack(0))
    return _framed(b"".join(parts))


def hello_bytes(code: Code, session: int) -> bytes:
    return _framed(CODE.pack(code) + VALUE.pack(session))


def _framed(body: bytes) -> bytes:
    return LENGTH.pack(len(body)) + body


def _length(value: Value) -> int:
    return len(value) if isinstance(value, list | tuple) else 0


def _bytes(one: Given, value: Value) -> bytes:
    ctype, room = one.argument.ctype, 0 if one.null else one.value
    if isinstance(value, str | bytes):
        data = (value.encode() if isinstance(value, str) else value) + b"\0"
        if len(data) > room:
            raise NvmlFailure(Code.INSUFFICIENT_SIZE)
        return data
    if isinstance(value, int):
        return _number(ctype, value)
    if isinstance(value, ctypes.Structure):
        return bytes(value)
    data = b"".join(
        _number(ctype, element) if isinstance(element, int) else bytes(element) for element in value
    )
    if one.argument.kind is Kind.ARRAY and len(data) > room:
        raise InsufficientSize(len(value))
    # An array whose length the caller sets: the rest of it is zero, what does not fit is left out.
    return data[:room].ljust(room, b"\0") if one.argument.kind is Kind.OUT_BY else data


def _number(ctype: CType, value: int) -> bytes:
    if not issubclass(ctype, ctypes.c_uint32 | ctypes.c_uint64 | ctypes.c_int32 | ctypes.c_int64):
        raise TypeError(f"{ctype} is no number")
    return bytes(ctype(value))
