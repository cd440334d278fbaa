"""This host's own view of the network: its addresses, their networks, its neighbours.

The tables are read through pyroute2 in a thread (its synchronous sockets do not work inside a
running loop). Changes only wake somebody up: for that a bare rtnetlink socket is enough, and a
message concerns a guest if the guest's MAC address is in it. What may be used of an address:
judge.py.
"""

import asyncio
import logging
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface

from pyroute2 import IPRoute

from xenlb.ipvs.table import IPAddress
from xenlb.model.settings import IPNetwork

log = logging.getLogger(__name__)

# linux/rtnetlink.h: RTMGRP_NEIGH, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_NEIGHBOURS, _ADDRESSES = 0x4, 0x10 | 0x100
# linux/neighbour.h: what was never confirmed or is no answer of anybody
_USELESS = 0x01 | 0x20 | 0x40  # NUD_INCOMPLETE, NUD_FAILED, NUD_NOARP
_HEADER = 16  # struct nlmsghdr
_RTM_NEWADDR, _RTM_DELADDR = 20, 21


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """`neighbours` by MAC address in lower case, each in order of the addresses."""

    own: frozenset[IPAddress] = frozenset()
    networks: tuple[IPNetwork, ...] = ()
    neighbours: Mapping[str, tuple[IPAddress, ...]] = field(default_factory=dict)


def look() -> HostView:
    """Blocks; raises OSError. Not to be called in a loop's thread."""
    own: set[IPAddress] = set()
    networks: set[IPNetwork] = set()
    neighbours: dict[str, set[IPAddress]] = {}
    with IPRoute() as route:
        for message in route.get_addr():
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            if text is None:
                continue
            interface = ip_interface(f"{text}/{message['prefixlen']}")
            own.add(interface.ip)
            if interface.network.num_addresses > 1:  # a /32 or /128 says nothing of others
                networks.add(interface.network)
        for message in route.get_neighbours():
            text, mac = message.get_attr("NDA_DST"), message.get_attr("NDA_LLADDR")
            if text is None or mac is None or message["state"] & _USELESS:
                continue
            with suppress(ValueError):
                neighbours.setdefault(mac.lower(), set()).add(ip_address(text))
    return HostView(
        own=frozenset(own),
        networks=tuple(sorted(networks, key=lambda n: (n.version, n))),
        neighbours={
            mac: tuple(sorted(addresses, key=lambda a: (a.version, a)))
            for mac, addresses in neighbours.items()
        },
    )


class NeighbourWatch:
    """Calls `changed` in the loop's thread with the MAC address of a followed neighbour that has
    come, gone or changed, or with None when this host's own addresses have (or may have)."""

    def __init__(self, changed: Callable[[str | None], None]) -> None:
        self._changed = changed
        self._macs: dict[bytes, str] = {}
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Raises OSError."""
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        try:
            opened.setblocking(False)
            opened.bind((0, _NEIGHBOURS | _ADDRESSES))
        except OSError:
            opened.close()
            raise
        self._socket = opened
        self._loop.add_reader(opened.fileno(), self._readable, opened)

    def close(self) -> None:
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def follow(self, macs: frozenset[str]) -> None:
        self._macs = {bytes.fromhex(mac.replace(":", "")): mac for mac in macs}

    def _readable(self, source: socket.socket) -> None:
        try:
            data = source.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:  # ENOBUFS: messages were dropped
            log.debug("rtnetlink: %s", error.strerror)
            self._changed(None)
            return
        kind = int.from_bytes(data[4:6], sys.byteorder) if len(data) >= _HEADER else 0
        if kind in {_RTM_NEWADDR, _RTM_DELADDR}:
            self._changed(None)
        for raw, mac in self._macs.items():
            if raw in data:
                self._changed(mac)
