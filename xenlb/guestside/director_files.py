"""Files of the director for `director: {addresses: leave}`.

They set the service addresses in its network configuration, and the sysctls.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import assert_never

from xenlb.director.sysctls import (
    SYSCTL_FILE,
    kernel_version,
    required_sysctls,
    router_advertisement_interfaces,
    sysctl_file_text,
)
from xenlb.guestside.install.operations import GuestFile
from xenlb.guestside.render import native_files
from xenlb.guestside.render.facts import Facts
from xenlb.guestside.render.template import OVERRIDES
from xenlb.guestside.requirements.compile import NeedsError
from xenlb.ipvs.table import IPAddress
from xenlb.model.guest_side import System
from xenlb.model.settings import Settings


def director_files(
    settings: Settings,
    *,
    system: System,
    facts: Facts | None = None,
    kernel: tuple[int, int] | None = None,
    overrides: Path = OVERRIDES,
) -> tuple[GuestFile, ...]:
    """The files of the director. Raises TemplateError, and NeedsError for missing settings.

    `kernel`: major and minor version, by default of the running one.
    """
    renderer = native_files.Renderer(overrides=overrides)
    sysctls = required_sysctls(
        settings,
        kernel or kernel_version(),
        advertised_interfaces=router_advertisement_interfaces(),
    )
    files: list[GuestFile] = []
    if sysctls:
        text = sysctl_file_text(sysctls, by="director: {addresses: leave}")
        files.append(GuestFile(path=str(SYSCTL_FILE.relative_to("/")), text=text))
    addresses = sorted(settings.service_addresses(), key=lambda a: (a.version, int(a)))
    if addresses:
        interface = settings.director.interface
        if interface is None:
            raise NeedsError(
                "the interface for the service addresses is unknown",
                hint="set  director: {interface: eth0, addresses: leave}",
            )
        files += _addresses(addresses, interface, system, facts or Facts(), renderer)
    return tuple(files)


def _addresses(
    addresses: list[IPAddress],
    interface: str,
    system: System,
    facts: Facts,
    renderer: native_files.Renderer,
) -> Iterator[GuestFile]:
    name = native_files.file_name(interface, of="an interface")
    values: dict[str, object] = {"interface": name, "addresses": addresses}
    four = [address for address in addresses if address.version == 4]
    six = [address for address in addresses if address.version == 6]
    if system is System.NETPLAN and facts.netplan_by_manager:
        system = System.NETWORK_MANAGER
    match system:
        case System.IFUPDOWN:
            yield renderer.file("etc/network/if-up.d/xenlb", "director/if-up", values, mode=0o755)
        case System.NETWORKD | System.NETPLAN:
            # netplan cannot turn off duplicate address detection, which would find the other
            # director. networkd can, in a drop-in for the file that netplan generates.
            network_file = facts.link(interface).network_file
            if network_file is None:
                raise NeedsError(
                    f"the .network file of {interface} is unknown",
                    hint=f"give the file that `networkctl status {interface}` names as "
                    "--network-file",
                )
            name = native_files.file_name(network_file, of="a .network file")
            path = f"{native_files.NETWORKD}/{name}.d/xenlb.conf"
            yield renderer.file(path, "networkd/addresses.conf", {"addresses": addresses})
        case System.NETWORK_MANAGER:
            path = "etc/NetworkManager/dispatcher.d/60-xenlb"
            yield renderer.file(path, "director/dispatcher", values, mode=0o755)
        case System.NETWORK_SCRIPTS:
            yield from native_files.aliases(name, four, renderer)
            if six:
                values["addresses"] = six
                path = "usr/sbin/ifup-local"
                yield renderer.block(path, "director/ifup-local", values, mode=0o755)
        case System.SHELL:
            raise NeedsError(
                "the network software of this host is unknown",
                hint="let the agent set the addresses: director: {addresses: manage}",
            )
        case _:
            assert_never(system)
