"""What the keys of a service mean together, and the services beside each other.

One rule a function. It says nothing where a value that it needs is bad already. Defaults that have
no meaning for the service are gone before (build_settings.py).
"""

from collections.abc import Callable, Collection, Iterator
from typing import Final

from xenlb.config import check_rules, guest_side
from xenlb.config.cursor import Location, Report
from xenlb.config.draft import Draft
from xenlb.config.service_parser import SCHEDULER_FLAGS
from xenlb.ipvs.table import (
    AddressKey,
    Family,
    Forwarding,
    IPAddress,
    MarkKey,
    ServiceKey,
    TunnelChecksum,
    TunnelType,
    family_of,
)
from xenlb.model.settings import Port

# One service


def identity(draft: Draft, report: Report) -> None:
    if draft.address.given and draft.fwmark.given:
        report.add(
            draft.place_of(draft.fwmark),
            "address and fwmark exclude each other",
            "remove one, or make two services",
        )
    elif not draft.address.given and not draft.fwmark.given:
        report.add(
            draft.place, "has neither address nor fwmark", "add address: VIP or fwmark: NUMBER"
        )
    elif draft.address.given and not draft.placed_ports.given:
        report.add(draft.place, "has an address but no ports", "add ports: [NUMBER]")
    if draft.fwmark.given and draft.placed_ports.given and not draft.address.given:
        report.add(
            draft.place_of(draft.placed_ports),
            "a fwmark service has no ports",
            "remove them; the firewall rule that sets the mark chooses the ports",
        )
    if draft.written_family.own and not draft.fwmark.given:
        report.add(
            draft.place_of(draft.written_family),
            "only a fwmark service has a family",
            "remove it; the address says it",
        )


def port_list(draft: Draft, report: Report) -> None:
    seen: dict[Port, Location] = {}
    for port, place in draft.placed_ports.value:
        if port in seen:
            report.add(
                place,
                f"{port.number}/{port.protocol} stands here twice",
                f"it is {seen[port].path} already: remove one",
            )
        seen.setdefault(port, place)
        if port.number == 0 and not draft.persistence.given:
            report.add(
                place,
                "port 0 (every port) needs persistence",
                "add persistence: 300s, or write a port from 1 to 65535",
            )


def server_port(draft: Draft, report: Report) -> None:
    value = draft.server_port
    if not value.given or value.bad:
        return
    place = draft.place_of(value)
    if draft.fwmark.given:
        report.add(
            place, "a fwmark service has no server-port", "remove it: packets keep their port"
        )
    elif draft.forwarding.value is not Forwarding.MASQUERADE and not draft.forwarding.bad:
        report.add(
            place,
            f"{draft.forwarding.value} cannot change the port",
            "remove server-port, or use forwarding: masquerade",
        )
    elif not draft.forwarding.bad and len(draft.placed_ports.value) > 1:
        report.add(
            place,
            f"server-port would send {len(draft.placed_ports.value)} ports to one",
            "make a service of each port",
        )
    elif any(port.number == 0 for port in draft.ports):
        report.add(
            place, "server-port would send every port to one", "remove it, or write the port"
        )


def persistence(draft: Draft, report: Report) -> None:
    value = draft.netmask
    if not value.given or value.bad or value.value is None:
        return
    place = draft.place_of(value)
    prefix, dotted = value.value
    if not draft.persistence.given:
        report.add(
            place, "a netmask without persistence has no effect", "add persistence, or remove it"
        )
    elif draft.family is Family.INET6 and dotted:
        report.add(place, "an IPv4 netmask for an IPv6 service", "write a prefix length: 64")
    elif draft.family is Family.INET and prefix > 32:
        report.add(place, f"prefix length {prefix} for an IPv4 service", "write 1 … 32")


def one_packet(draft: Draft, report: Report) -> None:
    if draft.one_packet.value and not draft.all_udp and not draft.placed_ports.bad:
        report.add(
            draft.place_of(draft.one_packet),
            "one-packet scheduling is for UDP only",
            "write the ports as 53/udp, or remove it",
        )


def scheduler_flags(draft: Draft, report: Report) -> None:
    if draft.scheduler.bad:
        return
    for flag in draft.flags.value:
        scheduler = SCHEDULER_FLAGS[flag][0]
        if scheduler != draft.scheduler.value:
            report.add(
                draft.place_of(draft.flags),
                f"{flag} has no meaning for scheduler {draft.scheduler.value}",
                f"remove it, or use scheduler: {scheduler}",
            )


def tunnel(draft: Draft, report: Report) -> None:
    part = draft.tunnel
    if draft.forwarding.value is not Forwarding.TUNNEL:
        if part.section.own and not draft.forwarding.bad:
            report.add(
                draft.place_of(part.section),
                f"tunnel has no meaning for forwarding {draft.forwarding.value}",
                "remove it, or use forwarding: tunnel",
            )
        return
    if part.type.bad:
        return
    kind = part.type.value
    if kind is TunnelType.GUE and not part.port.given:
        report.add(draft.place_of(part.type), "gue needs a port", "add port: 6080")
    if kind is not TunnelType.GUE and part.port.given:
        report.add(draft.place_of(part.port), f"{kind} has no port", "remove it, or use type: gue")
    checksum = part.checksum.value
    if checksum is TunnelChecksum.REMOTE and kind is not TunnelType.GUE:
        report.add(
            draft.place_of(part.checksum), f"{kind} has no remcsum", "it is for type: gue only"
        )
    if checksum is TunnelChecksum.CHECKSUM and kind is TunnelType.IPIP:
        report.add(
            draft.place_of(part.checksum), "ipip has no checksum", "it is for gue and gre only"
        )


def thresholds(draft: Draft, report: Report) -> None:
    lower, upper = draft.lower_threshold, draft.upper_threshold
    if upper.bad or lower.value <= upper.value:
        return
    # ip_vs_add_dest() answers ERANGE, also where the upper one is 0 (none).
    if upper.given:
        what = f"lower-threshold {lower.value} is above upper-threshold {upper.value}"
        hint = "the lower one is at most the upper one"
    else:
        what = "a lower-threshold without an upper one"
        hint = f"add upper-threshold: {2 * lower.value}, or remove it"
    report.add(draft.place_of(lower, upper), what, hint)


def sorry_server(draft: Draft, report: Report) -> None:
    value = draft.sorry_server
    if value.value is None or draft.forwarding.bad or draft.placed_ports.bad:
        return
    place = draft.place_of(value)
    address, port = value.value
    _same_family(draft, address, place, report)
    if port is None:
        return
    own = draft.one_port
    if own is None and (draft.fwmark.given or draft.ports):
        report.add(
            place,
            f"all ports of the service would go to port {port}",
            "leave the port out: each port goes to the same port there",
        )
    elif own is not None and draft.forwarding.value is not Forwarding.MASQUERADE and port != own:
        report.add(
            place,
            f"{draft.forwarding.value} cannot change port {own} to {port}",
            "leave the port out, or use forwarding: masquerade",
        )


def servers(draft: Draft, report: Report) -> None:
    addresses: dict[IPAddress, Location] = {}
    guests: dict[str, Location] = {}
    for member in draft.servers.value:
        for value in (member.host, member.address):
            if value.value is None or value.place is None:
                continue
            if not draft.forwarding.bad:
                _same_family(draft, value.value, value.place, report)
            if value.value in addresses:
                report.add(
                    value.place,
                    f"{value.value} is a server of this service already",
                    f"it is {addresses[value.value].path}: remove one",
                )
            addresses.setdefault(value.value, value.place)
        guest = member.guest
        if guest.value is not None and guest.place is not None and not member.address.given:
            if guest.value in guests:
                report.add(
                    guest.place,
                    f"guest {guest.value} is in this service already",
                    f"it is {guests[guest.value].path}: remove one",
                )
            guests.setdefault(guest.value, guest.place)


def _same_family(draft: Draft, address: IPAddress, place: Location, report: Report) -> None:
    """ip_vs_genl_set_cmd() answers EINVAL to mixed families, except for tunnels."""
    own, other = draft.family, family_of(address)
    if own is None or own is other or draft.forwarding.value is Forwarding.TUNNEL:
        return
    names = {Family.INET: "IPv4", Family.INET6: "IPv6"}
    report.add(
        place,
        f"{address} is {names[other]}, but the service is {names[own]}",
        f"{draft.forwarding.value} keeps the family; only a tunnel can change it",
    )


def guest_side_rules(draft: Draft, report: Report) -> None:
    if draft.forwarding.bad:
        return
    members = [member.side for member in draft.servers.value if member.side is not None]
    for part in (draft.side, *members):
        guest_side.report_problems(
            part, report, forwarding=draft.forwarding.value, by_mark=draft.fwmark.given
        )


RULES: Final[tuple[Callable[[Draft, Report], None], ...]] = (
    identity,
    port_list,
    server_port,
    persistence,
    one_packet,
    scheduler_flags,
    tunnel,
    thresholds,
    check_rules.check,
    check_rules.flush,
    sorry_server,
    servers,
    guest_side_rules,
)


# All services


def unique_keys(drafts: Collection[Draft], report: Report) -> None:
    """A kernel service belongs to one service of the configuration."""
    seen: dict[ServiceKey, tuple[str, Location]] = {}
    for draft in drafts:
        for key, place in dict(_keys(draft)).items():
            if key in seen:
                name, first = seen[key]
                report.add(
                    place,
                    f"{_show(key)} is service {name} already",
                    f"see line {first.line}: remove it there or in {draft.name}",
                )
            seen.setdefault(key, (draft.name, place))


def _keys(draft: Draft) -> Iterator[tuple[ServiceKey, Location]]:
    address, mark = draft.address.value, draft.fwmark.value
    if address is not None and not draft.fwmark.given:
        for port, place in draft.placed_ports.value:
            yield AddressKey(protocol=port.protocol, address=address, port=port.number), place
    if mark is not None and not draft.address.given and not draft.written_family.bad:
        yield MarkKey(family=draft.written_family.value, mark=mark), draft.place_of(draft.fwmark)


def _show(key: ServiceKey) -> str:
    match key:
        case AddressKey(protocol=protocol, address=address, port=port):
            return f"{protocol} port {port} of {address}"
        case MarkKey(family=family, mark=mark):
            return f"fwmark {mark} ({family})"


def servers_are_no_vips(drafts: Collection[Draft], report: Report) -> None:
    """A server with a service address would send its requests round in circles."""
    vips: dict[IPAddress, str] = {}
    for draft in drafts:
        if draft.address.value is not None:
            vips.setdefault(draft.address.value, draft.name)
    for draft in drafts:
        found: list[tuple[IPAddress, Location]] = [
            (value.value, value.place)
            for member in draft.servers.value
            for value in (member.host, member.address)
            if value.value is not None and value.place is not None
        ]
        if draft.sorry_server.value is not None:
            found.append((draft.sorry_server.value[0], draft.place_of(draft.sorry_server)))
        for address, place in found:
            if address in vips:
                report.add(
                    place,
                    f"{address} is the address of service {vips[address]}",
                    "write the server's own address",
                )
