"""Deletes what the kernel's connection tracking has of servers that failed (`flush: true`).

Entries whose answers come from the server's address and port: those of masqueraded connections.
With gatewaying and tunnels an entry names client and service address only, and of no server.

FACTS (Linux 6.1; tests/lab/test_flush_uml.py)

- With expire_nodest_conn=1, which the agent sets, the kernel itself (5.9 and later) ends IPVS's
  connections of a server as it is removed, TCP and UDP, and their entries here with them if
  net.ipv4.vs.conntrack=1. A UDP flow is at another server with its next datagram; a TCP client gets
  a reset with its next packet. There is nothing left to delete then.
- With expire_nodest_conn=0 IPVS keeps its connection for its timeout (UDP 300 s) and drops what
  belongs to it, with or without an entry here.
- What is left to delete: entries that others made of the same server, by rules of their own
  (DNAT), and what a kernel before 5.9 has until the client's next packet.
- Without nf_conntrack in the kernel, nothing is asked: the question would load it.
"""

import os
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from xenlb.ipvs.table import Family, IPAddress, Protocol, family_of
from xenlb.ipvs.wire import (
    MESSAGE,
    NLATTR,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    attributes,
    error_number,
    messages,
    padded,
)

_COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")
_NETLINK_NETFILTER = 12
_BUFFER = 1 << 16

# linux/netfilter/nfnetlink_conntrack.h; a nfgenmsg is as long as the header of generic netlink.
_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2
_ORIGINAL, _REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_IP, _PROTO = 1, 2
_SOURCE = {Family.INET: 1, Family.INET6: 3}
_NUMBER, _SOURCE_PORT = 1, 2
_FILTER_ORIGINAL, _FILTER_REPLY, _FILTER_SOURCE = 1, 2, 1
_NESTED = 0x8000


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedServer:
    """A server that has left. Protocol None and port 0 are all of them."""

    address: IPAddress
    protocol: Protocol | None = None
    port: int = 0


def flush(servers: Iterable[FailedServer]) -> int:
    """How many entries were deleted. Takes its time with a large table: for a thread. Raises
    OSError."""
    if not _COUNT.exists():
        return 0
    deleted = 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as asking:
        asking.bind((0, 0))
        asking.settimeout(10)
        for server in servers:
            for key in [*_entries(asking, server)]:  # the dump has to be read to its end first
                deleted += _deleted(asking, family_of(server.address), key)
    return deleted


def _entries(asking: socket.socket, server: FailedServer) -> Iterator[bytes]:
    """What names each of its entries to the kernel."""
    family = family_of(server.address)
    question = b""
    if family is Family.INET:
        # Kernels from 5.8 pass on only what is asked for; the others everything. Not IPv6: there
        # they pass on everything but that (6.1; addresses are compared the wrong way round).
        source = _attribute(_SOURCE[family], server.address.packed)
        only = _attribute(_FILTER_ORIGINAL, struct.pack("=I", 0)) + _attribute(
            _FILTER_REPLY, struct.pack("=I", _FILTER_SOURCE)
        )
        question = _attribute(_REPLY | _NESTED, _attribute(_IP | _NESTED, source))
        question += _attribute(_FILTER | _NESTED, only)
    for data, start, end in _asked(asking, _GET, NLM_F_REQUEST | NLM_F_DUMP, family, question):
        if server.address.packed not in data[start:end]:
            continue
        entry = attributes(data, start, end)
        if _is_of(server, family, entry.get(_REPLY, b"")):
            yield b"".join(
                _attribute(kind | (_NESTED if kind == _ORIGINAL else 0), entry[kind])
                for kind in (_ORIGINAL, _ID, _ZONE)
                if kind in entry
            )


def _is_of(server: FailedServer, family: Family, reply: bytes) -> bool:
    parts = attributes(reply, 0, len(reply))
    addresses, numbers = parts.get(_IP, b""), parts.get(_PROTO, b"")
    proto = attributes(numbers, 0, len(numbers))
    found = attributes(addresses, 0, len(addresses)).get(_SOURCE[family])
    if found != server.address.packed:
        return False
    if server.protocol and proto.get(_NUMBER) != bytes([server.protocol.number]):
        return False
    return not server.port or proto.get(_SOURCE_PORT) == server.port.to_bytes(2)


def _deleted(asking: socket.socket, family: Family, key: bytes) -> bool:
    """False where it has ended meanwhile: by its id, nobody else's is taken for it."""
    try:
        for _ in _asked(asking, _DELETE, NLM_F_REQUEST | NLM_F_ACK, family, key):
            pass
    except FileNotFoundError:
        return False
    return True


def _asked(
    asking: socket.socket, kind: int, flags: int, family: Family, body: bytes
) -> Iterator[tuple[bytes, int, int]]:
    """The messages of the answer (where they begin and end), until its end. Raises OSError."""
    number = socket.AF_INET if family is Family.INET else socket.AF_INET6
    asking.send(MESSAGE.pack(MESSAGE.size + len(body), kind, flags, 1, 0, number, 0, 0) + body)
    while True:
        data = asking.recv(_BUFFER)
        for answer, _, _, start, end in messages(data):
            if answer in (NLMSG_ERROR, NLMSG_DONE):
                if code := error_number(data, start):
                    raise OSError(code, os.strerror(code))
                return
            yield data, start, end


def _attribute(kind: int, payload: bytes) -> bytes:
    return NLATTR.pack(len(payload) + NLATTR.size, kind) + padded(payload)
