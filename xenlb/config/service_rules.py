"""Rules about the keys of a service together, and about services together.

One rule a function. A rule is silent if a value that it needs is refused already. Defaults without
meaning for the service have been dropped before.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Final

from xenlb.config import check_rules, guest_side
from xenlb.config.draft import SCHEDULER_FLAGS, ServiceDraft
from xenlb.config.problem_report import Location, ProblemReport
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


def _identity(draft: ServiceDraft, report: ProblemReport) -> None:
    if draft.address.given and draft.fwmark.given:
        report.add(
            draft.location_of(draft.fwmark),
            "address and fwmark exclude each other",
            "remove one, or make two services",
        )
    elif not draft.address.given and not draft.fwmark.given:
        report.add(
            draft.location, "has neither address nor fwmark", "add address: VIP or fwmark: NUMBER"
        )
    elif draft.address.given and not draft.placed_ports.given:
        report.add(draft.location, "has an address but no ports", "add ports: [NUMBER]")
    if draft.fwmark.given and draft.placed_ports.given and not draft.address.given:
        report.add(
            draft.location_of(draft.placed_ports),
            "a fwmark service has no ports",
            "remove them; the firewall rule that sets the mark chooses the ports",
        )
    if draft.written_family.own and not draft.fwmark.given:
        report.add(
            draft.location_of(draft.written_family),
            "only a fwmark service has a family",
            "remove it; the address has one",
        )


def _port_list(draft: ServiceDraft, report: ProblemReport) -> None:
    first: dict[Port, Location] = {}
    for port, location in draft.placed_ports.value:
        if port in first:
            report.add(
                location,
                f"{port.number}/{port.protocol} appears twice",
                f"it is {first[port].path} already: remove one",
            )
        first.setdefault(port, location)
        if port.number == 0 and not draft.persistence.given:
            report.add(
                location,
                "port 0 (every port) needs persistence",
                "add persistence: 300s, or write a port from 1 to 65535",
            )


def _server_port(draft: ServiceDraft, report: ProblemReport) -> None:
    value = draft.server_port
    if not value.given or value.bad:
        return
    location = draft.location_of(value)
    if draft.fwmark.given:
        report.add(
            location, "a fwmark service has no server-port", "remove it: packets keep their port"
        )
    elif draft.forwarding.value is not Forwarding.MASQUERADE and not draft.forwarding.bad:
        report.add(
            location,
            f"{draft.forwarding.value} cannot change the port",
            "remove server-port, or use forwarding: masquerade",
        )
    elif not draft.forwarding.bad and len(draft.placed_ports.value) > 1:
        report.add(
            location,
            f"server-port would send {len(draft.placed_ports.value)} ports to one",
            "make a service of each port",
        )
    elif any(port.number == 0 for port in draft.ports):
        report.add(
            location, "server-port would send every port to one", "remove it, or write the port"
        )


def _persistence(draft: ServiceDraft, report: ProblemReport) -> None:
    value = draft.netmask
    if not value.given or value.bad or value.value is None:
        return
    location = draft.location_of(value)
    prefix, dotted = value.value
    if not draft.persistence.given:
        report.add(
            location, "a netmask without persistence has no effect", "add persistence, or remove it"
        )
    elif draft.family is Family.INET6 and dotted:
        report.add(location, "an IPv4 netmask for an IPv6 service", "write a prefix length: 64")
    elif draft.family is Family.INET and prefix > 32:
        report.add(location, f"prefix length {prefix} for an IPv4 service", "write 1 … 32")


def _one_packet(draft: ServiceDraft, report: ProblemReport) -> None:
    if draft.one_packet.value and not draft.all_udp and not draft.placed_ports.bad:
        report.add(
            draft.location_of(draft.one_packet),
            "one-packet scheduling is for UDP only",
            "write the ports as 53/udp, or remove it",
        )


def _scheduler_flags(draft: ServiceDraft, report: ProblemReport) -> None:
    if draft.scheduler.bad:
        return
    for flag in draft.flags.value:
        scheduler = SCHEDULER_FLAGS[flag][0]
        if scheduler != draft.scheduler.value:
            report.add(
                draft.location_of(draft.flags),
                f"{flag} has no meaning for scheduler {draft.scheduler.value}",
                f"remove it, or use scheduler: {scheduler}",
            )


def _tunnel(draft: ServiceDraft, report: ProblemReport) -> None:
    part = draft.tunnel
    if draft.forwarding.value is not Forwarding.TUNNEL:
        if part.written.own and not draft.forwarding.bad:
            report.add(
                draft.location_of(part.written),
                f"tunnel has no meaning for forwarding {draft.forwarding.value}",
                "remove it, or use forwarding: tunnel",
            )
        return
    if part.type.bad:
        return
    kind = part.type.value
    if kind is TunnelType.GUE and not part.port.given:
        report.add(draft.location_of(part.type), "gue needs a port", "add port: 6080")
    if kind is not TunnelType.GUE and part.port.given:
        report.add(
            draft.location_of(part.port), f"{kind} has no port", "remove it, or use type: gue"
        )
    checksum = part.checksum.value
    if checksum is TunnelChecksum.REMOTE and kind is not TunnelType.GUE:
        report.add(
            draft.location_of(part.checksum), f"{kind} has no remcsum", "it is for type: gue only"
        )
    if checksum is TunnelChecksum.CHECKSUM and kind is TunnelType.IPIP:
        report.add(
            draft.location_of(part.checksum), "ipip has no checksum", "it is for gue and gre only"
        )


def _thresholds(draft: ServiceDraft, report: ProblemReport) -> None:
    lower, upper = draft.lower_threshold, draft.upper_threshold
    if upper.bad or lower.value <= upper.value:
        return
    # ip_vs_add_dest() returns ERANGE, also if the upper threshold is 0 (none).
    if upper.given:
        message = f"lower-threshold {lower.value} is above upper-threshold {upper.value}"
        hint = "the lower one is at most the upper one"
    else:
        message = "a lower-threshold without an upper one"
        hint = f"add upper-threshold: {2 * lower.value}, or remove it"
    report.add(draft.location_of(lower, upper), message, hint)


def _sorry_server(draft: ServiceDraft, report: ProblemReport) -> None:
    value = draft.sorry_server
    if value.value is None or draft.forwarding.bad or draft.placed_ports.bad:
        return
    location = draft.location_of(value)
    address, port = value.value
    _same_family(draft, address, location, report)
    if port is None:
        return
    own = draft.one_port
    if own is None and (draft.fwmark.given or draft.ports):
        report.add(
            location,
            f"all ports of the service would go to port {port}",
            "leave the port out: each port goes to the same port there",
        )
    elif own is not None and draft.forwarding.value is not Forwarding.MASQUERADE and port != own:
        report.add(
            location,
            f"{draft.forwarding.value} cannot change port {own} to {port}",
            "leave the port out, or use forwarding: masquerade",
        )


def _servers(draft: ServiceDraft, report: ProblemReport) -> None:
    addresses: dict[IPAddress, Location] = {}
    guests: dict[str, Location] = {}
    for member in draft.servers.value:
        for value in (member.host, member.address):
            if value.value is None or value.location is None:
                continue
            if not draft.forwarding.bad:
                _same_family(draft, value.value, value.location, report)
            if value.value in addresses:
                report.add(
                    value.location,
                    f"{value.value} is a server of this service already",
                    f"it is {addresses[value.value].path}: remove one",
                )
            addresses.setdefault(value.value, value.location)
        guest = member.guest
        if guest.value is not None and guest.location is not None and not member.address.given:
            if guest.value in guests:
                report.add(
                    guest.location,
                    f"guest {guest.value} is in this service already",
                    f"it is {guests[guest.value].path}: remove one",
                )
            guests.setdefault(guest.value, guest.location)


def _same_family(
    draft: ServiceDraft, address: IPAddress, location: Location, report: ProblemReport
) -> None:
    """ip_vs_genl_set_cmd() returns EINVAL for mixed families, except with tunnels."""
    own, other = draft.family, family_of(address)
    if own is None or own is other or draft.forwarding.value is Forwarding.TUNNEL:
        return
    names = {Family.INET: "IPv4", Family.INET6: "IPv6"}
    report.add(
        location,
        f"{address} is {names[other]}, but the service is {names[own]}",
        f"{draft.forwarding.value} keeps the family; only a tunnel can change it",
    )


def _guest_side_rules(draft: ServiceDraft, report: ProblemReport) -> None:
    if draft.forwarding.bad:
        return
    members = [member.side for member in draft.servers.value if member.side is not None]
    for part in (draft.side, *members):
        guest_side.report_problems(
            part, report, forwarding=draft.forwarding.value, by_mark=draft.fwmark.given
        )


RULES: Final[tuple[Callable[[ServiceDraft, ProblemReport], None], ...]] = (
    _identity,
    _port_list,
    _server_port,
    _persistence,
    _one_packet,
    _scheduler_flags,
    _tunnel,
    _thresholds,
    check_rules.check,
    check_rules.flush,
    _sorry_server,
    _servers,
    _guest_side_rules,
)


# All services


def report_shared_keys(drafts: Collection[ServiceDraft], report: ProblemReport) -> None:
    """Report a kernel service that two services of the configuration share."""
    first: dict[ServiceKey, tuple[str, Location]] = {}
    for draft in drafts:
        for key, location in dict(_keys(draft)).items():
            if key in first:
                name, other = first[key]
                report.add(
                    location,
                    f"{_key_text(key)} is service {name} already",
                    f"see line {other.line}: remove it there or in {draft.name}",
                )
            first.setdefault(key, (draft.name, location))


def _keys(draft: ServiceDraft) -> Iterator[tuple[ServiceKey, Location]]:
    address, mark = draft.address.value, draft.fwmark.value
    if address is not None and not draft.fwmark.given:
        for port, location in draft.placed_ports.value:
            yield AddressKey(protocol=port.protocol, address=address, port=port.number), location
    if mark is not None and not draft.address.given and not draft.written_family.bad:
        yield MarkKey(family=draft.written_family.value, mark=mark), draft.location_of(draft.fwmark)


def _key_text(key: ServiceKey) -> str:
    match key:
        case AddressKey(protocol=protocol, address=address, port=port):
            return f"{protocol} port {port} of {address}"
        case MarkKey(family=family, mark=mark):
            return f"fwmark {mark} ({family})"


def report_vip_servers(drafts: Collection[ServiceDraft], report: ProblemReport) -> None:
    """Report a server whose address is a service address: requests would go in circles."""
    vips: dict[IPAddress, str] = {}
    for draft in drafts:
        if draft.address.value is not None:
            vips.setdefault(draft.address.value, draft.name)
    for draft in drafts:
        servers: list[tuple[IPAddress, Location]] = [
            (value.value, value.location)
            for member in draft.servers.value
            for value in (member.host, member.address)
            if value.value is not None and value.location is not None
        ]
        if draft.sorry_server.value is not None:
            servers.append((draft.sorry_server.value[0], draft.location_of(draft.sorry_server)))
        for address, location in servers:
            if address in vips:
                report.add(
                    location,
                    f"{address} is the address of service {vips[address]}",
                    "write the server's own address",
                )
