"""The files of each system that configures networks, as it says natively what a guest needs: which
of templates/<system>/, where, and with what values. What a system cannot say is no part of it; that
is systems.py's.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from xenlb.guestside.install.operations import GuestFile
from xenlb.guestside.render.facts import LOOPBACK_FILE, MANAGES_LOOPBACK, Facts
from xenlb.guestside.render.template import TemplateError, UnsafeValue, quoted, render, safe
from xenlb.guestside.requirements.needs import Needs, Route, Rule, TunnelDevice
from xenlb.guestside.requirements.needs import TunnelKind as Kind
from xenlb.ipvs.table import Family, IPAddress
from xenlb.model.guest_side import Init

Files = Iterator[GuestFile]

SCRIPTS = "etc/sysconfig/network-scripts"
NETWORKD = "etc/systemd/network"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A route of a table of its own, and the rules by which packets come there."""

    route: Route
    rules: tuple[Rule, ...]

    @property
    def version(self) -> int:
        return self.route.gateway.version


@dataclass(frozen=True, slots=True, kw_only=True)
class Renderer:
    """Files from templates of one place."""

    overrides: Path

    def file(
        self, path: str, template: str, values: Mapping[str, object], *, mode: int = 0o644
    ) -> GuestFile:
        text = render(template, values, overrides=self.overrides)
        return GuestFile(path=path, text=text, mode=mode)

    def block(
        self, path: str, template: str, values: Mapping[str, object], *, mode: int = 0o644
    ) -> GuestFile:
        return replace(self.file(path, template, values, mode=mode), block=True)


def file_name(name: str, *, of: str) -> str:
    """A name from the guest that becomes part of a path. Raises TemplateError."""
    try:
        if safe(name) and "/" not in name and not name.startswith("."):
            return name
    except UnsafeValue:
        pass
    raise TemplateError(f"the guest says that {quoted(name)} is the name of {of}; it cannot be")


def sysctl_values(needs: Needs) -> list[dict[str, object]]:
    """For templates: the path below /proc/sys, and the key as sysctl.conf(5) has it, which needs
    slashes where an interface's name has a dot."""
    made = {tunnel.name for tunnel in needs.tunnels}
    found: list[dict[str, object]] = []
    for each in needs.sysctls:
        device = next((part for part in each.name.split("/") if part in made), None)
        key = each.name if "." in each.name else each.name.replace("/", ".")
        found.append({"key": key, "path": each.name, "value": each.value, "device": device})
    return found


def ways(needs: Needs) -> tuple[Way, ...]:
    return tuple(
        Way(
            route=route,
            rules=tuple(
                rule
                for rule in needs.rules
                if rule.table == route.table
                and (rule.family is Family.INET) == (route.gateway.version == 4)
            ),
        )
        for route in needs.routes
    )


def way_values(found: Iterable[Way]) -> list[dict[str, object]]:
    """`hex`: a mark as `ip rule` shows it."""
    return [
        {
            "version": way.version,
            "interface": way.route.interface,
            "gateway": way.route.gateway,
            "table": way.route.table,
            "rules": [
                {
                    "version": way.version,
                    "table": rule.table,
                    "source": rule.source,
                    "mark": rule.mark,
                    "hex": None if rule.mark is None else hex(rule.mark),
                }
                for rule in way.rules
            ],
        }
        for way in found
    ]


def _on(needs: Needs, device: str) -> list[IPAddress]:
    return [each.address for each in needs.addresses if each.device == device]


def _by_interface(found: Iterable[Way]) -> Mapping[str, list[Way]]:
    links: dict[str, list[Way]] = {}
    for way in found:
        links.setdefault(way.route.interface, []).append(way)
    return links


def sysctls(needs: Needs, files: Renderer) -> Files:
    """systemd applies it before the network, and what is of a device once more when that comes.
    networkd leaves them alone, rp_filter too, unless a link has IPv4ReversePathFilter= (since 255).
    """
    if needs.sysctls:
        values = {"sysctls": sysctl_values(needs)}
        yield files.file("etc/sysctl.d/60-xenlb.conf", "sysctl.conf", values)


def modules(needs: Needs, files: Renderer) -> Files:
    """systemd reads it, and Debian's init script of kmod."""
    names = [each.module for each in needs.tunnels]
    names += ["fou" if e.family is Family.INET else "fou6" for e in needs.decapsulations]
    if names:
        values = {"modules": list(dict.fromkeys(names))}
        yield files.file("etc/modules-load.d/xenlb.conf", "modules.conf", values)


def ifupdown(needs: Needs, facts: Facts, files: Renderer) -> Files:
    if needs.sysctls or needs.tunnels or needs.addresses:
        values = {
            "sysctls": sysctl_values(needs),
            "loopback": _on(needs, "lo"),
            "tunnels": [_tunnel_values(each, needs) for each in needs.tunnels],
        }
        if facts.sources_interfaces_d:
            yield files.file("etc/network/interfaces.d/xenlb", "ifupdown/interfaces", values)
        else:
            yield files.block("etc/network/interfaces", "ifupdown/interfaces", values)
    if needs.routes:
        path = "etc/network/if-up.d/xenlb"
        yield files.file(path, "ifupdown/if-up", {"ways": way_values(ways(needs))}, mode=0o755)


def _tunnel_values(tunnel: TunnelDevice, needs: Needs) -> dict[str, object]:
    return {
        "name": tunnel.name,
        "kind": tunnel.kind,
        "module": tunnel.module,
        "local": tunnel.local,
        "checksums": tunnel.checksums,
        "addresses": _on(needs, tunnel.name),
        "sysctls": [each for each in sysctl_values(needs) if each["device"] == tunnel.name],
    }


def networkd_makes(tunnel: TunnelDevice) -> bool:
    """Older ones want the other end of tunnels in IPv6, and none knows of GRE's checksums."""
    return tunnel.kind not in {Kind.IP6TNL, Kind.IP6GRE} and not tunnel.checksums


def networkd(needs: Needs, facts: Facts, files: Renderer) -> Files:
    # networkd takes away the addresses, and rules of its links, that it has not set itself when it
    # takes up a link anew: what it can say must be in its own files.
    if loopback := _on(needs, "lo"):
        if facts.loopback_file is None:
            path, template = f"{NETWORKD}/{LOOPBACK_FILE}", "networkd/addresses.network"
        else:
            name = file_name(facts.loopback_file, of="a .network file")
            path, template = f"{NETWORKD}/{name}.d/xenlb.conf", "networkd/addresses.conf"
        yield files.file(path, template, {"device": "lo", "addresses": loopback})
    for tunnel in needs.tunnels:
        if not networkd_makes(tunnel):
            continue
        device = file_name(tunnel.name, of="a tunnel")
        name = f"{NETWORKD}/60-xenlb-{device.removeprefix('xenlb-')}"
        if tunnel.local is not None:
            values = {"tunnel": _tunnel_values(tunnel, needs)}
            yield files.file(f"{name}.netdev", "networkd/tunnel.netdev", values)
        yield files.file(
            f"{name}.network",
            "networkd/addresses.network",
            {"device": tunnel.name, "addresses": _on(needs, tunnel.name)},
        )
    for each in needs.decapsulations:
        if each.family is Family.INET:
            path = f"{NETWORKD}/60-xenlb-gue{each.port}.netdev"
            yield files.file(path, "networkd/gue.netdev", {"port": each.port})
    yield from _routes(needs, facts, files)


def _routes(needs: Needs, facts: Facts, files: Renderer) -> Files:
    for interface, found in _by_interface(ways(needs)).items():
        if network_file := facts.link(interface).network_file:
            name = file_name(network_file, of="a .network file")
            path = f"{NETWORKD}/{name}.d/xenlb.conf"
            yield files.file(path, "networkd/routes.conf", {"ways": way_values(found)})


def netplan(needs: Needs, facts: Facts, files: Renderer) -> Files:
    if loopback := _on(needs, "lo"):
        path = "etc/netplan/90-xenlb.yaml"
        # Newer ones warn of a file that others may read: there are passwords in some.
        yield files.file(path, "netplan/xenlb.yaml", {"loopback": loopback}, mode=0o600)
    # To networkd, beside what netplan makes for it: netplan refuses all of its files, and the guest
    # starts without a network, where one of them has an interface under another kind of device.
    yield from _routes(needs, facts, files)


def network_manager(needs: Needs, facts: Facts, files: Renderer, *, left: bool) -> Files:
    loopback = _on(needs, "lo")
    if loopback and facts.manager_version >= MANAGES_LOOPBACK:
        # One that others may read is ignored.
        yield files.file(
            "etc/NetworkManager/system-connections/xenlb-lo.nmconnection",
            "network-manager/lo.nmconnection",
            {"loopback": loopback},
            mode=0o600,
        )
    if left:
        path = "etc/NetworkManager/dispatcher.d/60-xenlb"
        yield files.file(path, "network-manager/dispatcher", {}, mode=0o755)


def network_scripts(
    needs: Needs, init: Init, facts: Facts, files: Renderer, *, left: bool
) -> Files:
    match init:
        case Init.SYSTEMD:
            yield from sysctls(needs, files)
        case Init.SYSVINIT if needs.sysctls:
            # Red Hat 5 and 6 read this one file, before the network and with it.
            settings = {"sysctls": sysctl_values(needs)}
            yield files.block("etc/sysctl.conf", "sysctl.conf", settings)
        case _:
            pass
    yield from aliases("lo", [each for each in _on(needs, "lo") if each.version == 4], files)
    for way in ways(needs):
        if facts.link(way.route.interface).address_routes:
            continue
        name = file_name(way.route.interface, of="an interface")
        (values,) = way_values([way])
        six = "6" if way.version == 6 else ""
        yield files.block(f"{SCRIPTS}/route{six}-{name}", "network-scripts/route", {"way": values})
        yield files.block(f"{SCRIPTS}/rule{six}-{name}", "network-scripts/rule", {"way": values})
    if left:
        # /sbin is a link in what has systemd.
        folder = "usr/sbin" if init is Init.SYSTEMD else "sbin"
        yield files.block(f"{folder}/ifup-local", "network-scripts/ifup-local", {}, mode=0o755)
        if init is Init.SYSVINIT:
            # For a guest that was off when it got its files: nobody has run chkconfig in it.
            path = "etc/rc.d/rc.local"
            yield files.block(path, "network-scripts/rc.local", {}, mode=0o755)


def aliases(device: str, addresses: Iterable[IPAddress], files: Renderer) -> Files:
    for number, address in enumerate(addresses):
        # The label is no number: those are the owner's.
        label = f"xenlb{number}"
        yield files.file(
            f"{SCRIPTS}/ifcfg-{device}:{label}",
            "network-scripts/ifcfg-alias",
            {"device": device, "label": label, "address": address},
        )
