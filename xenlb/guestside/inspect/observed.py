"""The state of a guest's network, as values: what it has, not what it should have (needed/).

It is read from the guest's own words by parse.py, and held against the needs by verify.py. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from xenlb.ipvs.table import Family, IPAddress, Protocol
from xenlb.model.guest_side import Init, System

MAIN = 254
LOCAL = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """`flags`: what ip-address(8) says of it behind its scope: nodad, tentative, dadfailed."""

    interface: str
    address: IPAddress
    prefix: int
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedLink:
    """`ethernet`: it speaks ARP. `kind` as ip-link(8) names it, where that is known; of a tunnel,
    `mode`: what it takes (any, ip6ip6 and so on), and `local`."""

    name: str
    up: bool
    ethernet: bool = False
    mac: str | None = None
    kind: str | None = None
    mode: str | None = None
    local: IPAddress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultRoute:
    """One next hop of a default route. `usable`: it is not refused (unreachable, blackhole), nor is
    its link down."""

    family: Family
    table: int
    gateway: IPAddress | None = None
    interface: str | None = None
    metric: int = 0
    usable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRule:
    """A rule of ip-rule(8). `source` None: from all. `table` None: it refuses. `narrower`: there is
    more in it that a packet must be, which is not told here."""

    family: Family
    priority: int
    table: int | None
    source: IPAddress | None = None
    prefix: int = 0
    mark: int | None = None
    narrower: bool = False
    text: str = ""


class FilterAction(StrEnum):
    """What a packet filter's rule does."""

    MARK = "mark"  # it gives the connection a mark
    RESTORE = "restore"  # it gives the packet the mark of its connection
    CLAMP = "clamp"  # it lowers the segment size that TCP asks for


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterRule:
    """A rule of nftables or iptables, as far as it is of the kind that guest.sh makes. `hook`:
    prerouting, output and so on. `ports` None: of any; `protocol` None: of every one."""

    family: Family
    hook: str
    does: FilterAction
    value: int | None = None
    interface: str | None = None
    protocol: Protocol | None = None
    ports: tuple[range, ...] | None = None
    source: IPAddress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A service of the guest's init; `enabled`: it starts with the guest."""

    name: str
    active: bool
    enabled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSystem:
    """What configures an interface, and what is to be known for writing its files: networkd's file
    of it, netplan's id of it, NetworkManager's connection (also behind netplan), where there is
    one. `address_routes`: its route- file of network-scripts is written as ADDRESS0=."""

    system: System
    network_file: str | None = None
    netplan_id: str | None = None
    connection: str | None = None
    by_manager: bool = False
    address_routes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """`sysctls` by their paths below /proc/sys; `checksums`: of each interface that was asked for,
    is any completed by the card; `systems`: by interface. `programs`: those of observe.sh's list
    that the guest has: without them there is nothing to be seen."""

    root: bool = False
    programs: frozenset[str] = frozenset()
    addresses: tuple[Address, ...] = ()
    links: tuple[ObservedLink, ...] = ()
    default_routes: tuple[DefaultRoute, ...] = ()
    rules: tuple[PolicyRule, ...] = ()
    sysctls: Mapping[str, int] = field(default_factory=dict)
    filters: tuple[FilterRule, ...] = ()
    decapsulated: frozenset[tuple[Family, int]] = frozenset()
    checksums: Mapping[str, bool] = field(default_factory=dict)
    units: tuple[Unit, ...] = ()
    init: Init | None = None
    systems: Mapping[str, NetworkSystem] = field(default_factory=dict)
    network_manager: tuple[int, int] | None = None
    interfaces_d: bool = False
    distribution: str | None = None
    version: str | None = None

    def system_of(self, interface: str) -> System:
        """By the best evidence there is; `shell` where there is none."""
        found = self.systems.get(interface)
        return System.SHELL if found is None else found.system

    def link(self, name: str) -> ObservedLink | None:
        return next((link for link in self.links if link.name == name), None)

    def unit(self, name: str) -> Unit | None:
        return next((unit for unit in self.units if unit.name == name), None)

    def interface_of(self, address: IPAddress) -> str | None:
        """The interface that has the address, the first if several do."""
        return next((each.interface for each in self.addresses if each.address == address), None)
