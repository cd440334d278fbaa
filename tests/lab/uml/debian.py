"""Guests of the User-mode Linux lab with Debian's systemd, or sysvinit, as their init.

Each is a container whose root is an overlay in memory over the image that tests/lab/debian makes,
mounted once. What it writes stays from start to start, as on a disk.

Facts (libvirt 9.0, systemd 252):
- `virsh shutdown` and `virsh reboot` work in their default mode: libvirt writes a run level to
  /dev/initctl, systemd-initctl.socket listens there, and units stop in order. `--mode signal`
  does not: it is SIGTERM, at which systemd re-executes itself.
- libvirt puts a container into the cgroup v1 controllers only and leaves what systemd tracks its
  units in to machined; container-init (in the image) makes up for it.
- /sys is read-only in a container: udevd does not start, networkd and NetworkManager take devices
  as they are, and `netplan apply` fails at its `udevadm trigger` (netplan 0.106). What applies a
  change there is `netplan generate && networkctl reload`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tests.lab.debian import guest_files, guest_image, guest_shell
from tests.lab.debian.definition import Definition, Init
from tests.lab.host import LabError, Result, last_lines
from tests.lab.uml.guests import Guest, lxc_xml

if TYPE_CHECKING:
    from tests.lab.uml import UmlLab

INIT = "/usr/lib/lab/container-init"
IMAGE = "/run/lab/debian"
# $1 the image, $2 where it is mounted for all guests, $3 the guest's folder
SETUP = """
if [ ! -d "$2" ]; then
    mkdir -p "$2"
    modprobe loop
    mount -t ext4 -o ro,loop "$1" "$2"
fi
cd "$3"
if mountpoint -q root; then umount root; fi
rm -rf upper work
mkdir -p upper work root
mount -t overlay -o "lowerdir=$2,upperdir=$3/upper,workdir=$3/work" root root
tar -x -C root -f files.tar
"""
# The kernel is the director's, and a container may load nothing. With these loaded every name space
# made from then on has tunl0, sit0 and so on, and iptables-legacy works in it.
MODULES = (
    *("ipip", "ip6_tunnel", "sit", "ip_gre", "fou", "dummy"),
    *("iptable_filter", "iptable_mangle", "ip6table_filter", "ip6table_mangle"),
    *("nf_conntrack", "xt_connmark", "xt_conntrack", "xt_mark", "xt_tcpudp", "xt_TCPMSS"),
)


def define(lab: UmlLab, definition: Definition, *, mac: str) -> DebianGuest:
    """Defines the container; libvirtd must run."""
    guest = DebianGuest(
        lab,
        name=definition.name,
        address=definition.address,
        ports=definition.ports,
        init=definition.init,
    )
    guest.lay_out(definition)
    if definition.network != "lab":
        lab.run(["modprobe", "-a", *MODULES])
    elif definition.method == "tunnel":
        lab.run(["modprobe", "ipip"])  # every name space made from now on has a tunl0
    guest.define(
        lxc_xml(
            name=definition.name,
            address=None,
            mac=mac,
            metadata=definition.metadata,
            root=guest.root,
            memory_mib=definition.memory_mib,
            init=[INIT],
            environment={},
        )
    )
    return guest


class DebianGuest(Guest):
    uri = "lxc:///"

    def __init__(
        self, lab: UmlLab, *, name: str, address: str, ports: Sequence[int], init: Init
    ) -> None:
        super().__init__(lab, name=name, address=address)
        self.init: Init = init
        self.port = ports[0]
        self.directory = f"/run/lab/debian-{name}"
        self.root = f"{self.directory}/root"  # the guest's files, as the director sees them

    def lay_out(self, definition: Definition) -> None:
        """Makes its root: the image, and over it what makes it this guest."""
        image = guest_image.build(init=self.init)
        self.lab.write(f"{self.directory}/files.tar", guest_files.archive(definition))
        lower = f"{IMAGE}-{self.init}-image"
        self.lab.run(["sh", "-e", "-c", SETUP, "sh", str(image), lower, self.directory])
        scripts = guest_files.scripts(definition) if self.init == "sysvinit" else ()
        for script in scripts:
            self.lab.run(["chroot", self.root, "/usr/sbin/update-rc.d", script, "defaults"])

    def shutdown(self) -> Result:
        """Asks, and returns at once; `wait_gone` waits for the guest to follow."""
        return self.virsh("shutdown", self.name)

    def reboot(self) -> Result:
        """Asks, and returns at once."""
        return self.virsh("reboot", self.name)

    def power_off_inside(self) -> None:
        """The guest goes by itself; nobody outside has asked for it."""
        self.run("poweroff")

    def reboot_inside(self) -> None:
        """As `reboot`, but nobody outside has asked for it."""
        self.run("reboot")

    def init_pid(self) -> int | None:
        """Of the running guest, in the director; each start and reboot gives another."""
        # While it boots, init is still container-init.
        names = "^(systemd|init)$"
        result = self.lab.run(["pgrep", "-P", self._controller(), names], check=False)
        return int(result.out) if result.out.strip() else None

    def wait_serving(self, timeout: float = 60) -> None:
        """Until its first port takes a connection from the director."""
        if not guest_shell.answers(self.lab, self.address, self.port, timeout=timeout):
            raise LabError(
                f"guest {self.name} does not serve {self.address} port {self.port} after "
                f"{timeout * self.lab.patience:.0f} s; its journal ends:\n{last_lines(self.log())}"
            )

    def wait_rebooted(self, before: int | None, timeout: float = 60) -> None:
        """Until it runs with another init than `before`, and serves."""
        self.lab.wait_until(
            lambda: self.init_pid() not in (None, before), timeout, f"{self.name} anew", every=0.2
        )
        self.wait_serving(timeout)

    def run(self, command: str, *, timeout: float = 30, check: bool = True) -> Result:
        """Runs a shell command in the guest; both its outputs come as `out`."""
        return self.lab.run(
            ["bash", guest_shell.GUEST_SH, self.address, command], timeout=timeout, check=check
        )

    def write(self, path: str, data: str | bytes, mode: int = 0o644) -> None:
        """Writes a file in the running guest (parents are made)."""
        self.run(guest_shell.write(path, data, mode=mode))

    def log(self) -> str:
        """Its journal, of all its boots (of sysvinit: what the lab's init scripts note)."""
        if self.init == "sysvinit":
            return self.lab.out(f"cat {self.root}/var/log/lab.log 2>/dev/null || true")
        # By the image's own journalctl: the machine need not have one.
        command = ["chroot", self.root, "journalctl", "--no-pager", "-o", "short-precise"]
        return self.lab.run([*command, "-D", "/var/log/journal"], check=False).out

    def set_sick(self, sick: bool) -> None:
        """From now on GET /health is answered 503 (or again 200)."""
        self.run("touch /run/sick" if sick else "rm -f /run/sick")

    def _controller(self) -> str:
        return self.virsh("domid", self.name).out.strip() or "0"
