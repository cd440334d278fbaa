"""PURE. xenstore's messages as bytes (xen/include/public/io/xs_wire.h).

A message is a header of four 32-bit numbers (type, request id, transaction id, length) in the
host's byte order, and at most 4096 bytes. Sockets and futures: client.py.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

_HEADER = struct.Struct("=IIII")
LONGEST = 4096


class Type(IntEnum):
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
    """`type` is a plain number: a newer xenstored may have more of them."""

    type: int
    request: int
    payload: bytes


class Garbled(ValueError):
    """The stream is not xenstore's; there is no way to find the next message in it."""


def encode(type_: Type, request: int, *parts: str) -> bytes:
    """A request outside any transaction; each part ends with a zero byte, but for the value that is
    written, which has none."""
    payload = b"".join(part.encode("ascii") + b"\0" for part in parts)
    if type_ is Type.WRITE:
        payload = payload[:-1]
    if len(payload) > LONGEST:
        raise ValueError("too long for xenstore")
    return _HEADER.pack(type_, request, 0, len(payload)) + payload


class Decoder:
    """Bytes in, as they come; whole messages out."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Raises Garbled."""
        self._rest += data
        while len(self._rest) >= _HEADER.size:
            type_, request, _, length = _HEADER.unpack_from(self._rest)
            if length > LONGEST:
                raise Garbled(f"a message of {length} bytes")
            end = _HEADER.size + length
            if len(self._rest) < end:
                return
            payload = bytes(self._rest[_HEADER.size : end])
            del self._rest[:end]
            yield Message(type_, request, payload)


def strings(payload: bytes) -> tuple[str, ...]:
    """Zero-terminated strings; what is not ASCII (a guest may write anything) shows as U+FFFD."""
    text = payload.decode("ascii", errors="replace")
    return tuple(text.removesuffix("\0").split("\0")) if text else ()
