"""From what observe.sh printed in a guest to Observed: pure, and it believes nothing.

The guest may print whatever it likes: the frames are checked, every value is read strictly, and a
line that is not understood says nothing. The lines of ip(8) are read in ip_output.py, the rules of
the packet filter in netfilter_output.py, and what configures the network in distro_output.py.
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

# A guest with a thousand containers prints a third of that, in some 6,000 lines. A line, and a hop
# of a route, is a piece of some 15 µs.
LONGEST = 1 << 20  # bytes
PIECES = 30_000
LONGEST_LINE = 1 << 15
MOST_SECTIONS = 40
GREETING = 1 << 14  # bytes that a login script may have printed in front
FIRST = b"xenlb-observed 1\n"
_SECTION = re.compile(rb"section ([a-z][a-z0-9-]{0,19}) ([0-9]{1,7})\n")
_SYSCTL = re.compile(r"(net/[A-Za-z0-9_./:+-]{1,100}):(-?[0-9]{1,10})")
_WORD = re.compile(r"[A-Za-z0-9._~+-]{1,40}")


class ObserveError(Exception):
    """What the guest printed is not what observe.sh prints; one sentence, and what to do."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def output_budget() -> Budget:
    return Budget(pieces=PIECES, size=LONGEST)


def observed(output: bytes, budget: Budget) -> Observed:
    """The state of the guest that printed this. Raises ObserveError, and nothing else.

    With all of its budget it takes some 0.5 s: not for a loop.
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
    release = _pairs(lines("os"), between="=")
    network = lines("network")
    has = frozenset(value for key, value in about if key == "program" and _WORD.fullmatch(value))
    return Observed(
        root=("uid", "0") in about,
        programs=has,
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
            found[1]: int(found[2])
            for line in lines("sysctls")
            if (found := _SYSCTL.fullmatch(line))
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
        systems=systems_of(network, lines("interfaces-file"), programs=has),
        network_manager=network_manager_of(network),
        interfaces_d=sources_folder(lines("interfaces-file")),
        distribution=_of_release(release, "ID"),
        version=_of_release(release, "VERSION_ID"),
    )


def _sections(output: bytes, budget: Budget) -> Mapping[str, str]:
    start = 0 if output.startswith(FIRST) else output.find(b"\n" + FIRST, 0, GREETING) + 1
    if not output.startswith(FIRST, start):
        raise _broken("not what xenlb's script prints", hint="is its shell one of POSIX?")
    at = start + len(FIRST)
    sections: dict[str, str] = {}
    while found := _SECTION.match(output, at):
        name, length = found[1].decode(), int(found[2])
        at = found.end() + length
        if name == "end" and length == 0:
            return sections
        if name in sections or len(sections) == MOST_SECTIONS or at > len(output):
            break
        text = output[found.end() : at].decode("ascii", errors="replace")
        text = printable(text, keep="\n\t")
        budget.take(text.count("\n"))
        if max(map(len, text.split("\n"))) > LONGEST_LINE:
            raise _too_much()
        sections[name] = text
    raise _broken("broken off, or mixed with something else", hint="try again")


def _too_much() -> ObserveError:
    return _broken("more than a guest's network can be", hint="look at `ip route show table all`")


def _broken(what: str, *, hint: str) -> ObserveError:
    return ObserveError(f"what the guest says of its network is {what}", hint=hint)


def _pairs(lines: Sequence[str], *, between: str = " ") -> list[tuple[str, str]]:
    return [
        (key, value)
        for key, is_pair, value in (line.partition(between) for line in lines)
        if is_pair
    ]


def _of_release(pairs: Sequence[tuple[str, str]], key: str) -> str | None:
    value = next((value.strip("\"'") for name, value in pairs if name == key), "")
    return value if _WORD.fullmatch(value) else None


def _decapsulated(lines: Sequence[str]) -> Iterator[tuple[Family, int]]:
    """`port 6080 gue`, of IPv6 with -6 behind it."""
    for line in lines:
        found = re.match(r"port ([0-9]{1,5})\b", line)
        words = line.split()
        if found and "gue" in words:
            yield (Family.INET6 if "-6" in words else Family.INET), int(found[1])


def _checksums(lines: Sequence[str]) -> Mapping[str, bool]:
    found: dict[str, bool] = {}
    for line in lines:
        match line.split():
            case [interface, "tx-checksumming:", state, *_] if INTERFACE.fullmatch(interface):
                found[interface] = state != "off"
            case _:
                pass
    return found


def _units(lines: Sequence[str]) -> Iterator[Unit]:
    for name in ("xenlb-hold", "xenlb-guest"):
        if f"{name} LoadState=loaded" in lines:
            yield Unit(
                name=name,
                active=f"{name} ActiveState=active" in lines,
                enabled=f"{name} UnitFileState=enabled" in lines,
            )
