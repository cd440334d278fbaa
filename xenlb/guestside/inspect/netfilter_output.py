"""Rules of nftables and iptables that mark connections or clamp TCP segments: pure.

nft lists xenlb's own table only, so its rules have the form that guest.sh writes; names are numbers
in some versions. iptables-save lists the whole mangle table, and a rule of an administrator that
does the same counts as well.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from itertools import pairwise

from xenlb.guestside.inspect.observed import FilterAction, FilterRule
from xenlb.ipvs.table import Family, IPAddress, Protocol

_PROTOCOLS = {
    **{str(protocol): protocol for protocol in Protocol},
    "6": Protocol.TCP,
    "17": Protocol.UDP,
    "132": Protocol.SCTP,
}


def _number(text: str) -> int | None:
    if not re.fullmatch(r"0x[0-9a-fA-F]{1,8}|[0-9]{1,10}", text):
        return None
    return int(text, 16 if text.startswith("0x") else 10)


def _ports(text: str, *, negated: bool) -> tuple[range, ...]:
    """The ports of `25` or `25,80:90`; empty for other texts, and for negations but that of 22."""
    if negated:
        return (range(1, 22), range(23, 65536)) if text == "22" else ()
    if not re.fullmatch(r"[0-9]{1,5}(:[0-9]{1,5})?(,[0-9]{1,5}(:[0-9]{1,5})?)*", text):
        return ()
    bounds = [part.split(":") for part in text.split(",")]
    return tuple(range(int(bound[0]), int(bound[-1]) + 1) for bound in bounds)


def _address(text: str) -> IPAddress | None:
    try:
        return ip_address(re.sub(r"/(32|128)$", "", text))
    except ValueError:
        return None


# ---- nft list table inet xenlb ----

_HOOK = re.compile(r"type \w+ hook ([a-z]+) ")
_MARK = re.compile(
    r'iifname "(?P<interface>[A-Za-z0-9_.-]{1,15})" .*'
    r"(?:(?P<of_port>tcp|udp|sctp) dport (?P<negated>!= )?(?P<port>[0-9]{1,5})"
    r"|meta l4proto (?P<any_port>\w{1,5})) ct mark set (?P<value>\w{1,10})"
)
_RESTORE = re.compile(r"ct direction (?:reply|1) ct mark (?P<value>\w{1,10}) meta mark set \1")
_CLAMP = re.compile(r"(ip6?) saddr (\S{2,39}) .* maxseg size set ([0-9]{1,5})")


def nft_rules(lines: Sequence[str]) -> Iterator[FilterRule]:
    """The rules of the table; marks are of both families."""
    hook = ""
    for line in map(str.strip, lines):
        if match := _HOOK.match(line):
            hook = match[1]
        elif match := _CLAMP.fullmatch(line):
            yield FilterRule(
                family=Family.INET6 if match[1] == "ip6" else Family.INET,
                hook=hook,
                action=FilterAction.CLAMP,
                value=int(match[3]),
                source=_address(match[2]),
            )
        elif match := _RESTORE.fullmatch(line):
            for family in (Family.INET, Family.INET6):
                action, value = FilterAction.RESTORE, _number(match["value"])
                yield FilterRule(family=family, hook=hook, action=action, value=value)
        elif match := _MARK.fullmatch(line):
            port = match["port"]
            for family in (Family.INET, Family.INET6):
                yield FilterRule(
                    family=family,
                    hook=hook,
                    action=FilterAction.MARK,
                    value=_number(match["value"]),
                    interface=match["interface"],
                    protocol=_PROTOCOLS.get(match["of_port"] or match["any_port"]),
                    ports=_ports(port, negated=bool(match["negated"])) if port else None,
                )


# ---- iptables-save -t mangle ----

_BUILT_IN = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})


def iptables_rules(lines: Sequence[str], *, family: Family) -> Iterator[FilterRule]:
    """The rules of built-in chains and of chains that these jump to.

    The condition of a jump is not read, since guest.sh jumps without any.
    """
    hooks = {name: name.lower() for name in _BUILT_IN}
    for line in lines:
        match = re.match(r"-A ([A-Z]+) (?:.* )?-[jg] ([\w-]{1,28})$", line)
        if match and match[1] in _BUILT_IN:
            hooks.setdefault(match[2], match[1].lower())
    for line in lines:
        words = line.split()
        if words[:1] == ["-A"] and len(words) > 2 and words[1] in hooks:
            yield from _iptables_rule(words, hooks[words[1]], family)


def _iptables_rule(words: Sequence[str], hook: str, family: Family) -> Iterator[FilterRule]:
    options = dict(pairwise(words))
    action, value = _iptables_action(options, restores="--restore-mark" in words)
    if action is None:
        return
    key = next((key for key in ("--dport", "--dports") if key in options), None)
    yield FilterRule(
        family=family,
        hook=hook,
        action=action,
        value=value,
        interface=options.get("-i"),
        protocol=_PROTOCOLS.get(options.get("-p", "")),
        ports=_ports(options[key], negated=("!", key) in pairwise(words)) if key else None,
        source=_address(options.get("-s", "")),
    )


def _iptables_action(
    options: Mapping[str, str], *, restores: bool
) -> tuple[FilterAction | None, int | None]:
    set_mark = options.get("--set-xmark") or options.get("--set-mark", "")
    mark = _number(set_mark.removesuffix("/0xffffffff"))
    matched = _number(options.get("--mark", "").removesuffix("/0xffffffff"))
    replies = options.get("--ctdir") != "ORIGINAL"
    match options.get("-j"):
        case "CONNMARK" if mark is not None:
            return FilterAction.MARK, mark
        case "CONNMARK" if replies and restores:
            return FilterAction.RESTORE, matched
        case "MARK" if replies and mark is not None and mark == matched:
            return FilterAction.RESTORE, matched
        case "TCPMSS":
            return FilterAction.CLAMP, _number(options.get("--set-mss", ""))
        case _:
            return None, None
