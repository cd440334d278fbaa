"""Delete connection tracking entries of servers that failed (`flush: true`).

These are entries whose replies come from the server's address and port: masqueraded connections.
With gatewaying and tunnels, an entry has only the client's and the service address.

Facts, measured with Linux 6.1:

- With expire_nodest_conn=1, which the agent sets, the kernel (5.9 and later) ends IPVS connections
  of a removed server itself, TCP and UDP. With net.ipv4.vs.conntrack=1 it deletes their entries
  too. The next datagram of a UDP flow goes to another server; the next packet of a TCP client gets
  a reset. Nothing is left to delete.
- With expire_nodest_conn=0, IPVS keeps the connection for its timeout (UDP 300 s) and drops its
  packets, with or without a tracking entry.
- Left to delete: entries that another program's rules (DNAT) made for the server, and, before
  kernel 5.9, entries until the client's next packet.
- A request would load nf_conntrack, so without it no request is made.
"""

import os
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from xenlb.ipvs.netlink import (
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
from xenlb.ipvs.table import Family, IPAddress, Protocol, family_of

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
    """A server that has been removed. Protocol None and port 0 mean all."""

    address: IPAddress
    protocol: Protocol | None = None
    port: int = 0


def flush(servers: Iterable[FailedServer]) -> int:
    """Delete the entries of the servers and return their number. Blocks. Raises OSError."""
    if not _COUNT.exists():
        return 0
    deleted = 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as connection:
        connection.bind((0, 0))
        connection.settimeout(10)
        for server in servers:
            for key in [*_entries(connection, server)]:  # the dump must be read to its end first
                deleted += _delete(connection, family_of(server.address), key)
    return deleted


def _entries(connection: socket.socket, server: FailedServer) -> Iterator[bytes]:
    """The attributes that identify each entry of the server."""
    family = family_of(server.address)
    body = b""
    if family is Family.INET:
        # Since 5.8 the kernel applies the filter. For IPv6 it does the opposite (6.1 compares the
        # addresses the wrong way round), so none is used.
        source = _attribute(_SOURCE[family], server.address.packed)
        only = _attribute(_FILTER_ORIGINAL, struct.pack("=I", 0)) + _attribute(
            _FILTER_REPLY, struct.pack("=I", _FILTER_SOURCE)
        )
        body = _attribute(_REPLY | _NESTED, _attribute(_IP | _NESTED, source))
        body += _attribute(_FILTER | _NESTED, only)
    for data, start, end in _request(connection, _GET, NLM_F_REQUEST | NLM_F_DUMP, family, body):
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
    source = attributes(addresses, 0, len(addresses)).get(_SOURCE[family])
    if source != server.address.packed:
        return False
    if server.protocol and proto.get(_NUMBER) != bytes([server.protocol.number]):
        return False
    return not server.port or proto.get(_SOURCE_PORT) == server.port.to_bytes(2)


def _delete(connection: socket.socket, family: Family, key: bytes) -> bool:
    """Delete an entry; false if it has ended meanwhile. Its id excludes a new entry."""
    try:
        for _ in _request(connection, _DELETE, NLM_F_REQUEST | NLM_F_ACK, family, key):
            pass
    except FileNotFoundError:
        return False
    return True


def _request(
    connection: socket.socket, kind: int, flags: int, family: Family, body: bytes
) -> Iterator[tuple[bytes, int, int]]:
    """The messages of the answer, with the offsets of their bodies. Raises OSError."""
    number = socket.AF_INET if family is Family.INET else socket.AF_INET6
    connection.send(MESSAGE.pack(MESSAGE.size + len(body), kind, flags, 1, 0, number, 0, 0) + body)
    while True:
        data = connection.recv(_BUFFER)
        for reply, _, _, start, end in messages(data):
            if reply in (NLMSG_ERROR, NLMSG_DONE):
                if code := error_number(data, start):
                    raise OSError(code, os.strerror(code))
                return
            yield data, start, end


def _attribute(kind: int, payload: bytes) -> bytes:
    return NLATTR.pack(len(payload) + NLATTR.size, kind) + padded(payload)
