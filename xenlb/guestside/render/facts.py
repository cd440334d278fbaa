"""Facts about a guest that the files of its network configuration depend on."""

from dataclasses import dataclass

# xenlb's file for lo, if the guest has none of its own for networkd.
LOOPBACK_FILE = "60-xenlb-lo.network"
# The first NetworkManager that sets addresses of the loopback device.
MANAGES_LOOPBACK = (1, 42)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkLink:
    """An interface in the guest's network configuration.

    `network_file`: the name, without a folder, of the .network file that systemd-networkd uses for
    it, also behind netplan (NETWORK_FILE in /run/systemd/netif/links/INDEX); None if unknown.
    `address_routes`: its route- file in /etc/sysconfig/network-scripts has the form ADDRESS0=, so
    ifup does not read routes in the form of ip(8).
    """

    interface: str
    network_file: str | None = None
    address_routes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Facts about a guest; the defaults are those of a fresh installation.

    The guest reports them, so they are untrusted: names are checked before use.

    `links`: the interfaces with known facts. `sources_interfaces_d`: /etc/network/interfaces reads
    interfaces.d/*. `loopback_file`: the guest's own .network file for lo. `netplan_by_manager`:
    netplan's renderer is NetworkManager. `manager_version`: NetworkManager's, major and minor.
    `applies_sysctls`: sysctl.d is read at boot. systemd does not read it in a container, where
    /proc/sys is read-only except net/ipv4 and net/ipv6.
    """

    links: tuple[NetworkLink, ...] = ()
    sources_interfaces_d: bool = True
    loopback_file: str | None = None
    netplan_by_manager: bool = False
    manager_version: tuple[int, int] = MANAGES_LOOPBACK
    applies_sysctls: bool = True

    def link(self, interface: str) -> NetworkLink:
        """The facts about an interface; one without known facts gets the defaults."""
        links = (link for link in self.links if link.interface == interface)
        return next(links, NetworkLink(interface=interface))
