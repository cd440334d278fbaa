"""What the configuration says of the inside of a guest (`guest-side`): how files get there, when,
and what they are made for. What a guest needs follows from its services
(guestside/needed/)."""

from dataclasses import dataclass
from enum import StrEnum

from xenlb.ipvs.table import IPAddress


class Delivery(StrEnum):
    """How xenlb reaches into a guest."""

    SSH = "ssh"  # the host's own OpenSSH client
    AGENT = "agent"  # QEMU's guest agent
    ROOTFS = "rootfs"  # the files of a guest that is off
    XENSTORE = "xenstore"  # the guest configures itself from what the host writes for it


class OnBoot(StrEnum):
    """What happens when a guest runs, before it is let into the table."""

    APPLY = "apply"
    VERIFY = "verify"
    OFF = "off"


class System(StrEnum):
    """What configures the network in the guest."""

    IFUPDOWN = "ifupdown"
    NETPLAN = "netplan"
    NETWORKD = "networkd"
    NETWORK_MANAGER = "network-manager"
    NETWORK_SCRIPTS = "network-scripts"
    SHELL = "shell"  # nothing that is known: xenlb's own script does it all


class Init(StrEnum):
    """What starts and stops services in the guest."""

    SYSTEMD = "systemd"
    SYSVINIT = "sysvinit"


class ReturnPath(StrEnum):
    """How replies of a masqueraded server come back through the director."""

    GATEWAY = "gateway"  # the director is the guest's default gateway
    RULE = "rule"  # by the source address, where it is the balanced services' alone
    MARK = "mark"  # by a mark of the connection, where the guest has one address for everything


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSide:
    """`system` and `init` None: as the guest itself shows. `gateways`: the director as the guest
    reaches it, at most one address a family; found from the host's routes where left out.
    `addresses`: the service addresses of a service by firewall mark, which it does not tell itself.
    `table`: the first of the routing tables, one for each interface (busybox's ip knows none above
    1023); it is the connections' mark, too. `tx_checksums` False: the guest's network card is not
    left to complete checksums. `ssh`: the destination for ssh(1), the guest's address as root where
    left out."""

    delivery: Delivery | None = None
    on_boot: OnBoot = OnBoot.OFF
    system: System | None = None
    init: Init | None = None
    interface: str = "eth0"
    return_path: ReturnPath = ReturnPath.GATEWAY
    gateways: tuple[IPAddress, ...] = ()
    addresses: tuple[IPAddress, ...] = ()
    table: int = 731
    tx_checksums: bool = True
    ssh: str | None = None
