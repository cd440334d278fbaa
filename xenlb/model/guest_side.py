"""The configuration's `guest-side`: how xenlb brings files into a guest, when, and in what form.

What a guest needs follows from its services.
"""

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
    """What xenlb does to a guest that has started, before its servers are added to the table."""

    APPLY = "apply"
    VERIFY = "verify"
    OFF = "off"


class System(StrEnum):
    """The network configuration system of the guest."""

    IFUPDOWN = "ifupdown"
    NETPLAN = "netplan"
    NETWORKD = "networkd"
    NETWORK_MANAGER = "network-manager"
    NETWORK_SCRIPTS = "network-scripts"
    SHELL = "shell"  # no known system: xenlb's own script does everything


class Init(StrEnum):
    """The init system of the guest."""

    SYSTEMD = "systemd"
    SYSVINIT = "sysvinit"


class ReturnPath(StrEnum):
    """How replies of a masqueraded server return through the director."""

    GATEWAY = "gateway"  # the director is the guest's default gateway
    RULE = "rule"  # by the source address, if only balanced services use it
    MARK = "mark"  # by a mark of the connection, if the guest has one address for everything


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSide:
    """Settings for the inside of a guest.

    `system` and `init` None: detected in the guest. `gateways`: the director's addresses for the
    guest, at most one a family; default: found from the host's routes. `addresses`: the service
    addresses of a service by firewall mark, whose settings do not contain them. `table`: the first
    of the routing tables, one for each interface (busybox's ip knows none above 1023), and the
    connections' mark. `tx_checksums` False: checksum offload is turned off. `ssh`: the destination
    for ssh(1), default: root at the guest's address.
    """

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
