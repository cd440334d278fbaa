"""The network tables of this host: its addresses, networks, gateways and neighbours.

They are read through pyroute2 in a thread, as its synchronous sockets do not work inside a running
loop. Changes only trigger new readings: a plain rtnetlink socket suffices for that, and a message
concerns a guest if it contains the guest's MAC address.
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
from typing import TypeVar

from pyroute2 import IPRoute

from xenlb.ipvs.table import IPAddress
from xenlb.model.settings import IPNetwork

log = logging.getLogger(__name__)

T = TypeVar("T", IPAddress, IPNetwork)

# linux/rtnetlink.h: RTMGRP_NEIGH, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_NEIGHBOURS, _ADDRESSES = 0x4, 0x10 | 0x100
# linux/neighbour.h: NUD_INCOMPLETE, NUD_FAILED, NUD_NOARP, states without a neighbour's reply
_UNCONFIRMED = 0x01 | 0x20 | 0x40
_HEADER = 16  # struct nlmsghdr
# linux/route.h, linux/ipv6_route.h
_RTF_UP, _RTF_REJECT, _RTF_LOCAL = 0x1, 0x200, 0x80000000
_DISCARD = 9  # RFC 863
MOST_ROUTES = 4096
_NAME = re.compile(r"[^\s/]{1,15}")
_RTM_NEWADDR, _RTM_DELADDR = 20, 21


@dataclass(frozen=True, slots=True, kw_only=True)
class HostNetworkTables:
    """One reading of this host's network tables.

    `networks` by interface; `gateways`: next hops of the main routing table; `neighbours` by MAC
    address in lower case. Networks and neighbours are sorted.
    """

    own: frozenset[IPAddress] = frozenset()
    gateways: frozenset[IPAddress] = frozenset()
    networks: Mapping[str, tuple[IPNetwork, ...]] = field(default_factory=dict)
    neighbours: Mapping[str, tuple[IPAddress, ...]] = field(default_factory=dict)


def read_host_network() -> HostNetworkTables:
    """Read the tables. Blocks; raises OSError. Not to be called in a loop's thread."""
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
            if interface.network.num_addresses > 1:  # not a /32 or /128
                networks.setdefault(names.get(message["index"], ""), set()).add(interface.network)
        for message in route.get_neighbours():
            text, mac = message.get_attr("NDA_DST"), message.get_attr("NDA_LLADDR")
            if text is None or mac is None or message["state"] & _UNCONFIRMED:
                continue
            with suppress(ValueError):
                neighbours.setdefault(mac.lower(), set()).add(ip_address(text))
    gateways: set[IPAddress] = set()
    for name, network, gateway in read_routes():
        if gateway is not None:
            gateways.add(gateway)
        elif network.prefixlen:
            networks.setdefault(name, set()).add(network)
    return HostNetworkTables(
        own=frozenset(own),
        gateways=frozenset(gateways),
        networks=_sorted(networks),
        neighbours=_sorted(neighbours),
    )


def _sorted(sets: Mapping[str, set[T]]) -> dict[str, tuple[T, ...]]:
    return {key: tuple(sorted(each, key=lambda n: (n.version, n))) for key, each in sets.items()}


def read_routes(
    proc: Path = Path("/proc/self/net"),
) -> Iterator[tuple[str, IPNetwork, IPAddress | None]]:
    """Yield interface, network and next hop of the main table's routes, the default route first.

    A router has a million of them, and netlink gives all or none; here reading stops after
    MOST_ROUTES.
    """
    for columns in _rows(proc / "route"):
        name, network, gateway, flags, _, _, _, mask, *_ = columns
        if int(flags, 16) & (_RTF_UP | _RTF_REJECT) == _RTF_UP:
            length = int.bit_count(int(mask, 16))
            hop = _ipv4_from_hex(gateway)
            yield name, IPv4Network((_ipv4_from_hex(network), length)), hop if int(hop) else None
    for columns in _rows(proc / "ipv6_route"):
        prefix, bits, _, _, gateway, _, _, _, flags, name = columns
        if int(flags, 16) & (_RTF_UP | _RTF_REJECT | _RTF_LOCAL) == _RTF_UP:
            next_hop = IPv6Address(int(gateway, 16))
            network6 = IPv6Network((int(prefix, 16), int(bits, 16)))
            yield name, network6, next_hop if int(next_hop) else None


def _rows(path: Path) -> list[list[str]]:
    try:
        with path.open() as lines:
            rows = [line.split() for line in islice(lines, MOST_ROUTES)]
    except FileNotFoundError:  # a kernel without that family
        return []
    return [row for row in rows if row[0] != "Iface"]


def _ipv4_from_hex(text: str) -> IPv4Address:
    """Parse an address as the kernel writes it, in this machine's byte order."""
    return IPv4Address(int(text, 16).to_bytes(4, sys.byteorder))


def carrier_interfaces(
    devices: Iterable[str], sys_net: Path = Path("/sys/class/net")
) -> frozenset[str]:
    """Return this host's interfaces through which it reaches guests on these devices.

    They are the devices, the bridges whose ports they are, and macvlans that share the lower device
    of a macvtap.
    """
    carriers: set[str] = set()
    for device in devices:
        if not _NAME.fullmatch(device):
            continue
        carriers.add(device)
        folder = sys_net / device
        with suppress(OSError):
            carriers.add((folder / "master").readlink().name)
        for upper in folder.glob("upper_*"):
            with suppress(OSError):
                if "DEVTYPE=macvlan" in (upper / "uevent").read_text().splitlines():
                    carriers.add(upper.name.removeprefix("upper_"))
    return frozenset(carriers)


def probe_neighbour(address: IPAddress) -> None:
    """Have the kernel resolve an address again, by a datagram to its discard port.

    A later reading of the neighbour table shows the result.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as udp:
        udp.sendto(b"", (str(address), _DISCARD))


class NeighbourWatch:
    """Watches the neighbour table and this host's addresses.

    Calls `on_change` in the loop's thread: with the MAC address of a watched neighbour that was
    added, removed or changed, or with None if this host's own addresses have (or may have) changed.
    """

    def __init__(self, on_change: Callable[[str | None], None]) -> None:
        self._on_change = on_change
        self._macs: dict[bytes, str] = {}
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Start watching. Raises OSError."""
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        try:
            netlink.setblocking(False)
            netlink.bind((0, _NEIGHBOURS | _ADDRESSES))
        except OSError:
            netlink.close()
            raise
        self._socket = netlink
        self._loop.add_reader(netlink.fileno(), self._readable, netlink)

    def close(self) -> None:
        """Stop watching; may be repeated."""
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def set_macs(self, macs: frozenset[str]) -> None:
        """Set which neighbours are watched."""
        self._macs = {bytes.fromhex(mac.replace(":", "")): mac for mac in macs}

    def _readable(self, netlink: socket.socket) -> None:
        try:
            data = netlink.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:  # ENOBUFS: messages were dropped
            log.debug("rtnetlink: %s", error.strerror)
            self._on_change(None)
            return
        kind = int.from_bytes(data[4:6], sys.byteorder) if len(data) >= _HEADER else 0
        if kind in {_RTM_NEWADDR, _RTM_DELADDR}:
            self._on_change(None)
        for raw, mac in self._macs.items():
            if raw in data:
                self._on_change(mac)
