"""Interface and hardware address through which a server is reached.

They come from the kernel's neighbour table, over rtnetlink. For a missing entry a datagram to the
server's discard port makes the kernel resolve the address. Results are cached; a probe without an
answer removes its own, so that a guest with a new network card is found again.
"""

import asyncio
import socket
import time
from contextlib import suppress
from dataclasses import dataclass

from pyroute2 import AsyncIPRoute, NetlinkError

from xenlb.health.transport.sockets import open_socket
from xenlb.ipvs.table import IPAddress

LIFETIME = 60.0  # seconds
PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.5)  # seconds between two reads; the last repeats
DISCARD = 9
# NUD_REACHABLE, STALE, DELAY, PROBE, NOARP and PERMANENT of linux/neighbour.h
_KNOWN = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A neighbour; `until`: when the entry expires, on the monotonic clock."""

    interface: str
    hardware: bytes
    until: float


_cached: dict[IPAddress, Neighbour] = {}


def forget(address: IPAddress) -> None:
    """Remove a cached result."""
    _cached.pop(address, None)


async def resolve_neighbour(address: IPAddress) -> Neighbour:
    """Return the neighbour once the kernel has resolved it, which may never happen.

    Raises OSError if there is no route.
    """
    known = _cached.get(address)
    if known is None or known.until < time.monotonic():
        known = _cached[address] = await _resolve(address)
    return known


async def _resolve(address: IPAddress) -> Neighbour:
    async with AsyncIPRoute() as route:
        try:
            messages = await route.route("get", dst=str(address))
        except NetlinkError as error:
            raise OSError(error.code, str(error)) from error
        index: int = next(iter(messages)).get("oif")
        (link,) = await route.link("get", index=index)
        name = link.get("ifname")
        attempt = 0
        while True:
            with open_socket(address, socket.SOCK_DGRAM) as udp:
                udp.sendto(b"", (str(address), DISCARD))
            with suppress(NetlinkError):  # ENOENT: there is no such entry yet
                for entry in await route.neigh("get", dst=str(address), ifindex=index):
                    hardware = entry.get("lladdr")
                    if entry["state"] & _KNOWN and hardware:
                        return Neighbour(
                            interface=name,
                            hardware=bytes.fromhex(hardware.replace(":", "")),
                            until=time.monotonic() + LIFETIME,
                        )
            await asyncio.sleep(PAUSES[min(attempt, len(PAUSES) - 1)])
            attempt += 1
