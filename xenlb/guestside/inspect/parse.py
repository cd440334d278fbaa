"""Parser of the output of observe.sh: pure.

The output is untrusted: frames and values are checked strictly, and unknown lines are skipped.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from xenlb.guestside.inspect.distro_output import (
    init_of,
    network_manager_of,
    sources_folder,
    systems_of,
)
from xenlb.guestside.inspect.ip_output import (
    INTERFACE,
    addresses,
    default_routes,
    links,
    policy_rules,
    routing_tables,
)
from xenlb.guestside.inspect.netfilter_output import iptables_rules, nft_rules
from xenlb.guestside.inspect.observed import Observed, Unit
from xenlb.ipvs.table import Family
from xenlb.untrusted.budget import Budget, BudgetSpent
from xenlb.untrusted.printable import printable

# A guest with a thousand containers prints a third of that, in some 6,000 lines. A line or a hop of
# a route is one piece, and takes some 15 µs.
LONGEST = 1 << 20  # bytes
PIECES = 30_000
LONGEST_LINE = 1 << 15
MOST_SECTIONS = 40
GREETING = 1 << 14  # bytes that a login script may print before the output
FIRST = b"xenlb-observed 1\n"
_SECTION = re.compile(rb"section ([a-z][a-z0-9-]{0,19}) ([0-9]{1,7})\n")
_SYSCTL = re.compile(r"(net/[A-Za-z0-9_./:+-]{1,100}):(-?[0-9]{1,10})")
_WORD = re.compile(r"[A-Za-z0-9._~+-]{1,40}")


class ObserveError(Exception):
    """The output is not that of observe.sh: a sentence, and a hint what to do."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def output_budget() -> Budget:
    """A new budget for the parser: PIECES lines and hops, LONGEST bytes."""
    return Budget(pieces=PIECES, size=LONGEST)


def parse_observed(output: bytes, budget: Budget) -> Observed:
    """The state of the guest that printed this. Raises ObserveError only.

    A whole budget takes some 0.5 s: run it in a thread.
    """
    try:
        budget.take(0, size=len(output))
        return _observed(_sections(output, budget), budget)
    except BudgetSpent:
        raise _too_much() from None


def _observed(sections: Mapping[str, str], budget: Budget) -> Observed:
    def lines(name: str) -> list[str]:
        return sections.get(name, "").split("\n")

    about = _pairs(lines("about"))
    tables = routing_tables(lines("tables"))
    network = lines("network")
    programs = frozenset(
        value for key, value in about if key == "program" and _WORD.fullmatch(value)
    )
    return Observed(
        root=("uid", "0") in about,
        programs=programs,
        addresses=tuple(addresses(lines("addresses"))),
        links=links(lines("links"), lines("devices")),
        default_routes=(
            *default_routes(lines("routes4"), tables, budget, family=Family.INET),
            *default_routes(lines("routes6"), tables, budget, family=Family.INET6),
        ),
        rules=(
            *policy_rules(lines("rules4"), tables, family=Family.INET),
            *policy_rules(lines("rules6"), tables, family=Family.INET6),
        ),
        sysctls={
            match[1]: int(match[2])
            for line in lines("sysctls")
            if (match := _SYSCTL.fullmatch(line))
        },
        filters=(
            *nft_rules(lines("nft")),
            *iptables_rules(lines("iptables4"), family=Family.INET),
            *iptables_rules(lines("iptables6"), family=Family.INET6),
        ),
        decapsulated=frozenset(_decapsulated(lines("fou"))),
        checksums=_checksums(lines("offloads")),
        units=tuple(_units(lines("units"))),
        init=init_of(about),
        systems=systems_of(network, lines("interfaces-file"), programs=programs),
        network_manager=network_manager_of(network),
        interfaces_d=sources_folder(lines("interfaces-file")),
    )


def _sections(output: bytes, budget: Budget) -> Mapping[str, str]:
    start = 0 if output.startswith(FIRST) else output.find(b"\n" + FIRST, 0, GREETING) + 1
    if not output.startswith(FIRST, start):
        raise _broken("not that of xenlb's script", hint="check that /bin/sh is a POSIX shell")
    at = start + len(FIRST)
    sections: dict[str, str] = {}
    while match := _SECTION.match(output, at):
        name, length = match[1].decode(), int(match[2])
        at = match.end() + length
        if name == "end" and length == 0:
            return sections
        if name in sections or len(sections) == MOST_SECTIONS or at > len(output):
            break
        text = output[match.end() : at].decode("ascii", errors="replace")
        text = printable(text, keep="\n\t")
        budget.take(text.count("\n"))
        if max(map(len, text.split("\n"))) > LONGEST_LINE:
            raise _too_much()
        sections[name] = text
    raise _broken("incomplete, or mixed with other output", hint="try again")


def _too_much() -> ObserveError:
    return _broken("larger than xenlb reads", hint="check `ip route show table all` in the guest")


def _broken(problem: str, *, hint: str) -> ObserveError:
    return ObserveError(f"the guest's report of its network is {problem}", hint=hint)


def _pairs(lines: Sequence[str]) -> list[tuple[str, str]]:
    return [(key, value) for key, blank, value in (line.partition(" ") for line in lines) if blank]


def _decapsulated(lines: Sequence[str]) -> Iterator[tuple[Family, int]]:
    """The ports of lines like `port 6080 gue`; IPv6 has -6 after it."""
    for line in lines:
        match = re.match(r"port ([0-9]{1,5})\b", line)
        words = line.split()
        if match and "gue" in words:
            yield (Family.INET6 if "-6" in words else Family.INET), int(match[1])


def _checksums(lines: Sequence[str]) -> Mapping[str, bool]:
    checksums: dict[str, bool] = {}
    for line in lines:
        match line.split():
            case [interface, "tx-checksumming:", state, *_] if INTERFACE.fullmatch(interface):
                checksums[interface] = state != "off"
            case _:
                pass
    return checksums


def _units(lines: Sequence[str]) -> Iterator[Unit]:
    for name in ("xenlb-hold", "xenlb-guest"):
        if f"{name} LoadState=loaded" in lines:
            yield Unit(
                name=name,
                active=f"{name} ActiveState=active" in lines,
                enabled=f"{name} UnitFileState=enabled" in lines,
            )
