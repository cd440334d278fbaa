"""This host's own view of the network: its addresses, networks, gateways and neighbours.

The tables are read through pyroute2 in a thread (its synchronous sockets do not work inside a
running loop). Changes only wake somebody up: for that a bare rtnetlink socket is enough, and a
message concerns a guest if the guest's MAC address is in it. What may be used of an address:
address_policy.py.
"""

import asyncio
import logging
import re
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_interface,
)
from itertools import islice
from pathlib import Path

from pyroute2 import IPRoute

from xenlb.ipvs.table import IPAddress
from xenlb.model.settings import IPNetwork

log = logging.getLogger(__name__)

# linux/rtnetlink.h: RTMGRP_NEIGH, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_NEIGHBOURS, _ADDRESSES = 0x4, 0x10 | 0x100
# linux/neighbour.h: what was never confirmed or is no answer of anybody
_USELESS = 0x01 | 0x20 | 0x40  # NUD_INCOMPLETE, NUD_FAILED, NUD_NOARP
_HEADER = 16  # struct nlmsghdr
# linux/route.h, linux/ipv6_route.h
_RTF_UP, _RTF_REJECT, _RTF_LOCAL = 0x1, 0x200, 0x80000000
_DISCARD = 9  # RFC 863
MOST_ROUTES = 4096
_NAME = re.compile(r"[^\s/]{1,15}")
_RTM_NEWADDR, _RTM_DELADDR = 20, 21


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """`networks` by the interface on which they are; `gateways`: next hops of the main routing
    table; `neighbours` by MAC address in lower case, each in order of the addresses."""

    own: frozenset[IPAddress] = frozenset()
    gateways: frozenset[IPAddress] = frozenset()
    networks: Mapping[str, tuple[IPNetwork, ...]] = field(default_factory=dict)
    neighbours: Mapping[str, tuple[IPAddress, ...]] = field(default_factory=dict)


def read_host_network() -> HostView:
    """Blocks; raises OSError. Not to be called in a loop's thread."""
    own: set[IPAddress] = set()
    networks: dict[str, set[IPNetwork]] = {}
    neighbours: dict[str, set[IPAddress]] = {}
    names = dict(socket.if_nameindex())
    with IPRoute() as route:
        for message in route.get_addr():
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            if text is None:
                continue
            interface = ip_interface(f"{text}/{message['prefixlen']}")
            own.add(interface.ip)
            if interface.network.num_addresses > 1:  # a /32 or /128 says nothing of others
                networks.setdefault(names.get(message["index"], ""), set()).add(interface.network)
        for message in route.get_neighbours():
            text, mac = message.get_attr("NDA_DST"), message.get_attr("NDA_LLADDR")
            if text is None or mac is None or message["state"] & _USELESS:
                continue
            with suppress(ValueError):
                neighbours.setdefault(mac.lower(), set()).add(ip_address(text))
    gateways: set[IPAddress] = set()
    for name, network, gateway in routes():
        if gateway is not None:
            gateways.add(gateway)
        elif network.prefixlen:
            networks.setdefault(name, set()).add(network)
    return HostView(
        own=frozenset(own),
        gateways=frozenset(gateways),
        networks={
            name: tuple(sorted(found, key=lambda n: (n.version, n)))
            for name, found in networks.items()
        },
        neighbours={
            mac: tuple(sorted(addresses, key=lambda a: (a.version, a)))
            for mac, addresses in neighbours.items()
        },
    )


def routes(
    proc: Path = Path("/proc/self/net"),
) -> Iterator[tuple[str, IPNetwork, IPAddress | None]]:
    """Interface, network and next hop of the routes of the main table. A router has a million of
    them, and netlink gives all or none: here it is the first ones, the default route in front."""
    for columns in _head(proc / "route"):
        name, network, gateway, flags, _, _, _, mask, *_ = columns
        if int(flags, 16) & (_RTF_UP | _RTF_REJECT) == _RTF_UP:
            length = int.bit_count(int(mask, 16))
            hop = _of_hex(gateway)
            yield name, IPv4Network((_of_hex(network), length)), hop if int(hop) else None
    for columns in _head(proc / "ipv6_route"):
        prefix, bits, _, _, gateway, _, _, _, flags, name = columns
        if int(flags, 16) & (_RTF_UP | _RTF_REJECT | _RTF_LOCAL) == _RTF_UP:
            next_hop = IPv6Address(int(gateway, 16))
            network6 = IPv6Network((int(prefix, 16), int(bits, 16)))
            yield name, network6, next_hop if int(next_hop) else None


def _head(path: Path) -> list[list[str]]:
    try:
        with path.open() as lines:
            columns = [line.split() for line in islice(lines, MOST_ROUTES)]
    except FileNotFoundError:  # a kernel without that family
        return []
    return [each for each in columns if each[0] != "Iface"]


def _of_hex(text: str) -> IPv4Address:
    """In the byte order of this machine, as the kernel writes it."""
    return IPv4Address(int(text, 16).to_bytes(4, sys.byteorder))


def carriers(devices: Iterable[str], sys_net: Path = Path("/sys/class/net")) -> frozenset[str]:
    """The interfaces of this host by which it reaches what hangs on these devices: themselves, the
    bridges that they are ports of, and macvlans beside a macvtap, on one lower device."""
    found: set[str] = set()
    for device in devices:
        if not _NAME.fullmatch(device):
            continue
        found.add(device)
        place = sys_net / device
        with suppress(OSError):
            found.add((place / "master").readlink().name)
        for upper in place.glob("upper_*"):
            with suppress(OSError):
                if "DEVTYPE=macvlan" in (upper / "uevent").read_text().splitlines():
                    found.add(upper.name.removeprefix("upper_"))
    return frozenset(found)


def probe_neighbour(address: IPAddress) -> None:
    """Has the kernel find out anew who has an address of its neighbour table, by one datagram to
    the port for what is thrown away. What it finds is seen at a later look."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as it:
        it.sendto(b"", (str(address), _DISCARD))


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
