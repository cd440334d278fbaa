"""The configuration as values, checked and with defaults filled in.

Durations are seconds (float), weights and thresholds integers as the kernel takes them.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network
from uuid import UUID

from xenlb.ipvs.table import (
    AddressKey,
    Family,
    Forwarding,
    IPAddress,
    MarkKey,
    Protocol,
    SchedulerFlags,
    ServerKey,
    ServiceKey,
    Tunnel,
)
from xenlb.model.checks import Asks, Tcp
from xenlb.model.guest_side import GuestSide
from xenlb.model.problem import Problem

IPNetwork = IPv4Network | IPv6Network

PATTERN = frozenset("*?[")  # a name with one of these is a shell pattern

# In place of a URI: libvirt chooses the hypervisor itself.
OWN_CHOICE = "default"


class AddressPolicy(StrEnum):
    """Whether the agent puts the service addresses on the director's interface."""

    MANAGE = "manage"
    LEAVE = "leave"


class SysctlPolicy(StrEnum):
    """What the agent does about the sysctls that its services need."""

    IPVS = "ipvs"  # sets net.ipv4.vs.*, reports the rest
    CHECK = "check"  # reports only
    APPLY = "apply"  # sets and persists all


class OnFailure(StrEnum):
    """What happens to a server that fails its check."""

    REMOVE = "remove"
    QUIESCE = "quiesce"


class DrainUntil(StrEnum):
    """When a drain is over: no established connection left, or no entry at all."""

    ESTABLISHED = "established"
    ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A port of a service; number 0 is every port (persistent services only)."""

    number: int
    protocol: Protocol = Protocol.TCP


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """How a server is probed.

    `type`: its name in the configuration and in messages. `port`: the probed port if it is not the
    server's own. `via_vip`: the probe goes to the service address, through the server.
    `flap_damping`: how long a server that fails repeatedly is held back at most; 0: never.
    """

    type: str = "tcp"
    asks: Asks = field(default_factory=Tcp)
    interval: float = 5.0
    timeout: float = 3.0
    rise: int = 1
    fall: int = 3
    port: int | None = None
    via_vip: bool = False
    flap_damping: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainPolicy:
    """How a guest is drained.

    `timeout`: how long connections may take to end. `udp`: the time for UDP flows, whose end cannot
    be seen. `shutdown_grace`: how long a guest that was asked to shut down may still run before it
    returns to service.
    """

    timeout: float = 60.0
    until: DrainUntil = DrainUntil.ESTABLISHED
    udp: float = 5.0
    shutdown_grace: float = 300.0


_UUID = re.compile("-?".join(f"[0-9a-f]{{{digits}}}" for digits in (8, 4, 4, 4, 12)), re.IGNORECASE)


@lru_cache(maxsize=4096)
def uuid_text(text: str) -> str | None:
    """Return a UUID in lower case and with dashes; None: the text is a name or a pattern.

    A text in the form of a UUID, with or without dashes, is never a name.
    """
    return str(UUID(text)) if _UUID.fullmatch(text) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One entry of `servers`: a guest (libvirt name pattern or UUID) or a host (address).

    `address`: of a guest, None if it is discovered, then within `network` if there is one. `side`:
    None if the service's applies.
    """

    guest: str | None = None
    host: IPAddress | None = None
    address: IPAddress | None = None
    weight: int | None = None
    side: GuestSide | None = None
    network: IPNetwork | None = None

    @property
    def is_pattern(self) -> bool:
        """Whether it contains wildcards, which may also be characters of a guest's name."""
        return (
            self.guest is not None
            and uuid_text(self.guest) is None
            and not PATTERN.isdisjoint(self.guest)
        )

    def names(self, name: str, uuid: str) -> bool:
        """Return whether this entry names that guest, other than by a pattern."""
        if self.guest is None:
            return False
        meant = uuid_text(self.guest)
        return self.guest == name if meant is None else meant == uuid

    def matches(self, name: str, uuid: str) -> bool:
        """Return whether this entry fits that guest; `uuid` in lower case, with dashes."""
        if self.guest is None or uuid_text(self.guest) is not None:
            return self.names(name, uuid)
        return self.guest == name or fnmatchcase(name, self.guest)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """A service of the configuration: one kernel service per port, or one for its mark.

    Exactly one of `address` and `fwmark` is set; with `fwmark`, `ports` is empty. `family`: of the
    address, or the mark's. `prefix`: the netmask of persistence as a prefix length. `checks`: all
    of them must pass, or one with `any_check`; without checks a server is always up. `flush`: the
    conntrack entries of a failed server are deleted. `keep_in_service`: 0.0 … 1.0. Port 0 of
    `sorry_server`: the port of each kernel service.
    """

    name: str
    address: IPAddress | None = None
    fwmark: int | None = None
    family: Family = Family.INET
    ports: tuple[Port, ...] = ()
    scheduler: str = "wlc"
    flags: SchedulerFlags = SchedulerFlags.NONE
    one_packet: bool = False
    persistence: int | None = None
    prefix: int = 32
    forwarding: Forwarding = Forwarding.MASQUERADE
    tunnel: Tunnel | None = None
    server_port: int | None = None
    weight: int = 1
    upper_threshold: int = 0
    lower_threshold: int = 0
    checks: tuple[Check, ...] = (Check(),)
    any_check: bool = False
    flush: bool = False
    on_failure: OnFailure = OnFailure.REMOVE
    keep_in_service: float = 0.0
    slow_start: float = 0.0
    sorry_server: tuple[IPAddress, int] | None = None
    drain: DrainPolicy = field(default_factory=DrainPolicy)
    servers: tuple[Member, ...] = ()
    from_metadata: bool = False
    side: GuestSide = field(default_factory=GuestSide)

    def __hash__(self) -> int:
        """Cheap, as every guest looks up its services; names are unique in a configuration."""
        return hash(self.name)

    def kernel_keys(self) -> tuple[ServiceKey, ...]:
        """Return its kernel services, in the order of its ports."""
        if self.address is None:
            assert self.fwmark is not None
            return (MarkKey(family=self.family, mark=self.fwmark),)
        return tuple(
            AddressKey(protocol=port.protocol, address=self.address, port=port.number)
            for port in self.ports
        )

    def sorry_key(self, key: ServiceKey) -> ServerKey | None:
        """Return the sorry server of one of its kernel services."""
        if self.sorry_server is None:
            return None
        address, port = self.sorry_server
        own = key.port if isinstance(key, AddressKey) else 0
        return ServerKey(address=address, port=port or own)


@dataclass(frozen=True, slots=True, kw_only=True)
class Director:
    """The `director` settings. `interface` gets the service addresses.

    None only if no service has an address, or `addresses` is LEAVE.
    """

    interface: str | None = None
    addresses: AddressPolicy = AddressPolicy.MANAGE
    sysctls: SysctlPolicy = SysctlPolicy.IPVS


KEEPALIVE = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A whole configuration.

    `uris` empty: libvirt's own default. `keepalive`: seconds without a reply after which a libvirtd
    counts as lost. `networks`: where discovered addresses of guests may lie; empty: in all networks
    of this host. `listen`: where guests report their shutdown by TCP. `warnings`: valid settings
    that are likely mistakes.
    """

    uris: tuple[str, ...] = ()
    keepalive: float = KEEPALIVE
    networks: tuple[IPNetwork, ...] = ()
    listen: tuple[IPAddress, int] | None = None
    director: Director = field(default_factory=Director)
    services: tuple[ServiceSettings, ...] = ()
    warnings: tuple[Problem, ...] = field(default=(), compare=False)

    def service_addresses(self) -> frozenset[IPAddress]:
        """Return the virtual addresses of all services; those by fwmark have none."""
        return frozenset(s.address for s in self.services if s.address is not None)


def needed_uris(settings: Settings) -> tuple[str, ...]:
    """Return the libvirts to connect to.

    None if no service can have guests, so that xenlb also works on a host without libvirt.
    """
    guests = any(
        service.from_metadata or any(member.guest is not None for member in service.servers)
        for service in settings.services
    )
    return (settings.uris or (OWN_CHOICE,)) if guests else ()


def to_open(uri: str) -> str | None:
    """Return the URI for libvirt's own functions, None for its default."""
    return None if uri == OWN_CHOICE else uri
