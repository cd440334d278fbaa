"""The director's own files, where not the agent puts the service addresses on its interface
(`director: {addresses: leave}`): as its network configuration has them, and the sysctls for it."""

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
    """`kernel`: major and minor, by default of the one that runs. Raises TemplateError, and
    NeedsError where it is not known what to write."""
    files = native_files.Renderer(overrides=overrides)
    sysctls = required_sysctls(
        settings,
        kernel or kernel_version(),
        advertised_interfaces=router_advertisement_interfaces(),
    )
    every: list[GuestFile] = []
    if sysctls:
        text = sysctl_file_text(sysctls, by="director: {addresses: leave}")
        every.append(GuestFile(path=str(SYSCTL_FILE.relative_to("/")), text=text))
    addresses = sorted(settings.service_addresses(), key=lambda each: (each.version, int(each)))
    if addresses:
        interface = settings.director.interface
        if interface is None:
            raise NeedsError(
                "the interface for the service addresses is not known",
                hint="write it: director: {interface: eth0, addresses: leave}",
            )
        every += _addresses(addresses, interface, system, facts or Facts(), files)
    return tuple(every)


def _addresses(
    addresses: list[IPAddress],
    interface: str,
    system: System,
    facts: Facts,
    files: native_files.Renderer,
) -> Iterator[GuestFile]:
    name = native_files.file_name(interface, of="an interface")
    values: dict[str, object] = {"interface": name, "addresses": addresses}
    four = [each for each in addresses if each.version == 4]
    six = [each for each in addresses if each.version == 6]
    if system is System.NETPLAN and facts.netplan_by_manager:
        system = System.NETWORK_MANAGER
    match system:
        case System.IFUPDOWN:
            yield files.file("etc/network/if-up.d/xenlb", "director/if-up", values, mode=0o755)
        case System.NETWORKD | System.NETPLAN:
            # netplan cannot say "without duplicate address detection", which would find the other
            # director; so it is said to networkd, beside what netplan makes for it.
            network_file = facts.link(interface).network_file
            if network_file is None:
                raise NeedsError(
                    f"the .network file of {interface} is not known",
                    hint=f"networkctl status {interface} names it; give it by --network-file",
                )
            name = native_files.file_name(network_file, of="a .network file")
            path = f"{native_files.NETWORKD}/{name}.d/xenlb.conf"
            yield files.file(path, "networkd/addresses.conf", {"addresses": addresses})
        case System.NETWORK_MANAGER:
            path = "etc/NetworkManager/dispatcher.d/60-xenlb"
            yield files.file(path, "director/dispatcher", values, mode=0o755)
        case System.NETWORK_SCRIPTS:
            yield from native_files.aliases(name, four, files)
            if six:
                values["addresses"] = six
                yield files.block("usr/sbin/ifup-local", "director/ifup-local", values, mode=0o755)
        case System.SHELL:
            raise NeedsError(
                "it is not known what configures the network of this host",
                hint="let the agent do it: director: {addresses: manage}",
            )
        case _:
            assert_never(system)
