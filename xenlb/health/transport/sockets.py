"""Sockets to servers: of which family, and such as all probes of one kind share.

FACTS

- An error at once (of socket, connect, send) is this host's. An error that comes later is what the
  network answered, by ICMP mostly, and the same number can be both: EACCES at once is a route of
  type prohibit here, EACCES later is ICMPv6 “administratively prohibited”, which firewalls send
  instead of a refusal (firewalld's default). In IPv4 that is EHOSTUNREACH.
"""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol, TypeVar

from xenlb.ipvs.table import IPAddress
from xenlb.model.target import Target

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


def unconnected(address: IPAddress, kind: socket.SocketKind) -> socket.socket:
    """One that does not block, of the address's family. Raises OSError."""
    return socket.socket(FAMILY[address.version], kind | socket.SOCK_NONBLOCK)


class NetworkError(OSError):
    """An error that came later: see above."""


@contextmanager
def later() -> Iterator[None]:
    """An error in it is the network's."""
    try:
        yield
    except OSError as error:
        raise NetworkError(*error.args) from error


async def connect(connection: socket.socket, target: Target) -> None:
    """Raises OSError, NetworkError where this host could ask."""
    address = (str(target.address), target.port)
    with suppress(BlockingIOError):
        connection.connect(address)
        return
    with later():
        await asyncio.get_running_loop().sock_connect(connection, address)


class Hearing(Protocol):
    """What hears for all probes of one kind and IP version: `readable` when there is something."""

    users: int

    @property
    def hears(self) -> socket.socket: ...

    def readable(self) -> None: ...

    def close(self) -> None: ...


T = TypeVar("T", bound=Hearing)


@contextmanager
def shared(opened: dict[int, T], version: int, make: Callable[[int], T]) -> Iterator[T]:
    """That of this IP version: made for the first user, closed after the last."""
    loop = asyncio.get_running_loop()
    it = opened.get(version)
    if it is None:
        it = opened[version] = make(version)
        loop.add_reader(it.hears, it.readable)
    it.users += 1
    try:
        yield it
    finally:
        it.users -= 1
        if not it.users:
            del opened[version]
            loop.remove_reader(it.hears)
            it.close()
