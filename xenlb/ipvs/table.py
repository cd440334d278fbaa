"""The IPVS table as values: services, servers and their keys. Pure.

`Service` and `Server` have only what can be set. What the kernel counts is in `Counters`, so that
comparisons of tables ignore it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntFlag, StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

IPAddress = IPv4Address | IPv6Address


@lru_cache(maxsize=65536)
def address(packed: bytes) -> IPAddress:
    """The address in 4 or 16 bytes; equal bytes give the same object.

    Comparing two address objects takes most of the time of comparing two tables, and identity is
    tested first.
    """
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


class Family(StrEnum):
    """Address family of a service or a server."""

    INET = "inet"
    INET6 = "inet6"

    @property
    def bits(self) -> int:
        """The length of an address of the family in bits: 32 or 128."""
        return 32 if self is Family.INET else 128


def family_of(address: IPAddress) -> Family:
    """Return INET for an IPv4 address, INET6 for an IPv6 address."""
    return Family.INET if address.version == 4 else Family.INET6


class Protocol(StrEnum):
    """Transport protocol of an address service; `number` is IANA's (IPPROTO_*)."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"

    @property
    def number(self) -> int:
        """The protocol number in the IP header: 6, 17 or 132."""
        return _NUMBERS[self]


_NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}


class Forwarding(StrEnum):
    """How packets reach a server (ipvsadm -m, -g, -i).

    LOCALNODE and BYPASS are only read, from entries of another tool.
    """

    MASQUERADE = "masquerade"
    GATEWAYING = "gatewaying"
    TUNNEL = "tunnel"
    LOCALNODE = "localnode"
    BYPASS = "bypass"


class TunnelType(StrEnum):
    """Encapsulation of packets to a server (ipvsadm --tun-type)."""

    IPIP = "ipip"
    GUE = "gue"
    GRE = "gre"


class TunnelChecksum(StrEnum):
    """ipvsadm --tun-nocsum, --tun-csum, --tun-remcsum; the last for gue only."""

    NONE = "nocsum"
    CHECKSUM = "csum"
    REMOTE = "remcsum"


class SchedulerFlags(IntFlag):
    """The three flags of a scheduler, with the kernel's values (IP_VS_SVC_F_SCHED1…3).

    For sh and mh, ONE is «fallback» and TWO is «port».
    """

    NONE = 0
    ONE = 0x8
    TWO = 0x10
    THREE = 0x20


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunnel:
    """Encapsulation of a tunnel server.

    `port` is the UDP port of gue, else 0. `checksum` is for gue and gre, else NONE.
    """

    type: TunnelType = TunnelType.IPIP
    port: int = 0
    checksum: TunnelChecksum = TunnelChecksum.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressKey:
    """A service identified by protocol, virtual address and port (0: every port)."""

    protocol: Protocol
    address: IPAddress
    port: int

    def __hash__(self) -> int:
        """Three times as fast as the default: ipaddress hashes a text of the number."""
        return hash((int(self.address), self.port))

    @property
    def family(self) -> Family:
        """The family of the virtual address."""
        return family_of(self.address)


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkKey:
    """A service identified by firewall mark (1 … 2**32 - 1) and address family."""

    family: Family
    mark: int


ServiceKey = AddressKey | MarkKey


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerKey:
    """A server of a service, identified by address and port (0: that of the packet)."""

    address: IPAddress
    port: int

    def __hash__(self) -> int:
        """Fast, as for AddressKey."""
        return hash((int(self.address), self.port))


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The settings of a virtual service in the kernel.

    `persistence` is in whole seconds, None without persistence. `prefix`: clients of one network of
    this prefix length share a persistence template (32 or 128: none is shared; the value without
    persistence). For an IPv4 netmask with holes, which another tool may set, it is minus the mask.
    """

    key: ServiceKey
    scheduler: str = "wlc"
    flags: SchedulerFlags = SchedulerFlags.NONE
    one_packet: bool = False
    persistence: int | None = None
    prefix: int
    persistence_engine: str = ""


def mask_of(prefix: int) -> int:
    """The IPv4 netmask, as a number, of a result of prefix_of()."""
    return -prefix if prefix < 0 else (1 << 32) - (1 << 32 - prefix)


def prefix_of(mask: int) -> int:
    """The prefix length of an IPv4 netmask; minus the mask if it has holes."""
    prefix = mask.bit_count()
    return prefix if mask_of(prefix) == mask else -mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The settings of a real server of one service in the kernel.

    `tunnel` is for TUNNEL only, where None means plain ipip.
    """

    key: ServerKey
    forwarding: Forwarding
    weight: int
    upper_threshold: int = 0
    lower_threshold: int = 0
    tunnel: Tunnel | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """The kernel's counters of a server: current connections, and sums since it was added.

    Source: IPVS_DEST_ATTR_*. They lag behind the traffic by up to two seconds.
    """

    active_connections: int = 0
    inactive_connections: int = 0
    persistent_connections: int = 0
    connections: int = 0
    packets_in: int = 0
    packets_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A service with its servers.

    In a wanted table, `leaving` servers keep weight 0 until their connections have ended.
    """

    service: Service
    servers: Mapping[ServerKey, Server] = field(default_factory=dict)
    leaving: frozenset[ServerKey] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Services by key. The mappings do not change."""

    entries: Mapping[ServiceKey, Entry] = field(default_factory=dict)

    def server(self, service: ServiceKey, server: ServerKey) -> Server | None:
        """Return a server, None if the table lacks it or its service."""
        entry = self.entries.get(service)
        return None if entry is None else entry.servers.get(server)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The kernel's table at one moment, and its counters."""

    table: Table
    counters: Mapping[ServiceKey, Mapping[ServerKey, Counters]] = field(default_factory=dict)
