"""The tcp check of a service address through one server: has that guest the address, and does its
service listen there?

An ordinary connection cannot ask that: the address is this host's own, and IPVS takes what this
host sends to it (LOCAL_OUT). So a SYN of our own goes to the server, as IPVS would send it there,
and its SYN-ACK is the answer; a reset of our own takes the half-open connection away again.

FACTS (Linux 6.1, each seen in tests/lab/test_probes_uml.py)

- IPv4, gatewaying: a raw socket with IP_HDRINCL sends a packet as it is to the address that
  sendto() names, whatever address the packet bears: route and neighbour are the server's. IPVS
  leaves packets of raw sockets with IP_NODEFRAG alone (“do not break raw sockets” in its
  ip_vs_core.c), and its counters with them. There is no such exception for IPv6: those packets go
  past it by a packet socket, for which the server's hardware address has to be known
  (neighbours.py).
- Tunnel: the same packet in IPIP, IPv6, GRE or GUE, which the kernel puts around it.
- The answer's source is an address of this host, so the kernel drops it as a martian, unless
  accept_local is 1; a packet socket hears it before. With accept_local the kernel answers it with
  a reset, as nobody here has such a connection; it goes to the service address, which is here.
- The ports are held by sockets that are bound and never listen, so that nobody else's connection
  is taken for ours. They are few and used in turns, and one packet socket hears for all probes: the
  kernel's filter compares its ports with every packet that arrives here.
- A packet socket is closed only after a grace period of the kernel's, some 10 ms: in a thread.
"""

import asyncio
import itertools
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import assert_never

from xenlb.health.transport.result import Answer, failed
from xenlb.health.transport.sockets import FAMILY, shared
from xenlb.health.via_vip import syn
from xenlb.health.via_vip.neighbours import forget, neighbour
from xenlb.health.via_vip.syn import Endpoints, Reply
from xenlb.ipvs.table import IPAddress, Tunnel, TunnelType
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget

PORTS = 16  # of this host, from which SYNs are sent in turns
AGAIN = 1.0  # seconds until a SYN without an answer is sent again, as the kernel does it
READS = 64  # packets read in a row before everything else in the loop gets its turn

_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_INNER = {4: socket.IPPROTO_IPIP, 6: socket.IPPROTO_IPV6}
_IP_NODEFRAG = 22
IPPROTO_GRE = 47

# Sends a packet to the server.
Send = Callable[[bytes], object]


async def probe(target: Target, budget: Budget) -> Answer:
    vip = target.vip
    assert vip is not None
    where = f"{vip} port {target.port} via {target.address}"
    if vip.version != target.address.version:
        detail = f"this host cannot probe {where}: they are of different IP versions"
        return Answer(up=None, detail=detail)
    try:
        source = _source(target.address)
        with shared(_open, vip.version, _opened) as ears:
            async with _way(target, ears) as send:
                reply = await ears.ask(source, vip, target.port, send)
    except asyncio.CancelledError:
        forget(target.address)
        raise
    except OSError as error:
        forget(target.address)
        return failed(target, error)
    if reply.refused:
        return Answer(up=False, detail=f"connection refused by {where}")
    return Answer(up=True, detail=f"{where} accepts connections")


def _source(server: IPAddress) -> IPAddress:
    """The address of its own that this host uses towards the server."""
    with socket.socket(FAMILY[server.version], socket.SOCK_DGRAM) as asking:
        asking.connect((str(server), 9))
        return ip_address(asking.getsockname()[0].partition("%")[0])


@dataclass(slots=True, kw_only=True, eq=False)
class _Ears:
    """What hears the answers of one IP version, and who waits for one: by the acknowledged
    sequence number, which was drawn at random."""

    hears: socket.socket
    ports: tuple[socket.socket, ...]
    waiting: dict[int, tuple[Endpoints, asyncio.Future[Reply]]] = field(default_factory=dict)
    turns: Iterator[socket.socket] = field(init=False)
    users: int = 0

    def __post_init__(self) -> None:
        self.turns = itertools.cycle(self.ports)

    async def ask(self, source: IPAddress, vip: IPAddress, port: int, send: Send) -> Reply:
        own = next(self.turns).getsockname()[1]
        ends = Endpoints(source=source, port=own, destination=vip, to_port=port)
        sequence = secrets.randbits(32)
        key = (sequence + 1) & 0xFFFFFFFF
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.waiting[key] = ends, reply
        try:
            while not reply.done():
                send(syn.packet(ends, sequence, syn.SYN))
                await asyncio.wait([reply], timeout=AGAIN)
            return reply.result()
        finally:
            del self.waiting[key]
            # Also where nothing was heard: the server may have, and its answer be lost.
            with suppress(OSError):
                send(syn.packet(ends, key, syn.RST))

    def readable(self) -> None:
        for _ in range(READS):
            try:
                data = self.hears.recv(256)
            except OSError:
                return
            heard = syn.read(data)
            if heard is not None and heard.acknowledged in self.waiting:
                ends, reply = self.waiting[heard.acknowledged]
                if heard.ends == ends and not reply.done():
                    reply.set_result(heard)

    def close(self) -> None:
        """In a thread, see above."""
        asyncio.get_running_loop().run_in_executor(None, self._close)

    def _close(self) -> None:
        for each in (self.hears, *self.ports):
            each.close()


_open: dict[int, _Ears] = {}


def _opened(version: int) -> _Ears:
    opened: list[socket.socket] = []
    try:
        for _ in range(PORTS):
            opened.append(socket.socket(FAMILY[version], socket.SOCK_STREAM))
            opened[-1].bind(("", 0))
        hearing = socket.socket(
            socket.AF_PACKET,
            socket.SOCK_DGRAM | socket.SOCK_NONBLOCK,
            socket.htons(_ETHERTYPE[version]),
        )
        ports = tuple(opened)
        opened.append(hearing)
        syn.hear_only(hearing, version, [each.getsockname()[1] for each in ports])
    except BaseException:
        for each in opened:
            each.close()
        raise
    return _Ears(hears=hearing, ports=ports)


@asynccontextmanager
async def _way(target: Target, ears: _Ears) -> AsyncIterator[Send]:
    """How packets to the service address go to the server."""
    version = target.address.version
    if target.tunnel is None and version == 6:
        found = await neighbour(target.address)
        link = (found.interface, _ETHERTYPE[6], 0, 0, found.hardware)
        yield lambda packet: ears.hears.sendto(packet, link)
        return
    kind, protocol, header = _encapsulation(target.tunnel, version)
    port = 0 if target.tunnel is None else target.tunnel.port
    with socket.socket(FAMILY[version], kind | socket.SOCK_NONBLOCK, protocol) as sending:
        if target.tunnel is None:  # the packet's own header is all there is
            sending.setsockopt(socket.IPPROTO_IP, _IP_NODEFRAG, 1)
        server = (str(target.address), port)
        yield lambda packet: sending.sendto(header + packet, server)


def _encapsulation(tunnel: Tunnel | None, version: int) -> tuple[socket.SocketKind, int, bytes]:
    """The socket, and what comes before the packet. No checksums: servers take them or not."""
    if tunnel is None:
        return socket.SOCK_RAW, socket.IPPROTO_RAW, b""
    match tunnel.type:
        case TunnelType.IPIP:
            return socket.SOCK_RAW, _INNER[version], b""
        case TunnelType.GRE:  # RFC 2784: flags and version, protocol
            return socket.SOCK_RAW, IPPROTO_GRE, struct.pack("!HH", 0, _ETHERTYPE[version])
        case TunnelType.GUE:  # variant and length, protocol, flags
            return socket.SOCK_DGRAM, 0, struct.pack("!BBH", 0, _INNER[version], 0)
        case _:
            assert_never(tunnel.type)
