"""What a guest needs held against what it has: pure, every difference named, a rule a function.

The rules ask what the kernel would do, not whether it was done as guest.sh does it: an operator who
has configured the guest by other means is not told to do it again.
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

MOST_OTHERS = 5  # places that are named where a service address is on a hundred


def differences(needs: Needs, observed: Observed) -> tuple[Difference, ...]:
    """In the order in which the guest's state is made; nothing when all is in place. For one
    service alone, give the needs of that service alone."""
    return tuple(each for check in _CHECKS for each in check(needs, observed))


def _shown(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))


# ---- tunnels ----


def _tunnels(needs: Needs, observed: Observed) -> Iterator[Difference]:
    for need in needs.tunnels:
        carried = {a.address.version for a in needs.addresses if a.device == need.name}
        if message := _tunnel(need, carried, observed):
            yield Difference(message=message, hint=APPLY)


# What an ip6tnl device takes that is of one family alone, as the kernel's own ip6tnl0.
_ONLY = {"ip6ip6": 6, "ipip6": 4}


def _tunnel(need: TunnelDevice, carried: Set[int], observed: Observed) -> str | None:
    link = observed.link(need.name)
    if link is None:
        return f"there is no tunnel device {need.name} ({need.kind}, of the module {need.module})"
    if link.kind not in (None, need.kind):
        return f"{need.name} is a {link.kind} device, wanted {need.kind}"
    if link.kind is not None and need.local not in (None, link.local):
        return f"{need.name} ends tunnels at {link.local or 'any address'}, wanted {need.local}"
    if link.mode in _ONLY and carried - {_ONLY[link.mode]}:
        return f"{need.name} takes IPv{_ONLY[link.mode]} only (mode {link.mode}), wanted mode any"
    if not link.up:
        return f"{need.name} is down: what comes in by the tunnel is dropped"
    return None


def _decapsulations(needs: Needs, observed: Observed) -> Iterator[Difference]:
    for need in needs.decapsulations:
        six = " -6" if need.family is Family.INET6 else ""
        if (need.family, need.port) in observed.decapsulated:
            continue
        if "iproute2" in observed.programs:
            yield Difference(
                message=f"UDP port {need.port} is not unpacked "
                f"(ip fou add port {need.port} gue{six})",
                hint=APPLY,
            )
        else:
            yield Difference(
                message=f"whether UDP port {need.port} is unpacked is not seen: the guest has no "
                "iproute2, which alone knows of it",
                hint="install iproute2 in the guest",
            )


# ---- routes and rules ----


def _routes(needs: Needs, observed: Observed) -> Iterator[Difference]:
    for need in needs.routes:
        if message := _route(need, observed):
            yield Difference(message=message, hint=_makes_table(need.table, observed))


# The highest number of a table that busybox's ip(8) takes (1.35).
BUSYBOX_TABLES = 1023


def _makes_table(table: int, observed: Observed) -> str:
    if table > BUSYBOX_TABLES and {"ip", "iproute2"} & observed.programs == {"ip"}:
        return (
            f"the guest's ip(8) is busybox's and knows no table above {BUSYBOX_TABLES}: install "
            "iproute2 in the guest, or write guest-side: {table: 371}"
        )
    return APPLY


def _route(need: Route, observed: Observed) -> str | None:
    """Of several default routes of a table that with the lowest metric is taken."""
    wanted = f"{need.gateway} on {need.interface}"
    found = _default_route(observed, family=family_of(need.gateway), table=need.table)
    link = observed.link(need.interface)
    if link is None:
        state = f": there is no interface {need.interface}"
    elif not link.up:
        state = f": {need.interface} is down"
    else:
        state = ""
    if found is None:
        return f"table {need.table} has no default route, wanted by {wanted}{state}"
    if (found.gateway, found.interface) != (need.gateway, need.interface):
        return (
            f"the default route of table {need.table} goes {_way(found)}, wanted by {wanted}{state}"
        )
    if not found.usable:
        return f"the default route of table {need.table} by {wanted} cannot be used{state}"
    return None


def _default_route(observed: Observed, *, family: Family, table: int) -> DefaultRoute | None:
    routes = (r for r in observed.default_routes if r.family is family and r.table == table)
    return min(routes, key=lambda route: route.metric, default=None)


def _way(route: DefaultRoute) -> str:
    if route.gateway is None and route.interface is None:
        return "nowhere"
    by = f"by {route.gateway}" if route.gateway is not None else "by no gateway"
    return f"{by} on {route.interface}" if route.interface is not None else by


def _rules(needs: Needs, observed: Observed) -> Iterator[Difference]:
    for need in needs.rules:
        what = (
            f"packets from {need.source}" if need.mark is None else f"packets with mark {need.mark}"
        )
        same = [rule for rule in observed.rules if _is_for(rule, need)]
        ours = [rule.priority for rule in same if rule.table == need.table]
        if not observed.rules and "ip" not in observed.programs:
            yield Difference(
                message=f"{what} must be routed by table {need.table}, which cannot be seen: "
                "the guest has no ip(8)",
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
                hint=f"take that rule away, or give it a priority above {min(ours)}",
            )


def _is_for(rule: PolicyRule, need: Rule) -> bool:
    alone = rule.source is None or rule.prefix == rule.source.max_prefixlen
    return (
        (rule.family, rule.source, rule.mark) == (need.family, need.source, need.mark)
        and alone
        and not rule.narrower
    )


def _ahead(need: Rule, priority: int, observed: Observed) -> PolicyRule | None:
    """The first rule before this priority that takes the same packets and finds them a way (or
    refuses them one); a table without a default route lets most of them pass on."""
    ways = {route.table for route in observed.default_routes if route.family is need.family}
    for rule in sorted(observed.rules, key=lambda rule: rule.priority):
        if rule.family is not need.family or rule.priority >= priority or rule.narrower:
            continue
        if rule.table in (LOCAL, need.table) or not _takes(rule, need):
            continue
        if rule.table is None or rule.table in ways:
            return rule
    return None


def _takes(rule: PolicyRule, need: Rule) -> bool:
    if rule.mark not in (None, need.mark):
        return False
    if rule.source is None:
        return True
    return need.source is not None and need.source in ip_network((rule.source, rule.prefix))


def _default_gateways(needs: Needs, observed: Observed) -> Iterator[Difference]:
    for wanted in needs.default_gateways:
        found = _default_route(observed, family=family_of(wanted), table=MAIN)
        if found is not None and found.gateway == wanted and found.usable:
            continue
        goes = "there is none" if found is None else f"it goes {_way(found)}"
        if found is not None and found.gateway is not None and found.gateway.is_link_local:
            # By router advertisements; this may well be the director, but nothing here tells.
            yield Difference(
                message=f"whether the default gateway {found.gateway} is the director ({wanted}) "
                "is not seen",
                hint=f"if it is, write guest-side: {{gateway: {found.gateway}}}",
            )
            continue
        yield Difference(
            message=f"the default gateway is not {wanted}, the director: {goes}; replies do not "
            "come back through it",
            hint="make it the guest's gateway, or write guest-side: {return-path: rule} where the "
            "guest has an address for the balanced services alone, else {return-path: mark}",
        )


# ---- addresses ----


def _addresses(needs: Needs, observed: Observed) -> Iterator[Difference]:
    for need in needs.addresses:
        found = [each for each in observed.addresses if each.address == need.address]
        wanted = [each for each in found if each.interface == need.device]
        if not found:
            yield Difference(
                message=f"{need.address} is missing, wanted on {need.device}: the guest does not "
                "take packets to it",
                hint=APPLY,
            )
        others = [each for each in found if each.interface != need.device]
        for each in others[:MOST_OTHERS]:
            yield _elsewhere(need, each, observed, also=bool(wanted))
        for each in wanted:
            yield from _as_wanted(each, observed)


def _elsewhere(
    need: ServiceAddress, each: Address, observed: Observed, *, also: bool
) -> Difference:
    link = observed.link(each.interface)
    known = "ARP" if each.address.version == 4 else "neighbour discovery"
    harm = f": the guest answers {known} for it" if link is not None and link.ethernet else ""
    where = (
        f"{each.interface}, too, wanted on {need.device} alone"
        if also
        else (f"{each.interface}, not on {need.device}")
    )
    return Difference(
        message=f"{need.address} is on {where}{harm}",
        hint=f"take it off: ip addr del {each.address}/{each.prefix} dev {each.interface}, and "
        "where the guest's configuration has it",
    )


def _as_wanted(each: Address, observed: Observed) -> Iterator[Difference]:
    whole = each.address.max_prefixlen
    at = f"{each.address} is on {each.interface}"
    if each.prefix != whole:
        takes = (
            "the guest answers ARP for all of that network"
            if each.address.version == 4
            else "the guest takes all of that network for its own"
        )
        yield Difference(
            message=f"{at} with prefix length {each.prefix}, not {whole}: {takes}",
            hint=f"take it off: ip addr del {each.address}/{each.prefix} dev {each.interface}, "
            f"and write /{whole} where the guest's configuration has it",
        )
    if each.address.version == 4:
        return
    if "dadfailed" in each.flags:
        yield Difference(
            message=f"{at} and cannot be used: duplicate address detection has found it elsewhere",
            hint="take it off and add it again with nodad",
        )
    elif "tentative" in each.flags:
        yield Difference(
            message=f"{at} and cannot be used yet: duplicate address detection goes on",
            hint="add it with nodad",
        )
    elif "nodad" not in each.flags and _detects(each.interface, observed):
        yield Difference(
            message=f"{at} without nodad: duplicate address detection finds the director's",
            hint="add it with nodad",
        )


def _detects(interface: str, observed: Observed) -> bool:
    """The kernel sets -1 for loopback and for devices without neighbours, and never looks there."""
    return observed.sysctls.get(f"net/ipv6/conf/{interface}/accept_dad", 1) > 0


# ---- the rest ----


def _checksums(needs: Needs, observed: Observed) -> Iterator[Difference]:
    for interface in needs.no_tx_checksums:
        match observed.checksums.get(interface):
            case False:
                pass
            case True:
                yield Difference(
                    message=f"{interface} leaves checksums to the card (tx-checksumming: on), "
                    "wanted off",
                    hint=APPLY,
                )
            case None:
                why = (
                    "ethtool does not tell"
                    if "ethtool" in observed.programs
                    else "the guest has no ethtool"
                )
                yield Difference(
                    message=f"whether {interface} leaves checksums to its card is not seen: {why}",
                    hint="install ethtool in the guest",
                )


def _units(needs: Needs, observed: Observed) -> Iterator[Difference]:
    """xenlb-guest is there only for what the guest's own configuration cannot say."""
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
                message=f"{name} is not enabled: it does not start with the guest",
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
