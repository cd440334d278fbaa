"""Differences between what a guest needs and what it has: pure, one function a kind of need.

The checks follow what the kernel does, not how guest.sh does it: a guest that is configured by
other means passes as well.
"""

from collections.abc import Callable, Iterable, Iterator, Set
from ipaddress import ip_network

from xenlb.guestside.inspect.finding import APPLY, Difference
from xenlb.guestside.inspect.netfilter_checks import clamps, marks
from xenlb.guestside.inspect.observed import (
    LOCAL,
    MAIN,
    Address,
    DefaultRoute,
    Observed,
    PolicyRule,
)
from xenlb.guestside.inspect.sysctl_checks import sysctls
from xenlb.guestside.requirements.needs import Needs, Route, Rule, ServiceAddress, TunnelDevice
from xenlb.ipvs.table import Family, family_of

MOST_OTHERS = 5  # interfaces that are named where many have the service address


def differences(needs: Needs, observed: Observed) -> tuple[Difference, ...]:
    """The differences, in the order in which the guest's state is made."""
    return tuple(difference for check in _CHECKS for difference in check(needs, observed))


def _shown(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))


# ---- tunnels ----


def _tunnels(needs: Needs, observed: Observed) -> Iterator[Difference]:
    for need in needs.tunnels:
        carried = {a.address.version for a in needs.addresses if a.device == need.name}
        if message := _tunnel(need, carried, observed):
            yield Difference(message=message, hint=APPLY)


# Modes in which an ip6tnl device accepts one family only, as the kernel's own ip6tnl0.
_ONLY = {"ip6ip6": 6, "ipip6": 4}


def _tunnel(need: TunnelDevice, carried: Set[int], observed: Observed) -> str | None:
    link = observed.link(need.name)
    if link is None:
        return f"there is no tunnel device {need.name} ({need.kind}, module {need.module})"
    if link.kind not in (None, need.kind):
        return f"{need.name} is a {link.kind} device, wanted {need.kind}"
    if link.kind is not None and need.local not in (None, link.local):
        return f"{need.name} ends tunnels at {link.local or 'any address'}, wanted {need.local}"
    if link.mode in _ONLY and carried - {_ONLY[link.mode]}:
        return f"{need.name} accepts IPv{_ONLY[link.mode]} only (mode {link.mode}), wanted mode any"
    if not link.up:
        return f"{need.name} is down: packets from the tunnel are dropped"
    return None


def _decapsulations(needs: Needs, observed: Observed) -> Iterator[Difference]:
    for need in needs.decapsulations:
        six = " -6" if need.family is Family.INET6 else ""
        if (need.family, need.port) in observed.decapsulated:
            continue
        if "iproute2" in observed.programs:
            yield Difference(
                message=f"packets to UDP port {need.port} are not unpacked "
                f"(ip fou add port {need.port} gue{six})",
                hint=APPLY,
            )
        else:
            yield Difference(
                message=f"it is unknown whether packets to UDP port {need.port} are unpacked: only "
                "iproute2 shows it, which the guest does not have",
                hint="install iproute2 in the guest",
            )


# ---- routes and rules ----


def _routes(needs: Needs, observed: Observed) -> Iterator[Difference]:
    for need in needs.routes:
        if message := _route(need, observed):
            yield Difference(message=message, hint=_makes_table(need.table, observed))


# The highest table number that busybox's ip(8) accepts (1.35).
BUSYBOX_TABLES = 1023


def _makes_table(table: int, observed: Observed) -> str:
    if table > BUSYBOX_TABLES and {"ip", "iproute2"} & observed.programs == {"ip"}:
        return (
            f"the guest's ip(8) is busybox's, which accepts no table above {BUSYBOX_TABLES}: "
            "install iproute2 in the guest, or set  guest-side: {table: 371}"
        )
    return APPLY


def _route(need: Route, observed: Observed) -> str | None:
    wanted = f"{need.gateway} on {need.interface}"
    current = _default_route(observed, family=family_of(need.gateway), table=need.table)
    link = observed.link(need.interface)
    if link is None:
        state = f": there is no interface {need.interface}"
    elif not link.up:
        state = f": {need.interface} is down"
    else:
        state = ""
    if current is None:
        return f"table {need.table} has no default route, wanted via {wanted}{state}"
    if (current.gateway, current.interface) != (need.gateway, need.interface):
        return (
            f"the default route of table {need.table} goes {_next_hop(current)}, "
            f"wanted via {wanted}{state}"
        )
    if not current.usable:
        return f"the default route of table {need.table} via {wanted} cannot be used{state}"
    return None


def _default_route(observed: Observed, *, family: Family, table: int) -> DefaultRoute | None:
    """The default route that the kernel uses: the one with the lowest metric."""
    routes = (r for r in observed.default_routes if r.family is family and r.table == table)
    return min(routes, key=lambda route: route.metric, default=None)


def _next_hop(route: DefaultRoute) -> str:
    if route.gateway is None and route.interface is None:
        return "nowhere"
    via = f"via {route.gateway}" if route.gateway is not None else "without a gateway"
    return f"{via} on {route.interface}" if route.interface is not None else via


def _rules(needs: Needs, observed: Observed) -> Iterator[Difference]:
    for need in needs.rules:
        what = (
            f"packets from {need.source}" if need.mark is None else f"packets with mark {need.mark}"
        )
        same = [rule for rule in observed.rules if _is_for(rule, need)]
        ours = [rule.priority for rule in same if rule.table == need.table]
        if not observed.rules and "ip" not in observed.programs:
            yield Difference(
                message=f"it is unknown whether {what} are routed by table {need.table}: the guest "
                "has no ip(8)",
                hint="install iproute2 in the guest",
            )
        elif not ours:
            tables = _shown(str(rule.table) for rule in same if rule.table is not None)
            has = f"there are rules for table {tables}" if tables else "there is no such rule"
            yield Difference(
                message=f"{what} are not routed by table {need.table}: {has}",
                hint=_makes_table(need.table, observed),
            )
        elif (ahead := _ahead(need, min(ours), observed)) is not None:
            yield Difference(
                message=f"{what} do not reach table {need.table}: the rule `{ahead.text}` with "
                f"priority {ahead.priority} comes before priority {min(ours)} and decides",
                hint=f"remove that rule, or give it a priority above {min(ours)}",
            )


def _is_for(rule: PolicyRule, need: Rule) -> bool:
    alone = rule.source is None or rule.prefix == rule.source.max_prefixlen
    return (
        (rule.family, rule.source, rule.mark) == (need.family, need.source, need.mark)
        and alone
        and not rule.narrower
    )


def _ahead(need: Rule, priority: int, observed: Observed) -> PolicyRule | None:
    """The first rule before this priority that decides about the same packets.

    A rule for a table without a default route lets most of them pass on.
    """
    tables = {route.table for route in observed.default_routes if route.family is need.family}
    for rule in sorted(observed.rules, key=lambda rule: rule.priority):
        if rule.family is not need.family or rule.priority >= priority or rule.narrower:
            continue
        if rule.table in (LOCAL, need.table) or not _matches(rule, need):
            continue
        if rule.table is None or rule.table in tables:
            return rule
    return None


def _matches(rule: PolicyRule, need: Rule) -> bool:
    if rule.mark not in (None, need.mark):
        return False
    if rule.source is None:
        return True
    return need.source is not None and need.source in ip_network((rule.source, rule.prefix))


def _default_gateways(needs: Needs, observed: Observed) -> Iterator[Difference]:
    for wanted in needs.default_gateways:
        current = _default_route(observed, family=family_of(wanted), table=MAIN)
        if current is not None and current.gateway == wanted and current.usable:
            continue
        goes = "there is none" if current is None else f"it goes {_next_hop(current)}"
        if current is not None and current.gateway is not None and current.gateway.is_link_local:
            # Set by router advertisements: it may be an address of the director.
            yield Difference(
                message=f"it is unknown whether the default gateway {current.gateway} is the "
                f"director ({wanted})",
                hint=f"if it is, set  guest-side: {{gateway: {current.gateway}}}",
            )
            continue
        yield Difference(
            message=f"the default gateway is not {wanted}, the director: {goes}; replies do not "
            "go back through the director",
            hint="make the director the guest's gateway, or set  guest-side: {return-path: rule}  "
            "if the guest has an address for balanced services only, else {return-path: mark}",
        )


# ---- addresses ----


def _addresses(needs: Needs, observed: Observed) -> Iterator[Difference]:
    for need in needs.addresses:
        present = [entry for entry in observed.addresses if entry.address == need.address]
        wanted = [entry for entry in present if entry.interface == need.device]
        if not present:
            yield Difference(
                message=f"{need.address} is missing, wanted on {need.device}: the guest does not "
                "accept packets to it",
                hint=APPLY,
            )
        others = [entry for entry in present if entry.interface != need.device]
        for address in others[:MOST_OTHERS]:
            yield _on_other_interface(need, address, observed, also=bool(wanted))
        for address in wanted:
            yield from _on_wanted_interface(address, observed)


def _on_other_interface(
    need: ServiceAddress, entry: Address, observed: Observed, *, also: bool
) -> Difference:
    link = observed.link(entry.interface)
    protocol = "ARP" if entry.address.version == 4 else "neighbour discovery"
    harm = f": the guest answers {protocol} for it" if link is not None and link.ethernet else ""
    where = f"{'as well as' if also else 'not'} on {need.device}"
    return Difference(
        message=f"{need.address} is on {entry.interface}, {where}{harm}",
        hint=f"remove it: {_removal(entry)}, and from the guest's configuration",
    )


def _removal(entry: Address) -> str:
    return f"ip addr del {entry.address}/{entry.prefix} dev {entry.interface}"


def _on_wanted_interface(entry: Address, observed: Observed) -> Iterator[Difference]:
    whole = entry.address.max_prefixlen
    place = f"{entry.address} is on {entry.interface}"
    if entry.prefix != whole:
        effect = (
            "the guest answers ARP for all of that network"
            if entry.address.version == 4
            else "the guest accepts packets to all of that network"
        )
        yield Difference(
            message=f"{place} with prefix length {entry.prefix}, not {whole}: {effect}",
            hint=f"remove it: {_removal(entry)}, and set /{whole} in the guest's configuration",
        )
    if entry.address.version == 4:
        return
    if "dadfailed" in entry.flags:
        yield Difference(
            message=f"{place} and cannot be used: duplicate address detection failed",
            hint="remove it and add it again with nodad",
        )
    elif "tentative" in entry.flags:
        yield Difference(
            message=f"{place} and cannot be used yet: duplicate address detection is running",
            hint="add it with nodad",
        )
    # The kernel sets -1 for loopback and for devices without neighbours: no detection there.
    elif (
        "nodad" not in entry.flags
        and observed.sysctls.get(f"net/ipv6/conf/{entry.interface}/accept_dad", 1) > 0
    ):
        yield Difference(
            message=f"{place} without nodad: duplicate address detection finds the director's",
            hint="add it with nodad",
        )


# ---- checksums and units ----


def _checksums(needs: Needs, observed: Observed) -> Iterator[Difference]:
    for interface in needs.no_tx_checksums:
        match observed.checksums.get(interface):
            case False:
                pass
            case True:
                yield Difference(
                    message=f"tx-checksumming of {interface} is on, wanted off",
                    hint=APPLY,
                )
            case None:
                known = "ethtool" in observed.programs
                why = "ethtool does not show it" if known else "the guest has no ethtool"
                yield Difference(
                    message=f"tx-checksumming of {interface} is unknown: {why}",
                    hint="install ethtool in the guest",
                )


def _units(needs: Needs, observed: Observed) -> Iterator[Difference]:
    """Units that are wanted, or installed: xenlb-guest is optional."""
    names = {"xenlb-hold": needs.hold is not None, "xenlb-guest": False}
    for name, wanted in names.items():
        unit = observed.unit(name)
        if unit is None:
            if wanted:
                yield Difference(message=f"{name} is not installed", hint=APPLY)
            continue
        if not (wanted or needs.network):
            continue
        if not unit.active:
            yield Difference(message=f"{name} is not active", hint=f"start it, or {APPLY}")
        if not unit.enabled:
            yield Difference(
                message=f"{name} is not enabled: it does not start at boot",
                hint=f"enable it, or {APPLY}",
            )


_CHECKS: tuple[Callable[[Needs, Observed], Iterator[Difference]], ...] = (
    sysctls,
    _tunnels,
    _decapsulations,
    _routes,
    _rules,
    marks,
    clamps,
    _checksums,
    _addresses,
    _default_gateways,
    _units,
)
