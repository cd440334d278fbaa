"""A service as the file states it.

Every value is typed and has its location; it is not yet checked against the others.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from xenlb.config import quantities, scalars
from xenlb.config.check_parser import ChecksDraft
from xenlb.config.config_node import ConfigNode
from xenlb.config.guest_side import GuestSideDraft
from xenlb.config.invalid_value import InvalidValue
from xenlb.config.keys import (
    BOOLEAN,
    PERCENT,
    PORT_NUMBER,
    ConfigValue,
    ValueKind,
    choice,
    duration,
    key,
    key_names,
    parsed,
    section,
    whole_number,
    word,
)
from xenlb.config.problem_report import Location
from xenlb.ipvs.table import (
    Family,
    Forwarding,
    IPAddress,
    Protocol,
    SchedulerFlags,
    TunnelChecksum,
    TunnelType,
    family_of,
)
from xenlb.model.settings import DrainPolicy, DrainUntil, IPNetwork, OnFailure, Port

# flag → the scheduler that reads it, and its bit
SCHEDULER_FLAGS: Final = {
    "sh-fallback": ("sh", SchedulerFlags.ONE),
    "sh-port": ("sh", SchedulerFlags.TWO),
    "mh-fallback": ("mh", SchedulerFlags.ONE),
    "mh-port": ("mh", SchedulerFlags.TWO),
}
_FORWARDING_ELSEWHERE: Final = {
    **dict.fromkeys(("nat", "masq", "masquerading"), Forwarding.MASQUERADE),
    **dict.fromkeys(("dr", "gate", "gateway", "direct", "droute"), Forwarding.GATEWAYING),
    **dict.fromkeys(("tun", "ipip", "tunneling"), Forwarding.TUNNEL),
}
# The kernel reports these methods; nothing can set them.
_READ_ONLY: Final = (Forwarding.LOCALNODE, Forwarding.BYPASS)


def _ports(node: ConfigNode) -> tuple[tuple[Port, Location], ...]:
    ports = node.parsed_items(
        lambda item: (item.parsed(scalars.port), item.location), "[25, 465/tcp]"
    )
    if not ports:
        raise InvalidValue("has no port", hint="write at least one: [25]")
    return ports


def _flags(node: ConfigNode) -> tuple[str, ...]:
    flags = node.parsed_items(_FLAG.parse, "[sh-fallback, sh-port]")
    if len(set(flags)) < len(flags):
        raise InvalidValue("a flag appears twice", hint="remove one")
    return flags


def _list(
    parse: Callable[[ConfigNode], Any], items: Any, **bounds: Any
) -> ValueKind[tuple[Any, ...]]:
    return ValueKind(parse, {"type": "array", **bounds, "items": items})


_FLAG: Final = word(SCHEDULER_FLAGS, "a flag")
_WEIGHT: Final = ValueKind(whole_number(0, 65535).parse, {"$ref": "#/$defs/weight"})
_THRESHOLD: Final = whole_number(0, 2**31 - 1)  # Linux 6.12 refuses more
_NETMASK: Final = ValueKind(
    lambda node: node.parsed(scalars.netmask),
    {
        "oneOf": [
            {"type": "integer", "minimum": 1, "maximum": 128},
            {"type": "string", "pattern": r"^([0-9]{1,3}(\.[0-9]{1,3}){3}|/?[0-9]{1,3})$"},
        ]
    },
)
_WEEK: Final = partial(duration, 0, 7 * quantities.DAY)
_DRAIN: Final = DrainPolicy()


@dataclass(slots=True, kw_only=True)
class MemberDraft:
    """An entry of `servers`. Not frozen: a large file makes ten thousand of them."""

    guest: ConfigValue[str | None] = key(
        ValueKind(ConfigNode.text, {"type": "string", "minLength": 1}),
        None,
        "libvirt's name of the guest (shell pattern) or its UUID.",
    )
    host: ConfigValue[IPAddress | None] = key(
        parsed(scalars.server_address), None, "The IP address of a machine that is no guest here."
    )
    address: ConfigValue[IPAddress | None] = key(
        parsed(scalars.server_address), None, "The guest's address. Default: discovered."
    )
    network: ConfigValue[IPNetwork | None] = key(
        parsed(scalars.network),
        None,
        "The network in which the guest's address is discovered.",
    )
    weight: ConfigValue[int | None] = key(_WEIGHT, None, "")
    side: GuestSideDraft | None = section("guest-side", name="guest-side")


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelDraft:
    """The keys of `tunnel`. `written`: the key `tunnel` itself."""

    written: ConfigValue[None]
    type: ConfigValue[TunnelType] = key(choice(TunnelType), TunnelType.IPIP, "")
    port: ConfigValue[int | None] = key(PORT_NUMBER, None, "gue only.")
    checksum: ConfigValue[TunnelChecksum] = key(
        choice(TunnelChecksum), TunnelChecksum.NONE, "csum: gue and gre; remcsum: gue."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainDraft:
    """The keys of `drain`."""

    timeout: ConfigValue[float] = key(
        _WEEK(), _DRAIN.timeout, "How long the server's connections may take to end."
    )
    until: ConfigValue[DrainUntil] = key(
        choice(DrainUntil),
        _DRAIN.until,
        "established: over with the last established connection; all: with the last entry.",
    )
    udp: ConfigValue[float] = key(
        _WEEK(), _DRAIN.udp, "How long a UDP server stays in the table with weight 0."
    )
    shutdown_grace: ConfigValue[float] = key(
        _WEEK(),
        _DRAIN.shutdown_grace,
        "After this time, a guest that ignores a request to shut down is put back.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceDraft:
    """The keys of a service. `location` is that of its name.

    `netmask` is a prefix length, and whether the file has it in IPv4's dots.
    """

    name: str
    location: Location
    address: ConfigValue[IPAddress | None] = key(
        parsed(scalars.service_address),
        None,
        "The address that clients connect to. Either this or fwmark.",
    )
    fwmark: ConfigValue[int | None] = key(
        whole_number(1, 2**32 - 1),
        None,
        "The firewall mark of the packets that belong to the service. Either this or address.",
    )
    written_family: ConfigValue[Family] = key(
        choice(Family),
        Family.INET,
        "The address family of a fwmark service. Default: inet.",
        name="family",
    )
    placed_ports: ConfigValue[tuple[tuple[Port, Location], ...]] = key(
        _list(_ports, {"$ref": "#/$defs/port"}, minItems=1, uniqueItems=True),
        (),
        "NUMBER[/tcp|udp|sctp]; 0, with persistence, is every port.",
        name="ports",
    )
    scheduler: ConfigValue[str] = key(
        word(scalars.SCHEDULERS, "a scheduler of the kernel"),
        "wlc",
        "How new connections are distributed. Default: wlc.",
    )
    flags: ConfigValue[tuple[str, ...]] = key(
        _list(_flags, _FLAG.schema, uniqueItems=True),
        (),
        "For the schedulers sh and mh.",
        name="scheduler-flags",
    )
    one_packet: ConfigValue[bool] = key(
        BOOLEAN, False, "UDP only: every packet is scheduled on its own."
    )
    persistence: ConfigValue[int | None] = key(
        ValueKind(lambda node: node.parsed(quantities.persistence), {"$ref": "#/$defs/duration"}),
        None,
        "How long a client returns to the same server: whole seconds, at most 31 days. Default:"
        " none.",
    )
    netmask: ConfigValue[tuple[int, bool] | None] = key(
        _NETMASK,
        None,
        "Clients of one such network count as one: a netmask, or a prefix length.",
        name="persistence-netmask",
    )
    forwarding: ConfigValue[Forwarding] = key(
        choice(Forwarding, also=_FORWARDING_ELSEWHERE, without=_READ_ONLY),
        Forwarding.MASQUERADE,
        "How packets reach the servers. Default: masquerade.",
    )
    tunnel: TunnelDraft = section("tunnel")
    server_port: ConfigValue[int | None] = key(
        PORT_NUMBER, None, "The servers' port; with masquerade and one port only."
    )
    weight: ConfigValue[int] = key(_WEIGHT, 1, "")
    upper_threshold: ConfigValue[int] = key(
        _THRESHOLD, 0, "A server with more connections gets no new ones. 0: no threshold."
    )
    lower_threshold: ConfigValue[int] = key(
        _THRESHOLD, 0, "With fewer connections than this, the server gets new ones again."
    )
    check: ChecksDraft = section("check")
    flush: ConfigValue[bool] = key(
        BOOLEAN,
        False,
        "Delete a server's connection tracking entries when its check fails and it is removed.",
    )
    on_failure: ConfigValue[OnFailure] = key(
        choice(OnFailure),
        OnFailure.REMOVE,
        "remove: a failed server leaves the table; quiesce: it stays with weight 0.",
    )
    keep_in_service: ConfigValue[float] = key(
        PERCENT, 0.0, "The share of the weight that failing checks always leave in service."
    )
    slow_start: ConfigValue[float] = key(
        duration(0), 0.0, "The time in which a new server reaches its weight."
    )
    sorry_server: ConfigValue[tuple[IPAddress, int | None] | None] = key(
        parsed(scalars.endpoint),
        None,
        "Serves while no other server does: ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT.",
    )
    drain: DrainPolicy = section("drain")
    servers: ConfigValue[tuple[MemberDraft, ...]] = key(
        _list(ConfigNode.items, {"$ref": "#/$defs/server"}),  # type: ignore[arg-type]
        (),
        "Guests of this host, and hosts that are no guests here.",
    )
    from_metadata: ConfigValue[bool] = key(
        BOOLEAN, False, "Guests may also join by their domain's <metadata>."
    )
    side: GuestSideDraft = section("guest-side", name="guest-side")

    @property
    def family(self) -> Family | None:
        """The address family of the service; None if it is not known."""
        if self.address.value is not None:
            return family_of(self.address.value)
        if self.fwmark.value is not None and not self.written_family.bad:
            return self.written_family.value
        return None

    @property
    def ports(self) -> tuple[Port, ...]:
        """The ports in file order, without locations; those that are listed twice too."""
        return tuple(port for port, _ in self.placed_ports.value)

    def ports_of(self, protocols: Collection[Protocol]) -> tuple[int, ...]:
        """The ports of the service that a probe by one of these protocols can use."""
        if self.fwmark.given:
            return ()
        return tuple(
            port.number for port in self.ports if port.protocol in protocols and port.number > 0
        )

    @property
    def all_udp(self) -> bool:
        """Whether all ports are UDP; True for a fwmark service, whose ports are not known."""
        return self.fwmark.given or all(port.protocol is Protocol.UDP for port in self.ports)

    @property
    def one_port(self) -> int | None:
        """The port of an address service with a single port other than 0."""
        if self.fwmark.given or len(self.ports) != 1:
            return None
        return self.ports[0].number or None

    def location_of(self, *involved: ConfigValue[Any]) -> Location:
        """Where to report a problem: the service's own keys before those of `defaults`."""
        given = [value for value in involved if value.location is not None]
        given.sort(key=lambda value: value.inherited)
        location = given[0].location if given else None
        return self.location if location is None else location


SERVICE_KEYS: Final = key_names(ServiceDraft)
# A service's identity and servers have no common default.
OWN_KEYS: Final = ("address", "fwmark", "ports", "servers")
