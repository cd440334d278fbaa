"""What a guest shows of its distribution: which init it has, what configures its network. Pure.

The best evidence comes first: who says that he has the interface in hand, then whose files name it.
"""

import re
from collections.abc import Mapping, Sequence, Set

from xenlb.guestside.inspect.observed import NetworkSystem
from xenlb.model.guest_side import Init, System

_FILE = re.compile(r"/(?:etc|run|usr/lib|lib)/systemd/network/([A-Za-z0-9@._-]{1,100}\.network)")
_NETPLAN_FILE = re.compile(r"10-netplan-([A-Za-z0-9._-]{1,40})\.network")
_NETPLAN_CONNECTION = re.compile(r"netplan-([A-Za-z0-9._-]{1,40})")
_LINK = re.compile(r"link ([A-Za-z0-9_.:+-]{1,15}) (.+)")
_STANZA = re.compile(r"\s*iface\s+([A-Za-z0-9_.:+-]{1,15})\s")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# What networkd calls an interface that it has in hand (networkctl(1)).
_IN_HAND = frozenset({"pending", "initialized", "configuring", "configured", "failed", "linger"})
# NetworkManager's states of a device: 10 is unmanaged, 20 unavailable, 30 disconnected.
_MANAGED = 30


def init_of(about: Sequence[tuple[str, str]]) -> Init | None:
    """None for one that xenlb does not know: OpenRC's scripts, for one, are of another form."""
    names = {value for key, value in about if key == "init"}
    if "systemd" in names:
        return Init.SYSTEMD
    if "rc-links" in names and not names & {"openrc", "runit", "s6"}:
        return Init.SYSVINIT
    return None


def network_manager_of(network: Sequence[str]) -> tuple[int, int] | None:
    """Its version, if it runs."""
    if "nm-running running" not in network:
        return None
    for line in network:
        if found := re.match(r"nm-version nmcli tool, version ([0-9]{1,3})\.([0-9]{1,3})", line):
            return int(found[1]), int(found[2])
    return None


def sources_folder(stanzas: Sequence[str]) -> bool:
    """Does /etc/network/interfaces read /etc/network/interfaces.d/?"""
    return any(
        words[0] in ("source", "source-directory")
        and re.fullmatch(r"(?:/etc/network/)?interfaces\.d(?:/\*)?", words[1])
        for words in (line.split() for line in stanzas)
        if len(words) == 2
    )


def systems_of(
    network: Sequence[str], stanzas: Sequence[str], *, programs: frozenset[str]
) -> Mapping[str, NetworkSystem]:
    """By interface, for those that the guest was asked about and has something to say of."""
    says: dict[str, list[str]] = {}
    for line in network:
        if match := _LINK.fullmatch(line):
            says.setdefault(match[1], []).append(match[2])
    named = {match[1] for line in stanzas if (match := _STANZA.match(line))}
    for name in sorted(named):
        says.setdefault(name, [])
    known = frozenset(network)
    found = {
        name: _system(lines, known, programs=programs, stanza=name in named)
        for name, lines in says.items()
    }
    return {name: system for name, system in found.items() if system is not None}


def _system(
    says: Sequence[str], network: Set[str], *, programs: frozenset[str], stanza: bool
) -> NetworkSystem | None:
    ifupdown = "ifup" in programs and "ifupdown-file" in network
    if "networkd active" in network and (system := _networkd(says)):
        return system
    if ifupdown and "ifup" in says:
        return NetworkSystem(system=System.IFUPDOWN)
    if "nm-running running" in network and (system := _network_manager(says)):
        return system
    if ifupdown and stanza:
        return NetworkSystem(system=System.IFUPDOWN)
    if "ifcfg" in says and "network-scripts" in network:
        return NetworkSystem(system=System.NETWORK_SCRIPTS, address_routes="address-routes" in says)
    return None


def _value(says: Sequence[str], key: str, *, between: str) -> str:
    return next(
        (line.removeprefix(key + between) for line in says if line.startswith(key + between)), ""
    )


def _networkd(says: Sequence[str]) -> NetworkSystem | None:
    file = _FILE.fullmatch(_value(says, "NETWORK_FILE", between="="))
    if file is None or _value(says, "ADMIN_STATE", between="=") not in _IN_HAND:
        return None
    if netplan := _NETPLAN_FILE.fullmatch(file[1]):
        return NetworkSystem(system=System.NETPLAN, network_file=file[1], netplan_id=netplan[1])
    return NetworkSystem(system=System.NETWORKD, network_file=file[1])


def _network_manager(says: Sequence[str]) -> NetworkSystem | None:
    """A device that it only shows, because somebody else has configured it, is said to be
    connected "externally"."""
    state = _value(says, "GENERAL.STATE", between=":")
    number = re.match(r"([0-9]{1,3}) ", state)
    if not number or int(number[1]) < _MANAGED or "externally" in state:
        return None
    name = _NETPLAN_CONNECTION.fullmatch(_value(says, "GENERAL.CONNECTION", between=":"))
    uuid = _UUID.fullmatch(_value(says, "GENERAL.CON-UUID", between=":"))
    return NetworkSystem(
        system=System.NETPLAN if name else System.NETWORK_MANAGER,
        netplan_id=name[1] if name else None,
        connection=uuid[0] if uuid else None,
        by_manager=True,
    )
