"""The needs of a guest for its services, as values: pure, and the same for every distribution.

They consist of numbers, addresses, names of interfaces and fixed words, never of names of guests or
services.
"""

from dataclasses import dataclass
from enum import StrEnum

from xenlb.guestside.requirements.hold import Hold
from xenlb.ipvs.table import Family, IPAddress, Protocol


class TunnelKind(StrEnum):
    """A device that decapsulates packets, by its name in ip-link(8)."""

    IPIP = "ipip"  # IPv4 in IPv4
    SIT = "sit"  # IPv6 in IPv4
    IP6TNL = "ip6tnl"  # both in IPv6
    GRE = "gre"
    IP6GRE = "ip6gre"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sysctl:
    """`name` is a path below /proc/sys: names of interfaces may have dots."""

    name: str
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelDevice:
    """`local`: for a device to make; None: the kernel's own one.

    `checksums`, of GRE: the kernel drops packets with a checksum if it is False, and those without
    if it is True.
    """

    name: str
    kind: TunnelKind
    module: str
    local: IPAddress | None = None
    checksums: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decapsulation:
    """Decapsulation of UDP packets to a port, as `ip fou add port PORT gue` sets it up."""

    port: int
    family: Family


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAddress:
    """A service address as an address of the guest, with prefix length 32 or 128.

    IPv6 is without duplicate address detection, which would find the director.
    """

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
    """Packets from `source` or with `mark` (exactly one is set) are routed by a table.

    The rule's priority is the table's number.
    """

    family: Family
    table: int
    source: IPAddress | None = None
    mark: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Replies of connections through an interface get a mark; `port` None: every port but 22."""

    interface: str
    mark: int
    protocol: Protocol = Protocol.TCP
    port: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Clamp:
    """The maximum segment size of TCP from `address`, in bytes."""

    address: IPAddress
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """All needs of a guest, in the order of making: sysctls first, addresses last.

    `no_tx_checksums`: interfaces. `default_gateways`: of the default routes, which xenlb does not
    set.
    """

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
        """Whether there are needs beside the hold."""
        return bool(
            self.sysctls or self.tunnels or self.rules or self.addresses or self.no_tx_checksums
        )


def settings_lines(needs: Needs) -> tuple[str, ...]:
    """The needs without the hold, as lines of words for guest.sh."""
    lines = [f"sysctl {sysctl.name} {sysctl.value}" for sysctl in needs.sysctls]
    lines += [
        f"tunnel {device.name} {device.kind} {device.module} {device.local or 'any'}"
        + " checksums" * device.checksums
        for device in needs.tunnels
    ]
    lines += [f"gue {_version(port.family)} {port.port}" for port in needs.decapsulations]
    lines += [
        f"route {r.gateway.version} {r.gateway} {r.interface} {r.table}" for r in needs.routes
    ]
    for rule in needs.rules:
        selector = f"from {rule.source}" if rule.source is not None else f"mark {rule.mark}"
        lines.append(f"rule {_version(rule.family)} {selector} {rule.table}")
    lines += [f"mark {m.interface} {m.protocol} {m.port or 'any'} {m.mark}" for m in needs.marks]
    lines += [f"clamp {clamp.address} {clamp.size}" for clamp in needs.clamps]
    lines += [f"no-tx-checksums {interface}" for interface in needs.no_tx_checksums]
    lines += [f"address {need.address} {need.device}" for need in needs.addresses]
    return tuple(lines)


def _version(family: Family) -> int:
    return 4 if family is Family.INET else 6
