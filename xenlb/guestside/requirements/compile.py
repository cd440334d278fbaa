"""Compiler from the services of a guest to its needs: pure, one function a forwarding method."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import combinations
from typing import Any

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

# Bytes of the outer IPv4 or IPv6 header. Between it and the packet are GRE's header, or UDP's and
# GUE's; a checksum option adds four bytes to GRE and eight to GUE (remote checksum offload).
OUTER = {Family.INET: 20, Family.INET6: 40}
TCP_HEADERS = {Family.INET: 40, Family.INET6: 60}
MTU = 1500

_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")


class NeedsError(Exception):
    """The needs of a guest cannot be determined: a sentence, and a hint what to do."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceBinding:
    """A guest in one of its services.

    `address`: of its server there, None if unknown. `gateways`: the director's addresses on the
    guest's network, by family.
    """

    service: ServiceSettings
    side: GuestSide
    address: IPAddress | None
    gateways: Mapping[Family, IPAddress] = field(default_factory=dict)


def compile_needs(bindings: Iterable[ServiceBinding], *, hold: Hold | None = None) -> Needs:
    """The needs of a guest in these services; equal needs of two services become one.

    Raises NeedsError for unknown addresses and for services that contradict each other.
    """
    bindings = tuple(bindings)
    parts = [_needs_of(binding, _tables(bindings)) for binding in bindings]
    kinds = [kind.name for kind in fields(Needs) if kind.name != "hold"]
    union: dict[str, tuple[Any, ...]] = {
        kind: tuple(dict.fromkeys(need for part in parts for need in getattr(part, kind)))
        for kind in kinds
    }
    for one, other in combinations(union["tunnels"], 2):
        # The kernel tells GRE devices apart by their ends, not by their checksums.
        if one.name == other.name:
            raise NeedsError(
                f"two services of the guest need {one.name} with different settings",
                hint="give them the same tunnel: and the same address of the guest",
            )
    return Needs(**union, hold=hold)


def _tables(bindings: Sequence[ServiceBinding]) -> Mapping[str, int]:
    """The routing table of each interface, by names of interfaces only: it never changes."""
    tables: dict[str, int] = {}
    for binding in sorted(bindings, key=lambda binding: binding.side.interface):
        interface = binding.side.interface
        if interface not in tables:
            number = binding.side.table + _number(interface)
            while number in tables.values():
                number += 1
            tables[interface] = number
    return tables


def _number(interface: str) -> int:
    """The number at the end of its name, so that adding an interface moves no table."""
    match = re.search(r"[0-9]{1,2}$", interface)
    return int(match[0]) if match else 0


def _needs_of(binding: ServiceBinding, tables: Mapping[str, int]) -> Needs:
    interface = binding.side.interface
    if not _INTERFACE.fullmatch(interface):
        raise NeedsError(
            f"{interface!r} is not the name of an interface",
            hint="set  guest-side: {interface: eth0}",
        )
    offloads = () if binding.side.tx_checksums else (interface,)
    match binding.service.forwarding:
        case Forwarding.GATEWAYING:
            return _gatewaying(binding, offloads)
        case Forwarding.TUNNEL:
            return _tunnel(binding, offloads)
        case _:
            return _masquerade(binding, tables[interface], offloads)


def _service_addresses(binding: ServiceBinding) -> tuple[IPAddress, ...]:
    service = binding.service
    if service.address is not None:
        return (service.address,)
    if not binding.side.addresses:
        raise NeedsError(
            f"service {service.name} is defined by a firewall mark; its addresses are unknown",
            hint="set  guest-side: {addresses: [VIP]}",
        )
    return tuple(a for a in binding.side.addresses if family_of(a) is service.family)


# A guest that answers ARP requests for the service address, or announces it in its own requests,
# takes the clients of its segment away from the director. The kernel uses the larger of "all" and
# an interface's own value.
_SILENT = (
    Sysctl(name="net/ipv4/conf/all/arp_ignore", value=1),
    Sysctl(name="net/ipv4/conf/all/arp_announce", value=2),
)


def _silent(addresses: Iterable[IPAddress]) -> tuple[Sysctl, ...]:
    """IPv6 needs no sysctl: the kernel answers only on the interface that has the address."""
    return _SILENT if any(address.version == 4 for address in addresses) else ()


def _gatewaying(binding: ServiceBinding, offloads: tuple[str, ...]) -> Needs:
    addresses = _service_addresses(binding)
    return Needs(
        sysctls=_silent(addresses),
        addresses=tuple(ServiceAddress(address=address, device="lo") for address in addresses),
        no_tx_checksums=offloads,
    )


def _tunnel(binding: ServiceBinding, offloads: tuple[str, ...]) -> Needs:
    service, addresses = binding.service, _service_addresses(binding)
    if binding.address is None:
        raise NeedsError(
            f"the guest's address in service {service.name} is unknown, and a tunnel ends there",
            hint="start the guest, or set its address at servers:",
        )
    device, decapsulation = _tunnel_end(binding, binding.address)
    sysctls = [*_silent(addresses)]
    if service.family is Family.INET:
        # The source of packets from the tunnel is not routed there. The kernel uses the larger of
        # "all" and the device's own value.
        sysctls += [
            Sysctl(name=f"net/ipv4/conf/{name}/rp_filter", value=0) for name in ("all", device.name)
        ]
    return Needs(
        sysctls=tuple(sysctls),
        tunnels=(device,),
        decapsulations=decapsulation,
        clamps=tuple(
            Clamp(address=address, size=_segment(binding, binding.address)) for address in addresses
        ),
        no_tx_checksums=offloads,
        addresses=tuple(ServiceAddress(address=a, device=device.name) for a in addresses),
    )


def _tunnel_end(
    binding: ServiceBinding, server: IPAddress
) -> tuple[TunnelDevice, tuple[Decapsulation, ...]]:
    outer, tunnel = family_of(server), binding.service.tunnel
    decapsulation: tuple[Decapsulation, ...] = ()
    if tunnel is not None and tunnel.type is TunnelType.GUE:
        decapsulation = (Decapsulation(port=tunnel.port, family=outer),)
    if tunnel is not None and tunnel.type is TunnelType.GRE:
        four = outer is Family.INET
        device = TunnelDevice(
            name="xenlb-gre" if four else "xenlb-gre6",
            kind=TunnelKind.GRE if four else TunnelKind.IP6GRE,
            module="ip_gre" if four else "ip6_gre",
            local=server,
            checksums=tunnel.checksum is not TunnelChecksum.NONE,
        )
    elif outer is Family.INET6:
        # The kernel's own ip6tnl0 accepts IPv6 only.
        device = TunnelDevice(
            name="xenlb-tnl6", kind=TunnelKind.IP6TNL, module="ip6_tunnel", local=server
        )
    elif binding.service.family is Family.INET6:
        device = TunnelDevice(name="sit0", kind=TunnelKind.SIT, module="sit")
    else:
        device = TunnelDevice(name="tunl0", kind=TunnelKind.IPIP, module="ipip")
    return device, decapsulation


def _segment(binding: ServiceBinding, server: IPAddress) -> int:
    """The largest TCP segment that fits through the tunnel in a packet of 1500 bytes."""
    tunnel = binding.service.tunnel
    between = 0
    if tunnel is not None and tunnel.type is TunnelType.GRE:
        between = 4 if tunnel.checksum is TunnelChecksum.NONE else 8
    elif tunnel is not None and tunnel.type is TunnelType.GUE:
        between = 20 if tunnel.checksum is TunnelChecksum.REMOTE else 12
    return MTU - OUTER[family_of(server)] - between - TCP_HEADERS[binding.service.family]


def _masquerade(binding: ServiceBinding, table: int, offloads: tuple[str, ...]) -> Needs:
    service, side = binding.service, binding.side
    gateway = binding.gateways.get(service.family)
    if side.return_path is ReturnPath.GATEWAY:
        return Needs(
            default_gateways=() if gateway is None else (gateway,), no_tx_checksums=offloads
        )
    if gateway is None:
        raise NeedsError(
            f"the director's address on the network of the guest is unknown ({service.name})",
            hint="set  guest-side: {gateway: ADDRESS}",
        )
    routes = (Route(gateway=gateway, interface=side.interface, table=table),)
    if side.return_path is ReturnPath.RULE:
        if binding.address is None:
            raise NeedsError(
                f"the guest's address in service {service.name} is unknown, and its replies are "
                "routed by it",
                hint="start the guest, or set its address at servers:",
            )
        rule = Rule(family=service.family, table=table, source=binding.address)
        return Needs(routes=routes, rules=(rule,), no_tx_checksums=offloads)
    return Needs(
        # The check of a packet's source (rp_filter) has to use the route of its reply.
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
