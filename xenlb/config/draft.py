"""A service as the file writes it: every value typed, with its place; not yet judged as a whole.

Made by service_parser.py, judged by service_rules.py, turned into settings by build_settings.py.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

from xenlb.config.check_parser import ChecksDraft
from xenlb.config.cursor import Location, Value
from xenlb.config.guest_side import SideDraft
from xenlb.ipvs.table import (
    Family,
    Forwarding,
    IPAddress,
    Protocol,
    TunnelChecksum,
    TunnelType,
    family_of,
)
from xenlb.model.settings import DrainPolicy, IPNetwork, OnFailure, Port


class MemberDraft(NamedTuple):
    guest: Value[str | None]
    host: Value[IPAddress | None]
    address: Value[IPAddress | None]
    weight: Value[int | None]
    side: SideDraft | None
    network: Value[IPNetwork | None] = Value(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelDraft:
    """`section`: the key itself."""

    section: Value[None]
    type: Value[TunnelType]
    port: Value[int | None]
    checksum: Value[TunnelChecksum]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """`place` is that of the service's name. `netmask` is a prefix length, and whether it was
    written in IPv4's dots."""

    name: str
    place: Location
    address: Value[IPAddress | None]
    fwmark: Value[int | None]
    written_family: Value[Family]
    placed_ports: Value[tuple[tuple[Port, Location], ...]]
    scheduler: Value[str]
    flags: Value[tuple[str, ...]]
    one_packet: Value[bool]
    persistence: Value[int | None]
    netmask: Value[tuple[int, bool] | None]
    forwarding: Value[Forwarding]
    tunnel: TunnelDraft
    server_port: Value[int | None]
    weight: Value[int]
    upper_threshold: Value[int]
    lower_threshold: Value[int]
    check: ChecksDraft
    flush: Value[bool]
    on_failure: Value[OnFailure]
    keep_in_service: Value[float]
    slow_start: Value[float]
    sorry_server: Value[tuple[IPAddress, int | None] | None]
    drain: DrainPolicy
    servers: Value[tuple[MemberDraft, ...]]
    from_metadata: Value[bool]
    side: SideDraft

    @property
    def family(self) -> Family | None:
        """The address family of the service; None where it is not known."""
        if self.address.value is not None:
            return family_of(self.address.value)
        if self.fwmark.value is not None and not self.written_family.bad:
            return self.written_family.value
        return None

    @property
    def ports(self) -> tuple[Port, ...]:
        return tuple(port for port, _ in self.placed_ports.value)

    def ports_of(self, protocols: Collection[Protocol]) -> tuple[int, ...]:
        """The ports of the service that a probe by one of these protocols can be sent to."""
        if self.fwmark.given:
            return ()
        return tuple(
            port.number for port in self.ports if port.protocol in protocols and port.number > 0
        )

    @property
    def all_udp(self) -> bool:
        return self.fwmark.given or all(port.protocol is Protocol.UDP for port in self.ports)

    @property
    def one_port(self) -> int | None:
        """The one port of an address service that has one, and not port 0."""
        if self.fwmark.given or len(self.ports) != 1:
            return None
        return self.ports[0].number or None

    def place_of(self, *involved: Value[Any]) -> Location:
        """Where to report: what stands with the service itself before what is a default."""
        given = sorted(
            (value for value in involved if value.place is not None),
            key=lambda value: value.inherited,
        )
        place = given[0].place if given else None
        return self.place if place is None else place
