"""The init system of a guest, and the software that configures its network: pure.

A running program that reports the interface as its own comes first, then a file that names it.
"""

import re
from collections.abc import Mapping, Sequence, Set

from xenlb.guestside.inspect.observed import NetworkSystem
from xenlb.model.guest_side import Init, System

_FILE = re.compile(r"/(?:etc|run|usr/lib|lib)/systemd/network/([A-Za-z0-9@._-]{1,100}\.network)")
_LINK = re.compile(r"link ([A-Za-z0-9_.:+-]{1,15}) (.+)")
_STANZA = re.compile(r"\s*iface\s+([A-Za-z0-9_.:+-]{1,15})\s")
# The states of an interface that networkd manages (networkctl(1)).
_NETWORKD_MANAGES = frozenset(
    {"pending", "initialized", "configuring", "configured", "failed", "linger"}
)
# NetworkManager's device states: 10 is unmanaged, 20 unavailable, 30 disconnected.
_MANAGED = 30


def init_of(about: Sequence[tuple[str, str]]) -> Init | None:
    """The init system; None for one that xenlb does not support, such as OpenRC."""
    names = {value for key, value in about if key == "init"}
    if "systemd" in names:
        return Init.SYSTEMD
    if "rc-links" in names and not names & {"openrc", "runit", "s6"}:
        return Init.SYSVINIT
    return None


def network_manager_of(network: Sequence[str]) -> tuple[int, int] | None:
    """Major and minor version of a running NetworkManager."""
    if "nm-running running" not in network:
        return None
    for line in network:
        if match := re.match(r"nm-version nmcli tool, version ([0-9]{1,3})\.([0-9]{1,3})", line):
            return int(match[1]), int(match[2])
    return None


def sources_folder(stanzas: Sequence[str]) -> bool:
    """Whether /etc/network/interfaces reads /etc/network/interfaces.d/."""
    return any(
        words[0] in ("source", "source-directory")
        and re.fullmatch(r"(?:/etc/network/)?interfaces\.d(?:/\*)?", words[1])
        for words in (line.split() for line in stanzas)
        if len(words) == 2
    )


def systems_of(
    network: Sequence[str], stanzas: Sequence[str], *, programs: frozenset[str]
) -> Mapping[str, NetworkSystem]:
    """The software that configures each interface, where the output shows it."""
    facts: dict[str, list[str]] = {}
    for line in network:
        if match := _LINK.fullmatch(line):
            facts.setdefault(match[1], []).append(match[2])
    named = {match[1] for line in stanzas if (match := _STANZA.match(line))}
    for name in sorted(named):
        facts.setdefault(name, [])
    known = frozenset(network)
    systems = {
        name: _system(lines, known, programs=programs, stanza=name in named)
        for name, lines in facts.items()
    }
    return {name: system for name, system in systems.items() if system is not None}


def _system(
    facts: Sequence[str], network: Set[str], *, programs: frozenset[str], stanza: bool
) -> NetworkSystem | None:
    ifupdown = "ifup" in programs and "ifupdown-file" in network
    if "networkd active" in network and (system := _networkd(facts)):
        return system
    if ifupdown and "ifup" in facts:
        return NetworkSystem(system=System.IFUPDOWN)
    if "nm-running running" in network and (system := _network_manager(facts)):
        return system
    if ifupdown and stanza:
        return NetworkSystem(system=System.IFUPDOWN)
    if "ifcfg" in facts and "network-scripts" in network:
        address_routes = "address-routes" in facts
        return NetworkSystem(system=System.NETWORK_SCRIPTS, address_routes=address_routes)
    return None


def _value(facts: Sequence[str], key: str) -> str:
    """The rest of the first line that begins with the key, which has its separator."""
    return next((line.removeprefix(key) for line in facts if line.startswith(key)), "")


def _networkd(facts: Sequence[str]) -> NetworkSystem | None:
    file = _FILE.fullmatch(_value(facts, "NETWORK_FILE="))
    if file is None or _value(facts, "ADMIN_STATE=") not in _NETWORKD_MANAGES:
        return None
    system = System.NETPLAN if file[1].startswith("10-netplan-") else System.NETWORKD
    return NetworkSystem(system=system, network_file=file[1])


def _network_manager(facts: Sequence[str]) -> NetworkSystem | None:
    """A device that other software has configured has the state connected "externally"."""
    state = _value(facts, "GENERAL.STATE:")
    number = re.match(r"([0-9]{1,3}) ", state)
    if not number or int(number[1]) < _MANAGED or "externally" in state:
        return None
    netplan = _value(facts, "GENERAL.CONNECTION:").startswith("netplan-")
    system = System.NETPLAN if netplan else System.NETWORK_MANAGER
    return NetworkSystem(system=system, by_manager=True)
