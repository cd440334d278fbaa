"""The icmp check: an echo request, and its reply.

One raw socket for each family serves all probes; it is open while any of them waits. Not the
kernel's ping sockets, which need no capability: whom they serve is net.ipv4.ping_group_range, and
its default, `1 0`, leaves root out too. Of what arrives at this host the kernel passes on echo
replies only, those of other programs among them: a reply counts if its sender, identifier, sequence
number and random payload are those of a request that waits.
"""

import asyncio
import itertools
import os
import secrets
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from xenlb.health.transport.checksum import checksum
from xenlb.health.transport.result import Answer, failed
from xenlb.health.transport.sockets import FAMILY, shared
from xenlb.ipvs.table import IPAddress
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget

_HEADER = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence number
_REQUEST = {4: 8, 6: 128}
_REPLY = {4: 0, 6: 129}
# linux/icmp.h and linux/icmpv6.h: which types are not passed on, a bit each. Level and name of the
# option, then the mask.
_FILTERS = {
    4: (255, 1, struct.pack("=I", 0xFFFFFFFF & ~(1 << _REPLY[4]))),
    6: (
        socket.IPPROTO_ICMPV6,
        1,
        struct.pack(
            "=8I", *(0xFFFFFFFF & ~((1 << 129 % 32) if n == 129 // 32 else 0) for n in range(8))
        ),
    ),
}
PAYLOAD = 16
RECEIVE_BUFFER = 1 << 20  # replies of thousands of servers may come at once
READS = 64  # replies read in a row before everything else in the loop gets its turn


async def probe(target: Target, budget: Budget) -> Answer:
    try:
        with shared(_open, target.address.version, _opened) as echoes:
            await echoes.ask(target.address)
    except OSError as error:
        return failed(target, error)
    return Answer(up=True, detail=f"{target.address} answers echo requests")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Waiting:
    address: IPAddress
    payload: bytes
    reply: asyncio.Future[None]


@dataclass(slots=True, kw_only=True, eq=False)
class _Echoes:
    """The socket of one family, and who waits for a reply, by sequence number."""

    version: int
    hears: socket.socket
    identifier: int = field(default_factory=lambda: secrets.randbits(16))
    waiting: dict[int, _Waiting] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    users: int = 0

    async def ask(self, address: IPAddress) -> None:
        """Until the reply has come. Raises OSError where the request cannot be sent."""
        number = next(n for each in self.numbers if (n := each & 0xFFFF) not in self.waiting)
        payload = os.urandom(PAYLOAD)
        waiting = _Waiting(
            address=address,
            payload=payload,
            reply=asyncio.get_running_loop().create_future(),
        )
        self.waiting[number] = waiting
        try:
            request = _request(self.version, self.identifier, number, payload)
            self.hears.sendto(request, (str(address), 0))
            await waiting.reply
        finally:
            del self.waiting[number]

    def readable(self) -> None:
        for _ in range(READS):
            try:
                packet, (source, *_) = self.hears.recvfrom(2048)
            except OSError:  # nothing more, or what ICMP said of a request: its probe runs out
                return
            if self.version == 4:
                packet = packet[(packet[0] & 0xF) * 4 :]
            if len(packet) < _HEADER.size:
                continue
            kind, _, _, identifier, number = _HEADER.unpack_from(packet)
            waiting = self.waiting.get(number)
            if (
                kind == _REPLY[self.version]
                and identifier == self.identifier
                and waiting is not None
                and packet[_HEADER.size :] == waiting.payload
                and source.partition("%")[0] == str(waiting.address)
                and not waiting.reply.done()
            ):
                waiting.reply.set_result(None)

    def close(self) -> None:
        self.hears.close()


_open: dict[int, _Echoes] = {}


def _opened(version: int) -> _Echoes:
    return _Echoes(version=version, hears=_raw_socket(version))


def _raw_socket(version: int) -> socket.socket:
    protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    raw = socket.socket(FAMILY[version], socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    try:
        raw.setsockopt(*_FILTERS[version])
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    except BaseException:
        raw.close()
        raise
    return raw


def _request(version: int, identifier: int, number: int, payload: bytes) -> bytes:
    # The kernel fills in the checksum of ICMPv6, of which the addresses are a part; not ICMP's.
    bare = _HEADER.pack(_REQUEST[version], 0, 0, identifier, number) + payload
    if version == 6:
        return bare
    return _HEADER.pack(_REQUEST[4], 0, checksum(bare), identifier, number) + payload
