"""From the services of a guest to what it needs for them (needs.py): pure, a function a method."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TypeVar

from xenlb.guestside.requirements.hold import Hold
from xenlb.guestside.requirements.needs import (
    Clamp,
    Decapsulation,
    Mark,
    Needs,
    Route,
    Rule,
    ServiceAddress,
    Sysctl,
    TunnelDevice,
    TunnelKind,
)
from xenlb.ipvs.table import (
    AddressKey,
    Family,
    Forwarding,
    IPAddress,
    MarkKey,
    Protocol,
    TunnelChecksum,
    TunnelType,
    family_of,
)
from xenlb.model.guest_side import GuestSide, ReturnPath
from xenlb.model.settings import ServiceSettings

# Bytes that IPv4 and IPv6 put around a packet, and what lies between: GRE's header, or UDP's and
# GUE's; a checksum option adds four to GRE and eight to GUE (remote checksum offload).
OUTER = {Family.INET: 20, Family.INET6: 40}
TCP_HEADERS = {Family.INET: 40, Family.INET6: 60}
MTU = 1500

_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")


class NeedsError(Exception):
    """What the guest needs cannot be told; one sentence, and what to do."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceBinding:
    """A guest in one of its services. `address`: of the guest's servers there, None where it is not
    known; `gateways`: the director as seen from there, by family."""

    service: ServiceSettings
    side: GuestSide
    address: IPAddress | None
    gateways: Mapping[Family, IPAddress] = field(default_factory=dict)


def compile_needs(places: Iterable[ServiceBinding], *, hold: Hold | None = None) -> Needs:
    """What a guest in these services needs; equal needs of two services are one. Raises NeedsError
    where something is not known without which it would be wrong."""
    places = tuple(places)
    parts = [_of_place(place, _tables(places)) for place in places]
    tunnels = _union(part.tunnels for part in parts)
    for one, other in combinations(tunnels, 2):
        # The kernel tells GRE devices apart by their ends, not by whether they have checksums.
        if one.name == other.name:
            raise NeedsError(
                f"two services of the guest need {one.name} in two ways, and it is one device",
                hint="give them the same tunnel: and the same address of the guest",
            )
    return Needs(
        sysctls=_union(part.sysctls for part in parts),
        tunnels=tunnels,
        decapsulations=_union(part.decapsulations for part in parts),
        routes=_union(part.routes for part in parts),
        rules=_union(part.rules for part in parts),
        marks=_union(part.marks for part in parts),
        clamps=_union(part.clamps for part in parts),
        no_tx_checksums=_union(part.no_tx_checksums for part in parts),
        addresses=_union(part.addresses for part in parts),
        default_gateways=_union(part.default_gateways for part in parts),
        hold=hold,
    )


_T = TypeVar("_T")


def _union(parts: Iterable[Sequence[_T]]) -> tuple[_T, ...]:
    return tuple(dict.fromkeys(each for part in parts for each in part))


def _tables(places: Sequence[ServiceBinding]) -> Mapping[str, int]:
    """Of each interface its routing table: the first of `table` for its first interface by name.
    The same interfaces have the same tables, whatever else changes."""
    tables: dict[str, int] = {}
    for place in sorted(places, key=lambda place: place.side.interface):
        interface = place.side.interface
        if interface not in tables:
            number = place.side.table + _number(interface)
            while number in tables.values():
                number += 1
            tables[interface] = number
    return tables


def _number(interface: str) -> int:
    """At the end of its name: 1 of eth1; so that a second interface does not move the first one's
    table."""
    found = re.search(r"[0-9]{1,2}$", interface)
    return int(found[0]) if found else 0


def _of_place(place: ServiceBinding, tables: Mapping[str, int]) -> Needs:
    if not _INTERFACE.fullmatch(place.side.interface):
        raise NeedsError(
            f"{place.side.interface!r} is no name of an interface",
            hint="write guest-side: {interface: eth0}",
        )
    offloads = () if place.side.tx_checksums else (place.side.interface,)
    match place.service.forwarding:
        case Forwarding.GATEWAYING:
            return _gatewaying(place, offloads)
        case Forwarding.TUNNEL:
            return _tunnel(place, offloads)
        case _:
            return _masquerade(place, tables[place.side.interface], offloads)


def _service_addresses(place: ServiceBinding) -> tuple[IPAddress, ...]:
    service = place.service
    if service.address is not None:
        return (service.address,)
    if not place.side.addresses:
        raise NeedsError(
            f"service {service.name} is one by firewall mark, which does not tell its addresses",
            hint="write them: guest-side: {addresses: [VIP]}",
        )
    return tuple(a for a in place.side.addresses if family_of(a) is service.family)


# A guest that answered an ARP request for the service address, or said in one of its own that it
# has it, would take the clients of its segment away from the director. The kernel takes the larger
# of "all" and an interface's own value.
_SILENT = (
    Sysctl(name="net/ipv4/conf/all/arp_ignore", value=1),
    Sysctl(name="net/ipv4/conf/all/arp_announce", value=2),
)


def _silent(addresses: Iterable[IPAddress]) -> tuple[Sysctl, ...]:
    """IPv6 needs nothing: the kernel answers for an address only on the interface that has it."""
    return _SILENT if any(address.version == 4 for address in addresses) else ()


def _gatewaying(place: ServiceBinding, offloads: tuple[str, ...]) -> Needs:
    addresses = _service_addresses(place)
    return Needs(
        sysctls=_silent(addresses),
        addresses=tuple(ServiceAddress(address=each, device="lo") for each in addresses),
        no_tx_checksums=offloads,
    )


def _tunnel(place: ServiceBinding, offloads: tuple[str, ...]) -> Needs:
    service, addresses = place.service, _service_addresses(place)
    if place.address is None:
        raise NeedsError(
            f"the guest's address in service {service.name} is not known, and a tunnel ends there",
            hint="start the guest, or write the address at servers:",
        )
    device, decapsulation = _tunnel_end(place, place.address)
    sysctls = [*_silent(addresses)]
    if service.family is Family.INET:
        # What comes out of the tunnel has a source that is not routed there. The kernel takes the
        # larger of "all" and the device's own.
        sysctls += [
            Sysctl(name=f"net/ipv4/conf/{name}/rp_filter", value=0) for name in ("all", device.name)
        ]
    return Needs(
        sysctls=tuple(sysctls),
        tunnels=(device,),
        decapsulations=decapsulation,
        clamps=tuple(
            Clamp(address=each, size=_segment(place, place.address)) for each in addresses
        ),
        no_tx_checksums=offloads,
        addresses=tuple(ServiceAddress(address=each, device=device.name) for each in addresses),
    )


def _tunnel_end(
    place: ServiceBinding, server: IPAddress
) -> tuple[TunnelDevice, tuple[Decapsulation, ...]]:
    outer, tunnel = family_of(server), place.service.tunnel
    kind = tunnel.type if tunnel is not None else TunnelType.IPIP
    decapsulation: tuple[Decapsulation, ...] = ()
    if kind is TunnelType.GUE:
        assert tunnel is not None
        decapsulation = (Decapsulation(port=tunnel.port, family=outer),)
    if kind is TunnelType.GRE:
        assert tunnel is not None
        four = outer is Family.INET
        device = TunnelDevice(
            name="xenlb-gre" if four else "xenlb-gre6",
            kind=TunnelKind.GRE if four else TunnelKind.IP6GRE,
            module="ip_gre" if four else "ip6_gre",
            local=server,
            checksums=tunnel.checksum is not TunnelChecksum.NONE,
        )
    elif outer is Family.INET6:
        # The kernel's own ip6tnl0 takes IPv6 only.
        device = TunnelDevice(
            name="xenlb-tnl6", kind=TunnelKind.IP6TNL, module="ip6_tunnel", local=server
        )
    elif place.service.family is Family.INET6:
        device = TunnelDevice(name="sit0", kind=TunnelKind.SIT, module="sit")
    else:
        device = TunnelDevice(name="tunl0", kind=TunnelKind.IPIP, module="ipip")
    return device, decapsulation


def _segment(place: ServiceBinding, server: IPAddress) -> int:
    """What fits into a packet of 1500 bytes inside the tunnel."""
    tunnel = place.service.tunnel
    between = 0
    if tunnel is not None:
        checked = tunnel.checksum is not TunnelChecksum.NONE
        match tunnel.type:
            case TunnelType.GRE:
                between = 8 if checked else 4
            case TunnelType.GUE:
                between = 20 if tunnel.checksum is TunnelChecksum.REMOTE else 12
            case _:
                pass
    return MTU - OUTER[family_of(server)] - between - TCP_HEADERS[place.service.family]


def _masquerade(place: ServiceBinding, table: int, offloads: tuple[str, ...]) -> Needs:
    service, side = place.service, place.side
    gateway = place.gateways.get(service.family)
    if side.return_path is ReturnPath.GATEWAY:
        return Needs(
            default_gateways=() if gateway is None else (gateway,), no_tx_checksums=offloads
        )
    if gateway is None:
        raise NeedsError(
            f"the director's address on the network of the guest is not known ({service.name})",
            hint="write it: guest-side: {gateway: ADDRESS}",
        )
    routes = (Route(gateway=gateway, interface=side.interface, table=table),)
    if side.return_path is ReturnPath.RULE:
        if place.address is None:
            raise NeedsError(
                f"the guest's address in service {service.name} is not known, and its replies are "
                "routed by it",
                hint="start the guest, or write the address at servers:",
            )
        rule = Rule(family=service.family, table=table, source=place.address)
        return Needs(routes=routes, rules=(rule,), no_tx_checksums=offloads)
    return Needs(
        # The check of a packet's source (rp_filter) has to see where its reply would go.
        sysctls=(Sysctl(name="net/ipv4/conf/all/src_valid_mark", value=1),)
        if service.family is Family.INET
        else (),
        routes=routes,
        rules=(Rule(family=service.family, table=table, mark=table),),
        marks=tuple(_marks(service, interface=side.interface, mark=table)),
        no_tx_checksums=offloads,
    )


def _marks(service: ServiceSettings, *, interface: str, mark: int) -> Iterator[Mark]:
    for key in service.kernel_keys():
        match key:
            case AddressKey(protocol=protocol, port=port):
                yield Mark(
                    interface=interface,
                    mark=mark,
                    protocol=protocol,
                    port=service.server_port or port or None,
                )
            case MarkKey():
                for protocol in (Protocol.TCP, Protocol.UDP):
                    yield Mark(interface=interface, mark=mark, protocol=protocol)
