"""Sockets to servers, and sockets that all probes of one kind share.

FACTS

- An error at once (of socket, connect, send) is this host's. A later error is a reply of the
  network, mostly by ICMP. The same number can be both: EACCES at once is a route of type prohibit
  here, EACCES later is ICMPv6 “administratively prohibited”, which firewalls send instead of a
  refusal (firewalld's default). In IPv4 that is EHOSTUNREACH.
"""

import asyncio
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol, TypeVar

from xenlb.ipvs.table import IPAddress
from xenlb.model.target import Target

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


def open_socket(address: IPAddress, kind: socket.SocketKind) -> socket.socket:
    """Open a non-blocking socket of the address's family. Raises OSError."""
    return socket.socket(FAMILY[address.version], kind | socket.SOCK_NONBLOCK)


class NetworkError(OSError):
    """A later error, which is a reply of the network."""


@contextmanager
def network_errors() -> Iterator[None]:
    """Raise errors as NetworkError."""
    try:
        yield
    except OSError as error:
        raise NetworkError(*error.args) from error


async def connect(connection: socket.socket, target: Target) -> None:
    """Connect to the server. Raises OSError, NetworkError for errors of the network."""
    address = (str(target.address), target.port)
    with suppress(BlockingIOError):
        connection.connect(address)
        return
    with network_errors():
        await asyncio.get_running_loop().sock_connect(connection, address)


class _SharedReceiver(Protocol):
    """Receiver for all probes of one kind and IP version.

    `receive` is called when `receiver` is readable.
    """

    users: int

    @property
    def receiver(self) -> socket.socket: ...

    def receive(self) -> None: ...

    def close(self) -> None: ...


T = TypeVar("T", bound=_SharedReceiver)


@contextmanager
def shared_receiver(receivers: dict[int, T], version: int, make: Callable[[int], T]) -> Iterator[T]:
    """Yield the receiver of an IP version: made for the first user, closed after the last."""
    loop = asyncio.get_running_loop()
    shared = receivers.get(version)
    if shared is None:
        shared = receivers[version] = make(version)
        loop.add_reader(shared.receiver, shared.receive)
    shared.users += 1
    try:
        yield shared
    finally:
        shared.users -= 1
        if not shared.users:
            del receivers[version]
            loop.remove_reader(shared.receiver)
            shared.close()


def checksum(data: bytes) -> int:
    """Return the checksum of IPv4, ICMP, TCP and UDP (RFC 1071) of 16-bit words."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
