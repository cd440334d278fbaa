"""One interface of this host over rtnetlink: is it there and up, its addresses, and their changes.

What should be on it, and when it is put back, stands in addresses.py. Requests go through
pyroute2, on a socket for each pass; changes are listened for on a plain socket, which costs
nothing while the vifs of other guests come and go: messages that name neither our interface nor
our addresses are dropped undecoded.
"""

import asyncio
import errno
import ipaddress
import logging
import socket
import struct
from collections.abc import Callable, Iterable
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
    """An interface. `running`: it is up and has a carrier; `hardware`: its Ethernet address."""

    index: int
    name: str
    up: bool
    running: bool
    hardware: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """An address that an interface has."""

    address: IPAddress
    prefix: int
    index: int
    duplicate: bool  # duplicate address detection found it on another host


class InterfaceError(Exception):
    """The kernel refused a request; `errno` says why."""

    def __init__(self, error: NetlinkError) -> None:
        super().__init__(str(error))
        self.errno: int = error.code


def connection() -> Any:
    """An rtnetlink socket, to be used with `async with`.

    strict_check: a dump's filter is heeded by the kernel (4.20 and later), so that a host with
    hundreds of vifs does not tell all their addresses.
    """
    return AsyncIPRoute(strict_check=True)


async def find(route: Any, name: str) -> Interface | None:
    try:
        (message,) = await route.link("get", ifname=name)
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise InterfaceError(error) from error
    return _link(message)


async def name_of(route: Any, index: int) -> str:
    try:
        (message,) = await route.link("get", index=index)
    except NetlinkError:
        return f"interface {index}"
    return _link(message).name


async def addresses(route: Any, *, index: int = 0, version: int = 0) -> list[Held]:
    """The addresses of an interface, or of all; of one IP version, or of both."""
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
    return [_held(message) for message in messages if index in {0, message["index"]}]


async def add(route: Any, link: Interface, address: IPAddress) -> None:
    """Adds the address alone, without a network.

    IPv6: no duplicate address detection, as it fails where the servers have the address too, and
    takes a second elsewhere; and deprecated at once (preferred for 0 s), so that this host does not
    choose it as the source of its own connections.
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


async def remove(route: Any, held: Held) -> None:
    try:
        await route.addr("del", index=held.index, address=str(held.address), prefixlen=held.prefix)
    except NetlinkError as error:
        if error.code not in {errno.EADDRNOTAVAIL, errno.ENODEV}:  # gone meanwhile
            raise InterfaceError(error) from error


async def towards(destinations: Iterable[IPAddress]) -> frozenset[str]:
    """The interfaces by which this host sends to these addresses, as its routes are now."""
    found: set[int] = set()
    async with connection() as route:
        for address in destinations:
            try:
                messages = await route.route("get", dst=str(address))
            except NetlinkError as error:
                log.debug("no route to %s: %s", address, error)
                continue
            found.update(index for each in messages if (index := each.get("oif")) is not None)
        return frozenset([await name_of(route, index) for index in sorted(found)])


async def sources(destinations: Iterable[IPAddress]) -> dict[IPAddress, IPAddress]:
    """The address of its own from which this host sends to each of these, as its routes are now:
    how this host is reached from there. Those without a route are left out."""
    found: dict[IPAddress, IPAddress] = {}
    async with connection() as route:
        for address in destinations:
            try:
                messages = await route.route("get", dst=str(address))
            except NetlinkError as error:
                log.debug("no route to %s: %s", address, error)
                continue
            for each in messages:
                if (source := each.get("prefsrc")) is not None:
                    found[address] = ipaddress.ip_address(source)
    return found


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


def _held(message: Any) -> Held:
    # IPv4 gives its own address as IFA_LOCAL (IFA_ADDRESS is the peer's); IPv6 mostly as the other.
    own = message.get("local") or message.get("address")
    return Held(
        address=ipaddress.ip_address(own),
        prefix=message["prefixlen"],
        index=message["index"],
        duplicate=bool((message.get("flags") or message["flags"]) & IFA_F_DADFAILED),
    )


class AddressChange(Enum):
    """What a message about our interface or addresses tells."""

    CHANGED = auto()
    WENT_DOWN = auto()
    GONE = auto()


class Changes:
    """Calls `heard` when something happened to the interface or the addresses that are watched.

    It may call for nothing, and once for many changes; it never misses one: when the kernel drops
    messages for want of room (ENOBUFS), that counts as a change.
    """

    def __init__(self, heard: Callable[[AddressChange], None]) -> None:
        self._heard = heard
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            socket.NETLINK_ROUTE,
        )
        self._name = b""
        self._index = 0
        self._packed: tuple[bytes, ...] = ()

    def watch(self, name: str | None, index: int, wanted: Iterable[IPAddress]) -> None:
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
                self._heard(AddressChange.CHANGED)
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
                    self._heard(AddressChange.CHANGED)
                continue
            _, _, index, flags, _ = _LINK.unpack_from(body)
            if index != self._index and not (self._name and self._name in body):
                continue
            if kind == RTM_DELLINK:
                self._heard(AddressChange.GONE)
            else:
                self._heard(AddressChange.CHANGED if flags & IFF_UP else AddressChange.WENT_DOWN)
