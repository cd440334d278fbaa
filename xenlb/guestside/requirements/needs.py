"""What a guest needs for its services, as values: pure, and the same for every distribution.

What follows from a service is in compile.py; how it is brought into a guest, the business of the
room files (those of the guest's own network configuration, and guest.sh for what no such file can
say, and guests that have none); how a guest is held against it, of the room inspect. No names of
guests or services get in: everything here is a number, an address, an interface's name, or a word
of ours.
"""

from dataclasses import dataclass
from enum import StrEnum

from xenlb.guestside.requirements.hold import Hold
from xenlb.ipvs.table import Family, IPAddress, Protocol


class TunnelKind(StrEnum):
    """A device that takes packets out of tunnels, in the words of ip-link(8)."""

    IPIP = "ipip"  # IPv4 in IPv4
    SIT = "sit"  # IPv6 in IPv4
    IP6TNL = "ip6tnl"  # both in IPv6
    GRE = "gre"
    IP6GRE = "ip6gre"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sysctl:
    """`name` as a path below /proc/sys: names of interfaces may have dots in them."""

    name: str
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelDevice:
    """`local`: of a device that has to be made; None: the one that the kernel makes itself.
    `checksums`: of GRE; the kernel drops packets with one where the device has not this, and
    those without where it has."""

    name: str
    kind: TunnelKind
    module: str
    local: IPAddress | None = None
    checksums: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decapsulation:
    """UDP packets (GUE) to this port are unpacked, as `ip fou add port PORT gue` does."""

    port: int
    family: Family


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAddress:
    """A service address as one that is the guest's own: always alone (/32, /128), and IPv6 without
    duplicate address detection, which would find the director."""

    address: IPAddress
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The default route of a table of its own."""

    gateway: IPAddress
    interface: str
    table: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What is routed by a table: packets from `source`, or with `mark`; exactly one is set. Its
    priority is the table's number."""

    family: Family
    table: int
    source: IPAddress | None = None
    mark: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Connections that come in by an interface and whose replies get a mark. `port` None: to every
    port but 22."""

    interface: str
    mark: int
    protocol: Protocol = Protocol.TCP
    port: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Clamp:
    """The largest segments that TCP from `address` asks for, in bytes."""

    address: IPAddress
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """All of it, in the order in which it has to be made: sysctls before everything, then what can
    receive, and the addresses last. `no_tx_checksums`: interfaces. `default_gateways`: what the
    default routes must go by already; nothing that xenlb would set."""

    sysctls: tuple[Sysctl, ...] = ()
    tunnels: tuple[TunnelDevice, ...] = ()
    decapsulations: tuple[Decapsulation, ...] = ()
    routes: tuple[Route, ...] = ()
    rules: tuple[Rule, ...] = ()
    marks: tuple[Mark, ...] = ()
    clamps: tuple[Clamp, ...] = ()
    no_tx_checksums: tuple[str, ...] = ()
    addresses: tuple[ServiceAddress, ...] = ()
    default_gateways: tuple[IPAddress, ...] = ()
    hold: Hold | None = None

    @property
    def network(self) -> bool:
        """Is there anything but the hold?"""
        return bool(
            self.sysctls or self.tunnels or self.rules or self.addresses or self.no_tx_checksums
        )


def settings_lines(needs: Needs) -> tuple[str, ...]:
    """The needs, without the hold, as guest.sh reads them: a line each, words with one blank
    between."""
    lines = [f"sysctl {each.name} {each.value}" for each in needs.sysctls]
    lines += [
        f"tunnel {each.name} {each.kind} {each.module} {each.local or 'any'}"
        + (" checksums" if each.checksums else "")
        for each in needs.tunnels
    ]
    lines += [f"gue {_version(each.family)} {each.port}" for each in needs.decapsulations]
    lines += [
        f"route {each.gateway.version} {each.gateway} {each.interface} {each.table}"
        for each in needs.routes
    ]
    for rule in needs.rules:
        by = f"from {rule.source}" if rule.source is not None else f"mark {rule.mark}"
        lines.append(f"rule {_version(rule.family)} {by} {rule.table}")
    lines += [
        f"mark {each.interface} {each.protocol} {each.port or 'any'} {each.mark}"
        for each in needs.marks
    ]
    lines += [f"clamp {each.address} {each.size}" for each in needs.clamps]
    lines += [f"no-tx-checksums {each}" for each in needs.no_tx_checksums]
    lines += [f"address {each.address} {each.device}" for each in needs.addresses]
    return tuple(lines)


def _version(family: Family) -> int:
    return 4 if family is Family.INET else 6
