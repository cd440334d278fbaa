"""Guests of the User-mode Linux lab with Debian's systemd as their init.

Each is a container whose root is an overlay in memory over the image that tests/lab/debian makes,
mounted once. What it writes stays from start to start, as on a disk.

Facts (libvirt 9.0, systemd 252):
- `virsh shutdown` and `virsh reboot` work in their default mode: libvirt writes a run level to
  /dev/initctl, systemd-initctl.socket listens there, and units stop in order. `--mode signal`
  does not: it is SIGTERM, at which systemd re-executes itself.
- libvirt puts a container into the cgroup v1 controllers only and leaves what systemd tracks its
  units in to machined; container-init (in the image) makes up for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.debian import guest_image, guest_shell
from tests.lab.host import LabError, Result, last_lines
from tests.lab.uml.guests import Guest

if TYPE_CHECKING:
    from tests.lab.uml import UmlLab

INIT = "/usr/lib/lab/container-init"
GUEST_SH = str(Path(__file__).resolve().parents[1] / "guest-sh")
IMAGE = "/run/lab/debian"
SETUP = f"""
set -e
if [ ! -d {IMAGE} ]; then
    mkdir -p {IMAGE}
    modprobe loop
    mount -t ext4 -o ro,loop "$1" {IMAGE}
fi
if mountpoint -q "$2/root"; then umount "$2/root"; fi
rm -rf "$2"/upper "$2"/work
mkdir -p "$2"/upper "$2"/work "$2"/root
mount -t overlay -o "lowerdir={IMAGE},upperdir=$2/upper,workdir=$2/work" root "$2/root"
tar -x -C "$2/root" -f "$2/files.tar"
"""


class DebianGuest(Guest):
    uri = "lxc:///"

    def __init__(self, lab: UmlLab, *, name: str, address: str, ports: Sequence[int]) -> None:
        super().__init__(lab, name=name, address=address)
        self.port = ports[0]
        self.directory = f"/run/lab/debian-{name}"
        self.root = f"{self.directory}/root"  # the guest's files, as the director sees them

    def lay_out(self, files: bytes) -> None:
        """Makes its root: the image, and over it `files` (a tar archive)."""
        image = guest_image.build()
        self.lab.write(f"{self.directory}/files.tar", files)
        self.lab.run(["sh", "-c", SETUP, "sh", str(image), self.directory])

    def shutdown(self) -> Result:
        """Asks, and returns at once; `wait_gone` waits for the guest to follow."""
        return self.virsh("shutdown", self.name)

    def reboot(self) -> Result:
        """Asks, and returns at once."""
        return self.virsh("reboot", self.name)

    def power_off_inside(self) -> None:
        """The guest goes by itself; nobody outside has asked for it."""
        self.run("systemctl --no-block poweroff")

    def reboot_inside(self) -> None:
        """As `reboot`, but nobody outside has asked for it."""
        self.run("systemctl --no-block reboot")

    def init_pid(self) -> int | None:
        """Of the running guest, in the director; each start and reboot gives another."""
        result = self.lab.run(["pgrep", "-P", self._controller(), "-x", "systemd"], check=False)
        return int(result.out) if result.out.strip() else None

    def wait_serving(self, timeout: float = 60) -> None:
        """Until its first port takes a connection from the director."""
        command = guest_shell.knock(self.address, self.port, timeout=timeout)
        if self.lab.run(command, timeout=timeout + 30, check=False).rc != 0:
            raise LabError(
                f"guest {self.name} does not serve {self.address} port {self.port} after "
                f"{timeout:.0f} s; its journal ends:\n{last_lines(self.log())}"
            )

    def wait_rebooted(self, before: int | None, timeout: float = 60) -> None:
        """Until it runs with another init than `before`, and serves."""
        self.lab.wait_until(
            lambda: self.init_pid() not in (None, before), timeout, f"{self.name} anew", every=0.2
        )
        self.wait_serving(timeout)

    def run(self, command: str, *, timeout: float = 30, check: bool = True) -> Result:
        """Runs a shell command in the guest; both its outputs come as `out`."""
        return self.lab.run(["bash", GUEST_SH, self.address, command], timeout=timeout, check=check)

    def write(self, path: str, data: str | bytes, mode: int = 0o644) -> None:
        """Writes a file in the running guest (parents are made)."""
        self.run(guest_shell.write(path, data, mode=mode))

    def log(self) -> str:
        """Its journal, of all its boots."""
        # By the image's own journalctl: the machine need not have one.
        command = ["chroot", self.root, "journalctl", "--no-pager", "-o", "short-precise"]
        return self.lab.run([*command, "-D", "/var/log/journal"], check=False).out

    def set_sick(self, sick: bool) -> None:
        """From now on GET /health is answered 503 (or again 200)."""
        self.run("touch /run/sick" if sick else "rm -f /run/sick")

    def _controller(self) -> str:
        return self.virsh("domid", self.name).out.strip() or "0"
