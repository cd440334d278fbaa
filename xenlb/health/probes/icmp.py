"""The icmp check: an echo request and its reply.

One raw socket for each IP version serves all probes; it is open while any of them waits. The
kernel's ping sockets need no capability, but net.ipv4.ping_group_range limits their users, and its
default, `1 0`, excludes root too. The kernel passes on echo replies only, including those for other
programs. A reply counts if its sender, identifier, sequence number and random payload match a
pending request.
"""

import asyncio
import itertools
import os
import secrets
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from xenlb.health.transport.result import Answer, failed
from xenlb.health.transport.sockets import FAMILY, checksum, shared_receiver
from xenlb.ipvs.table import IPAddress
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget

_HEADER = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence number
_REQUEST = {4: 8, 6: 128}
_REPLY = {4: 0, 6: 129}
# linux/icmp.h and linux/icmpv6.h: a bit for each type that is not passed on. Level and name of the
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
RECEIVE_BUFFER = 1 << 20  # thousands of replies may arrive at once
READS = 64  # replies read in a row before the loop runs other tasks


async def probe(target: Target, budget: Budget) -> Answer:
    """Run the check."""
    try:
        with shared_receiver(_receivers, target.address.version, _EchoReceiver) as receiver:
            await receiver.ping(target.address)
    except OSError as error:
        return failed(target, error)
    return Answer(up=True, detail=f"{target.address} answers echo requests")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Request:
    address: IPAddress
    payload: bytes
    reply: asyncio.Future[None]


@dataclass(slots=True, eq=False)
class _EchoReceiver:
    """The socket of one IP version and the pending requests by sequence number."""

    version: int
    receiver: socket.socket = field(init=False)
    identifier: int = field(default_factory=lambda: secrets.randbits(16))
    pending: dict[int, _Request] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    users: int = 0

    def __post_init__(self) -> None:
        self.receiver = _raw_socket(self.version)

    async def ping(self, address: IPAddress) -> None:
        """Return when the reply has come. Raises OSError if the request cannot be sent."""
        number = next(n for each in self.numbers if (n := each & 0xFFFF) not in self.pending)
        payload = os.urandom(PAYLOAD)
        reply: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pending[number] = _Request(address=address, payload=payload, reply=reply)
        try:
            packet = _packet(self.version, self.identifier, number, payload)
            self.receiver.sendto(packet, (str(address), 0))
            await reply
        finally:
            del self.pending[number]

    def receive(self) -> None:
        for _ in range(READS):
            try:
                packet, (source, *_) = self.receiver.recvfrom(2048)
            except OSError:  # no more, or an ICMP error, after which the probe times out
                return
            if self.version == 4:
                packet = packet[(packet[0] & 0xF) * 4 :]
            if len(packet) < _HEADER.size:
                continue
            kind, _, _, identifier, number = _HEADER.unpack_from(packet)
            request = self.pending.get(number)
            if (
                kind == _REPLY[self.version]
                and identifier == self.identifier
                and request is not None
                and packet[_HEADER.size :] == request.payload
                and source.partition("%")[0] == str(request.address)
                and not request.reply.done()
            ):
                request.reply.set_result(None)

    def close(self) -> None:
        self.receiver.close()


_receivers: dict[int, _EchoReceiver] = {}


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


def _packet(version: int, identifier: int, number: int, payload: bytes) -> bytes:
    # The kernel fills in ICMPv6's checksum, which includes the addresses, but not ICMP's.
    packet = _HEADER.pack(_REQUEST[version], 0, 0, identifier, number) + payload
    if version == 6:
        return packet
    return _HEADER.pack(_REQUEST[4], 0, checksum(packet), identifier, number) + payload
