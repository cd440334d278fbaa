"""The files of each network configuration system: paths, templates and values.

A system's files cover only the needs that it can express.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xenlb.guestside.install.operations import GuestFile
from xenlb.guestside.render.facts import LOOPBACK_FILE, MANAGES_LOOPBACK, Facts
from xenlb.guestside.render.template import TemplateError, UnsafeValue, quoted, render, safe
from xenlb.guestside.requirements.needs import Needs, TunnelDevice
from xenlb.guestside.requirements.needs import TunnelKind as Kind
from xenlb.ipvs.table import Family, IPAddress, family_of
from xenlb.model.guest_side import Init

Files = Iterator[GuestFile]
Values = dict[str, Any]

SCRIPTS = "etc/sysconfig/network-scripts"
NETWORKD = "etc/systemd/network"


@dataclass(frozen=True, slots=True, kw_only=True)
class Renderer:
    """Makes files from templates; `overrides`: the folder of the operator's own."""

    overrides: Path

    def file(
        self, path: str, template: str, values: Mapping[str, object], *, mode: int = 0o644
    ) -> GuestFile:
        """Render a whole file; `path` is below the guest's root. Raises TemplateError."""
        text = render(template, values, overrides=self.overrides)
        return GuestFile(path=path, text=text, mode=mode)

    def block(
        self, path: str, template: str, values: Mapping[str, object], *, mode: int = 0o644
    ) -> GuestFile:
        """Render a block in a file that is not xenlb's. Raises TemplateError."""
        return replace(self.file(path, template, values, mode=mode), block=True)


def file_name(name: str, *, of: str) -> str:
    """A name from the guest, safe as a part of a path. Raises TemplateError."""
    try:
        if safe(name) and "/" not in name and not name.startswith("."):
            return name
    except UnsafeValue:
        pass
    raise TemplateError(f"the guest reports {quoted(name)} as the name of {of}, which is invalid")


def sysctl_values(needs: Needs) -> list[Values]:
    """The sysctls for templates.

    `path` is below /proc/sys; `key` is the one of sysctl.conf(5), which needs slashes if an
    interface has a dot in its name.
    """
    tunnels = {tunnel.name for tunnel in needs.tunnels}
    return [
        {
            "key": sysctl.name if "." in sysctl.name else sysctl.name.replace("/", "."),
            "path": sysctl.name,
            "value": sysctl.value,
            "device": next((part for part in sysctl.name.split("/") if part in tunnels), None),
        }
        for sysctl in needs.sysctls
    ]


def route_values(needs: Needs) -> list[Values]:
    """The routes for templates, with the rules for their tables; `hex`: a mark as in `ip rule`."""
    return [
        {
            "version": route.gateway.version,
            "interface": route.interface,
            "gateway": route.gateway,
            "table": route.table,
            "rules": [
                {
                    "version": route.gateway.version,
                    "table": rule.table,
                    "source": rule.source,
                    "mark": rule.mark,
                    "hex": None if rule.mark is None else hex(rule.mark),
                }
                for rule in needs.rules
                if (rule.table, rule.family) == (route.table, family_of(route.gateway))
            ],
        }
        for route in needs.routes
    ]


def _on(needs: Needs, device: str) -> list[IPAddress]:
    return [need.address for need in needs.addresses if need.device == device]


def sysctls(needs: Needs, renderer: Renderer) -> Files:
    """The file in sysctl.d, for every system but network-scripts without systemd.

    systemd applies it before the network, and a device's sysctls again when the device appears.
    networkd does not change them, except rp_filter for IPv4ReversePathFilter= (since 255).
    """
    if needs.sysctls:
        values = {"sysctls": sysctl_values(needs)}
        yield renderer.file("etc/sysctl.d/60-xenlb.conf", "sysctl.conf", values)


def modules(needs: Needs, renderer: Renderer) -> Files:
    """The list of kernel modules, which systemd and Debian's init script of kmod load at boot."""
    names = [tunnel.module for tunnel in needs.tunnels]
    names += ["fou" if port.family is Family.INET else "fou6" for port in needs.decapsulations]
    if names:
        values = {"modules": list(dict.fromkeys(names))}
        yield renderer.file("etc/modules-load.d/xenlb.conf", "modules.conf", values)


def ifupdown(needs: Needs, facts: Facts, renderer: Renderer) -> Files:
    """Stanzas in /etc/network/interfaces or interfaces.d, and a script for routes in if-up.d."""
    if needs.sysctls or needs.tunnels or needs.addresses:
        values = {
            "sysctls": sysctl_values(needs),
            "loopback": _on(needs, "lo"),
            "tunnels": [_tunnel_values(tunnel, needs) for tunnel in needs.tunnels],
        }
        if facts.sources_interfaces_d:
            yield renderer.file("etc/network/interfaces.d/xenlb", "ifupdown/interfaces", values)
        else:
            yield renderer.block("etc/network/interfaces", "ifupdown/interfaces", values)
    if needs.routes:
        path, values = "etc/network/if-up.d/xenlb", {"routes": route_values(needs)}
        yield renderer.file(path, "ifupdown/if-up", values, mode=0o755)


def _tunnel_values(tunnel: TunnelDevice, needs: Needs) -> Values:
    return {
        "name": tunnel.name,
        "kind": tunnel.kind,
        "module": tunnel.module,
        "local": tunnel.local,
        "checksums": tunnel.checksums,
        "addresses": _on(needs, tunnel.name),
        "sysctls": [value for value in sysctl_values(needs) if value["device"] == tunnel.name],
    }


def networkd_makes(tunnel: TunnelDevice) -> bool:
    """Whether every networkd can make the tunnel.

    Older versions require a remote end for tunnels in IPv6, and none supports GRE checksums.
    """
    return tunnel.kind not in {Kind.IP6TNL, Kind.IP6GRE} and not tunnel.checksums


def networkd(needs: Needs, facts: Facts, renderer: Renderer) -> Files:
    """Files and drop-ins in /etc/systemd/network."""
    # networkd removes addresses and rules that are not in its files when it reconfigures a link.
    if loopback := _on(needs, "lo"):
        if facts.loopback_file is None:
            path, template = f"{NETWORKD}/{LOOPBACK_FILE}", "networkd/addresses.network"
        else:
            name = file_name(facts.loopback_file, of="a .network file")
            path, template = f"{NETWORKD}/{name}.d/xenlb.conf", "networkd/addresses.conf"
        yield renderer.file(path, template, {"device": "lo", "addresses": loopback})
    for tunnel in filter(networkd_makes, needs.tunnels):
        device = file_name(tunnel.name, of="a tunnel")
        name = f"{NETWORKD}/60-xenlb-{device.removeprefix('xenlb-')}"
        if tunnel.local is not None:
            made = {"tunnel": _tunnel_values(tunnel, needs)}
            yield renderer.file(f"{name}.netdev", "networkd/tunnel.netdev", made)
        values = {"device": tunnel.name, "addresses": _on(needs, tunnel.name)}
        yield renderer.file(f"{name}.network", "networkd/addresses.network", values)
    for need in needs.decapsulations:
        if need.family is Family.INET:
            path = f"{NETWORKD}/60-xenlb-gue{need.port}.netdev"
            yield renderer.file(path, "networkd/gue.netdev", {"port": need.port})
    yield from _networkd_routes(needs, facts, renderer)


def _networkd_routes(needs: Needs, facts: Facts, renderer: Renderer) -> Files:
    routes = route_values(needs)
    for interface in dict.fromkeys(route["interface"] for route in routes):
        if network_file := facts.link(interface).network_file:
            name = file_name(network_file, of="a .network file")
            path = f"{NETWORKD}/{name}.d/xenlb.conf"
            values = {"routes": [route for route in routes if route["interface"] == interface]}
            yield renderer.file(path, "networkd/routes.conf", values)


def netplan(needs: Needs, facts: Facts, renderer: Renderer) -> Files:
    """The YAML file for lo, and drop-ins for networkd with the routes."""
    if loopback := _on(needs, "lo"):
        path = "etc/netplan/90-xenlb.yaml"
        # Newer versions warn of files that others may read, since some have passwords.
        yield renderer.file(path, "netplan/xenlb.yaml", {"loopback": loopback}, mode=0o600)
    # A drop-in for networkd: if a netplan file has an interface under another kind of device,
    # netplan rejects all of its files, and the guest starts without a network.
    yield from _networkd_routes(needs, facts, renderer)


def network_manager(needs: Needs, facts: Facts, renderer: Renderer, *, script: bool) -> Files:
    """The profile for lo, and, if the guest needs guest.sh (`script`), a dispatcher script."""
    loopback = _on(needs, "lo")
    if loopback and facts.manager_version >= MANAGES_LOOPBACK:
        # NetworkManager ignores a file that others may read.
        yield renderer.file(
            "etc/NetworkManager/system-connections/xenlb-lo.nmconnection",
            "network-manager/lo.nmconnection",
            {"loopback": loopback},
            mode=0o600,
        )
    if script:
        path = "etc/NetworkManager/dispatcher.d/60-xenlb"
        yield renderer.file(path, "network-manager/dispatcher", {}, mode=0o755)


def network_scripts(
    needs: Needs, init: Init, facts: Facts, renderer: Renderer, *, script: bool
) -> Files:
    """Files and blocks for Red Hat's network scripts; `script`: the guest needs guest.sh."""
    if init is Init.SYSTEMD:
        yield from sysctls(needs, renderer)
    elif needs.sysctls:
        # Red Hat 5 and 6 read only this file, before and with the network.
        yield renderer.block("etc/sysctl.conf", "sysctl.conf", {"sysctls": sysctl_values(needs)})
    yield from aliases("lo", [a for a in _on(needs, "lo") if a.version == 4], renderer)
    for route in route_values(needs):
        if facts.link(route["interface"]).address_routes:
            continue
        name = file_name(route["interface"], of="an interface")
        six = "6" if route["version"] == 6 else ""
        for kind in ("route", "rule"):
            path = f"{SCRIPTS}/{kind}{six}-{name}"
            yield renderer.block(path, f"network-scripts/{kind}", {"route": route})
    if script:
        # With systemd, /sbin is a symbolic link.
        folder = "usr/sbin" if init is Init.SYSTEMD else "sbin"
        yield renderer.block(f"{folder}/ifup-local", "network-scripts/ifup-local", {}, mode=0o755)
        if init is Init.SYSVINIT:
            # For a guest that was off at the installation, where chkconfig did not run.
            path = "etc/rc.d/rc.local"
            yield renderer.block(path, "network-scripts/rc.local", {}, mode=0o755)


def aliases(device: str, addresses: Iterable[IPAddress], renderer: Renderer) -> Files:
    """One ifcfg- file of network-scripts for each address, labelled xenlb0, xenlb1 and so on."""
    for number, address in enumerate(addresses):
        # Labels that are numbers belong to the administrator.
        label = f"xenlb{number}"
        yield renderer.file(
            f"{SCRIPTS}/ifcfg-{device}:{label}",
            "network-scripts/ifcfg-alias",
            {"device": device, "label": label, "address": address},
        )
