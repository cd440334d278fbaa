"""Parser of the output of ip(8), and of ifconfig, route and /sys for guests without it: pure.

Values are checked strictly, and unknown lines are skipped.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_interface, ip_network

from xenlb.guestside.inspect.observed import (
    LOCAL,
    MAIN,
    Address,
    DefaultRoute,
    ObservedLink,
    PolicyRule,
)
from xenlb.ipvs.table import Family, IPAddress
from xenlb.untrusted.budget import Budget

INTERFACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+-]{0,14}")
_RULE = re.compile(r"[A-Za-z0-9./:_\[\] -]{1,80}")  # shown to an operator
_FLAGS = frozenset({"nodad", "tentative", "dadfailed", "deprecated"})


def _parse_address(text: str) -> IPAddress | None:
    """The address; None for other text, and for a zone (%eth0), which may be any text."""
    try:
        return None if "%" in text else ip_address(text)
    except ValueError:
        return None


def _after(words: Sequence[str], key: str) -> str:
    """The word after this one, or an empty one."""
    return words[words.index(key) + 1] if key in words[:-1] else ""


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,10}", text) else None


def _name(text: str) -> str:
    """`eth0` of `eth0@if5:` and of `eth0:1`, which is an alias of eth0."""
    name = text.rstrip(":").split("@")[0].split(":")[0]
    return name if INTERFACE.fullmatch(name) else ""


# ---- addresses and links ----


def addresses(lines: Sequence[str]) -> Iterator[Address]:
    """Parse the addresses in the output of `ip -o address`, or of ifconfig."""
    interface = ""
    for line in lines:
        words = line.split()
        if not words:
            continue
        if re.fullmatch(r"[0-9]+:", words[0]) and len(words) > 3 and words[2] in ("inet", "inet6"):
            # The peer has the prefix length: `inet 10.0.0.1 peer 10.0.0.2/32`.
            prefix = words[5] if words[4:5] == ["peer"] and len(words) > 5 else words[3]
            address = _address(words[1], words[3].split("/")[0], prefix.partition("/")[2])
            flags = frozenset(line.split("\\")[0].split()[4:]) & _FLAGS
        else:
            # ifconfig: only the line of an interface begins without a blank.
            if not line[0].isspace():
                interface = words[0]
            address, flags = _of_ifconfig(interface, words), frozenset()
        if address is not None:
            yield Address(
                interface=address.interface,
                address=address.address,
                prefix=address.prefix,
                flags=flags,
            )


def _of_ifconfig(interface: str, words: Sequence[str]) -> Address | None:
    """`inet addr:10.0.0.1 … Mask:255.0.0.0`, or, newer, `inet 10.0.0.1  netmask 255.0.0.0`."""
    values = dict(word.split(":", 1) for word in words if ":" in word and word[0].isalpha())
    match words:
        case ["inet", _, *_] if "addr" in values:
            return _address(interface, values["addr"], values.get("Mask", "32"))
        case ["inet", address, *_]:
            return _address(interface, address, _after(words, "netmask") or "32")
        case ["inet6", "addr:", address, *_]:
            return _address(interface, *address.partition("/")[::2])
        case ["inet6", address, "prefixlen", prefix, *_]:
            return _address(interface, address, prefix)
        case _:
            return None


def _address(interface: str, address: str, mask: str) -> Address | None:
    name, value = _name(interface), _parse_address(address)
    if not name or value is None:
        return None
    try:
        whole = ip_interface(f"{value}/{mask}" if mask else str(value))
    except ValueError:
        return None
    return Address(interface=name, address=value, prefix=whole.network.prefixlen)


def links(lines: Sequence[str], devices: Sequence[str]) -> tuple[ObservedLink, ...]:
    """The links by ip(8), or by /sys where the guest has none."""
    return tuple(link for line in lines if (link := _link(line))) or tuple(_of_sys(devices))


def _link(line: str) -> ObservedLink | None:
    match = re.match(r"[0-9]+: (\S+) <([A-Z0-9_,-]*)> (.*)", line)
    if not match or not (name := _name(match[1])):
        return None
    words = match[3].replace("\\", " ").split()
    flags = match[2].split(",")
    medium = next((word for word in words if word.startswith("link/")), "")
    # The words of the device's kind come after those that all devices have.
    kinds = [word for word in words if word in _KINDS]
    mode = _after(words, kinds[0]) if kinds else ""
    return ObservedLink(
        name=name,
        up="UP" in flags,
        ethernet=medium == "link/ether" and "NOARP" not in flags,
        mac=_mac(_after(words, medium)) if medium == "link/ether" else None,
        kind=kinds[0] if kinds else None,
        mode=mode if mode in _MODES else None,
        local=_local(_after(words, "local")) if kinds else None,
    )


_MODES = frozenset({"any", "ip6ip6", "ipip6", "ip6ip", "ipip", "mplsip"})
_KINDS = frozenset({"ipip", "sit", "gre", "ip6tnl", "ip6gre", "gretap", "ip6gretap"})


def _local(text: str) -> IPAddress | None:
    address = _parse_address(text)
    return None if address is None or address.is_unspecified else address


def _of_sys(lines: Sequence[str]) -> Iterator[ObservedLink]:
    for line in lines:
        match line.split():
            case [name, flags, *rest] if _name(name) == name and _hexadecimal(flags) is not None:
                bits = _hexadecimal(flags) or 0
                mac = _mac(rest[0]) if rest else None
                # IFF_UP, IFF_BROADCAST, IFF_NOARP of <linux/if.h>
                ethernet = mac is not None and bool(bits & 0x2) and not bits & 0x80
                yield ObservedLink(name=name, up=bool(bits & 0x1), ethernet=ethernet, mac=mac)
            case _:
                pass


def _mac(text: str) -> str | None:
    return text if re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", text) else None


def _hexadecimal(text: str) -> int | None:
    return int(text, 16) if re.fullmatch(r"0x[0-9a-f]{1,8}", text) else None


# ---- routes and rules ----


def routing_tables(lines: Sequence[str]) -> Mapping[str, int]:
    """The numbers of the routing tables that have names in ip(8)."""
    tables = {"main": MAIN, "local": LOCAL, "default": 253}
    for line in lines:
        match line.split():
            case [number, name, *_] if (value := _number(number)) is not None:
                tables[name] = value
            case _:
                pass
    return tables


def _table(word: str, tables: Mapping[str, int]) -> int | None:
    value = _number(word)
    return tables.get(word) if value is None else value


_REFUSING = frozenset({"unreachable", "blackhole", "prohibit", "throw"})


def default_routes(
    lines: Sequence[str], tables: Mapping[str, int], budget: Budget, *, family: Family
) -> Iterator[DefaultRoute]:
    """The default routes; each hop takes a piece of the budget. Raises BudgetSpent."""
    for line in lines:
        words = line.replace("\\", " ").split()
        if words[:1] == ["0.0.0.0"] and words[2:3] == ["0.0.0.0"] and len(words) == 8:
            gateway, metric = _parse_address(words[1]), _number(words[4])  # route -n
            yield DefaultRoute(
                family=family,
                table=MAIN,
                gateway=_local(str(gateway)),
                interface=_name(words[7]),
                metric=metric or 0,
            )
        refused = words[0] in _REFUSING if words else False
        if words[1 if refused else 0 :][:1] != ["default"]:
            continue
        table = _table(_after(words, "table") or "main", tables)
        metric = _number(_after(words, "metric")) or 0
        if table is None:
            continue
        hops = _hops(words)
        budget.take(len(hops))
        for hop in hops:
            via = _after(hop, "via")
            yield DefaultRoute(
                family=family,
                table=table,
                gateway=_parse_address(_after(hop, via) if via in ("inet", "inet6") else via),
                interface=_name(_after(hop, "dev")) or None,
                metric=metric,
                usable=not refused and not {"dead", "linkdown"} & set(hop),
            )


def _hops(words: Sequence[str]) -> list[Sequence[str]]:
    starts = [at for at, word in enumerate(words) if word == "nexthop"]
    ends = [*starts[1:], len(words)]
    return [words[a:b] for a, b in zip(starts, ends, strict=True)] if starts else [words]


def policy_rules(
    lines: Sequence[str], tables: Mapping[str, int], *, family: Family
) -> Iterator[PolicyRule]:
    """Parse the output of `ip rule`; rules that neither look up a table nor refuse are left out."""
    for line in lines:
        number, colon, text = line.partition(":")
        priority = _number(number)
        if not colon or priority is None:
            continue
        words = text.split()
        source = prefix = mark = table = None
        narrower = refuses = False
        remaining = iter(words)
        for word in remaining:
            match word:
                case "from" if (value := next(remaining, "")) != "all":
                    source, prefix = _source(value)
                    narrower |= source is None
                case "fwmark":
                    mark = _mark(next(remaining, ""))
                    narrower |= mark is None
                case "lookup" | "table":
                    table = _table(next(remaining, ""), tables)
                case "proto" | "protocol":
                    next(remaining, "")  # the program that made the rule
                case "unreachable" | "blackhole" | "prohibit":
                    refuses = True
                case "from" | "unicast":
                    pass
                case _:
                    narrower = True  # iif, suppress_prefixlength, not, goto, unknown words
        if table is not None or refuses:
            yield PolicyRule(
                family=family,
                priority=priority,
                table=table,
                source=source,
                prefix=prefix or 0,
                mark=mark,
                narrower=narrower,
                text=text if _RULE.fullmatch(text := " ".join(words)) else "another",
            )


def _source(text: str) -> tuple[IPAddress | None, int | None]:
    try:
        network = ip_network(text)
    except ValueError:
        return None, None
    return network.network_address, network.prefixlen


def _mark(text: str) -> int | None:
    """The mark; None for one with another mask than all bits."""
    return _hexadecimal(text.removesuffix("/0xffffffff"))
