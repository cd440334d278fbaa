"""The tcp check of a service address through one server.

It checks that the guest has the address and its service listens there. An ordinary connection
cannot: the address is this host's own, and IPVS takes packets that this host sends to it
(LOCAL_OUT). So the probe sends a SYN to the server, as IPVS would. The SYN-ACK is the answer, and a
reset closes the half-open connection.

FACTS (Linux 6.1, each seen in tests/lab/test_probes_uml.py)

- IPv4, gatewaying: a raw socket with IP_HDRINCL sends a packet unchanged to the address given to
  sendto(), whatever address is in the packet: route and neighbour are the server's. IPVS ignores
  packets of raw sockets with IP_NODEFRAG (“do not break raw sockets” in its ip_vs_core.c), also in
  its counters. IPv6 has no such exception: those packets bypass IPVS through a packet socket, which
  takes the server's hardware address.
- Tunnel: the same packet in IPIP, IPv6, GRE or GUE, which the kernel puts around it.
- The reply's source is an address of this host, so the kernel drops it as a martian unless
  accept_local is 1; a packet socket receives it before. With accept_local the kernel answers it
  with a reset, as this host has no such connection; that goes to the service address, which is
  local.
- The local ports are held by sockets that are bound and never listen, so that no other program's
  connection uses them. They are few and used in turns, and one packet socket receives for all
  probes: the kernel's filter compares its ports with every packet that arrives here.
- Closing a packet socket waits for a grace period of the kernel, some 10 ms: done in a thread.
"""

import asyncio
import itertools
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import assert_never

from xenlb.health.transport.result import Answer, failed
from xenlb.health.transport.sockets import FAMILY, shared_receiver
from xenlb.health.via_vip import syn
from xenlb.health.via_vip.neighbours import forget, resolve_neighbour
from xenlb.health.via_vip.syn import Endpoints, Reply
from xenlb.ipvs.table import IPAddress, Tunnel, TunnelType
from xenlb.model.target import Target
from xenlb.untrusted.budget import Budget

PORTS = 16  # of this host, from which SYNs are sent in turns
RESEND = 1.0  # seconds until an unanswered SYN is sent again, as by the kernel
READS = 64  # packets read in a row before the loop runs other tasks

_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_INNER = {4: socket.IPPROTO_IPIP, 6: socket.IPPROTO_IPV6}
_IP_NODEFRAG = 22
IPPROTO_GRE = 47

Send = Callable[[bytes], object]  # sends a packet to the server


async def probe(target: Target, budget: Budget) -> Answer:
    """Run the check."""
    vip = target.vip
    assert vip is not None
    path = f"{vip} port {target.port} via {target.address}"
    if vip.version != target.address.version:
        detail = f"this host cannot probe {path}: they are of different IP versions"
        return Answer(up=None, detail=detail)
    try:
        source = _local_address(target.address)
        with shared_receiver(_receivers, vip.version, _open_receiver) as receiver:
            async with _sender(target, receiver) as send:
                reply = await receiver.connect(source, vip, target.port, send)
    except asyncio.CancelledError:
        forget(target.address)
        raise
    except OSError as error:
        forget(target.address)
        return failed(target, error)
    if reply.refused:
        return Answer(up=False, detail=f"connection refused by {path}")
    return Answer(up=True, detail=f"{path} accepts connections")


def _local_address(server: IPAddress) -> IPAddress:
    """Return the source address that this host uses towards the server."""
    with socket.socket(FAMILY[server.version], socket.SOCK_DGRAM) as udp:
        udp.connect((str(server), 9))
        return ip_address(udp.getsockname()[0].partition("%")[0])


@dataclass(slots=True, kw_only=True, eq=False)
class _ReplyReceiver:
    """Receiver of the replies of one IP version.

    Pending probes are found by the acknowledged sequence number, which is random.
    """

    receiver: socket.socket
    ports: tuple[socket.socket, ...]
    pending: dict[int, tuple[Endpoints, asyncio.Future[Reply]]] = field(default_factory=dict)
    next_port: Iterator[socket.socket] = field(init=False)
    users: int = 0

    def __post_init__(self) -> None:
        self.next_port = itertools.cycle(self.ports)

    async def connect(self, source: IPAddress, vip: IPAddress, port: int, send: Send) -> Reply:
        """Send a SYN, return the reply and send a reset. Raises OSError."""
        local_port = next(self.next_port).getsockname()[1]
        ends = Endpoints(source=source, port=local_port, destination=vip, to_port=port)
        sequence = secrets.randbits(32)
        acknowledged = (sequence + 1) & 0xFFFFFFFF
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.pending[acknowledged] = ends, reply
        try:
            while not reply.done():
                send(syn.packet(ends, sequence, syn.SYN))
                await asyncio.wait([reply], timeout=RESEND)
            return reply.result()
        finally:
            del self.pending[acknowledged]
            # Also without a reply: it may have been lost.
            with suppress(OSError):
                send(syn.packet(ends, acknowledged, syn.RST))

    def receive(self) -> None:
        for _ in range(READS):
            try:
                data = self.receiver.recv(256)
            except OSError:
                return
            packet = syn.parse_reply(data)
            if packet is not None and packet.acknowledged in self.pending:
                ends, reply = self.pending[packet.acknowledged]
                if packet.ends == ends and not reply.done():
                    reply.set_result(packet)

    def close(self) -> None:
        """Close the sockets in a thread."""
        asyncio.get_running_loop().run_in_executor(None, _close, (self.receiver, *self.ports))


_receivers: dict[int, _ReplyReceiver] = {}


def _open_receiver(version: int) -> _ReplyReceiver:
    sockets: list[socket.socket] = []
    try:
        for _ in range(PORTS):
            sockets.append(socket.socket(FAMILY[version], socket.SOCK_STREAM))
            sockets[-1].bind(("", 0))
        ports = tuple(sockets)
        receiver = socket.socket(
            socket.AF_PACKET,
            socket.SOCK_DGRAM | socket.SOCK_NONBLOCK,
            socket.htons(_ETHERTYPE[version]),
        )
        sockets.append(receiver)
        syn.attach_filter(receiver, version, [port.getsockname()[1] for port in ports])
    except BaseException:
        _close(sockets)
        raise
    return _ReplyReceiver(receiver=receiver, ports=ports)


def _close(sockets: Iterable[socket.socket]) -> None:
    for each in sockets:
        each.close()


@asynccontextmanager
async def _sender(target: Target, receiver: _ReplyReceiver) -> AsyncIterator[Send]:
    """Yield a function that sends packets for the service address to the server."""
    version = target.address.version
    if target.tunnel is None and version == 6:
        neighbour = await resolve_neighbour(target.address)
        link = (neighbour.interface, _ETHERTYPE[6], 0, 0, neighbour.hardware)
        yield lambda packet: receiver.receiver.sendto(packet, link)
        return
    kind, protocol, header = _encapsulation(target.tunnel, version)
    port = 0 if target.tunnel is None else target.tunnel.port
    with socket.socket(FAMILY[version], kind | socket.SOCK_NONBLOCK, protocol) as sender:
        if target.tunnel is None:
            sender.setsockopt(socket.IPPROTO_IP, _IP_NODEFRAG, 1)
        server = (str(target.address), port)
        yield lambda packet: sender.sendto(header + packet, server)


def _encapsulation(tunnel: Tunnel | None, version: int) -> tuple[socket.SocketKind, int, bytes]:
    """Return type and protocol of the socket, and the header before the packet.

    No checksums: servers accept packets without.
    """
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
