"""The network state of a guest, as values: what it has, not what it needs. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from xenlb.ipvs.table import Family, IPAddress, Protocol
from xenlb.model.guest_side import Init, System

MAIN = 254
LOCAL = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """`flags`: of ip-address(8): nodad, tentative, dadfailed."""

    interface: str
    address: IPAddress
    prefix: int
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedLink:
    """A network interface.

    `ethernet`: it uses ARP. `kind`: as in ip-link(8), where known. `mode`: the packets that a
    tunnel accepts (any, ip6ip6, …). `local`: the address at which a tunnel ends.
    """

    name: str
    up: bool
    ethernet: bool = False
    mac: str | None = None
    kind: str | None = None
    mode: str | None = None
    local: IPAddress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultRoute:
    """One next hop of a default route.

    `usable`: the route has no refusing type (unreachable, blackhole), and its link is up.
    """

    family: Family
    table: int
    gateway: IPAddress | None = None
    interface: str | None = None
    metric: int = 0
    usable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRule:
    """A rule of ip-rule(8).

    `source` None: any source. `table` None: the rule refuses packets. `narrower`: it has conditions
    that are not kept here.
    """

    family: Family
    priority: int
    table: int | None
    source: IPAddress | None = None
    prefix: int = 0
    mark: int | None = None
    narrower: bool = False
    text: str = ""


class FilterAction(StrEnum):
    """The effect of a packet filter rule."""

    MARK = "mark"  # sets the mark of the connection
    RESTORE = "restore"  # sets the packet's mark to that of its connection
    CLAMP = "clamp"  # lowers the maximum segment size of TCP


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterRule:
    """A rule of nftables or iptables that marks or clamps.

    `hook`: prerouting, output and so on. None in `ports`, `protocol`, `interface`, `source`: any.
    """

    family: Family
    hook: str
    action: FilterAction
    value: int | None = None
    interface: str | None = None
    protocol: Protocol | None = None
    ports: tuple[range, ...] | None = None
    source: IPAddress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A service of the guest's init system; `enabled`: it starts at boot."""

    name: str
    active: bool
    enabled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSystem:
    """The software that configures an interface, and facts needed to write files for it.

    `network_file`: the .network file that networkd uses, also behind netplan. `by_manager`:
    NetworkManager configures it, also behind netplan. `address_routes`: the route- file of
    network-scripts has the form ADDRESS0=.
    """

    system: System
    network_file: str | None = None
    by_manager: bool = False
    address_routes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The network state of a guest.

    `sysctls`: by path below /proc/sys. `checksums`: by interface, whether the card completes any.
    `systems`: by interface. `programs`: the ones of observe.sh's list that the guest has; the state
    that only a missing program shows is unknown.
    """

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

    def system_of(self, interface: str) -> System:
        """The software that configures an interface; `shell` where it is unknown."""
        known = self.systems.get(interface)
        return System.SHELL if known is None else known.system

    def link(self, name: str) -> ObservedLink | None:
        """The interface of that name; None if the guest has none."""
        return next((link for link in self.links if link.name == name), None)

    def unit(self, name: str) -> Unit | None:
        """The service of that name; None if it is not installed."""
        return next((unit for unit in self.units if unit.name == name), None)
