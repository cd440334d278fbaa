"""First packets of a TCP connection as bytes, and a packet filter for the replies."""

import ctypes
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from xenlb.health.transport.sockets import checksum
from xenlb.ipvs.table import IPAddress

SYN, RST, ACK = 0x02, 0x04, 0x10

_TCP = struct.Struct("!HHIIBBHHH")  # ports, sequence, acknowledgement, length, flags, window, …
_MSS = {4: struct.pack("!BBH", 2, 4, 1460), 6: struct.pack("!BBH", 2, 4, 1440)}
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
# A server without the address that forwards packets must not forward this one to its gateway. That
# may be this host, where IPVS would send it to another server, which has the address. That was seen
# with accept_local=1 here.
_HOPS = 1
_WINDOW = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Both ends of a connection, as in its packets to the server."""

    source: IPAddress
    port: int
    destination: IPAddress
    to_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A packet of the server; `refused`: it is a reset."""

    ends: Endpoints
    acknowledged: int
    refused: bool


def packet(ends: Endpoints, sequence: int, flags: int) -> bytes:
    """Return a packet with its IP header.

    A server accepts a reset whose sequence number is the one after the SYN's.
    """
    options = _MSS[ends.destination.version] if flags & SYN else b""
    length = _TCP.size + len(options)
    fields = (ends.port, ends.to_port, sequence & 0xFFFFFFFF, 0, length // 4 << 4, flags)
    unsigned = _TCP.pack(*fields, _WINDOW, 0, 0) + options
    addresses = (ends.source.packed, ends.destination.packed)
    pseudo = b"".join(addresses) + struct.pack("!II", length, socket.IPPROTO_TCP)
    segment = _TCP.pack(*fields, _WINDOW, checksum(pseudo + unsigned), 0) + options
    if ends.destination.version == 6:
        return _IPV6.pack(6 << 28, length, socket.IPPROTO_TCP, _HOPS, *addresses) + segment
    header = (0x45, 0, _IPV4.size + length, 0, 0, _HOPS, socket.IPPROTO_TCP)
    sum_ = checksum(_IPV4.pack(*header, 0, *addresses))
    return _IPV4.pack(*header, sum_, *addresses) + segment


def parse_reply(data: bytes) -> Reply | None:
    """Parse a packet with its IP header; None if it is not a reply to a SYN."""
    if not data:
        return None
    source: IPAddress
    destination: IPAddress
    try:
        if data[0] >> 4 == 4:
            start = (data[0] & 0xF) * 4
            source, destination = ip_address(data[12:16]), ip_address(data[16:20])
        else:
            start = _IPV6.size
            source, destination = ip_address(data[8:24]), ip_address(data[24:40])
        from_port, port, _, acknowledged, _, flags, *_ = _TCP.unpack_from(data, start)
    except (struct.error, ValueError):
        return None
    if not flags & ACK or not flags & (SYN | RST):
        return None
    return Reply(
        ends=Endpoints(source=destination, port=port, destination=source, to_port=from_port),
        acknowledged=acknowledged,
        refused=bool(flags & RST),
    )


# Classic BPF (linux/filter.h).
_INSTRUCTION = struct.Struct("=HBBI")
_BYTE, _HALF, _HALF_X, _BYTE_X, _HEADER_X = 0x30, 0x28, 0x48, 0x50, 0xB1
_EQUAL, _ANY_OF, _AND, _RETURN = 0x15, 0x45, 0x54, 0x06
_SO_ATTACH_FILTER = 26


def attach_filter(receiver: socket.socket, version: int, ports: Sequence[int]) -> None:
    """Have this packet socket (SOCK_DGRAM) receive only possible replies to SYNs from the ports."""
    program = b"".join(_INSTRUCTION.pack(*line) for line in _program(version, ports))
    code = ctypes.create_string_buffer(program, len(program))
    count = len(program) // _INSTRUCTION.size
    receiver.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", count, ctypes.addressof(code))
    )


def _program(version: int, ports: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield operation, instructions to skip if true and if false, and operand."""
    many = len(ports)
    if version == 4:
        refuse = many + 4  # from the first jump to the first return
        yield _BYTE, 0, 0, 9
        yield _EQUAL, 0, refuse, socket.IPPROTO_TCP
        yield _HALF, 0, 0, 6
        yield _ANY_OF, refuse - 2, 0, 0x1FFF  # a later fragment has no TCP header
        yield _HEADER_X, 0, 0, 0
        yield _HALF_X, 0, 0, 2
    else:
        yield _BYTE, 0, 0, 6
        yield _EQUAL, 0, many + 1, socket.IPPROTO_TCP
        yield _HALF, 0, 0, _IPV6.size + 2
    for left, port in zip(range(many, 0, -1), ports, strict=True):
        yield _EQUAL, left, 0, port
    yield _RETURN, 0, 0, 0
    if version == 4:
        yield _BYTE_X, 0, 0, 13
    else:
        yield _BYTE, 0, 0, _IPV6.size + 13
    yield _AND, 0, 0, SYN | RST | ACK
    yield _EQUAL, 2, 0, SYN | ACK
    yield _EQUAL, 1, 0, RST | ACK
    yield _RETURN, 0, 0, 0
    yield _RETURN, 0, 0, 0xFFFF
