"""The first packets of a TCP connection as bytes, for a connection that the kernel cannot make.

Packing, reading and the kernel's filter only; who sends them and why: vip.py.
"""

import ctypes
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from xenlb.health.transport.checksum import checksum
from xenlb.ipvs.table import IPAddress

SYN, RST, ACK = 0x02, 0x04, 0x10

_TCP = struct.Struct("!HHIIBBHHH")  # ports, sequence, acknowledgement, length, flags, window, …
_MSS = {4: struct.pack("!BBH", 2, 4, 1460), 6: struct.pack("!BBH", 2, 4, 1440)}
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
# A server that has not the address but forwards packets must not send ours on: to its gateway,
# which may be this host, where IPVS would give it to another server, which has the address. With
# accept_local=1 here that was seen.
_HOPS = 1
_WINDOW = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Both ends of a connection, as its packets to the server name them."""

    source: IPAddress
    port: int
    destination: IPAddress
    to_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A packet of the server; `refused` if it is a reset."""

    ends: Endpoints  # as in the packets to the server
    acknowledged: int
    refused: bool


def packet(ends: Endpoints, sequence: int, flags: int) -> bytes:
    """With its IP header. The sequence number of a reset that the server takes is the one after
    the SYN's."""
    options = _MSS[ends.destination.version] if flags & SYN else b""
    length = _TCP.size + len(options)
    fields = (ends.port, ends.to_port, sequence & 0xFFFFFFFF, 0, length // 4 << 4, flags)
    bare = _TCP.pack(*fields, _WINDOW, 0, 0) + options
    addresses = ends.source.packed + ends.destination.packed
    pseudo = addresses + struct.pack("!II", length, socket.IPPROTO_TCP)
    segment = _TCP.pack(*fields, _WINDOW, checksum(pseudo + bare), 0) + options
    if ends.destination.version == 6:
        header = (6 << 28, length, socket.IPPROTO_TCP, _HOPS)
        return _IPV6.pack(*header, ends.source.packed, ends.destination.packed) + segment
    header4 = (0x45, 0, _IPV4.size + length, 0, 0, _HOPS, socket.IPPROTO_TCP)
    own = (ends.source.packed, ends.destination.packed)
    head = _IPV4.pack(*header4, checksum(_IPV4.pack(*header4, 0, *own)), *own)
    return head + segment


def read(data: bytes) -> Reply | None:
    """What a packet with its IP header says; None: nothing that is an answer to a SYN."""
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


# Of classic BPF (linux/filter.h): what these programs need of it.
_INSTRUCTION = struct.Struct("=HBBI")
_BYTE, _HALF, _HALF_X, _BYTE_X, _HEADER_X = 0x30, 0x28, 0x48, 0x50, 0xB1
_EQUAL, _ANY_OF, _AND, _RETURN = 0x15, 0x45, 0x54, 0x06
_SO_ATTACH_FILTER = 26


def hear_only(listening: socket.socket, version: int, ports: Sequence[int]) -> None:
    """Has the kernel pass on to this packet socket (SOCK_DGRAM) what may be an answer to a SYN from
    one of these ports, and nothing else of all that arrives at this host."""
    program = b"".join(_INSTRUCTION.pack(*each) for each in _program(version, ports))
    code = ctypes.create_string_buffer(program, len(program))
    count = len(program) // _INSTRUCTION.size
    listening.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", count, ctypes.addressof(code))
    )


def _program(version: int, ports: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """Operation, how many to skip if true and if false, and the operand."""
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
