"""Sockets to servers: of which family, and such as all probes of one kind share."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from xenlb.ipvs.table import IPAddress
from xenlb.model.events import Target

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


def unconnected(address: IPAddress, kind: socket.SocketKind) -> socket.socket:
    """One that does not block, of the address's family. Raises OSError."""
    return socket.socket(FAMILY[address.version], kind | socket.SOCK_NONBLOCK)


async def connect(connection: socket.socket, target: Target) -> None:
    address = (str(target.address), target.port)
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
