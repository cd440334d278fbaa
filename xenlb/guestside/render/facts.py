"""What has to be known of a guest to write the files of its network configuration."""

from dataclasses import dataclass

# What xenlb gives to networkd for lo, where the guest has no file of its own.
LOOPBACK_FILE = "60-xenlb-lo.network"
# The first NetworkManager that sets addresses of the loopback device.
MANAGES_LOOPBACK = (1, 42)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkLink:
    """An interface as the guest's network configuration knows it.

    `network_file`: the name, without a folder, of the .network file that systemd-networkd takes for
    it, also behind netplan (NETWORK_FILE in /run/systemd/netif/links/INDEX); None where it is not
    known, and nothing can be added to it then. `address_routes`: its route- file in
    /etc/sysconfig/network-scripts is there and written as ADDRESS0=, beside which ifup does not
    read routes in the form of ip(8)."""

    interface: str
    network_file: str | None = None
    address_routes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What has to be known of a guest to write its files; the defaults are those of a fresh
    installation. It is what the guest says of itself: names are looked at before use.

    `links`: of its interfaces those of which something is known. `sources_interfaces_d`:
    /etc/network/interfaces has a line that reads interfaces.d/*. `loopback_file`: the name of
    networkd's .network file for lo, where the guest has one of its own. `netplan_by_manager`:
    netplan's renderer is NetworkManager. `manager_version`: NetworkManager's, major and minor.
    `applies_sysctls`: sysctl.d is read at boot, which systemd does not do in a container (/proc/sys
    is read-only there, though net/ipv4 and net/ipv6 below it may be written)."""

    links: tuple[NetworkLink, ...] = ()
    sources_interfaces_d: bool = True
    loopback_file: str | None = None
    netplan_by_manager: bool = False
    manager_version: tuple[int, int] = MANAGES_LOOPBACK
    applies_sysctls: bool = True

    def link(self, interface: str) -> NetworkLink:
        found = (link for link in self.links if link.interface == interface)
        return next(found, NetworkLink(interface=interface))
