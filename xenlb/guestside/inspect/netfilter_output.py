"""Rules of nftables and iptables, as far as they are of the kind that guest.sh makes: pure.

They are read word by word and not compared as texts: programs of different versions print the same
rule differently, and an operator may have written one of his own that does the same.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address

from xenlb.guestside.inspect.observed import FilterAction, FilterRule
from xenlb.ipvs.table import Family, IPAddress, Protocol

_PROTOCOLS = {
    **{str(protocol): protocol for protocol in Protocol},
    "6": Protocol.TCP,
    "17": Protocol.UDP,
    "132": Protocol.SCTP,
}
_ALL_BUT_SSH = (range(1, 22), range(23, 65536))


def _number(text: str) -> int | None:
    if not re.fullmatch(r"0x[0-9a-fA-F]{1,8}|[0-9]{1,10}", text):
        return None
    return int(text, 16 if text.startswith("0x") else 10)


def _ports(text: str) -> tuple[range, ...] | None:
    """`25`, `25, 80-90`, `25,80:90`; None if it is anything else."""
    ranges = []
    for part in re.split(r"[\s,]+", text.strip()):
        found = re.fullmatch(r"([0-9]{1,5})(?:[-:]([0-9]{1,5}))?", part)
        if not found:
            return None
        ranges.append(range(int(found[1]), int(found[2] or found[1]) + 1))
    return tuple(ranges)


def _address(text: str) -> IPAddress | None:
    try:
        return ip_address(re.sub(r"/(32|128)$", "", text))
    except ValueError:
        return None


# ---- nft list table inet xenlb ----

_CHAIN_HOOK = re.compile(r"type (?:filter|route) hook ([a-z]+) ")
_NFT_PORTS = re.compile(r"\b(tcp|udp|sctp|th) dport (!= )?(\{[0-9, -]{1,2000}\}|[0-9-]{1,11})")
_ORIGINAL = re.compile(r"\bct direction (?:original|0)\b")  # not of replies
_NFT_PROTOCOL = re.compile(r"\b(?:meta l4proto|ip protocol|ip6 nexthdr) (\w{1,5})\b")


def nft_rules(lines: Sequence[str]) -> Iterator[FilterRule]:
    """Of both families where a rule does not say."""
    hook = ""
    for line in (each.strip() for each in lines):
        if line.startswith("chain "):
            hook = ""
        elif found := _CHAIN_HOOK.match(line):
            hook = found[1]
        elif hook:
            yield from _nft_rule(line, hook)


def _nft_rule(line: str, hook: str) -> Iterator[FilterRule]:
    does, value = _nft_does(line)
    if does is None:
        return
    source = re.search(r"\bip6? saddr (\S{2,39})", line)
    interface = re.search(r'\biif(?:name)? "([A-Za-z0-9_.+-]{1,15})"', line)
    protocol, ports = _nft_ports(line)
    if protocol is None and (named := _NFT_PROTOCOL.search(line)):
        protocol = _PROTOCOLS.get(named[1])
    only6 = re.search(r"\bip6 |\bnfproto (?:ipv6|10)\b", line)
    only4 = re.search(r"\bip |\bnfproto (?:ipv4|2)\b", line)
    for family in (Family.INET, Family.INET6):
        if (only4 and family is Family.INET6) or (only6 and family is Family.INET):
            continue
        yield FilterRule(
            family=family,
            hook=hook,
            does=does,
            value=value,
            interface=interface[1] if interface else None,
            protocol=protocol,
            ports=ports,
            source=_address(source[1]) if source else None,
        )


def _nft_does(line: str) -> tuple[FilterAction | None, int | None]:
    if found := re.search(r"\bct mark set (\w{1,10})\b", line):
        return (
            (FilterAction.MARK, number)
            if (number := _number(found[1])) is not None
            else (None, None)
        )
    if found := re.search(r"\bmeta mark set (ct mark|\w{1,10})\b", line):
        only = re.search(r"\bct mark (0x[0-9a-f]{1,8}|[0-9]{1,10})\b", line)
        of = _number(only[1]) if only else None
        same = found[1] == "ct mark" or (of is not None and of == _number(found[1]))
        return (FilterAction.RESTORE, of) if same and not _ORIGINAL.search(line) else (None, None)
    if found := re.search(r"\bmaxseg size set ([0-9]{1,5})\b", line):
        return FilterAction.CLAMP, int(found[1])
    return None, None


def _nft_ports(line: str) -> tuple[Protocol | None, tuple[range, ...] | None]:
    found = _NFT_PORTS.search(line)
    if not found:
        return None, None
    ports = _ports(found[3].strip("{}"))
    if found[2]:  # all but these
        ports = _ALL_BUT_SSH if ports == (range(22, 23),) else ()
    return _PROTOCOLS.get(found[1]), () if ports is None else ports


# ---- iptables-save -t mangle ----

_BUILT_IN = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})


def iptables_rules(lines: Sequence[str], *, family: Family) -> Iterator[FilterRule]:
    """Chains of a user's own are taken for where they are jumped to from, with what the jump asks
    for left out: guest.sh asks for nothing there."""
    hooks = {name: name.lower() for name in _BUILT_IN}
    for line in lines:
        found = re.match(r"-A ([A-Z]+) (?:.* )?-[jg] ([\w-]{1,28})$", line)
        if found and found[1] in _BUILT_IN:
            hooks.setdefault(found[2], found[1].lower())
    for line in lines:
        words = line.split()
        if words[:1] == ["-A"] and len(words) > 2 and words[1] in hooks:
            yield from _iptables_rule(words, hooks[words[1]], family)


def _iptables_rule(words: Sequence[str], hook: str, family: Family) -> Iterator[FilterRule]:
    def after(*keys: str) -> str:
        return next((words[words.index(key) + 1] for key in keys if key in words[:-1]), "")

    does, value = _iptables_does(after("-j"), after, restores="--restore-mark" in words)
    if does is None:
        return
    ports: tuple[range, ...] | None = None
    if text := after("--dport", "--dports"):
        ports = _ports(text) or ()
        if any(words[at - 1] == "!" for at, word in enumerate(words) if word.startswith("--dport")):
            ports = _ALL_BUT_SSH if ports == (range(22, 23),) else ()
    yield FilterRule(
        family=family,
        hook=hook,
        does=does,
        value=value,
        interface=after("-i") or None,
        protocol=_PROTOCOLS.get(after("-p")),
        ports=ports,
        source=_address(after("-s")),
    )


def _iptables_does(
    target: str, after: Callable[..., str], *, restores: bool
) -> tuple[FilterAction | None, int | None]:
    mark = _number(after("--set-xmark", "--set-mark").removesuffix("/0xffffffff"))
    of = _number(after("--mark").removesuffix("/0xffffffff"))
    reply = after("--ctdir") != "ORIGINAL"
    match target:
        case "CONNMARK" if mark is not None:
            return FilterAction.MARK, mark
        case "CONNMARK" if reply and restores:
            return FilterAction.RESTORE, of
        case "MARK" if reply and mark is not None and mark == of:
            return FilterAction.RESTORE, of
        case "TCPMSS":
            return FilterAction.CLAMP, _number(after("--set-mss"))
        case _:
            return None, None
