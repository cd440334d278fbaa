"""PURE. xenstore's messages as bytes (xen/include/public/io/xs_wire.h).

A message is a header of four 32-bit numbers (type, request id, transaction id, length) in the
host's byte order, and at most 4096 bytes.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

_HEADER = struct.Struct("=IIII")
LONGEST = 4096


class Type(IntEnum):
    """Types of messages."""

    DIRECTORY = 1
    READ = 2
    WATCH = 4
    UNWATCH = 5
    WRITE = 11
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17


@dataclass(frozen=True, slots=True)
class Message:
    """A message of xenstored. `type` is a plain number: a newer xenstored may have new types."""

    type: int
    request: int
    payload: bytes


class Garbled(ValueError):
    """The stream is not xenstore's, so the next message cannot be found."""


def encode(type_: Type, request: int, *parts: str) -> bytes:
    """Encode a request outside any transaction.

    Each part ends with a zero byte, except for a written value. Raises ValueError if the parts are
    too long.
    """
    payload = b"".join(part.encode("ascii") + b"\0" for part in parts)
    if type_ is Type.WRITE:
        payload = payload[:-1]
    if len(payload) > LONGEST:
        raise ValueError("too long for xenstore")
    return _HEADER.pack(type_, request, 0, len(payload)) + payload


class Decoder:
    """Splits a stream into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Add bytes of the stream and yield the messages that are complete. Raises Garbled."""
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            type_, request, _, length = _HEADER.unpack_from(self._buffer)
            if length > LONGEST:
                raise Garbled(f"a message of {length} bytes")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield Message(type_, request, payload)


def strings(payload: bytes) -> tuple[str, ...]:
    """Split zero-terminated strings.

    Bytes that are not ASCII become U+FFFD, as guests may write any.
    """
    text = payload.decode("ascii", errors="replace")
    return tuple(text.removesuffix("\0").split("\0")) if text else ()
