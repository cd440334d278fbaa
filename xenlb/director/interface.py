"""Interfaces of this host over rtnetlink: their state, their addresses, and changes of these.

Requests go through pyroute2. Changes arrive on a plain socket: messages that name neither the
interface nor the addresses watched are dropped undecoded, so vifs that come and go cost nothing.
"""

import asyncio
import errno
import ipaddress
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from types import TracebackType
from typing import Any, Self

from pyroute2 import AsyncIPRoute, NetlinkError
from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST
from pyroute2.netlink.rtnl import (
    RTM_DELLINK,
    RTM_GETADDR,
    RTM_NEWLINK,
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV6_IFADDR,
    RTMGRP_LINK,
)
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

from xenlb.ipvs.table import IPAddress

log = logging.getLogger(__name__)

IFF_UP = 0x1
IFF_LOWER_UP = 0x10000
ARPHRD_ETHER = 1
IFA_F_NODAD = 0x02
IFA_F_DADFAILED = 0x08
FOREVER = 0xFFFFFFFF

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """An interface. `running`: up and with a carrier; `hardware`: its Ethernet address."""

    index: int
    name: str
    up: bool
    running: bool
    hardware: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceAddress:
    """An address of an interface."""

    address: IPAddress
    prefix: int
    index: int
    duplicate: bool  # found on another host by duplicate address detection


class InterfaceError(Exception):
    """The kernel refused a request; `errno` is the reason."""

    def __init__(self, error: NetlinkError) -> None:
        super().__init__(str(error))
        self.errno: int = error.code


def connection() -> Any:
    """An rtnetlink socket, for `async with`.

    With strict_check the kernel (4.20 and later) applies a dump's filter. Otherwise it would list
    the addresses of hundreds of vifs.
    """
    return AsyncIPRoute(strict_check=True)


async def find_interface(route: Any, name: str) -> Interface | None:
    """Return the interface, None if there is none of this name. Raises InterfaceError."""
    try:
        (message,) = await route.link("get", ifname=name)
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise InterfaceError(error) from error
    return _link(message)


async def interface_name(route: Any, index: int) -> str:
    """Return the name for a message; `interface INDEX` if the kernel has no such interface."""
    try:
        (message,) = await route.link("get", index=index)
    except NetlinkError:
        return f"interface {index}"
    return _link(message).name


async def list_addresses(route: Any, *, index: int = 0, version: int = 0) -> list[InterfaceAddress]:
    """The addresses of one interface or all (index 0), of one IP version or both (version 0)."""
    families = {0: socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}
    query = ifaddrmsg()
    query["family"] = families[version]
    query["index"] = index
    try:
        messages = [
            message
            async for message in await route.nlm_request(
                query, RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP
            )
        ]
    except NetlinkError as error:
        raise InterfaceError(error) from error
    return [_address(message) for message in messages if index in {0, message["index"]}]


async def add_address(route: Any, link: Interface, address: IPAddress) -> None:
    """Add the address without a network.

    IPv6 addresses are added without duplicate address detection, which takes a second and fails if
    the servers have the address too. They are deprecated at once (preferred for 0 s), so that this
    host does not use them as source of its own connections.
    """
    options: dict[str, int] = {}
    if address.version == 6:
        options = {"flags": IFA_F_NODAD, "preferred_lft": 0, "valid_lft": FOREVER}
    try:
        await route.addr(
            "add",
            index=link.index,
            address=str(address),
            prefixlen=address.max_prefixlen,
            **options,
        )
    except NetlinkError as error:
        raise InterfaceError(error) from error


async def remove_address(route: Any, entry: InterfaceAddress) -> None:
    """Remove an address, or nothing if it is gone already. Raises InterfaceError."""
    try:
        await route.addr(
            "del", index=entry.index, address=str(entry.address), prefixlen=entry.prefix
        )
    except NetlinkError as error:
        if error.code not in {errno.EADDRNOTAVAIL, errno.ENODEV}:  # gone meanwhile
            raise InterfaceError(error) from error


async def outgoing_interfaces(destinations: Iterable[IPAddress]) -> frozenset[str]:
    """The names of the interfaces through which this host now reaches these addresses."""
    async with connection() as route:
        indexes = {index async for _, index in _routes(route, destinations, "oif")}
        return frozenset([await interface_name(route, index) for index in sorted(indexes)])


async def source_addresses(destinations: Iterable[IPAddress]) -> dict[IPAddress, IPAddress]:
    """Return the source address of this host for each destination that has a route."""
    async with connection() as route:
        return {
            destination: ipaddress.ip_address(source)
            async for destination, source in _routes(route, destinations, "prefsrc")
        }


async def _routes(
    route: Any, destinations: Iterable[IPAddress], attribute: str
) -> AsyncIterator[tuple[IPAddress, Any]]:
    """An attribute of the route to each destination, if it has a route with that attribute."""
    for destination in destinations:
        try:
            messages = await route.route("get", dst=str(destination))
        except NetlinkError as error:
            log.debug("no route to %s: %s", destination, error)
            continue
        for message in messages:
            if (value := message.get(attribute)) is not None:
                yield destination, value


def _link(message: Any) -> Interface:
    flags = message["flags"]
    ethernet = message["ifi_type"] == ARPHRD_ETHER
    return Interface(
        index=message["index"],
        name=message.get("ifname"),
        up=bool(flags & IFF_UP),
        running=bool(flags & IFF_UP and flags & IFF_LOWER_UP),
        hardware=bytes.fromhex(message.get("address").replace(":", "")) if ethernet else None,
    )


def _address(message: Any) -> InterfaceAddress:
    # An IPv4 address is in IFA_LOCAL (IFA_ADDRESS is the peer's), an IPv6 address in IFA_ADDRESS.
    own = message.get("local") or message.get("address")
    return InterfaceAddress(
        address=ipaddress.ip_address(own),
        prefix=message["prefixlen"],
        index=message["index"],
        duplicate=bool((message.get("flags") or message["flags"]) & IFA_F_DADFAILED),
    )


class AddressChange(Enum):
    """The meaning of a message about a watched interface or address."""

    CHANGED = auto()
    WENT_DOWN = auto()
    GONE = auto()


class ChangeListener:
    """Calls `on_change` for changes of the interface and the addresses that are watched.

    It may call once for many changes, and without a change. No change is missed: lost messages
    (ENOBUFS) count as a change.
    """

    def __init__(self, on_change: Callable[[AddressChange], None]) -> None:
        self._on_change = on_change
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            socket.NETLINK_ROUTE,
        )
        self._name = b""
        self._index = 0
        self._packed: tuple[bytes, ...] = ()

    def watch(self, name: str | None, index: int, wanted: Iterable[IPAddress]) -> None:
        """Set the interface, by index or by name if not None, and the addresses to watch."""
        self._name = b"" if name is None else name.encode() + b"\0"
        self._index = index
        self._packed = tuple(address.packed for address in wanted)

    def __enter__(self) -> Self:
        try:
            self._socket.bind((0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))
            asyncio.get_running_loop().add_reader(self._socket, self._readable)
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def _readable(self) -> None:
        while True:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                return
            except OSError as error:
                log.debug("messages about interfaces were lost: %s", error)
                self._on_change(AddressChange.CHANGED)
                return
            self._message(data)

    def _message(self, data: bytes) -> None:
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, *_ = _HEADER.unpack_from(data, offset)
            if length < _HEADER.size:
                return
            body = data[offset + _HEADER.size : offset + length]
            offset += (length + 3) & ~3
            if kind not in {RTM_NEWLINK, RTM_DELLINK}:
                if any(packed in body for packed in self._packed):
                    self._on_change(AddressChange.CHANGED)
                continue
            _, _, index, flags, _ = _LINK.unpack_from(body)
            if index != self._index and not (self._name and self._name in body):
                continue
            if kind == RTM_DELLINK:
                self._on_change(AddressChange.GONE)
            else:
                self._on_change(
                    AddressChange.CHANGED if flags & IFF_UP else AddressChange.WENT_DOWN
                )
