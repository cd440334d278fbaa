"""The files with which an administrator configures a Debian guest's network, for each of the
programs that Debian has for it, and what has to be enabled for them.

All say the same: eth0 has its addresses and a default route, and nothing else is touched. Service
addresses are not here: they are what tests deliver beside these files.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Final

from tests.lab.debian.definition import Definition, Network

# What the image masks (masked-units) and any real guest runs: modules of modules-load.d; devices
# that udev has seen, without which networkd and NetworkManager touch none (in a container, whose
# /sys is read-only, udevd does not start, and they do without).
COMMON: Final = (
    "systemd-modules-load.service",
    "systemd-udev-trigger.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udevd.service",
)
# networkctl, netplan and nmcli talk over D-Bus.
DBUS: Final = ("dbus.service", "dbus.socket")
UNMASKED: Final[Mapping[Network, Sequence[str]]] = {
    "lab": (),
    "ifupdown": COMMON,
    "networkd": (*COMMON, *DBUS),
    "netplan": (*COMMON, *DBUS),
    "network-manager": (*COMMON, *DBUS),
}
GENERATORS: Final[Mapping[Network, Sequence[str]]] = {
    "lab": (),
    "ifupdown": (),
    "networkd": (),
    # It writes networkd's files to /run, and enables networkd.
    "netplan": ("netplan",),
    "network-manager": (),
}
# As `systemctl enable` makes them: folder or alias → unit.
ENABLED: Final[Mapping[Network, Sequence[tuple[str, str]]]] = {
    "lab": (("multi-user.target.wants", "lab-network.service"),),
    "ifupdown": (
        ("multi-user.target.wants", "networking.service"),
        ("network-online.target.wants", "networking.service"),
    ),
    "networkd": (
        ("dbus-org.freedesktop.network1.service", "systemd-networkd.service"),
        ("multi-user.target.wants", "systemd-networkd.service"),
        ("network-online.target.wants", "systemd-networkd-wait-online.service"),
        ("sockets.target.wants", "systemd-networkd.socket"),
        ("sysinit.target.wants", "systemd-network-generator.service"),
    ),
    "netplan": (),
    "network-manager": (
        ("dbus-org.freedesktop.nm-dispatcher.service", "NetworkManager-dispatcher.service"),
        ("multi-user.target.wants", "NetworkManager.service"),
        ("network-online.target.wants", "NetworkManager-wait-online.service"),
    ),
}


def files(definition: Definition) -> dict[str, str]:
    """Path in the guest → content."""
    match definition.network:
        case "lab":
            return {}
        case "ifupdown":
            return {"/etc/network/interfaces": _interfaces(definition)}
        case "networkd":
            return {"/etc/systemd/network/20-eth0.network": _networkd(definition)}
        case "netplan":
            return {"/etc/netplan/01-eth0.yaml": _netplan(definition)}
        case "network-manager":
            connections = "/etc/NetworkManager/system-connections"
            return {f"{connections}/eth0.nmconnection": _connection(definition)}


def _interfaces(definition: Definition) -> str:
    stanzas = [
        "source /etc/network/interfaces.d/*\n",
        "auto lo\niface lo inet loopback\n",
    ]
    for family, addresses, gateway in _families(definition):
        for number, address in enumerate(addresses):
            auto = "" if len(stanzas) > 2 else "auto eth0\n"
            route = f"    gateway {gateway}\n" if gateway and number == 0 else ""
            stanzas.append(f"{auto}iface eth0 {family} static\n    address {address}\n{route}")
    return "\n".join(stanzas)


def _families(definition: Definition) -> list[tuple[str, list[str], str]]:
    """ifupdown's name of each family, the addresses and the gateway."""
    return [
        ("inet", definition.of_family(4), definition.gateway),
        ("inet6", definition.of_family(6), definition.gateway6),
    ]


def _networkd(definition: Definition) -> str:
    # Nobody advertises routers here, and networkd would wait 12 s for one before it calls the
    # network configured.
    lines = ["[Match]", "Name=eth0", "", "[Network]", "IPv6AcceptRA=no"]
    for _, addresses, gateway in _families(definition):
        lines += [f"Address={address}" for address in addresses]
        lines += [f"Gateway={gateway}"] if gateway else []
    return "\n".join(lines) + "\n"


def _netplan(definition: Definition) -> str:
    families = _families(definition)
    lines = ["network:", "  version: 2", "  renderer: networkd", "  ethernets:", "    eth0:"]
    lines += ["      accept-ra: false", "      addresses:"]
    lines += [f'        - "{address}"' for _, addresses, _ in families for address in addresses]
    gateways = [gateway for _, _, gateway in families if gateway]
    lines += ["      routes:"] if gateways else []
    for gateway in gateways:
        lines += ["        - to: default", f'          via: "{gateway}"']
    return "\n".join(lines) + "\n"


def _connection(definition: Definition) -> str:
    identity = uuid.uuid5(uuid.NAMESPACE_DNS, f"eth0.{definition.name}.guest.lab")
    parts = [
        f"[connection]\nid=eth0\nuuid={identity}\ntype=ethernet\ninterface-name=eth0\n",
        "[ethernet]\n",
    ]
    for section, (_, addresses, gateway) in zip(
        ("ipv4", "ipv6"), _families(definition), strict=True
    ):
        method = "manual" if addresses else "disabled" if section == "ipv4" else "link-local"
        lines = [f"[{section}]", f"method={method}"]
        lines += [f"address{number}={each}" for number, each in enumerate(addresses, start=1)]
        lines += [f"gateway={gateway}"] if gateway else []
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)
