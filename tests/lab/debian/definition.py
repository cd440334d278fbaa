"""What a Debian guest is defined by, and `define_debian_guest`, which both labs have from here.

How the guest comes to its disk and its domain is each lab's (tests/lab/uml/debian.py,
tests/lab/xen/debian.py); what its files say is in guest_files.py and networks.py.
"""

from __future__ import annotations

import abc
import dataclasses
import ipaddress
from collections.abc import Mapping, Sequence
from typing import Generic, Literal, TypeVar

from tests.lab.debian import ssh as keys
from tests.lab.host import LabError, LabHost

Init = Literal["systemd", "sysvinit"]
# What sets the guest's addresses: the lab's own script, or what real guests have for it.
Network = Literal["lab", "ifupdown", "networkd", "netplan", "network-manager"]
Web = Literal["server", "nginx"]
Method = Literal["masquerade", "gatewaying", "tunnel"]

MEMORY_MIB = 256
# The director's addresses on the labs' bridges.
GATEWAYS = {"br0": ("10.0.0.1", "fd00:10::1"), "front0": ("192.0.2.1", "fd00:2::1")}

GuestT = TypeVar("GuestT")


def prefixed(address: str) -> str:
    """The address with the prefix length of the labs' networks."""
    return f"{address}/{64 if ':' in address else 24}"


def gateway(bridge: str, address: str) -> str:
    """The director's address on a bridge, of the family of `address`."""
    four, six = GATEWAYS[bridge]
    return six if ipaddress.ip_address(address).version == 6 else four


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """See `DebianGuests.define_debian_guest`; an empty gateway is none."""

    name: str
    address: str
    addresses: Sequence[str]  # all of eth0's, `address` first
    gateway: str
    gateway6: str
    ports: Sequence[int]
    vips: Sequence[str]
    method: Method
    network: Network
    web: Web
    ssh: keys.Keys | None
    persistent: bool
    init: Init
    files: Mapping[str, str | bytes]
    units: Sequence[str]
    mac: str | None
    metadata: str
    memory_mib: int

    def __post_init__(self) -> None:
        if self.network != "lab" and (self.vips or self.method == "tunnel"):
            raise LabError(
                f"guest {self.name}: only the network `lab` takes service addresses and tunnels; "
                f"with {self.network} they are what a test delivers"
            )
        if self.init == "sysvinit" and (
            self.network not in ("lab", "ifupdown") or self.web != "server"
        ):
            raise LabError(
                f"guest {self.name}: the image with sysvinit has only the networks `lab` and "
                "`ifupdown`, and the labs' own server"
            )

    def of_family(self, version: Literal[4, 6]) -> list[str]:
        """The addresses of that IP version, with their prefix length."""
        return [
            prefixed(address)
            for address in self.addresses
            if ipaddress.ip_address(address).version == version
        ]


class DebianGuests(LabHost, abc.ABC, Generic[GuestT]):
    """A lab that has Debian guests."""

    def define_debian_guest(
        self,
        name: str,
        address: str,
        *,
        services: Sequence[int] = (80,),
        vip: str | Sequence[str] | None = None,
        method: Method = "gatewaying",
        address6: str | None = None,
        addresses: Sequence[str] = (),
        gateway: str | None = None,
        gateway6: str | None = None,
        network: Network = "lab",
        web: Web = "server",
        ssh: bool = False,
        persistent: bool = False,
        init: Init = "systemd",
        files: Mapping[str, str | bytes] | None = None,
        units: Sequence[str] = (),
        mac: str | None = None,
        metadata: str = "",
        memory_mib: int = MEMORY_MIB,
    ) -> GuestT:
        """Defines a guest with Debian's systemd (or sysvinit) as its init; does not start it.

        web.service serves `services` (HTTP and UDP echo) and stops at once when asked to; with
        `web="nginx"` it is nginx, HTTP only, which answers with the guest's name. `vip`: service
        addresses the guest takes for itself, only with the network `lab`. `addresses`: further
        ones of eth0. `gateway`, `gateway6`: the director unless others are named; "" for none.
        `network`: what sets all this, by that program's own files. `ssh`: `ssh root@ADDRESS` works
        on the host. `persistent`: what it writes outlives a reboot (of the User-mode Linux lab's
        guests it always does). `files`: path in the guest → content (a program when it starts with
        #!); `units`: names of units (or init scripts) to enable. `metadata`: elements for the
        domain's <metadata>.
        """
        all_addresses = [address, *([address6] if address6 else []), *addresses]
        definition = Definition(
            name=name,
            address=address,
            addresses=all_addresses,
            gateway=_gateway(gateway, all_addresses, version=4),
            gateway6=_gateway(gateway6, all_addresses, version=6),
            ports=services,
            vips=vips_of(vip),
            method=method,
            network=network,
            web=web,
            ssh=keys.made() if ssh else None,
            persistent=persistent,
            init=init,
            files=files or {},
            units=units,
            mac=mac,
            metadata=metadata,
            memory_mib=memory_mib,
        )
        if definition.ssh:
            for path, (content, mode) in definition.ssh.files_of_the_host().items():
                self.write(path, content, mode)
        return self._define_debian_guest(definition)

    @abc.abstractmethod
    def _define_debian_guest(self, definition: Definition) -> GuestT:
        """The lab's part of it."""


def vips_of(vip: str | Sequence[str] | None) -> list[str]:
    return [vip] if isinstance(vip, str) else list(vip or ())


def _gateway(given: str | None, addresses: Sequence[str], *, version: Literal[4, 6]) -> str:
    if given is not None:
        return given
    of_family = [each for each in addresses if ipaddress.ip_address(each).version == version]
    return gateway("br0", of_family[0]) if of_family else ""
