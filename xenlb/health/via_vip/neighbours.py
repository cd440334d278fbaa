"""Where on the link a server is: the interface, and its hardware address.

The kernel's own answers, over rtnetlink. One that it does not know yet is provoked, by a datagram
to the server's discard port, and waited for. What was found is believed for a while: a probe that
gets no answer has it forgotten, so that a guest with a new network card is found again.
"""

import asyncio
import socket
import time
from contextlib import suppress
from dataclasses import dataclass

from pyroute2 import AsyncIPRoute, NetlinkError

from xenlb.health.transport.sockets import unconnected
from xenlb.ipvs.table import IPAddress

BELIEVED = 60.0  # seconds
PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.5)  # seconds between two looks, the last again
DISCARD = 9
# NUD_REACHABLE, STALE, DELAY, PROBE, NOARP and PERMANENT of linux/neighbour.h
_KNOWN = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """`until`: how long it is believed, on the monotonic clock."""

    interface: str
    hardware: bytes
    until: float


_found: dict[IPAddress, Neighbour] = {}


def forget(address: IPAddress) -> None:
    _found.pop(address, None)


async def neighbour(address: IPAddress) -> Neighbour:
    """Waits until it is known, for good where nobody has the address. Raises OSError where there is
    no route."""
    known = _found.get(address)
    if known is None or known.until < time.monotonic():
        known = _found[address] = await _asked(address)
    return known


async def _asked(address: IPAddress) -> Neighbour:
    async with AsyncIPRoute() as route:
        index = await _interface(route, address)
        (link,) = await route.link("get", index=index)
        name = link.get("ifname")
        attempt = 0
        while True:
            _provoke(address)
            with suppress(NetlinkError):  # ENOENT: there is no such entry yet
                for entry in await route.neigh("get", dst=str(address), ifindex=index):
                    hardware = entry.get("lladdr")
                    if entry["state"] & _KNOWN and hardware:
                        return Neighbour(
                            interface=name,
                            hardware=bytes.fromhex(hardware.replace(":", "")),
                            until=time.monotonic() + BELIEVED,
                        )
            await asyncio.sleep(PAUSES[min(attempt, len(PAUSES) - 1)])
            attempt += 1


async def _interface(route: AsyncIPRoute, address: IPAddress) -> int:
    try:
        messages = await route.route("get", dst=str(address))
    except NetlinkError as error:
        raise OSError(error.code, str(error)) from error
    index: int = next(iter(messages)).get("oif")
    return index


def _provoke(address: IPAddress) -> None:
    with unconnected(address, socket.SOCK_DGRAM) as asking:
        asking.sendto(b"", (str(address), DISCARD))
